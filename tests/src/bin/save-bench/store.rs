//! The store beside iroh's file store: the same calls on both, in turns.

mod memory;
mod open;
mod work;

use std::{ops::Deref, path::Path, sync::Arc};

use iroh_blobs::{api::Store, store::fs::FsStore};
use store_adapter::{Protection, StoreOptions, VeilidStore};
use tempfile::TempDir;
use veilid_core::{VeilidAPI, VeilidConfig, api_startup};

use crate::{
    Arguments, MIB, Result, STORE_MEMORY_CHILD,
    report::{Figure, Limit},
};

/// How much is stored.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    /// Bytes of the one large blob.
    large: usize,
    /// Reads at random places of it.
    reads: usize,
    /// Blobs of [`work::SMALL`] bytes.
    small: usize,
    /// Blobs in the store that is opened.
    many: usize,
}

impl Sizes {
    fn new(arguments: &Arguments) -> Self {
        let scale = usize::from(arguments.scale);
        Self {
            large: 1024 * MIB / scale,
            reads: (4096 / scale).max(16),
            small: 10_000 / scale,
            many: 100_000 / scale,
        }
    }
}

/// Measures what was asked for.
pub(crate) async fn run(arguments: &Arguments) -> Result<()> {
    if arguments.name.as_deref() == Some(STORE_MEMORY_CHILD) {
        return memory::child(directory(arguments)?.path(), Sizes::new(arguments)).await;
    }
    let large = [
        ("store_import_large", 0.5),
        ("store_read_large", 0.5),
        ("store_random_read", 0.3),
    ];
    let small = [("store_import_small", 2.0), ("store_read_small", 1.0)];
    let wanted =
        |figures: &[(&str, f64)]| figures.iter().any(|(figure, _)| arguments.wants(figure));
    if wanted(&large) || wanted(&small) || arguments.wants("store_open") {
        let dir = directory(arguments)?;
        let sizes = Sizes::new(arguments);
        let node = Node::start(dir.path()).await?;
        if wanted(&large) {
            let figures = large_blob(arguments, &node, dir.path(), sizes).await?;
            print(arguments, &large, &figures, "MB/s");
        }
        if wanted(&small) {
            let figures = small_blobs(arguments, &node, dir.path(), sizes).await?;
            print(arguments, &small, &figures, "blobs/s");
        }
        if arguments.wants("store_open") {
            let figure = open::measure(arguments, &node, dir.path(), sizes).await?;
            figure.print(arguments.json, "store_open", "ms", &[Limit::RatioTo(2.0)]);
        }
        node.stop().await;
    }
    if arguments.wants("store_memory") {
        let figure = memory::measure(arguments).await?;
        figure.print(
            arguments.json,
            "store_memory",
            "MiB",
            &[Limit::RatioTo(1.0)],
        );
    }
    Ok(())
}

/// Prints what was asked for; each name stands with the ratio that it has to reach.
fn print(arguments: &Arguments, names: &[(&str, f64)], figures: &[Figure], unit: &str) {
    for ((name, least), figure) in names.iter().zip(figures) {
        if arguments.wants(name) {
            figure.print(arguments.json, name, unit, &[Limit::RatioFrom(*least)]);
        }
    }
}

/// Importing, reading and reading parts of one large blob.
async fn large_blob(
    arguments: &Arguments,
    node: &Node,
    dir: &Path,
    sizes: Sizes,
) -> Result<[Figure; 3]> {
    let mut figures: [Figure; 3] = Default::default();
    for round in 0..arguments.rounds {
        for side in sides(round) {
            let store = Opened::new(side, node, dir).await?;
            let (hash, import) = work::import_large(&store, dir, sizes.large, round).await?;
            let read = work::read_large(&store, dir, hash, sizes.large).await?;
            let random =
                work::read_parts(&store, dir, hash, sizes.large, sizes.reads, round).await?;
            store.remove().await?;
            for (figure, value) in figures.iter_mut().zip([import, read, random]) {
                side.add(figure, value);
            }
        }
    }
    Ok(figures)
}

