//! `save+dweb:` links: how a group, a device or a server is handed to somebody else.
//!
//! The grammar and test vectors are in `docs/formats/link.md`. In short, a link is
//! `save+dweb:1/KIND/PUBLIC#SECRET`: both parts are base32 and carry a checksum, what must be kept secret stands
//! after the `#`, and upper-casing the link (with `$` for `#`) gives a form for QR codes.

mod codec;
mod error;
mod extension;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use veilid_core::{BareSecretKey, CryptoKind, KeyPair, PublicKey, SecretKey};
use zeroize::Zeroizing;

pub use error::{LinkError, LinkPart};
pub use extension::{LabelProblem, LinkExtension, MAX_LABEL, check_label};

/// The link version that this build writes and understands.
pub const LINK_VERSION: u32 = 1;

/// What a link gives to whoever holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LinkKind {
    /// Full membership of a group: read everything, advertise a repo of one's own.
    Member,
    /// Reading a group without being able to advertise a repo.
    Reader,
    /// Finding, storing and verifying a group's blobs without being able to read a name or a file.
    Replica,
    /// Membership together with the key pair of one repo, for moving to another device. It cannot be revoked.
    Device,
    /// The right to give jobs to a backup server.
    Server,
}

impl LinkKind {
    /// Every kind of version 1.
    pub const ALL: [Self; 5] = [
        Self::Member,
        Self::Reader,
        Self::Replica,
        Self::Device,
        Self::Server,
    ];

    /// The word that stands for this kind in a link.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Member => "member",
            Self::Reader => "reader",
            Self::Replica => "replica",
            Self::Device => "device",
            Self::Server => "server",
        }
    }

    fn from_word(word: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str().eq_ignore_ascii_case(word))
    }

    /// How many bytes of the public payload are fixed fields: the crypto kind and a public key.
    fn public_fields(self) -> usize {
        KIND_BYTES + KEY_BYTES
    }

    /// How many bytes of the secret payload are fixed fields.
    fn secret_fields(self) -> usize {
        match self {
            Self::Member | Self::Reader | Self::Replica | Self::Server => KEY_BYTES,
            Self::Device => 3 * KEY_BYTES,
        }
    }
}

impl fmt::Display for LinkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

const KIND_BYTES: usize = 4;
const KEY_BYTES: usize = 32;
/// What a payload may hold in all, fixed fields and extensions.
const MAX_PAYLOAD: usize = 4096;

/// A parsed link. Its secrets are wiped when it is dropped, and `Debug` does not show them.
///
/// ```
/// use save_backend::{Link, LinkError, LinkKind};
///
/// assert_eq!(Link::parse("https://example.org").err(), Some(LinkError::NotALink));
/// # let public = veilid_core::PublicKey::new(veilid_core::CRYPTO_KIND_VLD0, veilid_core::BarePublicKey::new(&[1; 32]));
/// # let secret = veilid_core::SecretKey::new(veilid_core::CRYPTO_KIND_VLD0, veilid_core::BareSecretKey::new(&[2; 32]));
/// let link = Link::member(&public, &secret)?;
/// let text = link.expose();
/// assert!(text.starts_with("save+dweb:1/member/"));
/// assert_eq!(Link::parse(&text)?.kind(), LinkKind::Member);
/// # Ok::<(), LinkError>(())
/// ```
#[derive(Clone)]
pub struct Link {
    kind: LinkKind,
    crypto: CryptoKind,
    /// Crypto kind, key, extensions.
    public: Vec<u8>,
    /// The kind's secrets, extensions.
    secret: Zeroizing<Vec<u8>>,
    /// What is in the extensions of the public payload.
    known: extension::Known,
}

