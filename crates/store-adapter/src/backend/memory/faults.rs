//! What tests do to the disk and the process.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering},
};

use bytes::Bytes;

use super::{
    Backend, Disk, FileData, FileState, MemoryBackend, TableData, TableState, apply, lock, write_at,
};

/// Bytes of a sector: a disk writes it whole or not at all.
const SECTOR: usize = 512;

/// What a power cut takes of that which was not made durable.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Loss {
    /// Everything.
    All,
    /// Of each table, the commits from some point on; of each file, any sectors; of names that were made or taken away, any. Chosen
    /// by this seed.
    Some(u64),
}

impl MemoryBackend {
    /// A new disk that can lose its power.
    pub(crate) fn with_power_cuts() -> Self {
        Self::on(Arc::new(Disk {
            keeps_durable: true,
            ..Disk::default()
        }))
    }

    /// From now on the protected store counts as a plain file.
    pub(crate) fn unguarded(self) -> Self {
        self.disk.unguarded.store(true, Ordering::Relaxed);
        self
    }

    /// Writes of this process until now: commits, checkpoints, writes to files, syncs, names made and taken away, secrets saved
    /// and removed.
    pub(crate) fn writes(&self) -> u64 {
        self.process.writes.load(Ordering::SeqCst)
    }

    /// The process does so many writes more and dies in the middle of the next; whatever it does then fails.
    pub(crate) fn die_after(&self, writes: u64) {
        let at = self.writes() + writes;
        self.process.dies_after.store(at, Ordering::SeqCst);
    }

    /// After so many writes more the disk is full, until [`free_disk`](Self::free_disk): what takes space fails.
    pub(crate) fn fill_disk_after(&self, writes: u64) {
        let at = self.writes() + writes;
        self.process.full_after.store(at, Ordering::SeqCst);
    }

    pub(crate) fn free_disk(&self) {
        self.process.full_after.store(u64::MAX, Ordering::SeqCst);
    }

    /// Ends the process, if it has not died yet, and starts another on the same disk.
    pub(crate) fn restart(&self) -> Self {
        self.process.alive.store(false, Ordering::SeqCst);
        Self::on(self.disk.clone())
    }

    /// Cuts the power, and starts another process on what the disk has kept. The disk has to be one
    /// [`with_power_cuts`](Self::with_power_cuts).
    pub(crate) fn cut_power(&self, loss: Loss) -> Self {
        assert!(self.disk.keeps_durable, "this disk cannot lose its power");
        self.process.alive.store(false, Ordering::SeqCst);
        let mut chance = Chance::of(loss);
        lock(&self.disk.tables).retain(|_, table| {
            let mut state = lock(&table.state);
            state.lose(&mut chance)
        });
        let mut files = lock(&self.disk.files);
        let mut durable = lock(&self.disk.durable_files);
        let names: BTreeSet<String> = files.keys().chain(durable.keys()).cloned().collect();
        for name in names {
            let (now, before) = (files.get(&name).cloned(), durable.get(&name).cloned());
            let same = match (&now, &before) {
                (Some(now), Some(before)) => Arc::ptr_eq(now, before),
                _ => false,
            };
            let left = if same || chance.keeps() { now } else { before };
            match left {
                Some(file) => files.insert(name, file),
                None => files.remove(&name),
            };
        }
        *durable = files.clone();
        for file in files.values() {
            lock(&file.state).lose(&mut chance);
        }
        drop((files, durable));
        Self::on(self.disk.clone())
    }

    /// Another disk with the same content, for one that cannot lose its power.
    pub(crate) fn copy(&self) -> Self {
        let copy = Disk::default();
        for (name, table) in lock(&self.disk.tables).iter() {
            let data = TableData::default();
            let columns = table.columns.load(Ordering::Relaxed);
            data.columns.store(columns, Ordering::Relaxed);
            lock(&data.state).rows = lock(&table.state).rows.clone();
            lock(&copy.tables).insert(name.clone(), Arc::new(data));
        }
        for (name, file) in lock(&self.disk.files).iter() {
            let data = FileData::default();
            lock(&data.state).data = lock(&file.state).data.clone();
            lock(&copy.files).insert(name.clone(), Arc::new(data));
        }
        *lock(&copy.secrets) = lock(&self.disk.secrets).clone();
        Self::on(Arc::new(copy))
    }

