//! Fetching from several members, what is wanted over restarts, whole archives, and who is served, on real networks.
#![cfg(target_os = "linux")]
#![recursion_limit = "256"]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use dht_records::Fetch;
use integration_tests::peers::{self, Device, LIMIT, devnet, noise};
use integration_tests::raw::{self, Raw};
use iroh_blobs::protocol::GetRequest;
use save_backend::{EventKind, Fault, ProgressState};
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

/// Two members have a file and one of them goes without a word while it is being fetched. Then all go, what was asked for meanwhile
/// stays wanted over a restart, and comes by itself when one of them is back.
#[tokio::test]
async fn holders_leave_and_come_back() {
    let devnet = devnet().await;
    let ana = Device::start(&devnet, "ana").await;
    let ben = Device::start(&devnet, "ben").await;
    let cleo = Device::start(&devnet, "cleo").await;
    let id = ana.create().await;
    ben.join(&ana, &id).await;
    cleo.join(&ana, &id).await;
    let film = noise(24_000_000, 1);
    ana.put(&id, "film.bin", film.clone()).await;
    ana.put(&id, "later.bin", noise(300_000, 2)).await;
    ben.list_until(&id, |paths| paths.len() == 2).await;
    let complete = ben
        .on({
            let id = id.clone();
            move |b| async move {
                let synced = b.sync_all(&id, |_| {}).await.unwrap();
                synced.iter().all(save_backend::RepoSync::is_complete)
            }
        })
        .await;
    assert!(complete);
    cleo.list_until(&id, |paths| paths.len() == 2).await;
    cleo.members(&id, 3).await;

    // A rate at which the fetch takes some seconds, so that there is a middle.
    for device in [&ana, &ben] {
        device.host.limit_rate(2_000_000).await.unwrap();
    }
    let done = Arc::new(Mutex::new((0, Vec::new())));
    let heard = done.clone();
    let begin = Instant::now();
    let (read, ()) = tokio::join!(
        cleo.get_with(&id, "film.bin", move |progress| {
            let mut heard = heard.lock().unwrap();
            heard.0 = progress.bytes_done;
            if heard.1.last() != Some(&progress.state) {
                heard.1.push(progress.state);
            }
        }),
        async {
            while done.lock().unwrap().0 < 6_000_000 {
                sleep(Duration::from_millis(20)).await;
            }
            ana.host.cut_off().await.unwrap();
        }
    );
    assert!(read.unwrap() == film, "the bytes differ");
    let took = begin.elapsed();
    let received = cleo.backend.status().await.groups[0].received;
    eprintln!("24 MB from two holders of 2 MB/s, one of whom left: {took:?}, {received} bytes");
    assert!(took < Duration::from_secs(45), "{took:?}");
    assert!(received < 27_000_000, "{received}");
    let states = std::mem::take(&mut done.lock().unwrap().1);
    assert_eq!(states.last(), Some(&ProgressState::Stored));
    assert!(states.contains(&ProgressState::Fetching));

    ben.host.cut_off().await.unwrap();
    let ana_repo = ana.repo(&id);
    let wanted = cleo
        .on({
            let (id, repo) = (id.clone(), ana_repo.clone());
            move |b| async move {
                let path = peers::path("later.bin");
                b.want(&id, &repo, &path).await.unwrap();
                b.wanted(&id).unwrap()
            }
        })
        .await;
    assert_eq!(wanted.len(), 1);
    assert_eq!(wanted[0].repo, ana_repo);
    let cleo = cleo.restart().await;
    assert_eq!(
        cleo.backend.wanted(&id).unwrap().len(),
        1,
        "a restart must not forget it"
    );
    let mut events = cleo.backend.events();
    ben.host.unlimit_rate().await.unwrap();
    ben.host.rejoin().await.unwrap();
    let begin = Instant::now();
    let stored = async {
        while let Some(event) = events.next().await {
            if let EventKind::Group {
                event: group::GroupEvent::WantedStored { repo, path },
                ..
            } = event.kind
            {
                return (repo, path);
            }
        }
        panic!("no more events");
    };
    let (repo, path) = timeout(LIMIT, stored).await.unwrap();
    eprintln!(
        "what was wanted came {:?} after a holder was back",
        begin.elapsed()
    );
    assert_eq!((repo, path.as_str()), (ana_repo, "later.bin"));
    assert!(cleo.backend.wanted(&id).unwrap().is_empty());
    assert!(cleo.get(&id, "later.bin").await == noise(300_000, 2));
    for device in [ana, ben, cleo] {
        device.stop().await;
    }
    devnet.stop().await.unwrap();
}

