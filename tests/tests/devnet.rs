//! The devnet tested on itself: routes, calls, records, cut links, slow links, processes.
// Veilid's futures are nested deeper than the default allows to look.
#![recursion_limit = "256"]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use devnet::{ChaosPreset, Devnet, Host, Node};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use veilid_core::{
    CRYPTO_KIND_VLD0, DHTSchema, RecordKey, RouteBlob, Target, VeilidAPIError, VeilidUpdate,
};

const READY: Duration = Duration::from_secs(90);

/// One devnet for the whole file: starting it is most of the work.
#[tokio::test]
async fn a_devnet_is_a_veilid_network() {
    devnet::trace_to_stderr();
    let begin = Instant::now();
    let devnet = Devnet::start(devnet::MIN_NODES).await.unwrap();
    eprintln!("backbone ready after {:?}", begin.elapsed());

    let (server, server_host) = member(&devnet, "server").await;
    let (client, client_host) = member(&devnet, "client").await;
    eprintln!("two members ready after {:?}", begin.elapsed());

    calls_pass_until_the_link_is_cut(&server, &client).await;
    records_set_on_one_are_read_on_the_other(&server, &client).await;
    chaos_can_be_set_and_taken_back(&client).await;
    a_rate_limit_applies(&server_host, &client_host).await;
    a_delay_applies_and_loses_nothing(&server_host, &client_host).await;
    processes_run_on_their_host(&client_host).await;
    a_node_starts_again_from_its_directory(client).await;

    let begin = Instant::now();
    let directory = devnet.directory().to_owned();
    devnet.stop().await.unwrap();
    eprintln!("stopped after {:?}", begin.elapsed());
    assert!(!directory.exists());
}

#[tokio::test]
async fn a_dropped_devnet_ends_and_another_one_starts() {
    for _ in 0..2 {
        let devnet = Devnet::start(devnet::MIN_NODES).await.unwrap();
        let host = devnet.host("member").await.unwrap();
        let begin = Instant::now();
        drop(devnet);
        assert!(begin.elapsed() < Duration::from_secs(9));
        assert!(matches!(
            host.cut_off().await,
            Err(devnet::Error::Stopped { .. })
        ));
    }
}

async fn member(devnet: &Devnet, name: &str) -> (Node, Host) {
    let host = devnet.host(name).await.unwrap();
    let node = host
        .start_node(&host.directory().join("node"))
        .await
        .unwrap();
    node.ready(READY).await.unwrap();
    (node, host)
}

async fn calls_pass_until_the_link_is_cut(server: &Node, client: &Node) {
    let route = answer_calls(server).await;
    let message = vec![7; 32_000];
    let reply = call(client, &route, message.clone()).await.unwrap();
    assert_eq!(reply, message);

    server.host().cut_off().await.unwrap();
    let cut = call(client, &route, message.clone()).await;
    assert!(cut.is_err(), "a call passed a cut link: {cut:?}");

    server.host().rejoin().await.unwrap();
    let begin = Instant::now();
    server.ready(READY).await.unwrap();
    // A route may have died of the cut; a new one has to work.
    let route = answer_calls(server).await;
    let reply = call(client, &route, message.clone()).await.unwrap();
    assert_eq!(reply, message);
    eprintln!("calls pass {:?} after the link is back", begin.elapsed());
}

/// Makes a route to the node and sends every call on it back.
async fn answer_calls(node: &Node) -> RouteBlob {
    let (api, mut updates) = (node.api().clone(), node.updates());
    node.host()
        .run(async move {
            let route = api.new_private_route().await.unwrap();
            tokio::spawn(async move {
                while let Ok(update) = updates.recv().await {
                    if let VeilidUpdate::AppCall(call) = update {
                        // The caller sees a failure to answer.
                        let _ = api.app_call_reply(call.id(), call.message().to_vec()).await;
                    }
                }
            });
            route
        })
        .await
}

async fn call(node: &Node, route: &RouteBlob, message: Vec<u8>) -> Result<Vec<u8>, VeilidAPIError> {
    let (api, blob) = (node.api().clone(), route.blob.clone());
    node.host()
        .run(async move {
            let route = api.import_remote_private_route(blob)?;
            let target = Target::RouteId(route);
            api.routing_context()?.app_call(target, message).await
        })
        .await
}

async fn records_set_on_one_are_read_on_the_other(writer: &Node, reader: &Node) {
    let api = writer.api().clone();
    let key: RecordKey = writer
        .host()
        .run(async move {
            let context = api.routing_context()?;
            let schema = DHTSchema::dflt(2)?;
            let record = context
                .create_dht_record(CRYPTO_KIND_VLD0, schema, None)
                .await?;
            let key = record.key();
            context
                .set_dht_value(key.clone(), 1, b"archive".to_vec(), None)
                .await?;
            context.flush_dht_record(key.clone(), None).await?;
            Ok::<_, VeilidAPIError>(key)
        })
        .await
        .unwrap();
    let api = reader.api().clone();
    let value = reader
        .host()
        .run(async move {
            let context = api.routing_context()?;
            let _ = context.open_dht_record(key.clone(), None, None).await?;
            context.get_dht_value(key, 1, true).await
        })
        .await
        .unwrap();
    assert_eq!(value.unwrap().data(), b"archive");
}

