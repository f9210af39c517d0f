//! The flow and the roadmap that the project was asked for, on real networks: each test has devices that find each other over
//! a devnet's DHT and exchange real files over its routes.
#![cfg(target_os = "linux")]
#![recursion_limit = "256"]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use dht_records::{Fetch, GroupRecord, MemoryCache, Records, RepoRecord, SlotValue};
use integration_tests::answered;
use integration_tests::peers::{self, Device, LIMIT, devnet, noise};
use integration_tests::raw::{self, Raw};
use iroh_blobs::{Hash, protocol::GetRequest};
use save_backend::{
    Backend, EntryPath, Error, EventKind, Fault, LinkKind, ProgressState, PublicKey, Unpublished,
};
use tokio::time::{sleep, timeout};

/// "get veilid building and running inside backend class"; one directory, one process.
#[tokio::test]
async fn the_backend_runs_veilid_and_holds_its_directory() {
    let devnet = devnet().await;
    let ana = Device::start(&devnet, "ana").await;
    let ben = Device::start(&devnet, "ben").await;
    for device in [&ana, &ben] {
        let status = device.backend.status().await;
        assert!(status.online, "{status:?}");
    }
    assert!(ana.on(|b| async move { b.groups().await }).await.is_empty());
    let second = peers::try_start(&ana.host, ana.directory.clone()).await;
    assert!(matches!(second, Err(save_backend::Error::DirectoryInUse)));
    let ana = ana.restart().await;
    ben.stop().await;
    ana.stop().await;
    devnet.stop().await.unwrap();
}

/// "create groups and publish to veilid with name, read name from keypair"; "create data repo with name and advertise to
/// dht/read name back"; "add own repo to group, list known repos, get their names": read back with nothing but the keys.
#[tokio::test]
async fn names_and_repos_are_read_back_from_the_dht() {
    let devnet = devnet().await;
    let ana = Device::start(&devnet, "ana").await;
    let ben = Device::start(&devnet, "ben").await;
    let id = ana.create().await;
    ben.join(&ana, &id).await;
    let members = ana.members(&id, 2).await;
    let mut names: Vec<_> = members.iter().filter_map(|m| m.name.clone()).collect();
    names.sort();
    assert_eq!(names, ["ana", "ben"]);
    assert_eq!(members.iter().filter(|m| m.is_self).count(), 1);
    let groups = ben.on(|b| async move { b.groups().await }).await;
    assert_eq!(groups[0].name.as_deref(), Some("Archive"));

    // A node that was never told anything else.
    let host = devnet.host("reader").await.unwrap();
    let node = host
        .start_node(&host.directory().join("node"))
        .await
        .unwrap();
    node.ready(LIMIT).await.unwrap();
    let api = node.api().clone();
    let access = ana.access(&id);
    let repos: Vec<PublicKey> = members.into_iter().map(|m| m.repo).collect();
    host.run(async move {
        let records = Records::new(api, Arc::new(MemoryCache::default()));
        let group = GroupRecord::attach(&records, access.clone()).await.unwrap();
        let name = answered(|| group.metadata(Fetch::Network)).await.unwrap();
        assert_eq!(name.value.name, "Archive");
        let slots = answered(|| group.slots(Fetch::Network)).await;
        let mut advertised = Vec::new();
        for (_, slot) in slots {
            if let SlotValue::Member(slot) = slot.unwrap().value {
                advertised.push(slot.repo);
            }
        }
        advertised.sort();
        let mut expected = repos.clone();
        expected.sort();
        assert_eq!(advertised, expected);
        let mut names = Vec::new();
        for repo in repos {
            let repo = RepoRecord::attach(&records, &access, repo, None)
                .await
                .unwrap();
            let name = answered(|| repo.metadata(Fetch::Network)).await.unwrap();
            names.push(name.value.name);
            let tunnels = answered(|| repo.tunnels(Fetch::Network)).await;
            assert_eq!(tunnels.len(), 1, "one tunnel for each device");
        }
        names.sort();
        assert_eq!(names, ["ana", "ben"]);
        records.close().await;
    })
    .await;
    node.shutdown().await.unwrap();
    ana.stop().await;
    ben.stop().await;
    devnet.stop().await.unwrap();
}

