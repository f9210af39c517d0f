//! The state on a node that is started and never attached.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use store_adapter::Secrets;
use tempfile::TempDir;

use super::*;
use crate::{
    builder::startup_error,
    directory::{self, KeyPlace},
    keys::KeyStorage,
};

static NEXT: AtomicU32 = AtomicU32::new(0);

struct Node {
    api: VeilidAPI,
    namespace: String,
    dir: Arc<TempDir>,
}

impl Node {
    async fn start() -> Self {
        let namespace = format!("k{}", NEXT.fetch_add(1, Ordering::Relaxed));
        Self::start_in(Arc::new(tempfile::tempdir().unwrap()), namespace)
            .await
            .unwrap()
    }

    async fn start_in(dir: Arc<TempDir>, namespace: String) -> Result<Self> {
        let mut config = directory::config(dir.path(), namespace.clone());
        store_adapter::repair_secrets(&config).unwrap();
        KeyPlace::of(&config).apply(&mut config, &KeyStorage::InsecureFile, false);
        let api = veilid_core::api_startup(Arc::new(|_| {}), config)
            .await
            .map_err(|error| startup_error(dir.path(), error))?;
        Ok(Self {
            api,
            namespace,
            dir,
        })
    }

    async fn restart(self) -> Self {
        self.api.shutdown().await;
        Self::start_in(self.dir, self.namespace).await.unwrap()
    }

    fn key_file(&self) -> std::path::PathBuf {
        let name = format!("insecure_keyring_{}", self.namespace);
        self.dir.path().join("veilid/protected_store").join(name)
    }

    async fn open(&self, protection: Protection) -> Result<State> {
        State::open(&self.api, self.dir.path(), protection).await
    }
}

fn password(text: &str) -> Protection {
    Protection::Password(Zeroizing::new(text.to_owned()))
}

/// Does what the rest of a device does between the halves: nothing.
async fn rekey(state: &mut State, protection: Protection) {
    let rekey = state.begin_rekey(protection).await.unwrap();
    state.finish_rekey(rekey).await.unwrap();
}

async fn secret(node: &Node, name: &str) -> Option<Vec<u8>> {
    node.api.load_user_secret(name.to_owned()).await.unwrap()
}

#[tokio::test]
async fn the_state_needs_its_protection() {
    let node = Node::start().await;
    let state = node.open(password("one")).await.unwrap();
    let device = state.device().await.unwrap();
    drop(state);
    let node = node.restart().await;
    assert!(matches!(
        node.open(password("two")).await,
        Err(Error::WrongKey)
    ));
    for protection in [Protection::Keyring, Protection::Insecure] {
        assert!(matches!(
            node.open(protection).await,
            Err(Error::PasswordRequired)
        ));
    }
    let state = node.open(password("one")).await.unwrap();
    assert_eq!(state.device().await.unwrap(), device);
    drop(state);
    node.api.shutdown().await;
}

#[tokio::test]
async fn a_lost_key_is_not_made_anew() {
    let node = Node::start().await;
    let state = node.open(Protection::Insecure).await.unwrap();
    state.device().await.unwrap();
    state.remove_key().await.unwrap();
    drop(state);
    assert!(matches!(
        node.open(Protection::Insecure).await,
        Err(Error::KeyLost)
    ));
    assert_eq!(secret(&node, keys::NAME).await, None);
    node.api.shutdown().await;
}

#[tokio::test]
async fn rekeying_changes_protection_and_key_and_keeps_the_rows() {
    let node = Node::start().await;
    let mut state = node.open(password("one")).await.unwrap();
    let device = state.device().await.unwrap();
    let before = state.key.to_bytes();
    let row = state.table.load(COLUMN, DEVICE.into()).await.unwrap();
    rekey(&mut state, password("two")).await;
    assert_eq!(state.device().await.unwrap(), device);
    assert_ne!(state.key.to_bytes(), before);
    assert_ne!(state.table.load(COLUMN, DEVICE.into()).await.unwrap(), row);
    drop(state);
    let node = node.restart().await;
    assert!(matches!(
        node.open(password("one")).await,
        Err(Error::WrongKey)
    ));
    let mut state = node.open(password("two")).await.unwrap();
    state.settle().await.unwrap();
    assert_eq!(state.device().await.unwrap(), device);
    assert!(!state.key.has_previous());
    assert_eq!(secret(&node, keys::NEXT).await, None);
    // And back to none.
    rekey(&mut state, Protection::Insecure).await;
    drop(state);
    let state = node.open(Protection::Insecure).await.unwrap();
    assert_eq!(state.device().await.unwrap(), device);
    drop(state);
    node.api.shutdown().await;
}

