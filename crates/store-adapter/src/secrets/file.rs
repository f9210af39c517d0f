//! The file in which Veilid keeps secrets where there is no keyring.
//!
//! Veilid writes it anew for each change and renames the new one into place, but syncs neither, does not notice when the disk is full,
//! and takes a damaged file for an empty one: every key would be gone, and with them all that they seal. So the old file is kept
//! beside the new one until that is known to be whole.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use veilid_core::VeilidConfig;
use zeroize::Zeroizing;

use super::sync_parent;

/// The file, as a node with this configuration uses it.
#[derive(Debug, Clone)]
pub(super) struct SecretsFile {
    path: PathBuf,
}

impl SecretsFile {
    pub(super) fn of(config: &VeilidConfig) -> Self {
        let name = match config.namespace.as_str() {
            "" => "insecure_keyring".to_owned(),
            namespace => format!("insecure_keyring_{namespace}"),
        };
        Self {
            path: Path::new(&config.protected_store.directory).join(name),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn exists(&self) -> bool {
        self.path.exists()
    }

    /// Before a change: keeps the file as it is.
    pub(super) fn keep(&self) -> io::Result<()> {
        // What was cut off before.
        self.repair()?;
        let kept = self.beside(".before");
        match fs::hard_link(&self.path, &kept) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Ok(()) => {}
            // Not every file system has links.
            Err(_) => {
                fs::copy(&self.path, &kept)?;
                File::options().write(true).open(&kept)?.sync_all()?;
            }
        }
        sync_parent(&self.path)
    }

    /// After a change: makes it durable, or says that it is not whole.
    pub(super) fn settle(&self) -> io::Result<()> {
        match File::options().write(true).open(&self.path) {
            Ok(file) => file.sync_all()?,
            // There is a keyring after all.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        }
        if !self.is_whole()? {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                "the file of the keys was not written in full",
            ));
        }
        sync_parent(&self.path)?;
        unless_missing(fs::remove_file(self.beside(".before")))?;
        sync_parent(&self.path)
    }

    /// Instead of [`settle`](Self::settle): puts back what was kept, and removes what Veilid left half written, with which it would
    /// not start again.
    pub(super) fn restore(&self) -> io::Result<()> {
        unless_missing(fs::remove_file(self.beside("~")))?;
        match fs::rename(self.beside(".before"), &self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(()) => sync_parent(&self.path),
        }
    }

    /// What a crash in the middle of a change has left, brought to the old state or the new.
    fn repair(&self) -> io::Result<()> {
        unless_missing(fs::remove_file(self.beside("~")))?;
        if !self.beside(".before").exists() {
            return Ok(());
        }
        if self.exists() && self.is_whole()? {
            self.settle()
        } else {
            tracing::warn!(
                "the file of the keys was not written in full; the one before it is put back"
            );
            self.restore()
        }
    }

    /// Whether the file is one map of texts in CBOR, from the first byte to the last. An empty file is none.
    fn is_whole(&self) -> io::Result<bool> {
        let bytes = Zeroizing::new(fs::read(&self.path)?);
        Ok(skip_item(&bytes, 0).is_some_and(<[u8]>::is_empty))
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(suffix);
        path.into()
    }
}

/// Repairs the file in which Veilid keeps secrets where there is no keyring, after a crash that came while it was written. To be called
/// before a node with this configuration starts, and while no other one runs: Veilid takes a damaged file for an empty one, and
/// does not start at all with a half-written one beside it. Does nothing where a keyring is used.
///
/// # Errors
/// Those of the file system. The node is better not started then.
pub fn repair_secrets(config: &VeilidConfig) -> io::Result<()> {
    SecretsFile::of(config).repair()
}

/// What follows one item of CBOR: a text, or an array or map of such items, with its length in front.
fn skip_item(bytes: &[u8], depth: u8) -> Option<&[u8]> {
    const DEEPEST: u8 = 4;
    let (&first, rest) = bytes.split_first()?;
    let width = match first & 0x1f {
        short @ 0..=23 => return skip_content(first >> 5, short.into(), rest, depth),
        24 => 1,
        25 => 2,
        26 => 4,
        27 => 8,
        _ => return None,
    };
    let (digits, rest) = rest.split_at_checked(width)?;
    let len = digits
        .iter()
        .fold(0, |len, digit| len << 8 | u64::from(*digit));
    (depth <= DEEPEST)
        .then(|| skip_content(first >> 5, len, rest, depth))
        .flatten()
}