/// "add tunnel to own repo, send 'ping' app_call to others"; and "before closing we should make sure to remove our tunnel".
#[tokio::test]
async fn members_ping_each_other_until_one_withdraws() {
    let devnet = devnet().await;
    let ana = Device::start(&devnet, "ana").await;
    let ben = Device::start(&devnet, "ben").await;
    let id = ana.create().await;
    ben.join(&ana, &id).await;
    for device in [&ana, &ben] {
        let other = device
            .members(&id, 2)
            .await
            .into_iter()
            .find(|m| !m.is_self)
            .unwrap();
        let id = id.clone();
        let time = device
            .on(move |b| async move { b.ping(&id, &other.repo).await.unwrap() })
            .await;
        assert!(time > Duration::ZERO);
    }
    let ben_repo = ben.repo(&id);
    ben.stop().await;
    let (of, repo) = (id.clone(), ben_repo.clone());
    let error = ana
        .on(move |b| async move { b.ping(&of, &repo).await.unwrap_err() })
        .await;
    assert!(
        matches!(
            error,
            save_backend::Error::Group(group::Error::MemberDoesNotAnswer)
        ),
        "{error:?}"
    );
    assert!(error.is_retryable());
    ana.stop().await;
    devnet.stop().await.unwrap();
}

/// "track collection for data repo and add data to it, update dht with hash"; "get iroh replication for collection using
/// app_call to tunnels in repo"; delete; and the second read needs no network.
#[tokio::test]
async fn files_are_listed_fetched_verified_deleted_and_kept() {
    let devnet = devnet().await;
    let ana = Device::start(&devnet, "ana").await;
    let ben = Device::start(&devnet, "ben").await;
    let id = ana.create().await;
    ben.join(&ana, &id).await;
    let (large, small) = (noise(3_000_001, 1), b"a note".to_vec());
    ana.put(&id, "video.bin", large.clone()).await;
    ana.put(&id, "notes/today.txt", small.clone()).await;
    ana.put(&id, "empty", Vec::new()).await;
    ben.list_until(&id, |paths| {
        paths == ["empty", "notes/today.txt", "video.bin"]
    })
    .await;

    let seen = Arc::new(Mutex::new(Vec::new()));
    let states = seen.clone();
    let read = ben
        .get_with(&id, "video.bin", move |progress| {
            states.lock().unwrap().push(progress)
        })
        .await
        .unwrap();
    assert!(read == large, "the bytes differ");
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    assert_eq!(seen.last().unwrap().state, ProgressState::Stored);
    assert!(
        seen.iter()
            .any(|progress| progress.state == ProgressState::Fetching)
    );
    assert!(
        seen.windows(2)
            .all(|pair| pair[0].bytes_done <= pair[1].bytes_done)
    );
    assert_eq!(ben.get(&id, "notes/today.txt").await, small);
    assert_eq!(ben.get(&id, "empty").await, b"");

    let gone = EntryPath::parse("notes/today.txt").unwrap();
    let of = id.clone();
    ana.on(move |b| async move { b.delete(&of, &gone).await.unwrap() })
        .await;
    ana.flush(&id).await;
    ben.list_until(&id, |paths| paths == ["empty", "video.bin"])
        .await;
    let error = ben
        .get_with(&id, "notes/today.txt", |_| {})
        .await
        .unwrap_err();
    assert!(
        matches!(error, save_backend::Error::NoSuchFile),
        "{error:?}"
    );

    // Without a network, and after a restart: what was read once is here.
    ben.host.cut_off().await.unwrap();
    let ben = ben.restart().await;
    assert!(
        ben.get(&id, "video.bin").await == large,
        "the bytes differ after a restart"
    );
    let groups = ben.on(|b| async move { b.groups().await }).await;
    assert_eq!(groups[0].name.as_deref(), Some("Archive"));
    assert_eq!(groups[0].members, 2);
    ana.stop().await;
    ben.stop().await;
    devnet.stop().await.unwrap();
}

