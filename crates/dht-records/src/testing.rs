//! A Veilid node for tests: started, never attached, so it needs no network.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;
use veilid_core::{
    BareOpaqueRecordKey, CRYPTO_KIND_VLD0, Crypto, KeyPair, OpaqueRecordKey, VeilidAPI,
    VeilidConfig, api_startup,
};

static NEXT: AtomicU32 = AtomicU32::new(0);

pub(crate) struct Node {
    pub(crate) api: VeilidAPI,
    namespace: String,
    dir: TempDir,
}

impl Node {
    pub(crate) async fn start() -> Self {
        let namespace = format!("n{}", NEXT.fetch_add(1, Ordering::Relaxed));
        Self::start_in(tempfile::tempdir().unwrap(), namespace).await
    }

    async fn start_in(dir: TempDir, namespace: String) -> Self {
        let path = dir.path().to_str().unwrap();
        let mut config = VeilidConfig::new("test", "test", "org", Some(path), Some(path));
        config.namespace = namespace.clone();
        config.protected_store.always_use_insecure_storage = true;
        config.table_store.wipe_on_invalid_device_encryption_key = false;
        let api = api_startup(Arc::new(|_| {}), config).await.unwrap();
        Self {
            api,
            namespace,
            dir,
        }
    }

    pub(crate) async fn restart(self) -> Self {
        self.api.shutdown().await;
        Self::start_in(self.dir, self.namespace).await
    }

    pub(crate) async fn stop(self) {
        self.api.shutdown().await;
    }
}

pub(crate) fn keypair() -> KeyPair {
    Crypto::generate_keypair(CRYPTO_KIND_VLD0).unwrap()
}

pub(crate) fn record(byte: u8) -> OpaqueRecordKey {
    OpaqueRecordKey::new(CRYPTO_KIND_VLD0, BareOpaqueRecordKey::new(&[byte; 32]))
}
