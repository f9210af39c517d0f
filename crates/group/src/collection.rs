//! Bringing a member's collection here: the list of their files, not the files themselves.

use dht_records::Fetch;
use iroh_blobs::Hash;
use repo::Repo;
use veilid_core::PublicKey;

use crate::{
    Error, Group, GroupEvent, Result,
    fetch::{self, Want},
    ignore::Fault,
    members,
    peers::Peer,
    progress::Reporter,
};

/// No hash sequence or list of names of a collection is larger, in bytes.
const LIMIT: u64 = 16 * 1024 * 1024;
/// A root names at most this many shards, and their names.
const ROOT_CHILDREN: usize = 257;

impl Group {
    /// Brings the newest collection of a member here. Costs nothing when it is here already.
    ///
    /// # Errors
    /// [`Error::NoSuchMember`]; [`Error::NobodyHas`] or [`Error::MemberDoesNotAnswer`] when nobody online can give it; what is
    /// here stays as it was.
    pub async fn sync_collection(&self, member: &PublicKey) -> Result<()> {
        let known = self.known_member(member)?;
        let repo = self.repo(member).await?;
        if repo.is_writable() {
            return Ok(());
        }
        let Some(root) = known.slot.root else {
            return Ok(());
        };
        let root = Hash::from_bytes(root.hash);
        let _one_at_a_time = self.inner.syncing.lock().await;
        if repo
            .held_root()
            .await?
            .is_some_and(|held| held.hash == root)
        {
            return self.refresh_reach(&repo).await;
        }
        self.fetch_collection(&repo, root).await?;
        self.refresh_reach(&repo).await?;
        self.inner.emit(GroupEvent::CollectionSynced {
            repo: member.clone(),
        });
        Ok(())
    }

    async fn fetch_collection(&self, repo: &Repo, root: Hash) -> Result<()> {
        let store = &self.inner.ctx.store;
        // Held until the root is adopted, so that a collection of garbage takes nothing away in between.
        let held = store.protect(root).await;
        self.fetch_metadata(&[root]).await?;
        let children = self.children(root).await?;
        if children.len() > ROOT_CHILDREN {
            return Err(Error::BadMessage {
                what: "collection root",
            });
        }
        self.fetch_metadata(&children).await?;
        // The first child of each sequence is its list of names.
        let mut names = Vec::new();
        for shard in children.iter().skip(1) {
            names.extend(self.children(*shard).await?.first().copied());
        }
        self.fetch_metadata(&names).await?;
        repo.adopt(root).await?;
        drop(held);
        Ok(())
    }

    async fn children(&self, sequence: Hash) -> Result<Vec<Hash>> {
        self.inner
            .ctx
            .store
            .links(sequence)
            .await?
            .ok_or(Error::BadMessage {
                what: "hash sequence",
            })
    }

    async fn fetch_metadata(&self, hashes: &[Hash]) -> Result<()> {
        let wants: Vec<Want> = hashes
            .iter()
            .map(|hash| Want {
                hash: *hash,
                size: None,
                limit: LIMIT,
            })
            .collect();
        self.fetch(&wants, &Reporter::silent()).await
    }

    /// Fetches blobs from everybody who has them. Looks for fresh tunnels once when nobody can give them.
    pub(crate) async fn fetch(&self, wants: &[Want], reporter: &Reporter) -> Result<()> {
        let mut last = Error::MemberDoesNotAnswer;
        for freshness in [Fetch::Cached, Fetch::Network] {
            let peers = members::peers(self, freshness).await?;
            if peers.is_empty() {
                continue;
            }
            let store: &iroh_blobs::api::Store = &self.inner.ctx.store;
            match fetch::fetch(store, &peers, wants, reporter, &|peer, fault| {
                self.note(peer, fault);
            })
            .await
            {
                Err(error @ Error::NobodyHas { .. }) => last = error,
                outcome => return outcome,
            }
        }
        Err(last)
    }

    /// Remembers how a member's device behaved.
    pub(crate) fn note(&self, peer: &Peer, fault: Option<Fault>) {
        let mut ignore = self.inner.ignore();
        match fault {
            None => ignore.forgive(&peer.id),
            Some(fault) => ignore.strike(peer.id.clone(), fault, tokio::time::Instant::now()),
        }
    }
}
