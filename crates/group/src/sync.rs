//! Bringing everything here: all members' collections, then all of their files.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use dht_records::Fetch;
use futures::{
    StreamExt,
    stream::{self, FuturesUnordered},
};
use iroh_blobs::api::blobs::BlobStatus;
use repo::{Repo, seal::Layout};
use tokio::time::Instant;
use veilid_core::PublicKey;

use crate::{
    Error, Group, Result,
    engine::{Ticket, Wanted},
    files::wanted_blob,
    progress::{OnProgress, Reporter},
    sched::Kind,
};

/// Files of one member that are wanted at once: the most that a holder is asked about in one question, half of which is renewed
/// together.
const WINDOW: usize = 1_024;
/// Members whose files are fetched at the same time.
const MEMBERS: usize = 4;

/// How far the files of one member are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncProgress {
    /// Whose.
    pub repo: PublicKey,
    /// Files that are on this device.
    pub files_done: u64,
    /// All files.
    pub files_total: u64,
    /// Verified bytes that are on this device, sealed as they travel.
    pub bytes_done: u64,
    /// All bytes, sealed as they travel. A replica does not know the size of what is not here yet, which does not count then.
    pub bytes_total: u64,
}

/// Told of progress; called often, so it has to return quickly.
pub type OnSync = Arc<dyn Fn(SyncProgress) + Send + Sync>;

/// What a synchronisation came to, for one member.
#[derive(Debug)]
pub struct RepoSync {
    /// How far the member's files are now.
    pub progress: SyncProgress,
    /// Why not everything is here, or may not be, if so: the first of the errors. [`Error::NotSeen`] where only what was known before is
    /// sure to be here.
    pub error: Option<Error>,
}

impl RepoSync {
    /// Whether the newest collection and all of its files are here.
    pub fn is_complete(&self) -> bool {
        self.error.is_none() && self.progress.files_done == self.progress.files_total
    }
}

impl RepoSync {
    fn after(mut self, looked: &Result<()>) -> Self {
        if let Err(Error::NotSeen(cause)) = looked {
            self.error.get_or_insert(Error::NotSeen(cause.clone()));
        }
        self
    }
}

/// What a synchronisation came to.
#[derive(Debug, Default)]
pub struct SyncReport {
    /// For each member.
    pub repos: Vec<RepoSync>,
}

impl SyncReport {
    /// Whether everything that was known when it began is here.
    pub fn is_complete(&self) -> bool {
        self.repos.iter().all(RepoSync::is_complete)
    }
}

