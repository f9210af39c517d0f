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
use tokio::sync::{mpsc, oneshot};

use crate::{Error, Result, core::lock};

type Asked = (HashAndFormat, oneshot::Sender<TempTag>);

#[derive(Debug)]
pub(crate) struct Pins {
    engine: MemStore,
    scopes: Mutex<HashMap<Scope, mpsc::Sender<Asked>>>,
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
        let asked = lock(&self.scopes).get(&scope).cloned();
        if let Some(asked) = asked {
            let (made, tag) = oneshot::channel();
            if asked.send((value, made)).await.is_ok()
                && let Ok(tag) = tag.await
            {
                return Ok(tag);
            }
        }
        // No scope, or one that has ended.
        self.engine
            .tags()
            .temp_tag(value)
            .await
            .map_err(|_| Error::Closed)
    }

    pub(crate) async fn list(&self) -> Result<Vec<HashAndFormat>> {
        let tags = self
            .engine
            .tags()
            .list_temp_tags()
            .await
            .map_err(|_| Error::Closed)?;
        Ok(tags.collect().await)
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
        let (ask, mut asked) = mpsc::channel::<Asked>(1);
        let Ok(batch) = self.engine.blobs().batch().await else {
            return;
        };
        lock(&self.scopes).insert(scope, ask);
        if tx.send(scope).await.is_ok() {
            loop {
                tokio::select! {
                    message = rx.recv() => match message {
                        // In one process a tag counts itself down when it is dropped.
                        Ok(Some(_)) => {}
                        Ok(None) | Err(_) => break,
                    },
                    Some((value, made)) = asked.recv() => {
                        if let Ok(tag) = batch.temp_tag(value).await {
                            // Whoever asked may have gone away.
                            let _ = made.send(tag);
                        }
                    }
                }
            }
        }
        lock(&self.scopes).remove(&scope);
    }

    /// A scope's number is private, but what it looks like on the wire is not.
    fn next_scope(&self) -> Option<Scope> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let bytes = postcard::to_stdvec(&number).ok()?;
        postcard::from_bytes(&bytes).ok()
    }
}
