//! Edits of the group's and of the own repo's metadata, until the network has them.
//!
//! Metadata are one value, which other members and other devices may write at the same time. One of them stands, and what the others
//! edited is gone. So an edit is remembered, and made again in whatever stands, until it was published. Whoever comes last wins.

use dht_records::{Fetch, GroupMetadata, MoveNotice, RepoMetadata};
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

/// A row of the ledger.
#[derive(Serialize, Deserialize)]
struct Row {
    version: u8,
    edits: Edits,
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

    /// Takes out what stands in the group's metadata.
    fn stand_in_group(&mut self, own: &PublicKey, metadata: &GroupMetadata) {
        self.group.take_if(|name| *name == metadata.name);
        self.moved &= metadata.moved_by.as_ref() != Some(own);
    }

    /// Takes out what stands in the repo's metadata.
    fn stand_in_repo(&mut self, metadata: &RepoMetadata) {
        self.me.take_if(|name| *name == metadata.name);
        self.notices.take_if(|notices| *notices == metadata.moved);
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
        *self.inner.edits.lock().await = row.edits;
        true
    }

    /// Edits metadata. It is durable when this returns, and published in the background.
    pub(crate) async fn edit(&self, edit: impl FnOnce(&mut Edits)) -> Result<()> {
        let own = self.inner.writer()?;
        let mut edits = self.inner.edits.lock().await;
        let mut after = edits.clone();
        edit(&mut after);
        // First, so that what does not fit is not remembered.
        self.make(own, &after).await?;
        self.write_edits(&after).await?;
        *edits = after;
        drop(edits);
        self.inner.changed();
        Ok(())
    }

    /// Publishes what is not published of the group's record and the own one, again and again until the edits stand.
    pub(crate) async fn publish_records(&self, own: &Own) -> Result<()> {
        for _ in 0..RACES {
            {
                let edits = self.inner.edits.lock().await;
                self.make(own, &edits).await?;
            }
            let _ = own.repo.publish().await?.or_failure()?;
            let _ = self.inner.record.publish().await?.or_failure()?;
            if self.edits_stand(own).await? {
                return Ok(());
            }
        }
        Err(dht_records::Error::NotConfirmed.into())
    }

    /// Writes edits into what stands, as far as that is known here. First what the other points to.
    async fn make(&self, own: &Own, edits: &Edits) -> Result<()> {
        if edits.in_repo() {
            let record = own.repo.record();
            let before = record.metadata(Fetch::Cached).await?;
            let before = before.map(|stamped| stamped.value).unwrap_or_default();
            let mut after = before.clone();
            edits.edit_repo(&mut after);
            if after != before {
                record.set_metadata(&after).await?;
            }
        }
        if edits.in_group() {
            let record = &self.inner.record;
            let before = record.metadata(Fetch::Cached).await?;
            let before = before.map(|stamped| stamped.value).unwrap_or_default();
            let mut after = before.clone();
            edits.edit_group(own.repo.public_key(), &mut after);
            if after != before {
                record.set_metadata(&after).await?;
            }
        }
        Ok(())
    }

    /// Forgets the edits that are published; whether these are all.
    async fn edits_stand(&self, own: &Own) -> Result<bool> {
        let mut edits = self.inner.edits.lock().await;
        let mut after = edits.clone();
        let record = own.repo.record();
        if edits.in_repo() && !record.unpublished().await?.contains(&METADATA) {
            let metadata = record.metadata(Fetch::Cached).await?;
            after.stand_in_repo(&metadata.map(|stamped| stamped.value).unwrap_or_default());
        }
        let record = &self.inner.record;
        if edits.in_group() && !record.unpublished().await?.contains(&METADATA) {
            let metadata = record.metadata(Fetch::Cached).await?;
            let metadata = metadata.map(|stamped| stamped.value).unwrap_or_default();
            after.stand_in_group(own.repo.public_key(), &metadata);
        }
        if after != *edits {
            self.write_edits(&after).await?;
            *edits = after;
        }
        Ok(edits.is_empty())
    }

    async fn write_edits(&self, edits: &Edits) -> Result<()> {
        let ledger = &self.inner.ledger;
        let value = if edits.is_empty() {
            None
        } else {
            let row = Row {
                version: VERSION,
                edits: edits.clone(),
            };
            let mut value = vec![KIND];
            let json = serde_json::to_vec(&row).map_err(|e| Error::Store(e.into()))?;
            value.extend_from_slice(&json);
            Some(value)
        };
        ledger.write(vec![(ledger.name(KIND, &[]), value)]).await
    }
}

#[cfg(test)]
mod tests {
    use dht_records::MoveNotice;
    use veilid_core::{CRYPTO_KIND_VLD0, Crypto};

    use super::*;

    fn key() -> PublicKey {
        Crypto::generate_keypair(CRYPTO_KIND_VLD0).unwrap().key()
    }

    #[test]
    fn an_edit_changes_its_own_field_and_is_kept_until_it_stands() {
        let (me, other) = (key(), key());
        let mut edits = Edits {
            group: Some("new".into()),
            moved: true,
            ..Edits::default()
        };
        assert!(edits.in_group() && !edits.in_repo());
        let mut stands = GroupMetadata {
            name: "old".into(),
            moved_by: Some(other.clone()),
        };
        edits.stand_in_group(&me, &stands);
        assert!(edits.group.is_some() && edits.moved);
        edits.edit_group(&me, &mut stands);
        assert_eq!(
            (stands.name.as_str(), &stands.moved_by),
            ("new", &Some(me.clone()))
        );
        // Another one is the last to say that it moved; the name is there.
        stands.moved_by = Some(other);
        edits.stand_in_group(&me, &stands);
        assert!(edits.group.is_none() && edits.moved && !edits.is_empty());
        stands.moved_by = Some(me.clone());
        edits.stand_in_group(&me, &stands);
        assert!(edits.is_empty());

        let notice = MoveNotice {
            to: [1; 8],
            sealed: vec![2; 48],
        };
        let mut edits = Edits {
            notices: Some(vec![notice]),
            ..Edits::default()
        };
        let mut stands = RepoMetadata {
            name: "Ana".into(),
            moved: Vec::new(),
        };
        edits.stand_in_repo(&stands);
        assert!(edits.in_repo());
        edits.edit_repo(&mut stands);
        assert_eq!(stands.name, "Ana");
        edits.stand_in_repo(&stands);
        assert!(edits.is_empty());
    }
}
