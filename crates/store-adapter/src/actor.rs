//! Answers iroh's commands. This is what makes a genuine [`Store`] of ours.

use std::{collections::HashSet, io, sync::Arc, time::SystemTime};

use futures::StreamExt;
use iroh_blobs::{
    Hash, HashAndFormat,
    api::{
        self, Store, Tag,
        blobs::BlobStatus,
        proto::{Command, ImportMode, Request, TagInfo},
    },
    store::mem::MemStore,
};
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Error, Result, bao, core::Core, export, gc, import, index::Change, index::Tags, pieces,
    pins::Pinning, pins::Pins, tables::Request as Write,
};

/// Commands that wait for the actor.
const WAITING: usize = 64;
/// Blobs that are removed at the same time.
const REMOVING: usize = 64;

/// What is released when the actor has ended.
pub(crate) type Lock = Option<std::fs::File>;

struct Actor {
    core: Arc<Core>,
    pins: Arc<Pins>,
    tasks: TaskTracker,
    ended: CancellationToken,
}

/// Starts the actor; it ends with the last clone of the store, or by its shutdown.
///
/// This is the only door from outside iroh-blobs to a store of one's own: a memory store that is nothing but a sender of
/// commands. It is why the version is pinned.
pub(crate) fn start(core: Arc<Core>, pins: Arc<Pins>, lock: Lock) -> Store {
    let (tx, rx) = mpsc::channel::<Command>(WAITING);
    let client = irpc::Client::<Request>::local(tx);
    let actor = Actor {
        core,
        pins,
        tasks: TaskTracker::new(),
        ended: CancellationToken::new(),
    };
    tokio::spawn(actor.run(rx, lock));
    MemStore::from_sender(client).into()
}

