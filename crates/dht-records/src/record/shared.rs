//! What all handles of a record share, and the calls on Veilid.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use veilid_core::{
    CRYPTO_KIND_VLD0, DHTRecordReport, DHTReportScope, DHTSchema, KeyPair, OpaqueRecordKey,
    PublicKey, RecordKey, RoutingContext, ValueData, ValueSubkeyRangeSet, VeilidAPIError,
};

use super::watch::Watchers;
use crate::error::{Error, Result, kind_of};
use crate::records::Inner;
use crate::stats::Operation;

/// What all handles of a record share.
pub(crate) struct Core {
    pub(crate) opaque: OpaqueRecordKey,
    pub(crate) watchers: Watchers,
    pub(super) inner: Arc<Inner>,
    pub(super) key: RecordKey,
    schema: DHTSchema,
    pub(super) owner: PublicKey,
    pub(super) limit: usize,
    open: Mutex<bool>,
    // Held from reading a row to writing it back, so that counters are given out once.
    pub(super) rows: Mutex<()>,
    pub(super) publishing: Mutex<()>,
}

impl Core {
    pub(crate) fn new(
        inner: Arc<Inner>,
        key: RecordKey,
        schema: DHTSchema,
        owner: PublicKey,
        limit: usize,
    ) -> Self {
        Self {
            opaque: key.opaque(),
            watchers: Watchers::default(),
            inner,
            key,
            schema,
            owner,
            limit,
            open: Mutex::new(false),
            rows: Mutex::new(()),
            publishing: Mutex::new(()),
        }
    }

    /// Makes the record in the local store, if it is not there. Needs no network.
    pub(super) async fn create(&self, owner: &KeyPair) -> Result<()> {
        let mut open = self.open.lock().await;
        if !*open {
            Box::pin(self.create_and_open(owner)).await?;
            *open = true;
        }
        Ok(())
    }

    async fn create_and_open(&self, owner: &KeyPair) -> Result<()> {
        let context = self.inner.api.routing_context()?;
        // Veilid puts a random encryption key into the key of a record that it makes. Ours are found by the bare key
        // alone, so the record is closed and opened again under that.
        let made = context
            .create_dht_record(CRYPTO_KIND_VLD0, self.schema.clone(), Some(owner.clone()))
            .await;
        match made {
            Ok(descriptor) => context.close_dht_record(descriptor.key()).await?,
            Err(error) => {
                // It refuses to make a record twice: then it opens without asking anyone. If it does not open either,
                // the first error is the reason.
                return match context.open_dht_record(self.key.clone(), None, None).await {
                    Ok(_) => Ok(()),
                    Err(_) => Err(error.into()),
                };
            }
        }
        let _descriptor = context
            .open_dht_record(self.key.clone(), None, None)
            .await?;
        Ok(())
    }

    /// Opens the record unless it is open. With `owner`, a record that the network does not know is made here.
    pub(super) async fn ensure_open(&self, owner: Option<&KeyPair>) -> Result<()> {
        let mut open = self.open.lock().await;
        if *open {
            return Ok(());
        }
        let context = self.inner.api.routing_context()?;
        // Without a default writer: a storage node grants only 8 watches to all who open with one, and 32 to others.
        let after = self.inner.options.open;
        let opened = self
            .timed(Operation::Open, after, async {
                context.open_dht_record(self.key.clone(), None, None).await
            })
            .await;
        match (opened, owner) {
            (Ok(_), _) => Box::pin(self.store_new(&context)).await?,
            (Err(Error::RecordNotFound), Some(owner)) => {
                Box::pin(self.create_and_open(owner)).await?;
            }
            (Err(error), _) => return Err(error),
        }
        *open = true;
        Ok(())
    }

    /// Has Veilid store a record that it found on the network just now, which it does when a record is closed. Otherwise it would lose it
    /// where there is no space later on, and could neither close it nor open it again.
    async fn store_new(&self, context: &RoutingContext) -> Result<()> {
        if !self.inner.cache.subkeys(&self.opaque).await?.is_empty() {
            return Ok(());
        }
        context.close_dht_record(self.key.clone()).await?;
        let _descriptor = context
            .open_dht_record(self.key.clone(), None, None)
            .await?;
        Ok(())
    }