/// What a link grants, as raw 32-byte keys; wiped on drop.
#[derive(Clone)]
#[non_exhaustive]
pub enum LinkAccess {
    /// See [`LinkKind::Member`].
    Member {
        /// The group's public key.
        group: PublicKey,
        /// The group's owner secret.
        owner: Zeroizing<[u8; 32]>,
    },
    /// See [`LinkKind::Reader`].
    Reader {
        /// The group's public key.
        group: PublicKey,
        /// The group secret, from which the locator and content keys follow.
        secret: Zeroizing<[u8; 32]>,
    },
    /// See [`LinkKind::Replica`].
    Replica {
        /// The group's public key.
        group: PublicKey,
        /// The group's locator key.
        locator: Zeroizing<[u8; 32]>,
    },
    /// See [`LinkKind::Device`].
    Device {
        /// The group's public key.
        group: PublicKey,
        /// The group's owner secret.
        owner: Zeroizing<[u8; 32]>,
        /// The repo's public key.
        repo: PublicKey,
        /// The repo's secret key.
        repo_secret: Zeroizing<[u8; 32]>,
    },
    /// See [`LinkKind::Server`].
    Server {
        /// The server's public key.
        server: PublicKey,
        /// The token that admits a client.
        token: Zeroizing<[u8; 32]>,
    },
}

impl Link {
    /// A member link from a group's owner key pair.
    ///
    /// # Errors
    /// [`LinkError::UnknownCrypto`] and [`LinkError::Keys`] if the keys are not a pair of 32-byte keys of one known
    /// cryptosystem. Whether the secret belongs to the public key is [`Link::verify`]'s subject.
    pub fn member(group: &PublicKey, owner: &SecretKey) -> Result<Self, LinkError> {
        if owner.kind() != group.kind() {
            return Err(LinkError::Keys {
                part: LinkPart::Secret,
            });
        }
        Self::new(LinkKind::Member, group, &[owner.ref_value().as_ref()])
    }

    /// A reader link from a group's public key and group secret. Errors as [`Link::member`].
    pub fn reader(group: &PublicKey, secret: &[u8; 32]) -> Result<Self, LinkError> {
        Self::new(LinkKind::Reader, group, &[secret])
    }

    /// A replica link from a group's public key and locator key. Errors as [`Link::member`].
    pub fn replica(group: &PublicKey, locator: &[u8; 32]) -> Result<Self, LinkError> {
        Self::new(LinkKind::Replica, group, &[locator])
    }

    /// A device link from a group's owner key pair and a repo's key pair. Errors as [`Link::member`].
    pub fn device(group: &PublicKey, owner: &SecretKey, repo: &KeyPair) -> Result<Self, LinkError> {
        if owner.kind() != group.kind() || repo.kind() != group.kind() {
            return Err(LinkError::Keys {
                part: LinkPart::Secret,
            });
        }
        let repo_key = repo.key();
        Self::new(
            LinkKind::Device,
            group,
            &[
                owner.ref_value().as_ref(),
                repo_key.ref_value().as_ref(),
                repo.ref_bare_secret().as_ref(),
            ],
        )
    }

    /// A server link from a server's public key and an access token. Errors as [`Link::member`].
    pub fn server(server: &PublicKey, token: &[u8; 32]) -> Result<Self, LinkError> {
        Self::new(LinkKind::Server, server, &[token])
    }

    fn new(kind: LinkKind, key: &PublicKey, secrets: &[&[u8]]) -> Result<Self, LinkError> {
        let bare: &[u8] = key.ref_value().as_ref();
        if bare.len() != KEY_BYTES {
            return Err(LinkError::Keys {
                part: LinkPart::Public,
            });
        }
        if secrets.iter().any(|secret| secret.len() != KEY_BYTES) {
            return Err(LinkError::Keys {
                part: LinkPart::Secret,
            });
        }
        let mut public = Vec::with_capacity(KIND_BYTES + KEY_BYTES);
        public.extend_from_slice(key.kind().bytes());
        public.extend_from_slice(bare);
        let mut secret = Zeroizing::new(Vec::with_capacity(secrets.len() * KEY_BYTES));
        for part in secrets {
            secret.extend_from_slice(part);
        }
        Self::from_payloads(kind, public, secret)
    }

