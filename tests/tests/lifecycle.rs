//! A group's life from invitation to leaving, on real networks: what each kind of link gives, several devices of one member, new
//! names, slots that others overwrote, leaving.
#![cfg(target_os = "linux")]
#![recursion_limit = "256"]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{collections::BTreeSet, path::Path, time::Duration};

use dht_records::{
    ContentKey, Fetch, GroupAccess, GroupRecord, GroupSecret, MoveNotice, Purpose, RepoRecord,
    RootValue, SlotValue,
    value::{self, Kind, Place, ValueKey},
};
use group::{GroupEvent, Role};
use integration_tests::answered;
use integration_tests::peers::{Device, LIMIT, Stopped, WATCHED, devnet, noise, path};
use repo::{Repo, RepoContext};
use save_backend::{
    Clock, Error, ErrorKind, EventKind, GroupId, LinkKind, Member, PublicKey, RepoSync,
    SystemClock, Unpublished,
};
use tokio::{
    io::AsyncReadExt,
    time::{sleep, timeout},
};
use veilid_core::VeilidAPI;

/// What a device has of records, of what it obtained and wants, and of its groups.
const TABLES: [&str; 3] = [
    "dht-records-v1",
    "save_dweb_groups_v1",
    "save_dweb_state_v1",
];

/// Brings everything here, and says whether it is.
async fn sync(device: &Device, id: &GroupId) -> bool {
    let id = id.clone();
    device
        .on(move |b| async move {
            let synced = b.sync_all(&id, |_| {}).await.unwrap();
            !synced.is_empty() && synced.iter().all(RepoSync::is_complete)
        })
        .await
}

async fn sync_until_complete(device: &Device, id: &GroupId) {
    timeout(LIMIT, async {
        while !sync(device, id).await {
            sleep(Duration::from_millis(300)).await;
        }
    })
    .await
    .unwrap();
}

fn contains(directory: &Path, needle: &[u8]) -> bool {
    std::fs::read_dir(directory).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return contains(&path, needle);
        }
        let bytes = std::fs::read(&path).unwrap_or_default();
        bytes.windows(needle.len()).any(|window| window == needle)
    })
}

