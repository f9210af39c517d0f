//! Tunnels between two hosts of a devnet: streams in both directions, a route that dies, strangers, ends.
// Veilid's futures are nested deeper than the default allows to look.
#![recursion_limit = "256"]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use devnet::{Devnet, Host, Node, NodeOptions};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::watch;
use tunnels::{Error, Incoming, Limits, Listener, Psk, RouteSource, Session, Tunnels};
use veilid_core::{CRYPTO_KIND_VLD0, DHTSchema, Target, VeilidAPI, VeilidAPIError, VeilidUpdate};

const READY: Duration = Duration::from_secs(90);
const MIB: usize = 1 << 20;
/// Streams at once: nearly as many as one session may have.
const MANY: usize = 1_000;
/// Reads of a record, of which the usual time and the longest are looked at.
const READS: usize = 9;
/// Junk calls at once.
const JUNK: usize = 100;
/// So long nothing comes before a way counts as cut. Our own timer for lost calls is shorter.
const STILL: Duration = Duration::from_secs(3);

/// Begins a call that is answered without tunnels.
const RAW: &[u8] = b"raw call without a tunnel";
const RAW_REPLY: usize = 32_000;

/// Answers with the BLAKE3 hash of what it reads.
const HASH: u16 = 1;
/// Reads a length, answers with as many bytes.
const SOURCE: u16 = 2;
/// Answers with what it reads.
const ECHO: u16 = 3;
/// Reads one byte, then stops with code 5.
const STOP: u16 = 4;
/// Waits for the other side to stop, and writes until it does.
const ENDLESS: u16 = 5;
/// Counts up, eight bytes a number, until the other side stops.
const NUMBERS: u16 = 6;

struct Member {
    node: Node,
    host: Host,
    tunnels: Tunnels,
}

impl Member {
    async fn start(devnet: &Devnet, name: &str) -> Member {
        let host = devnet.host(name).await.unwrap();
        let tunnels: Arc<OnceLock<Tunnels>> = Arc::default();
        let taken = tunnels.clone();
        let mut options = NodeOptions::default();
        let replies: Arc<OnceLock<VeilidAPI>> = Arc::default();
        let (api_slot, handle) = (replies.clone(), host.handle().clone());
        options.on_update = Some(Arc::new(move |update: VeilidUpdate| {
            // For comparison: calls that are answered without tunnels.
            if let VeilidUpdate::AppCall(call) = &update
                && call.message().starts_with(RAW)
                && let Some(api) = api_slot.get().cloned()
            {
                let id = call.id();
                handle.spawn(async move { api.app_call_reply(id, vec![1; RAW_REPLY]).await });
            } else if let Some(tunnels) = taken.get() {
                tunnels.handle_update(&update);
            }
        }));
        let node = host
            .start_node_with(&host.directory().join("node"), options)
            .await
            .unwrap();
        let api = node.api().clone();
        replies.set(api.clone()).ok().unwrap();
        let started = host
            .run(async move { Tunnels::new(api, Limits::default()) })
            .await;
        tunnels.set(started.clone()).ok().unwrap();
        node.ready(READY).await.unwrap();
        Member {
            node,
            host,
            tunnels: started,
        }
    }
}

/// What a repo record is in the real backend.
struct Published(watch::Receiver<Option<Bytes>>);

#[async_trait]
impl RouteSource for Published {
    async fn route(&self, _failed: Option<&[u8]>) -> tunnels::Result<Vec<u8>> {
        let route = self.0.borrow().clone();
        route
            .map(|blob| blob.to_vec())
            .ok_or_else(|| Error::RouteSource("none published".into()))
    }
}

fn psk(n: u8) -> Psk {
    Psk::from_bytes([n; 32])
}

/// Bytes that look random, the same for the same seed.
fn bytes(seed: u64, len: usize) -> Bytes {
    let mut reader = blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof();
    let mut bytes = vec![0; len];
    reader.fill(&mut bytes);
    bytes.into()
}

