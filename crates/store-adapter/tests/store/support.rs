//! Stores to test, and what to put into them.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use bao_tree::io::EncodeError;
use bytes::Bytes;
use iroh_blobs::{
    Hash,
    api::{self, ExportBaoError, RequestError},
    protocol::{ChunkRanges, ChunkRangesExt},
    store::mem::MemStore,
};
use store_adapter::{Protection, StoreOptions, VeilidStore};
use tempfile::TempDir;
use veilid_core::{VeilidAPI, VeilidConfig, api_startup};

/// The size of a hash tree's lowest node: 16 chunks of 1 KiB.
pub(crate) const GROUP: usize = 16 * 1024;
/// Above this a blob is no longer stored as one row.
pub(crate) const ROW: usize = 256 * 1024;
/// Where something changes in how a blob is hashed or stored.
pub(crate) const SIZES: [usize; 15] = [
    0,
    1,
    1023,
    1024,
    1025,
    GROUP - 1,
    GROUP,
    GROUP + 1,
    3 * GROUP - 7,
    ROW - 1,
    ROW,
    ROW + 1,
    ROW + GROUP,
    1 << 20,
    (1 << 20) + 1,
];

/// What a store stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backend {
    /// Tables and secrets of a Veilid node, and files.
    Veilid,
    /// The same in memory.
    Memory,
}

/// A Veilid node that is never attached to a network.
pub(crate) struct Node {
    pub(crate) api: VeilidAPI,
}

/// Nodes of one process need different namespaces.
static NEXT: AtomicU32 = AtomicU32::new(0);

impl Node {
    pub(crate) async fn start(dir: &Path, namespace: &str) -> Self {
        let path = dir.to_str().unwrap();
        let mut config = VeilidConfig::new("test", "test", "org", Some(path), Some(path));
        config.namespace = namespace.to_owned();
        config.protected_store.always_use_insecure_storage = true;
        config.table_store.wipe_on_invalid_device_encryption_key = false;
        let api = api_startup(Arc::new(|_| {}), config).await.unwrap();
        Self { api }
    }

    pub(crate) async fn stop(self) {
        let config = self.api.config().unwrap();
        self.api.shutdown().await;
        // The node lets go of its secrets a moment after it has stopped; until then no other can start there.
        let directory = PathBuf::from(&config.protected_store.directory);
        let secrets = directory.join(format!("insecure_keyring_{}", config.namespace));
        tokio::task::spawn_blocking(move || File::open(secrets).unwrap().lock().unwrap())
            .await
            .unwrap();
    }
}

/// How the stores of these tests are opened.
pub(crate) fn options() -> StoreOptions {
    // The node's protected store is a plain file, and the secrets of tests are worth nothing.
    StoreOptions::default().with_protection(Protection::Insecure)
}

/// A place for one store.
pub(crate) struct Place {
    dir: TempDir,
    namespace: String,
    node: Option<Node>,
}

impl Place {
    pub(crate) async fn new(backend: Backend) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let namespace = format!("n{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let node = match backend {
            Backend::Veilid => Some(Node::start(&dir.path().join("node"), &namespace).await),
            Backend::Memory => None,
        };
        Self {
            dir,
            namespace,
            node,
        }
    }

    pub(crate) async fn veilid() -> Self {
        Self::new(Backend::Veilid).await
    }

    /// Everything of the store and of its node is somewhere below.
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn store_dir(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    pub(crate) async fn try_open(&self) -> store_adapter::Result<VeilidStore> {
        self.try_open_at(&self.store_dir()).await
    }

    pub(crate) async fn try_open_at(&self, dir: &Path) -> store_adapter::Result<VeilidStore> {
        match &self.node {
            Some(node) => VeilidStore::open(&node.api, dir, options()).await,
            None => VeilidStore::in_memory(options()).await,
        }
    }

    pub(crate) async fn open_at(&self, dir: &Path) -> VeilidStore {
        self.try_open_at(dir).await.unwrap()
    }

    pub(crate) async fn open(&self) -> VeilidStore {
        self.try_open().await.unwrap()
    }

    pub(crate) async fn restart_node(&mut self) {
        self.stop_node().await;
        self.start_node().await;
    }

    pub(crate) async fn start_node(&mut self) {
        self.node = Some(Node::start(&self.dir.path().join("node"), &self.namespace).await);
    }

    pub(crate) fn api(&self) -> &VeilidAPI {
        &self.node.as_ref().unwrap().api
    }

    /// Where the node keeps its secrets, in plain files.
    pub(crate) fn protected_store(&self) -> PathBuf {
        let config = self.api().config().unwrap();
        config.protected_store.directory.clone().into()
    }

    /// The files of the tables of the store in `dir`.
    pub(crate) fn table_files(&self, dir: &Path) -> Vec<PathBuf> {
        let api = self.api();
        let format = std::fs::read_to_string(dir.join("format")).unwrap();
        let id = format.lines().nth(1).unwrap();
        let directory = PathBuf::from(api.config().unwrap().table_store.directory.clone());
        let mut files: Vec<PathBuf> = api
            .list_table_dbs()
            .unwrap()
            .into_iter()
            .filter(|(name, _)| name.contains(&format!("save_store_{}", &id[..16])))
            .map(|(_, file)| directory.join(format!("{}_{file}", self.namespace)))
            .collect();
        files.sort();
        assert!(files.len() >= 2 && files.iter().all(|file| file.exists()));
        files
    }

    pub(crate) async fn stop_node(&mut self) {
        if let Some(node) = self.node.take() {
            node.stop().await;
        }
    }

    pub(crate) async fn end(mut self) {
        self.stop_node().await;
    }
}

