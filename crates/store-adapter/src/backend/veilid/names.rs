//! Which file of Veilid's table store is which table of ours.
//!
//! Veilid's list of its tables is neither synced nor checked, so the store keeps one of its own beside it. Its names are of
//! no meaning to others: ids and numbers.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use veilid_core::VeilidConfig;

use super::unless_missing;
use crate::{Error, Result, secrets::sync_directory};

const FILE: &str = "tables";
const NEW: &str = "tables.new";
const TITLE: &str = "save-store tables 1";
const CONTEXT: &str = "save-dweb-backend v1 list of tables";
/// What belongs to a SQLite file.
const PARTS: [&str; 3] = ["", "-wal", "-shm"];
/// Where a repair of a table leaves the damaged one, and what it was about to put in its place.
const LEFT_BY_REPAIR: [&str; 2] = [".corrupt", ".repairing"];

/// The list: our names of tables, and Veilid's, which are random.
#[derive(Debug)]
pub(super) struct Names {
    dir: PathBuf,
    internal: BTreeMap<String, String>,
}

impl Names {
    /// An absent or damaged list is an empty one: it fills again as tables are opened.
    pub(super) fn read(dir: &Path) -> io::Result<Self> {
        let internal = match fs::read(dir.join(FILE)) {
            Ok(bytes) => parse(&bytes).unwrap_or_else(|| {
                tracing::warn!("the list of tables is damaged; it is made anew");
                BTreeMap::new()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error),
        };
        Ok(Self {
            dir: dir.to_owned(),
            internal,
        })
    }

    fn write(&self) -> io::Result<()> {
        let mut text = format!("{TITLE}\n");
        for (name, internal) in &self.internal {
            text.push_str(name);
            text.push(' ');
            text.push_str(internal);
            text.push('\n');
        }
        let sum = checksum(&text);
        let new = self.dir.join(NEW);
        let mut file = File::create(&new)?;
        file.write_all(text.as_bytes())?;
        file.write_all(sum.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, self.dir.join(FILE))?;
        sync_directory(&self.dir)
    }
}

fn parse(bytes: &[u8]) -> Option<BTreeMap<String, String>> {
    let text = str::from_utf8(bytes).ok()?;
    let text = text.strip_suffix(&checksum(text.get(..text.len().checked_sub(64)?)?))?;
    let lines = text.strip_prefix(TITLE)?.strip_prefix('\n')?;
    lines
        .lines()
        .map(|line| {
            let (name, internal) = line.split_once(' ')?;
            Some((name.to_owned(), internal.to_owned()))
        })
        .collect()
}

/// 64 digits.
fn checksum(text: &str) -> String {
    let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
    hasher.update(text.as_bytes());
    hasher.finalize().to_hex().to_string()
}

/// The tables' files.
#[derive(Debug, Clone)]
pub(super) struct Tables {
    directory: PathBuf,
    prefix: String,
    names: Arc<Mutex<Names>>,
}

impl Tables {
    pub(super) fn new(config: &VeilidConfig, names: Names) -> Self {
        Self {
            directory: PathBuf::from(&config.table_store.directory),
            prefix: match config.namespace.as_str() {
                "" => String::new(),
                namespace => format!("{namespace}_"),
            },
            names: Arc::new(Mutex::new(names)),
        }
    }

    /// Where Veilid keeps its tables.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(super) fn path(&self, internal: &str) -> PathBuf {
        self.part(internal, "")
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.lock().internal.keys().cloned().collect()
    }

    pub(super) fn internal(&self, name: &str) -> Option<String> {
        self.lock().internal.get(name).cloned()
    }

    pub(super) fn bytes(&self, name: &str) -> u64 {
        let Some(internal) = self.internal(name) else {
            return 0;
        };
        PARTS
            .iter()
            .filter_map(|part| fs::metadata(self.part(&internal, part)).ok())
            .map(|meta| meta.len())
            .sum()
    }

    /// Whether a table is open: SQLite keeps its log beside it for so long.
    pub(super) fn is_open(&self, internal: &str) -> bool {
        self.part(internal, "-wal").exists()
    }

    /// Remembers a table durably, the name of its file included.
    pub(super) fn remember(&self, name: &str, internal: &str) -> Result<()> {
        sync_directory(&self.directory).map_err(|source| self.failed(source))?;
        let mut names = self.lock();
        let before = names.internal.insert(name.to_owned(), internal.to_owned());
        names.write().map_err(|source| {
            match before {
                Some(before) => names.internal.insert(name.to_owned(), before),
                None => names.internal.remove(name),
            };
            Error::Io {
                path: names.dir.clone(),
                source,
            }
        })
    }

    /// Gives a table that Veilid made anew, and that is closed, the file that it had before. A crash on the way leaves either all
    /// as it was, so that this is done again, or all done but for a log that is not needed any more.
    pub(super) fn put_back(&self, name: &str, known: &str, internal: &str) -> Result<()> {
        let log = self.part(known, "-wal");
        let moved = || {
            if self.is_open(internal) {
                return Err(io::Error::other("the new table is still open"));
            }
            // Copied, because neither the file nor its log is whole without the other.
            if log.exists() {
                let copy = self.part(internal, "-wal");
                fs::copy(&log, &copy)?;
                File::options().write(true).open(&copy)?.sync_all()?;
            }
            fs::rename(self.path(known), self.path(internal))
        };
        moved().map_err(|source| self.failed(source))?;
        self.remember(name, internal)?;
        for part in ["-wal", "-shm"] {
            unless_missing(fs::remove_file(self.part(known, part)))
                .map_err(|source| self.failed(source))?;
        }
        Ok(())
    }

    /// Removes what a repair left beside a deleted table, and forgets the table.
    pub(super) fn forget(&self, name: &str) -> Result<()> {
        let remove = || {
            if let Some(internal) = self.internal(name) {
                for left in LEFT_BY_REPAIR.into_iter().chain([""]) {
                    for part in PARTS {
                        let path = self.part(&internal, &format!("{left}{part}"));
                        unless_missing(fs::remove_file(path))?;
                    }
                }
            }
            sync_directory(&self.directory)
        };
        remove().map_err(|source| self.failed(source))?;
        let mut names = self.lock();
        if names.internal.remove(name).is_none() {
            return Ok(());
        }
        names.write().map_err(|source| Error::Io {
            path: names.dir.clone(),
            source,
        })
    }

    fn part(&self, internal: &str, part: &str) -> PathBuf {
        self.directory
            .join(format!("{}{internal}{part}", self.prefix))
    }

    fn lock(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, source: io::Error) -> Error {
        Error::Io {
            path: self.directory.clone(),
            source,
        }
    }
}
