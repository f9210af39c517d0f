//! A group: made, joined, opened again, started and stopped.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use dht_records::{DeviceId, Fetch, GroupAccess, GroupMetadata, GroupRecord, Purpose, Records};
use repo::{Clock, EntryPath, Repo, RepoContext};
use store_adapter::VeilidStore;
use tokio::{
    sync::{Notify, broadcast, watch},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tunnels::{Listener, Psk, Tunnels};
use veilid_core::{KeyPair, PublicKey};

use crate::{
    Error, Ledger, Result, Serving,
    edits::Kept,
    engine::Engine,
    held::Held,
    ignore::IgnoreList,
    ledger::GroupLedger,
    members::{Known, Role},
    own::Own,
    peers::{PeerId, Peers},
    publish::Publishing,
    serve::Reach,
    wanted::Queue,
};

/// How long joining waits for the group to answer.
const JOIN: Duration = Duration::from_secs(60);
/// Events that a slow listener may fall behind.
const EVENTS: usize = 256;

/// What a group stands on; shared by all groups of a node.
#[derive(Clone)]
pub struct GroupContext {
    /// The node's DHT records.
    pub records: Records,
    /// The node's blobs.
    pub store: VeilidStore,
    /// The node's tunnels.
    pub tunnels: Tunnels,
    /// This device.
    pub device: DeviceId,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// What the node remembers of its groups beside the files.
    pub ledger: Ledger,
    /// How much the node serves at once.
    pub serving: Serving,
}

impl GroupContext {
    pub(crate) fn repo_context(&self) -> RepoContext {
        RepoContext {
            records: self.records.clone(),
            store: self.store.clone(),
            device: self.device,
            clock: self.clock.clone(),
        }
    }
}

/// What has to be kept, sealed, to open a group again.
#[derive(Clone)]
pub struct GroupSecrets {
    /// The keys of the group.
    pub access: GroupAccess,
    /// What a member writes with; none for readers and replicas.
    pub own: Option<OwnSecrets>,
}

/// What a member writes with.
#[derive(Clone)]
pub struct OwnSecrets {
    /// The key pair of the member's own repo.
    pub repo: KeyPair,
    /// The name under which the member advertises themselves.
    pub me: String,
}

impl fmt::Debug for OwnSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OwnSecrets([redacted])")
    }
}

impl fmt::Debug for GroupSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GroupSecrets([redacted])")
    }
}

/// Something that happened in a group.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GroupEvent {
    /// Somebody joined, left, or changed their name or root.
    MembersChanged,
    /// A member's collection changed.
    RootChanged {
        /// Whose.
        repo: PublicKey,
    },
    /// A device of a member, or of a guest, began or ceased to advertise a tunnel, as far as that was looked for.
    PresenceChanged {
        /// Whose: the key of a member's repo, or that of the guests' record.
        repo: PublicKey,
    },
    /// A member's collection is here in its newest version.
    CollectionSynced {
        /// Whose.
        repo: PublicKey,
    },
    /// Everything that this device wrote is published.
    Published,
    /// This device can be reached by the others, on a tunnel that is published.
    Reachable,
    /// This member left the group, by their own signature, from another of their devices or from a copy of their keys. This device
    /// writes nothing into the group any more.
    Left,
    /// The group's name is another one.
    Renamed,
    /// A member says that the group moved to new keys; see [`Group::moved`].
    Moved {
        /// Who.
        by: PublicKey,
    },
    /// A file that was wanted is here, verified and on disk.
    WantedStored {
        /// Whose.
        repo: PublicKey,
        /// Which.
        path: EntryPath,
    },
    /// A file that was wanted is no longer in its member's collection, and so is not wanted any more.
    WantedGone {
        /// Whose.
        repo: PublicKey,
        /// Which.
        path: EntryPath,
    },
    /// Something did not work; it is tried again by itself.
    Retrying {
        /// What, for people.
        what: &'static str,
    },
}