/// A reader reads and cannot write. A replica stores, verifies and serves, and cannot read a name or a file with anything that it has.
/// Neither has a slot. The replica keeps the archive there when the author is gone.
#[tokio::test]
async fn readers_read_and_replicas_keep_what_they_cannot_read() {
    let devnet = devnet().await;
    let ana = Device::start(&devnet, "ana").await;
    let ben = Device::start(&devnet, "ben").await;
    let rita = Device::start(&devnet, "rita").await;
    let remy = Device::start(&devnet, "remy").await;
    let id = ana.create().await;
    ben.join(&ana, &id).await;
    rita.join_as(LinkKind::Reader, &ana, &id).await;
    remy.join_as(LinkKind::Replica, &rita, &id).await;
    let film = noise(3_000_000, 1);
    let note = b"a sentence that nobody else writes ".repeat(40);
    let began = SystemClock.now() - 60;
    let entry = ana.put(&id, "film.bin", film.clone()).await;
    ana.put(&id, "names/like-no-other.txt", note.clone()).await;

    // The reader.
    rita.list_until(&id, |paths| paths.len() == 2).await;
    assert!(rita.get(&id, "film.bin").await == film);
    sync_until_complete(&rita, &id).await;
    assert!(rita.listed(&id).await.len() == 2);
    let refused = rita.try_put(&id, "mine.txt", b"x".to_vec()).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Refused);
    let of = id.clone();
    let links = rita
        .on(move |b| async move {
            let refused = b.link(&of, LinkKind::Member).await.is_err();
            refused && b.link(&of, LinkKind::Reader).await.is_ok()
        })
        .await;
    assert!(links, "a reader gives out what it holds, and no more");

    // The replica.
    sync_until_complete(&remy, &id).await;
    let of = id.clone();
    remy.on(move |b| async move {
        assert_eq!(b.groups().await[0].role, Role::Replica);
        assert_eq!(b.groups().await[0].name, None);
        let members = b.members(&of, true).await.unwrap();
        assert_eq!(members.len(), 2);
        assert!(members.iter().all(|m| m.name.is_none() && !m.is_self));
        let listed = b.list(&of, true).await;
        assert_eq!(listed.unwrap_err().kind(), ErrorKind::Refused);
        let read = b.get(&of, None, &path("film.bin"), |_| {}).await;
        assert_eq!(read.err().unwrap().kind(), ErrorKind::Refused);
        let verified = b.verify(|_| {}).await.unwrap();
        assert!(verified.damaged.is_empty());
        assert!(b.link(&of, LinkKind::Reader).await.is_err());
        assert!(b.link(&of, LinkKind::Replica).await.is_ok());
    })
    .await;
    let needles = [
        &b"nobody else writes"[..],
        b"like-no-other",
        b"film.bin",
        b"Archive",
    ];
    for needle in needles {
        assert!(!contains(&remy.directory, needle));
    }
    // Nor is it in what the store seals once more on the disk.
    let store = remy.backend.group(&id).unwrap().context().store.clone();
    remy.on(move |_| async move {
        let hashes = store.blobs().list().hashes().await.unwrap();
        assert!(hashes.len() >= 4, "two files, a list and its shards");
        for hash in hashes {
            let bytes = store.get_bytes(hash).await.unwrap();
            let within = |needle: &[u8]| bytes.windows(needle.len()).any(|part| part == needle);
            assert!(!needles.into_iter().any(within));
        }
    })
    .await;
    cannot_read(&remy, &id, entry.blob, &ana).await;
    for device in [&ana, &ben] {
        let members = device.members(&id, 2).await;
        assert!(members.iter().all(|m| m.name.is_some()));
    }

    // The author goes. What the replica has is enough.
    let ana_repo = ana.repo(&id);
    let ana = ana.stopped().await;
    ben.list_until(&id, |paths| paths.len() == 2).await;
    assert!(ben.get(&id, "film.bin").await == film);
    assert!(ben.get(&id, "names/like-no-other.txt").await == note);
    let of = id.clone();
    let guests = ben
        .on(move |b| async move { b.guests(&of, true).await.unwrap() })
        .await;
    let mut roles: Vec<_> = guests.iter().map(|guest| guest.role.unwrap()).collect();
    roles.sort_by_key(ToString::to_string);
    assert_eq!(roles, [Role::Reader, Role::Replica]);

    // That she went, and when she was there, is known without asking, over a restart too; and so is that she is back.
    let gone = shown(&ben, &id, &ana_repo, |ana| ana.tunnels == 0).await;
    let seen = gone.last_seen.unwrap();
    assert!((began..=SystemClock.now()).contains(&seen), "{seen}");
    let ben = ben.restart_cut_off().await;
    let recalled = shown(&ben, &id, &ana_repo, |_| true).await;
    assert_eq!(recalled, gone);
    let (files, bytes) = (2, film.len() + note.len());
    assert_eq!((gone.files, gone.bytes), (files, bytes as u64));
    assert_eq!(gone.role, Some(Role::Member));
    ben.host.rejoin().await.unwrap();
    let ana = ana.start().await;
    let back = shown(&ben, &id, &ana_repo, |ana| ana.tunnels == 1).await;
    assert!(back.last_seen.unwrap() >= seen);
    ana.stop().await;

    // Over a restart.
    let remy = remy.restart().await;
    let rita = rita.restart().await;
    assert!(rita.get(&id, "film.bin").await == film);
    sync_until_complete(&remy, &id).await;
    for device in [ben, rita, remy] {
        device.stop().await;
    }
    devnet.stop().await.unwrap();
}

/// What is known here of a member, once it is what `done` waits for. Nobody is asked for it.
async fn shown(
    device: &Device,
    id: &GroupId,
    repo: &PublicKey,
    done: impl Fn(&Member) -> bool + Send + 'static,
) -> Member {
    let (id, repo) = (id.clone(), repo.clone());
    let begin = tokio::time::Instant::now();
    let member = device
        .on(move |b| async move {
            loop {
                let members = b.members(&id, false).await.unwrap();
                let member = members.into_iter().find(|m| m.repo == repo).unwrap();
                if done(&member) {
                    return member;
                }
                sleep(Duration::from_millis(100)).await;
            }
        })
        .await;
    eprintln!(
        "shown after {:?}: {} tunnels",
        begin.elapsed(),
        member.tunnels
    );
    member
}

