//! What is wanted and not here yet: a queue that outlives the process, and goes on by itself when somebody has it.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{StreamExt, stream::FuturesUnordered};
use repo::EntryPath;
use serde::{Deserialize, Serialize};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;
use veilid_core::PublicKey;

use crate::{Error, Group, GroupEvent, Result, ledger::RowName};

/// So much can be wanted at once in one group, each entry being a file or all files of a member.
pub const MAX_WANTED: usize = 10_000;

/// The first byte of a row of this kind.
const KIND: u8 = 2;
const VERSION: u8 = 1;
/// First pause after nobody could give something; it doubles up to `LONGEST_PAUSE`.
const PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// So many entries are worked on at once.
const AT_ONCE: usize = 64;

/// Something that is wanted and not here yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Whose.
    pub repo: PublicKey,
    /// Which file; all that the member has if there is none.
    pub path: Option<EntryPath>,
    /// Since when, in seconds since 1970.
    pub since: u64,
    /// Whether it is being fetched at the moment. Otherwise it waits until it is tried again.
    pub active: bool,
}

/// A row of the ledger.
#[derive(Serialize, Deserialize)]
struct Row {
    version: u8,
    repo: String,
    path: Option<String>,
    since: u64,
}

type Key = (String, Option<String>);

#[derive(Debug)]
struct Item {
    repo: PublicKey,
    path: Option<EntryPath>,
    since: u64,
    /// Wanted until it is here: not only for as long as somebody waits for it.
    kept: bool,
    /// Callers who wait for it themselves.
    waiting: usize,
    /// Being fetched in the background.
    running: bool,
    /// Cancelled when it is not wanted any more, and not in the queue.
    cancel: CancellationToken,
    due: Instant,
    pause: Duration,
}

/// The queue of a group.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    items: Mutex<BTreeMap<Key, Item>>,
    changed: Notify,
    /// Held while rows are written, so that none is replaced by an older one.
    writing: tokio::sync::Mutex<()>,
}

fn key(repo: &PublicKey, path: Option<&EntryPath>) -> Key {
    (repo.to_string(), path.map(|path| path.as_str().to_owned()))
}