/// A group. Cheap to clone; all clones are the same group.
#[derive(Clone)]
pub struct Group {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) ctx: GroupContext,
    pub(crate) access: GroupAccess,
    pub(crate) record: GroupRecord,
    /// What a member writes with; none for readers and replicas.
    pub(crate) own: Option<Own>,
    /// The record in which devices without a slot publish their tunnels, as a repo that holds nothing.
    pub(crate) guests: Repo,
    pub(crate) repos: tokio::sync::Mutex<HashMap<PublicKey, Repo>>,
    known: Mutex<BTreeMap<String, Known>>,
    /// The repo keys of members who left, by their own signature.
    left: Mutex<BTreeSet<String>>,
    pub(crate) peers: Peers,
    ignore: Mutex<IgnoreList<PeerId>>,
    pub(crate) reach: Arc<Reach>,
    pub(crate) held: Arc<Held>,
    pub(crate) ledger: GroupLedger,
    pub(crate) engine: Arc<Engine>,
    pub(crate) queue: Queue,
    pub(crate) edits: tokio::sync::Mutex<Kept>,
    pub(crate) listener: tokio::sync::Mutex<Option<Arc<Listener>>>,
    /// One collection is fetched once at a time.
    syncing: Mutex<HashMap<PublicKey, Arc<tokio::sync::Mutex<()>>>>,
    /// What repos reach is looked up once at a time.
    pub(crate) reaching: tokio::sync::Mutex<()>,
    /// A member's root changed, whoever saw it first.
    pub(crate) roots_changed: Notify,
    /// A slot changed.
    pub(crate) slots_changed: Notify,
    pub(crate) dirty: Notify,
    /// Counts local changes; what is published lags behind it.
    pub(crate) changes: watch::Sender<u64>,
    pub(crate) publishing: watch::Sender<Publishing>,
    events: broadcast::Sender<GroupEvent>,
    pub(crate) cancel: CancellationToken,
    pub(crate) tasks: TaskTracker,
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Group")
    }
}

impl Inner {
    pub(crate) fn known(&self) -> MutexGuard<'_, BTreeMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn left(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this member left, from wherever.
    pub(crate) fn has_left(&self) -> bool {
        let own = self.own.as_ref();
        own.is_some_and(|own| self.left().contains(&own.repo.public_key().to_string()))
    }

    /// What this device writes with.
    ///
    /// # Errors
    /// [`Error::ReadOnly`]; [`Error::Left`].
    pub(crate) fn writer(&self) -> Result<&Own> {
        let own = self.own.as_ref().ok_or(Error::ReadOnly)?;
        if self.has_left() {
            return Err(Error::Left);
        }
        Ok(own)
    }

    /// The repo in whose record this device publishes its tunnel.
    pub(crate) fn seat(&self) -> &Repo {
        self.own.as_ref().map_or(&self.guests, |own| &own.repo)
    }

    /// Whether this is the repo that this device writes.
    pub(crate) fn is_own(&self, repo: &PublicKey) -> bool {
        self.own
            .as_ref()
            .is_some_and(|own| own.repo.public_key() == repo)
    }

    /// A device answered.
    pub(crate) fn heard(&self, peer: &PeerId) {
        self.ignore().heard(peer);
        self.peers.heard(peer);
    }

    pub(crate) fn ignore(&self) -> MutexGuard<'_, IgnoreList<PeerId>> {
        self.ignore.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn emit(&self, event: GroupEvent) {
        // Nobody listening is fine.
        let _ = self.events.send(event);
    }

    /// Held while the collection of a member is fetched.
    pub(crate) fn syncing(&self, member: &PublicKey) -> Arc<tokio::sync::Mutex<()>> {
        let mut syncing = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        syncing.entry(member.clone()).or_default().clone()
    }

    /// A local change is to be published.
    pub(crate) fn changed(&self) {
        self.changes.send_modify(|changes| *changes += 1);
        self.dirty.notify_one();
    }
}

impl Group {
    /// Makes a new group with a name, and this member's repo in it. Works offline: it is published once started and online.
    ///
    /// # Errors
    /// Those of the local disk; a name that does not fit its record.
    pub async fn create(ctx: GroupContext, name: &str, me: &str) -> Result<(Self, GroupSecrets)> {
        let owner = generate_keypair(&ctx)?;
        let record = GroupRecord::create(&ctx.records, owner.clone()).await?;
        record
            .set_metadata(&GroupMetadata {
                name: name.into(),
                ..GroupMetadata::default()
            })
            .await?;
        Self::with_new_repo(ctx, GroupAccess::Member { owner }, record, me).await
    }

