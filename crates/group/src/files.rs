//! The group's files: everybody's lists, and the files themselves.

use std::{pin::pin, time::Duration};

use dht_records::Fetch;
use futures::{
    StreamExt,
    future::{Either, select},
    stream::{self, FuturesUnordered},
};
use repo::{Entry, EntryPath, FileReader, Repo, Source, WriteOptions, seal::Layout};
use tokio::time::{Instant, timeout};
use veilid_core::PublicKey;

use crate::{
    Error, Group, Ignored, Result,
    engine::Wanted,
    group::Inner,
    have::{self, Holding},
    members,
    progress::{FetchState, OnProgress, Reporter},
    sched::Kind,
};

/// How long a ping waits for an answer.
const PING: Duration = Duration::from_secs(30);
/// Collections that are fetched at the same time.
const COLLECTIONS: usize = 16;

/// A file of some member.
#[derive(Clone, Debug)]
pub struct ListedFile {
    /// The member's repo.
    pub repo: PublicKey,
    /// The member's name, where known.
    pub member: Option<String>,
    /// Whether it is this member's own.
    pub is_self: bool,
    /// The file.
    pub entry: Entry,
    /// Whether all of it is on this device.
    pub here: bool,
}

/// Has the upkeep look for what is to be published, however a change ended.
struct ChangedOnDrop<'a>(&'a Inner);

impl Drop for ChangedOnDrop<'_> {
    fn drop(&mut self) {
        self.0.changed();
    }
}

impl Group {
    /// Adds files to this member's repo, as one change. They are stored here when this returns, and published in the background.
    ///
    /// # Errors
    /// [`Error::ReadOnly`], [`Error::Left`]; those of the repo. Nothing is changed then.
    pub async fn put(&self, files: Vec<(EntryPath, Source, WriteOptions)>) -> Result<Vec<Entry>> {
        // Also where this call is dropped after the change was made.
        let own = self.inner.writer()?;
        let _publish = ChangedOnDrop(&self.inner);
        Ok(own.repo.write_many(files).await?)
    }

    /// Takes a file out of this member's repo, and publishes that in the background.
    ///
    /// # Errors
    /// [`Error::ReadOnly`], [`Error::Left`]; those of the repo, such as that there is no such file.
    pub async fn delete(&self, path: &EntryPath) -> Result<()> {
        let own = self.inner.writer()?;
        let _publish = ChangedOnDrop(&self.inner);
        Ok(own.repo.delete(path).await?)
    }

    /// Everybody's files. With `Fetch::Network` the members and their collections are brought up to date first, from whoever is
    /// online; what cannot be had is listed as it was last seen.
    ///
    /// # Errors
    /// Those of the local disk; with `Fetch::Network` those of reading the group's record.
    pub async fn list(&self, fetch: Fetch) -> Result<Vec<ListedFile>> {
        self.check_readable()?;
        if matches!(fetch, Fetch::Network) {
            self.refresh_members().await?;
            self.sync_collections().await?;
        }
        let mut files = Vec::new();
        for member in self.members(Fetch::Cached).await? {
            let repo = self.repo(&member.repo).await?;
            let entries = repo.list().await?;
            let blobs: Vec<_> = entries.iter().map(|entry| entry.blob).collect();
            let here = self.inner.ctx.store.complete_by_index(&blobs).await?;
            for (entry, here) in entries.into_iter().zip(here) {
                files.push(ListedFile {
                    repo: member.repo.clone(),
                    member: member.name.clone(),
                    is_self: member.is_self,
                    entry,
                    here,
                });
            }
        }
        Ok(files)
    }

    /// Versions of this member's files that this device had and that another of the member's devices replaced or deleted, as far as they are
    /// still here: a garbage collection takes them. The last 1,000, by path, the newest first; [`read_version`](Self::read_version) reads them.
    ///
    /// # Errors
    /// Those of the local disk.
    pub async fn replaced(&self) -> Result<Vec<ListedFile>> {
        self.check_readable()?;
        let Some(repo) = self.own_repo() else {
            return Ok(Vec::new());
        };
        let member = Some(self.own_name().await?);
        let listed = |entry| ListedFile {
            repo: repo.public_key().clone(),
            member: member.clone(),
            is_self: true,
            entry,
            here: true,
        };
        Ok(repo.replaced().await?.into_iter().map(listed).collect())
    }

