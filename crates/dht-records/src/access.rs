//! What one holds of a group, and so what one can do.

use std::fmt;

use veilid_core::{BareSecretKey, CRYPTO_KIND_VLD0, KeyPair, PublicKey};

use crate::contexts::Purpose;
use crate::keys::{ContentKey, GroupSecret, LocatorKey, public_of};

/// The keys of a group that this device holds. They decide what it can do; good will is not asked.
#[derive(Clone, PartialEq, Eq)]
pub enum GroupAccess {
    /// Holds the owner's key pair: reads everything and writes slots and metadata.
    Member {
        /// The group's owner key pair. Veilid's own type, which does not erase itself.
        owner: KeyPair,
    },
    /// Reads everything, writes nothing.
    Reader {
        /// The group's public key.
        public: PublicKey,
        /// The group's secret.
        secret: GroupSecret,
    },
    /// Finds, stores and verifies blobs; reads neither a name nor a file.
    Replica {
        /// The group's public key.
        public: PublicKey,
        /// The group's locator key.
        locator: LocatorKey,
    },
}

impl GroupAccess {
    /// The group's public key, which identifies it.
    pub fn public_key(&self) -> PublicKey {
        match self {
            GroupAccess::Member { owner } => owner.key(),
            GroupAccess::Reader { public, .. } | GroupAccess::Replica { public, .. } => {
                public.clone()
            }
        }
    }

    /// The owner's key pair, which members have.
    #[must_use]
    pub fn owner(&self) -> Option<&KeyPair> {
        match self {
            GroupAccess::Member { owner } => Some(owner),
            GroupAccess::Reader { .. } | GroupAccess::Replica { .. } => None,
        }
    }

    /// The group's secret, which members and readers have.
    #[must_use]
    pub fn secret(&self) -> Option<GroupSecret> {
        match self {
            GroupAccess::Member { owner } => Some(GroupSecret::from_owner(&owner.secret())),
            GroupAccess::Reader { secret, .. } => Some(secret.clone()),
            GroupAccess::Replica { .. } => None,
        }
    }

    /// The locator key, which everyone has.
    #[must_use]
    pub fn locator(&self) -> LocatorKey {
        match self {
            GroupAccess::Member { owner } => GroupSecret::from_owner(&owner.secret()).locator(),
            GroupAccess::Reader { secret, .. } => secret.locator(),
            GroupAccess::Replica { locator, .. } => locator.clone(),
        }
    }

    /// The content key, which members and readers have.
    #[must_use]
    pub fn content(&self) -> Option<ContentKey> {
        self.secret().map(|secret| secret.content())
    }

    /// The key pair of the guests' record, where devices without a slot publish their tunnels: readers and replicas. It follows
    /// from the locator key, so everyone with a link of any kind has it, and everyone can overwrite what others wrote there.
    pub fn guests(&self) -> KeyPair {
        let secret = self.locator().derive(Purpose::Guests);
        let public = PublicKey::new(CRYPTO_KIND_VLD0, public_of(secret.as_bytes()));
        KeyPair::new_from_parts(public, BareSecretKey::new(secret.as_bytes()))
    }

    /// The same group as a reader sees it. `None` for a replica, which cannot give what it does not hold.
    #[must_use]
    pub fn to_reader(&self) -> Option<GroupAccess> {
        Some(GroupAccess::Reader {
            public: self.public_key(),
            secret: self.secret()?,
        })
    }

    /// The same group as a replica sees it.
    #[must_use]
    pub fn to_replica(&self) -> GroupAccess {
        GroupAccess::Replica {
            public: self.public_key(),
            locator: self.locator(),
        }
    }
}

impl fmt::Debug for GroupAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Veilid's key pair prints its secret, and the public key is what a link carries: neither belongs in a log.
        f.write_str(match self {
            GroupAccess::Member { .. } => "Member([redacted])",
            GroupAccess::Reader { .. } => "Reader([redacted])",
            GroupAccess::Replica { .. } => "Replica([redacted])",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use veilid_core::{CRYPTO_KIND_VLD0, Crypto};

    #[test]
    fn each_role_holds_what_it_should() {
        let owner = Crypto::generate_keypair(CRYPTO_KIND_VLD0).unwrap();
        let member = GroupAccess::Member {
            owner: owner.clone(),
        };
        let reader = member.to_reader().unwrap();
        let replica = reader.to_replica();
        for access in [&member, &reader, &replica] {
            assert_eq!(access.public_key(), owner.key());
            assert_eq!(access.locator(), member.locator());
        }
        assert_eq!(member.content(), reader.content());
        assert!(reader.owner().is_none() && replica.owner().is_none());
        assert!(replica.content().is_none() && replica.secret().is_none());
        assert_eq!(replica.to_reader(), None);
        assert_eq!(replica.guests(), member.guests());
        assert_ne!(replica.guests().key(), owner.key());
        let text = format!("{member:?} {reader:?} {replica:?}");
        assert!(!text.contains("VLD0") && text.contains("[redacted]"));
    }
}