/// With each key that a replica has, and each that follows from one of them, it tries to read a blob and a list. With the author's secret
/// the same attempt reads both.
async fn cannot_read(replica: &Device, id: &GroupId, blob: save_backend::Hash, author: &Device) {
    let access = replica.access(id);
    assert!(access.content().is_none() && access.secret().is_none());
    let locator = access.locator();
    let mut keys = vec![*locator.as_bytes()];
    keys.extend(Purpose::ALL.map(|purpose| *locator.derive(purpose).as_bytes()));
    for purpose in Purpose::ALL {
        keys.extend(Purpose::ALL.map(|next| *locator.derive(purpose).derive(next).as_bytes()));
    }
    let public: &[u8] = id.public_key().ref_value();
    keys.push(public.try_into().unwrap());
    names_stay_sealed(replica, id, &keys, author).await;
    let group = replica.backend.group(id).unwrap();
    let repo = author.repo(id);
    let context = RepoContext {
        records: group.context().records.clone(),
        store: group.context().store.clone(),
        device: group.context().device,
        clock: group.context().clock.clone(),
    };
    let public = access.public_key();
    let right = author.access(id).to_reader().unwrap();
    replica
        .host
        .run(async move {
            assert!(group.name(Fetch::Network).await.unwrap().is_none());
            assert!(context.store.has(blob).await.unwrap(), "it is here");
            for key in keys {
                // As if it were the secret from which the content key follows.
                let access = GroupAccess::Reader {
                    public: public.clone(),
                    secret: GroupSecret::from_bytes(key),
                };
                let tried = Repo::open(&context, &access, repo.clone(), None)
                    .await
                    .unwrap();
                assert!(tried.list().await.is_err());
                assert!(tried.read(&path("film.bin")).await.is_err());
            }
            let opened = Repo::open(&context, &right, repo, None).await.unwrap();
            assert_eq!(opened.list().await.unwrap().len(), 2);
            assert!(opened.read(&path("film.bin")).await.is_ok());
        })
        .await;
}

/// Neither these keys nor any 32 bytes in a row of what the replica's tables hold open the group's name, as a content key or as what a
/// content key follows from.
async fn names_stay_sealed(replica: &Device, id: &GroupId, keys: &[[u8; 32]], author: &Device) {
    let record = replica.group_record(id).await.record_key().clone();
    let api = replica.backend.group(id).unwrap();
    let api = api.context().records.api().clone();
    let (sealed, candidates) = replica
        .host
        .run({
            let record = record.clone();
            async move {
                let context = api.routing_context().unwrap();
                let sealed = context.get_dht_value(record, 0, true).await.unwrap();
                let mut candidates = BTreeSet::new();
                for table in TABLES {
                    let table = api.open_table_db(table, 1).await.unwrap();
                    for key in table.get_keys(0).await.unwrap() {
                        candidates.extend(key.windows(32).map(<[u8]>::to_vec));
                        let value = table.load(0, key).await.unwrap().unwrap();
                        candidates.extend(value.windows(32).map(<[u8]>::to_vec));
                    }
                }
                (sealed.unwrap().data().to_vec(), candidates)
            }
        })
        .await;
    assert!(candidates.len() > 1_000, "{}", candidates.len());
    let opaque = record.opaque();
    let place = Place {
        record: &opaque,
        subkey: 0,
        kind: Kind::GroupMetadata,
    };
    let opens = |key: ContentKey| {
        let key = ValueKey::new(key.derive(Purpose::ContentValues));
        value::open(&key, &place, &sealed).is_ok()
    };
    let candidates = candidates.iter().map(|bytes| bytes[..].try_into().unwrap());
    for candidate in candidates.chain(keys.iter().copied()) {
        assert!(!opens(ContentKey::from_bytes(candidate)));
        assert!(!opens(GroupSecret::from_bytes(candidate).content()));
    }
    let access = author.access(id);
    assert!(opens(access.content().unwrap().clone()));
}

