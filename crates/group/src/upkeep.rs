//! What goes on in the background: publishing, listening, watching, serving.

use std::{sync::Arc, time::Duration};

use dht_records::{Fetch, SLOTS, SlotIndex, SlotRoot, SlotValue};
use tokio::time::timeout;

use crate::{Error, Group, GroupEvent, Result, engine, serve, wanted};

/// First pause after something did not work; it doubles up to `LONGEST_PAUSE`.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How often a slot is sought anew when others took it first.
const RACES: usize = 16;
/// A healthy group looks after itself so often even when nothing seems to change.
const ROUND: Duration = Duration::from_secs(300);

pub(crate) fn start(group: &Group) {
    let tasks = &group.inner.tasks;
    for task in [
        Task::Publish,
        Task::Listen,
        Task::Watch,
        Task::Fetch,
        Task::Want,
    ] {
        let group = group.clone();
        tasks.spawn(async move {
            let cancel = group.inner.cancel.clone();
            let work = async {
                match task {
                    Task::Publish => keep_published(&group).await,
                    Task::Listen => keep_listening(&group).await,
                    Task::Watch => keep_watching(&group).await,
                    Task::Fetch => engine::run(&group).await,
                    Task::Want => wanted::keep_fetching(&group).await,
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
    Fetch,
    Want,
}

pub(crate) async fn stop(group: &Group, limit: Duration) {
    let inner = &group.inner;
    inner.cancel.cancel();
    engine::close(&inner.engine);
    let listener = inner.listener.lock().await.take();
    let withdraw = async { inner.own.withdraw_tunnel().await.map(|_| ()) };
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
    loop {
        if online(group).await.is_err() {
            return;
        }
        let target = *inner.changes.borrow();
        match publish(group).await {
            Ok(()) => {
                pause = PAUSE;
                inner
                    .published
                    .send_modify(|done| *done = target.max(*done));
                if *inner.changes.borrow() == target {
                    inner.emit(GroupEvent::Published);
                    // Woken by a change, or looks again after a while.
                    let _ = timeout(ROUND, inner.dirty.notified()).await;
                }
            }
            Err(error) => {
                tracing::debug!(%error, "publishing is tried again");
                inner.emit(GroupEvent::Retrying { what: "publishing" });
                let _ = timeout(pause, inner.dirty.notified()).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

async fn publish(group: &Group) -> Result<()> {
    let inner = &group.inner;
    // Before anybody learns of a root, it is served.
    group.refresh_reach(&inner.own).await?;
    let _ = inner.own.publish().await?.or_failure()?;
    let _ = inner.record.publish().await?.or_failure()?;
    advertise(group).await
}

/// Sees to it that this member stands in a slot, with their newest root.
async fn advertise(group: &Group) -> Result<()> {
    let inner = &group.inner;
    let own = inner.own.public_key().clone();
    for _ in 0..RACES {
        let root = inner.own.record().root(Fetch::Cached).await?;
        let root = root.map(|root| SlotRoot {
            hash: root.value.hash,
            counter: root.counter,
            bytes: root.value.bytes,
            files: root.value.files,
        });
        group.take_up_slots(Fetch::Network).await?;
        let slots = inner.record.slots(Fetch::Cached).await?;
        let mut taken = std::collections::BTreeSet::new();
        let mut mine = None;
        for (index, slot) in &slots {
            match slot.as_ref().map(|stamped| &stamped.value) {
                Ok(SlotValue::Member(slot)) if slot.repo == own => {
                    // Two slots of one member: the first stands.
                    mine = mine.or(Some((*index, slot.clone())));
                }
                Ok(SlotValue::Empty | SlotValue::Left(_)) => {}
                // What cannot be read may be somebody's.
                _ => {
                    taken.insert(index.get());
                }
            }
        }
        let index = match &mine {
            Some((index, slot))
                if slot.root == root && slot.name.as_deref() == Some(inner.me.as_str()) =>
            {
                let index = index.get();
                if inner.record.unpublished().await?.contains(&index) {
                    let published = inner.record.publish().await?.or_failure()?;
                    if published.overwritten().any(|lost| lost == index) {
                        continue;
                    }
                }
                return Ok(());
            }
            Some((index, _)) => *index,
            None => free_slot(SlotIndex::start_of(&own), &taken).ok_or(Error::GroupFull {
                slots: SLOTS as usize,
            })?,
        };
        let slot = inner
            .record
            .sign_slot(index, &inner.own_keys, root, Some(&inner.me))
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

/// The first slot from `start` on, around the end, that is not taken.
fn free_slot(start: SlotIndex, taken: &std::collections::BTreeSet<u32>) -> Option<SlotIndex> {
    let mut index = start;
    loop {
        if !taken.contains(&index.get()) {
            return Some(index);
        }
        index = index.next();
        if index == start {
            return None;
        }
    }
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
    let _ = group.inner.own.publish_tunnel(route).await?.or_failure()?;
    Ok(())
}

/// Watches the group's record, and brings here what the others change in their collections.
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
        let all = match group.refresh_members().await {
            Ok(()) => {
                // Another member may have taken this one's slot.
                inner.dirty.notify_one();
                group.sync_collections().await
            }
            Err(error) => {
                tracing::debug!(%error, "the members cannot be read now");
                false
            }
        };
        tokio::select! {
            changed = watch.next() => match changed {
                Some(_) => pause = PAUSE,
                None => return,
            },
            () = inner.roots_changed.notified() => pause = PAUSE,
            // What could not be had is looked for again: whoever has it may be back without any change to see.
            () = tokio::time::sleep(pause), if !all => pause = (pause * 2).min(LONGEST_PAUSE),
        }
    }
}
