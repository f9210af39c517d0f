//! What goes on in the background: publishing, listening, watching, serving.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use dht_records::{Fetch, SLOTS, SlotIndex, SlotRoot, SlotValue};
use futures::{
    StreamExt,
    stream::{self, FuturesUnordered},
};
use tokio::time::{Instant, timeout};
use veilid_core::PublicKey;

use crate::{
    Error, Group, GroupEvent, Result, engine,
    group::Publishing,
    own::Own,
    serve,
    slots::{self, Content},
    wanted,
};

/// First pause after something did not work; it doubles up to `LONGEST_PAUSE`.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// What another device of this member wrote and nobody can give holds up what this one publishes for so long.
const OVERRULE: Duration = Duration::from_secs(600);
/// How often a slot is sought anew when others took it first.
const RACES: usize = 16;
/// A healthy group looks after itself so often even when nothing seems to change.
const ROUND: Duration = Duration::from_secs(300);
/// Collections that are fetched at the same time.
const COLLECTIONS: usize = 16;
/// How long one of them may take until another is given its place.
const COLLECT: Duration = Duration::from_secs(300);
/// How often the group's records are looked after, about.
const REPUBLISH: Duration = Duration::from_secs(60 * 60);
/// After so long, and twice as long each time up to that, when not all is there: Veilid looks after a record every five minutes at most.
const REPUBLISH_AGAIN: Duration = Duration::from_secs(6 * 60);
/// Records that are looked after at the same time.
const RECORDS: usize = 16;

pub(crate) fn start(group: &Group) {
    let tasks = &group.inner.tasks;
    for task in [
        Task::Publish,
        Task::Listen,
        Task::Watch,
        Task::Collect,
        Task::Fetch,
        Task::Want,
        Task::KeepAlive,
    ] {
        let group = group.clone();
        tasks.spawn(async move {
            let cancel = group.inner.cancel.clone();
            let work = async {
                match task {
                    Task::Publish => keep_published(&group).await,
                    Task::Listen => keep_listening(&group).await,
                    Task::Watch => keep_watching(&group).await,
                    Task::Collect => keep_collecting(&group).await,
                    Task::Fetch => engine::run(&group).await,
                    Task::Want => wanted::keep_fetching(&group).await,
                    Task::KeepAlive => keep_alive(&group).await,
                }
            };
            tokio::select! {
                () = cancel.cancelled() => {}
                () = work => {}
            }
        });
    }
}

enum Task {
    Publish,
    Listen,
    Watch,
    Collect,
    Fetch,
    Want,
    KeepAlive,
}

pub(crate) async fn stop(group: &Group, limit: Duration) {
    let inner = &group.inner;
    inner.cancel.cancel();
    engine::close(&inner.engine);
    let listener = inner.listener.lock().await.take();
    let withdraw = async { inner.seat().withdraw_tunnel().await.map(|_| ()) };
    let close = async {
        if let Some(listener) = listener {
            listener.close().await;
        }
    };
    let (withdrawn, ()) = tokio::join!(timeout(limit, withdraw), close);
    match withdrawn {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "the tunnel was not withdrawn"),
        Err(_) => tracing::debug!("the tunnel was not withdrawn in time"),
    }
    inner.peers.close();
    inner.tasks.close();
    inner.tasks.wait().await;
    if let Err(error) = inner.held.write(&inner.ledger).await {
        tracing::debug!(%error, "what was obtained is not written down");
    }
    inner.record.close().await;
}

/// Waits until the node is on the network.
async fn online(group: &Group) -> Result<()> {
    let _attached = group
        .inner
        .ctx
        .records
        .api()
        .wait_for_attachment_condition(None, None)
        .await?;
    Ok(())
}

