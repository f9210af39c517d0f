//! One device.

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use dht_records::RecordEvent;
use futures::future::join_all;
use group::{Group, GroupContext, Unpublished};
use serde::Serialize;
use store_adapter::{GcReport, Protection, VerifyProgress, VerifyReport};
use tokio::{
    sync::{OwnedMutexGuard, RwLock, broadcast, watch},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use veilid_core::{AttachmentState, VeilidAPI, VeilidAPIError};

use crate::{
    BackendBuilder, Error, EventKind, EventStream, GroupId, KeyStorage, Result,
    events::Events,
    groups::pending,
    state::{Ending, Remembered, State},
};

/// How long stopping tries to withdraw the tunnels from the DHT. What Veilid's own shutdown takes comes on top.
const WITHDRAW: Duration = Duration::from_secs(3);

/// A node that lost its network is attached anew after so long, and then after twice as long each time up to the longest. Veilid
/// by itself can stay away for minutes after the link came back.
const FIRST_REATTACH: Duration = Duration::from_secs(20);
const LONGEST_REATTACH: Duration = Duration::from_secs(80);

/// How the node is attached to its network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attachment {
    pub(crate) state: String,
    pub(crate) online: bool,
}

/// Whether the node is to be on the network. Held while that changes, and while it is attached anew.
#[derive(Debug)]
struct Wanted {
    online: bool,
    /// How often that changed.
    changes: u64,
}

impl Default for Attachment {
    fn default() -> Self {
        Self {
            state: AttachmentState::Detached.to_string(),
            online: false,
        }
    }
}

/// How the device is doing.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Veilid's word for how well the node is attached.
    pub attachment: String,
    /// Whether the device can reach others and publish.
    pub online: bool,
    /// The groups that are open.
    pub groups: Vec<GroupStatus>,
    /// The keys of groups that this device left, where something is left to do: taking away what is here, or telling the others. Without
    /// those whose row cannot be read.
    pub leaving: Vec<String>,
}

/// How a group is doing.
#[derive(Clone, Debug, Serialize)]
pub struct GroupStatus {
    /// The group's key.
    pub id: String,
    /// Whether something that was written here is not published yet.
    pub unpublished: bool,
    /// What that is. Empty also where it cannot be read.
    pub pending: Vec<Unpublished>,
    /// Bytes of files and lists that came from other members since the start.
    pub received: u64,
    /// Why the group could not be opened, if it could not. What is on disk of it is untouched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broken: Option<String>,
}

/// One device: its groups, its files, its node. Cheap to clone; all clones are the same device.
#[derive(Clone)]
pub struct Backend {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) directory: PathBuf,
    pub(crate) api: VeilidAPI,
    pub(crate) context: GroupContext,
    /// Gone once stopped, so that nothing holds a table open.
    pub(crate) state: RwLock<Option<State>>,
    pub(crate) groups: Mutex<BTreeMap<GroupId, Group>>,
    /// Groups that could not be opened at the start, and why.
    broken: Mutex<Vec<(String, String)>>,
    /// What is being joined, renamed, moved or ended; each group for itself.
    changing: Mutex<BTreeMap<GroupId, Arc<tokio::sync::Mutex<()>>>>,
    attachment: watch::Receiver<Attachment>,
    wanted: Arc<tokio::sync::Mutex<Wanted>>,
    pub(crate) events: Arc<Events>,
    pub(crate) cancel: CancellationToken,
    pub(crate) tasks: TaskTracker,
    lock: Mutex<Option<File>>,
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Backend")
    }
}

impl Backend {
    /// Says how a backend is to start.
    pub fn builder() -> BackendBuilder {
        BackendBuilder::default()
    }