/// "attempt to send requests to tunnels of other peers and do parallel reads for those that have the data (track dead tunnels to
/// add to ignore list)".
#[tokio::test]
async fn a_file_comes_from_everybody_who_has_it_and_the_dead_are_left_alone() {
    let devnet = devnet().await;
    let ana = Device::start(&devnet, "ana").await;
    let ben = Device::start(&devnet, "ben").await;
    let cleo = Device::start(&devnet, "cleo").await;
    let id = ana.create().await;
    ben.join(&ana, &id).await;
    cleo.join(&ana, &id).await;
    let file = noise(4_000_000, 2);
    let entry = ana.put(&id, "video.bin", file.clone()).await;
    ben.list_until(&id, |paths| paths.len() == 1).await;
    assert!(ben.get(&id, "video.bin").await == file);
    cleo.list_until(&id, |paths| paths.len() == 1).await;
    // Ben was seen last, so Cleo asks both who "has" it.
    cleo.members(&id, 3).await;
    let (of, asked) = (id.clone(), entry.clone());
    let mut holders = cleo
        .on(move |b| async move {
            loop {
                let holders = b.group(&of).unwrap().holders(&asked).await.unwrap();
                if holders.len() == 2 {
                    return holders;
                }
                sleep(Duration::from_millis(200)).await;
            }
        })
        .await;
    holders.sort();
    let mut expected = [ana.repo(&id), ben.repo(&id)];
    expected.sort();
    assert_eq!(holders, expected);

    // Only Ana has this one.
    ana.put(&id, "rare.txt", b"rare".to_vec()).await;
    cleo.list_until(&id, |paths| paths.len() == 2).await;

    // The one who wrote the file goes without a word. The other holder is enough.
    ana.host.cut_off().await.unwrap();
    assert!(cleo.get(&id, "video.bin").await == file, "the bytes differ");
    // Whoever stops waiting for a file does not want it any more.
    let of = id.clone();
    cleo.on(move |b| async move {
        let path = peers::path("rare.txt");
        let mut reading = Box::pin(b.get(&of, None, &path, |_| {}));
        while b.wanted(&of).unwrap().is_empty() {
            tokio::select! {
                biased;
                read = &mut reading => panic!("nobody has it: {:?}", read.err()),
                () = sleep(Duration::from_millis(10)) => {}
            }
        }
        drop(reading);
        assert!(b.wanted(&of).unwrap().is_empty());
    })
    .await;
    // Whoever is dead is left alone, for longer each time.
    let (of, dead) = (id.clone(), ana.repo(&id));
    let left_alone = cleo.on(move |b| async move {
        loop {
            let ignored = b.ignored(&of).await.unwrap();
            assert!(ignored.iter().all(|(of, _)| *of == dead), "{ignored:?}");
            if let Some((_, left)) = ignored.iter().find(|(_, left)| left.strikes >= 2) {
                return *left;
            }
            sleep(Duration::from_millis(100)).await;
        }
    });
    let (nobody, left) = tokio::join!(cleo.get_with(&id, "rare.txt", |_| {}), left_alone);
    assert_eq!(left.fault, Fault::Silent);
    let nobody = nobody.unwrap_err();
    assert!(nobody.is_retryable(), "{nobody:?}");
    assert!(
        matches!(
            nobody,
            save_backend::Error::Group(group::Error::NobodyHas { .. })
        ),
        "{nobody:?}"
    );
    let missing = noise(100, 3);
    ana.put_unpublished(&id, "later.txt", missing.clone()).await;
    let (of, dead) = (id.clone(), ana.repo(&id));
    let error = cleo
        .on(move |b| async move { b.ping(&of, &dead).await.unwrap_err() })
        .await;
    assert!(error.is_retryable(), "{error:?}");

    // It comes back, and what it wrote in the meantime is published and read.
    ana.host.rejoin().await.unwrap();
    ana.flush(&id).await;
    cleo.list_until(&id, |paths| paths.len() == 3).await;
    assert_eq!(cleo.get(&id, "later.txt").await, missing);
    assert_eq!(cleo.get(&id, "rare.txt").await, b"rare");
    let of = id.clone();
    let ignored = cleo.on(move |b| async move { b.ignored(&of).await.unwrap() });
    assert_eq!(
        ignored.await,
        [],
        "forgotten as soon as she brings something"
    );
    for device in [ana, ben, cleo] {
        device.stop().await;
    }
    devnet.stop().await.unwrap();
}

/// What of the first group is not published, as the status says it.
async fn pending(device: &Device) -> Vec<Unpublished> {
    device.backend.status().await.groups.remove(0).pending
}

