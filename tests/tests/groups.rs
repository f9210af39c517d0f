//! Several groups of one device, several restarts, several who join at once, on real networks.
#![cfg(target_os = "linux")]
#![recursion_limit = "256"]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{collections::BTreeSet, time::Duration};

use dht_records::{Fetch, SlotValue};
use futures::future::join_all;
use integration_tests::answered;
use integration_tests::peers::{Device, LIMIT, WATCHED, devnet, noise};
use integration_tests::raw::{self, Raw};
use iroh_blobs::Hash;
use save_backend::{Error, GroupId, LinkKind, PublicKey};
use tokio::time::{Instant, sleep, timeout};

/// The members' slots on the network: the number of each, the repo, and how often it was written.
async fn slots(device: &Device, id: &GroupId) -> Vec<(u32, PublicKey, u64)> {
    let record = device.group_record(id).await;
    device
        .host
        .run(async move {
            let slots = answered(|| record.slots(Fetch::Network)).await;
            let mut members = Vec::new();
            for (index, slot) in slots {
                let slot = slot.unwrap();
                if let SlotValue::Member(member) = slot.value {
                    members.push((index.get(), member.repo, slot.counter));
                }
            }
            members
        })
        .await
}

/// A device in two groups shows each one its own members and files, whichever is refreshed, and gives nobody of one group what it got in
/// the other. It is all there after the first, the second and the third restart, and starting again advertises nothing anew.
#[tokio::test]
async fn two_groups_stay_apart_over_three_restarts() {
    let devnet = devnet().await;
    let mut ana = Device::start(&devnet, "ana").await;
    let ben = Device::start(&devnet, "ben").await;
    let cleo = Device::start(&devnet, "cleo").await;
    let (first, second) = (ana.create().await, ana.create().await);
    ben.join(&ana, &first).await;
    cleo.join(&ana, &second).await;
    ana.put(&first, "first.txt", b"one".to_vec()).await;
    ana.put(&second, "second.txt", b"two".to_vec()).await;
    let film = cleo.put(&second, "film.bin", noise(400_000, 1)).await;
    ana.list_until(&second, |paths| paths == ["film.bin", "second.txt"])
        .await;
    assert!(ana.get(&second, "film.bin").await == noise(400_000, 1));
    ana.list_until(&first, |paths| paths == ["first.txt"]).await;
    ben.list_until(&first, |paths| paths == ["first.txt"]).await;
    cleo.list_until(&second, |paths| paths == ["film.bin", "second.txt"])
        .await;
    ana.told(&first, &["ana", "ben"]).await;
    ana.told(&second, &["ana", "cleo"]).await;
    ben.told(&first, &["ana", "ben"]).await;
    cleo.told(&second, &["ana", "cleo"]).await;
    let repos = (ana.repo(&first), ana.repo(&second));
    assert_ne!(repos.0, repos.1, "a repo of two groups would link them");
    for device in [&ben, &cleo] {
        let groups = device.on(|b| async move { b.groups().await.len() }).await;
        assert_eq!(groups, 1);
    }

    // Somebody with the first group's keys asks for what came through the second.
    for (id, expected) in [(&first, 0), (&second, 2)] {
        let raw = Raw::start(&devnet, "prober", ana.access(id)).await;
        let session = raw.session(&ana.repo(id)).await;
        let has = raw
            .host
            .run(async move { raw::have(&session, film.blob).await })
            .await;
        assert_eq!(has, expected, "another group's blob is not told of");
        raw.stop().await;
    }

    let advertised = slots(&ana, &first).await;
    assert_eq!(advertised.len(), 2);
    for restart in 1..=3 {
        ana = ana.restart().await;
        assert_eq!(
            (ana.repo(&first), ana.repo(&second)),
            repos,
            "restart {restart}"
        );
        let mut groups = ana.on(|b| async move { b.groups().await }).await;
        groups.sort_by_key(|group| group.id != first);
        let ids: Vec<_> = groups.iter().map(|group| group.id.clone()).collect();
        assert_eq!(ids, [first.clone(), second.clone()], "restart {restart}");
        assert!(
            groups
                .iter()
                .all(|group| group.name.as_deref() == Some("Archive"))
        );
        // Without asking anybody.
        assert_eq!(ana.listed(&first).await, ["first.txt"]);
        assert_eq!(ana.listed(&second).await, ["film.bin", "second.txt"]);
        ana.told(&first, &["ana", "ben"]).await;
        ana.told(&second, &["ana", "cleo"]).await;
        assert!(ana.get(&second, "film.bin").await == noise(400_000, 1));
        let (host, backend) = (&ana.host, ana.backend.clone());
        host.run(async move { backend.wait_online(LIMIT).await.unwrap() })
            .await;
        ana.flush(&first).await;
        ana.flush(&second).await;
        ben.members(&first, 2).await;
    }
    assert_eq!(slots(&ben, &first).await, advertised, "advertised anew");

    // A member of the first group names what Cleo listed in the second as a part of their own list. Ana asks for it as if it were not here.
    // Ben has to be gone: he really lacks it, and would ask as well.
    ben.stop().await;
    let (record, repo) = (ana.group_record(&second).await, cleo.repo(&second));
    let list = ana
        .host
        .run(async move {
            let slots = record.slots(Fetch::Cached).await.unwrap();
            let mut roots = slots.into_iter().filter_map(|(_, slot)| match slot {
                Ok(slot) => match slot.value {
                    SlotValue::Member(member) if member.repo == repo => member.root,
                    _ => None,
                },
                Err(_) => None,
            });
            Hash::from_bytes(roots.next().unwrap().hash)
        })
        .await;
    let store = ana.backend.group(&second).unwrap().context().store.clone();
    let here = ana.on(move |_| async move { store.has(list).await.unwrap() });
    assert!(here.await, "Cleo's list is here");
    let mallory = Raw::start(&devnet, "mallory", ana.access(&first)).await;
    let (_, asked) = mallory.pose_with_a_list_that_names(list).await;
    timeout(LIMIT, async {
        while !asked.lock().unwrap().contains(&list) {
            sleep(Duration::from_millis(200)).await;
        }
    })
    .await
    .unwrap();
    mallory.stop().await;
    for device in [ana, cleo] {
        device.stop().await;
    }
    devnet.stop().await.unwrap();
}

