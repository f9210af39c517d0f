//! `list_cached*` and `put_one_more*`: a repo as it grows, on a node without a network, each turn in a process of its own.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Instant,
};

use clap::Parser;
use dht_records::{DeviceId, Fetch, GroupAccess, Records, TableCache};
use iroh_blobs::{api::blobs::BlobStatus, format::collection::Collection};
use repo::{EntryPath, Hash, Repo, RepoContext, Source, SystemClock, WriteOptions};
use serde::{Deserialize, Serialize};
use store_adapter::VeilidStore;
use tokio::process::Command;
use veilid_core::{CRYPTO_KIND_VLD0, Crypto};

use super::FILES;
use crate::{
    Arguments, Result,
    child::status,
    report::{Figure, Limit, median},
    store::{Node, directory},
};

/// The first argument of the process that has the repo.
pub(crate) const CHILD: &str = "files";

/// Written at once while a repo is filled.
const BATCH: usize = 5_000;
/// Files that are added one by one in each turn, and lists that are read again.
const TURNS: usize = 4;

/// A list may take so many milliseconds for each 10,000 entries begun.
const LIST: f64 = 100.0;
/// One more file may add so many bytes to the store beside its own.
const PUT: f64 = 65_536.0;
/// An entry may take so many bytes of memory. Told from so many entries on, which show beside all else.
const ENTRY: f64 = 1_024.0;
const SEEN: usize = 10_000;
/// One more file may take so much memory for a moment, in KiB, however many there are.
const PEAK: f64 = 4_096.0;

/// Works with the repo in a directory.
#[derive(Debug, Parser)]
#[command(name = CHILD)]
struct Process {
    /// Where everything is kept
    #[arg(long)]
    dir: PathBuf,
    /// Only sees to it that there are so many files
    #[arg(long)]
    fill: Option<usize>,
    /// Reads the baseline of the list first
    #[arg(long)]
    bare_first: bool,
}

/// What a turn found.
#[derive(Debug, Serialize, Deserialize)]
struct Turn {
    /// Files in the repo.
    files: usize,
    /// The first list after the start, in milliseconds.
    list: f64,
    /// A list once more.
    again: f64,
    /// Asking the store which files of the list are here, as a group's list does.
    here: f64,
    /// The same once more.
    here_again: f64,
    /// Reading the blobs of the list and nothing else.
    bare: f64,
    /// Memory that the entries take, in bytes for each.
    entry: f64,
    /// Bytes of the whole list.
    whole: f64,
    put: Put,
    /// Telling all that the repo reaches, in milliseconds.
    reach: f64,
}

/// What one more file takes.
#[derive(Debug, Serialize, Deserialize)]
struct Put {
    /// New in the store beside the file, in bytes.
    bytes: f64,
    /// The same in blobs.
    blobs: f64,
    /// Handed to the disk, the file and what the store notes included, in bytes.
    disk: f64,
    milliseconds: f64,
    /// The most memory above that before, in KiB.
    peak: f64,
}

pub(super) async fn run(arguments: &Arguments) -> Result<()> {
    let wanted =
        |(_, list, put): &(usize, &str, &str)| arguments.wants(list) || arguments.wants(put);
    if !FILES.iter().any(wanted) {
        return Ok(());
    }
    let dir = directory(arguments)?;
    for (files, list, put) in FILES.iter().filter(|sizes| wanted(sizes)) {
        let files = (files / usize::from(arguments.scale)).max(1);
        let filling = Instant::now();
        let text = files.to_string();
        process(dir.path(), &["--fill", &text]).await?;
        tracing::info!(files, seconds = filling.elapsed().as_secs_f64(), "filled");
        let (mut lists, mut puts) = (Figure::default(), Figure::default());
        for round in 0..arguments.rounds {
            let order: &[&str] = match round.is_multiple_of(2) {
                true => &[],
                false => &["--bare-first"],
            };
            let turn: Turn = serde_json::from_slice(&process(dir.path(), order).await?)?;
            lists.push(turn.list, turn.bare);
            for (name, value) in [
                ("files", turn.files as f64),
                ("again_ms", turn.again),
                ("here_ms", turn.here),
                ("here_again_ms", turn.here_again),
                ("reach_ms", turn.reach),
            ] {
                lists.push_more(name, value);
            }
            puts.push(turn.put.bytes, turn.whole);
            for (name, value) in [
                ("files", turn.files as f64),
                ("new_blobs", turn.put.blobs),
                ("disk_bytes", turn.put.disk),
                ("ms", turn.put.milliseconds),
                ("peak_kib", turn.put.peak),
            ] {
                puts.push_more(name, value);
            }
            if files >= SEEN {
                puts.push_more("entry_bytes", turn.entry);
            }
        }
        if arguments.wants(list) {
            let most = LIST * files.div_ceil(10_000) as f64;
            let limits = [
                Limit::ValueTo(most),
                Limit::MoreTo("again_ms", most),
                Limit::MoreTo("here_ms", most),
            ];
            lists.print(arguments.json, list, "ms", &limits);
        }
        if arguments.wants(put) {
            let mut limits = vec![Limit::ValueTo(PUT), Limit::MoreTo("peak_kib", PEAK)];
            if files >= SEEN {
                limits.push(Limit::MoreTo("entry_bytes", ENTRY));
            }
            puts.print(arguments.json, put, "bytes", &limits);
        }
    }
    Ok(dir.close()?)
}

