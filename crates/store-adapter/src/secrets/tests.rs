//! Each kind of protection over both kinds of protected store.

use super::*;
use crate::{backend::memory::MemoryBackend, testing::Node};

const NAME: &str = "save-store-test";
const VALUE: &[u8] = b"\0thirty-two bytes of a store key";

fn password(text: &str) -> Protection {
    Protection::Password(Zeroizing::new(text.to_owned()))
}

fn over(disk: &MemoryBackend, protection: Protection) -> Secrets {
    Secrets::over(Arc::new(disk.clone()), protection)
}

async fn loads(secrets: &Secrets) -> bool {
    let loaded = secrets.load(NAME).await.unwrap();
    loaded.is_some_and(|value| *value == VALUE)
}

/// The kinds that work without a keyring, with a key file at `path`.
fn wrapping(path: &Path) -> [Protection; 2] {
    [
        password("correct horse"),
        Protection::KeyFile(path.to_owned()),
    ]
}

/// What holds for every protection, where `of` makes the secrets as a restart would.
async fn lives(of: impl Fn() -> Secrets) {
    let secrets = of();
    assert!(secrets.load(NAME).await.unwrap().is_none());
    secrets.save(NAME, b"first").await.unwrap();
    secrets.save(NAME, VALUE).await.unwrap();
    secrets.save("other", b"other").await.unwrap();
    assert!(loads(&secrets).await);
    let anew = of();
    assert!(loads(&anew).await);
    assert_eq!(*anew.load("other").await.unwrap().unwrap(), b"other");
    anew.remove(NAME).await.unwrap();
    anew.remove(NAME).await.unwrap();
    assert!(anew.load(NAME).await.unwrap().is_none());
    anew.save(NAME, VALUE).await.unwrap();
    assert!(loads(&of()).await);
}

#[tokio::test]
async fn every_protection_keeps_a_secret_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    let all = wrapping(&path)
        .into_iter()
        .chain([Protection::Keyring, Protection::Insecure]);
    for protection in all {
        let disk = MemoryBackend::default();
        lives(|| over(&disk, protection.clone())).await;
        if !matches!(protection, Protection::Keyring) {
            let disk = MemoryBackend::default().unguarded();
            lives(|| over(&disk, protection.clone())).await;
        }
    }
}

#[tokio::test]
async fn every_protection_keeps_a_secret_in_veilids_store() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    let all = wrapping(&path).into_iter().chain([Protection::Insecure]);
    for protection in all {
        let node = Node::start().await;
        lives(|| Secrets::new(&node.api, protection.clone())).await;
        let node = node.restart().await;
        let secrets = Secrets::new(&node.api, protection.clone());
        assert!(loads(&secrets).await);
        node.stop().await;
        assert!(matches!(secrets.load(NAME).await, Err(Error::Closed)));
        assert!(matches!(
            secrets.save(NAME, VALUE).await,
            Err(Error::Closed)
        ));
    }
}

#[tokio::test]
async fn a_keyring_is_not_silently_a_plain_file() {
    let node = Node::start().await;
    let secrets = Secrets::new(&node.api, Protection::Keyring);
    let refused = |result: Result<()>| matches!(result, Err(Error::InsecureKeyStorage));
    assert!(refused(secrets.load(NAME).await.map(drop)));
    assert!(refused(secrets.save(NAME, VALUE).await));
    let insecure = Secrets::new(&node.api, Protection::Insecure);
    assert!(insecure.load(NAME).await.unwrap().is_none());
    insecure.save(NAME, VALUE).await.unwrap();
    assert!(refused(secrets.load(NAME).await.map(drop)));
    // Not refused as insecure: what is missing is the password.
    Secrets::new(&node.api, password("x"))
        .save(NAME, VALUE)
        .await
        .unwrap();
    assert!(matches!(
        secrets.load(NAME).await,
        Err(Error::PasswordRequired)
    ));
    node.stop().await;
}

#[tokio::test]
async fn what_is_wrapped_shows_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for protection in wrapping(&dir.path().join("key")) {
        let disk = MemoryBackend::default();
        over(&disk, protection).save(NAME, VALUE).await.unwrap();
        let shown = disk.image().iter().any(|(_, bytes)| {
            bytes
                .windows(8)
                .any(|part| VALUE.windows(8).any(|v| v == part))
        });
        assert!(!shown);
    }
}