    /// Begins to read a version of a file that is on this device.
    ///
    /// # Errors
    /// [`repo::Error::NotHere`] within [`Error::Repo`] if it was collected; [`Error::NoSuchMember`]; those of the local disk.
    pub async fn read_version(&self, file: &ListedFile) -> Result<FileReader> {
        self.check_readable()?;
        let repo = self.repo_of(&file.repo).await?;
        Ok(repo.read_version(file.entry.clone()).await?)
    }

    /// Whether all of a file is on this device.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn is_here(&self, entry: &Entry) -> Result<bool> {
        self.inner.engine.is_here(entry.blob, Kind::Blob).await
    }

    /// Which members have a file at a path, as far as their lists are here, and what they say of it.
    ///
    /// # Errors
    /// Those of the local disk.
    pub async fn find(&self, path: &EntryPath) -> Result<Vec<(PublicKey, Entry)>> {
        self.check_readable()?;
        let mut found = Vec::new();
        for member in self.members(Fetch::Cached).await? {
            let repo = self.repo(&member.repo).await?;
            if let Some(entry) = repo.entry(path).await? {
                found.push((member.repo, entry));
            }
        }
        Ok(found)
    }

    /// Brings every member's collection here, all at once; who does not answer is left for later.
    ///
    /// # Errors
    /// Those of the local disk.
    async fn sync_collections(&self) -> Result<()> {
        let members: Vec<PublicKey> = self
            .known_members()
            .into_iter()
            .map(|known| known.repo)
            .collect();
        // Collected first: a closure inside the stream would not be general enough for a caller that has to be `Send`.
        let syncs: Vec<_> = members
            .iter()
            .map(|member| self.sync_collection(member))
            .collect();
        let mut syncs = stream::iter(syncs).buffer_unordered(COLLECTIONS);
        let mut failed = None;
        while let Some(outcome) = syncs.next().await {
            match outcome {
                Err(error) if error.is_local() => failed = failed.or(Some(error)),
                Err(error) => tracing::debug!(%error, "a member's collection cannot be had now"),
                Ok(()) => {}
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// A member's file, fetched first where it is not here. Reading needs no network once all of it is here.
    ///
    /// Until it is here the file is [wanted](Self::wanted): where this fails for want of a holder, or the process ends, fetching it goes
    /// on by itself. Dropping the future takes that back.
    ///
    /// # Errors
    /// [`repo::Error::NoSuchFile`] within [`Error::Repo`]; [`Error::NobodyHas`], [`Error::MemberDoesNotAnswer`];
    /// [`Error::TooManyWanted`].
    pub async fn read(
        &self,
        member: &PublicKey,
        path: &EntryPath,
        on_progress: Option<OnProgress>,
    ) -> Result<FileReader> {
        self.check_readable()?;
        let repo = self.repo_of(member).await?;
        let entry = repo.entry(path).await?.ok_or(repo::Error::NoSuchFile)?;
        if self.is_here(&entry).await? {
            let size = sealed_size(&entry)?;
            Reporter::new(size, Some(size), on_progress).state(FetchState::Stored);
        } else {
            let waiting = self.begin_wanting(member, Some(path))?;
            let outcome = {
                let writing = pin!(waiting.write_down());
                let fetching = pin!(self.bring_here(member, &entry, on_progress));
                // The first bytes come meanwhile.
                match select(writing, fetching).await {
                    Either::Left((written, fetching)) => {
                        written?;
                        fetching.await
                    }
                    Either::Right((outcome, writing)) => {
                        let written = writing.await;
                        if outcome.is_err() {
                            written?;
                        }
                        outcome
                    }
                }
            };
            // What can never be had need not stay wanted.
            waiting.end(match &outcome {
                Ok(()) => true,
                Err(error) => matches!(error, Error::TooLarge { .. }),
            });
            outcome?;
        }
        Ok(repo.read(path).await?)
    }

    /// Names and files are there for those who hold the content key.
    pub(crate) fn check_readable(&self) -> Result<()> {
        match self.inner.access.content() {
            Some(_) => Ok(()),
            None => Err(Error::Unreadable),
        }
    }

    /// The repo of a member, this one included.
    ///
    /// # Errors
    /// [`Error::NoSuchMember`]; those of the local disk.
    pub(crate) async fn repo_of(&self, member: &PublicKey) -> Result<Repo> {
        if !self.inner.is_own(member) {
            self.known_member(member)?;
        }
        self.repo(member).await
    }

    /// Fetches a member's file, and waits until it is verified and on disk.
    pub(crate) async fn bring_here(
        &self,
        member: &PublicKey,
        entry: &Entry,
        on_progress: Option<OnProgress>,
    ) -> Result<()> {
        let wanted = wanted_blob(entry)?;
        let reporter = Reporter::new(0, wanted.size, on_progress);
        for ticket in &mut self.inner.engine.want(&[wanted], Some(member)).await? {
            ticket.done(&reporter).await?;
        }
        reporter.state(FetchState::Stored);
        Ok(())
    }

    /// Bytes of blobs that came from other members since this group was opened, as they travel but without what the protocol adds.
    pub fn bytes_received(&self) -> u64 {
        self.inner.engine.received()
    }

    /// Calls all devices of a member and says how long the fastest took to answer.
    ///
    /// # Errors
    /// [`Error::NoSuchMember`]; [`Error::MemberDoesNotAnswer`].
    pub async fn ping(&self, member: &PublicKey) -> Result<Duration> {
        self.known_member(member)?;
        let repo = self.repo(member).await?;
        for freshness in [Fetch::Cached, Fetch::Network] {
            let (peers, _) = self.inner.peers.of(&repo, freshness).await?;
            let mut pings: FuturesUnordered<_> = peers
                .iter()
                .map(async |peer| (peer, timeout(PING, peer.session.ping()).await))
                .collect();
            while let Some((peer, outcome)) = pings.next().await {
                if let Ok(Ok(time)) = outcome {
                    self.inner.heard(&peer.id);
                    return Ok(time);
                }
            }
        }
        Err(Error::MemberDoesNotAnswer)
    }

    /// The devices of members that are being left alone for a while, with their repo keys.
    pub async fn ignored(&self) -> Result<Vec<(PublicKey, Ignored)>> {
        let now = Instant::now();
        let mut ignored = Vec::new();
        for repo in self.other_repos().await? {
            for peer in self.inner.peers.of(&repo, Fetch::Cached).await?.0 {
                if let Some(fault) = self.inner.ignore().ignored(&peer.id, now) {
                    ignored.push((repo.public_key().clone(), fault));
                }
            }
        }
        Ok(ignored)
    }

    /// Which members' devices say that they have all of a file, by repo key; whoever does not answer is left out.
    ///
    /// # Errors
    /// Those of the local disk.
    pub async fn holders(&self, entry: &Entry) -> Result<Vec<PublicKey>> {
        let (peers, _) = members::devices(self, Fetch::Cached).await;
        let mut questions: FuturesUnordered<_> = peers
            .iter()
            .map(async |peer| {
                let hashes = [entry.blob];
                let answer = timeout(PING, have::ask(peer, &hashes)).await;
                (peer, answer)
            })
            .collect();
        let mut holders = Vec::new();
        while let Some((peer, answer)) = questions.next().await {
            if let Ok(Ok(holdings)) = answer
                && matches!(holdings.first(), Some((_, Holding::Complete { .. })))
            {
                holders.push(peer.id.repo.clone());
            }
        }
        Ok(holders)
    }
}

/// The size of a file as it travels and lies in the store.
pub(crate) fn sealed_size(entry: &Entry) -> Result<u64> {
    Ok(Layout::of_plain(entry.size)
        .map_err(repo::Error::from)?
        .sealed_len())
}

/// What is to be fetched of a file.
pub(crate) fn wanted_blob(entry: &Entry) -> Result<Wanted> {
    let size = sealed_size(entry)?;
    Ok(Wanted {
        hash: entry.blob,
        kind: Kind::Blob,
        size: Some(size),
        limit: size,
        since: Instant::now(),
        like: None,
        whole: false,
    })
}