    /// Closes the record and opens it again, which makes Veilid look whether the network still has it. Watches live on.
    pub(super) async fn reopen(&self) -> Result<()> {
        {
            let mut open = self.open.lock().await;
            if std::mem::take(&mut *open) {
                let context = self.inner.api.routing_context()?;
                context.close_dht_record(self.key.clone()).await?;
                self.watchers.died();
            }
        }
        self.ensure_open(None).await
    }

    /// Closes the record and ends its watches. The next call that needs the network opens it again.
    pub(crate) async fn close(&self) {
        self.watchers.end();
        let mut open = self.open.lock().await;
        if std::mem::take(&mut *open) {
            let closed = match self.inner.api.routing_context() {
                Ok(context) => context.close_dht_record(self.key.clone()).await,
                Err(error) => Err(error),
            };
            if let Err(error) = closed {
                tracing::debug!(kind = kind_of(&error), "record was not closed");
            }
        }
    }

    /// Runs a call on the open record, and once more if another handle had closed it meanwhile.
    pub(super) async fn call<T, F>(
        &self,
        owner: Option<&KeyPair>,
        operation: Operation,
        after: Duration,
        call: impl Fn(RoutingContext) -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T, VeilidAPIError>>,
    {
        self.ensure_open(owner).await?;
        let context = self.inner.api.routing_context()?;
        let first = self.timed(operation, after, call(context.clone()));
        match first.await {
            Err(Error::Veilid(VeilidAPIError::InvalidArgument {
                context: reason, ..
            })) if reason == "record not open" => {
                *self.open.lock().await = false;
                self.ensure_open(owner).await?;
                self.timed(operation, after, call(context)).await
            }
            other => other,
        }
    }

    /// Veilid's local copy of a subkey: what the network showed or took last.
    pub(super) async fn stored(&self, subkey: u32) -> Result<Option<ValueData>> {
        // A read without force would ask the network where there is no copy.
        let report = self
            .call(
                None,
                Operation::InspectHere,
                self.inner.options.inspect,
                |context| async move {
                    let subkeys = Some(ValueSubkeyRangeSet::single(subkey));
                    context
                        .inspect_dht_record(self.key.clone(), subkeys, DHTReportScope::Local)
                        .await
                },
            )
            .await?;
        match report
            .local_seq_for(subkey)
            .is_some_and(|seq| seq.is_some())
        {
            true => self.get(subkey, false).await,
            false => Ok(None),
        }
    }

    /// What the network has of some subkeys, or of all. Fails if no node answers.
    ///
    /// Veilid looks until enough nodes have the newest value of each, and for 10 s where they do not. Where nothing was ever written, it asks
    /// every node it knows.
    pub(super) async fn inspect(&self, subkeys: Option<&[u32]>) -> Result<DHTRecordReport> {
        let range = || subkeys.map(|subkeys| subkeys.iter().copied().collect());
        self.call(
            None,
            Operation::Inspect,
            self.inner.options.inspect,
            |context| async move {
                context
                    .inspect_dht_record(self.key.clone(), range(), DHTReportScope::SyncGet)
                    .await
            },
        )
        .await
    }

    /// One subkey; without `force` one that is [`stored`](Self::stored) here.
    pub(super) async fn get(&self, subkey: u32, force: bool) -> Result<Option<ValueData>> {
        let operation = match force {
            true => Operation::Get,
            false => Operation::GetHere,
        };
        let after = self.inner.options.get;
        self.call(None, operation, after, |context| async move {
            context.get_dht_value(self.key.clone(), subkey, force).await
        })
        .await
    }

    async fn timed<T>(
        &self,
        operation: Operation,
        after: Duration,
        call: impl Future<Output = Result<T, VeilidAPIError>>,
    ) -> Result<T> {
        let _under_way = self.inner.counters.begin(operation);
        // Veilid's futures take kilobytes, and would make each future large that waits for one.
        match tokio::time::timeout(after, Box::pin(call)).await {
            Ok(result) => result.map_err(Error::from),
            Err(_) => Err(Error::Timeout {
                operation: operation.name(),
                after,
            }),
        }
    }
}
