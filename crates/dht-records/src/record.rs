//! One record: opening, reading through the cache, writing into it.

mod merge;
mod publish;
mod shared;
mod watch;

pub use publish::{Outcome, Published};
pub(crate) use shared::Core;
pub use watch::{Changed, Watch};

use std::ops::RangeInclusive;
use std::sync::Arc;

use futures::{StreamExt, stream};
use serde::Serialize;
use serde::de::DeserializeOwned;
use veilid_core::{DHTRecordReport, DHTSchema, KeyPair, PublicKey, RecordKey, ValueData};

use crate::access::GroupAccess;
use crate::cache::Cached;
use crate::contexts::Purpose;
use crate::error::{Error, Result};
use crate::records::{RecordEvent, Records};
use crate::value::{self, Kind, Opened, Place, ValueKey};
use merge::{Note, Seen};

/// Where a read may look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fetch {
    /// Only here: never touches the network.
    Cached,
    /// Asks the network first, and fails if it does not answer.
    Network,
}

/// A value with the counter under which it was written. The counter of a subkey only grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamped<T> {
    /// The counter, from 1.
    pub counter: u64,
    /// The value.
    pub value: T,
}

/// The two kinds of record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    Group,
    Repo,
}

impl Layout {
    pub(crate) const fn subkeys(self) -> u16 {
        match self {
            Layout::Group => 1024,
            Layout::Repo => 32,
        }
    }

    /// Bytes that Veilid takes in one subkey: `min(32 KiB, 1 MiB / subkeys)`.
    pub(crate) const fn limit(self) -> usize {
        match self {
            Layout::Group => 1024,
            Layout::Repo => 32_768,
        }
    }

    const fn kind(self, subkey: u32) -> Kind {
        match (self, subkey) {
            (Layout::Group, 0) => Kind::GroupMetadata,
            (Layout::Group, _) => Kind::Slot,
            (Layout::Repo, 0) => Kind::RepoMetadata,
            (Layout::Repo, 1) => Kind::Root,
            (Layout::Repo, _) => Kind::Tunnel,
        }
    }
}

/// A handle of one record, with the keys that its holder has.
#[derive(Clone)]
pub(crate) struct Record {
    pub(crate) core: Arc<Core>,
    pub(crate) layout: Layout,
    writer: Option<KeyPair>,
    locator: ValueKey,
    content: Option<ValueKey>,
}

impl Record {
    /// Makes the record of `owner` in the local store, if it is not there, and gives a handle.
    pub(crate) async fn create(
        records: &Records,
        layout: Layout,
        access: &GroupAccess,
        owner: KeyPair,
    ) -> Result<Self> {
        let record =
            Self::attach(records, layout, access, owner.key(), Some(owner.clone())).await?;
        record.core.create(&owner).await?;
        Ok(record)
    }

    /// Gives a handle of the record of `public`. Asks nobody.
    pub(crate) async fn attach(
        records: &Records,
        layout: Layout,
        access: &GroupAccess,
        public: PublicKey,
        writer: Option<KeyPair>,
    ) -> Result<Self> {
        if writer.as_ref().is_some_and(|pair| pair.key() != public) {
            return Err(Error::KeyMismatch);
        }
        let schema = DHTSchema::dflt(layout.subkeys())?;
        Ok(Self {
            core: records.core(schema, public, layout.limit()).await?,
            layout,
            writer,
            locator: ValueKey::new(access.locator().derive(Purpose::LocatorValues)),
            content: access
                .content()
                .map(|key| ValueKey::new(key.derive(Purpose::ContentValues))),
        })
    }

    pub(crate) fn key(&self) -> &RecordKey {
        &self.core.key
    }

    pub(crate) fn owner(&self) -> &PublicKey {
        &self.core.owner
    }

    pub(crate) fn writable(&self) -> bool {
        self.writer.is_some()
    }

    pub(crate) fn api(&self) -> &veilid_core::VeilidAPI {
        &self.core.inner.api
    }