    /// Joins a group whose keys came with a link. A member gets a repo of their own, and is called `me`; readers and replicas get
    /// none, and their `me` means nothing.
    ///
    /// # Errors
    /// [`Error::GroupDoesNotAnswer`] when its record cannot be found within a minute; [`dht_records::Error::WrongKey`] within
    /// [`Error::Records`] when these are not its keys. Nothing is kept then.
    pub async fn join(
        ctx: GroupContext,
        access: GroupAccess,
        me: &str,
    ) -> Result<(Self, GroupSecrets)> {
        let record = find(&ctx, &access).await?;
        match access {
            GroupAccess::Member { .. } => Self::with_new_repo(ctx, access, record, me).await,
            GroupAccess::Reader { .. } | GroupAccess::Replica { .. } => {
                let guests = guests(&ctx, &access).await?;
                let secrets = GroupSecrets {
                    access: access.clone(),
                    own: None,
                };
                Ok((Self::assemble(ctx, access, record, None, guests), secrets))
            }
        }
    }

    /// Joins a group as one more device of a member, whose keys came with a device link. Their other devices go on as before.
    ///
    /// # Errors
    /// [`Error::GroupDoesNotAnswer`] when the group's record, or the repo's, cannot be found within a minute; [`Error::ReadOnly`]
    /// for access that is not a member's. Nothing is kept then.
    pub async fn join_as_device(
        ctx: GroupContext,
        access: GroupAccess,
        repo: KeyPair,
    ) -> Result<(Self, GroupSecrets)> {
        if access.owner().is_none() {
            return Err(Error::ReadOnly);
        }
        let record = find(&ctx, &access).await?;
        let guests = guests(&ctx, &access).await?;
        let own = Repo::open(&ctx.repo_context(), &access, repo.key(), Some(repo.clone())).await?;
        // Without knowing what the repo holds, this device could not write into it.
        let me = answered(|| {
            let own = own.clone();
            async move {
                own.record().root(Fetch::Network).await?;
                Ok(own.name(Fetch::Network).await?)
            }
        })
        .await?;
        let own_secrets = OwnSecrets { repo, me };
        let secrets = GroupSecrets {
            access: access.clone(),
            own: Some(own_secrets.clone()),
        };
        let own = Own::new(own, own_secrets);
        let group = Self::assemble(ctx, access, record, Some(own), guests);
        group.inner.changed();
        Ok((group, secrets))
    }

    async fn with_new_repo(
        ctx: GroupContext,
        access: GroupAccess,
        record: GroupRecord,
        me: &str,
    ) -> Result<(Self, GroupSecrets)> {
        let guests = guests(&ctx, &access).await?;
        let (own, repo) = Repo::create(&ctx.repo_context(), &access, me).await?;
        let own_secrets = OwnSecrets {
            repo,
            me: me.to_owned(),
        };
        let secrets = GroupSecrets {
            access: access.clone(),
            own: Some(own_secrets.clone()),
        };
        let own = Own::new(own, own_secrets);
        let group = Self::assemble(ctx, access, record, Some(own), guests);
        group.inner.changed();
        Ok((group, secrets))
    }