async fn chaos_can_be_set_and_taken_back(node: &Node) {
    let settings = |node: &Node| {
        let (api, host) = (node.api().clone(), node.host().clone());
        async move {
            host.run(async move { api.debug("chaos".to_owned()).await })
                .await
        }
    };
    let good = settings(node).await.unwrap();
    for preset in [
        ChaosPreset::Mobile,
        ChaosPreset::MobileBad,
        ChaosPreset::MtuBlackhole,
    ] {
        node.set_chaos(Some(preset)).await.unwrap();
        assert_ne!(settings(node).await.unwrap(), good, "{preset:?}");
    }
    node.set_chaos(None).await.unwrap();
    assert_eq!(settings(node).await.unwrap(), good);
}

/// 400 kB at 100 kB/s cannot take less than two seconds, however fast or busy the machine is; the
/// same bytes pass an unlimited link faster than that.
async fn a_rate_limit_applies(server: &Host, client: &Host) {
    const BYTES: usize = 400_000;
    assert!(!client.is_limited().await.unwrap());
    let fast = transfer(server, client, BYTES).await;

    client.limit_rate(100_000).await.unwrap();
    assert!(client.is_limited().await.unwrap());
    let download = transfer(server, client, BYTES).await;
    let upload = transfer(client, server, BYTES).await;
    eprintln!("{BYTES} bytes: {fast:?}, limited {download:?} down, {upload:?} up");
    assert!(download > Duration::from_secs(2), "{download:?}");
    assert!(upload > Duration::from_secs(2), "{upload:?}");
    assert!(fast < download && fast < upload, "{fast:?}");

    client.limit_rate(10_000_000).await.unwrap();
    client.unlimit_rate().await.unwrap();
    client.unlimit_rate().await.unwrap();
    assert!(!client.is_limited().await.unwrap());
}

/// Sends bytes from one host to another over TCP, and tells how long it took.
async fn transfer(from: &Host, to: &Host, bytes: usize) -> Duration {
    let address = (from.ipv6(), 4_000);
    let begin = Instant::now();
    let listener = from.run(TcpListener::bind(address)).await.unwrap();
    let sender = from.run(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(&vec![1; bytes]).await.unwrap();
        stream.shutdown().await.unwrap();
    });
    let receiver = to.run(async move {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let mut received = Vec::new();
        stream.read_to_end(&mut received).await.unwrap();
        received.len()
    });
    let ((), received) = tokio::join!(sender, receiver);
    assert_eq!(received, bytes);
    begin.elapsed()
}

/// Over a delayed link each answer comes later by the delay, in both families; datagrams arrive all and in order; it carries more
/// than any tunnel; and without the delay all is as before.
async fn a_delay_applies_and_loses_nothing(server: &Host, client: &Host) {
    let delay = Duration::from_millis(150);
    assert_eq!(client.delay().await, None);
    let too_long = client.set_delay(Some(Duration::from_secs(11))).await;
    assert!(matches!(too_long, Err(devnet::Error::InvalidDelay { .. })));

    let device = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun");
    let set = client.set_delay(Some(delay)).await;
    if device.is_err() {
        // Containers have none, and there is no other way to delay packets: then that is what has to be said.
        assert!(
            matches!(set, Err(devnet::Error::TunUnavailable { .. })),
            "{set:?}"
        );
        assert_eq!(client.delay().await, None);
        return;
    }
    drop(device);
    set.unwrap();
    assert_eq!(client.delay().await, Some(delay));
    for (to, from) in [(server, client), (client, server)] {
        let (v4, v6) = (
            round_trip(to, from, false).await,
            round_trip(to, from, true).await,
        );
        eprintln!("a round trip with {delay:?} more: IPv4 {v4:?}, IPv6 {v6:?}");
        for time in [v4, v6] {
            assert!(
                time >= delay && time < delay + Duration::from_millis(500),
                "{time:?}"
            );
        }
    }
    datagrams_arrive_in_order(server, client, delay).await;
    // Short enough that no window of TCP limits it.
    client
        .set_delay(Some(Duration::from_millis(5)))
        .await
        .unwrap();
    let mut rates = Vec::new();
    for (from, to) in [(server, client), (client, server)] {
        const BYTES: usize = 100_000_000;
        let time = transfer(from, to, BYTES).await;
        rates.push(BYTES as f64 / time.as_secs_f64() / 1e6);
    }
    eprintln!("TCP over a delayed link: {rates:.0?} MB/s");
    assert!(rates.iter().all(|rate| *rate > 5.0), "{rates:?}");

    // Two delays add up, and a change takes effect.
    let shorter = Duration::from_millis(50);
    client.set_delay(Some(shorter)).await.unwrap();
    server.set_delay(Some(delay)).await.unwrap();
    let both = round_trip(server, client, false).await;
    assert!(
        both >= delay + shorter && both < delay + Duration::from_millis(500),
        "{both:?}"
    );

    for host in [server, client] {
        host.set_delay(None).await.unwrap();
        host.set_delay(None).await.unwrap();
        assert_eq!(host.delay().await, None);
    }
    let none = round_trip(server, client, true).await;
    assert!(none < delay, "{none:?}");
    client.set_delay(Some(delay)).await.unwrap();
    assert!(round_trip(server, client, true).await >= delay);
    client.set_delay(Some(Duration::ZERO)).await.unwrap();
    assert!(round_trip(server, client, true).await < shorter);
}