#[tokio::test]
async fn each_mistake_has_its_own_error() {
    let dir = tempfile::tempdir().unwrap();
    let (path, other) = (dir.path().join("key"), dir.path().join("other"));
    let disk = MemoryBackend::default();
    let load = |protection| {
        let secrets = over(&disk, protection);
        async move { secrets.load(NAME).await.map(drop) }
    };
    let key_file = |path: &Path| Protection::KeyFile(path.to_owned());

    over(&disk, password("right"))
        .save(NAME, VALUE)
        .await
        .unwrap();
    assert!(matches!(
        load(password("wrong")).await,
        Err(Error::WrongKey)
    ));
    for protection in [Protection::Keyring, Protection::Insecure, key_file(&path)] {
        assert!(matches!(
            load(protection).await,
            Err(Error::PasswordRequired)
        ));
    }
    assert!(!path.exists());
    assert!(matches!(
        over(&disk, password("")).save(NAME, VALUE).await,
        Err(Error::PasswordRequired)
    ));
    load(password("right")).await.unwrap();

    let disk = MemoryBackend::default();
    let load = |protection| {
        let secrets = over(&disk, protection);
        async move { secrets.load(NAME).await.map(drop) }
    };
    over(&disk, key_file(&path))
        .save(NAME, VALUE)
        .await
        .unwrap();
    std::fs::write(&other, [7; 32]).unwrap();
    assert!(matches!(load(key_file(&other)).await, Err(Error::WrongKey)));
    for protection in [Protection::Keyring, Protection::Insecure, password("x")] {
        assert!(matches!(
            load(protection).await,
            Err(Error::KeyFileRequired)
        ));
    }
    // A lost key file is not replaced by another, because it may come back.
    std::fs::rename(&path, &other).unwrap();
    let secrets = over(&disk, key_file(&path));
    for result in [
        secrets.load(NAME).await.map(drop),
        secrets.save(NAME, VALUE).await,
    ] {
        let Err(Error::KeyFile { path: at, source }) = result else {
            panic!("{result:?}");
        };
        assert_eq!((at, source.kind()), (path.clone(), io::ErrorKind::NotFound));
    }
    assert!(!path.exists());
    for len in [0, 31, 33] {
        std::fs::write(&path, vec![7; len]).unwrap();
        assert!(matches!(
            secrets.load(NAME).await,
            Err(Error::KeyFile { source, .. }) if source.kind() == io::ErrorKind::InvalidData
        ));
    }
    std::fs::rename(&other, &path).unwrap();
    assert!(loads(&secrets).await);

    let disk = MemoryBackend::default();
    over(&disk, Protection::Keyring)
        .save(NAME, VALUE)
        .await
        .unwrap();
    for protection in wrapping(&path) {
        assert!(matches!(
            over(&disk, protection).load(NAME).await,
            Err(Error::NotWrapped)
        ));
    }
}

#[cfg(unix)]
#[tokio::test]
async fn a_key_file_is_made_for_its_owner_alone_and_never_written_over() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    std::fs::write(dir.path().join("key.new"), b"left by a crash").unwrap();
    let disk = MemoryBackend::default();
    let secrets = over(&disk, Protection::KeyFile(path.clone()));
    assert!(secrets.load(NAME).await.unwrap().is_none());
    assert!(!path.exists());
    secrets.save(NAME, VALUE).await.unwrap();
    let meta = std::fs::metadata(&path).unwrap();
    assert_eq!((meta.permissions().mode() & 0o777, meta.len()), (0o600, 32));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    let bytes = std::fs::read(&path).unwrap();
    assert!(bytes.iter().any(|byte| *byte != 0));
    over(&MemoryBackend::default(), Protection::KeyFile(path.clone()))
        .save(NAME, VALUE)
        .await
        .unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
}