/// The route of the only holder dies in the middle. The fetcher finds the new one in the holder's repo record and goes on: what came is not
/// fetched twice. What the progress tells comes in its order.
#[tokio::test]
async fn a_fetch_goes_on_over_another_route() {
    let devnet = devnet().await;
    let ana = Device::start(&devnet, "ana").await;
    let ben = Device::start(&devnet, "ben").await;
    let id = ana.create().await;
    ben.join(&ana, &id).await;
    let film = noise(16_000_000, 1);
    ana.put(&id, "film.bin", film.clone()).await;
    ben.list_until(&id, |paths| paths.len() == 1).await;
    // A session that is there, and whose route dies under it.
    ben.members(&id, 2).await;
    ana.host.limit_rate(2_000_000).await.unwrap();
    let done = Arc::new(Mutex::new((0, Vec::new())));
    let heard = done.clone();
    let begin = Instant::now();
    let (read, before) = tokio::join!(
        ben.get_with(&id, "film.bin", move |progress| {
            let mut heard = heard.lock().unwrap();
            heard.0 = progress.bytes_done;
            if heard.1.last() != Some(&progress.state) {
                heard.1.push(progress.state);
            }
        }),
        async {
            while done.lock().unwrap().0 < 5_000_000 {
                sleep(Duration::from_millis(20)).await;
            }
            let route = ana.route(&id).await;
            ana.kill_route(&id, route.clone()).await;
            route
        }
    );
    assert!(read.unwrap() == film, "the bytes differ");
    let took = begin.elapsed();
    let received = ben.backend.status().await.groups[0].received;
    eprintln!("16 MB at 2 MB/s, over two routes: {took:?}, {received} bytes");
    assert!(took < Duration::from_secs(45), "{took:?}");
    // The list and what the protocol adds are in it.
    assert!(received < 16_300_000, "{received}");
    assert!(ana.route(&id).await != before, "a new route is published");
    let mut states = std::mem::take(&mut done.lock().unwrap().1);
    // Only where the holder was not heard of for a while is it asked first whether it has it.
    states.retain(|state| *state != ProgressState::Finding);
    assert_eq!(
        states,
        [
            ProgressState::Queued,
            ProgressState::Fetching,
            ProgressState::Verifying,
            ProgressState::Stored,
        ]
    );
    for device in [ana, ben] {
        device.stop().await;
    }
    devnet.stop().await.unwrap();
}

/// Who has a part of a file gives that part, while nobody has the rest. The rest comes when somebody does.
#[tokio::test]
async fn a_part_comes_from_whoever_has_it() {
    const PART: u64 = 5_000_000;
    let devnet = devnet().await;
    let ana = Device::start(&devnet, "ana").await;
    let ben = Device::start(&devnet, "ben").await;
    let cleo = Device::start(&devnet, "cleo").await;
    let id = ana.create().await;
    ben.join(&ana, &id).await;
    cleo.join(&ana, &id).await;
    let film = noise(16_000_000, 9);
    ana.put(&id, "film.bin", film.clone()).await;
    for device in [&ben, &cleo] {
        device.list_until(&id, |paths| paths.len() == 1).await;
        device.members(&id, 3).await;
    }
    ana.host.limit_rate(2_000_000).await.unwrap();
    let seen = |done: &Arc<AtomicU64>| {
        let done = done.clone();
        move |progress: save_backend::Progress| done.store(progress.bytes_done, Relaxed)
    };
    let until_part = async |done: &AtomicU64| {
        while done.load(Relaxed) < PART {
            sleep(Duration::from_millis(20)).await;
        }
    };

    let done = Arc::new(AtomicU64::new(0));
    tokio::select! {
        read = cleo.get_with(&id, "film.bin", seen(&done)) => panic!("too early: {:?}", read.err()),
        () = until_part(&done) => ana.host.cut_off().await.unwrap(),
    }
    let done = Arc::new(AtomicU64::new(0));
    let begin = Instant::now();
    let reading = async {
        loop {
            match ben.get_with(&id, "film.bin", seen(&done)).await {
                Ok(read) => return read,
                Err(error) => assert!(error.is_retryable(), "{error:?}"),
            }
            sleep(Duration::from_millis(300)).await;
        }
    };
    let coming_back = async {
        until_part(&done).await;
        eprintln!("a part of 5 MB came after {:?}", begin.elapsed());
        ana.host.rejoin().await.unwrap();
    };
    let (read, ()) = timeout(LIMIT, async { tokio::join!(reading, coming_back) })
        .await
        .unwrap();
    let took = begin.elapsed();
    let received = ben.backend.status().await.groups[0].received;
    eprintln!("and all of it after {took:?}, {received} bytes");
    assert!(read == film, "the bytes differ");
    assert!(took < Duration::from_secs(90), "{took:?}");
    // With the list, and what two gave at the same time.
    assert!(received < 16_500_000, "{received}");
    for device in [ana, ben, cleo] {
        device.stop().await;
    }
    devnet.stop().await.unwrap();
}