/// A sequence of numbers that looks random (splitmix64) and is the same for the same seed.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }
}

/// Bytes that no two seeds share.
pub(crate) fn noise(seed: u64, size: usize) -> Bytes {
    let mut bytes = vec![0; size];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes.into()
}

/// The number of chunks of a blob.
pub(crate) fn chunks(size: usize) -> u64 {
    (size as u64).div_ceil(1024).max(1)
}

/// Those ranges that are made of whole groups. A store can prove no others, although it can hold them.
pub(crate) fn whole_groups(ranges: &ChunkRanges, size: usize) -> ChunkRanges {
    (0..chunks(size))
        .step_by(16)
        .map(|from| ChunkRanges::chunks(from..(from + 16).min(chunks(size))))
        .filter(|group| group.is_subset(ranges))
        .fold(ChunkRanges::empty(), |all, group| all | group)
}

/// iroh's own store with one blob.
pub(crate) async fn mem_with(data: &Bytes) -> (MemStore, Hash) {
    let mem = MemStore::new();
    let hash = mem.add_bytes(data.clone()).await.unwrap().hash;
    (mem, hash)
}

/// A blob's hash, and those ranges of it as they travel.
pub(crate) async fn encoded(data: &Bytes, ranges: &ChunkRanges) -> (Hash, Bytes) {
    let (mem, hash) = mem_with(data).await;
    let bytes = mem
        .export_bao(hash, ranges.clone())
        .bao_to_vec()
        .await
        .unwrap();
    (hash, bytes.into())
}

/// Puts some ranges of a blob into a store.
pub(crate) async fn import_ranges(store: &api::Store, data: &Bytes, ranges: &ChunkRanges) -> Hash {
    let (hash, bytes) = encoded(data, ranges).await;
    store
        .import_bao_bytes(hash, ranges.clone(), bytes)
        .await
        .unwrap();
    hash
}

/// A blob is there, whole, and right, whichever way it is read.
pub(crate) async fn assert_holds(store: &api::Store, hash: Hash, data: &Bytes) {
    assert_eq!(
        store.status(hash).await.unwrap(),
        api::blobs::BlobStatus::Complete {
            size: data.len() as u64
        }
    );
    assert!(store.get_bytes(hash).await.unwrap() == *data);
    let part = store.export_ranges(hash, 0..data.len() as u64);
    assert!(part.concatenate().await.unwrap() == *data);
}

/// What kind of error it is, without its words.
pub(crate) trait Kind {
    fn kind(&self) -> String;
}

impl Kind for api::Error {
    fn kind(&self) -> String {
        match self {
            Self::Io(error) => format!("{:?}", error.kind()),
        }
    }
}

impl Kind for RequestError {
    fn kind(&self) -> String {
        match self {
            Self::Inner { source, .. } => source.kind(),
            other => format!("{other:?}"),
        }
    }
}

impl Kind for ExportBaoError {
    fn kind(&self) -> String {
        match self {
            Self::ExportBaoInner { source, .. } => match source {
                EncodeError::Io(error) => format!("{:?}", error.kind()),
                EncodeError::ParentHashMismatch(_) => "ParentHashMismatch".to_owned(),
                EncodeError::LeafHashMismatch(_) => "LeafHashMismatch".to_owned(),
                EncodeError::ParentWrite(_) => "ParentWrite".to_owned(),
                EncodeError::LeafWrite(_) => "LeafWrite".to_owned(),
                EncodeError::SizeMismatch => "SizeMismatch".to_owned(),
            },
            Self::ExportBaoIo { source, .. } => format!("{:?}", source.kind()),
            other => format!("{other:?}"),
        }
    }
}

/// The error's kind, or what there was instead of it.
pub(crate) fn kind_of<T: std::fmt::Debug, E: Kind>(result: Result<T, E>) -> String {
    match result {
        Ok(value) => format!("no error but {value:?}"),
        Err(error) => error.kind(),
    }
}

/// Ranges that touch a blob's edges, or those of a node of its hash tree.
pub(crate) fn telling_ranges(size: usize) -> Vec<ChunkRanges> {
    let n = chunks(size);
    let range = |from: u64, to: u64| ChunkRanges::chunks(from..to);
    vec![
        ChunkRanges::empty(),
        ChunkRanges::all(),
        ChunkRanges::last_chunk(),
        range(0, 1),
        range(n - 1, n),
        range(n / 2, n / 2 + 1),
        range(0, 16),
        range(1, 17),
        range(15, 33),
        range(n + 5, n + 6),
        ChunkRanges::chunks(n / 3..),
        range(0, 1) | ChunkRanges::chunks(n..),
        range(2, 3) | range(5, 6) | range(40, 41),
        range(0, n / 4) | range(n / 2, n / 2 + 3) | ChunkRanges::last_chunk(),
    ]
}