#[tokio::test]
async fn the_protection_can_be_changed_to_any_other() {
    let dir = tempfile::tempdir().unwrap();
    let all = [
        Protection::Keyring,
        password("one"),
        password("two"),
        Protection::KeyFile(dir.path().join("one")),
        Protection::KeyFile(dir.path().join("two")),
        Protection::Insecure,
    ];
    let wrapped = |protection: &Protection| {
        matches!(protection, Protection::Password(_) | Protection::KeyFile(_))
    };
    for (from, before) in all.iter().enumerate() {
        for (to, after) in all.iter().enumerate() {
            let disk = MemoryBackend::default();
            let secrets = over(&disk, before.clone());
            secrets.save(NAME, VALUE).await.unwrap();
            secrets.set_protection(after.clone()).await;
            if from != to && wrapped(before) {
                secrets.load(NAME).await.unwrap_err();
            }
            secrets.save(NAME, VALUE).await.unwrap();
            assert!(loads(&secrets).await, "{before:?} to {after:?}");
            assert!(loads(&over(&disk, after.clone())).await);
            if from != to && (wrapped(before) || wrapped(after)) {
                over(&disk, before.clone()).load(NAME).await.unwrap_err();
            }
        }
    }
}

/// A record of each kind, with what opens it.
async fn records(dir: &Path) -> Vec<(MemoryBackend, Protection, usize)> {
    let mut records = Vec::new();
    for protection in wrapping(&dir.join("key"))
        .into_iter()
        .chain([Protection::Keyring])
    {
        let disk = MemoryBackend::default();
        over(&disk, protection.clone())
            .save(NAME, VALUE)
            .await
            .unwrap();
        let len = raw(&disk).await.len();
        records.push((disk, protection, len));
    }
    records
}

async fn raw(disk: &MemoryBackend) -> Vec<u8> {
    RawSecrets::load(disk, NAME)
        .await
        .unwrap()
        .unwrap()
        .to_vec()
}

async fn set_raw(disk: &MemoryBackend, name: &str, bytes: &[u8]) {
    RawSecrets::save(disk, name, bytes).await.unwrap();
}

#[tokio::test]
async fn every_flipped_bit_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    for (disk, protection, len) in records(dir.path()).await {
        let secrets = over(&disk, protection);
        // Derives the key once, so that this is quick.
        assert!(loads(&secrets).await);
        for bit in 0..len * 8 {
            disk.flip_secret(NAME, bit);
            let error = secrets.load(NAME).await.unwrap_err();
            let expected = match (bit, &error) {
                // The version: 0 and 1 are no newer ones.
                (0..8, Error::NewerKeyFormat { found }) => *found == 1 ^ (1 << bit),
                (0 | 8.., Error::DamagedKeyRecord) => true,
                _ => false,
            };
            assert!(expected, "bit {bit}: {error:?}");
            disk.flip_secret(NAME, bit);
        }
        assert!(loads(&secrets).await);
    }
}

#[tokio::test]
async fn a_shortened_lengthened_or_moved_record_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    for (disk, protection, len) in records(dir.path()).await {
        let whole = raw(&disk).await;
        let secrets = over(&disk, protection);
        let damaged = async |bytes: &[u8], name: &str| {
            set_raw(&disk, name, bytes).await;
            matches!(secrets.load(name).await, Err(Error::DamagedKeyRecord))
        };
        for cut in 0..len {
            assert!(damaged(&whole[..cut], NAME).await, "{cut}");
        }
        assert!(damaged(&[&whole[..], &[0]].concat(), NAME).await);
        assert!(damaged(&whole, "another").await);
        set_raw(&disk, NAME, &whole).await;
        assert!(loads(&secrets).await);
    }
}

#[tokio::test]
async fn a_record_of_a_newer_version_is_told_from_damage() {
    let disk = MemoryBackend::default();
    set_raw(&disk, NAME, b"\x02anything").await;
    let loaded = over(&disk, Protection::Keyring).load(NAME).await;
    assert!(matches!(loaded, Err(Error::NewerKeyFormat { found: 2 })));
    // It was not touched.
    assert_eq!(raw(&disk).await, b"\x02anything");
}