    /// Opens a group that this device is in. Needs no network, and finishes what a crash left.
    ///
    /// # Errors
    /// Those of the local disk.
    pub async fn load(ctx: GroupContext, secrets: &GroupSecrets) -> Result<Self> {
        let access = secrets.access.clone();
        let record = GroupRecord::attach(&ctx.records, access.clone()).await?;
        let guests = guests(&ctx, &access).await?;
        let own = match &secrets.own {
            None => None,
            Some(own) => {
                let (public, pair) = (own.repo.key(), Some(own.repo.clone()));
                let repo = Repo::open(&ctx.repo_context(), &access, public, pair).await?;
                Some(Own::new(repo, own.clone()))
            }
        };
        let group = Self::assemble(ctx, access, record, own, guests);
        group.take_up_ledger().await?;
        group.take_up_slots(Fetch::Cached).await?;
        group.let_go_of_the_rest().await;
        group.recall_presence().await?;
        let mut all = true;
        for repo in group.other_repos().await? {
            // Parts of a list that is on its way are named by nothing yet.
            all &= group.has_stated_root(&repo).await;
            // What one member published must not keep this device from its own files.
            if let Err(error) = group.refresh_reach(&repo).await {
                tracing::warn!(%error, "a member's collection cannot be read");
                all = false;
            }
        }
        if let Some(own) = &group.inner.own
            && let Err(error) = group.refresh_reach(&own.repo).await
        {
            tracing::warn!(%error, "the own collection cannot be read");
        }
        if all {
            group.inner.held.tidy(|hash| group.inner.reach.names(hash));
        }
        if group.is_behind().await? {
            group.inner.changed();
        }
        Ok(group)
    }

    /// Reads what this device remembers of the group beside the files.
    async fn take_up_ledger(&self) -> Result<()> {
        let now = self.inner.ctx.clock.now();
        for (_, row) in self.inner.ledger.load().await? {
            if !self.inner.held.take_up(&row)
                && !self.inner.queue.take_up(&row)
                && !self.take_up_member(&row)
                && !self.inner.peers.presences.take_up_row(&row, now)
                && !self.take_up_edits(&row).await
            {
                tracing::debug!("a row of a kind that this version does not know is left alone");
            }
        }
        Ok(())
    }

    fn assemble(
        ctx: GroupContext,
        access: GroupAccess,
        record: GroupRecord,
        own: Option<Own>,
        guests: Repo,
    ) -> Self {
        let psk = Psk::from_bytes(*access.locator().derive(Purpose::TunnelPsk).as_bytes());
        let events = broadcast::Sender::new(EVENTS);
        let (tunnels, clock) = (ctx.tunnels.clone(), ctx.clock.clone());
        let peers = Peers::new(tunnels, psk, ctx.device, clock, events.clone());
        let held = Arc::new(Held::default());
        Self {
            inner: Arc::new(Inner {
                reach: Arc::new(Reach::new(held.clone())),
                held,
                ledger: GroupLedger::new(ctx.ledger.clone(), &access),
                engine: Arc::new(Engine::new((*ctx.store).clone())),
                queue: Queue::default(),
                edits: tokio::sync::Mutex::default(),
                ctx,
                access,
                record,
                own,
                guests,
                left: Mutex::default(),
                repos: tokio::sync::Mutex::default(),
                known: Mutex::default(),
                peers,
                ignore: Mutex::default(),
                listener: tokio::sync::Mutex::default(),
                syncing: Mutex::default(),
                reaching: tokio::sync::Mutex::default(),
                roots_changed: Notify::new(),
                slots_changed: Notify::new(),
                dirty: Notify::new(),
                changes: watch::Sender::new(0),
                publishing: watch::Sender::default(),
                events,
                cancel: CancellationToken::new(),
                tasks: TaskTracker::new(),
            }),
        }
    }

    /// Begins to publish, to listen, to watch and to serve, on the caller's tokio runtime, which has to be the node's. Does not
    /// wait for the network.
    pub fn start(&self) {
        crate::upkeep::start(self);
    }

    /// Stops, and withdraws this device's tunnel within `limit`.
    pub async fn stop(&self, limit: Duration) {
        crate::upkeep::stop(self, limit).await;
    }

    /// Sees to it that the network still has the group's records, whoever wrote them: storage nodes forget what nobody asks for. Gives
    /// how many subkeys it had lost. This happens by itself every hour, and in part whenever the group is opened. Any device can do it,
    /// a replica too, with all that it knows; what it does not know, others have to bring back.
    ///
    /// One storage node that gives a record is enough for this, and not for everybody to find it. Veilid itself spreads a record to five
    /// when it is looked after, every five minutes at most.
    ///
    /// # Errors
    /// [`NotConfirmed`](dht_records::Error::NotConfirmed) if something is not back yet. The device itself tries again in some minutes;
    /// what others wrote into a record that was made since this device was started, only other devices bring back. Those of the network.
    /// What could be looked after was.
    pub async fn republish(&self) -> Result<usize> {
        crate::upkeep::republish(self).await
    }