    pub(crate) fn assemble(
        api: VeilidAPI,
        context: GroupContext,
        state: State,
        (online, attachment): (bool, watch::Receiver<Attachment>),
        events: Arc<Events>,
        (directory, lock): (PathBuf, File),
    ) -> Self {
        let rollbacks = context.records.events();
        let backend = Self {
            inner: Arc::new(Inner {
                directory,
                api,
                context,
                state: RwLock::new(Some(state)),
                groups: Mutex::default(),
                broken: Mutex::default(),
                changing: Mutex::default(),
                attachment,
                wanted: Arc::new(tokio::sync::Mutex::new(Wanted { online, changes: 0 })),
                events,
                cancel: CancellationToken::new(),
                tasks: TaskTracker::new(),
                lock: Mutex::new(Some(lock)),
            }),
        };
        let events = backend.inner.events.clone();
        backend.spawn_forwarder(rollbacks, move |event| {
            if let RecordEvent::Rollback { seen, got, .. } = event {
                events.emit(EventKind::Rollback { seen, got });
            }
        });
        backend.keep_attached();
        backend
    }

    fn keep_attached(&self) {
        let (cancel, inner) = (self.inner.cancel.clone(), &self.inner);
        let (api, attachment) = (inner.api.clone(), inner.attachment.clone());
        let work = keep_attached(api, attachment, inner.wanted.clone());
        self.inner.tasks.spawn(async move {
            tokio::select! {
                () = cancel.cancelled() => {}
                () = work => {}
            }
        });
    }

    /// Takes a group in: starts it, and passes its events on.
    pub(crate) async fn adopt(&self, group: Group) {
        let id = GroupId::new(group.public_key());
        let events = self.inner.events.clone();
        let of_group = id.clone();
        self.spawn_forwarder(group.events(), move |event| {
            events.emit(EventKind::Group {
                group: of_group.clone(),
                event,
            });
        });
        group.start();
        self.groups_map().insert(id, group);
    }