impl Item {
    fn new(repo: PublicKey, path: Option<EntryPath>, since: u64) -> Self {
        Self {
            repo,
            path,
            since,
            kept: true,
            waiting: 0,
            running: false,
            cancel: CancellationToken::new(),
            due: Instant::now(),
            pause: PAUSE,
        }
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Item>> {
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes something out; whether it was there. Nobody works on it from then on.
    fn remove(&self, key: &Key) -> bool {
        let mut items = self.lock();
        let Some(item) = items.remove(key) else {
            return false;
        };
        item.cancel.cancel();
        true
    }

    /// Takes up a row; whether it is one of this kind.
    pub(crate) fn take_up(&self, row: &[u8]) -> bool {
        let Some((&KIND, json)) = row.split_first() else {
            return false;
        };
        let parsed = || -> Option<Item> {
            let row: Row = serde_json::from_slice(json).ok()?;
            if row.version != VERSION {
                return None;
            }
            let path = row.path.as_deref().map(EntryPath::parse).transpose().ok()?;
            Some(Item::new(row.repo.parse().ok()?, path, row.since))
        };
        let Some(item) = parsed() else {
            return false;
        };
        self.lock()
            .insert(key(&item.repo, item.path.as_ref()), item);
        true
    }

    /// Something changed that may have brought somebody who has what is wanted: everything is tried again at once.
    pub(crate) fn wake(&self) {
        let now = Instant::now();
        for item in self.lock().values_mut() {
            // Who is due already keeps their place.
            item.due = item.due.min(now);
            item.pause = PAUSE;
        }
        self.changed.notify_one();
    }
}

impl Group {
    /// Wants a file: it is fetched in the background from whoever has it, now or later, also after a restart, until it is here,
    /// gone from its member's collection, or [forgotten](Self::forget_wanted). Wanting it again changes nothing.
    ///
    /// # Errors
    /// [`Error::NoSuchMember`]; [`repo::Error::NoSuchFile`] within [`Error::Repo`]; [`Error::TooManyWanted`]; those of the local disk.
    pub async fn want(&self, member: &PublicKey, path: &EntryPath) -> Result<()> {
        self.check_readable()?;
        let repo = self.repo_of(member).await?;
        let entry = repo.entry(path).await?.ok_or(repo::Error::NoSuchFile)?;
        if !self.is_here(&entry).await? {
            let new = self.enqueue(member, Some(path), 0)?;
            // Also what was there before: whoever put it there may not have got so far.
            let key = key(member, Some(path));
            let written = self.write_down(std::slice::from_ref(&key)).await;
            if written.is_err() && new {
                self.inner.queue.remove(&key);
            }
            written?;
            self.inner.queue.changed.notify_one();
        }
        Ok(())
    }

    /// What is wanted and not here yet, by member and path.
    pub fn wanted(&self) -> Vec<Wanted> {
        let items = self.inner.queue.lock();
        items
            .values()
            .map(|item| Wanted {
                repo: item.repo.clone(),
                path: item.path.clone(),
                since: item.since,
                active: item.running || item.waiting > 0,
            })
            .collect()
    }

    /// Wants a file, or all files of a member, no longer. What is here of it stays until garbage is collected. Whether it was wanted.
    ///
    /// # Errors
    /// Those of the local disk; it is wanted again after a restart then.
    pub async fn forget_wanted(
        &self,
        member: &PublicKey,
        path: Option<&EntryPath>,
    ) -> Result<bool> {
        let key = key(member, path);
        if !self.inner.queue.remove(&key) {
            return Ok(false);
        }
        self.inner.queue.changed.notify_one();
        self.write_down(&[key]).await?;
        Ok(true)
    }

    /// Nothing of a member is wanted any more.
    pub(crate) async fn forget_wanted_of(&self, member: &PublicKey) -> Result<()> {
        let member = member.to_string();
        let mut gone = Vec::new();
        self.inner.queue.lock().retain(|key, item| {
            if key.0 != member {
                return true;
            }
            item.cancel.cancel();
            gone.push(key.clone());
            false
        });
        self.inner.queue.changed.notify_one();
        self.write_down(&gone).await
    }

    /// Writes down what is in the queue of these by now, or that they are not.
    async fn write_down(&self, keys: &[Key]) -> Result<()> {
        let _one_at_a_time = self.inner.queue.writing.lock().await;
        let mut rows = Vec::with_capacity(keys.len());
        for key in keys {
            let since = self.inner.queue.lock().get(key).map(|item| item.since);
            let value = match since {
                None => None,
                Some(since) => {
                    let row = Row {
                        version: VERSION,
                        repo: key.0.clone(),
                        path: key.1.clone(),
                        since,
                    };
                    let mut value = vec![KIND];
                    let json = serde_json::to_vec(&row).map_err(|e| Error::Store(e.into()))?;
                    value.extend_from_slice(&json);
                    Some(value)
                }
            };
            rows.push((self.row_name(key), value));
        }
        self.inner.ledger.write(rows).await
    }

    fn row_name(&self, (repo, path): &Key) -> RowName {
        let path = path.as_deref().unwrap_or_default();
        self.inner
            .ledger
            .name(KIND, &[repo.as_bytes(), path.as_bytes()])
    }

    /// Puts something into the queue, for good or for `waiting` callers who wait for it. Whether it was not there.
    fn enqueue(
        &self,
        member: &PublicKey,
        path: Option<&EntryPath>,
        waiting: usize,
    ) -> Result<bool> {
        let since = self.inner.ctx.clock.now();
        let mut items = self.inner.queue.lock();
        let full = items.len() >= MAX_WANTED;
        match items.entry(key(member, path)) {
            Entry::Occupied(mut item) => {
                let item = item.get_mut();
                item.waiting += waiting;
                item.kept |= waiting == 0;
                Ok(false)
            }
            Entry::Vacant(_) if full => Err(Error::TooManyWanted { limit: MAX_WANTED }),
            Entry::Vacant(place) => {
                let mut item = Item::new(member.clone(), path.cloned(), since);
                item.waiting = waiting;
                item.kept = waiting == 0;
                place.insert(item);
                Ok(true)
            }
        }
    }

    /// Wants something for a caller who waits for it.
    pub(crate) fn begin_wanting(
        &self,
        member: &PublicKey,
        path: Option<&EntryPath>,
    ) -> Result<Waiting> {
        self.enqueue(member, path, 1)?;
        Ok(Waiting {
            group: self.clone(),
            key: key(member, path),
            ended: false,
        })
    }

    async fn dequeue(&self, key: &Key) -> Result<()> {
        if self.inner.queue.remove(key) {
            self.write_down(std::slice::from_ref(key)).await?;
        }
        Ok(())
    }
}

/// A caller who waits for something that is wanted. Dropped before the end, it takes that back.
pub(crate) struct Waiting {
    group: Group,
    key: Key,
    ended: bool,
}

impl Waiting {
    /// Writes down that it is wanted, so that it is after a restart too.
    pub(crate) async fn write_down(&self) -> Result<()> {
        self.group.write_down(std::slice::from_ref(&self.key)).await
    }

    /// It is here, or it could not be had and stays wanted. Nobody waits until the first is written down: after a restart it is seen that it
    /// is here.
    pub(crate) fn end(mut self, here: bool) {
        self.ended = true;
        let queue = &self.group.inner.queue;
        if !here {
            if let Some(item) = queue.lock().get_mut(&self.key) {
                item.kept = true;
            }
        } else if queue.remove(&self.key) {
            self.write_down_later();
        }
    }

    fn write_down_later(&self) {
        let (group, key) = (self.group.clone(), self.key.clone());
        self.group.inner.tasks.spawn(async move {
            if let Err(error) = group.write_down(&[key]).await {
                tracing::debug!(%error, "what is not wanted any more is still written down");
            }
        });
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let queue = &self.group.inner.queue;
        let mut items = queue.lock();
        let Some(item) = items.get_mut(&self.key) else {
            return;
        };
        item.waiting = item.waiting.saturating_sub(1);
        if item.waiting > 0 {
            return;
        }
        // Not the caller gives it up where the group stops.
        if self.ended || item.kept || self.group.inner.cancel.is_cancelled() {
            item.due = Instant::now() + item.pause;
        } else if let Some(item) = items.remove(&self.key) {
            // The caller gave it up.
            item.cancel.cancel();
            self.write_down_later();
        }
        drop(items);
        queue.changed.notify_one();
    }
}

/// How an attempt in the background ended.
enum Outcome {
    Here,
    Gone,
    /// Not now.
    Later,
}

/// Fetches what is wanted, again and again, until the group stops.
pub(crate) async fn keep_fetching(group: &Group) {
    let queue = &group.inner.queue;
    let mut running = FuturesUnordered::new();
    loop {
        let changed = queue.changed.notified();
        tokio::pin!(changed);
        // From here on no change is missed.
        changed.as_mut().enable();
        let mut next: Option<Instant> = None;
        for (key, item) in idle(&mut queue.lock()) {
            if running.len() >= AT_ONCE {
                break;
            }
            if item.due > Instant::now() {
                next = Some(item.due);
                break;
            }
            item.running = true;
            running.push(attempt(
                group,
                key.clone(),
                item.repo.clone(),
                item.path.clone(),
                item.cancel.clone(),
            ));
        }
        let wait = async {
            match next {
                Some(next) => tokio::time::sleep_until(next).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = &mut changed => {}
            () = wait => {}
            Some((key, cancel, outcome)) = running.next(), if !running.is_empty() => {
                settle(group, key, &cancel, outcome).await;
            }
        }
    }
}

/// What nobody works on, first what has waited longest: what nobody has must not keep the others away.
fn idle(items: &mut BTreeMap<Key, Item>) -> Vec<(&Key, &mut Item)> {
    let mut idle: Vec<_> = items
        .iter_mut()
        .filter(|(_, item)| !item.running && item.waiting == 0)
        .collect();
    idle.sort_by_key(|(_, item)| item.due);
    idle
}

async fn attempt(
    group: &Group,
    key: Key,
    repo: PublicKey,
    path: Option<EntryPath>,
    cancel: CancellationToken,
) -> (Key, CancellationToken, Outcome) {
    let work = async {
        match &path {
            Some(path) => fetch_file(group, &repo, path).await,
            None => fetch_all(group, &repo).await,
        }
    };
    let outcome = tokio::select! {
        () = cancel.cancelled() => Outcome::Later,
        outcome = work => outcome.unwrap_or_else(|error| {
            tracing::debug!(%error, "what is wanted cannot be had now");
            Outcome::Later
        }),
    };
    (key, cancel, outcome)
}

async fn fetch_file(group: &Group, member: &PublicKey, path: &EntryPath) -> Result<Outcome> {
    let repo = group.repo(member).await?;
    loop {
        let Some(entry) = repo.entry(path).await? else {
            // Without any collection nothing is known of it yet.
            return Ok(match repo.held_root().await? {
                Some(_) => Outcome::Gone,
                None => Outcome::Later,
            });
        };
        if group.is_here(&entry).await? {
            return Ok(Outcome::Here);
        }
        // Where the file was replaced meanwhile, the new one is what is wanted.
        group.bring_here(member, &entry, None).await?;
    }
}

async fn fetch_all(group: &Group, member: &PublicKey) -> Result<Outcome> {
    let report = group.bring_all_here(member, None).await?;
    Ok(if report.is_complete() {
        Outcome::Here
    } else {
        Outcome::Later
    })
}

async fn settle(group: &Group, key: Key, cancel: &CancellationToken, outcome: Outcome) {
    let queue = &group.inner.queue;
    let (repo, path) = {
        let mut items = queue.lock();
        if cancel.is_cancelled() {
            // It is gone. Under its name there may be another by now.
            return;
        }
        let Some(item) = items.get_mut(&key) else {
            return;
        };
        item.running = false;
        item.due = Instant::now() + item.pause;
        item.pause = (item.pause * 2).min(LONGEST_PAUSE);
        (item.repo.clone(), item.path.clone())
    };
    let gone = match outcome {
        Outcome::Here => false,
        Outcome::Gone => true,
        Outcome::Later => return,
    };
    if let Err(error) = group.dequeue(&key).await {
        tracing::warn!(%error, "what is not wanted any more is still written down");
    }
    if let Some(path) = path {
        group.inner.emit(if gone {
            GroupEvent::WantedGone { repo, path }
        } else {
            GroupEvent::WantedStored { repo, path }
        });
    }
}

#[cfg(test)]
mod tests {
    use veilid_core::{CRYPTO_KIND_VLD0, Crypto};

    use super::*;

    #[test]
    fn what_has_waited_longest_comes_first() {
        let repo = Crypto::generate_keypair(CRYPTO_KIND_VLD0).unwrap().key();
        let queue = Queue::default();
        let now = Instant::now();
        {
            let mut items = queue.lock();
            for n in 0..10_u64 {
                let path = EntryPath::parse(&format!("{n}.txt")).unwrap();
                let mut item = Item::new(repo.clone(), Some(path.clone()), n);
                // The later in the order of names, the longer it has waited.
                item.due = now - Duration::from_secs(n);
                item.running = n == 9;
                item.waiting = usize::from(n == 8);
                items.insert(key(&repo, Some(&path)), item);
            }
        }
        queue.wake();
        let mut items = queue.lock();
        let order: Vec<u64> = idle(&mut items)
            .iter()
            .map(|(_, item)| item.since)
            .collect();
        assert_eq!(order, [7, 6, 5, 4, 3, 2, 1, 0]);
    }
}
