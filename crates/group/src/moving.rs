//! Moving a group to new keys, after a device with the old ones was lost.
//!
//! Who stays is told by a notice in the metadata of the mover's repo: the new group's owner secret, sealed to the key of each member's
//! repo alone. Whoever has nothing but the old group's keys sees that it moved, and not where to.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use dht_records::{Fetch, GroupAccess, MoveNotice, Purpose, public_of};
use repo::{Entry, EntryPath, OnProgress, Source, WriteOptions};
use veilid_core::{BareSecretKey, CRYPTO_KIND_VLD0, KeyPair, PublicKey};
use zeroize::Zeroizing;

use crate::{Error, Group, GroupEvent, Result, Role, own::Own};

/// So many members can be told by one notice, the mover included. Others are invited by links.
pub const MAX_STAYING: usize = 100;
/// Files that are copied as one change, and their bytes.
const BATCH: usize = 64;
const BATCH_BYTES: u64 = 64 * 1024 * 1024;

/// A member's word that the group moved, and where to.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Move {
    /// Who says so, by repo key. Whoever has that member's keys can say it.
    pub by: PublicKey,
    /// The keys of the new group.
    pub access: GroupAccess,
}

impl fmt::Debug for Move {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Move([redacted])")
    }
}

/// What came of copying files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Copied {
    /// Files that were copied.
    pub copied: u64,
    /// Files that were there already.
    pub there: u64,
    /// Files that are not on this device, and so could not be copied.
    pub missing: u64,
}

impl Group {
    /// Tells the members `stay` that this group moved to another one, whose owner's keys are `to`; published in the background. It replaces
    /// an earlier notice of this member. Whoever it leaves out learns that there is a new group, and no more.
    ///
    /// # Errors
    /// [`Error::ReadOnly`], [`Error::Left`]; [`Error::NoSuchMember`]; [`Error::TooManyStaying`]; those of the local disk.
    pub async fn announce_move(&self, to: &GroupAccess, stay: &[PublicKey]) -> Result<()> {
        let own = self.inner.writer()?;
        let owner = to.owner().ok_or(Error::ReadOnly)?;
        let recipients = self.check_staying(stay)?;
        let secret = Zeroizing::new(owner.ref_bare_secret().as_ref().to_vec());
        let mut notices = Vec::with_capacity(recipients.len());
        for recipient in recipients {
            notices.push(self.seal_notice(own, &recipient, &secret).await?);
        }
        self.edit(|edits| {
            edits.notices = Some(notices);
            edits.moved = true;
        })
        .await
    }

    /// Whom a notice for `stay` would be sealed to, without making one.
    ///
    /// # Errors
    /// [`Error::ReadOnly`], [`Error::Left`]; [`Error::NoSuchMember`]; [`Error::TooManyStaying`].
    pub fn check_staying(&self, stay: &[PublicKey]) -> Result<Vec<PublicKey>> {
        // For this member's other devices.
        let mut recipients = vec![self.inner.writer()?.repo.public_key().clone()];
        for member in stay {
            if !self.inner.is_own(member) {
                recipients.push(self.known_member(member)?.repo);
            }
        }
        recipients.sort();
        recipients.dedup();
        if recipients.len() > MAX_STAYING {
            return Err(Error::TooManyStaying { limit: MAX_STAYING });
        }
        Ok(recipients)
    }

    /// Where the group moved to, by the word of the member who said so last, if this member is told. Whether to follow is for people to
    /// decide: if it was that member's device that was lost, whoever has it says so.
    ///
    /// # Errors
    /// Those of the local disk; with `Fetch::Network` those of the network.
    pub async fn moved(&self, fetch: Fetch) -> Result<Option<Move>> {
        let inner = &self.inner;
        let Some(own) = &inner.own else {
            return Ok(None);
        };
        let metadata = inner.record.metadata(fetch).await?;
        let Some(by) = metadata.and_then(|stamped| stamped.value.moved_by) else {
            return Ok(None);
        };
        let repo = match self.repo_of(&by).await {
            Err(Error::NoSuchMember) => return Ok(None),
            repo => repo?,
        };
        // An older notice may lead into a group whose keys were lost as well.
        let metadata = repo.record().metadata(fetch).await?;
        let notices = metadata
            .map(|stamped| stamped.value.moved)
            .unwrap_or_default();
        let name = MoveNotice::name_of(own.repo.public_key());
        for notice in notices.iter().filter(|notice| notice.to == name) {
            if let Some(access) = self.open_notice(own, &by, notice).await? {
                return Ok(Some(Move { by, access }));
            }
        }
        Ok(None)
    }