    /// Flips a bit of a file; the bit's number counts from the beginning.
    pub(crate) fn flip_file(&self, name: &str, bit: usize) {
        let file = self.file_named(name);
        flip(&mut lock(&file.state).data, bit);
    }

    /// Flips a bit of a row's value.
    pub(crate) fn flip_row(&self, table: &str, column: u32, key: &[u8], bit: usize) {
        let data = lock(&self.disk.tables).get(table).cloned();
        let data = data.expect("the table is there");
        let mut state = lock(&data.state);
        let key = (column, Bytes::copy_from_slice(key));
        let row = state.rows.get_mut(&key).expect("the row is there");
        let mut value = row.to_vec();
        flip(&mut value, bit);
        *row = value.into();
    }

    /// Flips a bit of a secret's record.
    pub(crate) fn flip_secret(&self, name: &str, bit: usize) {
        let mut secrets = lock(&self.disk.secrets);
        flip(secrets.get_mut(name).expect("the secret is there"), bit);
    }

    /// Cuts a file off.
    pub(crate) fn truncate_file(&self, name: &str, len: usize) {
        let file = self.file_named(name);
        lock(&file.state).data.truncate(len);
    }

    /// A table's rows, without a process.
    pub(crate) fn rows(&self, table: &str) -> Vec<(u32, Bytes, Bytes)> {
        let data = lock(&self.disk.tables).get(table).cloned();
        data.map_or_else(Vec::new, |data| {
            lock(&data.state)
                .rows
                .iter()
                .map(|((column, key), value)| (*column, key.clone(), value.clone()))
                .collect()
        })
    }

    /// Everything on the disk: names and contents of secrets, tables and files.
    pub(crate) fn image(&self) -> Vec<(String, Vec<u8>)> {
        let mut image = Vec::new();
        for (name, value) in lock(&self.disk.secrets).iter() {
            image.push((format!("secret {name}"), value.to_vec()));
        }
        for table in self.table_names() {
            for (column, key, value) in self.rows(&table) {
                let row = format!("table {table} column {column}");
                image.push((row.clone(), key.to_vec()));
                image.push((row, value.to_vec()));
            }
        }
        for (name, file) in lock(&self.disk.files).iter() {
            image.push((format!("file {name}"), lock(&file.state).data.clone()));
        }
        image
    }

    fn file_named(&self, name: &str) -> Arc<FileData> {
        let file = lock(&self.disk.files).get(name).cloned();
        file.expect("the file is there")
    }
}

impl TableState {
    /// Whether the table itself is left.
    fn lose(&mut self, chance: &mut Chance) -> bool {
        let kept = chance.up_to(self.since.len());
        let durable = self.durable.is_some() || chance.keeps();
        let mut rows = self.durable.take().unwrap_or_default();
        for ops in self.since.drain(..).take(kept) {
            apply(&mut rows, &ops);
        }
        self.rows = rows.clone();
        self.durable = Some(rows);
        durable
    }
}

impl FileState {
    fn lose(&mut self, chance: &mut Chance) {
        let mut data = std::mem::take(&mut self.durable);
        for (start, written) in self.since.drain(..) {
            let mut at = 0;
            while at < written.len() {
                let end = written.len().min(at + SECTOR - (start + at) % SECTOR);
                if chance.keeps() {
                    write_at(&mut data, start + at..start + end, &written[at..end]);
                }
                at = end;
            }
        }
        self.data.clone_from(&data);
        self.durable = data;
    }
}

fn flip(bytes: &mut [u8], bit: usize) {
    bytes[bit / 8] ^= 1 << (bit % 8);
}

/// Numbers that look random (SplitMix64), or none at all.
struct Chance(Option<u64>);

impl Chance {
    fn of(loss: Loss) -> Self {
        Self(match loss {
            Loss::All => None,
            Loss::Some(seed) => Some(seed),
        })
    }

    fn next(&mut self) -> Option<u64> {
        let state = self.0.as_mut()?;
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Some(z ^ (z >> 31))
    }

    fn keeps(&mut self) -> bool {
        self.next().is_some_and(|n| n & 1 == 1)
    }

    fn up_to(&mut self, most: usize) -> usize {
        self.next().map_or(0, |n| (n % (most as u64 + 1)) as usize)
    }
}