impl Actor {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>, lock: Lock) {
        let shutdown = loop {
            match commands.recv().await {
                None => break None,
                Some(Command::Shutdown(command)) => break Some(command.tx),
                Some(command) => self.handle(command).await,
            }
        };
        commands.close();
        self.ended.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        // What came in of partial blobs is kept.
        if let Err(error) = self.core.write_all_down().await {
            tracing::warn!(%error, "partial blobs were not written down");
        }
        self.core.forget_caches();
        self.core.tables.close().await;
        drop(lock);
        drop(self);
        if let Some(tx) = shutdown {
            // Whoever asked may have gone away.
            let _ = tx.send(()).await;
        }
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        // These are large, and handed on several times.
        let task = Box::pin(task);
        let ended = self.ended.clone();
        self.tasks
            .spawn(async move { ended.run_until_cancelled(task).await });
    }

    #[allow(clippy::too_many_lines)]
    async fn handle(&mut self, command: Command) {
        let core = self.core.clone();
        let pins = self.pins.clone();
        match command {
            Command::ImportBytes(c) => self.spawn(async move {
                let (pins, scope) = (&*pins, c.inner.scope);
                let pins = Pinning { pins, scope };
                import::import_bytes(&core, c.inner.data, pins, c.inner.format, c.tx).await;
            }),
            Command::ImportByteStream(c) => self.spawn(async move {
                let (pins, scope) = (&*pins, c.inner.scope);
                let pins = Pinning { pins, scope };
                let input = import::Input::Stream(c.rx);
                import::import_stream(&core, input, pins, c.inner.format, c.tx).await;
            }),
            Command::ImportPath(c) => self.spawn(async move {
                if c.inner.mode == ImportMode::TryReference {
                    // Nobody who asks for this wants the space taken twice, so a copy is not made behind their back.
                    import::finish(Err(Error::ByReference), &c.tx).await;
                    return;
                }
                let (pins, scope) = (&*pins, c.inner.scope);
                let pins = Pinning { pins, scope };
                let input = import::Input::Path(c.inner.path);
                import::import_stream(&core, input, pins, c.inner.format, c.tx).await;
            }),
            Command::ImportBao(c) => {
                let blob = core.blob(c.inner.hash);
                self.spawn(async move {
                    pieces::import_bao(&core, &blob, c.inner.size.get(), c.rx, c.tx).await;
                });
            }
            Command::ExportBao(c) => {
                let blob = core.blob(c.inner.hash);
                self.spawn(async move {
                    bao::export_bao(&core, blob, c.inner.ranges, c.tx).await;
                });
            }
            Command::ExportRanges(c) => {
                let blob = core.blob(c.inner.hash);
                self.spawn(async move {
                    export::export_ranges(&core, blob, c.inner, c.tx).await;
                });
            }
            Command::ExportPath(c) => {
                let blob = core.blob(c.inner.hash);
                // Always a copy: what lies outside is not sealed.
                self.spawn(async move {
                    export::export_path(&core, blob, c.inner.target, c.tx).await;
                });
            }
            Command::Observe(c) => {
                let blob = core.blob(c.inner.hash);
                self.spawn(async move { export::observe(&core, blob, c.tx).await });
            }
            Command::BlobStatus(c) => self.spawn(async move {
                let status = status(&core, c.inner.hash).await;
                let _ = c.tx.send(status).await;
            }),
            Command::ListBlobs(c) => self.spawn(async move {
                if let Err(error) = list(&core, &c.tx).await {
                    let _ = c.tx.send(Err(error.into_io().into())).await;
                }
            }),
            Command::DeleteBlobs(c) => self.spawn(async move {
                let removed = remove(&core, c.inner.hashes, c.inner.force).await;
                let _ = c.tx.send(answer(removed.map(drop))).await;
            }),
            Command::ClearProtected(c) => {
                *crate::core::lock(&core.fresh) = Some(HashSet::new());
                let _ = c.tx.send(Ok(())).await;
            }
            Command::Batch(c) => self.spawn(async move { pins.scope(c.tx, c.rx).await }),
            Command::CreateTempTag(c) => self.spawn(async move {
                if let Ok(tag) = pins.pin(c.inner.scope, c.inner.value).await {
                    let _ = c.tx.send(tag).await;
                }
            }),
            Command::ListTempTags(c) => self.spawn(async move {
                let _ = c.tx.send(pins.list().await.unwrap_or_default()).await;
            }),
            Command::SetTag(c) => self.spawn(async move {
                let set = set_tag(&core, c.inner.name, c.inner.value).await;
                let _ = c.tx.send(answer(set)).await;
            }),
            Command::CreateTag(c) => self.spawn(async move {
                let created = create_tag(&core, c.inner.value).await;
                let _ = c.tx.send(answer(created)).await;
            }),
            Command::DeleteTags(c) => self.spawn(async move {
                let deleted = delete_tags(&core, c.inner.from, c.inner.to).await;
                let _ = c.tx.send(answer(deleted)).await;
            }),
            Command::RenameTag(c) => self.spawn(async move {
                let renamed = rename_tag(&core, c.inner.from, c.inner.to).await;
                let _ = c.tx.send(renamed).await;
            }),
            Command::ListTags(c) => self.spawn(async move {
                let asked = c.inner;
                let tags = with_tags(&core, |tags| {
                    let named = tags.tags.iter().filter(|(name, value)| {
                        between(name, asked.from.as_ref(), asked.to.as_ref())
                            && (asked.raw && value.format.is_raw()
                                || asked.hash_seq && value.format.is_hash_seq())
                    });
                    named
                        .map(|(name, value)| Ok(TagInfo::new(name, *value)))
                        .collect::<Vec<_>>()
                });
                let tags = match tags.await {
                    Ok(tags) => tags,
                    Err(error) => vec![Err(error.into_io().into())],
                };
                let _ = c.tx.send(tags).await;
            }),
            Command::SyncDb(c) => self.spawn(async move {
                let synced = async {
                    core.write_all_down().await?;
                    core.tables.checkpoint().await
                };
                let synced = synced.await;
                let _ = c.tx.send(answer(synced)).await;
            }),
            Command::WaitIdle(c) => {
                let tasks = self.tasks.clone();
                // It takes more tasks all the same.
                tasks.close();
                tokio::spawn(async move {
                    tasks.wait().await;
                    let _ = c.tx.send(()).await;
                });
            }
            // Taken out by the loop.
            Command::Shutdown(_) => {}
        }
    }
}

fn answer<T>(result: Result<T>) -> api::Result<T> {
    result.map_err(|error| error.into_io().into())
}

async fn status(core: &Core, hash: Hash) -> BlobStatus {
    if hash == Hash::EMPTY {
        return BlobStatus::Complete { size: 0 };
    }
    match core.view(&core.blob(hash)).await {
        Ok(view) => view.status(),
        Err(error) => {
            // iroh's answer has no room for an error.
            tracing::warn!(%error, "a blob's status cannot be read");
            BlobStatus::NotFound
        }
    }
}

