//! What a device does with the slots of a group: many members by one writer, and how a reader learns of them.

use std::time::Instant;

use dht_records::{Fetch, GroupAccess, GroupMetadata, GroupRecord, SLOTS, SlotIndex, SlotRoot};
use futures::{StreamExt, TryStreamExt, stream};
use group::{Group, GroupSecrets};
use veilid_core::{CRYPTO_KIND_VLD0, Crypto, DHTReportScope, KeyPair};

use super::Device;
use crate::{Result, protocol::SlotsRead};

/// How often publishing is tried.
const ATTEMPTS: usize = 10;
/// Bare reads under way at once.
const AT_ONCE: usize = 16;

/// A group whose members are all made by this device.
pub(super) struct Slots {
    record: GroupRecord,
    /// In the order in which they joined.
    members: Vec<(SlotIndex, KeyPair)>,
    changes: u64,
}

impl Device {
    /// Makes a group of so many members, each with a key pair of its own, and publishes their slots. The owner's key pair.
    pub(super) async fn write_slots(&self, members: usize) -> Result<String> {
        let owner = Crypto::generate_keypair(CRYPTO_KIND_VLD0)?;
        let record = GroupRecord::create(&self.context.records, owner.clone()).await?;
        let name = GroupMetadata {
            name: "Bench".into(),
            ..GroupMetadata::default()
        };
        record.set_metadata(&name).await?;
        let mut slots = Slots {
            record,
            members: Vec::new(),
            changes: 0,
        };
        let mut taken = vec![false; SLOTS as usize + 1];
        for member in 0..members {
            let keys = Crypto::generate_keypair(CRYPTO_KIND_VLD0)?;
            let mut index = SlotIndex::start_of(&keys.key());
            while let Some(place) = taken.get_mut(index.get() as usize) {
                if !std::mem::replace(place, true) {
                    break;
                }
                index = index.next();
            }
            slots.members.push((index, keys));
            slots.set(member).await?;
        }
        slots.publish().await?;
        let owner = owner.to_string();
        self.slots.lock().await.insert(owner.clone(), slots);
        Ok(owner)
    }

    /// Gives one member of the group another root, and publishes that.
    pub(super) async fn change_slot(&self, owner: &str) -> Result<()> {
        let mut slots = self.slots.lock().await;
        let slots = slots
            .get_mut(owner)
            .ok_or("the group is another device's")?;
        slots.changes += 1;
        slots.set(0).await?;
        slots.publish().await
    }

    /// Reads the members of a group from the network.
    pub(super) async fn read_members(&self, owner: &str) -> Result<SlotsRead> {
        let mut read = self.read.lock().await;
        let before = self.context.records.stats();
        let start = Instant::now();
        let group = match read.get(owner) {
            Some(group) => group,
            None => {
                let secrets = GroupSecrets {
                    access: access(owner)?.to_reader().ok_or("no reader's access")?,
                    own: None,
                };
                let group = Group::load(self.context.clone(), &secrets).await?;
                read.entry(owner.to_owned()).or_insert(group)
            }
        };
        let members = group.members(Fetch::Network).await?;
        let milliseconds = start.elapsed().as_secs_f64() * 1e3;
        let after = self.context.records.stats();
        let start = Instant::now();
        let here = group.members(Fetch::Cached).await?.len();
        let here_milliseconds = start.elapsed().as_secs_f64() * 1e3;
        if here != members.len() {
            return Err("who was read is not here afterwards".into());
        }
        Ok(SlotsRead {
            members: members
                .iter()
                .filter(|member| member.name.is_some())
                .count(),
            calls: after.calls() - before.calls(),
            gets: after.gets - before.gets,
            most_at_once: after.most_at_once,
            milliseconds,
            here_milliseconds,
        })
    }

    /// Forgets the group, so that the device has never seen its record.
    pub(super) async fn forget_members(&self, owner: &str) -> Result<()> {
        if let Some(group) = self.read.lock().await.remove(owner) {
            group.forget().await?;
            group.forget_records().await?;
        }
        Ok(())
    }

    /// Reads the group's name and all slots with as few calls on Veilid as there can be, and looks at none. The record is forgotten afterwards.
    pub(super) async fn read_slots_bare(&self, owner: &str) -> Result<SlotsRead> {
        let key = self.attach_to(owner).await?.record_key().clone();
        let context = self.api.routing_context()?;
        let start = Instant::now();
        let _descriptor = context.open_dht_record(key.clone(), None, None).await?;
        let scope = DHTReportScope::SyncGet;
        let report = context.inspect_dht_record(key.clone(), None, scope).await?;
        let seqs = report.subkeys().iter().zip(report.network_seqs());
        let set: Vec<u32> = seqs
            .filter(|(_, seq)| seq.is_some())
            .map(|(subkey, _)| subkey)
            .collect();
        let members = set.iter().filter(|subkey| **subkey > 0).count();
        let values: Vec<_> = stream::iter(set)
            .map(|subkey| context.get_dht_value(key.clone(), subkey, true))
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await?;
        let milliseconds = start.elapsed().as_secs_f64() * 1e3;
        context.close_dht_record(key.clone()).await?;
        context.delete_dht_record(key).await?;
        let gets = values.len() as u64;
        Ok(SlotsRead {
            members,
            calls: 2 + gets,
            gets,
            most_at_once: AT_ONCE as u64,
            milliseconds,
            here_milliseconds: 0.0,
        })
    }

    async fn attach_to(&self, owner: &str) -> Result<GroupRecord> {
        Ok(GroupRecord::attach(&self.context.records, access(owner)?).await?)
    }
}

fn access(owner: &str) -> Result<GroupAccess> {
    let owner: KeyPair = owner.parse()?;
    Ok(GroupAccess::Member { owner })
}

impl Slots {
    /// Signs a member's slot and writes it.
    async fn set(&self, member: usize) -> Result<()> {
        let (index, keys) = self.members.get(member).ok_or("there is no such member")?;
        let name = format!("Member {member}");
        let root = SlotRoot {
            hash: *blake3::hash(format!("{name} {}", self.changes).as_bytes()).as_bytes(),
            counter: self.changes + 1,
            bytes: 1_000_000,
            files: 100,
        };
        let slot = self
            .record
            .sign_slot(*index, keys, Some(root), Some(&name))
            .await?;
        self.record.set_slot(*index, &slot.into()).await?;
        Ok(())
    }

    async fn publish(&self) -> Result<()> {
        for _ in 0..ATTEMPTS {
            if self.record.publish().await?.is_complete() {
                return Ok(());
            }
        }
        Err("the slots cannot be published".into())
    }
}