/// As if the process had died at each point of a change.
#[tokio::test]
async fn a_change_that_is_cut_off_leaves_the_old_or_the_new() {
    let (old, new) = (|| password("old"), || password("new"));
    // Before the rest of the device was changed, the old one counts, ...
    let node = Node::start().await;
    let mut state = node.open(old()).await.unwrap();
    let device = state.device().await.unwrap();
    let cut_off = state.begin_rekey(new()).await.unwrap();
    drop((cut_off, state));
    let mut state = node.open(old()).await.unwrap();
    assert_eq!(state.device().await.unwrap(), device);
    state.settle().await.unwrap();
    drop(state);
    assert_eq!(secret(&node, keys::NEXT).await, None);
    assert!(matches!(node.open(new()).await, Err(Error::WrongKey)));

    // ... and after that the new one, whatever of this state was done.
    let mut state = node.open(old()).await.unwrap();
    let cut_off = state.begin_rekey(new()).await.unwrap();
    drop((cut_off, state));
    let state = node.open(new()).await.unwrap();
    assert!(state.cut_off);
    assert_eq!(state.device().await.unwrap(), device);
    // Half of the rest: the record, but not the rows.
    state
        .secrets
        .save(keys::NAME, &state.key.to_bytes())
        .await
        .unwrap();
    drop(state);
    assert!(matches!(node.open(old()).await, Err(Error::WrongKey)));
    let mut state = node.open(new()).await.unwrap();
    assert!(state.key.has_previous());
    state.settle().await.unwrap();
    assert!(!state.key.has_previous());
    assert_eq!(state.device().await.unwrap(), device);
    drop(state);
    let state = node.open(new()).await.unwrap();
    assert_eq!(state.device().await.unwrap(), device);
    drop(state);
    node.api.shutdown().await;
}

/// The key is replaced and its protection is not, the end fails, and something is sealed meanwhile.
#[tokio::test]
async fn a_change_to_the_same_protection_that_could_not_be_completed_loses_nothing() {
    let node = Node::start().await;
    let mut state = node.open(password("one")).await.unwrap();
    let device = state.device().await.unwrap();
    let Rekey { key, .. } = state.begin_rekey(password("one")).await.unwrap();
    state.key = key;
    state.cut_off = true;
    state.store(b"group/later", b"later").await.unwrap();
    drop(state);
    let mut state = node.open(password("one")).await.unwrap();
    for settled in [false, true] {
        assert_eq!(state.device().await.unwrap(), device);
        let later = state.load(b"group/later").await.unwrap().unwrap();
        assert_eq!(*later, b"later");
        if !settled {
            state.settle().await.unwrap();
        }
    }
    assert!(!state.key.has_previous());
    assert_eq!(secret(&node, keys::NEXT).await, None);
    drop(state);
    node.api.shutdown().await;
}

/// The keyring failed while the key of the store was replaced: the next start finds out which one counts.
#[tokio::test]
async fn where_it_is_not_known_which_protection_counts_both_are_kept() {
    for counts in ["one", "two"] {
        let node = Node::start().await;
        let mut state = node.open(password("one")).await.unwrap();
        let device = state.device().await.unwrap();
        let begun = state.begin_rekey(password("two")).await.unwrap();
        state.leave_rekey(begun.old).await;
        assert!(state.settle().await.is_err());
        assert!(state.begin_rekey(password("three")).await.is_err());
        drop(state);
        let mut state = node.open(password(counts)).await.unwrap();
        assert_eq!(state.device().await.unwrap(), device);
        state.settle().await.unwrap();
        assert_eq!(state.device().await.unwrap(), device);
        drop(state);
        let state = node.open(password(counts)).await.unwrap();
        assert_eq!(state.device().await.unwrap(), device);
        drop(state);
        node.api.shutdown().await;
    }
}

