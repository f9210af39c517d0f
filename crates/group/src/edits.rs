//! Edits of the group's and of the own repo's metadata, until the network has them.
//!
//! Metadata are one value, which other members and other devices may write at the same time. One of them stands, and what the others
//! edited is gone. So an edit is remembered, and made again in whatever stands, until it was published. Whoever comes last wins.

use dht_records::{Fetch, GroupMetadata, MoveNotice, Published, RepoMetadata, Stamped};
use serde::{Deserialize, Serialize};
use veilid_core::PublicKey;

use crate::{Error, Group, Result, own::Own};

/// The first byte of a row of this kind.
const KIND: u8 = 4;
const VERSION: u8 = 1;
/// How often edits are made anew at a time, where others edit as well.
const RACES: usize = 8;
/// The subkey of the metadata in both records.
const METADATA: u32 = 0;

/// What is to stand in the metadata, as far as that is not published.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Edits {
    /// The group's name.
    pub(crate) group: Option<String>,
    /// That this member says that the group moved.
    pub(crate) moved: bool,
    /// This member's name.
    pub(crate) me: Option<String>,
    /// Where the group moved to, for each member who is told.
    pub(crate) notices: Option<Vec<MoveNotice>>,
}

/// What is remembered of the edits.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// What is not published.
    pub(crate) edits: Edits,
    /// What was published. Two writers who do not know of each other can both be told that theirs is, and only one of them stands in the
    /// end; so it is kept until somebody who knew it wrote another.
    #[serde(default)]
    stood: Edits,
}

/// A row of the ledger.
#[derive(Serialize, Deserialize)]
struct Row {
    version: u8,
    #[serde(flatten)]
    kept: Kept,
}

impl Edits {
    pub(crate) fn in_group(&self) -> bool {
        self.group.is_some() || self.moved
    }

    pub(crate) fn in_repo(&self) -> bool {
        self.me.is_some() || self.notices.is_some()
    }

    pub(crate) fn is_empty(&self) -> bool {
        !self.in_group() && !self.in_repo()
    }

    fn edit_group(&self, own: &PublicKey, metadata: &mut GroupMetadata) {
        if let Some(name) = &self.group {
            name.clone_into(&mut metadata.name);
        }
        if self.moved {
            metadata.moved_by = Some(own.clone());
        }
    }

    fn edit_repo(&self, metadata: &mut RepoMetadata) {
        if let Some(name) = &self.me {
            name.clone_into(&mut metadata.name);
        }
        if let Some(notices) = &self.notices {
            notices.clone_into(&mut metadata.moved);
        }
    }

    /// Whether all of it that is the group's stands there.
    fn stands_in_group(&self, own: &PublicKey, metadata: &GroupMetadata) -> bool {
        let mut edited = metadata.clone();
        self.edit_group(own, &mut edited);
        edited == *metadata
    }

    /// Whether all of it that is the repo's stands there.
    fn stands_in_repo(&self, metadata: &RepoMetadata) -> bool {
        let mut edited = metadata.clone();
        self.edit_repo(&mut edited);
        edited == *metadata
    }

    fn take_group(&mut self) -> Self {
        Self {
            group: self.group.take(),
            moved: std::mem::take(&mut self.moved),
            ..Self::default()
        }
    }

    fn take_repo(&mut self) -> Self {
        Self {
            me: self.me.take(),
            notices: self.notices.take(),
            ..Self::default()
        }
    }

    /// Drops what newer ones say otherwise.
    fn drop_those_of(&mut self, newer: &Self) {
        if newer.group.is_some() {
            self.group = None;
        }
        if newer.me.is_some() {
            self.me = None;
        }
        if newer.notices.is_some() {
            self.notices = None;
        }
        self.moved &= !newer.moved;
    }

    /// Adds what these say and nothing newer says.
    fn add(&mut self, older: Self) {
        self.group = self.group.take().or(older.group);
        self.moved |= older.moved;
        self.me = self.me.take().or(older.me);
        self.notices = self.notices.take().or(older.notices);
    }
}

/// Which of the two records.
#[derive(Clone, Copy, Default)]
pub(crate) struct Which {
    pub(crate) group: bool,
    pub(crate) repo: bool,
}

impl Which {
    /// Of which the metadata lost against another writer's who did not know them.
    fn lost(repo: Option<&Published>, group: Option<&Published>) -> Self {
        let lost = |published: Option<&Published>| {
            published.is_some_and(|p| p.overwritten().any(|subkey| subkey == METADATA))
        };
        Self {
            group: lost(group),
            repo: lost(repo),
        }
    }
}

impl Kept {
    /// What was published and lost against another writer is to be published again.
    fn lost(&mut self, which: Which) {
        if which.group {
            let stood = self.stood.take_group();
            self.edits.add(stood);
        }
        if which.repo {
            let stood = self.stood.take_repo();
            self.edits.add(stood);
        }
    }

