//! The changes that are tested.

use std::time::Duration;

use async_trait::async_trait;
use dht_records::Fetch;
use save_backend::{GroupId, PublicKey, RepoSync};
use tokio::time::{sleep, timeout};

use crate::{
    Device, File, Operation, State,
    device::{KEPT, limited},
};

/// Changes that need no network.
pub const OFFLINE: [&dyn Operation; 8] = [
    &Put {
        name: "put_a_small_file",
        before: &[],
        files: &[File::new("new.txt", 1_000, 10)],
    },
    &Put {
        name: "put_a_large_file",
        before: &[],
        files: &[File::new("new.bin", 700_000, 11)],
    },
    &Put {
        name: "put_several_files",
        before: &[],
        files: &[
            File::new("new/small.txt", 1_000, 12),
            File::new("new/empty", 0, 13),
            File::new("new/large.bin", 300_000, 14),
        ],
    },
    &Put {
        name: "replace_a_file",
        before: &[File::new("changing.bin", 400_000, 15)],
        files: &[File::new("changing.bin", 300_000, 16)],
    },
    &Delete(File::new("passing.bin", 300_000, 17)),
    &CopyFiles,
    &LeaveGroup,
    &MoveGroup,
];

/// Changes that need a network, and on it a group to whose link the trial comes.
pub const ONLINE: [&dyn Operation; 3] = [&JoinGroup, &SyncGroup, &LeaveJoined];

/// What the other member of that group has archived.
pub const OF_THE_OTHER: [File; 5] = [
    File::new("a.txt", 1_000, 20),
    File::new("b.txt", 20_000, 21),
    File::new("c.bin", 150_000, 22),
    File::new("d.bin", 400_000, 23),
    File::new("e.bin", 900_000, 24),
];

/// Archives files as one change.
struct Put {
    name: &'static str,
    before: &'static [File],
    files: &'static [File],
}

#[async_trait]
impl Operation for Put {
    fn name(&self) -> &'static str {
        self.name
    }

    async fn prepare(&self, device: &Device) {
        if !self.before.is_empty() {
            device.put(&device.own().await, self.before).await.unwrap();
        }
    }

    async fn apply(&self, device: &Device) -> save_backend::Result<()> {
        device.put(&device.own().await, self.files).await
    }

    async fn state(&self, device: &Device) -> State {
        let own = device.own().await;
        let mut states = Vec::new();
        for file in self.files {
            let found = device.read(&own, file.path).await;
            let before = self.before.iter().find(|before| before.path == file.path);
            states.push(if found.as_ref() == Some(&file.bytes()) {
                State::New
            } else if found == before.map(File::bytes) {
                State::Old
            } else {
                panic!("{} is neither what it was nor what it was to be", file.path)
            });
        }
        assert!(
            states.iter().all(|state| *state == states[0]),
            "a part of the files is there: {states:?}"
        );
        states[0]
    }
}

/// Takes a file out of the archive.
struct Delete(File);

#[async_trait]
impl Operation for Delete {
    fn name(&self) -> &'static str {
        "delete_a_file"
    }

    async fn prepare(&self, device: &Device) {
        device.put(&device.own().await, &[self.0]).await.unwrap();
    }

    async fn apply(&self, device: &Device) -> save_backend::Result<()> {
        device.delete(&device.own().await, self.0.path).await
    }

    async fn state(&self, device: &Device) -> State {
        let own = device.own().await;
        let files = device.list(&own).await;
        if !files
            .iter()
            .any(|file| file.entry.path.as_str() == self.0.path)
        {
            return State::New;
        }
        let found = device.read(&own, self.0.path).await;
        assert!(
            found == Some(self.0.bytes()),
            "{} is listed and cannot be read",
            self.0.path
        );
        State::Old
    }
}

/// Copies the files of a group into another one, sealed anew.
struct CopyFiles;

/// The name of the group that they are copied into.
const COPIES: &str = "Copies";