/// As if the disk had been full, or the keyring locked, at the end of the one before.
#[tokio::test]
async fn a_change_that_could_not_be_completed_is_completed_by_the_next() {
    let nowhere = |node: &Node| Protection::KeyFile(node.dir.path().join("missing/key"));
    for fails in [false, true] {
        let node = Node::start().await;
        let mut state = node.open(password("one")).await.unwrap();
        let device = state.device().await.unwrap();
        let Rekey { key, .. } = state.begin_rekey(password("two")).await.unwrap();
        state.key = key;
        state.cut_off = true;
        let counts = if fails {
            let failed = state.begin_rekey(nowhere(&node)).await;
            assert!(matches!(failed, Err(Error::KeyFile { .. })));
            "two"
        } else {
            rekey(&mut state, password("three")).await;
            "three"
        };
        assert_eq!(state.device().await.unwrap(), device);
        assert!(!state.key.has_previous());
        drop(state);
        assert_eq!(secret(&node, keys::NEXT).await, None);
        let state = node.open(password(counts)).await.unwrap();
        assert_eq!(state.device().await.unwrap(), device);
        drop(state);
        node.api.shutdown().await;
    }
}

#[tokio::test]
async fn a_change_that_fails_changes_nothing() {
    let node = Node::start().await;
    let mut state = node.open(password("old")).await.unwrap();
    let device = state.device().await.unwrap();
    assert!(matches!(
        state.begin_rekey(Protection::Keyring).await,
        Err(Error::InsecureKeyStorage)
    ));
    assert!(matches!(
        state.begin_rekey(password("")).await,
        Err(Error::PasswordRequired)
    ));
    let nowhere = node.dir.path().join("missing/key");
    assert!(matches!(
        state.begin_rekey(Protection::KeyFile(nowhere)).await,
        Err(Error::KeyFile { .. })
    ));
    let begun = state.begin_rekey(password("new")).await.unwrap();
    state.cancel_rekey(begun.old).await;
    assert_eq!(secret(&node, keys::NEXT).await, None);
    // The old protection goes on.
    state.secrets.save("another", b"x").await.unwrap();
    let secrets = Secrets::new(&node.api, password("old"));
    assert!(secrets.load("another").await.unwrap().is_some());
    drop(state);
    let state = node.open(password("old")).await.unwrap();
    assert_eq!(state.device().await.unwrap(), device);
    drop(state);
    node.api.shutdown().await;
}

#[tokio::test]
async fn keys_of_another_device_are_lost_keys() {
    let (node, other) = (Node::start().await, Node::start().await);
    for node in [&node, &other] {
        let state = node.open(Protection::Insecure).await.unwrap();
        state.device().await.unwrap();
    }
    let file = node.key_file();
    std::fs::copy(other.key_file(), &file).unwrap();
    other.api.shutdown().await;
    node.api.shutdown().await;
    let tables = node.dir.path().join("veilid/table_store");
    let count = || std::fs::read_dir(&tables).unwrap().count();
    let before = count();
    let started = Node::start_in(node.dir.clone(), node.namespace.clone()).await;
    assert!(
        matches!(started, Err(Error::KeyLost)),
        "{:?}",
        started.err()
    );
    assert_eq!(count(), before);
}

/// A crash while Veilid writes its key file leaves half of a new one beside it.
#[tokio::test]
async fn a_half_written_key_file_does_not_stop_the_next_start() {
    let node = Node::start().await;
    let state = node.open(password("one")).await.unwrap();
    let device = state.device().await.unwrap();
    drop(state);
    let mut half = node.key_file().into_os_string();
    half.push("~");
    std::fs::write(&half, b"half").unwrap();
    let node = node.restart().await;
    let state = node.open(password("one")).await.unwrap();
    assert_eq!(state.device().await.unwrap(), device);
    drop(state);
    node.api.shutdown().await;
}

/// Veilid forgets a table that it fails to open, and would make an empty one in its place.
#[tokio::test]
async fn a_table_that_veilid_lost_is_not_an_empty_state() {
    let node = Node::start().await;
    let state = node.open(password("one")).await.unwrap();
    let device = state.device().await.unwrap();
    drop(state);
    node.api.rename_table_db(TABLE, "lost").await.unwrap();
    let state = node.open(password("one")).await.unwrap();
    assert_eq!(state.device().await.unwrap(), device);
    drop(state);
    node.api.shutdown().await;
}