/// Two devices of one member write at the same time, one of them without a network: all of it is there in the end, and of one path the
/// same version everywhere.
#[tokio::test]
async fn two_devices_of_a_member_write_one_repo() {
    let devnet = devnet().await;
    let ana = Device::start(&devnet, "ana").await;
    let ben = Device::start(&devnet, "ben").await;
    let id = ana.create().await;
    ben.join(&ana, &id).await;
    ana.put(&id, "before.txt", b"before".to_vec()).await;
    let tablet = Device::start(&devnet, "tablet").await;
    tablet.join_as(LinkKind::Device, &ana, &id).await;
    assert_eq!(tablet.repo(&id), ana.repo(&id));
    tablet
        .list_until(&id, |paths| paths == ["before.txt"])
        .await;
    let own = tablet.members(&id, 2).await;
    let own = own.iter().find(|m| m.is_self).unwrap();
    assert_eq!(own.name.as_deref(), Some("ana"));

    // The tablet has no network, and works all the same.
    tablet.host.cut_off().await.unwrap();
    tablet
        .put_unpublished(&id, "from-tablet.txt", b"tablet".to_vec())
        .await;
    tablet
        .put_unpublished(&id, "both.txt", b"of the tablet".to_vec())
        .await;
    assert!(tablet.backend.status().await.groups[0].unpublished);
    ana.put(&id, "from-phone.txt", b"phone".to_vec()).await;
    ana.put(&id, "both.txt", b"of the phone".to_vec()).await;
    ana.put(&id, "both.txt", b"of the phone, later".to_vec())
        .await;
    tablet.host.rejoin().await.unwrap();

    let all = [
        "before.txt",
        "both.txt",
        "from-phone.txt",
        "from-tablet.txt",
    ];
    for device in [&ana, &tablet, &ben] {
        device.list_until(&id, move |paths| paths == all).await;
    }
    let mut seen = Vec::new();
    for device in [&ana, &tablet, &ben] {
        assert_eq!(device.get(&id, "from-tablet.txt").await, b"tablet");
        assert_eq!(device.get(&id, "from-phone.txt").await, b"phone");
        seen.push(device.get(&id, "both.txt").await);
    }
    assert!(
        seen.iter().all(|bytes| bytes == b"of the phone, later"),
        "the higher version"
    );
    // The tablet can have back what it wrote, until it is collected.
    let of = id.clone();
    let on_tablet = tablet.on(move |b| async move {
        let replaced = b.replaced(&of).await.unwrap();
        let mut versions = Vec::new();
        for version in &replaced {
            assert_eq!(version.entry.path.as_str(), "both.txt");
            let mut bytes = Vec::new();
            let mut reader = b.get_version(&of, version).await.unwrap();
            reader.read_to_end(&mut bytes).await.unwrap();
            versions.push(bytes);
        }
        // Nothing is collected under a reader, and none is left.
        b.collect_garbage().await.unwrap();
        assert_eq!(b.replaced(&of).await.unwrap().len(), 0);
        assert!(b.get_version(&of, &replaced[0]).await.is_err());
        versions
    });
    let versions = on_tablet.await;
    assert!(
        versions.contains(&b"of the tablet".to_vec()),
        "{versions:?}"
    );
    // They go by one name, and neither writes the old one back.
    let of = id.clone();
    ana.on(move |b| async move { b.rename_me(&of, "Anna").await.unwrap() })
        .await;
    ana.flush(&id).await;
    tablet.told(&id, &["Anna", "ben"]).await;
    tablet.put(&id, "after.txt", b"after".to_vec()).await;
    ben.list_until(&id, |paths| paths.len() == 5).await;
    ben.told(&id, &["Anna", "ben"]).await;
    // Both can be found.
    shown(&ben, &id, &ana.repo(&id), |ana| ana.tunnels == 2).await;

    // Both are lost. With the link that she kept, a new one has what others have of her files, and goes on in their place.
    let of = id.clone();
    let kept = ana
        .on(move |b| async move { b.link(&of, LinkKind::Device).await.unwrap() })
        .await;
    for device in [ana, tablet] {
        device.stop().await;
    }
    let new = Device::start(&devnet, "new").await;
    new.join_with(&kept, &id).await;
    new.list_until(&id, |paths| paths.len() == 5).await;
    assert_eq!(new.get(&id, "both.txt").await, b"of the phone, later");
    new.put(&id, "anew.txt", b"anew".to_vec()).await;
    ben.list_until(&id, |paths| paths.len() == 6).await;
    assert_eq!(ben.get(&id, "anew.txt").await, b"anew");
    for device in [new, ben] {
        device.stop().await;
    }
    devnet.stop().await.unwrap();
}

/// What the network says of this device's own collection.
async fn published_root(device: &Device, id: &GroupId) -> Option<RootValue> {
    let group = device.backend.group(id).unwrap();
    let record = group.own_repo().unwrap().record().clone();
    let root = device
        .host
        .run(async move { answered(|| record.root(Fetch::Network)).await })
        .await;
    root.map(|root| root.value)
}

async fn online(device: Stopped) -> Device {
    let device = device.start().await;
    device
        .on(|b| async move { b.wait_online(LIMIT).await.unwrap() })
        .await;
    device
}

/// Waits until the device knows that its other device wrote what nobody can give.
async fn until_it_cannot_merge(device: &Device) {
    device
        .on(|b| async move {
            while !b.groups().await[0].pending.contains(&Unpublished::Merge) {
                sleep(Duration::from_millis(200)).await;
            }
        })
        .await;
}

