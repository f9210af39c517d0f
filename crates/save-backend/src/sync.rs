//! Bringing whole archives here, and what is wanted and not here yet.

use std::sync::Arc;

use group::{Ignored, SyncProgress, Wanted};
use repo::EntryPath;
use veilid_core::PublicKey;

use crate::{Backend, Error, GroupId, Result};

/// What a synchronisation came to, for one member.
#[derive(Debug)]
pub struct RepoSync {
    /// How far the member's files are now.
    pub progress: SyncProgress,
    /// Why not everything is here, or may not be, if so: the first of the errors. [`group::Error::NotSeen`] within [`Error::Group`] where
    /// only what was known before is sure to be here.
    pub error: Option<Error>,
}

impl RepoSync {
    /// Whether the newest collection and all of its files are here.
    pub fn is_complete(&self) -> bool {
        self.error.is_none() && self.progress.files_done == self.progress.files_total
    }
}

impl From<group::RepoSync> for RepoSync {
    fn from(sync: group::RepoSync) -> Self {
        Self {
            progress: sync.progress,
            error: sync.error.map(Error::from),
        }
    }
}

impl Backend {
    /// Brings all members' files of a group here. What cannot be had now stays [wanted](Self::wanted), goes on by itself when somebody
    /// has it, also after a restart, and is told in the result. Dropping the future stops it; what was verified stays. Repeated when
    /// all is here, it asks no member anything. Says what it came to for each member.
    ///
    /// # Errors
    /// [`Error::GroupNotFound`]; those of the local disk; those of the network if not a single member is known. That a member's files
    /// cannot be had is no error of this call.
    pub async fn sync_all(
        &self,
        id: &GroupId,
        on_progress: impl Fn(SyncProgress) + Send + Sync + 'static,
    ) -> Result<Vec<RepoSync>> {
        let group = self.group(id)?;
        let report = group.sync_all(Some(Arc::new(on_progress))).await?;
        Ok(report.repos.into_iter().map(RepoSync::from).collect())
    }

    /// As [`sync_all`](Self::sync_all), for the files of one member.
    ///
    /// # Errors
    /// [`Error::GroupNotFound`]; [`group::Error::NoSuchMember`] within [`Error::Group`]; those of the local disk.
    pub async fn sync_repo(
        &self,
        id: &GroupId,
        repo: &PublicKey,
        on_progress: impl Fn(SyncProgress) + Send + Sync + 'static,
    ) -> Result<RepoSync> {
        let group = self.group(id)?;
        let synced = group.sync_repo(repo, Some(Arc::new(on_progress))).await?;
        Ok(synced.into())
    }

    /// Wants a file: it is fetched in the background from whoever has it, now or later, also after a restart.
    ///
    /// # Errors
    /// [`Error::GroupNotFound`], [`Error::NoSuchFile`]; [`group::Error::NoSuchMember`] and [`group::Error::TooManyWanted`] within
    /// [`Error::Group`].
    pub async fn want(&self, id: &GroupId, repo: &PublicKey, path: &EntryPath) -> Result<()> {
        match self.group(id)?.want(repo, path).await {
            Err(group::Error::Repo(repo::Error::NoSuchFile)) => Err(Error::NoSuchFile),
            outcome => Ok(outcome?),
        }
    }

    /// What is wanted in a group and not here yet.
    ///
    /// # Errors
    /// [`Error::GroupNotFound`].
    pub fn wanted(&self, id: &GroupId) -> Result<Vec<Wanted>> {
        Ok(self.group(id)?.wanted())
    }

    /// Wants a file, or without a path all files of a member, no longer. Whether it was wanted.
    ///
    /// # Errors
    /// [`Error::GroupNotFound`]; those of the local disk.
    pub async fn forget_wanted(
        &self,
        id: &GroupId,
        repo: &PublicKey,
        path: Option<&EntryPath>,
    ) -> Result<bool> {
        Ok(self.group(id)?.forget_wanted(repo, path).await?)
    }

    /// The members' devices that are being left alone for a while, with their repo keys: why, how often in a row, for how long.
    ///
    /// # Errors
    /// [`Error::GroupNotFound`]; those of the local disk.
    pub async fn ignored(&self, id: &GroupId) -> Result<Vec<(PublicKey, Ignored)>> {
        Ok(self.group(id)?.ignored().await?)
    }
}