/// Runs a process on the repo; what it printed.
async fn process(dir: &Path, arguments: &[&str]) -> Result<Vec<u8>> {
    let output = Command::new(std::env::current_exe()?)
        .arg(CHILD)
        .arg("--dir")
        .arg(dir)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .output()
        .await?;
    match output.status.success() {
        true => Ok(output.stdout),
        false => Err(format!("the process with the repo ended with {}", output.status).into()),
    }
}

/// The process.
pub(crate) async fn child() -> Result<()> {
    let arguments = Process::parse_from(std::env::args_os().skip(1));
    let node = Node::start(&arguments.dir).await?;
    let context = RepoContext {
        records: Records::new(
            node.api.clone(),
            Arc::new(TableCache::open(&node.api).await?),
        ),
        store: node.open(&arguments.dir.join("store")).await?,
        device: DeviceId([1; 16]),
        clock: Arc::new(SystemClock),
    };
    match arguments.fill {
        Some(files) => fill(&context, &arguments.dir, files).await?,
        None => {
            let turn = turn(&context, &arguments).await?;
            println!("{}", serde_json::to_string(&turn)?);
        }
    }
    context.store.close().await?;
    context.records.close().await;
    drop(context);
    node.stop().await;
    Ok(())
}

/// The key pairs of the group and of the repo.
#[derive(Debug, Serialize, Deserialize)]
struct Keys {
    owner: String,
    repo: String,
}

/// The repo in a directory; a new one if there is none.
async fn open(context: &RepoContext, dir: &Path) -> Result<Repo> {
    let file = dir.join("keys.json");
    let Ok(keys) = std::fs::read(&file) else {
        let owner = Crypto::generate_keypair(CRYPTO_KIND_VLD0)?;
        let text = owner.to_string();
        let access = GroupAccess::Member { owner };
        let (repo, keypair) = Repo::create(context, &access, "Bench").await?;
        let keys = Keys {
            owner: text,
            repo: keypair.to_string(),
        };
        std::fs::write(file, serde_json::to_vec(&keys)?)?;
        return Ok(repo);
    };
    let keys: Keys = serde_json::from_slice(&keys)?;
    let access = GroupAccess::Member {
        owner: keys.owner.parse()?,
    };
    let keypair: veilid_core::KeyPair = keys.repo.parse()?;
    Ok(Repo::open(context, &access, keypair.key(), Some(keypair)).await?)
}

/// Paths as cameras and people make them.
fn path(index: usize) -> Result<EntryPath> {
    let (month, day) = (index / 2_800 % 12 + 1, index / 100 % 28 + 1);
    Ok(EntryPath::parse(&format!(
        "2026/{month:02}/{day:02}/IMG_{index:06}.jpg"
    ))?)
}

/// A small file: what is in it does not matter here.
fn file(index: usize) -> Result<(EntryPath, Source, WriteOptions)> {
    let data = std::io::Cursor::new(format!("file {index}").into_bytes());
    Ok((path(index)?, Box::new(data), WriteOptions::default()))
}

async fn fill(context: &RepoContext, dir: &Path, files: usize) -> Result<()> {
    let repo = open(context, dir).await?;
    let mut have = repo.list().await?.len();
    while have < files {
        let next = files.min(have + BATCH);
        let batch: Vec<_> = (have..next).map(file).collect::<Result<_>>()?;
        repo.write_many(batch).await?;
        have = next;
    }
    // The lists of earlier batches.
    let _report = context.store.gc().await?;
    Ok(())
}