    /// Puts two payloads together, whose lengths the codec has checked against the kind's fields.
    fn from_payloads(
        kind: LinkKind,
        public: Vec<u8>,
        secret: Zeroizing<Vec<u8>>,
    ) -> Result<Self, LinkError> {
        let crypto = public
            .first_chunk::<KIND_BYTES>()
            .map(|bytes| CryptoKind::new(*bytes))
            .ok_or(LinkError::MissingFields {
                part: LinkPart::Public,
            })?;
        if !veilid_core::VALID_CRYPTO_KINDS.contains(&crypto) {
            return Err(LinkError::UnknownCrypto);
        }
        let known = extension::Known::read(&extensions(kind, &public)?)?;
        Ok(Self {
            kind,
            crypto,
            public,
            secret,
            known,
        })
    }

    /// The same link, to be refused by programs from this time on (in seconds since 1970); in place of another time, if it has one.
    ///
    /// That is a courtesy of honest programs, no lock: the keys in the link stay what they are, and whoever has it can take the
    /// expiry out.
    ///
    /// # Errors
    /// [`LinkError::NoRoom`], only for links with extensions of a newer version.
    pub fn with_expiry(self, at: u64) -> Result<Self, LinkError> {
        self.with(LinkExtension::Expiry, &at.to_be_bytes())
    }

    /// The same link with a label of at most [`MAX_LABEL`] bytes, without the white space around it; in place of another one, if it has one.
    /// The label stands in the public part, where everybody who sees the link can read it.
    ///
    /// # Errors
    /// [`LinkError::Label`]; [`LinkError::NoRoom`], only for links with extensions of a newer version.
    pub fn with_label(self, label: &str) -> Result<Self, LinkError> {
        let label = check_label(label).map_err(|problem| LinkError::Label { problem })?;
        self.with(LinkExtension::Label, label.as_bytes())
    }

    fn with(self, extension: LinkExtension, value: &[u8]) -> Result<Self, LinkError> {
        let number = extension.number();
        let mut fields = extensions(self.kind, &self.public)?;
        fields.retain(|(other, _)| *other != number);
        // In the order of their types, so that equal links are equal texts however they were made.
        let place = fields.iter().position(|(other, _)| *other > number);
        fields.insert(place.unwrap_or(fields.len()), (number, value));
        let mut public = self.public.clone();
        public.truncate(self.kind.public_fields());
        for (number, value) in fields {
            let length = u8::try_from(value.len()).map_err(|_| LinkError::NoRoom { extension })?;
            public.extend_from_slice(&[number, length]);
            public.extend_from_slice(value);
        }
        if public.len() > MAX_PAYLOAD {
            return Err(LinkError::NoRoom { extension });
        }
        Self::from_payloads(self.kind, public, self.secret)
    }

    /// Reads a link. White space around it is ignored, upper and lower case are the same, and `$` may stand for `#`.
    ///
    /// # Errors
    /// A [`LinkError`] that says which part is wrong, and how.
    pub fn parse(text: &str) -> Result<Self, LinkError> {
        codec::parse(text)
    }

    /// What this link grants.
    pub fn kind(&self) -> LinkKind {
        self.kind
    }

    /// The public key of the group, or of the server for a server link.
    pub fn public_key(&self) -> PublicKey {
        PublicKey::new(
            self.crypto,
            veilid_core::BarePublicKey::new(&self.public_field()),
        )
    }

    /// From when on the link is refused, in seconds since 1970, if it expires at all.
    pub fn expires_at(&self) -> Option<u64> {
        self.known.expiry
    }

    /// What the link is called. It was written by whoever made the link, and may have characters in it that change the
    /// reading direction.
    pub fn label(&self) -> Option<&str> {
        self.known.label.as_deref()
    }

    /// Refuses a link that has expired. Parsing does not, because it has no clock; [`Backend::join_group`](crate::Backend::join_group)
    /// does.
    ///
    /// # Errors
    /// [`LinkError::Expired`] if `now` (in seconds since 1970) is the time of the expiry or later.
    pub fn check_expiry(&self, now: u64) -> Result<(), LinkError> {
        match self.expires_at() {
            Some(at) if at <= now => Err(LinkError::Expired { at }),
            _ => Ok(()),
        }
    }

