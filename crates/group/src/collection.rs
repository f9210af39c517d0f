//! Bringing a member's collection here: the list of their files, not the files themselves.

use dht_records::Fetch;
use iroh_blobs::Hash;
use repo::Repo;
use tokio::time::Instant;
use veilid_core::PublicKey;

use crate::{
    Error, Group, GroupEvent, Result,
    engine::{Ticket, Wanted},
    progress::Reporter,
    sched::Kind,
};

/// No hash sequence or list of names of a collection is larger, in bytes.
const LIMIT: u64 = 16 * 1024 * 1024;
/// A root names at most this many shards, and their names.
const ROOT_CHILDREN: usize = 1_025;

impl Group {
    /// Brings the newest collection of a member here. Costs nothing when it is here already.
    ///
    /// # Errors
    /// [`Error::NoSuchMember`]; [`Error::NobodyHas`] or [`Error::MemberDoesNotAnswer`] when nobody online can give it; what is
    /// here stays as it was.
    pub async fn sync_collection(&self, member: &PublicKey) -> Result<()> {
        if let Some(own) = self.own_repo().filter(|own| own.public_key() == member) {
            return self.sync_own(own).await;
        }
        let known = self.known_member(member)?;
        let repo = self.repo(member).await?;
        let Some(root) = known.root else {
            return Ok(());
        };
        let root = Hash::from_bytes(root.hash);
        let lock = self.inner.syncing(member);
        let _one_at_a_time = lock.lock().await;
        if repo
            .held_root()
            .await?
            .is_some_and(|held| held.hash == root)
        {
            return self.refresh_reach(&repo).await;
        }
        self.fetch_collection(&repo, root).await?;
        self.refresh_reach(&repo).await?;
        self.inner.queue.wake();
        self.inner.emit(GroupEvent::CollectionSynced {
            repo: member.clone(),
        });
        Ok(())
    }

    /// Brings here what this member's other devices wrote, and merges it with what this one has.
    async fn sync_own(&self, own: &Repo) -> Result<()> {
        let member = own.public_key();
        let lock = self.inner.syncing(member);
        let _one_at_a_time = lock.lock().await;
        let slot = self.inner.known().get(&member.to_string()).cloned();
        let stated = slot.and_then(|known| known.root);
        let recorded = own.record().root(Fetch::Cached).await?;
        if stated.is_some_and(|stated| recorded.is_none_or(|root| root.counter < stated.counter)) {
            // The slot was written by a device that knew more.
            let _recorded = own.record().root(Fetch::Network).await?;
        }
        let Some(root) = own.unmerged().await? else {
            return Ok(());
        };
        self.fetch_collection(own, root).await?;
        self.refresh_reach(own).await?;
        self.inner.queue.wake();
        self.inner.changed();
        self.inner.emit(GroupEvent::CollectionSynced {
            repo: member.clone(),
        });
        Ok(())
    }

    /// Three round trips when nothing of it is here: who has the root; the root with its list of names; the shards with theirs.
    async fn fetch_collection(&self, repo: &Repo, root: Hash) -> Result<()> {
        let store = &self.inner.ctx.store;
        // Held until the root is adopted, so that a collection of garbage takes nothing away in between.
        let held = store.protect(root).await;
        // Kept as well, so that whoever had the root is asked for its shards at once.
        let own = self.inner.is_own(repo.public_key());
        let _root = self.fetch_collections(&[root], None, own).await?;
        let children = store.links(root).await?.ok_or(Error::BadMessage {
            what: "hash sequence",
        })?;
        if children.len() > ROOT_CHILDREN {
            return Err(Error::BadMessage {
                what: "collection root",
            });
        }
        let mut shards: Vec<Hash> = children.into_iter().skip(1).collect();
        // Empty shards are all the same blob.
        shards.sort_unstable();
        shards.dedup();
        self.fetch_collections(&shards, Some(root), own).await?;
        repo.adopt(root).await?;
        drop(held);
        Ok(())
    }

    /// What another member names and did not come from this group is fetched whatever is here: a member can name any hash, and could
    /// tell from what is not asked for what another group has.
    async fn fetch_collections(
        &self,
        hashes: &[Hash],
        like: Option<Hash>,
        own: bool,
    ) -> Result<Vec<Ticket>> {
        let mut wanted = Vec::with_capacity(hashes.len());
        for hash in hashes {
            wanted.push(Wanted {
                hash: *hash,
                kind: Kind::Collection,
                size: None,
                limit: LIMIT,
                since: Instant::now(),
                like,
                whole: !own && !self.is_ours(hash).await?,
            });
        }
        let mut tickets = self.inner.engine.want(&wanted, None).await?;
        for ticket in &mut tickets {
            ticket.done(&Reporter::silent()).await?;
        }
        Ok(tickets)
    }

    /// Whether what is here of a collection belongs to this group: it is of what was checked, or members gave it.
    async fn is_ours(&self, collection: &Hash) -> Result<bool> {
        let inner = &self.inner;
        if inner.reach.contains(collection) {
            return Ok(true);
        }
        if !inner.held.contains(collection) {
            return Ok(false);
        }
        let names = inner.engine.first_child(*collection).await?;
        Ok(names.is_none_or(|names| inner.held.contains(&names)))
    }
}