#[async_trait]
impl Operation for CopyFiles {
    fn name(&self) -> &'static str {
        "copy_files"
    }

    async fn prepare(&self, device: &Device) {
        let _group = device.backend.create_group(COPIES, "Ben").await.unwrap();
    }

    async fn apply(&self, device: &Device) -> save_backend::Result<()> {
        let to = device.named(COPIES).await.expect("the other group");
        let own = device.own().await;
        let copied = device.backend.copy_files(&own, &to, |_, _| {});
        let copied = limited("copying", copied).await?;
        assert_eq!(copied.missing, 0);
        Ok(())
    }

    async fn state(&self, device: &Device) -> State {
        let to = device.named(COPIES).await.expect("the other group");
        let mut copies = 0;
        for file in &KEPT {
            if let Some(found) = device.read(&to, file.path).await {
                assert!(found == file.bytes(), "{} has other bytes", file.path);
                copies += 1;
            }
        }
        match copies {
            0 => State::Old,
            2 => State::New,
            _ => panic!("a part of the files is there"),
        }
    }
}

/// Leaves a group of which nobody else can be told for the time being.
struct LeaveGroup;

/// The name of the group that is left, and what is in it.
const LEFT: &str = "Left behind";
const LEFT_FILES: [File; 2] = [
    File::new("left.txt", 2_000, 18),
    File::new("left.bin", 300_000, 19),
];

#[async_trait]
impl Operation for LeaveGroup {
    fn name(&self) -> &'static str {
        "leave_a_group"
    }

    async fn prepare(&self, device: &Device) {
        let group = device.backend.create_group(LEFT, "Ben").await.unwrap();
        device.put(&group.id, &LEFT_FILES).await.unwrap();
    }

    async fn apply(&self, device: &Device) -> save_backend::Result<()> {
        if let Some(id) = device.named(LEFT).await {
            let leaving = device.backend.leave_group(&id, Duration::from_millis(50));
            limited("leaving", leaving).await?;
        }
        Ok(())
    }

    async fn state(&self, device: &Device) -> State {
        let Some(id) = device.named(LEFT).await else {
            return State::New;
        };
        for file in &LEFT_FILES {
            let found = device.read(&id, file.path).await;
            assert!(found == Some(file.bytes()), "{} is not there", file.path);
        }
        State::Old
    }
}

/// Moves a group to new keys.
struct MoveGroup;

/// The name of the group that moves, before and after.
const MOVING: &str = "On the move";
/// What is in it before.
const OLD: File = File::new("old.txt", 500, 25);

impl MoveGroup {
    async fn groups(device: &Device) -> Vec<GroupId> {
        let groups = device.backend.groups().await.into_iter();
        groups
            .filter(|group| group.name.as_deref() == Some(MOVING))
            .map(|group| group.id)
            .collect()
    }

    /// The key of the group that this one moved to, as far as its members are told.
    async fn moved(device: &Device, id: &GroupId) -> Option<PublicKey> {
        let group = device.backend.group(id).unwrap();
        let moved = group.moved(Fetch::Cached).await.unwrap();
        moved.map(|moved| moved.access.public_key())
    }
}

#[async_trait]
impl Operation for MoveGroup {
    fn name(&self) -> &'static str {
        "move_a_group"
    }

    fn is_finished_later(&self) -> bool {
        true
    }

    fn writes_blobs(&self) -> bool {
        false
    }

    async fn prepare(&self, device: &Device) {
        let group = device.backend.create_group(MOVING, "Ben").await.unwrap();
        device.put(&group.id, &[OLD]).await.unwrap();
    }

    async fn apply(&self, device: &Device) -> save_backend::Result<()> {
        for id in Self::groups(device).await {
            let is_old = !device.list(&id).await.is_empty();
            if is_old && Self::moved(device, &id).await.is_none() {
                let moved = device.backend.move_group(&id, &[]);
                limited("moving", moved).await?;
            }
        }
        Ok(())
    }

    async fn state(&self, device: &Device) -> State {
        let groups = Self::groups(device).await;
        let mut notices = Vec::new();
        for id in &groups {
            notices.extend(Self::moved(device, id).await);
        }
        match (&groups[..], &notices[..]) {
            ([_], []) => State::Old,
            ([one, two], [to]) if [one, two].iter().any(|id| id.public_key() == to) => State::New,
            _ => panic!("{} groups, {} notices", groups.len(), notices.len()),
        }
    }
}

