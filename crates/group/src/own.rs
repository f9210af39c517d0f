//! What a member writes with.

use dht_records::Fetch;
use repo::Repo;
use veilid_core::KeyPair;

use crate::OwnSecrets;

/// The own repo, its keys, and the name that this member went by when the group was opened.
pub(crate) struct Own {
    pub(crate) repo: Repo,
    pub(crate) keys: KeyPair,
    me: String,
}

impl Own {
    pub(crate) fn new(repo: Repo, secrets: OwnSecrets) -> Self {
        Self {
            repo,
            keys: secrets.repo,
            me: secrets.me,
        }
    }

    /// The name under which this member advertises themselves: what the repo says, which all of their devices share.
    pub(crate) async fn name(&self) -> String {
        match self.repo.name(Fetch::Cached).await {
            Ok(Some(name)) => name,
            // It is not known here, or damaged.
            _ => self.me.clone(),
        }
    }
}
