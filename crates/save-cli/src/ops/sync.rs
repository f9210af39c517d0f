//! Operations on what is not here yet.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use save_backend::{EntryPath, GroupId, Member, PublicKey, RepoSync, SyncProgress};
use tokio::sync::watch;

use super::files::entry_path;
use super::{Context, selection};
use crate::error::{Error, Failure, Result};
use crate::items::{Item, Stage};

impl Context<'_> {
    pub(super) async fn sync(&self, group: Option<&str>, member: Option<&str>) -> Result<()> {
        let id = self.group(group).await?;
        self.online().await?;
        self.output.progress(Stage::Finding, 0, None);
        let (report, mut heard) = sums();
        let work = async {
            match member {
                Some(wanted) => {
                    let repo = self.whose(&id, wanted).await?;
                    Ok::<_, Error>(vec![self.backend.sync_repo(&id, &repo, report).await?])
                }
                None => Ok(self.backend.sync_all(&id, report).await?),
            }
        };
        tokio::pin!(work);
        let mut open = true;
        let synced = loop {
            tokio::select! {
                synced = &mut work => break synced?,
                changed = heard.changed(), if open => {
                    open = changed.is_ok();
                    let (done, total) = *heard.borrow_and_update();
                    self.output.progress(Stage::Fetching, done, Some(total));
                }
            }
        };
        let members = self.backend.members(&id, false).await?;
        let mut missing = 0;
        let mut complete = true;
        for repo in synced {
            complete &= repo.is_complete();
            let progress = &repo.progress;
            missing += progress.files_total - progress.files_done.min(progress.files_total);
            self.output.item(synced_item(repo, &members)).await?;
        }
        if complete {
            Ok(())
        } else {
            Err(Error::Incomplete { missing })
        }
    }

    pub(super) async fn wanted(&self, group: Option<&str>) -> Result<()> {
        let id = self.group(group).await?;
        let members = self.backend.members(&id, false).await?;
        for wanted in self.backend.wanted(&id)? {
            self.output
                .item(Item::Wanted {
                    member: name_of(&members, &wanted.repo),
                    repo: wanted.repo.to_string(),
                    path: wanted.path.map(|path| path.as_str().to_owned()),
                    since: wanted.since,
                    active: wanted.active,
                })
                .await?;
        }
        Ok(())
    }

    pub(super) async fn forget(
        &self,
        group: Option<&str>,
        member: Option<&str>,
        path: Option<&str>,
    ) -> Result<()> {
        let id = self.group(group).await?;
        let path = path.map(entry_path).transpose()?;
        let repo = match member {
            Some(wanted) => Some(self.whose(&id, wanted).await?),
            None => None,
        };
        let fits = |of: &PublicKey, file: Option<&EntryPath>| {
            file == path.as_ref() && repo.as_ref().is_none_or(|repo| repo == of)
        };
        let mut any = false;
        for wanted in self.backend.wanted(&id)? {
            if !fits(&wanted.repo, wanted.path.as_ref()) {
                continue;
            }
            let file = wanted.path.as_ref();
            if self.backend.forget_wanted(&id, &wanted.repo, file).await? {
                any = true;
                self.output
                    .item(Item::Forgotten {
                        repo: wanted.repo.to_string(),
                        path: file.map(|path| path.as_str().to_owned()),
                    })
                    .await?;
            }
        }
        if any { Ok(()) } else { Err(Error::NotWanted) }
    }

    async fn whose(&self, id: &GroupId, wanted: &str) -> Result<PublicKey> {
        let members = self.backend.members(id, false).await?;
        Ok(selection::member(&members, wanted)?.repo.clone())
    }
}

/// A callback for the backend that never waits, and where the sums over all members arrive: bytes that are here, and all bytes.
fn sums() -> (
    impl Fn(SyncProgress) + Send + Sync + 'static,
    watch::Receiver<(u64, u64)>,
) {
    let (sender, heard) = watch::channel((0, 0));
    let repos: Mutex<BTreeMap<String, (u64, u64)>> = Mutex::default();
    let report = move |progress: SyncProgress| {
        let mut repos = repos.lock().unwrap_or_else(PoisonError::into_inner);
        repos.insert(
            progress.repo.to_string(),
            (progress.bytes_done, progress.bytes_total),
        );
        let sum = repos.values().fold((0_u64, 0_u64), |sum, repo| {
            (sum.0.saturating_add(repo.0), sum.1.saturating_add(repo.1))
        });
        sender.send_replace(sum);
    };
    (report, heard)
}

fn name_of(members: &[Member], repo: &PublicKey) -> Option<String> {
    members
        .iter()
        .find(|member| member.repo == *repo)
        .and_then(|member| member.name.clone())
}

fn synced_item(repo: RepoSync, members: &[Member]) -> Item {
    let complete = repo.is_complete();
    let progress = repo.progress;
    Item::Synced {
        repo: progress.repo.to_string(),
        member: name_of(members, &progress.repo),
        files: progress.files_done,
        files_total: progress.files_total,
        bytes: progress.bytes_done,
        bytes_total: progress.bytes_total,
        complete,
        error: repo.error.map(|error| Failure::from(&Error::from(error))),
    }
}