/// The phone is off, and nobody else has its last list. The tablet takes nothing out of the archive because of that: its own files
/// wait until the phone is back, or until somebody says that they are not to.
#[tokio::test]
async fn what_a_device_that_is_off_wrote_is_not_overwritten() {
    let devnet = devnet().await;
    let phone = Device::start(&devnet, "phone").await;
    let tablet = Device::start(&devnet, "tablet").await;
    let id = phone.create().await;
    phone.put(&id, "1.txt", b"1".to_vec()).await;
    tablet.join_as(LinkKind::Device, &phone, &id).await;
    tablet.list_until(&id, |paths| paths == ["1.txt"]).await;
    let tablet = tablet.stopped().await;
    phone.put(&id, "2.txt", b"2".to_vec()).await;
    let of_phone = published_root(&phone, &id).await;
    let phone = phone.stopped().await;

    let tablet = online(tablet).await;
    tablet.put_unpublished(&id, "3.txt", b"3".to_vec()).await;
    until_it_cannot_merge(&tablet).await;
    let of = id.clone();
    let flushed = tablet.on(move |b| async move { b.flush(&of, Duration::from_secs(15)).await });
    assert!(flushed.await.is_err(), "nothing can be published");
    assert_eq!(published_root(&tablet, &id).await, of_phone);
    assert_eq!(tablet.listed(&id).await, ["1.txt", "3.txt"]);
    let phone = online(phone).await;
    for device in [&phone, &tablet] {
        let all = ["1.txt", "2.txt", "3.txt"];
        device.list_until(&id, move |paths| paths == all).await;
    }
    tablet.flush(&id).await;

    // Once more; but now the phone is said to be lost.
    let of = id.clone();
    let overruled = tablet.on(move |b| async move { b.overrule(&of).await.unwrap() });
    assert!(!overruled.await, "there is nothing to overrule");
    let tablet = tablet.stopped().await;
    phone.put(&id, "4.txt", b"4".to_vec()).await;
    let phone = phone.stopped().await;
    let tablet = online(tablet).await;
    until_it_cannot_merge(&tablet).await;
    let of = id.clone();
    let overruled = tablet.on(move |b| async move { b.overrule(&of).await.unwrap() });
    assert!(overruled.await);
    tablet.put(&id, "5.txt", b"5".to_vec()).await;
    let pending = tablet.on(|b| async move { b.groups().await[0].pending.clone() });
    assert_eq!(pending.await, []);
    // It was not lost after all.
    let phone = online(phone).await;
    for device in [&phone, &tablet] {
        let all = ["1.txt", "2.txt", "3.txt", "4.txt", "5.txt"];
        device.list_until(&id, move |paths| paths == all).await;
    }
    phone.stop().await;
    tablet.stop().await;
    devnet.stop().await.unwrap();
}

/// New names arrive by themselves. Whoever finds their slot overwritten advertises again, and is known to the others all the while, over
/// restarts too.
#[tokio::test]
async fn names_change_and_overwritten_slots_come_back() {
    let devnet = devnet().await;
    let ana = Device::start(&devnet, "ana").await;
    let ben = Device::start(&devnet, "ben").await;
    let id = ana.create().await;
    ben.join(&ana, &id).await;
    ana.told(&id, &["ana", "ben"]).await;
    let of = id.clone();
    ben.on(move |b| async move {
        b.rename_me(&of, "Benedict").await.unwrap();
        b.rename_group(&of, "New name").await.unwrap();
        let empty = b.rename_me(&of, " ").await;
        assert!(matches!(empty, Err(Error::InvalidName { .. })));
    })
    .await;
    ben.flush(&id).await;
    let took = ana.told(&id, &["Benedict", "ana"]).await;
    eprintln!("a new name arrived after {took:?}");
    assert!(took < WATCHED, "{took:?}");
    let of = id.clone();
    ana.on(move |b| async move {
        while b.groups().await[0].name.as_deref() != Some("New name") {
            sleep(Duration::from_millis(100)).await;
        }
        let _ = of;
    })
    .await;

    // Somebody with the group's key writes nothing over Ben's slot while Ben is away.
    let ben_repo = ben.repo(&id);
    let ben = ben.restart_cut_off().await;
    let group = ana.backend.group(&id).unwrap();
    let record = ana.group_record(&id).await;
    let victim = ben_repo.clone();
    ana.host
        .run(async move {
            let slots = answered(|| record.slots(Fetch::Network)).await;
            let index = slots
                .into_iter()
                .find_map(|(index, slot)| match slot.unwrap().value {
                    SlotValue::Member(slot) if slot.repo == victim => Some(index),
                    _ => None,
                })
                .unwrap();
            record.clear_slot(index).await.unwrap();
            assert!(answered(|| record.publish()).await.is_complete());
            answered(|| group.members(Fetch::Network)).await;
        })
        .await;
    let ana = ana.restart().await;
    let members = ana.backend.members(&id, false).await.unwrap();
    let known: Vec<_> = members.iter().filter_map(|m| m.name.as_deref()).collect();
    assert!(known.contains(&"Benedict"), "{known:?}");
    ben.host.rejoin().await.unwrap();
    let record = ana.group_record(&id).await;
    ana.host
        .run(timeout(LIMIT, async move {
            loop {
                let slots = record.slots(Fetch::Network).await.unwrap_or_default();
                let back = slots.into_iter().any(|(_, slot)| {
                    matches!(slot.map(|s| s.value), Ok(SlotValue::Member(s)) if s.repo == ben_repo)
                });
                if back {
                    return;
                }
                sleep(Duration::from_millis(300)).await;
            }
        }))
        .await
        .unwrap();
    let ben = ben.restart().await;
    let members = ben.backend.members(&id, false).await.unwrap();
    assert!(
        members
            .iter()
            .any(|m| m.name.as_deref() == Some("Benedict"))
    );
    ana.stop().await;
    ben.stop().await;
    devnet.stop().await.unwrap();
}