/// 300 files come as one, in few requests; doing it again needs nobody. Whoever stops waiting stops it, and nothing that came comes
/// twice. One member's files can be had alone.
#[tokio::test]
async fn a_whole_archive_comes_and_the_second_time_nobody_is_asked() {
    let devnet = devnet().await;
    let ana = Device::start(&devnet, "ana").await;
    let ben = Device::start(&devnet, "ben").await;
    let id = ana.create().await;
    ben.join(&ana, &id).await;
    let cleo = Device::start(&devnet, "cleo").await;
    cleo.join(&ana, &id).await;
    let files: Vec<_> = (0..300_u32)
        .map(|n| (format!("notes/{n}.bin"), peers::noise_of(4_096, n)))
        .collect();
    ana.put_many(&id, files).await;
    ben.members(&id, 3).await;
    ben.list_until(&id, |paths| paths.len() == 300).await;
    let received = async || ben.backend.status().await.groups[0].received;
    let ana_repo = ana.repo(&id);

    ana.host.limit_rate(200_000).await.unwrap();
    let (of, repo) = (id.clone(), ana_repo.clone());
    ben.on(move |b| async move {
        let some = Arc::new(Notify::new());
        let told = some.clone();
        let progress = move |progress: save_backend::SyncProgress| {
            if progress.repo == repo && progress.files_done >= 5 {
                told.notify_one();
            }
        };
        tokio::select! {
            synced = b.sync_all(&of, progress) => panic!("too early: {synced:?}"),
            () = some.notified() => {}
        }
        assert!(b.wanted(&of).unwrap().is_empty());
    })
    .await;
    // What was asked for is given up, and nothing more is.
    let before = received().await;
    sleep(Duration::from_secs(3)).await;
    let after = received().await;
    assert!(after < before + 20_000, "{before} {after}");
    ana.host.unlimit_rate().await.unwrap();

    cleo.put(&id, "of-cleo.txt", b"of Cleo".to_vec()).await;
    ben.list_until(&id, |paths| paths.len() == 301).await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let begin = Instant::now();
    let of_ana = ben
        .on({
            let (id, seen, repo) = (id.clone(), seen.clone(), ana_repo.clone());
            move |b| async move {
                b.sync_repo(&id, &repo, move |progress| {
                    seen.lock().unwrap().push(progress);
                })
                .await
                .unwrap()
            }
        })
        .await;
    let in_all = received().await;
    eprintln!(
        "300 files of 4 KiB: {:?}, {in_all} bytes in all",
        begin.elapsed()
    );
    // The files as they travel, the lists, and what was on its way when it was given up.
    assert!(in_all < 300 * 4_300 + 250_000, "{in_all}");
    assert!(of_ana.is_complete(), "{of_ana:?}");
    let of = id.clone();
    let here = ben
        .on(move |b| async move {
            let files = b.list(&of, false).await.unwrap();
            files.iter().filter(|file| file.here).count()
        })
        .await;
    assert_eq!(here, 300, "not the one of Cleo");
    assert_eq!(of_ana.progress.files_done, 300);
    assert_eq!(of_ana.progress.bytes_done, of_ana.progress.bytes_total);
    let seen: Vec<_> = std::mem::take(&mut *seen.lock().unwrap())
        .into_iter()
        .filter(|progress| progress.repo == ana_repo)
        .collect();
    assert!(
        seen.windows(2)
            .all(|pair| pair[0].files_done <= pair[1].files_done)
    );
    assert!(ben.backend.wanted(&id).unwrap().is_empty());

    let again = || async {
        let id = id.clone();
        let begin = Instant::now();
        let again = ben
            .on(move |b| async move { b.sync_all(&id, |_| {}).await.unwrap() })
            .await;
        assert!(
            again.iter().all(save_backend::RepoSync::is_complete),
            "{again:?}"
        );
        begin.elapsed()
    };
    again().await;
    assert_eq!(ben.get(&id, "of-cleo.txt").await, b"of Cleo");
    let received_all = received().await;
    // No call for a file that is here, of which there are 300. The session itself may make some meanwhile.
    let group = ben.backend.group(&id).unwrap();
    let calls = || group.context().tunnels.stats().calls_made;
    let before = calls();
    let took = again().await;
    eprintln!("again: {took:?}, {} calls", calls() - before);
    assert!(calls() - before < 50, "{} calls", calls() - before);

    // Nobody is there to be asked any more, and nothing waits for one who could be.
    ana.stop().await;
    cleo.stop().await;
    eprintln!("and alone: {:?}", again().await);
    assert_eq!(received().await, received_all);
    assert!(ben.get(&id, "notes/299.bin").await == peers::noise_of(4_096, 299));
    ben.stop().await;
    devnet.stop().await.unwrap();
}

