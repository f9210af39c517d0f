//! What the store asks of the system below it: tables, segment files and the protected store.
//!
//! [`veilid`] is the real one, [`memory`] the one for tests; both are run by the same tests.

use std::{fmt, io, sync::Arc};

use bytes::Bytes;
use futures::future::BoxFuture;

use crate::{Result, secrets::RawSecrets};

pub(crate) mod memory;
pub(crate) mod veilid;

#[cfg(test)]
mod tests;

/// One change of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Op {
    /// Writes a row, over one that is there.
    Put {
        column: u32,
        key: Bytes,
        value: Bytes,
    },
    /// Takes a row away; no error if there is none.
    Delete { column: u32, key: Bytes },
}

/// Rows in columns. A handle on an open table: the table can be deleted once all of them are dropped.
pub(crate) trait Table: Send + Sync + fmt::Debug {
    fn load(&self, column: u32, key: Bytes) -> BoxFuture<'_, Result<Option<Bytes>>>;
    /// All keys of a column, in no order.
    fn keys(&self, column: u32) -> BoxFuture<'_, Result<Vec<Bytes>>>;
    /// All or nothing, in the order given; survives the death of the process when it returns.
    fn commit(&self, ops: Vec<Op>) -> BoxFuture<'_, Result<()>>;
    /// All commits until now, and the table's existence, survive a power cut when it returns.
    fn checkpoint(&self) -> BoxFuture<'_, Result<()>>;
}

/// An open file. Blocking; called on blocking threads.
pub(crate) trait SegmentFile: Send + Sync + fmt::Debug {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    /// As [`read_exact_at`](Self::read_exact_at), if that takes no waiting for the disk: then it is called on async threads.
    /// `false` if it would have to wait, or cannot tell; then `buf` holds anything.
    fn read_now(&self, buf: &mut [u8], offset: u64) -> io::Result<bool> {
        let _ = (buf, offset);
        Ok(false)
    }
    /// Survives the death of the process when it returns.
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()>;
    /// Cuts the file off where it has been longer. Takes no space.
    fn cut(&self, len: u64) -> io::Result<()>;
    /// What was written until now survives a power cut when it returns; the file's name is
    /// [`Backend::sync_files`]' affair.
    fn sync(&self) -> io::Result<()>;
}

/// Tables, files and secrets of one store.
pub(crate) trait Backend: Send + Sync + fmt::Debug {
    /// Opens a table, or makes it. Names are letters, digits, `_` and `-`. A table that is open already gives another handle on it;
    /// one that has fewer columns and is not open gets those that are missing.
    fn open_table(&self, name: &str, columns: u32) -> BoxFuture<'_, Result<Arc<dyn Table>>>;
    /// No error if there is none. All handles have to be dropped before. Survives a power cut when it returns. Also removes what a
    /// repair of the table left beside it.
    fn delete_table(&self, name: &str) -> BoxFuture<'_, Result<()>>;
    /// The tables that were opened at any time and not deleted, in order; also when neither they nor the secrets can be read.
    fn table_names(&self) -> Vec<String>;
    /// Bytes on disk of one of those tables; 0 for any other.
    fn table_bytes(&self, name: &str) -> u64;
    fn secrets(&self) -> Arc<dyn RawSecrets>;

    /// Blocking; fails with `AlreadyExists` if it exists.
    fn create_file(&self, name: &str) -> io::Result<Arc<dyn SegmentFile>>;
    /// Blocking; fails with `NotFound` if there is none.
    fn open_file(&self, name: &str) -> io::Result<Arc<dyn SegmentFile>>;
    /// Blocking; no error if there is none. Handles that are open go on.
    fn remove_file(&self, name: &str) -> io::Result<()>;
    /// Blocking; names and lengths in no order.
    fn list_files(&self) -> io::Result<Vec<(String, u64)>>;
    /// Blocking; names made and removed until now survive a power cut when it returns.
    fn sync_files(&self) -> io::Result<()>;
}
