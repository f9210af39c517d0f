//! The devnet tested on itself: routes, calls, records, cut links, slow links, processes.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::{Duration, Instant};

use devnet::{ChaosPreset, Devnet, Host, Node};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
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
