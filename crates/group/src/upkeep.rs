//! What goes on in the background: publishing, listening, watching, serving.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use dht_records::GuestRole;
use futures::{
    StreamExt,
    stream::{self, FuturesUnordered},
};
use tokio::time::{Instant, timeout};
use veilid_core::PublicKey;

use crate::{Group, GroupEvent, Result, Role, engine, looking, publish, serve, wanted};

/// First pause after something did not work; it doubles up to `LONGEST_PAUSE`.
pub(crate) const PAUSE: Duration = Duration::from_secs(1);
pub(crate) const LONGEST_PAUSE: Duration = Duration::from_secs(60);
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
        Task::Look,
    ] {
        let group = group.clone();
        tasks.spawn(async move {
            let cancel = group.inner.cancel.clone();
            let work = async {
                match task {
                    Task::Publish => publish::keep_published(&group).await,
                    Task::Listen => keep_listening(&group).await,
                    Task::Watch => keep_watching(&group).await,
                    Task::Collect => keep_collecting(&group).await,
                    Task::Fetch => engine::run(&group).await,
                    Task::Want => wanted::keep_fetching(&group).await,
                    Task::KeepAlive => keep_alive(&group).await,
                    Task::Look => looking::keep_looking(&group).await,
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
    Look,
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
    if let Err(error) = inner.peers.presences.write(&inner.ledger).await {
        tracing::debug!(%error, "who was seen when is not written down");
    }
    inner.record.close().await;
}

/// Waits until the node is on the network.
pub(crate) async fn online(group: &Group) -> Result<()> {
    let _attached = group
        .inner
        .ctx
        .records
        .api()
        .wait_for_attachment_condition(None, None)
        .await?;
    Ok(())
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
    let role = match group.role() {
        // Whoever has a slot need not say so.
        Role::Member => None,
        Role::Reader => Some(GuestRole::Reader),
        Role::Replica => Some(GuestRole::Replica),
    };
    let published = seat.publish_tunnel(route, role).await?;
    if group.own_repo().is_some() {
        group.after_publishing(Some(&published), None).await?;
    }
    let _ = published.or_failure()?;
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
    let mut changed = None;
    loop {
        let outcome = match &changed {
            Some(changed) => group.refresh_changed(changed).await,
            None => group.refresh_members().await,
        };
        let read = match outcome {
            Ok(failed) => {
                // Another member may have taken this one's slot.
                inner.dirty.notify_one();
                // A slot that could not be read is in no later notice.
                let read = failed.is_none();
                if read {
                    pause = PAUSE;
                }
                read
            }
            Err(error) => {
                tracing::debug!(%error, "the members cannot be read now");
                false
            }
        };
        tokio::select! {
            next = watch.next() => match next {
                // What could not be read now is looked for with all the rest.
                Some(next) => changed = read.then_some(next),
                None => return,
            },
            () = tokio::time::sleep(pause), if !read => {
                changed = None;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
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