async fn serve(
    listener: Arc<Listener>,
    results: tokio::sync::mpsc::UnboundedSender<(u16, Result<(), Error>)>,
) {
    while let Some(incoming) = listener.accept().await {
        let results = results.clone();
        tokio::spawn(async move {
            let protocol = incoming.protocol;
            let result = answer(incoming).await;
            let _ = results.send((protocol, result));
        });
    }
}

async fn answer(
    Incoming {
        protocol,
        mut send,
        mut recv,
        ..
    }: Incoming,
) -> Result<(), Error> {
    match protocol {
        HASH => {
            let mut hasher = blake3::Hasher::new();
            loop {
                let bytes = recv.read(MIB).await?;
                if bytes.is_empty() {
                    break;
                }
                hasher.update(&bytes);
            }
            send.write_all(hasher.finalize().as_bytes()).await
        }
        SOURCE => {
            let len = u64::from_be_bytes(recv.read_exact(8).await?[..].try_into().unwrap());
            let data = bytes(len, usize::try_from(len).unwrap());
            for chunk in data.chunks(16 * 1024) {
                send.write_all(chunk).await?;
            }
            send.finish()?;
            assert_eq!(send.stopped().await?, None);
            Ok(())
        }
        ECHO => loop {
            let bytes = recv.read(MIB).await?;
            if bytes.is_empty() {
                return Ok(());
            }
            send.write_bytes(bytes).await?;
        },
        STOP => {
            recv.read_exact(1).await?;
            recv.stop(5);
            Ok(())
        }
        ENDLESS => loop {
            send.write_all(&[7; 10_000]).await?;
        },
        NUMBERS => {
            for first in (0_u64..).step_by(1_000) {
                let numbers = (first..first + 1_000).flat_map(u64::to_be_bytes);
                send.write_all(&numbers.collect::<Vec<_>>()).await?;
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

async fn download(session: &Session, len: usize) -> Bytes {
    let (mut send, mut recv) = session.open(SOURCE).await.unwrap();
    send.write_all(&(len as u64).to_be_bytes()).await.unwrap();
    drop(send);
    recv.read_to_end(len).await.unwrap()
}

fn goodput(len: usize, took: Duration) -> String {
    format!("{:.2} MB/s", len as f64 / 1e6 / took.as_secs_f64())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_over_a_real_network() {
    devnet::trace_to_stderr();
    let devnet = Devnet::start(devnet::MIN_NODES).await.unwrap();
    let server = Member::start(&devnet, "server").await;
    let client = Member::start(&devnet, "client").await;

    let begin = Instant::now();
    let listener = Arc::new(server.tunnels.listen(psk(1)).await.unwrap());
    eprintln!("listening after {:?}", begin.elapsed());
    let (results, mut outcomes) = tokio::sync::mpsc::unbounded_channel();
    let serving = tokio::spawn(serve(listener.clone(), results));
    let session = client
        .tunnels
        .connect(psk(1), Arc::new(Published(listener.route())));

    // The first ping builds the client's own routes.
    let first = session.ping().await.unwrap();
    let second = session.ping().await.unwrap();
    eprintln!("ping {first:?}, then {second:?}");

    let begin = Instant::now();
    assert_eq!(download(&session, 1_000).await, bytes(1_000, 1_000));
    eprintln!("small request answered after {:?}", begin.elapsed());
    assert_eq!(outcomes.recv().await, Some((SOURCE, Ok(()))));

    for round in 0..2 {
        let len = 16 * MIB;
        eprintln!(
            "round {round}: 16 MiB in bare replies: {}",
            raw_goodput(&client, &listener, len).await
        );
        let begin = Instant::now();
        let data = download(&session, len).await;
        eprintln!(
            "round {round}: 16 MiB from the server: {}",
            goodput(len, begin.elapsed())
        );
        assert!(data == bytes(len as u64, len), "download differs");
        assert_eq!(outcomes.recv().await, Some((SOURCE, Ok(()))));

        let data = bytes(3, len);
        let begin = Instant::now();
        let (mut send, mut recv) = session.open(HASH).await.unwrap();
        send.write_bytes(data.clone()).await.unwrap();
        drop(send);
        let hash = recv.read_to_end(32).await.unwrap();
        eprintln!(
            "round {round}: 16 MiB to the server: {}",
            goodput(len, begin.elapsed())
        );
        assert_eq!(hash[..], blake3::hash(&data).as_bytes()[..]);
        assert_eq!(outcomes.recv().await, Some((HASH, Ok(()))));
    }

    many_streams(&session).await;
    while outcomes.try_recv().is_ok() {}
    both_sides_at_once(&server, &client, &session).await;
    assert_eq!(outcomes.recv().await, Some((SOURCE, Ok(()))));
    strangers_learn_nothing(&client, &listener).await;
    junk_delays_nobody(&server, &client, &listener).await;
    a_dead_route_is_replaced(&server, &listener, &session).await;
    for _ in 0..2 {
        assert!(matches!(
            outcomes.recv().await,
            Some((SOURCE | HASH, Ok(())))
        ));
    }

    // Whoever stops reading tells the writer, on both sides.
    let (mut send, _recv) = session.open(STOP).await.unwrap();
    let stopped = loop {
        if let Err(error) = send.write_all(&[1; 10_000]).await {
            break error;
        }
    };
    assert_eq!(stopped, Error::Stopped { code: 5 });
    assert_eq!(outcomes.recv().await, Some((STOP, Ok(()))));
    let (_send, mut recv) = session.open(ENDLESS).await.unwrap();
    recv.read_exact(100_000).await.unwrap();
    drop(recv);
    assert_eq!(
        outcomes.recv().await,
        Some((ENDLESS, Err(Error::Stopped { code: 0 })))
    );

    // A clean end: both sides see it at once.
    let (_send, mut recv) = session.open(ENDLESS).await.unwrap();
    recv.read_exact(100_000).await.unwrap();
    let begin = Instant::now();
    session.close();
    assert_eq!(recv.read_exact(100 * MIB).await, Err(Error::Closed));
    assert_eq!(
        outcomes.recv().await,
        Some((ENDLESS, Err(Error::PeerClosed { code: 0 })))
    );
    eprintln!("closed after {:?}", begin.elapsed());
    assert!(begin.elapsed() < Duration::from_secs(5));
    assert_eq!(session.ping().await, Err(Error::Closed));

    // Dropping the last handle of a session still delivers what was written.
    let session = client
        .tunnels
        .connect(psk(1), Arc::new(Published(listener.route())));
    let (mut send, recv) = session.open(HASH).await.unwrap();
    send.write_bytes(bytes(4, MIB)).await.unwrap();
    drop((session, send, recv));
    assert_eq!(
        outcomes.recv().await.map(|(protocol, _)| protocol),
        Some(HASH)
    );

    // A listener that closes ends its sessions and gives its route back.
    let session = client
        .tunnels
        .connect(psk(1), Arc::new(Published(listener.route())));
    session.ping().await.unwrap();
    let (mut send, mut recv) = session.open(ECHO).await.unwrap();
    send.write_all(b"hello").await.unwrap();
    assert_eq!(
        recv.read_exact(5).await.unwrap()[..],
        b"hello"[..],
        "sent without a flush"
    );
    let begin = Instant::now();
    let blob = listener.route().borrow().clone().unwrap();
    listener.close().await;
    let end = recv.read_exact(1).await.unwrap_err();
    eprintln!("listener closed after {:?}: {end}", begin.elapsed());
    assert!(
        matches!(
            end,
            Error::PeerClosed { code: 0 } | Error::Unreachable { .. } | Error::NoRoute { .. }
        ),
        "{end:?}"
    );
    assert!(serving.await.is_ok(), "accept ended");
    assert!(listener.route().borrow().is_none());
    let api = server.node.api().clone();
    server
        .host
        .run(async move {
            let id = api.import_remote_private_route(blob.to_vec()).unwrap();
            api.release_private_route(id.clone()).unwrap();
            assert!(
                api.release_private_route(id).is_err(),
                "the route was released already"
            );
        })
        .await;

    client.tunnels.close().await;
    server.tunnels.close().await;
    assert_eq!(
        client.tunnels.listen(psk(1)).await.err(),
        Some(Error::Closed)
    );
    devnet.stop().await.unwrap();
}

/// The goodput of as many bare calls in flight as a session may have, which is what there is to be reached.
async fn raw_goodput(client: &Member, listener: &Listener, len: usize) -> String {
    let blob = listener.route().borrow().clone().unwrap();
    let api = client.node.api().clone();
    let begin = Instant::now();
    client
        .host
        .run(async move {
            let route = api.import_remote_private_route(blob.to_vec()).unwrap();
            let mut calls = tokio::task::JoinSet::new();
            for _ in 0..len / RAW_REPLY {
                if calls.len() == 32 {
                    calls.join_next().await;
                }
                let context = api.routing_context().unwrap();
                let target = Target::RouteId(route.clone());
                calls.spawn(async move {
                    let mut message = RAW.to_vec();
                    message.resize(64, 0);
                    let reply = context.app_call(target, message).await.unwrap();
                    assert_eq!(reply.len(), RAW_REPLY);
                });
            }
            while calls.join_next().await.is_some() {}
        })
        .await;
    goodput(len, begin.elapsed())
}

async fn many_streams(session: &Session) {
    let begin = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..MANY {
        let session = session.clone();
        tasks.spawn(async move {
            let (mut send, mut recv) = session.open(ECHO).await.unwrap();
            let data = bytes(i as u64, i * 20);
            send.write_bytes(data.clone()).await.unwrap();
            drop(send);
            assert_eq!(recv.read_to_end(MIB).await.unwrap(), data);
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let took = begin.elapsed();
    eprintln!("{MANY} streams at once answered after {took:?}");
    assert!(took < Duration::from_secs(60), "{took:?}");
}

/// The client opens a stream to the server while the server opens one to the client: each is a session of its own.
async fn both_sides_at_once(server: &Member, client: &Member, session: &Session) {
    let listener = Arc::new(client.tunnels.listen(psk(3)).await.unwrap());
    let (results, mut outcomes) = tokio::sync::mpsc::unbounded_channel();
    let serving = tokio::spawn(serve(listener.clone(), results));
    let back = server
        .tunnels
        .connect(psk(3), Arc::new(Published(listener.route())));
    let len = 4 * MIB;
    let begin = Instant::now();
    let (there, here) = tokio::join!(download(session, len), download(&back, len));
    let took = begin.elapsed();
    eprintln!("4 MiB each way, of streams that both sides opened, after {took:?}");
    assert!(took < Duration::from_secs(30), "{took:?}");
    let expected = bytes(len as u64, len);
    assert!(there == expected && here == expected, "a download differs");
    assert_eq!(outcomes.recv().await, Some((SOURCE, Ok(()))));
    back.close();
    listener.close().await;
    serving.await.unwrap();
}

/// Junk is answered at once, so that it does not occupy those who serve the DHT.
async fn junk_delays_nobody(server: &Member, client: &Member, listener: &Listener) {
    let api = client.node.api().clone();
    let key = client
        .host
        .run(async move {
            let context = api.routing_context()?;
            let schema = DHTSchema::dflt(1)?;
            let record = context
                .create_dht_record(CRYPTO_KIND_VLD0, schema, None)
                .await?;
            let key = record.key();
            context
                .set_dht_value(key.clone(), 0, b"value".to_vec(), None)
                .await?;
            context.flush_dht_record(key.clone(), None).await?;
            Ok::<_, VeilidAPIError>(key)
        })
        .await
        .unwrap();
    let (api, opened) = (server.node.api().clone(), key.clone());
    let _ = server
        .host
        .run(async move {
            let context = api.routing_context()?;
            context.open_dht_record(opened, None, None).await
        })
        .await
        .unwrap();
    let read = async || {
        let (api, key) = (server.node.api().clone(), key.clone());
        let begin = Instant::now();
        let value = server
            .host
            .run(async move {
                let context = api.routing_context()?;
                context.get_dht_value(key, 0, true).await
            })
            .await
            .unwrap();
        assert_eq!(value.unwrap().data(), b"value");
        begin.elapsed()
    };
    let mut quiet = Vec::new();
    for _ in 0..READS {
        quiet.push(read().await);
    }
    quiet.sort();
    let usual = quiet[READS / 2];

    // As many junk calls as ever are under way, until the reads are done.
    let blob = listener.route().borrow().clone().unwrap();
    let api = client.node.api().clone();
    let done = Arc::new(AtomicBool::new(false));
    let (refused, other) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (ends, counts) = (done.clone(), (refused.clone(), other.clone()));
    let junk = client.host.run(async move {
        let route = api.import_remote_private_route(blob.to_vec()).unwrap();
        let context = api.routing_context().unwrap();
        let call = |n: usize| {
            let message = vec![u8::try_from(n % 256).unwrap(); 500];
            context.app_call(Target::RouteId(route.clone()), message)
        };
        let mut calls: FuturesUnordered<_> = (0..JUNK).map(call).collect();
        while let Some(reply) = calls.next().await {
            let refusal = matches!(reply, Ok(reply) if reply[..] == [0]);
            let count = if refusal { &counts.0 } else { &counts.1 };
            let number = count.fetch_add(1, Ordering::Relaxed);
            if !ends.load(Ordering::Relaxed) {
                calls.push(call(number));
            }
        }
    });
    let reads = async {
        let mut busy = Vec::new();
        while busy.len() < READS || refused.load(Ordering::Relaxed) < JUNK {
            let before = refused.load(Ordering::Relaxed);
            let took = read().await;
            // Beside a read during which none was answered, the junk may have had a rest.
            if refused.load(Ordering::Relaxed) > before {
                busy.push(took);
            }
        }
        busy
    };
    let reads = async {
        let busy = tokio::time::timeout(READY, reads).await;
        done.store(true, Ordering::Relaxed);
        busy
    };
    let ((), busy) = tokio::join!(junk, reads);
    let busy = busy.expect("reads and junk go on beside each other");
    let slowest = busy.iter().max().copied().unwrap();
    let (refused, other) = (
        refused.load(Ordering::Relaxed),
        other.load(Ordering::Relaxed),
    );
    eprintln!(
        "a DHT read took {usual:?} ({quiet:?}); beside {JUNK} junk calls at a time {slowest:?} at most ({busy:?}), while {refused} were refused and {other} got lost"
    );
    // All nodes share the processors of this machine, so the junk costs some time; calls that were held would occupy their workers for five seconds.
    assert!(
        slowest <= (4 * usual).max(Duration::from_secs(2)),
        "{slowest:?} instead of {usual:?}"
    );
    assert!(other * 10 <= refused, "{other} of {refused}");
}

async fn strangers_learn_nothing(client: &Member, listener: &Listener) {
    let blob = listener.route().borrow().clone().unwrap();
    let api = client.node.api().clone();
    client
        .host
        .run(async move {
            let route = api.import_remote_private_route(blob.to_vec()).unwrap();
            let context = api.routing_context().unwrap();
            for said in [Vec::new(), b"hello".to_vec(), vec![1; 41], vec![1; 32_768]] {
                assert_eq!(
                    context
                        .app_call(Target::RouteId(route.clone()), said)
                        .await
                        .unwrap(),
                    [0]
                );
            }
            // The session uses the same route, so it is not released here.
        })
        .await;
    let stranger = client
        .tunnels
        .connect(psk(2), Arc::new(Published(listener.route())));
    let begin = Instant::now();
    let (mut send, mut recv) = stranger.open(SOURCE).await.unwrap();
    send.write_all(&8u64.to_be_bytes()).await.unwrap();
    assert_eq!(recv.read(1).await, Err(Error::Refused));
    assert_eq!(stranger.ping().await, Err(Error::Refused));
    eprintln!(
        "a stranger was refused for good after {:?}",
        begin.elapsed()
    );
}

async fn a_dead_route_is_replaced(server: &Member, listener: &Listener, session: &Session) {
    let len = 32 * MIB;
    let mut route = listener.route();
    let blob = route.borrow_and_update().clone().unwrap();
    let (mut send, mut down) = session.open(SOURCE).await.unwrap();
    send.write_all(&(len as u64).to_be_bytes()).await.unwrap();
    drop(send);
    let (mut up, mut answer) = session.open(HASH).await.unwrap();
    let data = bytes(9, len / 4);
    let hash = blake3::hash(&data);
    let upload = tokio::spawn(async move { up.write_bytes(data).await });
    let mut got = down.read_full(2 * MIB).await.unwrap().to_vec();

    let begin = Instant::now();
    let api = server.node.api().clone();
    server
        .host
        .run(async move {
            // Veilid names a route by its keys, so the import tells the id of the allocated route, and takes it until it is released.
            let id = api.import_remote_private_route(blob.to_vec()).unwrap();
            api.release_private_route(id.clone()).unwrap();
            api.release_private_route(id).unwrap();
        })
        .await;
    route.wait_for(Option::is_none).await.unwrap();
    route.wait_for(Option::is_some).await.unwrap();
    let replaced = begin.elapsed();
    eprintln!("a dead route was replaced after {replaced:?}");
    assert!(replaced < Duration::from_secs(15), "{replaced:?}");
    // What was on its way or held here may still come before that.
    got.extend_from_slice(&down.read_full(6 * MIB).await.unwrap());
    let again = begin.elapsed();
    eprintln!("bytes came again after {again:?}");
    assert!(again < Duration::from_secs(30), "{again:?}");
    got.extend_from_slice(&down.read_to_end(len).await.unwrap());
    upload.await.unwrap().unwrap();
    assert_eq!(
        answer.read_to_end(32).await.unwrap()[..],
        hash.as_bytes()[..]
    );
    let through = begin.elapsed();
    eprintln!("both streams were through after {through:?}");
    assert!(through < Duration::from_secs(60), "{through:?}");
    assert!(got == bytes(len as u64, len), "download differs");
}

/// Nodes are cut off one after the other, until one of them carried the session: everything stands still, and then goes on over others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hop_that_vanishes_is_replaced() {
    devnet::trace_to_stderr();
    // Enough that routes are found without the one that is gone.
    let devnet = Devnet::start(devnet::MIN_NODES + 2).await.unwrap();
    let server = Member::start(&devnet, "server").await;
    let client = Member::start(&devnet, "client").await;
    let listener = Arc::new(server.tunnels.listen(psk(1)).await.unwrap());
    let (results, _outcomes) = tokio::sync::mpsc::unbounded_channel();
    let serving = tokio::spawn(serve(listener.clone(), results));
    let session = client
        .tunnels
        .connect(psk(1), Arc::new(Published(listener.route())));
    let (_send, mut recv) = session.open(NUMBERS).await.unwrap();
    let (count, mut counted) = watch::channel(0_u64);
    let reading = tokio::spawn(async move {
        loop {
            let numbers = recv.read_exact(8_000).await?;
            for number in numbers.chunks(8) {
                let expected = count.borrow().to_be_bytes();
                assert_eq!(number, expected, "the numbers have a gap");
                count.send_modify(|count| *count += 1);
            }
            if count.is_closed() {
                return Ok::<_, Error>(recv);
            }
        }
    });
    counted.wait_for(|count| *count > 100_000).await.unwrap();

    let mut cut = None;
    for node in devnet.backbone() {
        node.host().cut_off().await.unwrap();
        if stands_still(&mut counted).await {
            cut = Some(node);
            break;
        }
        node.host().rejoin().await.unwrap();
    }
    let cut = cut.expect("some node carries the session");
    let (begin, before) = (Instant::now(), *counted.borrow());
    eprintln!("{} carried the session", cut.host().name());
    let again = counted.wait_for(|count| *count > before + 100_000);
    tokio::time::timeout(Duration::from_secs(60), again)
        .await
        .expect("the stream goes on without the node")
        .unwrap();
    eprintln!("it went on after {:?}", begin.elapsed() + STILL);

    drop(counted);
    assert!(reading.await.unwrap().is_ok());
    client.tunnels.close().await;
    server.tunnels.close().await;
    serving.await.unwrap();
    devnet.stop().await.unwrap();
}

/// Whether nothing comes for a while, within twice that time.
async fn stands_still(counted: &mut watch::Receiver<u64>) -> bool {
    let begin = Instant::now();
    while begin.elapsed() < 2 * STILL {
        counted.mark_unchanged();
        if tokio::time::timeout(STILL, counted.changed())
            .await
            .is_err()
        {
            return true;
        }
    }
    false
}
