//! Temporary tags.
//!
//! What counts a temporary tag down when it is dropped is private to iroh-blobs, so a memory store of theirs, without any blob
//! in it, counts them.

use std::{
    collections::HashMap,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use futures::StreamExt;
use iroh_blobs::{
    HashAndFormat,
    api::{
        TempTag,
        proto::{BatchResponse, Scope},
    },
    store::mem::MemStore,
};
use irpc::channel::mpsc as wire;

use crate::{Error, Result, core::lock};

#[derive(Debug)]
pub(crate) struct Pins {
    engine: MemStore,
    /// Each scope has one of its own, so that its tags end when that is let go.
    scopes: Mutex<HashMap<Scope, MemStore>>,
    next: AtomicU64,
}

/// Makes temporary tags in one scope.
#[derive(Clone, Copy)]
pub(crate) struct Pinning<'a> {
    pub(crate) pins: &'a Pins,
    pub(crate) scope: Scope,
}

impl Pinning<'_> {
    pub(crate) async fn pin(self, value: HashAndFormat) -> Result<TempTag> {
        self.pins.pin(self.scope, value).await
    }
}

impl Pins {
    pub(crate) fn new() -> Self {
        Self {
            engine: MemStore::new(),
            scopes: Mutex::default(),
            next: AtomicU64::new(1),
        }
    }

    /// Makes a temporary tag.
    pub(crate) async fn pin(&self, scope: Scope, value: HashAndFormat) -> Result<TempTag> {
        // No scope, or one that has ended: then the tag is one of the store's.
        let scoped = lock(&self.scopes).get(&scope).cloned();
        let engine = scoped.as_ref().unwrap_or(&self.engine);
        engine
            .tags()
            .temp_tag(value)
            .await
            .map_err(|_| Error::Closed)
    }

    pub(crate) async fn list(&self) -> Result<Vec<HashAndFormat>> {
        let scoped: Vec<MemStore> = lock(&self.scopes).values().cloned().collect();
        let mut all = Vec::new();
        for engine in scoped.iter().chain([&self.engine]) {
            let tags = engine.tags().list_temp_tags().await;
            all.extend(tags.map_err(|_| Error::Closed)?.collect::<Vec<_>>().await);
        }
        Ok(all)
    }

    /// Serves a scope until its other end is dropped; its tags end with it.
    pub(crate) async fn scope(
        &self,
        tx: irpc::channel::oneshot::Sender<Scope>,
        mut rx: wire::Receiver<BatchResponse>,
    ) {
        let Some(scope) = self.next_scope() else {
            return;
        };
        lock(&self.scopes).insert(scope, MemStore::new());
        let _end = End(self, scope);
        if tx.send(scope).await.is_ok() {
            // In one process a tag counts itself down when it is dropped.
            while let Ok(Some(_)) = rx.recv().await {}
        }
    }

    /// A scope's number is private, but what it looks like on the wire is not.
    fn next_scope(&self) -> Option<Scope> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let bytes = postcard::to_stdvec(&number).ok()?;
        postcard::from_bytes(&bytes).ok()
    }
}

/// Ends a scope when it is dropped.
struct End<'a>(&'a Pins, Scope);

impl Drop for End<'_> {
    fn drop(&mut self) {
        lock(&self.0.scopes).remove(&self.1);
    }
}
