//! What several tests need.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use dht_records::{DeviceId, GroupAccess, Records, TableCache};
use store_adapter::{Protection, StoreOptions, VeilidStore};
use tempfile::TempDir;
use tokio::io::{AsyncRead, ReadBuf};
use veilid_core::{CRYPTO_KIND_VLD0, Crypto, VeilidAPI, VeilidConfig, api_startup};

use crate::{Clock, RepoContext};

/// A clock that a test sets.
#[derive(Debug, Default)]
pub(crate) struct TestClock(pub(crate) AtomicU64);

impl Clock for TestClock {
    fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A device with a Veilid node that is started and never attached, so that it needs no network.
pub(crate) struct Device {
    pub(crate) ctx: RepoContext,
    pub(crate) clock: Arc<TestClock>,
    api: VeilidAPI,
    namespace: String,
    dir: TempDir,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

impl Device {
    pub(crate) async fn start() -> Self {
        let namespace = format!("repo{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let id = DeviceId::random().unwrap();
        Self::start_in(tempfile::tempdir().unwrap(), namespace, id).await
    }

    async fn start_in(dir: TempDir, namespace: String, device: DeviceId) -> Self {
        let path = dir.path().to_str().unwrap();
        let mut config = VeilidConfig::new("test", "test", "org", Some(path), Some(path));
        config.namespace = namespace.clone();
        config.protected_store.always_use_insecure_storage = true;
        config.table_store.wipe_on_invalid_device_encryption_key = false;
        let api = api_startup(Arc::new(|_| {}), config).await.unwrap();
        let clock = Arc::new(TestClock(AtomicU64::new(1_700_000_000)));
        let ctx = RepoContext {
            records: Records::new(api.clone(), Arc::new(TableCache::open(&api).await.unwrap())),
            store: VeilidStore::open(
                &api,
                &dir.path().join("store"),
                StoreOptions::default().with_protection(Protection::Insecure),
            )
            .await
            .unwrap(),
            device,
            clock: clock.clone(),
        };
        Self {
            ctx,
            clock,
            api,
            namespace,
            dir,
        }
    }

    /// Ends the process, as far as that can be done within one, and starts it again.
    pub(crate) async fn restart(self) -> Self {
        let Self {
            ctx,
            api,
            namespace,
            dir,
            ..
        } = self;
        ctx.store.close().await.unwrap();
        ctx.records.close().await;
        let device = ctx.device;
        drop(ctx);
        api.shutdown().await;
        Self::start_in(dir, namespace, device).await
    }

    pub(crate) async fn stop(self) {
        self.ctx.store.close().await.unwrap();
        self.ctx.records.close().await;
        self.api.shutdown().await;
    }
}

/// A group that this device is a member of.
pub(crate) fn group() -> GroupAccess {
    GroupAccess::Member {
        owner: Crypto::generate_keypair(CRYPTO_KIND_VLD0).unwrap(),
    }
}

/// Fails at the first read.
pub(crate) struct FailingReader;

impl AsyncRead for FailingReader {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Ready(Err(io::Error::other("the disk is gone")))
    }
}