    /// What this link grants, with its keys.
    pub fn access(&self) -> LinkAccess {
        let public = self.public_key();
        match self.kind {
            LinkKind::Member => LinkAccess::Member {
                group: public,
                owner: self.secret_field(0),
            },
            LinkKind::Reader => LinkAccess::Reader {
                group: public,
                secret: self.secret_field(0),
            },
            LinkKind::Replica => LinkAccess::Replica {
                group: public,
                locator: self.secret_field(0),
            },
            LinkKind::Device => LinkAccess::Device {
                group: public,
                owner: self.secret_field(0),
                repo: PublicKey::new(
                    self.crypto,
                    veilid_core::BarePublicKey::new(&*self.secret_field(1)),
                ),
                repo_secret: self.secret_field(2),
            },
            LinkKind::Server => LinkAccess::Server {
                server: public,
                token: self.secret_field(0),
            },
        }
    }

    /// The group's owner key pair, which member and device links carry.
    pub fn owner(&self) -> Option<KeyPair> {
        match self.access() {
            LinkAccess::Member { group, owner } | LinkAccess::Device { group, owner, .. } => {
                Some(pair(group, &owner))
            }
            _ => None,
        }
    }

    /// Checks that every secret key in the link belongs to the public key beside it, by asking `belongs`, which is
    /// normally the cryptosystem's `validate_keypair`. Parsing cannot do it, because it has no Veilid at hand.
    ///
    /// # Errors
    /// [`LinkError::KeyMismatch`] for the first pair that `belongs` refuses.
    pub fn verify(&self, belongs: impl Fn(&KeyPair) -> bool) -> Result<(), LinkError> {
        let pairs = match self.access() {
            LinkAccess::Member { group, owner } => vec![pair(group, &owner)],
            LinkAccess::Device {
                group,
                owner,
                repo,
                repo_secret,
            } => vec![pair(group, &owner), pair(repo, &repo_secret)],
            _ => Vec::new(),
        };
        if pairs.iter().all(belongs) {
            Ok(())
        } else {
            Err(LinkError::KeyMismatch)
        }
    }

    /// The link as text, secret included: whoever reads it has what the link grants.
    pub fn expose(&self) -> Zeroizing<String> {
        codec::encode(self)
    }

    /// The link as text in the alphabet of alphanumeric QR codes (which is denser), secret included.
    pub fn expose_qr(&self) -> Zeroizing<String> {
        let mut text = self.expose();
        text.make_ascii_uppercase();
        // `#` is not in that alphabet.
        Zeroizing::new(text.replace('#', "$"))
    }

    fn public_field(&self) -> [u8; KEY_BYTES] {
        self.public
            .get(KIND_BYTES..)
            .and_then(|rest| rest.first_chunk())
            .copied()
            .expect("a link is only built with its fixed fields present")
    }

    fn secret_field(&self, index: usize) -> Zeroizing<[u8; KEY_BYTES]> {
        self.secret
            .get(index * KEY_BYTES..)
            .and_then(|rest| rest.first_chunk())
            .map(|key| Zeroizing::new(*key))
            .expect("a link is only built with its fixed fields present")
    }
}

/// The extensions of a public payload.
fn extensions(kind: LinkKind, public: &[u8]) -> Result<Vec<(u8, &[u8])>, LinkError> {
    extension::behind(public, kind.public_fields(), LinkPart::Public)
}

fn pair(public: PublicKey, secret: &Zeroizing<[u8; 32]>) -> KeyPair {
    KeyPair::new_from_parts(public, BareSecretKey::new(&**secret))
}

impl FromStr for Link {
    type Err = LinkError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl PartialEq for Link {
    fn eq(&self, other: &Self) -> bool {
        // Comparing hashes takes the same time wherever two secrets differ.
        self.kind == other.kind
            && self.public == other.public
            && blake3::hash(&self.secret) == blake3::hash(&other.secret)
    }
}

impl Eq for Link {}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("kind", &self.kind)
            .field("secret", &"[redacted]")
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for LinkAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Member { .. } => "Member",
            Self::Reader { .. } => "Reader",
            Self::Replica { .. } => "Replica",
            Self::Device { .. } => "Device",
            Self::Server { .. } => "Server",
        };
        write!(f, "{name}([redacted])")
    }
}