/// What is written without a network is kept over a restart and published when there is one. The status says what it is.
#[tokio::test]
async fn writing_works_offline_and_is_published_after_a_restart() {
    let devnet = devnet().await;
    let ana = Device::start(&devnet, "ana").await;
    let ben = Device::start(&devnet, "ben").await;
    let id = ana.create().await;
    ben.join(&ana, &id).await;
    ana.put(&id, "old.txt", b"old".to_vec()).await;
    ben.list_until(&id, |paths| paths == ["old.txt"]).await;
    ana.host.cut_off().await.unwrap();
    ana.put_unpublished(&id, "offline.txt", b"written in the field".to_vec())
        .await;
    let of = id.clone();
    ana.on(move |b| async move { b.delete(&of, &peers::path("old.txt")).await.unwrap() })
        .await;
    assert!(ana.backend.group(&id).unwrap().has_unpublished());
    use Unpublished::{Files, Group, Member, Slot, Tunnel};
    assert_eq!(pending(&ana).await, [Files, Slot]);
    let of = id.clone();
    ana.on(move |b| async move { b.rename_me(&of, "Ana").await.unwrap() })
        .await;
    assert_eq!(pending(&ana).await, [Member, Files, Slot]);
    let of = id.clone();
    ana.on(move |b| async move { b.rename_group(&of, "Field").await.unwrap() })
        .await;
    assert_eq!(pending(&ana).await, [Group, Member, Files, Slot]);
    // That the tunnel is gone is told to nobody either.
    let ana = ana.restart().await;
    assert_eq!(pending(&ana).await, [Group, Member, Files, Slot, Tunnel]);
    let status = serde_json::to_value(ana.backend.status().await).unwrap();
    assert_eq!(
        status["groups"][0]["pending"],
        serde_json::json!(["group", "member", "files", "slot", "tunnel"])
    );
    assert_eq!(ana.get(&id, "offline.txt").await, b"written in the field");
    let group = ana.on(|b| async move { b.groups().await.remove(0) }).await;
    assert!(
        group.unpublished,
        "a restart must not forget what is not published"
    );
    assert!(group.pending.contains(&Unpublished::Files));
    ana.host.rejoin().await.unwrap();
    ana.flush(&id).await;
    ben.list_until(&id, |paths| paths == ["offline.txt"]).await;
    assert_eq!(ben.get(&id, "offline.txt").await, b"written in the field");
    timeout(LIMIT, async {
        while !pending(&ana).await.is_empty() {
            sleep(Duration::from_millis(200)).await;
        }
    })
    .await
    .unwrap();
    ana.stop().await;
    ben.stop().await;
    devnet.stop().await.unwrap();
}

/// Joining waits for the network. Meanwhile other groups are made, renamed and forgotten, and whoever stops waiting has joined nothing.
#[tokio::test]
async fn a_join_that_waits_holds_up_no_other_group() {
    let devnet = devnet().await;
    let ana = Device::start(&devnet, "ana").await;
    let ben = Device::start_offline(&devnet, "ben").await;
    let id = ana.create().await;
    let of = id.clone();
    let link = ana
        .on(move |b| async move { b.link(&of, LinkKind::Member).await.unwrap() })
        .await;
    let to = link.clone();
    ben.on(move |b| async move {
        let mut joining = Box::pin(b.join_group(&to, "ben"));
        let own = {
            let others = async {
                let own = b.create_group("Own", "ben").await.unwrap().id;
                let gone = b.create_group("Gone", "ben").await.unwrap().id;
                b.rename_me(&own, "Benedict").await.unwrap();
                b.forget_group(&gone).await.unwrap();
                own
            };
            tokio::select! {
                biased;
                joined = &mut joining => panic!("nobody can answer: {joined:?}"),
                own = others => own,
            }
        };
        drop(joining);
        let groups = b.groups().await;
        assert_eq!(groups.len(), 1);
        assert_eq!(groups[0].id, own);
        b.go_online().await.unwrap();
        b.wait_online(LIMIT).await.unwrap();
    })
    .await;
    ben.join_with(&link, &id).await;
    ana.told(&id, &["ana", "ben"]).await;
    ana.stop().await;
    ben.stop().await;
    devnet.stop().await.unwrap();
}