async fn turn(context: &RepoContext, arguments: &Process) -> Result<Turn> {
    let repo = open(context, &arguments.dir).await?;
    // Asking the repo would load the list.
    let root = repo.record().root(Fetch::Cached).await?;
    let root = Hash::from_bytes(root.ok_or("the repo has no root")?.value.hash);
    let mut bare = None;
    if arguments.bare_first {
        bare = Some(read_bare(&context.store, root).await?);
    }
    let idle = status("VmRSS:")?;
    let start = Instant::now();
    let known = repo.entry(&path(0)?).await?.is_some();
    let mut list = milliseconds(start);
    let loaded = status("VmRSS:")?;
    let start = Instant::now();
    let files = repo.list().await?.len();
    list += milliseconds(start);
    if !known {
        return Err("a file is missing".into());
    }
    let mut again = Vec::new();
    for _ in 0..TURNS {
        let start = Instant::now();
        let _entries = repo.list().await?;
        again.push(milliseconds(start));
    }
    let blobs: Vec<_> = repo.list().await?.iter().map(|e| e.blob).collect();
    let start = Instant::now();
    let told = context.store.complete_by_index(&blobs).await?;
    let here = milliseconds(start);
    let start = Instant::now();
    let told_again = context.store.complete_by_index(&blobs).await?;
    let here_again = milliseconds(start);
    if told.contains(&false) || told_again.contains(&false) {
        return Err("a file is not here".into());
    }
    let bare = match bare {
        Some(bare) => bare,
        None => read_bare(&context.store, root).await?,
    };
    let whole = whole(&context.store, &repo).await?;
    let put = put(&context.store, &repo, files).await?;
    let start = Instant::now();
    let _reachable = repo.reachable().await?;
    Ok(Turn {
        files,
        list,
        again: median(&again),
        here,
        here_again,
        bare,
        entry: loaded.saturating_sub(idle) as f64 * 1024.0 / files as f64,
        whole,
        put,
        reach: milliseconds(start),
    })
}

/// Reads a list's blobs, as iroh does, and opens nothing; milliseconds.
async fn read_bare(store: &VeilidStore, root: Hash) -> Result<f64> {
    let start = Instant::now();
    let shards = Collection::load(root, &**store).await?;
    for (_, shard) in shards {
        let _names = Collection::load(shard, &**store).await?;
    }
    Ok(milliseconds(start))
}

/// The bytes of all blobs of the list.
async fn whole(store: &VeilidStore, repo: &Repo) -> Result<f64> {
    let files: HashSet<Hash> = repo.list().await?.iter().map(|entry| entry.blob).collect();
    let mut bytes = 0;
    for hash in repo.reachable().await? {
        if !files.contains(&hash)
            && let BlobStatus::Complete { size } = store.status(hash).await?
        {
            bytes += size;
        }
    }
    Ok(bytes as f64)
}

/// Adds files one by one; what the middle one of them took, and the most memory that any did.
async fn put(store: &VeilidStore, repo: &Repo, files: usize) -> Result<Put> {
    let [mut bytes, mut blobs, mut disk, mut times] = [(); 4].map(|()| Vec::new());
    let before = status("VmRSS:")?;
    // Sets the peak to the present value.
    std::fs::write("/proc/self/clear_refs", "5")?;
    for turn in 0..TURNS {
        let (path, source, options) = file(files + turn)?;
        let (usage, written) = (store.usage().await?, written()?);
        let start = Instant::now();
        let entry = repo.write(&path, source, options).await?;
        times.push(milliseconds(start));
        let after = store.usage().await?;
        let BlobStatus::Complete { size } = store.status(entry.blob).await? else {
            return Err("a file that was written is not here".into());
        };
        bytes.push((after.bytes - usage.bytes - size) as f64);
        blobs.push((after.blobs - usage.blobs - 1) as f64);
        disk.push((self::written()? - written) as f64);
    }
    let peak = status("VmHWM:")?.saturating_sub(before);
    Ok(Put {
        bytes: median(&bytes),
        blobs: median(&blobs),
        disk: median(&disk),
        milliseconds: median(&times),
        peak: peak as f64,
    })
}

/// The bytes that this process has handed to the disk.
fn written() -> Result<u64> {
    let io = std::fs::read_to_string("/proc/self/io")?;
    let bytes = io
        .lines()
        .find_map(|line| line.strip_prefix("write_bytes:"))
        .ok_or("the system does not tell what this process has written")?;
    Ok(bytes.trim().parse()?)
}

fn milliseconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}
