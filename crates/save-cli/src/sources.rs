//! From the names on the command line of `put` to files and their paths in the archive.

use std::fs;
use std::path::{Path, PathBuf};

use crate::args::Put;
use crate::error::{Error, Result};
use crate::ops::PutFile;

/// All files that a `put` names, with absolute sources, since a running `save run` has another working directory.
///
/// # Errors
/// [`Error::File`], [`Error::IsDirectory`], [`Error::NotAFile`], [`Error::BadPath`] for names that are not Unicode,
/// and [`Error::Usage`] where nothing is left or two files would have one path.
pub fn collect(put: &Put) -> Result<Vec<PutFile>> {
    let mut files = Vec::new();
    for name in &put.files {
        let source = std::path::absolute(name).map_err(Error::file(name, "found"))?;
        let metadata = fs::metadata(&source).map_err(Error::file(name, "read"))?;
        if metadata.is_dir() {
            if !put.recursive {
                return Err(Error::IsDirectory { path: name.clone() });
            }
            let prefix = match own_name(&source) {
                Some(own) => join(put.to.as_deref(), unicode(own)?),
                None => put.to.clone().unwrap_or_default(),
            };
            walk(&source, &prefix, &mut files)?;
        } else if metadata.is_file() {
            let path = match &put.path {
                Some(path) => path.clone(),
                None => {
                    let own =
                        own_name(&source).ok_or_else(|| Error::NotAFile { path: name.clone() })?;
                    join(put.to.as_deref(), unicode(own)?)
                }
            };
            files.push(PutFile { source, path });
        } else {
            return Err(Error::NotAFile { path: name.clone() });
        }
    }
    if put.path.is_some() && files.len() > 1 {
        return Err(Error::Usage("--path is for one file".to_owned()));
    }
    if files.is_empty() {
        return Err(Error::Usage("there is no file to archive".to_owned()));
    }
    let mut paths: Vec<&str> = files.iter().map(|file| file.path.as_str()).collect();
    paths.sort_unstable();
    let twice = paths.windows(2).find_map(|pair| match pair {
        [a, b] if a == b => Some(a),
        _ => None,
    });
    if let Some(twice) = twice {
        return Err(Error::Usage(format!(
            "two files would have the path '{twice}'"
        )));
    }
    Ok(files)
}

/// Adds the regular files below a directory, in order of their names. Links are left out: they could lead anywhere.
fn walk(directory: &Path, prefix: &str, files: &mut Vec<PutFile>) -> Result<()> {
    let read = || Error::file(directory, "read");
    let mut entries = fs::read_dir(directory)
        .map_err(read())?
        .collect::<Result<Vec<_>, _>>()
        .map_err(read())?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let source = entry.path();
        let kind = entry.file_type().map_err(Error::file(&source, "read"))?;
        if !kind.is_dir() && !kind.is_file() {
            tracing::warn!("left out what is neither a file nor a directory");
            continue;
        }
        let path = join(Some(prefix), unicode(Path::new(&entry.file_name()))?);
        if kind.is_dir() {
            walk(&source, &path, files)?;
        } else {
            files.push(PutFile { source, path });
        }
    }
    Ok(())
}

/// The last part of a path; none for `/` and for paths that end in `..`.
fn own_name(path: &Path) -> Option<&Path> {
    path.file_name().map(Path::new)
}

fn unicode(name: &Path) -> Result<&str> {
    name.to_str().ok_or_else(|| Error::BadPath {
        path: name.to_string_lossy().into_owned(),
        reason: "it is not Unicode".to_owned(),
    })
}

fn join(folder: Option<&str>, name: &str) -> String {
    match folder.map(|folder| folder.strip_suffix('/').unwrap_or(folder)) {
        None | Some("") => name.to_owned(),
        Some(folder) => format!("{folder}/{name}"),
    }
}

