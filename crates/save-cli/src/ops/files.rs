//! Operations on files.

use bytes::BytesMut;
use save_backend::{EntryPath, ListedFile, NewFile, Progress, ProgressState};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::watch;

use super::{Context, PutFile, selection};
use crate::error::{Error, Result};
use crate::items::{Item, Stage};
use crate::protocol::DATA_CHUNK;

impl Context<'_> {
    pub(super) async fn put(&self, group: Option<&str>, files: Vec<PutFile>) -> Result<()> {
        let id = self.group(group).await?;
        let files = files
            .into_iter()
            .map(|file| {
                Ok(NewFile {
                    path: entry_path(&file.path)?,
                    source: file.source,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let (report, heard) = reporter();
        let put = self.backend.put(&id, files, report);
        let entries = self.follow(Stage::Storing, heard, put).await?;
        for entry in entries {
            self.output
                .item(Item::Stored {
                    path: entry.path.as_str().to_owned(),
                    size: entry.size,
                })
                .await?;
        }
        self.publication(&id).await
    }

    pub(super) async fn list(&self, group: Option<&str>, refresh: bool) -> Result<()> {
        let id = self.group(group).await?;
        if refresh {
            self.online().await?;
        }
        for file in self.backend.list(&id, refresh).await? {
            self.output.item(file_item(&file)).await?;
        }
        Ok(())
    }

    pub(super) async fn remove(&self, group: Option<&str>, path: &str) -> Result<()> {
        let id = self.group(group).await?;
        let entry = entry_path(path)?;
        self.backend.delete(&id, &entry).await?;
        self.output
            .item(Item::Removed {
                path: entry.as_str().to_owned(),
            })
            .await?;
        self.publication(&id).await
    }

    pub(super) async fn get(
        &self,
        group: Option<&str>,
        member: Option<&str>,
        path: &str,
    ) -> Result<()> {
        let id = self.group(group).await?;
        let entry = entry_path(path)?;
        let find = async |refresh: bool| -> Result<Option<ListedFile>> {
            let from = match member {
                Some(wanted) => {
                    let members = self.backend.members(&id, refresh).await?;
                    match selection::member(&members, wanted) {
                        Ok(member) => Some(member.repo.clone()),
                        Err(Error::NoSuchMember { .. }) if !refresh => return Ok(None),
                        Err(error) => return Err(error),
                    }
                }
                None => None,
            };
            let files = self.backend.list(&id, refresh).await?;
            Ok(selection::file(&files, entry.as_str(), from.as_ref())?.cloned())
        };
        // What is on this device never waits for the network.
        let mut file = find(false).await?;
        if !file.as_ref().is_some_and(|file| file.here) {
            let missing = || match &file {
                Some(_) => Error::NotHere {
                    path: path.to_owned(),
                },
                None => Error::NoSuchFile {
                    path: path.to_owned(),
                    asked: false,
                },
            };
            if self.offline {
                return Err(missing());
            }
            self.online().await?;
            self.output.progress(Stage::Finding, 0, None);
            match find(true).await {
                Ok(fresh) => file = fresh,
                // The holder's last known state may still be good enough to fetch from.
                Err(error) if file.is_some() && error.is_retryable() => {
                    tracing::debug!(error = %error, "could not refresh before fetching");
                }
                Err(error) => return Err(error),
            }
        }
        let file = file.ok_or_else(|| Error::NoSuchFile {
            path: path.to_owned(),
            asked: true,
        })?;
        let (report, heard) = reporter();
        let get = self.backend.get(&id, Some(&file.repo), &entry, report);
        let reader = self.follow(Stage::Fetching, heard, get).await?;
        self.output.item(file_item(&file)).await?;
        self.send(reader, &file).await
    }

    pub(super) async fn replaced(&self, group: Option<&str>) -> Result<()> {
        let id = self.group(group).await?;
        for file in self.backend.replaced(&id).await? {
            self.output.item(file_item(&file)).await?;
        }
        Ok(())
    }

    pub(super) async fn get_replaced(&self, group: Option<&str>, path: &str) -> Result<()> {
        let id = self.group(group).await?;
        let entry = entry_path(path)?;
        let mut replaced = self.backend.replaced(&id).await?.into_iter();
        let file = replaced
            .find(|file| file.entry.path.as_str() == entry.as_str())
            .ok_or_else(|| Error::NotReplaced {
                path: path.to_owned(),
            })?;
        let reader = self.backend.get_version(&id, &file).await?;
        self.output.item(file_item(&file)).await?;
        self.send(reader, &file).await
    }

    async fn send(&self, mut reader: impl AsyncRead + Unpin, file: &ListedFile) -> Result<()> {
        let mut sent = 0_u64;
        loop {
            let mut chunk = BytesMut::with_capacity(DATA_CHUNK);
            while chunk.len() < DATA_CHUNK {
                let left = DATA_CHUNK - chunk.len();
                let mut rest = (&mut reader).take(left as u64);
                let read = rest
                    .read_buf(&mut chunk)
                    .await
                    .map_err(|source| Error::Stored {
                        path: file.entry.path.as_str().to_owned(),
                        source,
                    })?;
                if read == 0 {
                    break;
                }
            }
            if chunk.is_empty() {
                break;
            }
            sent = sent.saturating_add(chunk.len() as u64);
            self.output.data(chunk.freeze()).await?;
        }
        if sent == file.entry.size {
            Ok(())
        } else {
            Err(Error::WrongLength {
                path: file.entry.path.as_str().to_owned(),
                got: sent,
                wanted: file.entry.size,
            })
        }
    }

    /// Runs a call of the backend, and passes on what its callback (see [`reporter`]) hears meanwhile.
    async fn follow<T>(
        &self,
        stage: Stage,
        mut heard: watch::Receiver<Option<Progress>>,
        work: impl Future<Output = Result<T, save_backend::Error>>,
    ) -> Result<T> {
        tokio::pin!(work);
        let mut open = true;
        loop {
            tokio::select! {
                result = &mut work => return result.map_err(Error::from),
                changed = heard.changed(), if open => {
                    open = changed.is_ok();
                    let progress: Option<Progress> = *heard.borrow_and_update();
                    if let Some(progress) = progress {
                        let stage = stage_of(progress.state, stage);
                        self.output.progress(stage, progress.bytes_done, progress.bytes_total);
                    }
                }
            }
        }
    }
}

/// A callback for the backend that never waits, and where what it hears arrives: the latest alone counts.
fn reporter() -> (
    impl Fn(Progress) + Send + Sync + 'static,
    watch::Receiver<Option<Progress>>,
) {
    let (sender, heard) = watch::channel(None);
    let report = move |progress| {
        sender.send_replace(Some(progress));
    };
    (report, heard)
}

fn stage_of(state: ProgressState, stage: Stage) -> Stage {
    match state {
        ProgressState::Finding => Stage::Finding,
        ProgressState::Verifying => Stage::Verifying,
        _ => stage,
    }
}

pub(super) fn entry_path(path: &str) -> Result<EntryPath> {
    EntryPath::parse(path).map_err(|error| Error::BadPath {
        path: path.to_owned(),
        reason: error.to_string(),
    })
}

fn file_item(file: &ListedFile) -> Item {
    Item::File {
        path: file.entry.path.as_str().to_owned(),
        size: file.entry.size,
        media_type: Some(file.entry.media_type.clone()),
        modified: Some(file.entry.modified),
        repo: file.repo.to_string(),
        member: file.member.clone(),
        is_self: file.is_self,
        here: file.here,
    }
}