fn skip_content(kind: u8, len: u64, mut rest: &[u8], depth: u8) -> Option<&[u8]> {
    match kind {
        2 | 3 => rest.get(usize::try_from(len).ok()?..),
        4 | 5 => {
            let items = len.checked_mul(if kind == 5 { 2 } else { 1 })?;
            for _ in 0..items {
                rest = skip_item(rest, depth.checked_add(1)?)?;
            }
            Some(rest)
        }
        _ => None,
    }
}

fn unless_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A map with one entry, and the same with a longer text.
    fn whole() -> Vec<u8> {
        let mut bytes = vec![0xa2];
        for value in [&b"short"[..], &[b'x'; 300]] {
            bytes.extend_from_slice(b"\x83\x61a\x62bc\x60");
            match u8::try_from(value.len()) {
                Ok(len) if len < 24 => bytes.push(0x60 | len),
                _ => {
                    bytes.push(0x79);
                    bytes.extend_from_slice(&(value.len() as u16).to_be_bytes());
                }
            }
            bytes.extend_from_slice(value);
        }
        bytes
    }

    fn file(content: &[u8], before: Option<&[u8]>) -> (tempfile::TempDir, SecretsFile) {
        let dir = tempfile::tempdir().unwrap();
        let file = SecretsFile {
            path: dir.path().join("keys"),
        };
        fs::write(&file.path, content).unwrap();
        if let Some(before) = before {
            fs::write(file.beside(".before"), before).unwrap();
        }
        (dir, file)
    }

    #[test]
    fn every_cut_is_noticed() {
        let whole = whole();
        for len in 0..whole.len() {
            let (_dir, file) = file(&whole[..len], None);
            assert!(!file.is_whole().unwrap(), "{len}");
        }
        let (_dir, cut) = file(&[&whole[..], &[0]].concat(), None);
        assert!(!cut.is_whole().unwrap());
        let (_dir, file) = file(&whole, None);
        assert!(file.is_whole().unwrap());
    }

    #[test]
    fn junk_is_not_whole() {
        for junk in [
            &[0xff; 40][..],
            &[0x84; 4000],
            &[0xa1; 4000],
            &[0xbb, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            &[0x7b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        ] {
            let (_dir, file) = file(junk, None);
            assert!(!file.is_whole().unwrap());
        }
    }

    #[test]
    fn a_crash_leaves_the_old_or_the_new() {
        let (old, new) = (whole(), b"\xa0".to_vec());
        for (content, left) in [(&new, &new), (&old[..9].to_vec(), &old), (&vec![], &old)] {
            let (_dir, file) = file(content, Some(&old));
            fs::write(file.beside("~"), b"half").unwrap();
            file.repair().unwrap();
            assert_eq!(&fs::read(&file.path).unwrap(), left);
            assert!(!file.beside(".before").exists());
            assert!(!file.beside("~").exists());
        }
        // Without one from before, it is left alone.
        let (_dir, file) = file(&old[..9], None);
        file.repair().unwrap();
        assert_eq!(fs::read(&file.path).unwrap(), &old[..9]);
    }

    #[test]
    fn what_was_kept_is_the_old_file() {
        let (_dir, file) = file(&whole(), None);
        file.keep().unwrap();
        // As Veilid writes.
        fs::write(file.beside("~"), b"\xa1\x60").unwrap();
        fs::rename(file.beside("~"), &file.path).unwrap();
        let error = file.settle().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        file.restore().unwrap();
        assert_eq!(fs::read(&file.path).unwrap(), whole());
        file.keep().unwrap();
        fs::write(file.beside("~"), b"\xa0").unwrap();
        fs::rename(file.beside("~"), &file.path).unwrap();
        file.settle().unwrap();
        assert!(!file.beside(".before").exists());
        assert_eq!(fs::read(&file.path).unwrap(), b"\xa0");
    }
}