    fn place(&self, subkey: u32) -> Place<'_> {
        Place {
            record: &self.core.opaque,
            subkey,
            kind: self.layout.kind(subkey),
        }
    }

    fn value_key(&self, subkey: u32) -> Result<&ValueKey> {
        match self.layout.kind(subkey) {
            Kind::GroupMetadata | Kind::RepoMetadata => {
                self.content.as_ref().ok_or(Error::NoContentKey)
            }
            _ => Ok(&self.locator),
        }
    }

    pub(crate) fn unseal(&self, subkey: u32, sealed: &[u8]) -> Result<Opened> {
        value::open(self.value_key(subkey)?, &self.place(subkey), sealed)
    }

    /// The row of a subkey; one that cannot be read counts as none where `lenient`.
    async fn row(&self, subkey: u32, lenient: bool) -> Result<Option<Cached>> {
        match self.core.inner.cache.load(&self.core.opaque, subkey).await {
            Err(Error::CacheRow) if lenient => {
                tracing::warn!(
                    subkey,
                    "row of the record cache is damaged and will be replaced"
                );
                Ok(None)
            }
            other => other,
        }
    }

    async fn store(&self, subkey: u32, row: &Cached) -> Result<()> {
        self.core
            .inner
            .cache
            .store(&self.core.opaque, subkey, row)
            .await
    }

    /// The subkeys of which something is known here.
    pub(crate) async fn known(&self) -> Result<Vec<u32>> {
        self.core.inner.cache.subkeys(&self.core.opaque).await
    }

    /// What is known here of a subkey.
    pub(crate) async fn cached(&self, subkey: u32) -> Result<Option<Opened>> {
        self.value_key(subkey)?;
        match self.sealed(subkey).await? {
            Some(sealed) => self.unseal(subkey, &sealed).map(Some),
            None => Ok(None),
        }
    }

    /// The same, sealed.
    pub(crate) async fn sealed(&self, subkey: u32) -> Result<Option<Vec<u8>>> {
        let row = self.row(subkey, false).await?;
        Ok(row.filter(Cached::has_value).map(|row| row.sealed))
    }

    /// One subkey, from here or from the network.
    pub(crate) async fn read(&self, subkey: u32, fetch: Fetch) -> Result<Option<Opened>> {
        self.value_key(subkey)?;
        if fetch == Fetch::Network {
            first_failure(self.refresh(subkey..=subkey).await?)?;
        }
        self.cached(subkey).await
    }

    /// Brings the cache up to what the network has: one inspection, then only what changed. Gives the subkeys that cannot be read or
    /// whose value on the network is of no use, and why. Fails where this device cannot store what it read.
    pub(crate) async fn refresh(&self, subkeys: RangeInclusive<u32>) -> Result<Vec<(u32, Error)>> {
        let report = self.core.inspect(None).await?;
        let mut changed = Vec::new();
        for (subkey, seq) in network_seqs(&report) {
            if subkeys.contains(&subkey) {
                let row = self.row(subkey, true).await?;
                if row.is_none_or(|row| row.seq.is_none_or(|known| known < seq)) {
                    changed.push(subkey);
                }
            }
        }
        self.take_in_all(changed).await
    }

    /// Brings the cache up to what the network has of these subkeys, without an inspection. Gives whether each could be read and was newer
    /// than what was here.
    pub(crate) async fn refresh_these(&self, subkeys: &[u32]) -> Result<bool> {
        let mut before = Vec::new();
        for &subkey in subkeys {
            before.push(self.row(subkey, true).await?.and_then(|row| row.seq));
        }
        if !self.take_in_all(subkeys.to_vec()).await?.is_empty() {
            return Ok(false);
        }
        for (&subkey, before) in subkeys.iter().zip(before) {
            let now = self.row(subkey, true).await?.and_then(|row| row.seq);
            if now <= before {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reads subkeys from the network into the cache. Gives those that cannot be read or opened.
    async fn take_in_all(&self, subkeys: Vec<u32>) -> Result<Vec<(u32, Error)>> {
        let results: Vec<(u32, Result<Option<Note>>)> = stream::iter(subkeys)
            .map(|subkey| async move { (subkey, self.refresh_one(subkey).await) })
            .buffer_unordered(self.core.inner.options.parallel.max(1))
            .collect()
            .await;
        let mut failed = Vec::new();
        let mut resend = Vec::new();
        let mut local = None;
        for (subkey, result) in results {
            match result {
                Ok(Some(_)) => resend.push(subkey),
                Ok(None) => {}
                Err(error) if error.is_local() => local = Some(error),
                Err(error) => failed.push((subkey, error)),
            }
        }
        if !resend.is_empty() && self.writable() {
            self.restore(resend).await;
        }
        failed.sort_unstable_by_key(|(subkey, _)| *subkey);
        local.map_or(Ok(failed), Err)
    }

    async fn refresh_one(&self, subkey: u32) -> Result<Option<Note>> {
        match self.core.get(subkey, true).await? {
            None => Ok(None),
            Some(data) => self.take_in(subkey, &data, None).await,
        }
    }

    /// Merges a value that the network gave into the cache. With `sent`, this device sent nothing above that number
    /// that was not read back.
    async fn take_in(
        &self,
        subkey: u32,
        data: &ValueData,
        sent: Option<u32>,
    ) -> Result<Option<Note>> {
        let opened = self.unseal(subkey, data.data()).inspect_err(|error| {
            if !matches!(error, Error::NoContentKey) {
                self.core.inner.emit(RecordEvent::Undecodable {
                    record: self.core.opaque.clone(),
                    subkey,
                    error: error.clone(),
                });
            }
        })?;
        let seen = Seen {
            counter: opened.counter,
            sealed: data.data(),
            seq: data.seq().to_option(),
            above_sent: sent.is_some() && data.seq().to_option() > sent,
        };
        let _rows = self.core.rows.lock().await;
        let row = self.row(subkey, true).await?;
        let (merged, note) = merge::take_in(row.as_ref(), &seen);
        if row.as_ref() != Some(&merged) {
            self.store(subkey, &merged).await?;
        }
        match note {
            // Said once for each value that the network shows, not each time that it is looked at.
            Some(Note::Rollback { .. })
                if row.is_some_and(|row| data.seq().to_option() <= row.seq) => {}
            Some(Note::Rollback { seen, got }) => self.core.inner.emit(RecordEvent::Rollback {
                record: self.core.opaque.clone(),
                subkey,
                seen,
                got,
            }),
            Some(Note::Overwritten { ours, theirs }) => {
                self.core.inner.emit(RecordEvent::Overwritten {
                    record: self.core.opaque.clone(),
                    subkey,
                    ours,
                    theirs,
                })
            }
            Some(Note::Contested) | None => {}
        }
        Ok(note)
    }

    /// Writes a payload into the cache under the next counter. It goes to the network with the next `publish`.
    pub(crate) async fn write(&self, subkey: u32, payload: &[u8]) -> Result<u64> {
        self.check_writable()?;
        let _rows = self.core.rows.lock().await;
        let row = self.row(subkey, true).await?;
        self.write_over(subkey, row, payload).await
    }

    fn check_writable(&self) -> Result<()> {
        if self.writable() {
            Ok(())
        } else {
            Err(Error::ReadOnly)
        }
    }

    /// Writes a payload over a row. The rows have to be locked.
    async fn write_over(&self, subkey: u32, row: Option<Cached>, payload: &[u8]) -> Result<u64> {
        let key = self.value_key(subkey)?;
        let counter = merge::next_counter(row.as_ref()).ok_or(Error::CounterExhausted)?;
        let sealed = value::seal(key, &self.place(subkey), counter, payload, self.core.limit)?;
        let next = merge::write(row, counter, sealed);
        self.store(subkey, &next).await?;
        Ok(counter)
    }

    /// Gives up a write that is not published. What it replaced is not known here until it is read again.
    pub(crate) async fn discard(&self, subkey: u32) -> Result<()> {
        let _rows = self.core.rows.lock().await;
        match self.row(subkey, true).await? {
            Some(row) if !row.published => self.store(subkey, &merge::discard(&row)).await,
            _ => Ok(()),
        }
    }

    /// Writes a value as JSON.
    pub(crate) async fn write_json<T: Serialize>(&self, subkey: u32, value: &T) -> Result<u64> {
        self.write(subkey, &to_json(value, self.layout.kind(subkey))?)
            .await
    }

    /// Edits what is known here of a value in JSON, and gives whether that changed it. It counts as the default where there is none, or no
    /// JSON of this kind. What is read from the network meanwhile is not lost.
    pub(crate) async fn edit_json<T>(&self, subkey: u32, edit: impl FnOnce(&mut T)) -> Result<bool>
    where
        T: Serialize + DeserializeOwned + Default + Clone + PartialEq,
    {
        self.check_writable()?;
        let kind = self.layout.kind(subkey);
        let _rows = self.core.rows.lock().await;
        let row = self.row(subkey, true).await?;
        let mut before = None;
        if let Some(row) = row.as_ref().filter(|row| row.has_value()) {
            let opened = self.unseal(subkey, &row.sealed)?;
            before = from_json::<T>(&opened, kind).ok();
        }
        let before = before.map(|stamped| stamped.value);
        let mut after = before.clone().unwrap_or_default();
        edit(&mut after);
        if before.as_ref() == Some(&after) {
            return Ok(false);
        }
        self.write_over(subkey, row, &to_json(&after, kind)?)
            .await?;
        Ok(true)
    }

    /// Reads a value from JSON. A cleared subkey is `None`.
    pub(crate) async fn read_json<T: DeserializeOwned>(
        &self,
        subkey: u32,
        fetch: Fetch,
    ) -> Result<Option<Stamped<T>>> {
        self.read(subkey, fetch)
            .await?
            .filter(|opened| !opened.payload.is_empty())
            .map(|opened| from_json(&opened, self.layout.kind(subkey)))
            .transpose()
    }

    /// Closes the record, takes it out of Veilid's local store, and forgets its rows.
    pub(crate) async fn forget(&self) -> Result<()> {
        self.core.close().await;
        let deleted = self
            .core
            .inner
            .api
            .routing_context()?
            .delete_dht_record(self.core.key.clone())
            .await;
        match deleted.map_err(Error::from) {
            // Not stored here: nothing to take out.
            Ok(()) | Err(Error::RecordNotFound) => {}
            Err(error) => return Err(error),
        }
        let _rows = self.core.rows.lock().await;
        self.core.inner.cache.remove(&self.core.opaque).await
    }
}

pub(crate) fn to_json<T: Serialize>(value: &T, kind: Kind) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|_| Error::InvalidPayload { kind })
}

// What serde says about a payload may quote it, so only the kind is kept.
pub(crate) fn from_json<T: DeserializeOwned>(opened: &Opened, kind: Kind) -> Result<Stamped<T>> {
    let value =
        serde_json::from_slice(&opened.payload).map_err(|_| Error::InvalidPayload { kind })?;
    Ok(Stamped {
        counter: opened.counter,
        value,
    })
}

/// Turns the first subkey that a refresh could not use into an error.
pub(crate) fn first_failure(failed: Vec<(u32, Error)>) -> Result<()> {
    match failed.into_iter().next() {
        Some((_, error)) => Err(error),
        None => Ok(()),
    }
}

/// The subkeys that the network has, with their sequence numbers.
fn network_seqs(report: &DHTRecordReport) -> impl Iterator<Item = (u32, u32)> {
    let seqs = report.subkeys().iter().zip(report.network_seqs());
    seqs.filter_map(|(subkey, seq)| Some((subkey, seq.to_option()?)))
}