/// A device wants a film of a member who went away, in one group. Meanwhile another group of it is as quick as ever, and when the member is
/// back the film comes.
#[tokio::test]
async fn a_group_whose_only_holder_is_away_holds_up_no_other() {
    let devnet = devnet().await;
    let ana = Device::start(&devnet, "ana").await;
    let ben = Device::start(&devnet, "ben").await;
    let cleo = Device::start(&devnet, "cleo").await;
    let (slow, quick) = (ana.create().await, ana.create().await);
    cleo.join(&ana, &slow).await;
    ben.join(&ana, &quick).await;
    let film = noise(600_000, 2);
    cleo.put(&slow, "film.bin", film.clone()).await;
    ana.list_until(&slow, |paths| paths == ["film.bin"]).await;
    ben.put(&quick, "before.bin", noise(200_000, 3)).await;
    assert!(got(&ana, &quick, "before.bin").await == noise(200_000, 3));

    cleo.host.cut_off().await.unwrap();
    let mut wanted = Box::pin(got(&ana, &slow, "film.bin"));
    let busy = async {
        let begin = Instant::now();
        for number in 0..3_u8 {
            let (path, bytes) = (format!("{number}.bin"), noise(200_000, 4 + number));
            let name = format!("Ana the {number}th");
            rename(&ana, &quick, &name).await;
            ben.told(&quick, &[&name, "ben"]).await;
            ben.put(&quick, &path, bytes.clone()).await;
            assert!(got(&ana, &quick, &path).await == bytes);
        }
        begin.elapsed()
    };
    let took = tokio::select! {
        _ = &mut wanted => panic!("nobody has that film"),
        took = busy => took,
    };
    eprintln!("three names and three files took {took:?}");
    assert!(took < 3 * WATCHED, "{took:?}");
    cleo.host.rejoin().await.unwrap();
    assert!((&mut wanted).await == film);
    drop(wanted);
    for device in [ana, ben, cleo] {
        device.stop().await;
    }
    devnet.stop().await.unwrap();
}

/// What is in a file, as soon as it is listed and somebody gives it.
async fn got(device: &Device, id: &GroupId, path: &str) -> Vec<u8> {
    let getting = async {
        loop {
            match device.get_with(id, path, |_| {}).await {
                Ok(bytes) => return bytes,
                Err(error) => assert!(
                    error.is_retryable() || matches!(error, Error::NoSuchFile),
                    "{error:?}"
                ),
            }
            sleep(Duration::from_millis(100)).await;
        }
    };
    // Whoever is away meanwhile may be so for as long as the other group is busy.
    timeout(LIMIT + 3 * WATCHED, getting)
        .await
        .expect("nobody gives the file")
}