    /// The group's public key, which identifies it.
    pub fn public_key(&self) -> PublicKey {
        self.inner.record.public_key().clone()
    }

    /// What the group stands on.
    pub fn context(&self) -> &GroupContext {
        &self.inner.ctx
    }

    /// The keys with which this device opened the group.
    pub fn access(&self) -> &GroupAccess {
        &self.inner.access
    }

    /// The group's name; `None` where these keys cannot read it or nobody wrote one.
    ///
    /// # Errors
    /// Those of the record.
    pub async fn name(&self, fetch: Fetch) -> Result<Option<String>> {
        if self.inner.access.content().is_none() {
            return Ok(None);
        }
        let metadata = self.inner.record.metadata(fetch).await?;
        Ok(metadata.map(|stamped| stamped.value.name))
    }

    /// The name that this member goes by.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] for readers and replicas.
    pub async fn own_name(&self) -> Result<String> {
        let own = self.inner.own.as_ref().ok_or(Error::ReadOnly)?;
        Ok(own.name().await)
    }

    /// The repo that this device writes; none for readers and replicas.
    pub fn own_repo(&self) -> Option<&Repo> {
        self.inner.own.as_ref().map(|own| &own.repo)
    }

    /// What this device is in the group.
    pub fn role(&self) -> Role {
        Role::of(&self.inner.access)
    }

    /// What happens in the group from now on. A listener that falls far behind is told how many it missed.
    pub fn events(&self) -> broadcast::Receiver<GroupEvent> {
        self.inner.events.subscribe()
    }
}

/// Waits until the group's record is found on the network.
async fn find(ctx: &GroupContext, access: &GroupAccess) -> Result<GroupRecord> {
    let record = GroupRecord::attach(&ctx.records, access.clone()).await?;
    let readable = access.content().is_some();
    answered(|| {
        let record = record.clone();
        async move {
            let slots = record.slots(Fetch::Network).await?;
            let foreign =
                |slot: &dht_records::Result<_>| matches!(slot, Err(dht_records::Error::WrongKey));
            if !slots.is_empty() && slots.iter().all(|(_, slot)| foreign(slot)) {
                // It is there, and these are not its keys.
                return Err(dht_records::Error::WrongKey.into());
            }
            if !readable {
                // The name cannot be read with these keys. Whoever made the group stands in a slot.
                return Ok((!slots.is_empty()).then_some(()));
            }
            Ok(record.metadata(Fetch::Cached).await?.map(|_| ()))
        }
    })
    .await?;
    Ok(record)
}

/// Asks until there is an answer, for a minute.
async fn answered<T, F>(ask: impl Fn() -> F) -> Result<T>
where
    F: Future<Output = Result<Option<T>>>,
{
    timeout(JOIN, async {
        let mut pause = Duration::from_millis(500);
        loop {
            match ask().await {
                Ok(Some(answer)) => return Ok(answer),
                Ok(None) => {}
                Err(error) if error.is_retryable() => {
                    tracing::debug!(%error, "the group does not answer yet");
                }
                Err(error) => return Err(error),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(8));
        }
    })
    .await
    .map_err(|_| Error::GroupDoesNotAnswer)?
}

/// The guests' record, writable for whoever has a link of any kind.
async fn guests(ctx: &GroupContext, access: &GroupAccess) -> Result<Repo> {
    let pair = access.guests();
    Ok(Repo::open(&ctx.repo_context(), access, pair.key(), Some(pair)).await?)
}

fn generate_keypair(ctx: &GroupContext) -> Result<KeyPair> {
    let crypto = ctx.records.api().crypto()?;
    let kind = veilid_core::CRYPTO_KIND_VLD0;
    let system = crypto.get(kind).ok_or(Error::BadMessage {
        what: "crypto kind",
    })?;
    Ok(system.generate_keypair())
}