/// A member who sends a wrong byte costs one chunk group, is left alone, and the file comes from whoever is honest.
#[tokio::test]
async fn a_liar_costs_one_chunk_group() {
    let devnet = devnet().await;
    let ana = Device::start(&devnet, "ana").await;
    let cleo = Device::start(&devnet, "cleo").await;
    let id = ana.create().await;
    cleo.join(&ana, &id).await;
    let film = noise(8_000_000, 3);
    let entry = ana.put(&id, "film.bin", film.clone()).await;
    let liar = Raw::start(&devnet, "liar", ana.access(&id)).await;
    let sealed = liar.download(&ana.repo(&id), entry.blob).await;
    let repo = liar.pose_as_member(sealed, entry.blob).await;
    cleo.members(&id, 3).await;
    cleo.list_until(&id, |paths| paths.len() == 1).await;
    // The honest one is slow enough that the liar gets his turn.
    ana.host.limit_rate(1_500_000).await.unwrap();
    let begin = Instant::now();
    assert!(cleo.get(&id, "film.bin").await == film, "the bytes differ");
    let took = begin.elapsed();
    let ignored = cleo
        .on({
            let id = id.clone();
            move |b| async move { b.ignored(&id).await.unwrap() }
        })
        .await;
    let (_, left) = ignored
        .iter()
        .find(|(of, _)| *of == repo)
        .expect("the liar is left alone");
    assert_eq!(left.fault, Fault::Lied);
    assert!(ignored.iter().all(|(of, _)| *of == repo), "{ignored:?}");
    let received = cleo.backend.status().await.groups[0].received;
    eprintln!(
        "8 MB at 1.5 MB/s with a liar: {took:?}, {received} bytes came, {} wrong answers",
        liar.lies()
    );
    assert!(took < Duration::from_secs(45), "{took:?}");
    assert!(liar.lies() > 0);
    assert!(received < 8_000_000 * 103 / 100, "{received}");
    liar.stop().await;
    ana.stop().await;
    cleo.stop().await;
    devnet.stop().await.unwrap();
}

/// A blob that lies in the store for another reason than that it was obtained in this group is not told of, although a member of the
/// group names it in their collection.
#[tokio::test]
async fn a_blob_that_is_here_for_another_group_is_not_told_of() {
    let devnet = devnet().await;
    let ana = Device::start(&devnet, "ana").await;
    let id = ana.create().await;
    let named = ana.put(&id, "named.bin", noise(200_000, 4)).await;
    let obtained = ana.put(&id, "obtained.bin", noise(200_000, 5)).await;
    let raw = Raw::start(&devnet, "ben", ana.access(&id)).await;
    let bytes = raw.download(&ana.repo(&id), named.blob).await;
    // As if another group of this device had brought it here.
    let group = raw.join_group("Ben").await;
    raw.import(named.blob, bytes).await;
    raw.read(&group, &ana.repo(&id), "obtained.bin").await;
    assert!(raw.has(named.blob).await && raw.has(obtained.blob).await);

    let prober = Raw::start(&devnet, "prober", ana.access(&id)).await;
    let session = prober.session(group.own_repo().unwrap().public_key()).await;
    let (have_obtained, have_named) = prober
        .host
        .run(async move {
            let have = (
                raw::have(&session, obtained.blob).await,
                raw::have(&session, named.blob).await,
            );
            assert!(raw::get(&session, &GetRequest::blob(obtained.blob)).await > 200_000);
            assert_eq!(raw::get(&session, &GetRequest::blob(named.blob)).await, 0);
            have
        })
        .await;
    assert_eq!(have_obtained, 2, "what was obtained here is served");
    assert_eq!(have_named, 0, "what was only named is not told of");
    raw.stop_group(group).await;
    raw.stop().await;
    prober.stop().await;
    ana.stop().await;
    devnet.stop().await.unwrap();
}