    /// Writes this member's files into another group as well, as far as they are here. What is there already stays; so it can be done
    /// again after an interruption. Tells how many files and bytes were looked at or copied, and often, since a large file takes long.
    ///
    /// # Errors
    /// [`Error::ReadOnly`], [`Error::Left`]; those of the repos. What was copied before stays.
    pub async fn copy_files_to(
        &self,
        to: &Group,
        on_progress: impl Fn(u64, u64) + Send + Sync + 'static,
    ) -> Result<Copied> {
        let from = self.own_repo().ok_or(Error::ReadOnly)?;
        let target = to.inner.writer()?;
        let (mut outcome, mut files, mut bytes) = (Copied::default(), 0, 0);
        let copying = Arc::new(Copying {
            files: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            on_progress,
        });
        let mut batch: Vec<(EntryPath, Source, WriteOptions)> = Vec::new();
        let mut batch_bytes = 0;
        for entry in from.list().await? {
            (files, bytes) = (files + 1, bytes + entry.size);
            if is_same(target.repo.entry(&entry.path).await?.as_ref(), &entry) {
                outcome.there += 1;
            } else if self.is_here(&entry).await? {
                let reader = from.read(&entry.path).await?;
                let options = WriteOptions {
                    media_type: Some(entry.media_type.clone()),
                    modified: Some(entry.modified),
                    progress: Some(copying.of_file()),
                };
                batch.push((entry.path.clone(), Box::new(reader), options));
                batch_bytes += entry.size;
                outcome.copied += 1;
            } else {
                outcome.missing += 1;
            }
            if batch.len() >= BATCH || batch_bytes >= BATCH_BYTES {
                to.put(std::mem::take(&mut batch)).await?;
                batch_bytes = 0;
                copying.reached(files, bytes);
            }
        }
        if !batch.is_empty() {
            to.put(batch).await?;
        }
        copying.reached(files, bytes);
        Ok(outcome)
    }

    async fn seal_notice(
        &self,
        own: &Own,
        recipient: &PublicKey,
        secret: &[u8],
    ) -> Result<MoveNotice> {
        let crypto = self.inner.ctx.records.api().crypto()?;
        let system = crypto
            .get_async(recipient.kind())
            .ok_or(Error::BadMessage {
                what: "crypto kind",
            })?;
        let key = system.encapsulation_key_from_signing_key(recipient).await?;
        let aad = self.notice_place(own.repo.public_key(), recipient);
        let sealed = system
            .hpke_seal(&key, aad.into(), secret.to_vec().into())
            .await?;
        Ok(MoveNotice {
            to: MoveNotice::name_of(recipient),
            sealed: sealed.to_vec(),
        })
    }

    /// None where it is not what it should be: anybody who has the mover's keys can write anything.
    async fn open_notice(
        &self,
        own: &Own,
        by: &PublicKey,
        notice: &MoveNotice,
    ) -> Result<Option<GroupAccess>> {
        let crypto = self.inner.ctx.records.api().crypto()?;
        let system = crypto.get_async(own.keys.kind()).ok_or(Error::BadMessage {
            what: "crypto kind",
        })?;
        let key = system
            .decapsulation_key_from_signing_secret(&own.keys.secret())
            .await?;
        let aad = self.notice_place(by, own.repo.public_key());
        let opened = system
            .hpke_open(&key, aad.into(), notice.sealed.clone().into())
            .await;
        let Ok(opened) = opened else {
            tracing::debug!("a notice that the group moved does not open");
            return Ok(None);
        };
        let opened = Zeroizing::new(opened.to_vec());
        let Ok(secret) = <&[u8; 32]>::try_from(opened.as_slice()) else {
            return Ok(None);
        };
        let public = PublicKey::new(CRYPTO_KIND_VLD0, public_of(secret));
        let owner = KeyPair::new_from_parts(public, BareSecretKey::new(secret));
        Ok(Some(GroupAccess::Member { owner }))
    }

    /// What a notice is bound to: this group, who wrote it, and for whom.
    fn notice_place(&self, by: &PublicKey, recipient: &PublicKey) -> Vec<u8> {
        let group = self.inner.record.public_key();
        let mut out = Purpose::MoveNotice.context().as_bytes().to_vec();
        for key in [group, by, recipient] {
            out.extend_from_slice(key.kind().bytes());
            out.extend_from_slice(key.ref_value());
        }
        out
    }

    /// Tells of a move that was not known before.
    pub(crate) fn emit_moved(&self, before: Option<&PublicKey>, after: Option<&PublicKey>) {
        if let Some(by) = after.filter(|_| before != after && self.role() == Role::Member) {
            self.inner.emit(GroupEvent::Moved { by: by.clone() });
        }
    }
}

/// How far copying is.
struct Copying<F> {
    files: AtomicU64,
    bytes: AtomicU64,
    on_progress: F,
}

impl<F: Fn(u64, u64) + Send + Sync + 'static> Copying<F> {
    /// Counts what is read of one file.
    fn of_file(self: &Arc<Self>) -> OnProgress {
        let (copying, read) = (self.clone(), AtomicU64::new(0));
        Arc::new(move |bytes| {
            let more = bytes.saturating_sub(read.swap(bytes, Ordering::Relaxed));
            let bytes = copying.bytes.fetch_add(more, Ordering::Relaxed) + more;
            (copying.on_progress)(copying.files.load(Ordering::Relaxed), bytes);
        })
    }

    fn reached(&self, files: u64, bytes: u64) {
        self.files.store(files, Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Relaxed);
        (self.on_progress)(files, bytes);
    }
}

fn is_same(there: Option<&Entry>, entry: &Entry) -> bool {
    there.is_some_and(|there| {
        (there.plain_hash, there.size, there.modified)
            == (entry.plain_hash, entry.size, entry.modified)
    })
}