/// Forged in full, checksum included.
#[tokio::test]
async fn a_record_cannot_ask_for_more_than_the_limits() {
    let beyond = |memory_kib, passes, lanes| Cost {
        memory_kib,
        passes,
        lanes,
    };
    let most = Cost::MAX;
    for cost in [
        beyond(4 * 1024 * 1024, 2, 1),
        beyond(most.memory_kib + 1, 1, 1),
        beyond(u32::MAX, u32::MAX, u32::MAX),
        beyond(19 * 1024, most.passes + 1, 1),
        beyond(19 * 1024, 2, most.lanes + 1),
        // What Argon2 itself refuses.
        beyond(0, 2, 1),
        beyond(7, 2, 1),
        beyond(19 * 1024, 0, 1),
        beyond(19 * 1024, 2, 0),
    ] {
        let wrap = Wrap::Password {
            salt: [1; 16],
            cost,
        };
        let forged = record::seal(NAME, &wrap, &record::plain_key(), VALUE).unwrap();
        let disk = MemoryBackend::default();
        set_raw(&disk, NAME, &forged).await;
        let loaded = over(&disk, password("x")).load(NAME).await;
        assert!(matches!(loaded, Err(Error::DamagedKeyRecord)), "{cost:?}");
    }
}

/// What cost less is still read, and costs today's price when it is saved again.
#[tokio::test]
async fn a_cheaper_record_is_read_and_made_dearer() {
    let cost = Cost {
        memory_kib: 64,
        passes: 1,
        lanes: 1,
    };
    let (salt, text) = ([3; 16], Zeroizing::new("right".to_owned()));
    let key = record::password_key(&text, salt, cost).await.unwrap();
    let disk = MemoryBackend::default();
    let wrap = Wrap::Password { salt, cost };
    let cheap = record::seal(NAME, &wrap, &key, VALUE).unwrap();
    set_raw(&disk, NAME, &cheap).await;
    let secrets = over(&disk, password("right"));
    assert!(loads(&secrets).await);
    secrets.save(NAME, VALUE).await.unwrap();
    let saved = raw(&disk).await;
    let saved = Record::parse(NAME, &saved).unwrap();
    assert!(matches!(saved.wrap, Wrap::Password { cost, .. } if cost == Cost::DEFAULT));
    assert!(loads(&over(&disk, password("right"))).await);
}

#[tokio::test]
async fn saving_again_needs_no_second_derivation() {
    let disk = MemoryBackend::default();
    let secrets = over(&disk, password("right"));
    secrets.save(NAME, VALUE).await.unwrap();
    let first = raw(&disk).await;
    secrets.save(NAME, VALUE).await.unwrap();
    let second = raw(&disk).await;
    let salt = |bytes: &[u8]| match Record::parse(NAME, bytes).unwrap().wrap {
        Wrap::Password { salt, .. } => salt,
        _ => panic!("not wrapped by a password"),
    };
    assert_eq!(salt(&first), salt(&second));
    // But never the same nonce.
    assert_ne!(first[30..54], second[30..54]);
}

/// The vector of `docs/formats/secret.md`.
#[tokio::test]
async fn the_format_is_the_one_of_the_docs() {
    let doc = include_str!("../../../../docs/formats/secret.md");
    let hex: String = doc
        .split("```text\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next())
        .unwrap()
        .lines()
        .filter_map(|line| line.split('#').next())
        .flat_map(str::chars)
        .filter(|c| !c.is_whitespace())
        .collect();
    let bytes: Vec<u8> = (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
        .collect();
    let disk = MemoryBackend::default();
    set_raw(&disk, "save-store-example", &bytes).await;
    let secrets = over(&disk, password("correct horse"));
    let value = secrets.load("save-store-example").await.unwrap().unwrap();
    assert_eq!(*value, b"an example of a secret");
}

#[tokio::test]
async fn a_failed_save_leaves_what_was_there() {
    let disk = MemoryBackend::default();
    let secrets = over(&disk, password("right"));
    secrets.save(NAME, VALUE).await.unwrap();
    disk.fill_disk_after(0);
    assert!(matches!(
        secrets.save(NAME, b"new").await,
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::StorageFull
    ));
    assert!(loads(&over(&disk, password("right"))).await);
}

#[test]
fn nothing_secret_is_printed() {
    let protections = [password("hunter2"), Protection::KeyFile("/hunter2".into())];
    for protection in protections {
        assert!(!format!("{protection:?}").contains("hunter2"));
        let secrets = over(&MemoryBackend::default(), protection);
        assert!(!format!("{secrets:?}").contains("hunter2"));
    }
}