    /// Somebody who knew what was published wrote another.
    fn replaced(&mut self, which: Which) {
        if which.group {
            self.stood.take_group();
        }
        if which.repo {
            self.stood.take_repo();
        }
    }

    /// What was edited is published.
    fn stands(&mut self, which: Which) {
        if which.group {
            let mut now = self.edits.take_group();
            now.add(self.stood.take_group());
            self.stood.add(now);
        }
        if which.repo {
            let mut now = self.edits.take_repo();
            now.add(self.stood.take_repo());
            self.stood.add(now);
        }
    }
}

impl Group {
    /// Takes up a row of the ledger; whether it is one of this kind.
    pub(crate) async fn take_up_edits(&self, row: &[u8]) -> bool {
        let Some((&KIND, json)) = row.split_first() else {
            return false;
        };
        let Ok(row) = serde_json::from_slice::<Row>(json) else {
            return false;
        };
        if row.version != VERSION {
            return false;
        }
        *self.inner.edits.lock().await = row.kept;
        true
    }

    /// Edits metadata. It is durable when this returns, and published in the background.
    pub(crate) async fn edit(&self, edit: impl FnOnce(&mut Edits)) -> Result<()> {
        let own = self.inner.writer()?;
        let mut kept = self.inner.edits.lock().await;
        let mut after = kept.clone();
        edit(&mut after.edits);
        after.stood.drop_those_of(&after.edits);
        // First, so that what does not fit is not remembered.
        self.make(own, &after.edits).await?;
        // Also where the caller does not wait for the end of this.
        let before = std::mem::replace(&mut *kept, after);
        self.inner.changed();
        if let Err(error) = self.write_edits(&kept).await {
            *kept = before;
            return Err(error);
        }
        Ok(())
    }

    /// Publishes what is not published of the group's record and the own one, again and again until the edits stand. Gives why they cannot be
    /// made, if so, which does not keep the rest from being published.
    pub(crate) async fn publish_records(&self, own: &Own) -> Result<Option<Error>> {
        for _ in 0..RACES {
            let (made, gone) = {
                let kept = self.inner.edits.lock().await;
                let gone = match self.which_stand(own, &kept.stood).await {
                    Ok(stands) => Which {
                        group: !stands.group,
                        repo: !stands.repo,
                    },
                    Err(_) => Which::default(),
                };
                (self.make(own, &kept.edits).await, gone)
            };
            let repo = own.repo.publish().await?;
            let group = self.inner.record.publish().await?;
            let lost = Which::lost(Some(&repo), Some(&group));
            let settled = self.settle_edits(own, lost, gone).await;
            let _ = repo.or_failure()?;
            let _ = group.or_failure()?;
            match (made, settled) {
                (Err(error), _) | (_, Err(error)) => return Ok(Some(error)),
                (Ok(()), Ok(true)) => return Ok(None),
                (Ok(()), Ok(false)) => {}
            }
        }
        Err(dht_records::Error::NotConfirmed.into())
    }

    /// Looks whether metadata lost against another writer's in what was published otherwise.
    pub(crate) async fn after_publishing(
        &self,
        repo: Option<&Published>,
        group: Option<&Published>,
    ) -> Result<()> {
        let lost = Which::lost(repo, group);
        if !lost.repo && !lost.group {
            return Ok(());
        }
        let mut kept = self.inner.edits.lock().await;
        let mut after = kept.clone();
        after.lost(lost);
        if after != *kept {
            *kept = after;
            self.inner.changed();
            self.write_edits(&kept).await?;
        }
        Ok(())
    }

    /// Writes edits into what stands, as far as that is known here. First what the other points to.
    async fn make(&self, own: &Own, edits: &Edits) -> Result<()> {
        if edits.in_repo() {
            let record = own.repo.record();
            record
                .edit_metadata(|metadata| edits.edit_repo(metadata))
                .await?;
        }
        if edits.in_group() {
            let key = own.repo.public_key();
            let record = &self.inner.record;
            record
                .edit_metadata(|metadata| edits.edit_group(key, metadata))
                .await?;
        }
        Ok(())
    }

    /// In which records all of these edits stand.
    async fn which_stand(&self, own: &Own, edits: &Edits) -> Result<Which> {
        let mut which = Which {
            group: !edits.in_group(),
            repo: !edits.in_repo(),
        };
        if edits.in_repo() {
            let metadata = own.repo.record().metadata(Fetch::Cached).await;
            which.repo = edits.stands_in_repo(&known(metadata)?);
        }
        if edits.in_group() {
            let metadata = self.inner.record.metadata(Fetch::Cached).await;
            which.group = edits.stands_in_group(own.repo.public_key(), &known(metadata)?);
        }
        Ok(which)
    }