/// A group whose keys cannot be read any more is told of, and left on the disk as it is; the others are there as always.
#[tokio::test]
async fn a_broken_group_harms_no_other() {
    let devnet = devnet().await;
    let ana = Device::start(&devnet, "ana").await;
    let ben = Device::start(&devnet, "ben").await;
    let (broken, whole) = (ana.create().await, ana.create().await);
    ben.join(&ana, &whole).await;
    ana.put(&whole, "kept.txt", b"kept".to_vec()).await;
    let api = ana.backend.group(&broken).unwrap();
    let api = api.context().records.api().clone();
    let (directory, row) = (
        ana.directory.clone(),
        Bytes::from(format!("group/{broken}")),
    );
    ana.host
        .run(async move {
            let name = "save_dweb_state_v1";
            let table = store_adapter::open_table(&api, &directory, name, 1).await;
            let table = table.unwrap();
            let rows = table.get_keys(0).await.unwrap();
            assert!(rows.contains(&row));
            let damage = Bytes::from_static(b"damaged");
            table.store(0, row, damage).await.unwrap();
        })
        .await;
    let mut ana = ana;
    for _ in 0..2 {
        ana = ana.restart().await;
        let status = ana.backend.status().await;
        assert_eq!(status.groups.len(), 2, "{status:?}");
        for group in status.groups {
            assert_eq!(group.broken.is_some(), group.id == broken.to_string());
        }
        let groups = ana.on(|b| async move { b.groups().await }).await;
        assert_eq!(groups.len(), 1);
        assert_eq!(ana.listed(&whole).await, ["kept.txt"]);
    }
    ana.put(&whole, "new.txt", b"new".to_vec()).await;
    ben.list_until(&whole, |paths| paths == ["kept.txt", "new.txt"])
        .await;
    assert_eq!(ben.get(&whole, "new.txt").await, b"new");
    ana.stop().await;
    ben.stop().await;
    devnet.stop().await.unwrap();
}

/// Datagrams that were sent and connections that were begun inside a host's network.
async fn sent(device: &Device) -> Vec<String> {
    let counters = device.host.run(async {
        ["snmp", "snmp6"].map(|file| {
            let path = format!("/proc/thread-self/net/{file}");
            std::fs::read_to_string(path).unwrap()
        })
    });
    let [v4, v6] = counters.await;
    let mut sent = Vec::new();
    for (protocol, counter) in [("Udp:", "OutDatagrams"), ("Tcp:", "ActiveOpens")] {
        let mut lines = v4.lines().filter(|line| line.starts_with(protocol));
        let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
        let mut both = names.split(' ').zip(values.split(' '));
        sent.push(
            both.find(|(name, _)| *name == counter)
                .unwrap()
                .1
                .to_owned(),
        );
    }
    let line = v6.lines().find(|line| line.starts_with("Udp6OutDatagrams"));
    sent.push(line.unwrap().split_whitespace().last().unwrap().to_owned());
    sent
}

