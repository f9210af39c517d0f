//! What a device does with its group: the one place that uses the project's interfaces.

use std::{
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use dht_records::{Fetch as Freshness, GroupAccess};
use group::{FetchProgress, Group, GroupSecrets, OnProgress, OwnSecrets};
use repo::{EntryPath, Source, WriteOptions};
use tokio::io::{AsyncRead, ReadBuf};
use veilid_core::{KeyPair, PublicKey};

use super::{Device, say, value};
use crate::{
    Result,
    protocol::{Counts, Fetch, Fetched, Keys, Put},
};

/// How long publishing, and seeing what was published, may take.
const LIMIT: Duration = Duration::from_secs(180);
/// How often what others published is looked for.
const LOOK: Duration = Duration::from_millis(300);
const ME: &str = "bench";

impl Device {
    fn group(&self) -> Result<&Group> {
        Ok(self.group.get().ok_or("the device is in no group")?)
    }

    fn adopt(&self, group: Group) -> Result<()> {
        group.start();
        self.group
            .set(group)
            .map_err(|_| "the device is in a group already".into())
    }

    pub(super) async fn create(&self) -> Result<Keys> {
        let (group, secrets) = Group::create(self.context.clone(), "Bench", ME).await?;
        self.adopt(group)?;
        keys(&secrets)
    }

    pub(super) async fn join(&self, owner: &str) -> Result<Keys> {
        let owner: KeyPair = owner.parse()?;
        let access = GroupAccess::Member { owner };
        let (group, secrets) = Group::join(self.context.clone(), access, ME).await?;
        self.adopt(group)?;
        keys(&secrets)
    }

    pub(super) async fn load(&self, keys: &Keys) -> Result<()> {
        let secrets = GroupSecrets {
            access: GroupAccess::Member {
                owner: keys.owner.parse()?,
            },
            own: Some(OwnSecrets {
                repo: keys.pair.parse()?,
                me: ME.to_owned(),
            }),
        };
        self.adopt(Group::load(self.context.clone(), &secrets).await?)
    }

    pub(super) async fn flush(&self) -> Result<()> {
        Ok(self.group()?.flush(LIMIT).await?)
    }

    pub(super) async fn put(&self, put: Put) -> Result<f64> {
        let paths: Vec<String> = match put.files {
            1 => vec![put.name],
            files => (0..files)
                .map(|file| format!("{}/{file}", put.name))
                .collect(),
        };
        let mut files = Vec::with_capacity(paths.len());
        for path in paths {
            let source: Source = Box::new(Noise::new(&path, put.bytes));
            files.push((EntryPath::parse(&path)?, source, WriteOptions::default()));
        }
        let start = Instant::now();
        self.group()?.put(files).await?;
        Ok(start.elapsed().as_secs_f64())
    }

    pub(super) async fn see(&self, repo: &str, name: &str) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < LIMIT {
            // A network that is slow or away for a moment is part of what is measured.
            if let Err(error) = self.group()?.list(Freshness::Network).await {
                tracing::debug!(%error, "the lists cannot be read");
            }
            if !self.named(repo, name).await?.is_empty() {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
        Err(format!("{name} is not listed after {LIMIT:?}").into())
    }

    /// A member's file of this name, or those in the folder, and their sizes.
    async fn named(&self, repo: &str, name: &str) -> Result<Vec<(EntryPath, u64)>> {
        let folder = format!("{name}/");
        let files = self.group()?.list(Freshness::Cached).await?;
        Ok(files
            .into_iter()
            .filter(|file| file.repo.to_string() == repo)
            .map(|file| (file.entry.path, file.entry.size))
            .filter(|(path, _)| path.as_str() == name || path.as_str().starts_with(&folder))
            .collect())
    }

    /// Fetches until all is stored. `id` is that of the request, which is answered before the process dies where it is to.
    pub(super) async fn fetch(&self, id: u64, plan: Fetch) -> Result<Fetched> {
        let group = self.group()?;
        let member: PublicKey = plan.repo.parse()?;
        let files = self.named(&plan.repo, &plan.name).await?;
        if files.is_empty() {
            return Err(format!("{} is not listed", plan.name).into());
        }
        let bytes = files.iter().map(|(_, size)| size).sum();
        let before = self.counts()?;
        let first = Arc::<OnceLock<f64>>::default();
        let start = Instant::now();
        let context = self.context.clone();
        let report: OnProgress = {
            let first = first.clone();
            Arc::new(move |progress: FetchProgress| {
                if progress.bytes_done == 0 {
                    return;
                }
                let seconds = start.elapsed().as_secs_f64();
                let first = *first.get_or_init(|| seconds);
                if plan.die_at.is_some_and(|at| progress.bytes_done >= at)
                    && let Ok(counts) = super::serve::counts(&context)
                {
                    die(
                        id,
                        &Fetched {
                            seconds,
                            first: Some(first),
                            bytes: progress.bytes_done,
                            counts: counts.since(&before),
                        },
                    );
                }
            })
        };
        if let [(path, _)] = files.as_slice() {
            group.read(&member, path, Some(report)).await?;
        } else {
            let synced = group.sync_repo(&member, None).await?;
            if let Some(error) = synced.error {
                return Err(error.into());
            }
        }
        Ok(Fetched {
            seconds: start.elapsed().as_secs_f64(),
            first: first.get().copied(),
            bytes,
            counts: self.counts()?.since(&before),
        })
    }

    pub(super) async fn ping(&self, repo: &str) -> Result<f64> {
        let time = self.group()?.ping(&repo.parse()?).await?;
        Ok(time.as_secs_f64())
    }

    pub(super) fn counts(&self) -> Result<Counts> {
        super::serve::counts(&self.context)
    }
}

fn keys(secrets: &GroupSecrets) -> Result<Keys> {
    let owner = secrets.access.owner().ok_or("no member's access")?;
    let own = secrets.own.as_ref().ok_or("no member's repo")?;
    Ok(Keys {
        owner: owner.to_string(),
        pair: own.repo.to_string(),
        repo: own.repo.key().to_string(),
    })
}

/// Answers the request and kills this process, as a power cut would.
fn die(id: u64, fetched: &Fetched) {
    let _ = value(fetched).and_then(|value| say(id, Ok(value)));
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
}

/// Bytes that no compression makes smaller and that no other name has.
struct Noise {
    reader: blake3::OutputReader,
    left: u64,
}

impl Noise {
    fn new(name: &str, bytes: u64) -> Self {
        Self {
            reader: blake3::Hasher::new().update(name.as_bytes()).finalize_xof(),
            left: bytes,
        }
    }
}

impl AsyncRead for Noise {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let noise = self.get_mut();
        let most = usize::try_from(noise.left).unwrap_or(usize::MAX);
        let length = buf.remaining().min(most);
        noise.reader.fill(buf.initialize_unfilled_to(length));
        buf.advance(length);
        noise.left -= length as u64;
        Poll::Ready(Ok(()))
    }
}