    /// Takes note of what is published. Gives whether all edits are.
    async fn settle_edits(&self, own: &Own, lost: Which, gone: Which) -> Result<bool> {
        let mut kept = self.inner.edits.lock().await;
        let mut after = kept.clone();
        after.lost(lost);
        after.replaced(gone);
        let mut stands = self.which_stand(own, &after.edits).await?;
        let published = async |record: dht_records::Result<Vec<u32>>| {
            Ok::<bool, Error>(!record?.contains(&METADATA))
        };
        stands.repo &= published(own.repo.record().unpublished().await).await?;
        stands.group &= published(self.inner.record.unpublished().await).await?;
        after.stands(stands);
        if after != *kept {
            self.write_edits(&after).await?;
            *kept = after;
        }
        Ok(kept.edits.is_empty())
    }

    async fn write_edits(&self, kept: &Kept) -> Result<()> {
        let ledger = &self.inner.ledger;
        let value = if *kept == Kept::default() {
            None
        } else {
            let row = Row {
                version: VERSION,
                kept: kept.clone(),
            };
            let mut value = vec![KIND];
            let json = serde_json::to_vec(&row).map_err(|e| Error::Store(e.into()))?;
            value.extend_from_slice(&json);
            Some(value)
        };
        ledger.write(vec![(ledger.name(KIND, &[]), value)]).await
    }
}

/// Metadata as they are known here; empty where there are none that can be read as such.
fn known<T: Default>(metadata: dht_records::Result<Option<Stamped<T>>>) -> Result<T> {
    match metadata {
        Ok(metadata) => Ok(metadata.map(|stamped| stamped.value).unwrap_or_default()),
        Err(dht_records::Error::InvalidPayload { .. }) => Ok(T::default()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use veilid_core::{CRYPTO_KIND_VLD0, Crypto};

    use super::*;

    const GROUP: Which = Which {
        group: true,
        repo: false,
    };

    fn key() -> PublicKey {
        Crypto::generate_keypair(CRYPTO_KIND_VLD0).unwrap().key()
    }

    fn edits() -> Edits {
        Edits {
            group: Some("new".into()),
            moved: true,
            me: Some("Anna".into()),
            notices: None,
        }
    }

    #[test]
    fn an_edit_changes_its_own_fields_and_nothing_else() {
        let (me, other) = (key(), key());
        let edits = Edits {
            moved: false,
            ..edits()
        };
        let mut group = GroupMetadata {
            name: "old".into(),
            moved_by: Some(other.clone()),
        };
        assert!(!edits.stands_in_group(&me, &group));
        edits.edit_group(&me, &mut group);
        assert!(edits.stands_in_group(&me, &group));
        assert_eq!((group.name.as_str(), group.moved_by), ("new", Some(other)));

        let notice = MoveNotice {
            to: [1; 8],
            sealed: vec![2; 48],
        };
        let mut repo = RepoMetadata {
            name: "Ana".into(),
            moved: vec![notice.clone()],
        };
        assert!(!edits.stands_in_repo(&repo));
        edits.edit_repo(&mut repo);
        assert!(edits.stands_in_repo(&repo));
        assert_eq!((repo.name.as_str(), repo.moved), ("Anna", vec![notice]));
    }

    #[test]
    fn what_was_published_comes_back_if_it_was_lost_and_not_if_it_was_replaced() {
        let mut kept = Kept {
            edits: edits(),
            stood: Edits::default(),
        };
        kept.stands(GROUP);
        assert!(!kept.edits.in_group() && kept.edits.in_repo());
        assert!(kept.stood.in_group() && !kept.stood.in_repo());
        // A newer edit, and what was published before it.
        kept.edits.group = Some("newest".into());
        let before = kept.clone();
        kept.lost(GROUP);
        assert_eq!(kept.edits.group.as_deref(), Some("newest"));
        assert!(kept.edits.moved && !kept.stood.in_group());
        kept.stands(GROUP);
        assert_eq!(kept.stood.group.as_deref(), Some("newest"));

        let mut kept = before;
        kept.replaced(GROUP);
        kept.lost(GROUP);
        assert!(!kept.edits.moved && !kept.stood.in_group());
        assert_eq!(kept.edits.group.as_deref(), Some("newest"));
    }

    #[test]
    fn a_row_says_it_all() {
        let kept = Kept {
            edits: edits(),
            stood: Edits::default(),
        };
        let row = Row {
            version: VERSION,
            kept: kept.clone(),
        };
        let json = serde_json::to_vec(&row).unwrap();
        let read: Row = serde_json::from_slice(&json).unwrap();
        assert!(read.kept == kept);
    }
}