/// Leaving is signed, takes everything away here, and is told to the others, at once or when there is a network again. A group that
/// was left stays away after a restart.
#[tokio::test]
async fn who_leaves_is_gone_and_keeps_nothing() {
    let devnet = devnet().await;
    let ana = Device::start(&devnet, "ana").await;
    let ben = Device::start(&devnet, "ben").await;
    let cleo = Device::start(&devnet, "cleo").await;
    let id = ana.create().await;
    ben.join(&ana, &id).await;
    cleo.join(&ana, &id).await;
    ben.put(&id, "of-ben.bin", noise(700_000, 1)).await;
    cleo.put(&id, "of-cleo.bin", noise(700_000, 2)).await;
    for device in [&ana, &ben, &cleo] {
        device.list_until(&id, |paths| paths.len() == 2).await;
        sync_until_complete(device, &id).await;
    }
    let other = ben.create().await;
    let kept = ben.put(&other, "kept.bin", noise(400_000, 3)).await;
    let tablet = Device::start(&devnet, "tablet").await;
    tablet.join_as(LinkKind::Device, &ben, &id).await;
    let repo = ben.repo(&id);
    until_tunnels(&ana, &id, &repo, 2).await;
    let mut on_tablet = tablet.backend.events();

    // With a network.
    let of = id.clone();
    let told_others = ben
        .on(move |b| async move { b.leave_group(&of, LIMIT).await.unwrap() })
        .await;
    assert!(told_others);
    ana.told(&id, &["ana", "cleo"]).await;
    ana.list_until(&id, |paths| paths == ["of-cleo.bin"]).await;
    // The slot says so to whoever comes, and none of this member's devices can be found, the other one included, which is told.
    let record = ana.group_record(&id).await;
    let left = ana.host.run(async move {
        let slots = answered(|| record.slots(Fetch::Network)).await;
        let left = |slot: SlotValue| matches!(slot, SlotValue::Left(leave) if leave.repo == repo);
        let left = slots
            .into_iter()
            .any(|(_, slot)| slot.is_ok_and(|slot| left(slot.value)));
        (left, repo)
    });
    let (left, repo) = left.await;
    assert!(left);
    until_tunnels(&ana, &id, &repo, 0).await;
    tablet
        .on(move |_| async move {
            loop {
                let event = on_tablet.next().await.unwrap();
                let EventKind::Group { event, .. } = event.kind else {
                    continue;
                };
                if matches!(event, GroupEvent::Left) {
                    return;
                }
            }
        })
        .await;
    let refused = tablet.try_put(&id, "late.txt", b"late".to_vec()).await;
    assert!(refused.is_err(), "nothing is written for one who left");
    tablet.stop().await;
    let of = id.clone();
    ben.on(move |b| async move {
        assert!(matches!(
            b.members(&of, false).await,
            Err(Error::GroupNotFound)
        ));
        let left = b.stored_bytes().await.unwrap();
        assert!((400_000..600_000).contains(&left), "{left} bytes are left");
    })
    .await;
    let ben = ben.restart().await;
    let groups = ben.backend.groups().await;
    assert_eq!(groups.len(), 1);
    assert_eq!(groups[0].id, other);
    assert_eq!(ben.get(&other, "kept.bin").await, noise(400_000, 3));
    assert!(kept.size == 400_000);

    // Whoever loses patience calls nothing off.
    let of = other.clone();
    let left = ben
        .on(move |b| async move {
            let mut events = b.events();
            let api = b.group(&of).unwrap().context().records.api().clone();
            let [records, ledger, state] = rows(&api).await;
            assert!(records > 0 && ledger > 0 && state > 1);
            let forgetting = b.forget_group(&of);
            assert!(timeout(Duration::ZERO, forgetting).await.is_err());
            loop {
                let event = events.next().await.unwrap();
                if matches!(&event.kind, EventKind::GroupLeft { group } if *group == of) {
                    break;
                }
            }
            b.collect_garbage().await.unwrap();
            // Neither keys nor what was remembered, nor the records that Veilid kept for it.
            assert_eq!(rows(&api).await, [0, 0, state - 1]);
            let records = api.debug("record list local".to_owned()).await.unwrap();
            assert!(
                records.contains("Records:\nSubkey Cache Count: 0\n"),
                "{records}"
            );
            b.stored_bytes().await.unwrap()
        })
        .await;
    assert!(left < 10_000, "{left} bytes are left");
    let ben = ben.restart().await;
    assert!(ben.backend.groups().await.is_empty());

    // Without one: what is here goes at once, and the others are told later.
    cleo.host.cut_off().await.unwrap();
    let of = id.clone();
    let (told_others, left) = cleo
        .on(move |b| async move {
            let told = b.leave_group(&of, Duration::from_secs(2)).await.unwrap();
            b.collect_garbage().await.unwrap();
            (told, b.stored_bytes().await.unwrap())
        })
        .await;
    assert!(!told_others);
    assert!(left < 10_000, "{left} bytes are left");
    let cleo = cleo.restart().await;
    assert!(cleo.backend.groups().await.is_empty());
    assert_eq!(cleo.backend.status().await.leaving, [id.to_string()]);
    cleo.host.rejoin().await.unwrap();
    ana.told(&id, &["ana"]).await;

    // Coming back is joining anew.
    cleo.on(|b| async move { b.wait_online(LIMIT).await.unwrap() })
        .await;
    let mut events = cleo.backend.events();
    let of = id.clone();
    let link = ana
        .on(move |b| async move { b.link(&of, LinkKind::Member).await.unwrap() })
        .await;
    cleo.on(move |b| async move {
        loop {
            match b.join_group(&link, "cleo again").await {
                Ok(_) => return,
                Err(error) if error.is_retryable() => {
                    // It is told now, or was a moment ago.
                    let _ = timeout(Duration::from_secs(1), events.next()).await;
                }
                Err(error) => panic!("{error:?}"),
            }
        }
    })
    .await;
    assert!(cleo.backend.status().await.leaving.is_empty());
    ana.told(&id, &["ana", "cleo again"]).await;
    for device in [ana, ben, cleo] {
        device.stop().await;
    }
    devnet.stop().await.unwrap();
}

