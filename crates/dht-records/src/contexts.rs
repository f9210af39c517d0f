//! Every context string under which this project derives a key, in one place.
//!
//! A string is versioned, never reused for another purpose and never changed: a new meaning takes a new string.

/// What a derived key is for. Each purpose has a context string of its own for BLAKE3's key derivation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Purpose {
    /// The group secret, from the secret of the group's owner key pair.
    GroupSecret,
    /// The locator key, from the group secret: finds, stores and verifies, reads neither a name nor a file.
    Locator,
    /// The content key, from the group secret: names, metadata, collection entries, files.
    Content,
    /// Seals record values that a replica may read (slots, roots, tunnels), from the locator key.
    LocatorValues,
    /// Seals record values that only readers may read (metadata), from the content key.
    ContentValues,
    /// Computes the eight check bytes of a sealed value, from the key that seals it.
    ValueCheck,
    /// Seals a member's name inside their slot, from the content key.
    SlotName,
    /// Where a repo's search for a slot begins. A hash of public data, not a secret.
    SlotStart,
    /// The domain of a slot's signature. Not a key.
    SlotSignature,
    /// Admission to tunnels, from the locator key.
    TunnelPsk,
    /// Seals a file, from the content key and the file's salt.
    FileKey,
    /// Commits a sealed file to its key, from the content key and the file's salt.
    FileCommitment,
    /// Seals the entries of a collection, from the content key.
    EntryKey,
    /// The nonce of a sealed entry, a keyed hash of the entry, from the content key.
    EntryNonce,
    /// The shard of a path, from the content key.
    PathHash,
    /// The key pair of the guests' record, from the locator key.
    Guests,
    /// What binds a sealed notice that a group moved to the group that it is about. Not a key.
    MoveNotice,
    /// What a device keeps for itself on disk.
    LocalState,
}

impl Purpose {
    /// All purposes, so that a test can compare their strings.
    pub const ALL: [Purpose; 18] = [
        Purpose::GroupSecret,
        Purpose::Locator,
        Purpose::Content,
        Purpose::LocatorValues,
        Purpose::ContentValues,
        Purpose::ValueCheck,
        Purpose::SlotName,
        Purpose::SlotStart,
        Purpose::SlotSignature,
        Purpose::TunnelPsk,
        Purpose::FileKey,
        Purpose::FileCommitment,
        Purpose::EntryKey,
        Purpose::EntryNonce,
        Purpose::PathHash,
        Purpose::Guests,
        Purpose::MoveNotice,
        Purpose::LocalState,
    ];

    /// The context string.
    #[must_use]
    pub const fn context(self) -> &'static str {
        match self {
            Purpose::GroupSecret => "save-dweb-backend v1 group secret from owner secret",
            Purpose::Locator => "save-dweb-backend v1 locator key from group secret",
            Purpose::Content => "save-dweb-backend v1 content key from group secret",
            Purpose::LocatorValues => "save-dweb-backend v1 record values under locator key",
            Purpose::ContentValues => "save-dweb-backend v1 record values under content key",
            Purpose::ValueCheck => "save-dweb-backend v1 record value check bytes",
            Purpose::SlotName => "save-dweb-backend v1 member name in slot",
            Purpose::SlotStart => "save-dweb-backend v1 first slot of repo",
            Purpose::SlotSignature => "save-dweb-backend v1 slot signature",
            Purpose::TunnelPsk => "save-dweb-backend v1 tunnel pre-shared key",
            Purpose::FileKey => "save-dweb-backend v1 file key",
            Purpose::FileCommitment => "save-dweb-backend v1 commitment to file key",
            Purpose::EntryKey => "save-dweb-backend v1 collection entry key",
            Purpose::EntryNonce => "save-dweb-backend v1 collection entry nonce",
            Purpose::PathHash => "save-dweb-backend v1 path hash",
            Purpose::Guests => "save-dweb-backend v1 key pair of guests record",
            Purpose::MoveNotice => "save-dweb-backend v1 notice of moved group",
            Purpose::LocalState => "save-dweb-backend v1 local state",
        }
    }
}

/// The domain that opens the associated data of every sealed record value.
pub const VALUE_DOMAIN: &str = "save-dweb-backend record value";

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_two_purposes_share_a_context() {
        let mut seen: BTreeSet<&str> = Purpose::ALL.iter().map(|p| p.context()).collect();
        assert_eq!(seen.len(), Purpose::ALL.len());
        assert!(seen.insert(VALUE_DOMAIN));
        assert!(seen.iter().all(|c| c.starts_with("save-dweb-backend ")));
        // None is a prefix of another, so that no caller can build one from another by appending.
        for a in &seen {
            assert_eq!(seen.iter().filter(|b| b.starts_with(a)).count(), 1, "{a}");
        }
    }

    #[test]
    fn all_lists_every_purpose_once() {
        let distinct: std::collections::HashSet<_> = Purpose::ALL.iter().collect();
        assert_eq!(distinct.len(), Purpose::ALL.len());
        // A purpose added to the enum and forgotten in ALL would leave a gap in the numbering.
        let last = Purpose::ALL.iter().map(|p| *p as usize).max();
        assert_eq!(last, Some(Purpose::LocalState as usize));
        assert_eq!(Purpose::ALL.len(), Purpose::LocalState as usize + 1);
    }
}
