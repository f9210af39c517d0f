//! What the device does with its groups.

use std::{fmt, path::PathBuf, str::FromStr, sync::Arc, time::Duration};

use dht_records::{Fetch, GroupAccess, GroupSecret, LocatorKey};
use group::{FetchProgress, FetchState, Group, Guest, ListedFile, Member, Role, Unpublished};
use repo::{Entry, EntryPath, FileReader, Source, WriteOptions};
use veilid_core::{BareSecretKey, KeyPair, PublicKey, VeilidAPIError};

use crate::{
    Backend, Error, EventKind, Link, LinkAccess, LinkError, LinkKind, Result, state::Remembered,
};

/// The longest name of a group, in bytes.
pub(crate) const LONGEST_GROUP_NAME: usize = 200;

/// Which group: its public key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(PublicKey);

impl GroupId {
    pub(crate) fn new(key: PublicKey) -> Self {
        Self(key)
    }

    /// The group's public key.
    pub fn public_key(&self) -> &PublicKey {
        &self.0
    }
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for GroupId {
    type Err = VeilidAPIError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// A group that the device is in.
#[derive(Clone, Debug)]
pub struct GroupInfo {
    /// Which.
    pub id: GroupId,
    /// Its name, once it is known here.
    pub name: Option<String>,
    /// How many members are known here, this device's own included.
    pub members: usize,
    /// What this device is in it.
    pub role: Role,
    /// Whether this device can write into it.
    pub writable: bool,
    /// Whether something that was written here is not published yet.
    pub unpublished: bool,
    /// What that is.
    pub pending: Vec<Unpublished>,
}

/// A local file to be archived.
#[derive(Clone, Debug)]
pub struct NewFile {
    /// Its path in the archive.
    pub path: EntryPath,
    /// Where it is on this device.
    pub source: PathBuf,
}

/// What is happening to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProgressState {
    /// Waiting for its turn.
    Queued,
    /// Being sealed and written to disk.
    Storing,
    /// The members are being asked who has it.
    Finding,
    /// Bytes are coming in; each is verified before it counts.
    Fetching,
    /// All bytes are here and the whole is being checked.
    Verifying,
    /// Verified and on disk.
    Stored,
}

/// How far a file has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is happening.
    pub state: ProgressState,
    /// Bytes done: sealed ones when fetching, those of the file when archiving.
    pub bytes_done: u64,
    /// All bytes, where known.
    pub bytes_total: Option<u64>,
}

impl From<FetchProgress> for Progress {
    fn from(progress: FetchProgress) -> Self {
        Self {
            state: match progress.state {
                FetchState::Finding => ProgressState::Finding,
                FetchState::Fetching => ProgressState::Fetching,
                FetchState::Verifying => ProgressState::Verifying,
                FetchState::Stored => ProgressState::Stored,
                _ => ProgressState::Queued,
            },
            bytes_done: progress.bytes_done,
            bytes_total: progress.bytes_total,
        }
    }
}

fn freshness(refresh: bool) -> Fetch {
    if refresh {
        Fetch::Network
    } else {
        Fetch::Cached
    }
}

impl Backend {
    /// Makes a new group and joins it under the name `me`. Works offline.
    ///
    /// # Errors
    /// [`Error::InvalidName`]; those of the local disk.
    pub async fn create_group(&self, name: &str, me: &str) -> Result<GroupInfo> {
        check_name("group's name", name, LONGEST_GROUP_NAME)?;
        check_name("member's name", me, dht_records::MAX_NAME)?;
        let (group, secrets) = Group::create(self.inner.context.clone(), name, me).await?;
        self.take_in(group, secrets.into()).await
    }

    /// Joins the group of a link, as what the link grants: as a member under the name `me`, as a reader, as a replica, or as one more
    /// device of the member whose device link it is. Joining a group that the device is in already changes nothing.
    ///
    /// # Errors
    /// [`Error::Link`], [`Error::LinkKind`], [`Error::InvalidName`], [`Error::StillLeaving`]; [`group::Error::GroupDoesNotAnswer`] within
    /// [`Error::Group`] when nobody on the network knows the group; nothing is remembered then.
    pub async fn join_group(&self, link: &Link, me: &str) -> Result<GroupInfo> {
        check_name("member's name", me, dht_records::MAX_NAME)?;
        link.check_expiry(self.inner.context.clock.now())?;
        let (access, repo) = self.access(link)?;
        self.join_with(access, repo, me).await
    }

