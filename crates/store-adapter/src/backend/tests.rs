//! The same tests for both backends, and those of what is each one's own.

use std::{collections::BTreeSet, io};

use bytes::Bytes;

use super::{
    Backend, Op,
    memory::{Loss, MemoryBackend},
    veilid::VeilidBackend,
};
use crate::{Error, testing::Node};

fn put(column: u32, key: &str, value: impl AsRef<[u8]>) -> Op {
    Op::Put {
        column,
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value.as_ref()),
    }
}

fn delete(column: u32, key: &str) -> Op {
    Op::Delete {
        column,
        key: Bytes::copy_from_slice(key.as_bytes()),
    }
}

fn key(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn is(result: io::Result<impl Sized>, kind: io::ErrorKind) -> bool {
    result.is_err_and(|error| error.kind() == kind)
}

async fn tables(backend: &dyn Backend) {
    let table = backend.open_table("first", 2).await.unwrap();
    assert_eq!(table.load(0, key("a")).await.unwrap(), None);
    let big = vec![7; 300_000];
    table
        .commit(vec![
            put(0, "a", "one"),
            put(1, "a", &big),
            put(0, "b", "two"),
            put(0, "b", "three"),
            put(0, "c", "gone"),
            delete(0, "c"),
            delete(1, "never there"),
            put(0, "empty", ""),
        ])
        .await
        .unwrap();
    let load = |column, name| table.load(column, key(name));
    assert_eq!(load(0, "a").await.unwrap().unwrap(), "one");
    assert_eq!(load(1, "a").await.unwrap().unwrap(), big);
    assert_eq!(load(0, "b").await.unwrap().unwrap(), "three");
    assert_eq!(load(0, "c").await.unwrap(), None);
    assert_eq!(load(1, "b").await.unwrap(), None);
    assert_eq!(load(0, "empty").await.unwrap().unwrap(), "");
    let mut keys = table.keys(0).await.unwrap();
    keys.sort();
    assert_eq!(keys, ["a", "b", "empty"]);
    assert_eq!(table.keys(1).await.unwrap(), ["a"]);
    // Keys are bytes.
    let odd = Bytes::from_static(b"\x00$\xff\n");
    let row = Op::Put {
        column: 1,
        key: odd.clone(),
        value: odd.clone(),
    };
    table.commit(vec![row]).await.unwrap();
    assert_eq!(table.load(1, odd.clone()).await.unwrap().unwrap(), odd);
    assert!(table.keys(1).await.unwrap().contains(&odd));
    // All or nothing.
    table
        .commit(vec![put(0, "new", "x"), put(2, "no such column", "x")])
        .await
        .unwrap_err();
    assert_eq!(table.load(0, key("new")).await.unwrap(), None);
    table.commit(Vec::new()).await.unwrap();
    table.checkpoint().await.unwrap();
    assert!(backend.table_bytes("first") >= 300_000);
    assert_eq!(backend.table_bytes("other"), 0);
}

async fn deleting_tables(backend: &dyn Backend) {
    backend.delete_table("never-there").await.unwrap();
    let table = backend.open_table("short_lived", 1).await.unwrap();
    let other = backend.open_table("short_lived", 1).await.unwrap();
    table.commit(vec![put(0, "a", "x")]).await.unwrap();
    assert!(backend.table_names().contains(&"short_lived".to_owned()));
    drop(table);
    assert!(matches!(
        backend.delete_table("short_lived").await,
        Err(Error::Blobs { .. })
    ));
    assert_eq!(other.load(0, key("a")).await.unwrap().unwrap(), "x");
    drop(other);
    backend.delete_table("short_lived").await.unwrap();
    assert_eq!(backend.table_bytes("short_lived"), 0);
    assert!(!backend.table_names().contains(&"short_lived".to_owned()));
    let anew = backend.open_table("short_lived", 1).await.unwrap();
    assert_eq!(anew.keys(0).await.unwrap(), Vec::<Bytes>::new());
    drop(anew);
    backend.delete_table("short_lived").await.unwrap();
}

fn files(backend: &dyn Backend) {
    assert_eq!(backend.list_files().unwrap(), []);
    let file = backend.create_file("aa").unwrap();
    assert!(is(backend.create_file("aa"), io::ErrorKind::AlreadyExists));
    assert!(is(backend.open_file("bb"), io::ErrorKind::NotFound));
    file.write_all_at(b"hello", 3).unwrap();
    file.write_all_at(b"HE", 3).unwrap();
    let mut buf = [1; 8];
    file.read_exact_at(&mut buf, 0).unwrap();
    assert_eq!(&buf, b"\0\0\0HEllo");
    assert!(is(
        file.read_exact_at(&mut buf, 1),
        io::ErrorKind::UnexpectedEof
    ));
    assert!(is(
        file.read_exact_at(&mut buf, 1000),
        io::ErrorKind::UnexpectedEof
    ));
    file.sync().unwrap();
    backend.sync_files().unwrap();
    let other = backend.open_file("aa").unwrap();
    other.write_all_at(b"!", 8).unwrap();
    let mut one = [0];
    file.read_exact_at(&mut one, 8).unwrap();
    assert_eq!(&one, b"!");
    assert_eq!(backend.list_files().unwrap(), [("aa".to_owned(), 9)]);
    backend.create_file("bb").unwrap();
    backend.remove_file("aa").unwrap();
    backend.remove_file("aa").unwrap();
    assert_eq!(backend.list_files().unwrap(), [("bb".to_owned(), 0)]);
    // Who has it open goes on.
    file.read_exact_at(&mut one, 8).unwrap();
    backend.remove_file("bb").unwrap();
}

async fn raw_secrets(backend: &dyn Backend) {
    let secrets = backend.secrets();
    assert!(secrets.load("one").await.unwrap().is_none());
    secrets.save("one", b"first").await.unwrap();
    secrets.save("one", b"\0second\xff").await.unwrap();
    secrets.save("two", b"2").await.unwrap();
    assert_eq!(
        **secrets.load("one").await.unwrap().unwrap(),
        *b"\0second\xff"
    );
    secrets.remove("one").await.unwrap();
    secrets.remove("one").await.unwrap();
    assert!(secrets.load("one").await.unwrap().is_none());
    assert_eq!(**secrets.load("two").await.unwrap().unwrap(), *b"2");
}

/// What has to be there again after a restart.
async fn before_restart(backend: &dyn Backend) {
    let table = backend.open_table("lasting", 1).await.unwrap();
    table.commit(vec![put(0, "a", "row")]).await.unwrap();
    backend
        .create_file("lasting")
        .unwrap()
        .write_all_at(b"file", 0)
        .unwrap();
    backend.secrets().save("lasting", b"secret").await.unwrap();
}

async fn after_restart(backend: &dyn Backend) {
    assert!(backend.table_bytes("lasting") > 0);
    // One column more.
    let table = backend.open_table("lasting", 2).await.unwrap();
    assert_eq!(table.load(0, key("a")).await.unwrap().unwrap(), "row");
    table.commit(vec![put(1, "b", "x")]).await.unwrap();
    let mut buf = [0; 4];
    let file = backend.open_file("lasting").unwrap();
    file.read_exact_at(&mut buf, 0).unwrap();
    assert_eq!(&buf, b"file");
    let secret = backend.secrets().load("lasting").await.unwrap().unwrap();
    assert_eq!(**secret, *b"secret");
}

async fn conformance(backend: &dyn Backend) {
    tables(backend).await;
    deleting_tables(backend).await;
    files(backend);
    raw_secrets(backend).await;
}

#[tokio::test]
async fn memory_conforms() {
    let backend = MemoryBackend::default();
    conformance(&backend).await;
    before_restart(&backend).await;
    after_restart(&backend.restart()).await;
    assert!(backend.secrets().guarded());
    assert!(!backend.unguarded().secrets().guarded());
}

#[tokio::test]
async fn memory_with_power_cuts_conforms() {
    let backend = MemoryBackend::with_power_cuts();
    conformance(&backend).await;
    before_restart(&backend).await;
    after_restart(&backend.restart()).await;
}

#[tokio::test]
async fn veilid_conforms() {
    let node = Node::start().await;
    let backend = VeilidBackend::open(&node.api, &node.store_dir())
        .await
        .unwrap();
    conformance(&backend).await;
    before_restart(&backend).await;
    assert!(!backend.secrets().guarded());
    drop(backend);
    let node = node.restart().await;
    let backend = VeilidBackend::open(&node.api, &node.store_dir())
        .await
        .unwrap();
    after_restart(&backend).await;
    // Nothing that a table needs is left of those that were deleted, and nothing open is left behind.
    assert_eq!(backend.table_names(), ["first", "lasting"]);
    let table = backend.open_table("lasting", 2).await.unwrap();
    node.api.clone().shutdown().await;
    assert!(matches!(
        table.load(0, key("a")).await,
        Ok(_) | Err(Error::Closed)
    ));
    assert!(matches!(
        backend.open_table("lasting", 1).await,
        Err(Error::Closed)
    ));
    assert!(matches!(
        backend.secrets().load("lasting").await,
        Err(Error::Closed)
    ));
}

#[cfg(unix)]
#[tokio::test]
async fn only_the_owner_reads_what_veilid_keeps() {
    use std::os::unix::fs::PermissionsExt;
    let node = Node::start().await;
    let dir = node.store_dir();
    let backend = VeilidBackend::open(&node.api, &dir).await.unwrap();
    backend.create_file("aa").unwrap();
    let mode = |path: &str| {
        let meta = std::fs::metadata(dir.join(path)).unwrap();
        meta.permissions().mode() & 0o777
    };
    assert_eq!(mode("segments"), 0o700);
    assert_eq!(mode("segments/aa"), 0o600);
    node.stop().await;
}

/// The files of the table store that are not Veilid's own.
fn left_in(node: &Node, of: &[String]) -> Vec<String> {
    let mut left = Vec::new();
    for entry in std::fs::read_dir(node.table_dir()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if of.iter().any(|internal| name.contains(internal)) {
            left.push(name);
        }
    }
    left.sort();
    left
}

fn internal(node: &Node, name: &str) -> String {
    let list = std::fs::read_to_string(node.store_dir().join("tables")).unwrap();
    list.lines()
        .find_map(|line| line.strip_prefix(&format!("{name} ")))
        .unwrap()
        .to_owned()
}

#[tokio::test]
async fn deleting_takes_what_a_repair_left() {
    let node = Node::start().await;
    let backend = VeilidBackend::open(&node.api, &node.store_dir())
        .await
        .unwrap();
    backend.open_table("one", 1).await.unwrap();
    backend.open_table("two", 1).await.unwrap();
    let (one, two) = (internal(&node, "one"), internal(&node, "two"));
    let path = |internal: &str, suffix: &str| {
        let namespace = node.api.config().unwrap().namespace.clone();
        node.table_dir()
            .join(format!("{namespace}_{internal}{suffix}"))
    };
    for suffix in [".corrupt", ".corrupt-wal", ".repairing", ".repairing-shm"] {
        std::fs::write(path(&one, suffix), b"rows").unwrap();
        std::fs::write(path(&two, suffix), b"rows").unwrap();
    }
    backend.delete_table("one").await.unwrap();
    assert_eq!(left_in(&node, &[one]), Vec::<String>::new());
    assert!(left_in(&node, &[two]).len() >= 5);
    node.stop().await;
}

/// Veilid's list of tables is one row without a checksum; a lost or damaged one must not be the end of ours.
#[tokio::test]
async fn a_table_that_veilid_lost_is_put_back() {
    let node = Node::start().await;
    let backend = VeilidBackend::open(&node.api, &node.store_dir())
        .await
        .unwrap();
    let table = backend.open_table("kept", 1).await.unwrap();
    table.commit(vec![put(0, "a", "row")]).await.unwrap();
    drop((table, backend));
    // As after an opening that failed: the name is gone, the file is there.
    node.api.rename_table_db("kept", "lost").await.unwrap();
    let backend = VeilidBackend::open(&node.api, &node.store_dir())
        .await
        .unwrap();
    let table = backend.open_table("kept", 1).await.unwrap();
    assert_eq!(table.load(0, key("a")).await.unwrap().unwrap(), "row");
    table.commit(vec![put(0, "b", "row")]).await.unwrap();
    drop((table, backend));
    let list = format!(
        "{}___veilid_all_tables",
        node.api.config().unwrap().namespace
    );
    let list = node.table_dir().join(list);
    let node = node
        .restart_after(|| std::fs::write(&list, b"damaged").unwrap())
        .await;
    let backend = VeilidBackend::open(&node.api, &node.store_dir())
        .await
        .unwrap();
    let table = backend.open_table("kept", 1).await.unwrap();
    assert_eq!(table.keys(0).await.unwrap().len(), 2);
    drop(table);
    backend.delete_table("kept").await.unwrap();
    let table = backend.open_table("kept", 1).await.unwrap();
    assert_eq!(table.keys(0).await.unwrap().len(), 0);
    node.stop().await;
}

#[tokio::test]
async fn a_table_of_others_is_put_back_as_well() {
    let node = Node::start().await;
    let dir = node.store_dir();
    let open = || crate::open_table(&node.api, &dir, "others", 1);
    let table = open().await.unwrap();
    table.store(0, key("a"), key("row")).await.unwrap();
    drop(table);
    node.api.rename_table_db("others", "lost").await.unwrap();
    let table = open().await.unwrap();
    assert_eq!(table.load(0, key("a")).await.unwrap().unwrap(), "row");
    // It is known again, by both.
    drop(table);
    let table = open().await.unwrap();
    assert_eq!(table.get_key_count(0).await.unwrap(), 1);
    drop(table);
    node.stop().await;
}

#[tokio::test]
async fn a_damaged_list_of_tables_is_made_anew() {
    let node = Node::start().await;
    let list = node.store_dir().join("tables");
    let mut names = Vec::new();
    for damage in [None, Some(0), Some(25), Some(usize::MAX)] {
        if let Some(at) = damage {
            let mut bytes = std::fs::read(&list).unwrap();
            let at = at.min(bytes.len() - 1);
            bytes[at] ^= 1;
            std::fs::write(&list, bytes).unwrap();
        }
        let backend = VeilidBackend::open(&node.api, &node.store_dir())
            .await
            .unwrap();
        assert_eq!(backend.table_names(), Vec::<String>::new());
        let table = backend.open_table("one", 1).await.unwrap();
        table.commit(vec![put(0, "a", "row")]).await.unwrap();
        names.push(internal(&node, "one"));
    }
    names.dedup();
    assert_eq!(names.len(), 1);
    node.stop().await;
}

#[tokio::test]
async fn a_dead_process_writes_nothing_more() {
    let disk = MemoryBackend::default();
    let steps = |backend: MemoryBackend| async move {
        let table = backend.open_table("t", 1).await?;
        table
            .commit(vec![put(0, "a", "1"), put(0, "b", "1")])
            .await?;
        let io = |source| Error::Io {
            path: "f".into(),
            source,
        };
        let file = backend.create_file("f").map_err(io)?;
        file.write_all_at(b"1234", 0).map_err(io)?;
        file.sync().map_err(io)?;
        backend.secrets().save("s", b"1").await
    };
    steps(disk.clone()).await.unwrap();
    let writes = disk.writes();
    assert_eq!(writes, 6);
    for dies_after in 0..writes {
        let backend = MemoryBackend::default();
        backend.die_after(dies_after);
        steps(backend.clone()).await.unwrap_err();
        steps(backend.clone()).await.unwrap_err();
        assert_eq!(backend.writes(), dies_after + 1);
        let next = backend.restart();
        let rows = next.rows("t").len();
        assert_eq!(rows, if dies_after > 1 { 2 } else { 0 });
        let expected = match dies_after {
            0..=2 => vec![],
            3 => vec![("f".to_owned(), 2)],
            _ => vec![("f".to_owned(), 4)],
        };
        assert_eq!(next.list_files().unwrap(), expected);
        assert!(next.secrets().load("s").await.unwrap().is_none());
    }
}

#[tokio::test]
async fn a_full_disk_takes_nothing_and_gives_back() {
    let backend = MemoryBackend::default();
    let table = backend.open_table("t", 1).await.unwrap();
    let file = backend.create_file("f").unwrap();
    backend.fill_disk_after(1);
    table.commit(vec![put(0, "a", "1")]).await.unwrap();
    let full = |result: crate::Result<()>| match result {
        Err(Error::Io { source, .. }) => source.kind() == io::ErrorKind::StorageFull,
        _ => false,
    };
    assert!(full(table.commit(vec![put(0, "b", "1")]).await));
    assert!(full(backend.secrets().save("s", b"1").await));
    assert!(is(
        file.write_all_at(b"1234", 0),
        io::ErrorKind::StorageFull
    ));
    assert!(is(backend.create_file("g"), io::ErrorKind::StorageFull));
    backend.remove_file("f").unwrap();
    assert!(table.load(0, key("a")).await.unwrap().is_some());
    backend.free_disk();
    table.commit(vec![put(0, "b", "1")]).await.unwrap();
}

#[tokio::test]
async fn a_power_cut_takes_what_was_not_synced() {
    let prepare = || async {
        let backend = MemoryBackend::with_power_cuts();
        let table = backend.open_table("t", 1).await.unwrap();
        let file = backend.create_file("f").unwrap();
        backend.create_file("removed").unwrap();
        backend.sync_files().unwrap();
        table.commit(vec![put(0, "0", "x")]).await.unwrap();
        table.checkpoint().await.unwrap();
        file.write_all_at(&[1; 1024], 0).unwrap();
        file.sync().unwrap();
        for n in 1..4 {
            table
                .commit(vec![put(0, &n.to_string(), "x")])
                .await
                .unwrap();
        }
        file.write_all_at(&[2; 1500], 500).unwrap();
        backend.create_file("made").unwrap();
        backend.remove_file("removed").unwrap();
        backend.open_table("u", 1).await.unwrap();
        backend
    };
    let left = |backend: &MemoryBackend| {
        let names: Vec<String> = backend
            .list_files()
            .unwrap()
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        (
            backend.rows("t").len(),
            names.join(" "),
            backend.table_names().len(),
        )
    };
    let lost = prepare().await.cut_power(Loss::All);
    assert_eq!(left(&lost), (1, "f removed".to_owned(), 1));
    assert_eq!(lost.list_files().unwrap()[0].1, 1024);
    let mut seen = BTreeSet::new();
    let mut torn = false;
    for seed in 0..200 {
        let backend = prepare().await.cut_power(Loss::Some(seed));
        let file = backend.open_file("f").unwrap();
        let mut start = [0; 500];
        file.read_exact_at(&mut start, 0).unwrap();
        assert_eq!(start, [1; 500]);
        let mut buf = [0; 24];
        file.read_exact_at(&mut buf, 500).unwrap();
        torn |= buf[..12] == [2; 12] && buf[12..] == [1; 12];
        // A prefix: the first ones, not any.
        let rows = backend.rows("t");
        for (n, (_, key, _)) in rows.iter().enumerate() {
            assert_eq!(key, &n.to_string());
        }
        let kept = left(&backend);
        // What a cut has left is durable.
        assert_eq!(left(&backend.cut_power(Loss::All)), kept);
        seen.insert(kept);
    }
    assert!(torn);
    assert_eq!(seen.len(), 4 * 4 * 2);
}

#[tokio::test]
async fn what_lies_on_the_disk_can_be_damaged() {
    let backend = MemoryBackend::default();
    let table = backend.open_table("t", 1).await.unwrap();
    table.commit(vec![put(0, "a", [0, 0])]).await.unwrap();
    let file = backend.create_file("f").unwrap();
    file.write_all_at(&[0; 4], 0).unwrap();
    backend.flip_row("t", 0, b"a", 9);
    backend.flip_file("f", 17);
    backend.truncate_file("f", 3);
    assert_eq!(table.load(0, key("a")).await.unwrap().unwrap(), [0, 2][..]);
    let mut buf = [9; 3];
    file.read_exact_at(&mut buf, 0).unwrap();
    assert_eq!(buf, [0, 0, 2]);
    assert!(is(
        file.read_exact_at(&mut [0; 4], 0),
        io::ErrorKind::UnexpectedEof
    ));
    assert_eq!(backend.image().len(), 3);
}
