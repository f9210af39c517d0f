//! Which files and lists of other members were obtained in this group.
//!
//! A device can be in several groups and has one store. That a blob lies in the store must not be told to a group whose members
//! only named it: so a file of another member counts here only if a member of this group gave a byte of it that was true.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use iroh_blobs::Hash;

use crate::{
    Result,
    ledger::{GroupLedger, RowName},
};

/// The first byte of a row of this kind.
pub(crate) const KIND: u8 = 1;
/// Fewer hashes than this are not worth forgetting.
const WORTHWHILE: usize = 1_000;

/// Hashes, in rows by the first byte of the hash.
#[derive(Debug, Default)]
pub(crate) struct Held {
    state: Mutex<State>,
    /// Held while rows are written, so that none is replaced by an older one.
    writing: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    hashes: BTreeMap<u8, HashSet<Hash>>,
    unwritten: BTreeSet<u8>,
}

impl Held {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A member of the group gave something of a file. To be written with [`write`](Self::write).
    pub(crate) fn obtained(&self, hash: Hash) {
        let mut state = self.lock();
        let row = row_of(&hash);
        if state.hashes.entry(row).or_default().insert(hash) {
            state.unwritten.insert(row);
        }
    }

    pub(crate) fn contains(&self, hash: &Hash) -> bool {
        self.lock()
            .hashes
            .get(&row_of(hash))
            .is_some_and(|hashes| hashes.contains(hash))
    }

    /// Takes up a row; whether it is one of this kind.
    pub(crate) fn take_up(&self, row: &[u8]) -> bool {
        let Some((&KIND, hashes)) = row.split_first() else {
            return false;
        };
        let (hashes, _) = hashes.as_chunks::<32>();
        let mut state = self.lock();
        for hash in hashes {
            let hash = Hash::from_bytes(*hash);
            state.hashes.entry(row_of(&hash)).or_default().insert(hash);
        }
        true
    }

    /// Forgets what `keep` does not want, once that is most of it: files that are gone from everybody's lists.
    pub(crate) fn tidy(&self, keep: impl Fn(&Hash) -> bool) {
        let mut state = self.lock();
        let state = &mut *state;
        let all: usize = state.hashes.values().map(HashSet::len).sum();
        let kept = state.hashes.values().flatten().filter(|hash| keep(hash));
        if all < kept.count() * 2 + WORTHWHILE {
            return;
        }
        for (row, hashes) in &mut state.hashes {
            let before = hashes.len();
            hashes.retain(&keep);
            if hashes.len() < before {
                state.unwritten.insert(*row);
            }
        }
    }

    /// Writes down what changed.
    ///
    /// # Errors
    /// Those of the ledger; then it is written the next time.
    pub(crate) async fn write(&self, ledger: &GroupLedger) -> Result<()> {
        let _one_at_a_time = self.writing.lock().await;
        let mut taken = Taken {
            held: self,
            rows: std::mem::take(&mut self.lock().unwritten),
        };
        if taken.rows.is_empty() {
            return Ok(());
        }
        let changes: Vec<(RowName, Option<Vec<u8>>)> = {
            let state = self.lock();
            taken
                .rows
                .iter()
                .map(|row| {
                    let hashes = state.hashes.get(row).filter(|hashes| !hashes.is_empty());
                    let value = hashes.map(|hashes| {
                        let mut value = vec![KIND];
                        for hash in hashes {
                            value.extend_from_slice(hash.as_bytes());
                        }
                        value
                    });
                    (ledger.name(KIND, &[&[*row]]), value)
                })
                .collect()
        };
        ledger.write(changes).await?;
        taken.rows.clear();
        Ok(())
    }
}

/// Rows that are being written. They count as unwritten again unless that succeeded, also where it was called off.
struct Taken<'a> {
    held: &'a Held,
    rows: BTreeSet<u8>,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.held.lock().unwritten.append(&mut self.rows);
    }
}

fn row_of(hash: &Hash) -> u8 {
    hash.as_bytes().first().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use dht_records::GroupAccess;
    use veilid_core::{CRYPTO_KIND_VLD0, Crypto};

    use super::*;
    use crate::Ledger;

    #[tokio::test]
    async fn what_was_obtained_is_known_after_a_restart() {
        let owner = Crypto::generate_keypair(CRYPTO_KIND_VLD0).unwrap();
        let access = GroupAccess::Member { owner };
        let ledger = GroupLedger::new(Ledger::in_memory(), &access);
        let hashes: Vec<Hash> = (0..1_500_u32).map(|n| Hash::new(n.to_be_bytes())).collect();
        let held = Held::default();
        for hash in &hashes {
            held.obtained(*hash);
        }
        held.write(&ledger).await.unwrap();

        let again = Held::default();
        for (_, row) in ledger.load().await.unwrap() {
            assert!(again.take_up(&row));
        }
        assert!(hashes.iter().all(|hash| again.contains(hash)));
        assert!(!again.contains(&Hash::new(b"another")));

        // What could not be written is written the next time.
        let more = Hash::new(b"more");
        again.obtained(more);
        let closed = Ledger::in_memory();
        closed.close();
        let failed = again.write(&GroupLedger::new(closed, &access)).await;
        assert!(failed.is_err());
        again.write(&ledger).await.unwrap();
        let later = Held::default();
        for (_, row) in ledger.load().await.unwrap() {
            later.take_up(&row);
        }
        assert!(later.contains(&more));

        again.tidy(|hash| *hash == hashes[7]);
        again.write(&ledger).await.unwrap();
        assert_eq!(ledger.load().await.unwrap().len(), 1);
    }
}