impl Group {
    /// Brings all members' collections here, then all of their files. What cannot be had now stays [wanted](Self::wanted); the report
    /// says what that is. Dropping the future stops it, and what was verified stays.
    ///
    /// Costs one look at the group's record, and nothing else when all is here.
    ///
    /// # Errors
    /// Those of the local disk; those of the network if not a single member is known. That a member's files cannot be had is no error of
    /// this call.
    pub async fn sync_all(&self, on_progress: Option<OnSync>) -> Result<SyncReport> {
        let looked = self.look_around().await?;
        let members: Vec<PublicKey> = self
            .members(Fetch::Cached)
            .await?
            .into_iter()
            .map(|member| member.repo)
            .collect();
        let syncs: Vec<_> = members
            .iter()
            .map(|member| self.sync_known(member, on_progress.clone()))
            .collect();
        if members.is_empty() {
            return looked.map(|()| SyncReport::default());
        }
        let mut syncs = stream::iter(syncs).buffered(MEMBERS);
        let mut report = SyncReport::default();
        let mut failed = None;
        while let Some(repo) = syncs.next().await {
            match repo {
                Ok(repo) => report.repos.push(repo.after(&looked)),
                // The others go on: dropping them would take back what they want.
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(report), Err)
    }

    /// As [`sync_all`](Self::sync_all), for one member.
    ///
    /// # Errors
    /// [`Error::NoSuchMember`]; those of the local disk.
    pub async fn sync_repo(
        &self,
        member: &PublicKey,
        on_progress: Option<OnSync>,
    ) -> Result<RepoSync> {
        let looked = self.look_around().await?;
        self.repo_of(member).await?;
        let synced = self.sync_known(member, on_progress).await?;
        Ok(synced.after(&looked))
    }

    /// Reads who the members are and what they have. What was seen last is good enough to go on with, and not to say that all is here.
    async fn look_around(&self) -> Result<Result<()>> {
        match self.refresh_members().await {
            Err(error) if error.is_local() => Err(error),
            Err(error) => {
                tracing::debug!(%error, "the members cannot be read now");
                Ok(Err(Error::NotSeen(Arc::new(error))))
            }
            Ok(None) => Ok(Ok(())),
            Ok(Some(error)) => Ok(Err(Error::NotSeen(Arc::new(error)))),
        }
    }

    async fn sync_known(
        &self,
        member: &PublicKey,
        on_progress: Option<OnSync>,
    ) -> Result<RepoSync> {
        let collection = match self.sync_collection(member).await {
            Err(error) if error.is_local() => return Err(error),
            collection => collection,
        };
        let mut report = self.files_here(member, on_progress.as_ref()).await?;
        if report.missing.is_empty() {
            report.emit();
            let error = collection.err().or(report.error.take());
            return Ok(report.into_sync(error));
        }
        // Before the first byte, so that it goes on after a crash.
        let waiting = self.begin_wanting(member, None)?;
        waiting.write_down().await?;
        let error = self.bring_missing(&mut report).await;
        let error = match error {
            Ok(error) => error,
            Err(error) => {
                waiting.end(false);
                return Err(error);
            }
        };
        waiting.end(error.is_none());
        let error = collection.err().or(error).or(report.error.take());
        Ok(report.into_sync(error))
    }

    /// Brings all files of a member here, as far as their collection is.
    pub(crate) async fn bring_all_here(
        &self,
        member: &PublicKey,
        on_progress: Option<&OnSync>,
    ) -> Result<RepoSync> {
        let mut report = self.files_here(member, on_progress).await?;
        let error = self.bring_missing(&mut report).await?;
        let error = error.or(report.error.take());
        Ok(report.into_sync(error))
    }

    /// Looks which files of a member are here. Needs no network.
    async fn files_here(&self, member: &PublicKey, on_progress: Option<&OnSync>) -> Result<Files> {
        let repo = self.repo(member).await?;
        let own = self.inner.is_own(member);
        let mut files = Files {
            repo: member.clone(),
            counts: Arc::default(),
            files_total: 0,
            bytes_total: 0,
            missing: Vec::new(),
            error: None,
            on_progress: on_progress.cloned(),
        };
        let (all, error) = self.wanted_of(&repo).await?;
        files.error = error;
        let hashes: Vec<_> = all.iter().map(|wanted| wanted.hash).collect();
        let here = self.inner.ctx.store.complete(&hashes).await?;
        for (mut wanted, here) in all.into_iter().zip(here) {
            // What lies here and did not come from this group is fetched like what is not here: everybody knows when a member
            // synchronises, and could tell from what they do not ask for.
            wanted.whole = !own && !self.inner.held.contains(&wanted.hash);
            let here = here && !wanted.whole;
            if here && wanted.size.is_none() {
                let status = self.inner.ctx.store.status(wanted.hash).await;
                if let BlobStatus::Complete { size } = status.map_err(Error::store)? {
                    wanted.size = Some(size);
                }
            }
            let size = wanted.size.unwrap_or(0);
            files.files_total += 1;
            files.bytes_total = files.bytes_total.saturating_add(size);
            if here {
                files.counts.files.fetch_add(1, Ordering::Relaxed);
                files.counts.bytes.fetch_add(size, Ordering::Relaxed);
            } else {
                files.missing.push(wanted);
            }
        }
        Ok(files)
    }

    /// What is to be fetched of a member, and the error of those files that nobody can have. For a replica the blobs, each once, whose
    /// sizes it does not know.
    async fn wanted_of(&self, repo: &Repo) -> Result<(Vec<Wanted>, Option<Error>)> {
        if self.inner.access.content().is_some() {
            let (mut all, mut first) = (Vec::new(), None);
            for entry in repo.list().await? {
                match wanted_blob(&entry) {
                    Ok(wanted) => all.push(wanted),
                    // A member can write any size into their list.
                    Err(error) => first = first.or(Some(error)),
                }
            }
            return Ok((all, first));
        }
        let key = repo.public_key().to_string();
        let stated = self.inner.known().get(&key).and_then(|known| known.root);
        // No file is larger than all of them.
        let limit = Layout::of_plain(stated.map_or(0, |root| root.bytes))
            .map_err(repo::Error::from)?
            .sealed_len();
        let blobs = repo.blobs().await?.into_iter();
        let all = blobs
            .map(|hash| Wanted {
                hash,
                kind: Kind::Blob,
                size: None,
                limit,
                since: Instant::now(),
                like: None,
                whole: false,
            })
            .collect();
        Ok((all, None))
    }

    /// Fetches what is missing, a window at a time. Gives the first error of those files that could not be had.
    async fn bring_missing(&self, files: &mut Files) -> Result<Option<Error>> {
        files.emit();
        let mut missing = std::mem::take(&mut files.missing).into_iter();
        let mut under_way = FuturesUnordered::new();
        let mut first = None;
        loop {
            if under_way.len() <= WINDOW / 2 {
                let mut more: Vec<_> = missing.by_ref().take(WINDOW - under_way.len()).collect();
                // What stands in the list twice may have come meanwhile.
                for wanted in &mut more {
                    wanted.whole &= !self.inner.held.contains(&wanted.hash);
                }
                let tickets = self.inner.engine.want(&more, None).await?;
                for (ticket, wanted) in tickets.into_iter().zip(more) {
                    let size = wanted.size.unwrap_or(0);
                    under_way.push(wait(ticket, files.reporter(size), size));
                }
            }
            let Some((size, outcome)) = under_way.next().await else {
                break;
            };
            match outcome {
                Ok(()) => {
                    files.counts.files.fetch_add(1, Ordering::Relaxed);
                    files.emit();
                }
                // Nor could the next one be stored.
                Err(error @ Error::NotStored(_)) => return Err(error),
                Err(error) if error.is_retryable() || matches!(error, Error::TooLarge { .. }) => {
                    tracing::debug!(%error, size, "a file cannot be had now");
                    first.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(first)
    }
}

async fn wait(mut ticket: Ticket, reporter: Reporter, size: u64) -> (u64, Result<()>) {
    let outcome = ticket.done(&reporter).await;
    if outcome.is_ok() {
        reporter.reached(size);
    }
    (size, outcome)
}

#[derive(Default)]
struct Counts {
    files: AtomicU64,
    bytes: AtomicU64,
}

/// The files of a member, and which of them are here.
struct Files {
    repo: PublicKey,
    counts: Arc<Counts>,
    files_total: u64,
    bytes_total: u64,
    missing: Vec<Wanted>,
    /// Why some can never be had.
    error: Option<Error>,
    on_progress: Option<OnSync>,
}

impl Files {
    fn progress(&self) -> SyncProgress {
        SyncProgress {
            repo: self.repo.clone(),
            files_done: self.counts.files.load(Ordering::Relaxed),
            files_total: self.files_total,
            bytes_done: self
                .counts
                .bytes
                .load(Ordering::Relaxed)
                .min(self.bytes_total),
            bytes_total: self.bytes_total,
        }
    }

    fn emit(&self) {
        if let Some(on_progress) = &self.on_progress {
            on_progress(self.progress());
        }
    }

    /// Adds what comes of one file to the sum.
    fn reporter(&self, size: u64) -> Reporter {
        let counts = self.counts.clone();
        let before = AtomicU64::new(0);
        let told = self.on_progress.clone().map(|on_progress| {
            (
                on_progress,
                SyncProgress {
                    bytes_done: 0,
                    ..self.progress()
                },
            )
        });
        let bytes_total = self.bytes_total;
        let count: OnProgress = Arc::new(move |progress| {
            let done = progress.bytes_done.min(size);
            let last = before.fetch_max(done, Ordering::Relaxed);
            if done > last {
                counts.bytes.fetch_add(done - last, Ordering::Relaxed);
                if let Some((on_progress, shape)) = &told {
                    on_progress(SyncProgress {
                        files_done: counts.files.load(Ordering::Relaxed),
                        bytes_done: counts.bytes.load(Ordering::Relaxed).min(bytes_total),
                        ..shape.clone()
                    });
                }
            }
        });
        Reporter::new(0, Some(size), Some(count))
    }

    fn into_sync(self, error: Option<Error>) -> RepoSync {
        RepoSync {
            progress: self.progress(),
            error,
        }
    }
}