async fn list(core: &Core, tx: &irpc::channel::mpsc::Sender<api::Result<Hash>>) -> Result<()> {
    // Those that are not written down yet.
    for blob in core.held() {
        let new = blob.work.lock().await.counted.is_none() && blob.view().entry.is_some();
        if new && tx.send(Ok(blob.hash)).await.is_err() {
            return Ok(());
        }
    }
    for hash in gc::hashes(core).await? {
        if tx.send(Ok(hash)).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Removes blobs, except those that came in since the collection began.
pub(crate) async fn remove(core: &Core, hashes: Vec<Hash>, force: bool) -> Result<Vec<Hash>> {
    let results: Vec<Result<Option<Hash>>> = futures::stream::iter(hashes)
        .map(|hash| async move {
            let removed = pieces::remove(core, &core.blob(hash), !force).await?;
            Ok(removed.then_some(hash))
        })
        .buffer_unordered(REMOVING)
        .collect()
        .await;
    let removed: Result<Vec<Option<Hash>>> = results.into_iter().collect();
    Ok(removed?.into_iter().flatten().collect())
}

fn between(name: &Tag, from: Option<&Tag>, to: Option<&Tag>) -> bool {
    from.is_none_or(|from| name >= from) && to.is_none_or(|to| name < to)
}

/// Does something with the tags, which are read when they are needed first.
pub(crate) async fn with_tags<T>(core: &Core, work: impl FnOnce(&Tags) -> T) -> Result<T> {
    let mut tags = core.tags.lock().await;
    Ok(work(loaded(core, &mut tags).await?))
}

async fn loaded<'a>(core: &Core, tags: &'a mut Option<Tags>) -> Result<&'a mut Tags> {
    if tags.is_none() {
        *tags = Some(core.tables.read().await?.index.tags().await?);
    }
    tags.as_mut().ok_or(Error::Closed)
}

/// Writes changes of tags, and only then shows them.
async fn change(
    core: &Core,
    changes: impl FnOnce(&Tags) -> Result<Vec<Change>, api::Error>,
) -> Result<usize, api::Error> {
    let io = |error: Error| api::Error::from(error.into_io());
    let mut tags = core.tags.lock().await;
    let tags = loaded(core, &mut tags).await.map_err(io)?;
    let changes = changes(tags)?;
    let request = Write {
        changes: changes.clone(),
        ..Write::default()
    };
    core.tables.write(request).await.map_err(io)?;
    let count = changes.len();
    if tags.lost > 0 {
        // One of the damaged ones may be whole again.
        *tags = core
            .tables
            .read()
            .await
            .map_err(io)?
            .index
            .tags()
            .await
            .map_err(io)?;
        return Ok(count);
    }
    for change in changes {
        match change {
            Change::Tag(name, value) => {
                tags.tags.insert(name, value);
            }
            Change::Untag(name) => {
                tags.tags.remove(&name);
            }
            _ => {}
        }
    }
    Ok(count)
}

async fn set_tag(core: &Core, name: Tag, value: HashAndFormat) -> Result<()> {
    change(core, |_| Ok(vec![Change::Tag(name, value)]))
        .await
        .map(drop)
        .map_err(Error::iroh)
}

async fn create_tag(core: &Core, value: HashAndFormat) -> Result<Tag> {
    let mut created = None;
    change(core, |tags| {
        let name = Tag::auto(SystemTime::now(), |name| tags.tags.contains_key(name));
        created = Some(name.clone());
        Ok(vec![Change::Tag(name, value)])
    })
    .await
    .map_err(Error::iroh)?;
    created.ok_or(Error::Closed)
}

async fn delete_tags(core: &Core, from: Option<Tag>, to: Option<Tag>) -> Result<u64> {
    let deleted = change(core, |tags| {
        let names = tags.tags.keys();
        let dead = names.filter(|name| between(name, from.as_ref(), to.as_ref()));
        Ok(dead.cloned().map(Change::Untag).collect())
    });
    let deleted = deleted.await.map_err(Error::iroh)?;
    Ok(deleted as u64)
}

async fn rename_tag(core: &Core, from: Tag, to: Tag) -> api::Result<()> {
    let renamed = change(core, |tags| {
        let value = *tags.tags.get(&from).ok_or_else(|| {
            api::Error::io(io::ErrorKind::NotFound, format!("tag not found: {from:?}"))
        })?;
        Ok(vec![Change::Untag(from), Change::Tag(to, value)])
    });
    renamed.await.map(drop)
}
