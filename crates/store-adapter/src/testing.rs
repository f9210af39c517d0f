//! A Veilid node for tests: started, never attached, so it needs no network.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use tempfile::TempDir;
use veilid_core::{VeilidAPI, VeilidConfig, api_startup};

static NEXT: AtomicU32 = AtomicU32::new(0);

pub(crate) struct Node {
    pub(crate) api: VeilidAPI,
    namespace: String,
    dir: TempDir,
}

impl Node {
    pub(crate) async fn start() -> Self {
        let namespace = format!("s{}", NEXT.fetch_add(1, Ordering::Relaxed));
        Self::start_in(tempfile::tempdir().unwrap(), namespace).await
    }

    async fn start_in(dir: TempDir, namespace: String) -> Self {
        let path = dir.path().join("veilid");
        let path = path.to_str().unwrap();
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

    /// Everything that was opened through `api` has to be dropped before.
    pub(crate) async fn restart(self) -> Self {
        self.restart_after(|| {}).await
    }

    /// Does something to the files while no node runs.
    pub(crate) async fn restart_after(self, between: impl FnOnce()) -> Self {
        self.api.shutdown().await;
        between();
        Self::start_in(self.dir, self.namespace).await
    }

    pub(crate) async fn stop(self) {
        self.api.shutdown().await;
    }

    /// A directory for a store. It is there.
    pub(crate) fn store_dir(&self) -> PathBuf {
        let dir = self.dir.path().join("store");
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    /// Where Veilid keeps its tables.
    pub(crate) fn table_dir(&self) -> PathBuf {
        PathBuf::from(self.api.config().unwrap().table_store.directory.clone())
    }
}