/// Where `get` writes a file of this path in the archive.
///
/// # Errors
/// [`Error::BadPath`] if the path has no name that can stand in a directory; [`Error::Exists`] without `force`.
pub fn destination(output: Option<&Path>, path: &str, force: bool) -> Result<PathBuf> {
    let name = || {
        let last = path.rsplit('/').next().unwrap_or(path);
        let mut parts = Path::new(last).components();
        match (parts.next(), parts.next()) {
            (Some(std::path::Component::Normal(name)), None) if name == last => Ok(name.to_owned()),
            _ => Err(Error::BadPath {
                path: path.to_owned(),
                reason: "its last part is not a file name".to_owned(),
            }),
        }
    };
    let target = match output {
        None => PathBuf::from(name()?),
        Some(output) if output.is_dir() => output.join(name()?),
        Some(output) => output.to_owned(),
    };
    if target.is_dir() {
        return Err(Error::File {
            path: target,
            action: "written",
            source: std::io::ErrorKind::IsADirectory.into(),
        });
    }
    // A dangling link counts as a file in the way, too.
    if !force && target.symlink_metadata().is_ok() {
        return Err(Error::Exists { path: target });
    }
    Ok(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(files: &[&Path]) -> Put {
        Put {
            files: files.iter().map(|path| path.to_path_buf()).collect(),
            to: None,
            path: None,
            recursive: false,
        }
    }

    fn tree() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        fs::create_dir_all(root.join("sub/deep")).unwrap();
        for name in ["b.txt", "a.txt", "sub/c.txt", "sub/deep/d.txt"] {
            fs::write(root.join(name), name).unwrap();
        }
        std::os::unix::fs::symlink("/etc", root.join("link")).unwrap();
        directory
    }

    fn paths(files: &[PutFile]) -> Vec<&str> {
        files.iter().map(|file| file.path.as_str()).collect()
    }

    #[test]
    fn directories_need_recursive_and_links_are_left_out() {
        let directory = tree();
        let root = directory.path().join("root");
        assert!(matches!(
            collect(&put(&[&root])),
            Err(Error::IsDirectory { .. })
        ));
        let mut all = put(&[&root]);
        all.recursive = true;
        all.to = Some("to/".into());
        let files = collect(&all).unwrap();
        assert_eq!(
            paths(&files),
            [
                "to/root/a.txt",
                "to/root/b.txt",
                "to/root/sub/c.txt",
                "to/root/sub/deep/d.txt"
            ]
        );
        assert!(files.iter().all(|file| file.source.is_absolute()));
    }

    #[test]
    fn a_file_goes_where_it_is_said() {
        let directory = tree();
        let file = directory.path().join("root/a.txt");
        assert_eq!(paths(&collect(&put(&[&file])).unwrap()), ["a.txt"]);
        let mut named = put(&[&file]);
        named.path = Some("x/y.txt".into());
        assert_eq!(paths(&collect(&named).unwrap()), ["x/y.txt"]);
    }

    #[test]
    fn what_cannot_be_put_is_named() {
        let directory = tree();
        let root = directory.path().join("root");
        let missing = root.join("missing");
        let Err(Error::File { path, .. }) = collect(&put(&[&missing])) else {
            panic!("a missing file is an error");
        };
        assert_eq!(path, missing);
        assert!(matches!(
            collect(&put(&[Path::new("/dev/null")])),
            Err(Error::NotAFile { .. })
        ));
        let file = root.join("a.txt");
        assert!(matches!(
            collect(&put(&[&file, &file])),
            Err(Error::Usage(_))
        ));
    }

    #[test]
    fn a_file_is_written_under_its_own_name_only() {
        let directory = tempfile::tempdir().unwrap();
        let inside = Some(directory.path());
        assert_eq!(
            destination(inside, "a/b.txt", false).unwrap(),
            directory.path().join("b.txt")
        );
        for path in ["", "..", "a/..", "a/.", "/", "a/"] {
            assert!(
                matches!(destination(inside, path, false), Err(Error::BadPath { .. })),
                "{path}"
            );
        }
    }

    #[test]
    fn nothing_is_overwritten_unasked() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("b.txt");
        std::os::unix::fs::symlink("nowhere", &file).unwrap();
        assert!(matches!(
            destination(Some(&file), "b.txt", false),
            Err(Error::Exists { .. })
        ));
        assert_eq!(destination(Some(&file), "b.txt", true).unwrap(), file);
    }
}