/// What a member names as a part of their list is asked for, also where it lies in the store for another reason: if it were not, they would
/// see that it does.
#[tokio::test]
async fn a_part_of_a_list_that_is_here_for_another_group_is_asked_for() {
    let devnet = devnet().await;
    let ana = Device::start(&devnet, "ana").await;
    let id = ana.create().await;
    let ben = Raw::start(&devnet, "ben", ana.access(&id)).await;
    let group = ben.join_group("Ben").await;
    let mallory = Raw::start(&devnet, "mallory", ana.access(&id)).await;
    let foreign = raw::sealed(&noise(20_000, 8)).await;
    ben.import(foreign.0, foreign.1).await;
    let (repo, asked) = mallory.pose_with_a_list_that_names(foreign.0).await;
    let of = group.clone();
    let failed = ben
        .host
        .run(timeout(LIMIT, async move {
            loop {
                let members = of.members(Fetch::Network).await.unwrap_or_default();
                if members.iter().any(|member| member.repo == repo) {
                    return of.sync_collection(&repo).await;
                }
                sleep(Duration::from_millis(300)).await;
            }
        }))
        .await
        .unwrap();
    assert!(failed.is_err(), "nobody gives what is named");
    assert!(asked.lock().unwrap().contains(&foreign.0));
    ben.stop_group(group).await;
    ben.stop().await;
    mallory.stop().await;
    ana.stop().await;
    devnet.stop().await.unwrap();
}

/// `save run` is killed in the middle of a fetch. Started again, it goes on by itself, and fetches nothing again that was verified.
#[tokio::test]
async fn a_killed_fetch_goes_on_where_it_was() {
    use integration_tests::device::Device as Process;
    const SIZE: u64 = 32_000_000;
    let devnet = devnet().await;
    let mut ana = Process::new("ana", devnet.host("ana").await.unwrap()).unwrap();
    let mut ben = Process::new("ben", devnet.host("ben").await.unwrap()).unwrap();
    for device in [&mut ana, &mut ben] {
        device.start(LIMIT).await.unwrap();
        device.online(LIMIT).await.unwrap();
    }
    ana.save(&["group", "create", "Archive", "--as", "Ana"])
        .await
        .unwrap();
    let link = ana.save(&["group", "link"]).await.unwrap();
    let link = link[0]["link"].as_str().unwrap().to_owned();
    ben.save_with(&["group", "join", "-", "--as", "Ben"], Some(&link))
        .await
        .unwrap();
    let source = ana.host().directory().join("film.bin");
    let film = noise(SIZE as usize, 6);
    std::fs::write(&source, &film).unwrap();
    ana.save(&["put", source.to_str().unwrap()]).await.unwrap();
    ben.until(&["ls", "--refresh"], "the list", LIMIT, |lines| {
        lines.len() == 1
    })
    .await
    .unwrap();
    ana.host().limit_rate(4_000_000).await.unwrap();

    let received = async |device: &Process| {
        let status = device.save(&["status"]).await.unwrap();
        status[0]["backend"]["groups"][0]["received"]
            .as_u64()
            .unwrap()
    };
    let target = ben.host().directory().join("out.bin");
    let mut get = ben.command();
    get.args(["get", "film.bin", "-o", target.to_str().unwrap()]);
    let mut get = get.spawn().unwrap();
    let mut before = 0;
    while before < SIZE / 2 {
        sleep(Duration::from_millis(100)).await;
        before = received(&ben).await;
    }
    ben.kill().await.unwrap();
    get.wait().await.unwrap();

    ben.start(LIMIT).await.unwrap();
    ben.online(LIMIT).await.unwrap();
    // Nobody asks for it again.
    ben.until(&["wanted"], "nothing being wanted", LIMIT, |lines| {
        lines.is_empty()
    })
    .await
    .unwrap();
    let after = received(&ben).await;
    ben.save(&[
        "--offline",
        "get",
        "film.bin",
        "-o",
        target.to_str().unwrap(),
    ])
    .await
    .unwrap();
    assert!(std::fs::read(&target).unwrap() == film, "the bytes differ");
    eprintln!("killed after {before} bytes, {after} bytes after that, of {SIZE}");
    assert!(before + after < SIZE + SIZE / 15, "{before} + {after}");
    let all: Vec<_> = ben.save(&["sync"]).await.unwrap();
    assert!(all.iter().all(|line| line["complete"] == true), "{all:?}");
    ben.stop(LIMIT).await.unwrap();
    ana.stop(LIMIT).await.unwrap();
    devnet.stop().await.unwrap();
}