/// Joins a group and tells the others so.
struct JoinGroup;

#[async_trait]
impl Operation for JoinGroup {
    fn name(&self) -> &'static str {
        "join_a_group"
    }

    fn writes_blobs(&self) -> bool {
        false
    }

    async fn prepare(&self, _: &Device) {}

    async fn apply(&self, device: &Device) -> save_backend::Result<()> {
        let link = device.link();
        let joined = device.backend.join_group(&link, "Ben");
        let group = limited("joining", joined).await?;
        device.flush(&group.id).await?;
        // What the other has is listed by and by, and belongs to what is compared.
        let listed = async {
            while device.backend.list(&group.id, true).await?.len() < OF_THE_OTHER.len() {
                sleep(Duration::from_millis(300)).await;
            }
            Ok(())
        };
        limited("listing", listed).await
    }

    async fn state(&self, device: &Device) -> State {
        let linked = device.linked();
        let groups = device.backend.groups().await;
        match groups.iter().find(|group| group.id == linked) {
            None => State::Old,
            Some(group) => {
                assert!(group.writable, "joined, and cannot write");
                assert_eq!(group.name.as_deref(), Some("Archive"));
                State::New
            }
        }
    }
}

/// Brings everything of a group here.
struct SyncGroup;

#[async_trait]
impl Operation for SyncGroup {
    fn name(&self) -> &'static str {
        "sync_a_group"
    }

    async fn prepare(&self, device: &Device) {
        JoinGroup.apply(device).await.unwrap();
    }

    async fn apply(&self, device: &Device) -> save_backend::Result<()> {
        let id = device.linked();
        // What cannot be had now, while routes are still being built, stays wanted and is asked for again.
        let complete = async {
            loop {
                let synced = device.backend.sync_all(&id, |_| {}).await?;
                if synced.iter().all(RepoSync::is_complete) {
                    return Ok(());
                }
                sleep(Duration::from_millis(300)).await;
            }
        };
        limited("synchronising", complete).await
    }

    async fn state(&self, device: &Device) -> State {
        let id = device.linked();
        let mut missing = 0;
        for file in &OF_THE_OTHER {
            match device.read(&id, file.path).await {
                Some(found) => assert!(found == file.bytes(), "{} has other bytes", file.path),
                None => missing += 1,
            }
        }
        // What was verified before the death may stay, so some files can be here in the old state as well.
        if missing == 0 { State::New } else { State::Old }
    }
}

/// How long the others are told for.
const TOLD: Duration = Duration::from_secs(20);

/// Leaves the group of the other member, who is told.
struct LeaveJoined;

#[async_trait]
impl Operation for LeaveJoined {
    fn name(&self) -> &'static str {
        "leave_a_joined_group"
    }

    fn leaves(&self) -> bool {
        true
    }

    async fn prepare(&self, device: &Device) {
        SyncGroup.prepare(device).await;
        SyncGroup.apply(device).await.unwrap();
    }

    async fn apply(&self, device: &Device) -> save_backend::Result<()> {
        let id = device.linked();
        match limited("leaving", device.backend.leave_group(&id, TOLD)).await {
            Ok(_) | Err(save_backend::Error::GroupNotFound) => {}
            Err(error) => return Err(error),
        }
        // What an earlier attempt began is done by the device itself; on a full disk later. Whether it was done, the other member says.
        let told = async {
            while !device.backend.status().await.leaving.is_empty() {
                sleep(Duration::from_millis(300)).await;
            }
        };
        let _ = timeout(TOLD, told).await;
        Ok(())
    }

    async fn state(&self, device: &Device) -> State {
        let id = device.linked();
        if device
            .backend
            .groups()
            .await
            .iter()
            .all(|group| group.id != id)
        {
            return State::New;
        }
        for file in &OF_THE_OTHER {
            let found = device.read(&id, file.path).await;
            assert!(found == Some(file.bytes()), "{} is not there", file.path);
        }
        State::Old
    }
}