/// Whoever does not want to be seen uses their archive and sends nothing. On the network again, everything is made up for.
#[tokio::test]
async fn a_device_that_stays_offline_sends_nothing() {
    let devnet = devnet().await;
    let ana = Device::start_offline(&devnet, "ana").await;
    let id = ana
        .on(|b| async move { b.create_group("Archive", "ana").await.unwrap().id })
        .await;
    ana.put_unpublished(&id, "first.txt", b"one".to_vec()).await;
    assert_eq!(ana.listed(&id).await, ["first.txt"]);
    assert_eq!(ana.get(&id, "first.txt").await, b"one");
    let of = id.clone();
    ana.on(move |b| async move {
        // Long enough for everything that wants to be published to have had its turn.
        let flushed = b.flush(&of, Duration::from_secs(3)).await;
        assert!(flushed.is_err());
        assert!(!b.is_online());
    })
    .await;
    assert_eq!(sent(&ana).await, ["0", "0", "0"]);

    let online = |b: Backend| async move {
        b.go_online().await.unwrap();
        b.wait_online(LIMIT).await.unwrap();
    };
    ana.on(online).await;
    ana.flush(&id).await;
    let ben = Device::start(&devnet, "ben").await;
    ben.join(&ana, &id).await;
    ben.list_until(&id, |paths| paths == ["first.txt"]).await;
    ana.on(|b| async move {
        b.go_offline().await.unwrap();
        while b.status().await.attachment != "detached" {
            sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    let before = sent(&ana).await;
    ana.put_unpublished(&id, "second.txt", b"two".to_vec())
        .await;
    let of = id.clone();
    ana.on(move |b| async move {
        assert!(b.flush(&of, Duration::from_secs(3)).await.is_err());
    })
    .await;
    assert_eq!(sent(&ana).await, before);
    ana.on(online).await;
    ana.flush(&id).await;
    ben.list_until(&id, |paths| paths == ["first.txt", "second.txt"])
        .await;
    assert_eq!(ben.get(&id, "second.txt").await, b"two");
    assert_ne!(sent(&ana).await, ["0", "0", "0"]);
    ana.stop().await;
    let gone = ben
        .on(|b| async move {
            b.stop().await.unwrap();
            b.go_online().await
        })
        .await;
    assert!(matches!(gone, Err(Error::Stopped)));
    devnet.stop().await.unwrap();
}

/// Whoever proved one group's key learns nothing of another group's blobs, and a stranger nothing at all.
#[tokio::test]
async fn only_what_the_groups_roots_reach_is_served() {
    let devnet = devnet().await;
    let ana = Device::start(&devnet, "ana").await;
    let first = ana.create().await;
    let second = ana.create().await;
    let mine = ana.put(&first, "first.bin", noise(100_000, 4)).await;
    let foreign = ana.put(&second, "second.bin", noise(100_000, 5)).await;
    let repo = ana.repo(&first);
    let prober = Raw::start(&devnet, "prober", ana.access(&first)).await;
    let (session, stranger) = (
        prober.session(&repo).await,
        prober.strange_session(&repo).await,
    );
    let asked = prober.host.run(async move {
        let nowhere = Hash::new("a blob that does not exist");
        assert_eq!(raw::have(&session, mine.blob).await, 2, "a member's own");
        for hash in [foreign.blob, nowhere] {
            assert_eq!(raw::have(&session, hash).await, 0);
        }
        let get = async |hash| raw::download(&session, &GetRequest::blob(hash)).await;
        assert!(get(mine.blob).await.unwrap().len() > 100_000);
        // Not even the error tells whether it exists.
        let (foreign_answer, no_answer) = (get(foreign.blob).await, get(nowhere).await);
        let reset = foreign_answer.unwrap_err();
        assert!(matches!(reset, tunnels::Error::Reset { .. }), "{reset:?}");
        assert_eq!(
            format!("{reset:?}"),
            format!("{:?}", no_answer.unwrap_err())
        );

        let refused = timeout(LIMIT, stranger.ping()).await.unwrap();
        assert!(
            matches!(refused, Err(tunnels::Error::Refused)),
            "{refused:?}"
        );
        let refused = raw::download(&stranger, &GetRequest::blob(mine.blob)).await;
        assert!(
            matches!(refused, Err(tunnels::Error::Refused)),
            "{refused:?}"
        );
    });
    timeout(LIMIT, asked).await.unwrap();
    prober.stop().await;
    ana.stop().await;
    devnet.stop().await.unwrap();
}

/// Events are numbered without a gap, and tell what happens to the network and the groups.
#[tokio::test]
async fn events_tell_what_happens_in_order() {
    let devnet = devnet().await;
    let ana = Device::start(&devnet, "ana").await;
    let mut events = ana.backend.events();
    let id = ana.create().await;
    ana.put(&id, "file", b"1".to_vec()).await;
    let ana_events = ana.backend.clone();
    ana.on(move |_| async move { ana_events.stop().await.unwrap() })
        .await;
    let mut seen = Vec::new();
    while let Some(event) = timeout(LIMIT, events.next()).await.unwrap() {
        let last = matches!(event.kind, EventKind::Stopped);
        seen.push(event);
        if last {
            break;
        }
    }
    assert!(
        seen.windows(2).all(|pair| pair[1].seq == pair[0].seq + 1),
        "{seen:?}"
    );
    assert!(
        seen.iter()
            .any(|e| matches!(&e.kind, EventKind::GroupAdded { group } if *group == id))
    );
    assert!(seen.iter().any(|e| matches!(
        &e.kind,
        EventKind::Group {
            event: group::GroupEvent::Published,
            ..
        }
    )));
    drop(ana);
    devnet.stop().await.unwrap();
}
