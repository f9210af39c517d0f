//! What a member writes with.

use std::sync::{PoisonError, RwLock};

use repo::Repo;
use veilid_core::KeyPair;

use crate::OwnSecrets;

/// The own repo, its keys, and the name that this member goes by.
pub(crate) struct Own {
    pub(crate) repo: Repo,
    pub(crate) keys: KeyPair,
    me: RwLock<String>,
}

impl Own {
    pub(crate) fn new(repo: Repo, secrets: OwnSecrets) -> Self {
        Self {
            repo,
            keys: secrets.repo,
            me: RwLock::new(secrets.me),
        }
    }

    /// The name under which this member advertises themselves.
    pub(crate) fn me(&self) -> String {
        self.me
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(crate) fn set_me(&self, me: &str) {
        me.clone_into(&mut self.me.write().unwrap_or_else(PoisonError::into_inner));
    }
}