/// Waits until so many devices of a member can be found on the network.
async fn until_tunnels(device: &Device, id: &GroupId, repo: &PublicKey, count: usize) {
    let group = device.backend.group(id).unwrap();
    let (records, access, repo) = (
        group.context().records.clone(),
        device.access(id),
        repo.clone(),
    );
    device
        .on(move |_| async move {
            let record = RepoRecord::attach(&records, &access, repo, None)
                .await
                .unwrap();
            while answered(|| record.tunnels(Fetch::Network)).await.len() != count {
                sleep(Duration::from_millis(300)).await;
            }
        })
        .await;
}

/// How many rows are in each of the tables.
async fn rows(api: &VeilidAPI) -> [usize; 3] {
    let mut rows = [0; 3];
    for (rows, name) in rows.iter_mut().zip(TABLES) {
        let table = api.open_table_db(name, 1).await.unwrap();
        *rows = table.get_keys(0).await.unwrap().len();
    }
    rows
}

/// A phone is lost, and the group moves to new keys without it: who stays is told and follows, files come along, and with all that is on
/// the lost phone nobody gets in.
#[tokio::test]
async fn a_group_moves_to_new_keys_without_a_lost_device() {
    let devnet = devnet().await;
    let ana = Device::start(&devnet, "ana").await;
    let ben = Device::start(&devnet, "ben").await;
    let lost = Device::start(&devnet, "lost").await;
    let old = ana.create().await;
    ben.join(&ana, &old).await;
    lost.join(&ana, &old).await;
    let film = noise(900_000, 1);
    ana.put(&old, "film.bin", film.clone()).await;
    ben.put(&old, "of-ben.txt", b"of ben".to_vec()).await;
    for device in [&ana, &ben, &lost] {
        device.list_until(&old, |paths| paths.len() == 2).await;
        device.told(&old, &["ana", "ben", "lost"]).await;
    }
    // Meanwhile Ben gives the group another name, which stands in the same value as the word that it moved.
    ben.host.cut_off().await.unwrap();
    let of = old.clone();
    ben.on(move |b| async move { b.rename_group(&of, "Of Ben").await.unwrap() })
        .await;
    let (of, stay) = (old.clone(), vec![ben.repo(&old)]);
    let new = ana
        .on(move |b| async move {
            let nobody = b.move_group(&of, &[of.public_key().clone()]).await;
            assert_eq!(nobody.unwrap_err().kind(), ErrorKind::NotFound);
            assert_eq!(b.groups().await.len(), 1, "nothing was made");
            let new = b.move_group(&of, &stay).await.unwrap().id;
            let copied = b.copy_files(&of, &new, |_, _| {}).await.unwrap();
            assert_eq!((copied.copied, copied.there, copied.missing), (1, 0, 0));
            let again = b.copy_files(&of, &new, |_, _| {}).await.unwrap();
            assert_eq!((again.copied, again.there, again.missing), (0, 1, 0));
            b.flush(&of, LIMIT).await.unwrap();
            b.flush(&new, LIMIT).await.unwrap();
            new
        })
        .await;

    ben.host.rejoin().await.unwrap();
    ben.flush(&old).await;
    let (of, to, by) = (old.clone(), new.clone(), ana.repo(&old));
    let record = ana.group_record(&old).await;
    ana.host
        .run(async move {
            let metadata = answered(|| record.metadata(Fetch::Network)).await.unwrap();
            assert_eq!(metadata.value.name, "Of Ben");
            assert!(metadata.value.moved_by.is_some());
        })
        .await;
    ben.on(move |b| async move {
        let moved = loop {
            if let Some(moved) = b.moved(&of).await.unwrap() {
                break moved;
            }
            sleep(Duration::from_millis(200)).await;
        };
        assert_eq!((moved.by, &moved.to), (by, &to));
        let joined = b.follow_move(&of).await.unwrap();
        assert_eq!(joined.id, to);
        assert_eq!(joined.name.as_deref(), Some("Archive"));
        assert!(b.moved(&of).await.unwrap().is_none(), "it is there by now");
        let copied = b.copy_files(&of, &to, |_, _| {}).await.unwrap();
        assert_eq!(copied.copied, 1);
        b.flush(&to, LIMIT).await.unwrap();
    })
    .await;
    for device in [&ana, &ben] {
        device
            .list_until(&new, |paths| paths == ["film.bin", "of-ben.txt"])
            .await;
        device.told(&new, &["ana", "ben"]).await;
    }
    assert!(ben.get(&new, "film.bin").await == film);

    // Whoever has the lost phone sees that the group moved, and not where to.
    let record = lost.group_record(&old).await;
    let (of, stranger) = (old.clone(), new.public_key().clone());
    let group = lost.backend.group(&old).unwrap();
    let (mover, owner) = (ana.repo(&old), ana.access(&new));
    lost.on(move |b| async move {
        loop {
            let metadata = answered(|| record.metadata(Fetch::Network)).await.unwrap();
            if metadata.value.moved_by.is_some() {
                break;
            }
            sleep(Duration::from_millis(200)).await;
        }
        assert!(b.moved(&of).await.unwrap().is_none());
        let records = &group.context().records;
        // None of the notices is for this one, and none has the new group's secret in it for everybody.
        let repo = RepoRecord::attach(records, group.access(), mover, None)
            .await
            .unwrap();
        let metadata = answered(|| repo.metadata(Fetch::Network)).await.unwrap();
        let secret = owner.owner().unwrap().secret();
        let secret: &[u8] = secret.ref_value();
        let me = MoveNotice::name_of(group.own_repo().unwrap().public_key());
        assert!(!metadata.value.moved.is_empty());
        for notice in &metadata.value.moved {
            assert_ne!(notice.to, me);
            assert!(notice.sealed.len() > secret.len());
            let mut parts = notice.sealed.windows(secret.len());
            assert!(parts.all(|part| part != secret));
        }
        // Even with the new group's public key, nothing of it opens.
        let access = match group.access().to_reader().unwrap() {
            GroupAccess::Reader { secret, .. } => GroupAccess::Reader {
                public: stranger,
                secret,
            },
            other => other,
        };
        let record = GroupRecord::attach(records, access).await.unwrap();
        assert!(record.metadata(Fetch::Network).await.is_err());
        let slots = answered(|| record.slots(Fetch::Network)).await;
        assert!(slots.iter().all(|(_, slot)| slot.is_err()));
    })
    .await;
    for device in [ana, ben, lost] {
        device.stop().await;
    }
    devnet.stop().await.unwrap();
}