/// Five devices take a link at the same time. Each gets a slot, and nobody loses theirs.
#[tokio::test]
async fn whoever_joins_at_the_same_time_gets_a_slot() {
    let devnet = devnet().await;
    let ana = Device::start(&devnet, "ana").await;
    let id = ana.create().await;
    let names = ["ben", "cleo", "dora", "emil", "fay"];
    let joining = join_all(names.map(|name| Device::start(&devnet, name))).await;
    let of = id.clone();
    let link = ana
        .on(move |b| async move { b.link(&of, LinkKind::Member).await.unwrap() })
        .await;
    join_all(joining.iter().map(|device| device.join_with(&link, &id))).await;
    let all = ["ana", "ben", "cleo", "dora", "emil", "fay"];
    let devices: Vec<Device> = [ana].into_iter().chain(joining).collect();
    for device in &devices {
        let told = device.told(&id, &all).await;
        assert!(told < WATCHED, "{told:?}");
    }
    let slots = slots(&devices[0], &id).await;
    let repos: BTreeSet<_> = slots.iter().map(|(_, repo, _)| repo.clone()).collect();
    assert_eq!(slots.len(), all.len(), "{slots:?}");
    assert_eq!(
        repos,
        devices.iter().map(|device| device.repo(&id)).collect()
    );

    // A watch that ended with the network is registered anew, and what came meanwhile is not missed.
    let [ana, ben, ..] = &devices[..] else {
        unreachable!("six devices")
    };
    ben.host.cut_off().await.unwrap();
    rename(ana, &id, "Anastasia").await;
    let absent = "Anastasia";
    ben.host.rejoin().await.unwrap();
    let told = ben
        .told(&id, &[absent, "ben", "cleo", "dora", "emil", "fay"])
        .await;
    eprintln!("a name that came while away was told after {told:?}");
    rename(ana, &id, "Anna").await;
    let told = ben
        .told(&id, &["Anna", "ben", "cleo", "dora", "emil", "fay"])
        .await;
    eprintln!("the next one after {told:?}");
    assert!(told < WATCHED, "{told:?}");
    // Looking after a record opens it anew, and Veilid ends the watch with that.
    let watches = |device: &Device| {
        let group = device.backend.group(&id).unwrap();
        group.context().records.stats().watches
    };
    let (before, of) = (watches(ben), id.clone());
    ben.on(move |b| async move { b.group(&of).unwrap().republish().await.unwrap() })
        .await;
    rename(ana, &id, "Ann").await;
    let told = ben
        .told(&id, &["Ann", "ben", "cleo", "dora", "emil", "fay"])
        .await;
    assert!(told < WATCHED, "{told:?}");
    assert!(watches(ben) > before, "the watch was not registered anew");

    // A new list, and one who leaves.
    let begin = Instant::now();
    ben.put(&id, "new.txt", b"new".to_vec()).await;
    for device in &devices {
        let listed = async {
            while device.listed(&id).await != ["new.txt"] {
                sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(WATCHED, listed).await.unwrap();
    }
    eprintln!("a file was listed by all after {:?}", begin.elapsed());
    let (of, fay) = (id.clone(), &devices[5]);
    let left = fay.on(move |b| async move { b.leave_group(&of, LIMIT).await.unwrap() });
    assert!(left.await, "the others were told");
    for device in &devices[..5] {
        let told = device
            .told(&id, &["Ann", "ben", "cleo", "dora", "emil"])
            .await;
        assert!(told < WATCHED, "{told:?}");
    }
    join_all(devices.into_iter().map(Device::stop)).await;
    devnet.stop().await.unwrap();
}

/// Nodes that watch a group of one device.
const WATCHERS: [&str; 20] = [
    "w1", "w2", "w3", "w4", "w5", "w6", "w7", "w8", "w9", "w10", "w11", "w12", "w13", "w14", "w15",
    "w16", "w17", "w18", "w19", "w20",
];

/// A network in which a write takes no longer is as quick as it gets here.
const SETTLED: Duration = Duration::from_secs(3);

/// What changes in a group is told to 20 who watch.
#[tokio::test]
async fn twenty_who_watch_are_told() {
    let devnet = devnet().await;
    let ana = Device::start(&devnet, "ana").await;
    let first = ana.access(&ana.create().await);
    let nodes = WATCHERS.map(|name| Box::pin(Raw::start(&devnet, name, first.clone())));
    let mut watchers = join_all(nodes).await;
    // The group is made when the network has its size. Of an older record too few copies would be where it is looked for, and Veilid
    // would look for 10 s each time.
    let id = ana.create().await;
    for watcher in &mut watchers {
        watcher.turn_to(ana.access(&id));
    }
    let watching = join_all(watchers.iter().map(Raw::watch_group)).await;
    // Nodes that have just started keep two processors busy, and a write waits for them.
    let settle = async {
        for count in 1.. {
            let begin = Instant::now();
            rename(&ana, &id, &format!("Ana the {count}th")).await;
            eprintln!("a name was published after {:?}", begin.elapsed());
            if begin.elapsed() < SETTLED {
                break;
            }
        }
    };
    timeout(LIMIT, settle).await.unwrap();
    let begin = Instant::now();
    rename(&ana, &id, "Anja").await;
    let published = begin.elapsed();
    let told = watching.into_iter().map(|watch| async {
        watch.told_of("Anja").await;
        begin.elapsed()
    });
    let told = timeout(WATCHED, join_all(told)).await.unwrap();
    eprintln!("a name was published after {published:?}, and twenty were told after {told:?}");
    join_all(watchers.into_iter().map(Raw::stop)).await;
    ana.stop().await;
    devnet.stop().await.unwrap();
}

async fn rename(device: &Device, id: &GroupId, name: &str) {
    let (of, name) = (id.clone(), name.to_owned());
    device
        .on(move |b| async move { b.rename_me(&of, &name).await.unwrap() })
        .await;
    device.flush(id).await;
}
