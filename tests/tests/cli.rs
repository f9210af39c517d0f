//! The `save` command on a devnet: bad input, one directory for several processes, and working without a network.
#![cfg(target_os = "linux")]
// Veilid's futures are nested deeper than the default allows to look.
#![recursion_limit = "256"]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::PathBuf;
use std::time::Duration;

use devnet::Devnet;
use integration_tests::device::{Device, Error};
use save_backend::Link;
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(90);

struct Stage {
    devnet: Devnet,
    directory: PathBuf,
}

impl Stage {
    async fn set() -> Self {
        let devnet = Devnet::start(devnet::MIN_NODES).await.unwrap();
        let directory = devnet.directory().join("files");
        std::fs::create_dir(&directory).unwrap();
        Self { devnet, directory }
    }

    async fn device(&self, name: &str) -> Device {
        Device::new(name, self.devnet.host(name).await.unwrap()).unwrap()
    }

    /// A device whose `save run` is online.
    async fn serving(&self, name: &str) -> Device {
        let mut device = self.device(name).await;
        device.start(LIMIT).await.unwrap();
        device.online(LIMIT).await.unwrap();
        device
    }

    fn file(&self, name: &str, content: &[u8]) -> String {
        let path = self.directory.join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn path(&self, name: &str) -> String {
        self.directory.join(name).to_str().unwrap().to_owned()
    }

    async fn strike(self, devices: Vec<Device>) {
        drop(devices);
        self.devnet.stop().await.unwrap();
    }
}

async fn link(device: &Device) -> String {
    let lines = device.save(&["group", "link"]).await.unwrap();
    lines[0]["link"].as_str().unwrap().to_owned()
}

async fn join(device: &Device, link: &str) -> Result<Vec<Value>, Error> {
    let arguments = ["group", "join", "-", "--as", device.name()];
    device.save_with(&arguments, Some(link)).await
}

async fn paths(device: &Device) -> Vec<String> {
    let lines = device.save(&["ls"]).await.unwrap();
    let path = |line: &Value| line["path"].as_str().unwrap().to_owned();
    lines.iter().map(path).collect()
}

/// The exit code, the word for it, and the message.
fn failure<T: std::fmt::Debug>(result: Result<T, Error>) -> (i32, String, String) {
    match result {
        Err(Error::Command {
            code: Some(code),
            kind,
            message,
            ..
        }) => (code, kind, message),
        other => panic!("a failure of the command is expected: {other:?}"),
    }
}

fn is_published(lines: &[Value]) -> bool {
    lines
        .iter()
        .any(|line| line["type"] == "publication" && line["published"] == true)
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_named_and_loses_nothing() {
    let stage = Stage::set().await;
    let ana = stage.serving("ana").await;
    let ben = stage.serving("ben").await;
    let lines = ana
        .save(&["group", "create", "Press", "--as", "ana"])
        .await
        .unwrap();
    assert!(is_published(&lines), "{lines:?}");
    let notes = stage.file("notes.txt", b"kept");
    ana.save(&["put", &notes]).await.unwrap();
    let good = link(&ana).await;

    // Links. Those that can be told by their text never reach a node.
    let public = Link::parse(&good).unwrap().public_key();
    let server = Link::server(&public, &[7; 32]).unwrap().expose();
    // That the secret is another group's shows when the group is found.
    let foreign = Link::reader(&public, &[7; 32]).unwrap().expose();
    let expired = Link::parse(&good).unwrap().with_expiry(1).unwrap().expose();
    let (head, tail) = good.split_at(good.len() - 20);
    let wrong = if tail.starts_with('a') { "b" } else { "a" };
    for (text, said) in [
        (head.to_owned(), "cut short"),
        (format!("{head}{wrong}{}", &tail[1..]), "mistyped"),
        (good.replace(":1/", ":2/"), "newer"),
        (good.replace("/member/", "/owner/"), "'owner'"),
        (server.to_string(), "server"),
        (foreign.to_string(), "does not belong"),
        (expired.to_string(), "expired"),
    ] {
        let (code, kind, message) = failure(join(&ben, &text).await);
        assert_eq!((code, kind.as_str()), (6, "bad_link"), "{message}");
        assert!(message.contains(said), "{said} is not in: {message}");
    }
    // A sound link whose secret belongs to another group.
    let public = Link::parse(&good).unwrap().public_key();
    let secret =
        veilid_core::SecretKey::new(public.kind(), veilid_core::BareSecretKey::new(&[3; 32]));
    let forged = Link::member(&public, &secret).unwrap().expose();
    let (code, _, message) = failure(join(&ben, &forged).await);
    assert_eq!(code, 6, "{message}");
    assert!(message.contains("does not belong"), "{message}");

    // A group that nobody has published.
    let cleo = stage.device("cleo").await;
    cleo.host().cut_off().await.unwrap();
    let lines = cleo
        .save(&["group", "create", "Nowhere", "--offline"])
        .await
        .unwrap();
    assert!(!is_published(&lines));
    let nowhere = link(&cleo).await;
    let arguments = ["group", "join", "-", "--timeout", "15"];
    let (code, kind, message) = failure(ben.save_with(&arguments, Some(&nowhere)).await);
    assert_eq!((code, kind.as_str()), (9, "no_answer"), "{message}");
    assert!(message.contains("the group does not answer"), "{message}");
    assert!(
        ben.save(&["group", "list"]).await.unwrap().is_empty(),
        "a group that does not answer is not remembered"
    );

    // Paths and files.
    let put = |path: &'static str| {
        let (ana, notes) = (&ana, &notes);
        async move { failure(ana.save(&["put", notes, "--path", path]).await) }
    };
    for path in ["../x", "a/../x", "/etc/x", "a//b", ""] {
        let (code, kind, message) = put(path).await;
        assert_eq!((code, kind.as_str()), (7, "bad_path"), "{path}: {message}");
    }
    let missing = stage.path("missing.txt");
    let (code, _, message) = failure(ana.save(&["put", &missing]).await);
    assert_eq!(code, 3);
    assert!(message.contains("missing.txt"));
    for arguments in [
        &["get", "missing.txt", "--timeout", "5"][..],
        &["rm", "missing.txt"],
        &["get", "notes.txt", "--from", "nobody"],
        &["get", "notes.txt", "--replaced"],
        &["ls", "--group", "nothing"],
        &["ping", "nobody"],
    ] {
        let (code, kind, message) = failure(ana.save(arguments).await);
        assert_eq!(
            (code, kind.as_str()),
            (3, "not_found"),
            "{arguments:?}: {message}"
        );
    }

    assert!(ana.save(&["ls", "--replaced"]).await.unwrap().is_empty());

    // Nothing is lost by all this.
    assert_eq!(paths(&ana).await, ["notes.txt"]);
    let lines = join(&ben, &good).await.unwrap();
    assert!(is_published(&lines), "{lines:?}");
    let copy = stage.path("copy.txt");
    ben.save(&["get", "notes.txt", "-o", &copy]).await.unwrap();
    assert_eq!(std::fs::read(&copy).unwrap(), b"kept");
    // And nothing is overwritten.
    let (code, _, _) = failure(ben.save(&["get", "notes.txt", "-o", &copy]).await);
    assert_eq!(code, 5);
    stage.strike(vec![ana, ben, cleo]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_directory_serves_several_commands() {
    let stage = Stage::set().await;
    let mut ana = stage.serving("ana").await;
    ana.save(&["group", "create", "Press", "--as", "ana"])
        .await
        .unwrap();
    let notes = stage.file("notes.txt", b"kept");
    ana.save(&["put", &notes]).await.unwrap();

    let (code, kind, message) = failure(ana.save(&["run"]).await);
    assert_eq!((code, kind.as_str()), (10, "directory_in_use"));
    assert!(message.contains("running"), "{message}");
    let status = ana.save(&["status"]).await.unwrap();
    assert_eq!(status[0]["daemon"], ana.pid().unwrap());
    assert_eq!(status[0]["online"], true);
    // Many at once, over the socket.
    let many = (0..20).map(|_| ana.save(&["ls"]));
    for listed in futures::future::join_all(many).await {
        assert_eq!(listed.unwrap().len(), 1);
    }

    // After a crash the socket is still there. It does not stop commands, nor the next `save run`.
    ana.kill().await.unwrap();
    assert!(ana.directory().join("save.sock").exists());
    assert_eq!(paths(&ana).await, ["notes.txt"]);
    let status = ana.save(&["status", "--offline"]).await.unwrap();
    assert_eq!(status[0]["daemon"], Value::Null);
    assert_eq!(status[0]["backend"]["attachment"], "detached");
    // Commands without a `save run` wait for each other.
    let some = (0..3).map(|_| ana.save(&["ls", "--offline"]));
    for listed in futures::future::join_all(some).await {
        assert_eq!(listed.unwrap().len(), 1);
    }
    ana.start(LIMIT).await.unwrap();
    assert_eq!(paths(&ana).await, ["notes.txt"]);
    let took = ana.stop(Duration::from_secs(5)).await.unwrap();
    assert!(took < Duration::from_secs(5));
    assert!(!ana.directory().join("save.sock").exists());
    stage.strike(vec![ana]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stored_without_a_network_is_published_later() {
    let stage = Stage::set().await;
    let mut ana = stage.device("ana").await;
    ana.host().cut_off().await.unwrap();
    let notes = stage.file("notes.txt", b"written on the train");
    for arguments in [
        &["group", "create", "Press", "--as", "ana"][..],
        &["put", &notes],
    ] {
        let all = [arguments, &["--timeout", "2"]].concat();
        let lines = ana.save(&all).await.unwrap();
        assert!(!is_published(&lines), "{lines:?}");
    }
    // Reading what is here needs no network and does not wait for it.
    assert_eq!(paths(&ana).await, ["notes.txt"]);
    let copy = stage.path("own.txt");
    ana.save(&["get", "notes.txt", "-o", &copy]).await.unwrap();
    // What needs the network says so.
    let (code, kind, _) = failure(ana.save(&["ping", "--timeout", "1"]).await);
    assert_eq!((code, kind.as_str()), (8, "offline"));

    ana.host().rejoin().await.unwrap();
    ana.start(LIMIT).await.unwrap();
    ana.online(LIMIT).await.unwrap();
    let published = |lines: &[Value]| lines.iter().all(|line| line["published"] == true);
    ana.until(&["group", "list"], "publishing", LIMIT, published)
        .await
        .unwrap();
    let ben = stage.serving("ben").await;
    join(&ben, &link(&ana).await).await.unwrap();
    let copy = stage.path("copy.txt");
    ben.save(&["get", "notes.txt", "-o", &copy]).await.unwrap();
    assert_eq!(std::fs::read(&copy).unwrap(), b"written on the train");
    let lines = ben.save(&["ping", "ana"]).await.unwrap();
    assert_eq!(lines[0]["type"], "pong");
    stage.strike(vec![ana, ben]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_is_renamed_moved_and_left() {
    let stage = Stage::set().await;
    let mut devices = Vec::new();
    for name in ["ana", "ben", "cleo", "dora", "replica"] {
        devices.push(stage.serving(name).await);
    }
    let [ana, ben, cleo, dora, replica] = &devices[..] else {
        unreachable!()
    };
    let created = ana
        .save(&["group", "create", "Press", "--as", "ana"])
        .await
        .unwrap();
    let old = created[0]["id"].as_str().unwrap().to_owned();
    for member in [ben, cleo] {
        join(member, &link(ana).await).await.unwrap();
    }
    let (mine, theirs) = (
        stage.file("mine.txt", b"Ana's"),
        stage.file("b.txt", b"Ben's"),
    );
    ana.save(&["put", &mine]).await.unwrap();
    ben.save(&["put", &theirs]).await.unwrap();

    // Links of every kind, as text and as pictures.
    let lines = ana
        .save(&[
            "group",
            "link",
            "--kind",
            "reader",
            "--expires",
            "2d",
            "--label",
            "for Dora",
        ])
        .await
        .unwrap();
    assert_eq!(lines[0]["label"], "for Dora");
    assert!(lines[0]["expires"].is_u64());
    let reader = lines[0]["link"].as_str().unwrap();
    let joined = join(dora, reader).await.unwrap();
    assert_eq!(joined[0]["role"], "reader");
    let read = |lines: &[Value]| lines.len() == 2;
    dora.until(&["ls"], "the reader's list", LIMIT, read)
        .await
        .unwrap();
    let copy = stage.path("dora.txt");
    dora.save(&["get", "b.txt", "-o", &copy]).await.unwrap();
    assert_eq!(std::fs::read(&copy).unwrap(), b"Ben's");
    let (code, kind, _) = failure(dora.save(&["put", &mine]).await);
    assert_eq!((code, kind.as_str()), (13, "refused"));
    let (code, kind, _) = failure(dora.save(&["group", "link"]).await);
    assert_eq!((code, kind.as_str()), (13, "refused"));
    let upper = ana
        .save(&["group", "link", "--kind", "replica", "--qr"])
        .await;
    let upper = upper.unwrap()[0]["link"].as_str().unwrap().to_owned();
    assert_eq!(upper, upper.to_uppercase());
    let joined = join(replica, &upper).await.unwrap();
    assert_eq!(
        (&joined[0]["role"], &joined[0]["name"]),
        (&"replica".into(), &Value::Null)
    );
    let picture = stage.path("link.png");
    let lines = ben
        .save(&["group", "link", "--png", &picture])
        .await
        .unwrap();
    assert_eq!(lines[0]["type"], "link_picture");
    assert!(std::fs::read(&picture).unwrap().starts_with(b"\x89PNG"));
    let (code, _, _) = failure(ben.save(&["group", "link", "--png", &picture]).await);
    assert_eq!(code, 5);

    // Names.
    let lines = ana.save(&["group", "rename", "Press pool"]).await.unwrap();
    assert!(is_published(&lines), "{lines:?}");
    ben.save(&["group", "rename", "--me", "Benedict"])
        .await
        .unwrap();
    let renamed = |lines: &[Value]| lines[0]["name"] == "Press pool";
    cleo.until(&["group", "list"], "the new name", LIMIT, renamed)
        .await
        .unwrap();
    let renamed = |lines: &[Value]| lines.iter().any(|line| line["name"] == "Benedict");
    cleo.until(&["members", "--refresh"], "Ben's new name", LIMIT, renamed)
        .await
        .unwrap();

    // Cleo's phone is lost.
    let (code, _, _) = failure(ben.save(&["group", "moved"]).await);
    assert_eq!(code, 3);
    let (code, _, _) = failure(ana.save(&["group", "move", "--without", "nobody"]).await);
    assert_eq!(code, 3);
    let lines = ana
        .save(&["group", "move", "--without", "cleo"])
        .await
        .unwrap();
    let new = lines[0]["id"].as_str().unwrap().to_owned();
    assert_ne!(new, old);
    assert_eq!(lines[0]["name"], "Press pool");
    assert_eq!(
        (&lines[1]["copied"], &lines[1]["missing"]),
        (&1.into(), &0.into())
    );
    assert!(is_published(&lines), "{lines:?}");
    let told = |lines: &[Value]| lines[0]["to"] == new.as_str();
    ben.until(&["group", "moved"], "the notice", LIMIT, told)
        .await
        .unwrap();
    let lines = ben.save(&["group", "moved", "--follow"]).await.unwrap();
    assert_eq!(
        (&lines[0]["member"], &lines[1]["id"]),
        (&"ana".into(), &new.as_str().into())
    );
    let both = |lines: &[Value]| lines.len() == 2;
    let listed = ["ls", "--group", &new];
    ana.until(&listed, "Ben's file in the new group", LIMIT, both)
        .await
        .unwrap();
    let (code, _, _) = failure(cleo.save(&["group", "moved"]).await);
    assert_eq!(code, 3, "Cleo is not told where to");
    // Once more changes nothing.
    let lines = ben
        .save(&["group", "copy", &new, "--group", &old])
        .await
        .unwrap();
    assert_eq!(
        (&lines[0]["copied"], &lines[0]["there"]),
        (&0.into(), &1.into())
    );

    // The old one is left.
    let (code, _, _) = failure(ben.save(&["group", "leave", "--group", &old]).await);
    assert_eq!(code, 2, "only with --yes");
    let lines = ben
        .save(&["group", "leave", "--yes", "--group", &old])
        .await
        .unwrap();
    assert_eq!(
        (&lines[0]["type"], &lines[0]["told"]),
        (&"left".into(), &true.into())
    );
    let gone = |lines: &[Value]| lines.iter().all(|line| line["name"] != "Benedict");
    let members = ["members", "--refresh", "--group", &old];
    ana.until(&members, "Ben being gone", LIMIT, gone)
        .await
        .unwrap();
    let leave = ["group", "leave", "--yes", "--this-device", "--group", &old];
    let lines = ana.save(&leave).await.unwrap();
    assert_eq!(
        (&lines[0]["told"], &lines[0]["this_device"]),
        (&false.into(), &true.into())
    );
    for member in [ana, ben] {
        let lines = member.save(&["group", "list"]).await.unwrap();
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0]["id"], new.as_str());
        let mut listed = paths(member).await;
        listed.sort();
        assert_eq!(listed, ["b.txt", "mine.txt"]);
    }
    stage.strike(devices).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_protected_changed_and_taken_away() {
    let stage = Stage::set().await;
    let mut ana = stage.device("ana").await;
    ana.host().cut_off().await.unwrap();
    let (one, two) = (stage.file("one", b"first\n"), stage.file("two", b"second"));
    let key_file = stage.path("key");
    let notes = stage.file("notes.txt", b"notes");
    let with = |option: &'static str, file: &str, arguments: &[&str]| -> Vec<String> {
        let options = ["--offline", "--timeout", "10", option, file];
        let all = arguments.iter().chain(&options);
        all.map(|argument| (*argument).to_owned()).collect()
    };
    const PASSWORD: &str = "--password-file";
    const KEY: &str = "--key-file";

    // With a password from the first command on.
    let create = ["group", "create", "Press", "--as", "ana"];
    ana.save(&with(PASSWORD, &one, &create)).await.unwrap();
    ana.save(&with(PASSWORD, &one, &["put", &notes]))
        .await
        .unwrap();
    let listed = ana.save(&with(PASSWORD, &one, &["ls"])).await.unwrap();
    assert_eq!(listed.len(), 1);
    let (code, kind, message) = failure(ana.save(&["ls"]).await);
    assert_eq!((code, kind.as_str()), (16, "key_required"));
    assert!(message.contains(PASSWORD), "{message}");
    let (code, kind, _) = failure(ana.save(&with(KEY, &key_file, &["ls"])).await);
    assert_eq!((code, kind.as_str()), (16, "key_required"));
    assert!(!std::path::Path::new(&key_file).exists());
    let (code, kind, _) = failure(ana.save(&with(PASSWORD, &two, &["ls"])).await);
    assert_eq!((code, kind.as_str()), (17, "wrong_key"));

    // By a key file instead.
    let change = ["key", "change", "--new-key-file", &key_file];
    let changed = ana.save(&with(PASSWORD, &one, &change)).await.unwrap();
    assert_eq!(changed[0]["type"], "keys_changed");
    assert_eq!(std::fs::read(&key_file).unwrap().len(), 32);
    let (code, kind, message) = failure(ana.save(&with(PASSWORD, &one, &["ls"])).await);
    assert_eq!((code, kind.as_str()), (16, "key_required"));
    assert!(message.contains(KEY), "{message}");
    let listed = ana.save(&with(KEY, &key_file, &["ls"])).await.unwrap();
    assert_eq!(listed.len(), 1);
    // The keyring is not there to change to, and nothing changes.
    let change = ["key", "change", "--keyring"];
    let (code, kind, _) = failure(ana.save(&with(KEY, &key_file, &change)).await);
    assert_eq!((code, kind.as_str()), (11, "key_storage"));
    // By nothing.
    let change = ["key", "change", "--insecure"];
    ana.save(&with(KEY, &key_file, &change)).await.unwrap();
    let (code, kind, _) = failure(ana.save(&with(KEY, &key_file, &["ls"])).await);
    assert_eq!((code, kind.as_str()), (11, "key_storage"));

    // While `save run` runs.
    ana.start(LIMIT).await.unwrap();
    ana.save(&["key", "change", "--new-password-file", &two])
        .await
        .unwrap();
    assert_eq!(paths(&ana).await, ["notes.txt"]);
    ana.save(&["verify"]).await.unwrap();
    ana.stop(LIMIT).await.unwrap();
    let (code, _, _) = failure(ana.save(&["ls"]).await);
    assert_eq!(code, 16);
    let copy = stage.path("copy.txt");
    ana.save(&with(PASSWORD, &two, &["get", "notes.txt", "-o", &copy]))
        .await
        .unwrap();
    assert_eq!(std::fs::read(&copy).unwrap(), b"notes");

    // What is damaged is found, once.
    let large = stage.file("large.bin", &vec![7; 400_000]);
    ana.save(&with(PASSWORD, &two, &["put", &large]))
        .await
        .unwrap();
    let segments = ana.directory().join("blobs/segments");
    let segment = std::fs::read_dir(segments)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        // Not a pack, of small blobs.
        .find(|path| path.extension().is_none())
        .unwrap();
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let (code, kind, _) = failure(ana.save(&with(PASSWORD, &two, &["verify"])).await);
    assert_eq!((code, kind.as_str()), (14, "damaged"));
    let verified = ana.save(&with(PASSWORD, &two, &["verify"])).await.unwrap();
    assert_eq!(verified[0]["damaged"], serde_json::json!([]));

    // The password is lost.
    ana.save(&["wipe", "--yes"]).await.unwrap();
    assert!(!ana.directory().exists());
    let create = ["group", "create", "Anew", "--offline", "--as", "ana"];
    ana.save(&create).await.unwrap();
    // While `save run` runs, which ends.
    ana.start(LIMIT).await.unwrap();
    ana.save(&["wipe", "--yes"]).await.unwrap();
    ana.stop(LIMIT).await.unwrap();
    let left = std::fs::read_dir(ana.directory()).map(|entries| entries.count());
    assert_eq!(left.unwrap_or_default(), 0);
    stage.strike(vec![ana]).await;
}