    pub(crate) async fn join_with(
        &self,
        access: GroupAccess,
        repo: Option<KeyPair>,
        me: &str,
    ) -> Result<GroupInfo> {
        let id = GroupId(access.public_key());
        // A link used twice at once makes one member.
        let _one_at_a_time = self.changing(&id).await;
        if let Ok(group) = self.group(&id) {
            return Ok(info(&id, &group).await);
        }
        self.check_not_ending(&id).await?;
        let (group, secrets) = tokio::select! {
            () = self.inner.cancel.cancelled() => return Err(Error::Stopped),
            joined = async {
                let context = self.inner.context.clone();
                match repo {
                    Some(repo) => Group::join_as_device(context, access, repo).await,
                    None => Group::join(context, access, me).await,
                }
            } => match joined {
                Err(group::Error::Records(dht_records::Error::WrongKey)) => {
                    return Err(LinkError::KeyMismatch.into());
                }
                joined => joined?,
            },
        };
        self.take_in(group, secrets.into()).await
    }

    /// Whoever is still leaving a group cannot join it: what is left of the first time would take the second away.
    async fn check_not_ending(&self, id: &GroupId) -> Result<()> {
        let state = self.inner.state.read().await;
        let state = state.as_ref().ok_or(Error::Stopped)?;
        match state.remembered(id.public_key()).await {
            Ok(remembered) if remembered.ending.is_some() => Err(Error::StillLeaving),
            Ok(_) | Err(Error::GroupNotFound) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Remembers a group before anybody can learn of it, and starts it. Stopping waits for this, and nothing comes in after it.
    pub(crate) async fn take_in(&self, group: Group, remembered: Remembered) -> Result<GroupInfo> {
        let state = self.inner.state.read().await;
        let state = state.as_ref().ok_or(Error::Stopped)?;
        state.save_group(&remembered).await?;
        let id = GroupId(group.public_key());
        self.adopt(group.clone()).await;
        self.inner
            .events
            .emit(EventKind::GroupAdded { group: id.clone() });
        Ok(info(&id, &group).await)
    }

    /// The keys in a link: the group's, and a repo's if there is one.
    fn access(&self, link: &Link) -> Result<(GroupAccess, Option<KeyPair>)> {
        let crypto = self.inner.api.crypto()?;
        link.verify(|pair| {
            crypto.get(pair.kind()).is_some_and(|system| {
                system
                    .validate_keypair(&pair.key(), &pair.secret())
                    .unwrap_or(false)
            })
        })?;
        let owner = || link.owner().ok_or(LinkError::KeyMismatch);
        Ok(match link.access() {
            LinkAccess::Member { .. } => (GroupAccess::Member { owner: owner()? }, None),
            LinkAccess::Device {
                repo, repo_secret, ..
            } => {
                let secret = BareSecretKey::new(&*repo_secret);
                let repo = KeyPair::new_from_parts(repo, secret);
                (GroupAccess::Member { owner: owner()? }, Some(repo))
            }
            LinkAccess::Reader { group, secret } => {
                let secret = GroupSecret::from_bytes(*secret);
                let public = group;
                (GroupAccess::Reader { public, secret }, None)
            }
            LinkAccess::Replica { group, locator } => {
                let locator = LocatorKey::from_bytes(*locator);
                let public = group;
                (GroupAccess::Replica { public, locator }, None)
            }
            LinkAccess::Server { .. } => {
                return Err(Error::LinkKind {
                    got: link.kind().as_str(),
                    wanted: LinkKind::Member.as_str(),
                });
            }
        })
    }

    /// The groups of this device, from what is known here.
    pub async fn groups(&self) -> Vec<GroupInfo> {
        let groups: Vec<(GroupId, Group)> = self
            .groups_map()
            .iter()
            .map(|(id, group)| (id.clone(), group.clone()))
            .collect();
        let mut infos = Vec::with_capacity(groups.len());
        for (id, group) in groups {
            infos.push(info(&id, &group).await);
        }
        infos
    }

    /// One group, to use its own interface.
    ///
    /// # Errors
    /// [`Error::GroupNotFound`].
    pub fn group(&self, id: &GroupId) -> Result<Group> {
        self.groups_map()
            .get(id)
            .cloned()
            .ok_or(Error::GroupNotFound)
    }

    /// A link into the group. Whoever has it has what it grants; it cannot be taken back. A device gives out what it holds itself or less:
    /// a reader no member links, a replica nothing but replica links.
    ///
    /// # Errors
    /// [`Error::GroupNotFound`]; [`Error::LinkNotHeld`]; [`Error::LinkKind`] for server links, which are no group's.
    pub async fn link(&self, id: &GroupId, kind: LinkKind) -> Result<Link> {
        let group = self.group(id)?;
        let access = group.access();
        let not_held = || Error::LinkNotHeld {
            kind: kind.as_str(),
        };
        let public = access.public_key();
        Ok(match kind {
            LinkKind::Member => {
                let owner = access.owner().ok_or_else(not_held)?;
                Link::member(&public, &owner.secret())?
            }
            LinkKind::Device => {
                let owner = access.owner().ok_or_else(not_held)?;
                let state = self.inner.state.read().await;
                let state = state.as_ref().ok_or(Error::Stopped)?;
                let remembered = state.remembered(&public).await?;
                let own = remembered.secrets.own.ok_or_else(not_held)?;
                Link::device(&public, &owner.secret(), &own.repo)?
            }
            LinkKind::Reader => {
                let secret = access.secret().ok_or_else(not_held)?;
                Link::reader(&public, secret.as_bytes())?
            }
            LinkKind::Replica => Link::replica(&public, access.locator().as_bytes())?,
            LinkKind::Server => {
                return Err(Error::LinkKind {
                    got: kind.as_str(),
                    wanted: LinkKind::Member.as_str(),
                });
            }
        })
    }

    /// The members of a group, as they are known here: at once, and kept up to date in the background. With `refresh`, their slots are read
    /// from the network first.
    ///
    /// # Errors
    /// [`Error::GroupNotFound`]; with `refresh` those of the network.
    pub async fn members(&self, id: &GroupId, refresh: bool) -> Result<Vec<Member>> {
        Ok(self.group(id)?.members(freshness(refresh)).await?)
    }

    /// Looks who of the members advertises a tunnel now, for at most 4 seconds; [`members`](Self::members) tells afterwards. The same is done
    /// in the background, in turn.
    ///
    /// # Errors
    /// [`Error::GroupNotFound`].
    pub async fn look_at_members(&self, id: &GroupId) -> Result<()> {
        self.group(id)?.look_at_members().await;
        Ok(())
    }

    /// The devices that read or store along in a group without a slot: readers and replicas. With `refresh`, their record is read from
    /// the network first.
    ///
    /// # Errors
    /// [`Error::GroupNotFound`]; with `refresh` those of the network.
    pub async fn guests(&self, id: &GroupId, refresh: bool) -> Result<Vec<Guest>> {
        Ok(self.group(id)?.guests(freshness(refresh)).await?)
    }

    /// Calls a member and says how long the answer took.
    ///
    /// # Errors
    /// [`Error::GroupNotFound`]; [`group::Error::NoSuchMember`] and [`group::Error::MemberDoesNotAnswer`] within [`Error::Group`].
    pub async fn ping(&self, id: &GroupId, repo: &PublicKey) -> Result<Duration> {
        Ok(self.group(id)?.ping(repo).await?)
    }

    /// Archives files as one change. They are stored on this device when it returns, and published in the background.
    ///
    /// # Errors
    /// [`Error::GroupNotFound`]; [`Error::File`] names the file that cannot be read; nothing is changed then.
    pub async fn put(
        &self,
        id: &GroupId,
        files: Vec<NewFile>,
        progress: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<Vec<Entry>> {
        let group = self.group(id)?;
        let progress = Arc::new(progress);
        let mut opened = Vec::with_capacity(files.len());
        for NewFile { path, source } in files {
            let failed = |error| Error::File {
                path: source.clone(),
                source: error,
            };
            let file = tokio::fs::File::open(&source).await.map_err(failed)?;
            let metadata = file.metadata().await.map_err(failed)?;
            if !metadata.is_file() {
                return Err(failed(std::io::ErrorKind::IsADirectory.into()));
            }
            let total = metadata.len();
            let modified = metadata
                .modified()
                .ok()
                .and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok())
                .map(|since| since.as_secs());
            let report = progress.clone();
            let options = WriteOptions {
                modified,
                progress: Some(Arc::new(move |done| {
                    report(Progress {
                        state: ProgressState::Storing,
                        bytes_done: done,
                        bytes_total: Some(total),
                    });
                })),
                ..WriteOptions::default()
            };
            let data: Source = Box::new(file);
            opened.push((path, data, options));
        }
        let entries = group.put(opened).await?;
        for entry in &entries {
            progress(Progress {
                state: ProgressState::Stored,
                bytes_done: entry.size,
                bytes_total: Some(entry.size),
            });
        }
        Ok(entries)
    }

    /// The files of all members; with `refresh`, members and their collections are brought up to date first.
    ///
    /// # Errors
    /// [`Error::GroupNotFound`]; those of the local disk; with `refresh` those of reading the group's record.
    pub async fn list(&self, id: &GroupId, refresh: bool) -> Result<Vec<ListedFile>> {
        Ok(self.group(id)?.list(freshness(refresh)).await?)
    }

    /// A file, fetched first from whoever has it where it is not here. Without `member`, whoever has a file at this path.
    ///
    /// # Errors
    /// [`Error::GroupNotFound`], [`Error::NoSuchFile`], [`Error::Ambiguous`]; [`group::Error::NobodyHas`] within [`Error::Group`].
    pub async fn get(
        &self,
        id: &GroupId,
        member: Option<&PublicKey>,
        path: &EntryPath,
        progress: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<FileReader> {
        let group = self.group(id)?;
        let mut found = group.find(path).await?;
        found.retain(|(repo, _)| member.is_none_or(|member| repo == member));
        let repo = match found.as_slice() {
            [] => return Err(Error::NoSuchFile),
            [(repo, _)] => repo.clone(),
            _ => {
                return Err(Error::Ambiguous {
                    holders: found.into_iter().map(|(repo, _)| repo).collect(),
                });
            }
        };
        let report = Arc::new(move |state: FetchProgress| progress(state.into()));
        Ok(group.read(&repo, path, Some(report)).await?)
    }

    /// Versions of this member's files that this device had and that another of the member's devices replaced or deleted, by path, the newest
    /// first, until a [garbage collection](Self::collect_garbage) takes them; the last 1,000.
    ///
    /// # Errors
    /// [`Error::GroupNotFound`]; those of the local disk.
    pub async fn replaced(&self, id: &GroupId) -> Result<Vec<ListedFile>> {
        Ok(self.group(id)?.replaced().await?)
    }

    /// A version of a file that is on this device, as [`replaced`](Self::replaced) or [`list`](Self::list) gave it.
    ///
    /// # Errors
    /// [`Error::GroupNotFound`]; [`repo::Error::NotHere`] within [`Error::Group`] if it was collected.
    pub async fn get_version(&self, id: &GroupId, file: &ListedFile) -> Result<FileReader> {
        Ok(self.group(id)?.read_version(file).await?)
    }

    /// Takes a file of this member out of the archive, and publishes that in the background.
    ///
    /// # Errors
    /// [`Error::GroupNotFound`], [`Error::NoSuchFile`].
    pub async fn delete(&self, id: &GroupId, path: &EntryPath) -> Result<()> {
        match self.group(id)?.delete(path).await {
            Err(group::Error::Repo(repo::Error::NoSuchFile)) => Err(Error::NoSuchFile),
            outcome => Ok(outcome?),
        }
    }

    /// Waits until everything that was written into a group before the call is published.
    ///
    /// # Errors
    /// [`Error::GroupNotFound`]; within [`Error::Group`], [`group::Error::Timeout`], and [`group::Error::NotPublished`] as soon as it fails
    /// for a reason that does not pass by itself, such as a full disk. Either way nothing is lost, and publishing goes on.
    pub async fn flush(&self, id: &GroupId, limit: Duration) -> Result<()> {
        Ok(self.group(id)?.flush(limit).await?)
    }
}

pub(crate) async fn info(id: &GroupId, group: &Group) -> GroupInfo {
    let name = group.name(Fetch::Cached).await.unwrap_or_else(|error| {
        tracing::debug!(%error, "a group's name cannot be read");
        None
    });
    let members = match group.members(Fetch::Cached).await {
        Ok(members) => members.len(),
        Err(error) => {
            tracing::debug!(%error, "a group's members cannot be read");
            0
        }
    };
    let pending = pending(group).await;
    GroupInfo {
        id: id.clone(),
        name,
        members,
        role: group.role(),
        writable: group.own_repo().is_some(),
        unpublished: group.has_unpublished() || !pending.is_empty(),
        pending,
    }
}

/// What of a group is not published.
pub(crate) async fn pending(group: &Group) -> Vec<Unpublished> {
    group.unpublished().await.unwrap_or_else(|error| {
        tracing::debug!(%error, "what is not published cannot be read");
        Vec::new()
    })
}

pub(crate) fn check_name(what: &'static str, name: &str, longest: usize) -> Result<()> {
    let reason = if name.trim().is_empty() {
        "it is empty"
    } else if name.len() > longest {
        "it is too long"
    } else if name.chars().any(char::is_control) {
        "it has control characters in it"
    } else {
        return Ok(());
    };
    Err(Error::InvalidName { what, reason })
}
