//! A file out of a repo onto disk, safely.

use std::{
    fs::{self, Permissions},
    io,
    path::{Path, PathBuf},
};

use tempfile::NamedTempFile;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

use crate::{EntryPath, Error, Result};

/// What becomes of a file that is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Existing {
    /// It stays, and the export fails with [`Error::Exists`].
    #[default]
    Keep,
    /// It is replaced, when the new file is complete.
    Replace,
}

/// Writes a file below a directory, at the place that its path says. It appears there when it is complete, or not at all.
///
/// Directories on the way are made. A symbolic link on the way is not followed, so nothing is written outside of `root`,
/// unless somebody else rearranges the directories at that very moment.
///
/// # Errors
/// [`Error::Exists`], [`Error::NotADirectory`], [`Error::Source`], [`Error::Export`].
pub(crate) async fn export<R: AsyncRead + Unpin>(
    root: &Path,
    path: &EntryPath,
    mut data: R,
    existing: Existing,
) -> Result<PathBuf> {
    let (target, file) = {
        let (root, path) = (root.to_owned(), path.clone());
        blocking(move || prepare(&root, &path, existing)).await?
    };
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Export { path, source }
    };
    let mut writer =
        tokio::fs::File::from_std(file.as_file().try_clone().map_err(failed(&target))?);
    let mut buffer = vec![0; 128 * 1024];
    loop {
        let read = data.read(&mut buffer).await.map_err(Error::Source)?;
        match buffer.get(..read) {
            None | Some([]) => break,
            Some(bytes) => writer.write_all(bytes).await.map_err(failed(&target))?,
        }
    }
    writer.flush().await.map_err(failed(&target))?;
    drop(writer);
    blocking(move || finish(file, target, existing)).await
}

/// Makes the directories, and a temporary file in the last one.
fn prepare(root: &Path, path: &EntryPath, existing: Existing) -> Result<(PathBuf, NamedTempFile)> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Export { path, source }
    };
    fs::create_dir_all(root).map_err(failed(root))?;
    let mut directory = root.to_owned();
    let mut components = path.components().map(native_name).peekable();
    let mut target = root.to_owned();
    while let Some(component) = components.next() {
        if components.peek().is_none() {
            target = directory.join(component);
            break;
        }
        directory.push(component);
        match fs::create_dir(&directory) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let kind = fs::symlink_metadata(&directory)
                    .map_err(failed(&directory))?
                    .file_type();
                if !kind.is_dir() {
                    return Err(Error::NotADirectory { path: directory });
                }
            }
            Err(error) => return Err(failed(&directory)(error)),
        }
    }
    if existing == Existing::Keep && fs::symlink_metadata(&target).is_ok() {
        return Err(Error::Exists { path: target });
    }
    let mut builder = tempfile::Builder::new();
    builder.prefix(".save-").suffix(".part");
    // As any other new file of this user; a temporary one would be closed to the group.
    #[cfg(unix)]
    builder.permissions(<Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o666));
    let file = builder
        .tempfile_in(&directory)
        .map_err(failed(&directory))?;
    Ok((target, file))
}

fn finish(file: NamedTempFile, target: PathBuf, existing: Existing) -> Result<PathBuf> {
    let failed = |source| Error::Export {
        path: target.clone(),
        source,
    };
    file.as_file().sync_all().map_err(failed)?;
    let placed = match existing {
        Existing::Keep => file.persist_noclobber(&target),
        Existing::Replace => file.persist(&target),
    };
    match placed {
        Ok(_) => Ok(target),
        Err(error)
            if existing == Existing::Keep && error.error.kind() == io::ErrorKind::AlreadyExists =>
        {
            Err(Error::Exists { path: target })
        }
        Err(error) => Err(failed(error.error)),
    }
}

/// A component as the file system here takes it.
fn native_name(component: &str) -> String {
    if cfg!(windows) {
        windows_name(component)
    } else {
        component.to_owned()
    }
}

/// Windows gives these characters meanings of its own (a colon opens a hidden stream of another file).
fn windows_name(component: &str) -> String {
    component.replace(['<', '>', ':', '"', '|', '?', '*'], "_")
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down, and the caller with it.
            Err(_) => std::future::pending().await,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> EntryPath {
        EntryPath::parse(text).unwrap()
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn a_file_lands_below_the_root_and_replaces_nothing_unasked() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("out");
        let target = export(&root, &path("a/b/c.txt"), &b"one"[..], Existing::Keep)
            .await
            .unwrap();
        assert_eq!(target, root.join("a/b/c.txt"));
        assert_eq!(fs::read(&target).unwrap(), b"one");
        let again = export(&root, &path("a/b/c.txt"), &b"two"[..], Existing::Keep).await;
        assert!(matches!(again, Err(Error::Exists { path }) if path == target));
        assert_eq!(fs::read(&target).unwrap(), b"one");
        export(&root, &path("a/b/c.txt"), &b"three"[..], Existing::Replace)
            .await
            .unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"three");
        assert_eq!(names(&root.join("a/b")), ["c.txt"]);
        let through_a_file = export(&root, &path("a/b/c.txt/d"), &b""[..], Existing::Replace).await;
        assert!(matches!(through_a_file, Err(Error::NotADirectory { .. })));
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn symbolic_links_are_not_followed() {
        use std::os::unix::fs::{PermissionsExt, symlink};

        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("out"), dir.path().join("outside"));
        fs::create_dir_all(&root).unwrap();
        fs::create_dir_all(&outside).unwrap();
        symlink(&outside, root.join("link")).unwrap();
        symlink(outside.join("victim"), root.join("file")).unwrap();
        let through = export(&root, &path("link/x"), &b"x"[..], Existing::Replace).await;
        assert!(matches!(through, Err(Error::NotADirectory { .. })));
        let dangling = export(&root, &path("file"), &b"x"[..], Existing::Keep).await;
        assert!(matches!(dangling, Err(Error::Exists { .. })));
        // Replacing replaces the link, not what it points to.
        let target = export(&root, &path("file"), &b"x"[..], Existing::Replace)
            .await
            .unwrap();
        assert!(fs::symlink_metadata(&target).unwrap().is_file());
        assert_eq!(names(&outside), Vec::<String>::new());
        assert_ne!(
            fs::metadata(&target).unwrap().permissions().mode() & 0o044,
            0,
            "readable as other files are"
        );
    }

    #[tokio::test]
    async fn what_fails_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let broken = tokio_failing_after(b"some bytes");
        let result = export(dir.path(), &path("x"), broken, Existing::Keep).await;
        assert!(matches!(result, Err(Error::Source(_))));
        assert_eq!(names(dir.path()), Vec::<String>::new());
    }

    fn tokio_failing_after(bytes: &'static [u8]) -> impl AsyncRead + Unpin {
        bytes.chain(crate::testing::FailingReader)
    }

    #[test]
    fn names_for_windows() {
        assert_eq!(windows_name("10:30 <a|b>?.png"), "10_30 _a_b__.png");
    }
}