/// Importing and reading many small blobs.
async fn small_blobs(
    arguments: &Arguments,
    node: &Node,
    dir: &Path,
    sizes: Sizes,
) -> Result<[Figure; 2]> {
    let mut figures: [Figure; 2] = Default::default();
    for round in 0..arguments.rounds {
        for side in sides(round) {
            let store = Opened::new(side, node, dir).await?;
            let (hashes, import) =
                work::import_small(&store, dir, sizes.small, work::SMALL, round).await?;
            let read = work::read_small(&store, dir, hashes, work::SMALL, round).await?;
            store.remove().await?;
            for (figure, value) in figures.iter_mut().zip([import, read]) {
                side.add(figure, value);
            }
        }
    }
    Ok(figures)
}

/// Both sides, each first in every other round.
fn sides(round: u16) -> [Side; 2] {
    if round.is_multiple_of(2) {
        [Side::Ours, Side::Files]
    } else {
        [Side::Files, Side::Ours]
    }
}

#[derive(Debug, Clone, Copy)]
enum Side {
    /// The project's store.
    Ours,
    /// iroh's file store.
    Files,
}

impl Side {
    fn add(self, figure: &mut Figure, value: f64) {
        match self {
            Self::Ours => figure.values.push(value),
            Self::Files => figure.baselines.push(value),
        }
    }
}

/// An open store in a fresh directory.
struct Opened {
    store: Either,
    dir: TempDir,
}

enum Either {
    Ours(VeilidStore),
    Files(FsStore),
}

impl Opened {
    async fn new(side: Side, node: &Node, dir: &Path) -> Result<Self> {
        let dir = tempfile::tempdir_in(dir)?;
        let store = match side {
            Side::Ours => Either::Ours(node.open(&dir.path().join("store")).await?),
            Side::Files => Either::Files(FsStore::load(dir.path().join("store")).await?),
        };
        Ok(Self { store, dir })
    }

    async fn remove(self) -> Result<()> {
        match self.store {
            Either::Ours(store) => store.wipe().await?,
            Either::Files(store) => store.shutdown().await?,
        }
        self.dir.close()?;
        Ok(())
    }
}

impl Deref for Opened {
    type Target = Store;

    fn deref(&self) -> &Store {
        match &self.store {
            Either::Ours(store) => store,
            Either::Files(store) => store,
        }
    }
}

/// A Veilid node that is never attached to a network.
pub(crate) struct Node {
    pub(crate) api: VeilidAPI,
}

impl Node {
    pub(crate) async fn start(dir: &Path) -> Result<Self> {
        let dir = dir.join("node");
        let path = dir.to_str().ok_or("the directory's path is no text")?;
        let mut config = VeilidConfig::new("bench", "bench", "org", Some(path), Some(path));
        // The secrets of a benchmark are worth nothing.
        config.protected_store.always_use_insecure_storage = true;
        config.table_store.wipe_on_invalid_device_encryption_key = false;
        let api = api_startup(Arc::new(|_| {}), config).await?;
        Ok(Self { api })
    }

    pub(crate) async fn open(&self, dir: &Path) -> Result<VeilidStore> {
        let options = StoreOptions::default().with_protection(Protection::Insecure);
        Ok(VeilidStore::open(&self.api, dir, options).await?)
    }

    pub(crate) async fn stop(self) {
        self.api.shutdown().await;
    }
}

/// A directory for everything that is stored.
pub(crate) fn directory(arguments: &Arguments) -> Result<TempDir> {
    let below = match &arguments.dir {
        Some(dir) => {
            std::fs::create_dir_all(dir)?;
            dir.clone()
        }
        None => {
            let program = std::env::current_exe()?;
            program
                .parent()
                .ok_or("this program lies in no directory")?
                .to_owned()
        }
    };
    Ok(tempfile::Builder::new()
        .prefix("save-bench-")
        .tempdir_in(below)?)
}