    fn spawn_forwarder<E: Clone + Send + 'static>(
        &self,
        mut from: broadcast::Receiver<E>,
        to: impl Fn(E) + Send + 'static,
    ) {
        let (cancel, events) = (self.inner.cancel.clone(), self.inner.events.clone());
        self.inner.tasks.spawn(async move {
            loop {
                let event = tokio::select! {
                    () = cancel.cancelled() => return,
                    event = from.recv() => event,
                };
                match event {
                    Ok(event) => to(event),
                    Err(broadcast::error::RecvError::Lagged(missed)) => events.skip(missed),
                    Err(broadcast::error::RecvError::Closed) => return,
                }
            }
        });
    }

    pub(crate) fn broken(&self) -> std::sync::MutexGuard<'_, Vec<(String, String)>> {
        self.inner
            .broken
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Held while a group is joined, renamed, moved or ended, one after another. No other group waits for it.
    pub(crate) async fn changing(&self, id: &GroupId) -> OwnedMutexGuard<()> {
        let lock = {
            let mut changing = self
                .inner
                .changing
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            changing.retain(|_, lock| Arc::strong_count(lock) > 1);
            changing.entry(id.clone()).or_default().clone()
        };
        lock.lock_owned().await
    }

    pub(crate) fn groups_map(&self) -> std::sync::MutexGuard<'_, BTreeMap<GroupId, Group>> {
        self.inner
            .groups
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// How the device is doing. Waits for no network.
    pub async fn status(&self) -> Status {
        let attachment = self.inner.attachment.borrow().clone();
        let open = self.groups_map().clone();
        let mut groups = Vec::with_capacity(open.len());
        for (id, group) in open {
            let pending = pending(&group).await;
            groups.push(GroupStatus {
                id: id.to_string(),
                unpublished: group.has_unpublished() || !pending.is_empty(),
                pending,
                received: group.bytes_received(),
                broken: None,
            });
        }
        let broken = self.broken().clone().into_iter();
        groups.extend(broken.map(|(id, error)| GroupStatus {
            id,
            unpublished: false,
            pending: Vec::new(),
            received: 0,
            broken: Some(error),
        }));
        Status {
            attachment: attachment.state,
            online: attachment.online,
            groups,
            leaving: self.leaving().await,
        }
    }

    async fn leaving(&self) -> Vec<String> {
        let state = self.inner.state.read().await;
        let Some(state) = state.as_ref() else {
            return Vec::new();
        };
        let rows = state.groups().await.unwrap_or_else(|error| {
            tracing::debug!(%error, "which groups are being left cannot be read");
            Vec::new()
        });
        let is_leaving = |row: &Result<Remembered>| {
            let ending = row.as_ref().ok().and_then(|row| row.ending);
            ending == Some(Ending::Leave)
        };
        let leaving = rows.into_iter().filter(|(_, row)| is_leaving(row));
        leaving.map(|(id, _)| id).collect()
    }

    /// Whether the device can reach others and publish.
    pub fn is_online(&self) -> bool {
        self.inner.attachment.borrow().online
    }

    /// Waits until the device is on the network.
    ///
    /// # Errors
    /// [`Error::Offline`] after `limit`; [`Error::Stopped`].
    pub async fn wait_online(&self, limit: Duration) -> Result<()> {
        let mut attachment = self.inner.attachment.clone();
        let wait = async {
            tokio::select! {
                now = attachment.wait_for(|now| now.online) => now.map(|_| ()).map_err(|_| Error::Stopped),
                () = self.inner.cancel.cancelled() => Err(Error::Stopped),
            }
        };
        timeout(limit, wait)
            .await
            .map_err(|_| Error::Offline { waited: limit })?
    }

    /// Goes on the network, and does not wait for it. What was changed meanwhile is published then.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn go_online(&self) -> Result<()> {
        self.set_online(true).await
    }

    /// Leaves the network, and stays away until [`go_online`](Self::go_online) or the next start. What is on this device can be used
    /// all the same. Does not wait until the node has left, which takes a moment; the [`status`](Self::status) says "detached" then.
    /// Others are not told; they find out when this device does not answer.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn go_offline(&self) -> Result<()> {
        self.set_online(false).await
    }

    async fn set_online(&self, online: bool) -> Result<()> {
        let mut wanted = self.inner.wanted.lock().await;
        if self.inner.cancel.is_cancelled() {
            return Err(Error::Stopped);
        }
        if wanted.online != online {
            wanted.online = online;
            wanted.changes += 1;
            let done = match online {
                true => self.inner.api.attach().await,
                false => self.inner.api.detach().await,
            };
            match done {
                Ok(()) => {}
                Err(VeilidAPIError::NotInitialized) => return Err(Error::Stopped),
                // It is so already.
                Err(error) => tracing::debug!(%error, online, "the node stays as it is"),
            }
        }
        Ok(())
    }

    /// What happens from now on.
    pub fn events(&self) -> EventStream {
        self.inner.events.subscribe()
    }

    /// Gives back the space of blobs that no repo of any group names any more: deleted files, earlier versions, downloads that
    /// were given up. Says how much it was. This also happens by itself every hour, and then it is erased for good as well.
    ///
    /// # Errors
    /// Those of the store; nothing that is named is removed.
    pub async fn collect_garbage(&self) -> Result<GcReport> {
        Ok(self.inner.context.store.gc().await?)
    }

    /// Collects garbage, and makes what was collected unreadable for good, also for who has the keys: what still belongs to the
    /// archive is put under a new key and the old one destroyed.
    ///
    /// Flash memory can keep remains of what was removed, and of the old key, until it needs the space.
    ///
    /// # Errors
    /// Those of the store; nothing that is named is removed.
    pub async fn erase(&self) -> Result<GcReport> {
        let report = self.collect_garbage().await?;
        self.inner.context.store.erase().await?;
        Ok(report)
    }

    /// Reads everything that is on this device and verifies it. What is damaged counts as missing afterwards, and is fetched again
    /// when it is asked for and somebody has it.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn verify(
        &self,
        progress: impl FnMut(VerifyProgress) + Send,
    ) -> Result<VerifyReport> {
        Ok(self.inner.context.store.verify(progress).await?)
    }

    /// The bytes of all files and lists that are on this device.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn stored_bytes(&self) -> Result<u64> {
        Ok(self.inner.context.store.usage().await?.bytes)
    }

    /// Guards the device's keys in another way from now on, and replaces them: for a new password, or when somebody may know the old
    /// one. A crash at any point leaves a device that starts with either the old or the new.
    ///
    /// Where the keys lie does not change: in the keyring, or in a file of the directory. So [`KeyStorage::Keyring`] is refused on a
    /// device that was first started without a keyring. A key file is made if there is none; the one of before is not removed.
    ///
    /// What has begun is brought to its end, also if the future is dropped.
    ///
    /// # Errors
    /// Then the old protection stays: [`Error::InsecureKeyStorage`], [`Error::KeyringUnavailable`], [`Error::KeyFile`],
    /// [`Error::PasswordRequired`] for an empty password, [`Error::Stopped`], those of the store. Only after
    /// [`store_adapter::Error::KeyUncertain`] within [`Error::Store`] it may be either: start the device anew, with the new protection or with the
    /// old one.
    pub async fn rekey(&self, storage: KeyStorage) -> Result<()> {
        let (backend, protection) = (self.clone(), storage.protection(false));
        let work = self
            .inner
            .tasks
            .spawn(async move { backend.change_protection(protection).await });
        work.await.map_err(|_| Error::Stopped)?
    }

    async fn change_protection(&self, protection: Protection) -> Result<()> {
        let mut state = self.inner.state.write().await;
        let state = state.as_mut().ok_or(Error::Stopped)?;
        let rekey = state.begin_rekey(protection.clone()).await?;
        match self.inner.context.store.rekey(protection).await {
            Ok(()) => {}
            Err(error @ store_adapter::Error::KeyUncertain) => {
                state.leave_rekey(rekey.old).await;
                return Err(error.into());
            }
            Err(error) => {
                state.cancel_rekey(rekey.old).await;
                return Err(error.into());
            }
        }
        if let Err(error) = state.finish_rekey(rekey).await {
            // The new protection counts. The next start, or the next change, does the rest.
            tracing::warn!(%error, "the change of protection is not complete yet");
        }
        Ok(())
    }

    /// Stops the device: withdraws its tunnels from the DHT (for at most three seconds), ends all transfers, and closes everything
    /// that is on disk. A second call does nothing.
    ///
    /// # Errors
    /// Those of closing the store; the device is stopped all the same.
    pub async fn stop(&self) -> Result<()> {
        self.inner.cancel.cancel();
        // First, so that no group comes in any more.
        let state = self.inner.state.write().await.take();
        if state.is_none() {
            return Ok(());
        }
        drop(state);
        let (closed, lock) = self.end(WITHDRAW).await;
        // Last of all: now another process may use the directory.
        drop(lock);
        closed
    }

    /// Ends everything once the state is gone. Gives the lock on the directory.
    pub(crate) async fn end(&self, withdraw: Duration) -> (Result<()>, Option<File>) {
        let groups = std::mem::take(&mut *self.groups_map());
        join_all(groups.values().map(|group| group.stop(withdraw))).await;
        drop(groups);
        self.inner.context.tunnels.close().await;
        self.inner.context.records.close().await;
        self.inner.context.ledger.close();
        let closed = self.inner.context.store.close().await;
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
        self.inner.api.clone().shutdown().await;
        self.inner.events.emit(EventKind::Stopped);
        let lock = self
            .inner
            .lock
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        (closed.map_err(Error::from), lock)
    }
}

