//! A device of the process that this runs in.

use std::{
    fs,
    future::Future,
    path::{Path, PathBuf},
    time::Duration,
};

use futures::future::BoxFuture;
use save_backend::{Backend, EntryPath, GroupId, Link, ListedFile, NetworkSettings, NewFile};
use tokio::{io::AsyncReadExt, time::timeout};

/// Longer than anything here takes on a loaded machine.
pub const LIMIT: Duration = Duration::from_secs(120);

/// The name of the group that only this device is in.
const OWN: &str = "Own archive";

/// What each device has before the change, acknowledged and not touched by it.
pub(crate) const KEPT: [File; 2] = [
    File::new("kept/small.txt", 700, 1),
    File::new("kept/large.bin", 300_000, 2),
];

/// A file of an archive.
#[derive(Debug, Clone, Copy)]
pub struct File {
    /// Where it is in the archive.
    pub path: &'static str,
    size: usize,
    seed: u8,
}

impl File {
    /// A file of so many bytes, which differ from those of other seeds.
    pub const fn new(path: &'static str, size: usize, seed: u8) -> Self {
        Self { path, size, seed }
    }

    /// What is in it.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.size];
        blake3::Hasher::new()
            .update(&[self.seed])
            .finalize_xof()
            .fill(&mut bytes);
        bytes
    }

    fn entry_path(&self) -> EntryPath {
        EntryPath::parse(self.path).unwrap()
    }
}

/// Writes files to a directory, from where they can be archived.
pub fn sources(directory: &Path, files: &[File]) -> Vec<NewFile> {
    let write = |(n, file): (usize, &File)| {
        let source = directory.join(n.to_string());
        fs::write(&source, file.bytes()).unwrap();
        NewFile {
            path: file.entry_path(),
            source,
        }
    };
    files.iter().enumerate().map(write).collect()
}

/// A device that is running, and the directory of its trial.
pub struct Device {
    /// Its backend.
    pub backend: Backend,
    trial: PathBuf,
    is_online: bool,
}

/// Panics where something takes too long. Boxed, so that the compiler looks through the backend's futures here and not once more in
/// everything that waits for them.
pub(crate) fn limited<'a, T: Send + 'a>(
    what: &'static str,
    work: impl Future<Output = T> + Send + 'a,
) -> BoxFuture<'a, T> {
    Box::pin(async move {
        let done = timeout(LIMIT, work).await;
        done.unwrap_or_else(|_| panic!("{what} is stuck"))
    })
}

impl Device {
    /// The directory of the device in that of a trial.
    pub(crate) fn directory(trial: &Path) -> PathBuf {
        trial.join("device")
    }

    /// How it reaches its network; without such a file, there is none.
    pub(crate) fn network(trial: &Path) -> PathBuf {
        trial.join("network.json")
    }

    /// The link of a group that others are in.
    pub(crate) fn link_file(trial: &Path) -> PathBuf {
        trial.join("link")
    }

    /// Starts it. Does not wait for the network.
    pub(crate) async fn start(trial: &Path) -> Self {
        let network = fs::read(Self::network(trial)).ok();
        let is_online = network.is_some();
        let network = match network {
            Some(json) => serde_json::from_slice(&json).unwrap(),
            None => NetworkSettings {
                bootstrap_records: Some(Vec::new()),
                bootstrap: Some(Vec::new()),
                network_key: Some("nobody else".to_owned()),
                insecure_storage: true,
                upnp: Some(false),
                detect_address_changes: Some(false),
                ..NetworkSettings::default()
            },
        };
        let backend = Backend::builder()
            .directory(Self::directory(trial))
            .network(network)
            .start();
        Self {
            backend: limited("starting", backend).await.unwrap(),
            trial: trial.to_owned(),
            is_online,
        }
    }

    /// Waits for the network, if there is one.
    pub(crate) async fn online(&self) {
        if self.is_online {
            limited("going online", self.backend.wait_online(LIMIT))
                .await
                .unwrap();
        }
    }

    /// Waits until everything is published, if there is a network.
    pub async fn flush(&self, id: &GroupId) -> save_backend::Result<()> {
        if self.is_online {
            limited("publishing", self.backend.flush(id, LIMIT)).await?;
        }
        Ok(())
    }

    /// Makes the group that only this device is in, with the files that have to stay whatever happens.
    pub(crate) async fn keep(&self) {
        let group = limited("creating", self.backend.create_group(OWN, "Ben"))
            .await
            .unwrap();
        self.put(&group.id, &KEPT).await.unwrap();
        self.flush(&group.id).await.unwrap();
    }

    /// Checks that what was there before the change is there, and is what it was.
    pub(crate) async fn check_kept(&self) {
        for group in self.backend.status().await.groups {
            assert_eq!(group.broken, None, "a group cannot be opened");
        }
        let own = self.own().await;
        for file in &KEPT {
            let found = self.read(&own, file.path).await;
            let found = found.unwrap_or_else(|| panic!("{} is gone", file.path));
            assert!(found == file.bytes(), "{} has other bytes", file.path);
        }
    }

    /// The group that only this device is in.
    pub async fn own(&self) -> GroupId {
        self.named(OWN).await.expect("the own group is there")
    }

    /// The group of this name.
    pub async fn named(&self, name: &str) -> Option<GroupId> {
        let groups = self.backend.groups().await.into_iter();
        let mut found = groups.filter(|group| group.name.as_deref() == Some(name));
        found.next().map(|group| group.id)
    }

    /// The link that the trial was given.
    pub fn link(&self) -> Link {
        let text = fs::read_to_string(Self::link_file(&self.trial)).unwrap();
        Link::parse(&text).unwrap()
    }

    /// The group of that link.
    pub fn linked(&self) -> GroupId {
        self.link().public_key().to_string().parse().unwrap()
    }

    /// Archives files as one change.
    pub async fn put(&self, id: &GroupId, files: &[File]) -> save_backend::Result<()> {
        let directory = self.trial.join("sources");
        fs::create_dir_all(&directory).unwrap();
        let put = self.backend.put(id, sources(&directory, files), |_| {});
        limited("archiving", put).await.map(|_| ())
    }

    /// Takes a file out of the archive, if it is there.
    pub async fn delete(&self, id: &GroupId, path: &str) -> save_backend::Result<()> {
        let path = EntryPath::parse(path).unwrap();
        match limited("deleting", self.backend.delete(id, &path)).await {
            Err(save_backend::Error::NoSuchFile) => Ok(()),
            done => done,
        }
    }

    /// All files of a group that are known here.
    pub async fn list(&self, id: &GroupId) -> Vec<ListedFile> {
        limited("listing", self.backend.list(id, false))
            .await
            .unwrap()
    }

    /// What is in a file, if it is listed and here.
    pub async fn read(&self, id: &GroupId, path: &str) -> Option<Vec<u8>> {
        let files = self.list(id).await;
        let file = files
            .into_iter()
            .find(|file| file.entry.path.as_str() == path)?;
        if !file.here {
            return None;
        }
        let reading = async {
            let path = file.entry.path;
            let reader = self.backend.get(id, Some(&file.repo), &path, |_| {});
            let mut bytes = Vec::new();
            reader.await.unwrap().read_to_end(&mut bytes).await.unwrap();
            bytes
        };
        Some(limited("reading", reading).await)
    }
}
