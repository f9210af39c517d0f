//! The key hierarchy: what signs is never what encrypts.

use std::fmt;

use subtle::ConstantTimeEq;
use veilid_core::{BarePublicKey, SecretKey};
use zeroize::Zeroizing;

use crate::contexts::Purpose;

macro_rules! secret_bytes {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        ///
        /// 32 bytes, zeroed on drop, compared in constant time, printed as `[redacted]`.
        #[derive(Clone)]
        pub struct $name(Zeroizing<[u8; 32]>);

        impl $name {
            /// Takes 32 bytes as they are, without deriving anything.
            #[must_use]
            pub fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(Zeroizing::new(bytes))
            }

            /// The bytes. Whoever copies them out takes over the duty to erase them.
            #[must_use]
            pub fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "([redacted])"))
            }
        }

        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                self.0.as_slice().ct_eq(other.0.as_slice()).into()
            }
        }

        impl Eq for $name {}
    };
}

secret_bytes! {
    /// What a member or reader of a group holds, and from which the group's keys are derived.
    GroupSecret
}
secret_bytes! {
    /// The key of what a replica needs: slots, roots, tunnels, admission to streams.
    LocatorKey
}
secret_bytes! {
    /// The key of what only people read: names, metadata, collection entries, files.
    ContentKey
}
secret_bytes! {
    /// A key for one [`Purpose`].
    SubKey
}

impl GroupSecret {
    /// Derives the group secret from the secret half of the group's owner key pair.
    #[must_use]
    pub fn from_owner(secret: &SecretKey) -> Self {
        Self(derive(secret.ref_value(), Purpose::GroupSecret))
    }

    /// The group's locator key.
    #[must_use]
    pub fn locator(&self) -> LocatorKey {
        LocatorKey(derive(self.0.as_slice(), Purpose::Locator))
    }

    /// The group's content key.
    #[must_use]
    pub fn content(&self) -> ContentKey {
        ContentKey(derive(self.0.as_slice(), Purpose::Content))
    }
}

impl LocatorKey {
    /// Derives the key for one purpose.
    #[must_use]
    pub fn derive(&self, purpose: Purpose) -> SubKey {
        SubKey(derive(self.0.as_slice(), purpose))
    }
}

impl ContentKey {
    /// Derives the key for one purpose.
    #[must_use]
    pub fn derive(&self, purpose: Purpose) -> SubKey {
        SubKey(derive(self.0.as_slice(), purpose))
    }
}

impl SubKey {
    /// Derives a further key for one purpose.
    #[must_use]
    pub fn derive(&self, purpose: Purpose) -> SubKey {
        SubKey(derive(self.0.as_slice(), purpose))
    }

    /// Derives the key for one purpose and one salt, for keys of which there are many, such as one for each file.
    ///
    /// The salt is fed after the 32 bytes of this key, so its length needs no bound.
    #[must_use]
    pub fn derive_salted(&self, purpose: Purpose, salt: &[u8]) -> SubKey {
        let mut hasher = blake3::Hasher::new_derive_key(purpose.context());
        hasher.update(self.0.as_slice());
        hasher.update(salt);
        SubKey(Zeroizing::new(*hasher.finalize().as_bytes()))
    }
}

/// The public half of an Ed25519 key pair, which is what Veilid's cryptosystem `VLD0` signs with.
pub fn public_of(secret: &[u8; 32]) -> BarePublicKey {
    let pair = ed25519_dalek::SigningKey::from_bytes(secret);
    BarePublicKey::new(pair.verifying_key().as_bytes())
}

fn derive(material: &[u8], purpose: Purpose) -> Zeroizing<[u8; 32]> {
    Zeroizing::new(blake3::derive_key(purpose.context(), material))
}

#[cfg(test)]
mod tests {
    use super::*;
    use veilid_core::{BareSecretKey, CRYPTO_KIND_VLD0};

    fn hierarchy() -> GroupSecret {
        let owner = SecretKey::new(CRYPTO_KIND_VLD0, BareSecretKey::new(&[7; 32]));
        GroupSecret::from_owner(&owner)
    }

    #[test]
    fn the_tree_is_derived_as_drawn() {
        let group = hierarchy();
        let expect = blake3::derive_key(Purpose::GroupSecret.context(), &[7; 32]);
        assert_eq!(group.as_bytes(), &expect);
        assert_eq!(
            group.locator().as_bytes(),
            &blake3::derive_key(Purpose::Locator.context(), &expect)
        );
        assert_eq!(
            group.content().as_bytes(),
            &blake3::derive_key(Purpose::Content.context(), &expect)
        );
    }

    #[test]
    fn every_purpose_gives_another_key() {
        let locator = hierarchy().locator();
        let keys: std::collections::HashSet<_> = Purpose::ALL
            .iter()
            .map(|p| *locator.derive(*p).as_bytes())
            .collect();
        assert_eq!(keys.len(), Purpose::ALL.len());
        let sub = locator.derive(Purpose::TunnelPsk);
        assert_ne!(
            sub.derive_salted(Purpose::FileKey, b"a"),
            sub.derive_salted(Purpose::FileKey, b"b")
        );
        assert_ne!(
            sub.derive_salted(Purpose::FileKey, b""),
            sub.derive_salted(Purpose::FileCommitment, b"")
        );
    }

    #[test]
    fn the_public_half_is_the_one_that_veilid_has() {
        let pair = veilid_core::Crypto::generate_keypair(CRYPTO_KIND_VLD0).unwrap();
        let secret: [u8; 32] = pair.ref_bare_secret().as_ref().try_into().unwrap();
        assert_eq!(&public_of(&secret), pair.key().ref_value());
    }

    #[test]
    fn secrets_do_not_print() {
        let group = hierarchy();
        for text in [
            format!("{group:?}"),
            format!("{:?}", group.locator()),
            format!("{:?}", group.content()),
            format!("{:?}", group.content().derive(Purpose::FileKey)),
        ] {
            assert!(text.ends_with("([redacted])"), "{text}");
        }
    }
}