/// Attaches the node anew when it has been away from the network for long.
async fn keep_attached(
    api: VeilidAPI,
    mut attachment: watch::Receiver<Attachment>,
    wanted: Arc<tokio::sync::Mutex<Wanted>>,
) {
    loop {
        // The first attaching is Veilid's own affair, however long it takes.
        if attachment.wait_for(|now| now.online).await.is_err()
            || attachment.wait_for(|now| !now.online).await.is_err()
        {
            return;
        }
        let mut patience = FIRST_REATTACH;
        let changes = wanted.lock().await.changes;
        loop {
            match timeout(patience, attachment.wait_for(|now| now.online)).await {
                Ok(Ok(_)) => break,
                Ok(Err(_)) => return,
                Err(_) => {}
            }
            let wanted = wanted.lock().await;
            if !wanted.online || wanted.changes != changes {
                // It is away because it was to be; attaching after that is a first time again.
                break;
            }
            tracing::info!("away from the network for long: attaching anew");
            // Neither can harm: a node that is being detached or attached already says so.
            if let Err(error) = api.detach().await {
                tracing::debug!(%error, "the node was not detached");
            }
            if let Err(error) = api.attach().await {
                tracing::debug!(%error, "the node was not attached");
            }
            patience = (patience * 2).min(LONGEST_REATTACH);
        }
    }
}