/// How long a datagram takes to a host and back, at best.
async fn round_trip(to: &Host, from: &Host, v6: bool) -> Duration {
    let address = |host: &Host, port: u16| -> SocketAddr {
        match v6 {
            true => (host.ipv6(), port).into(),
            false => (host.ipv4(), port).into(),
        }
    };
    let (there, here) = (address(to, 4_001), address(from, 4_002));
    let echo = to.run(UdpSocket::bind(there)).await.unwrap();
    let echoes = to.handle().spawn(async move {
        let mut buffer = [0; 16];
        loop {
            let (length, from) = echo.recv_from(&mut buffer).await.unwrap();
            echo.send_to(&buffer[..length], from).await.unwrap();
        }
    });
    let best = from
        .run(async move {
            let socket = UdpSocket::bind(here).await.unwrap();
            let mut best = Duration::MAX;
            for _ in 0..3 {
                let begin = Instant::now();
                socket.send_to(b"ping", there).await.unwrap();
                socket.recv_from(&mut [0; 16]).await.unwrap();
                best = best.min(begin.elapsed());
            }
            best
        })
        .await;
    echoes.abort();
    // The socket is closed when the task is gone.
    let _ = echoes.await;
    best
}

/// Sends a second's worth of datagrams at 14 MB/s, more than a tunnel ever fills a link with here.
async fn datagrams_arrive_in_order(from: &Host, to: &Host, delay: Duration) {
    const COUNT: u32 = 10_000;
    let address = (to.ipv4(), 4_003);
    let socket = to.run(UdpSocket::bind(address)).await.unwrap();
    rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, 64 << 20)
        .or_else(|_| rustix::net::sockopt::set_socket_recv_buffer_size(&socket, 64 << 20))
        .unwrap();
    let received = to.run(async move {
        let mut buffer = [0; 1_400];
        let mut numbers = Vec::new();
        let silence = Duration::from_secs(1) + delay;
        while numbers.len() < COUNT as usize
            && let Ok(length) = tokio::time::timeout(silence, socket.recv(&mut buffer)).await
        {
            assert_eq!(length.unwrap(), buffer.len());
            numbers.push(u32::from_be_bytes(buffer[..4].try_into().unwrap()));
        }
        numbers
    });
    let sent = from.run(async move {
        let socket = UdpSocket::bind("0.0.0.0:0").await.unwrap();
        let mut datagram = [0; 1_400];
        for number in 0..COUNT {
            datagram[..4].copy_from_slice(&number.to_be_bytes());
            socket.send_to(&datagram, address).await.unwrap();
            if number % 10 == 9 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    });
    let (received, ()) = tokio::join!(received, sent);
    assert_eq!(received, (0..COUNT).collect::<Vec<_>>());
}

async fn processes_run_on_their_host(host: &Host) {
    let output = host
        .command("/bin/cat")
        .args(["/proc/net/if_inet6"])
        .output()
        .unwrap();
    let addresses = String::from_utf8(output.stdout).unwrap();
    let octets = host.ipv6().octets();
    let own: String = octets.iter().map(|octet| format!("{octet:02x}")).collect();
    assert!(addresses.contains(&own), "{addresses}");
    assert!(output.status.success());

    let failed = host.command("/bin/sh").args(["-c", "exit 7"]).status();
    assert_eq!(failed.unwrap().code(), Some(7));

    // Threads for blocking calls are started from outside and still belong to the host.
    let inside = host
        .handle()
        .spawn_blocking(|| std::fs::read_to_string("/proc/thread-self/net/if_inet6"))
        .await
        .unwrap();
    assert!(inside.unwrap().contains(&own));
}

async fn a_node_starts_again_from_its_directory(node: Node) {
    let host = node.host().clone();
    let id = identity(&node).await;
    node.shutdown().await.unwrap();
    let again = host
        .start_node(&host.directory().join("node"))
        .await
        .unwrap();
    let begin = Instant::now();
    again.ready(READY).await.unwrap();
    assert_eq!(identity(&again).await, id);
    eprintln!("a restarted node is ready after {:?}", begin.elapsed());
}

async fn identity(node: &Node) -> String {
    let api = node.api().clone();
    let state = node
        .host()
        .run(async move { api.get_state().await })
        .await
        .unwrap();
    format!("{:?}", state.network.node_ids)
}