/// Publishes what changes, again and again until it is published.
async fn keep_published(group: &Group) {
    let inner = &group.inner;
    let mut pause = PAUSE;
    let mut unmerged = None;
    loop {
        if online(group).await.is_err() {
            return;
        }
        let target = *inner.changes.borrow();
        inner.publishing.send_modify(Publishing::begin);
        match publish(group, &mut unmerged).await {
            Ok(()) => {
                pause = PAUSE;
                inner.publishing.send_modify(|now| now.reached(target));
                if *inner.changes.borrow() == target {
                    inner.emit(GroupEvent::Published);
                    // Woken by a change, or looks again after a while.
                    let _ = timeout(ROUND, inner.dirty.notified()).await;
                }
            }
            Err(error) => {
                tracing::debug!(%error, "publishing is tried again");
                inner.emit(GroupEvent::Retrying { what: "publishing" });
                if error.is_local() || !error.is_retryable() {
                    inner.publishing.send_modify(|now| now.failed(error));
                }
                let _ = timeout(pause, inner.dirty.notified()).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

async fn publish(group: &Group, since: &mut Option<Instant>) -> Result<()> {
    let inner = &group.inner;
    let Ok(own) = inner.writer() else {
        return Ok(());
    };
    merge(group, own, since).await?;
    // Before anybody learns of a root, it is served.
    group.refresh_reach(&own.repo).await?;
    let _ = own.repo.publish().await?.or_failure()?;
    let _ = inner.record.publish().await?.or_failure()?;
    // Another device of this member may have been first.
    merge(group, own, since).await?;
    advertise(group, own).await
}

/// Merges what this member's other devices published. What cannot be had for long is overruled: whoever wrote it merges when they are
/// back.
async fn merge(group: &Group, own: &Own, since: &mut Option<Instant>) -> Result<()> {
    while own.repo.unmerged().await?.is_some() {
        let Err(error) = group.sync_collection(own.repo.public_key()).await else {
            *since = None;
            continue;
        };
        let waited = since.get_or_insert_with(Instant::now).elapsed();
        if waited < OVERRULE {
            return Err(error);
        }
        tracing::warn!(%error, "what another device of this member wrote cannot be had, and is overruled");
        own.repo.overrule().await?;
    }
    *since = None;
    Ok(())
}

/// Sees to it that this member stands in a slot, with their newest root.
async fn advertise(group: &Group, writer: &Own) -> Result<()> {
    let inner = &group.inner;
    let own = writer.repo.public_key().clone();
    for _ in 0..RACES {
        let me = writer.me();
        let root = writer.repo.record().root(Fetch::Cached).await?;
        let root = root.map(|root| SlotRoot {
            hash: root.value.hash,
            counter: root.counter,
            bytes: root.value.bytes,
            files: root.value.files,
        });
        group.take_up_slots(Fetch::Network).await?;
        if inner.has_left() {
            return Ok(());
        }
        let slots = inner.record.slots(Fetch::Cached).await?;
        let mut seen = BTreeMap::new();
        let mut mine = BTreeMap::new();
        for (index, slot) in slots {
            let content = match slot.map(|stamped| stamped.value) {
                Ok(SlotValue::Member(slot)) if slot.repo == own => {
                    mine.insert(index, slot);
                    Content::Own
                }
                Ok(SlotValue::Empty) => Content::Empty,
                Ok(SlotValue::Left(_)) => Content::Farewell,
                _ => Content::Other,
            };
            seen.insert(index, content);
        }
        let full = Error::GroupFull {
            slots: SLOTS as usize,
        };
        let index = slots::place(SlotIndex::start_of(&own), &seen).ok_or(full)?;
        let stands = mine
            .get(&index)
            .is_some_and(|slot| slot.root == root && slot.name.as_deref() == Some(me.as_str()));
        if stands {
            let index = index.get();
            if inner.record.unpublished().await?.contains(&index) {
                let published = inner.record.publish().await?.or_failure()?;
                if published.overwritten().any(|lost| lost == index) {
                    continue;
                }
            }
            return Ok(());
        }
        let slot = inner
            .record
            .sign_slot(index, &writer.keys, root, Some(&me))
            .await?;
        inner
            .record
            .set_slot(index, &SlotValue::Member(slot))
            .await?;
        // The next turn of the loop sees whether the slot is ours.
        let _ = inner.record.publish().await?.or_failure()?;
    }
    Err(Error::Timeout { limit: PAUSE })
}

/// Listens on a tunnel, and publishes its route whenever that changes.
async fn keep_listening(group: &Group) {
    let inner = &group.inner;
    let psk = tunnels::Psk::from_bytes(
        *inner
            .access
            .locator()
            .derive(dht_records::Purpose::TunnelPsk)
            .as_bytes(),
    );
    let listener = match inner.ctx.tunnels.listen(psk).await {
        Ok(listener) => Arc::new(listener),
        Err(error) => {
            tracing::warn!(%error, "this group cannot be listened for");
            return;
        }
    };
    let mut route = listener.route();
    {
        let mut current = inner.listener.lock().await;
        if inner.cancel.is_cancelled() {
            // Stopping has looked for a listener already; this one ends by being dropped.
            return;
        }
        *current = Some(listener.clone());
        let store: iroh_blobs::api::Store = (*inner.ctx.store).clone();
        inner.tasks.spawn(serve::serve(
            listener.clone(),
            store,
            inner.reach.clone(),
            inner.ctx.serving.clone(),
        ));
    }
    loop {
        let blob = route.borrow_and_update().clone();
        if let Some(blob) = blob {
            let mut pause = PAUSE;
            loop {
                match publish_route(group, &blob).await {
                    Ok(()) => {
                        inner.emit(GroupEvent::Reachable);
                        break;
                    }
                    Err(error) => {
                        tracing::debug!(%error, "publishing the tunnel is tried again");
                        inner.emit(GroupEvent::Retrying { what: "tunnel" });
                        tokio::select! {
                            () = tokio::time::sleep(pause) => {}
                            changed = route.changed() => {
                                if changed.is_err() { return }
                                break;
                            }
                        }
                        pause = (pause * 2).min(LONGEST_PAUSE);
                    }
                }
            }
        }
        if !route.has_changed().unwrap_or(false) && route.changed().await.is_err() {
            return;
        }
    }
}

async fn publish_route(group: &Group, route: &[u8]) -> Result<()> {
    let seat = group.inner.seat();
    let _ = seat.publish_tunnel(route).await?.or_failure()?;
    Ok(())
}

/// Watches the group's record.
async fn keep_watching(group: &Group) {
    let inner = &group.inner;
    let mut pause = PAUSE;
    if online(group).await.is_err() {
        return;
    }
    let mut watch = loop {
        match inner.record.watch().await {
            Ok(watch) => break watch,
            Err(error) => {
                tracing::debug!(%error, "watching is tried again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    };
    pause = PAUSE;
    loop {
        let read = match group.refresh_members().await {
            Ok(()) => {
                // Another member may have taken this one's slot.
                inner.dirty.notify_one();
                pause = PAUSE;
                true
            }
            Err(error) => {
                tracing::debug!(%error, "the members cannot be read now");
                false
            }
        };
        tokio::select! {
            changed = watch.next() => if changed.is_none() {
                return;
            },
            () = tokio::time::sleep(pause), if !read => pause = (pause * 2).min(LONGEST_PAUSE),
        }
        // Whoever changed something is there, and may have what was missing.
        inner.roots_changed.notify_one();
    }
}

/// A collection that could not be had, and when that is tried again.
struct Late {
    due: Instant,
    pause: Duration,
}

/// Brings here what the members change in their collections. Nobody who is slow holds up the others.
async fn keep_collecting(group: &Group) {
    let inner = &group.inner;
    let mut under_way = FuturesUnordered::new();
    let mut busy: HashSet<PublicKey> = HashSet::new();
    let mut late: HashMap<PublicKey, Late> = HashMap::new();
    // What is here of each member, as far as it was looked for.
    let mut here: HashMap<PublicKey, [u8; 32]> = HashMap::new();
    if online(group).await.is_err() {
        return;
    }
    loop {
        let now = Instant::now();
        let mut next = None;
        for known in group.known_members() {
            let Some(root) = known.root.map(|root| root.hash) else {
                continue;
            };
            let due = late.get(&known.repo).map(|late| late.due);
            if busy.contains(&known.repo) || here.get(&known.repo) == Some(&root) {
                continue;
            }
            if due.is_some_and(|due| due > now) {
                next = next.min(due).or(due);
                continue;
            }
            if under_way.len() >= COLLECTIONS {
                break;
            }
            busy.insert(known.repo.clone());
            under_way.push(collect(group, known.repo, root));
        }
        tokio::select! {
            () = inner.roots_changed.notified() => {
                for late in late.values_mut() {
                    *late = Late { due: now, pause: PAUSE };
                }
            }
            // Whoever has it may be back without any change to see.
            () = until(next) => {}
            Some((repo, root, done)) = under_way.next(), if !under_way.is_empty() => {
                busy.remove(&repo);
                if done {
                    late.remove(&repo);
                    here.insert(repo, root);
                } else {
                    let pause = late.get(&repo).map_or(PAUSE, |late| late.pause);
                    let due = Instant::now() + pause;
                    let pause = (pause * 2).min(LONGEST_PAUSE);
                    late.insert(repo, Late { due, pause });
                }
            }
        }
    }
}

async fn collect(group: &Group, repo: PublicKey, root: [u8; 32]) -> (PublicKey, [u8; 32], bool) {
    let done = match timeout(COLLECT, group.sync_collection(&repo)).await {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            tracing::debug!(%error, "a member's collection cannot be had now");
            false
        }
        Err(_) => {
            tracing::debug!("a member's collection cannot be had in time");
            false
        }
    };
    (repo, root, done)
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Sees to it that the network keeps the group's records, whoever wrote them: storage nodes forget what nobody asks for.
async fn keep_alive(group: &Group) {
    // After what comes with a start, and not all devices of a group at once.
    let mut wait = REPUBLISH.mul_f64(0.02 + 0.08 * share());
    let mut again = REPUBLISH_AGAIN;
    loop {
        tokio::time::sleep(wait).await;
        // Where the time came while there was no network, at once when it is there.
        if online(group).await.is_err() {
            return;
        }
        wait = match republish(group).await {
            Ok(lost) => {
                tracing::debug!(lost, "the group's records were looked after");
                again = REPUBLISH_AGAIN;
                REPUBLISH.mul_f64(0.8 + 0.4 * share())
            }
            Err(error) => {
                tracing::debug!(%error, "not all of the group's records could be looked after");
                let wait = again;
                // What this device cannot bring back, another one may.
                again = (again * 2).min(REPUBLISH);
                wait
            }
        };
    }
}

/// Looks after each of the group's records once. Gives how many subkeys the network had lost.
pub(crate) async fn republish(group: &Group) -> Result<usize> {
    let mut repos = group.other_repos().await?;
    repos.extend(group.own_repo().cloned());
    repos.push(group.inner.guests.clone());
    let (mut lost, mut failed) = (0, None);
    // The others are looked after, whatever becomes of one, and do not wait until it is back.
    let mut looked_after = |outcome: dht_records::Result<usize>| match outcome {
        Ok(more) => lost += more,
        Err(error) => failed = Some(error),
    };
    let repos = async {
        let records = stream::iter(repos);
        let records = records.map(|repo| async move { repo.record().republish().await });
        let outcomes: Vec<_> = records.buffer_unordered(RECORDS).collect().await;
        outcomes
    };
    let (own, repos) = tokio::join!(group.inner.record.republish(), repos);
    looked_after(own);
    for outcome in repos {
        match outcome {
            // Nobody ever published there.
            Err(dht_records::Error::RecordNotFound) => {}
            outcome => looked_after(outcome),
        }
    }
    failed.map_or(Ok(lost), |error| Err(error.into()))
}

/// A number between 0 and 1, at random.
fn share() -> f64 {
    let random = getrandom::u32().unwrap_or(u32::MAX / 2);
    f64::from(random) / f64::from(u32::MAX)
}
