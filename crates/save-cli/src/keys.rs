//! How the keys are protected, as the command line, the environment and the user say.

use std::ffi::OsString;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use save_backend::KeyStorage;
use zeroize::Zeroizing;

use crate::args::{Common, KeyChange};
use crate::error::{Error, Result};
use crate::items::Secret;
use crate::ops::NewKeys;
use crate::prompt;
use crate::settings::Settings;

/// The variable that can hold the password.
pub const PASSWORD: &str = "SAVE_PASSWORD";
/// The variable that can hold the new password of `save key change`.
pub const NEW_PASSWORD: &str = "SAVE_NEW_PASSWORD";
/// A longer line is no password.
const LONGEST: usize = 4096;
/// How often a wrong password may be tried.
const TRIES: u32 = 3;

/// What the command line and the environment say. A file given as an option counts for more than a password in a variable.
///
/// # Errors
/// [`Error::File`] and [`Error::Usage`] if the password cannot be read.
pub fn given(common: &Common, variable: impl Fn(&str) -> Option<OsString>) -> Result<KeyStorage> {
    if let Some(path) = &common.password_file {
        return Ok(KeyStorage::Password(read(path)?));
    }
    if let Some(path) = &common.key_file {
        return Ok(KeyStorage::KeyFile(absolute(path)?));
    }
    if common.insecure_key_storage {
        return Ok(KeyStorage::InsecureFile);
    }
    match variable(PASSWORD) {
        Some(password) if !common.ask_password && !password.is_empty() => {
            Ok(KeyStorage::Password(text(PASSWORD, password)?))
        }
        _ => Ok(KeyStorage::Keyring),
    }
}

/// What `save key change` is to change to.
///
/// # Errors
/// As [`given`], and [`Error::Usage`] if nobody says it.
pub async fn new(
    change: &KeyChange,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<NewKeys> {
    let password = |password: Zeroizing<String>| NewKeys::Password {
        password: Secret::new(password),
    };
    if let Some(path) = &change.new_password_file {
        return Ok(password(read(path)?));
    }
    if let Some(path) = &change.new_key_file {
        return Ok(NewKeys::KeyFile {
            path: absolute(path)?,
        });
    }
    if change.keyring {
        return Ok(NewKeys::Keyring);
    }
    if change.insecure {
        return Ok(NewKeys::Insecure);
    }
    match variable(NEW_PASSWORD) {
        Some(new) if !new.is_empty() => Ok(password(text(NEW_PASSWORD, new)?)),
        _ if prompt::is_possible() => Ok(password(ask_twice("The new password: ").await?)),
        _ => Err(Error::Usage(
            "say how the keys are to be protected: --new-password-file, --new-key-file, --keyring, --insecure or \
             SAVE_NEW_PASSWORD"
                .to_owned(),
        )),
    }
}

/// What a node is started with, asked for where need be.
pub struct Keys {
    given: KeyStorage,
    ask: bool,
    /// Whether there is nothing yet that the password could be wrong for.
    first: bool,
    tries: u32,
}

impl Keys {
    /// Asks nothing yet.
    pub fn new(settings: &Settings) -> Self {
        Self {
            given: settings.key_storage.clone(),
            ask: settings.ask_password,
            first: !settings.directory.join("id").exists(),
            tries: 0,
        }
    }

    /// What to try next.
    ///
    /// # Errors
    /// [`Error::Usage`] if it is to be asked for and there is no terminal; [`Error::Stream`].
    pub async fn storage(&mut self) -> Result<KeyStorage> {
        if self.ask {
            if !prompt::is_possible() {
                return Err(Error::Usage("--ask-password needs a terminal".to_owned()));
            }
            self.ask = false;
            self.tries = 1;
            self.given = KeyStorage::Password(if self.first {
                ask_twice("A password for this device: ").await?
            } else {
                prompt::password("Password: ").await?
            });
        }
        Ok(self.given.clone())
    }

    /// Whether the user can be asked after this failure.
    pub fn can_ask_again(&self, error: &save_backend::Error) -> bool {
        let asks = match error {
            save_backend::Error::PasswordRequired => self.tries == 0,
            save_backend::Error::WrongKey => (1..TRIES).contains(&self.tries),
            _ => false,
        };
        asks && matches!(self.given, KeyStorage::Keyring | KeyStorage::Password(_))
            && prompt::is_possible()
    }

    /// Asks.
    ///
    /// # Errors
    /// [`Error::Stream`].
    pub async fn ask_again(&mut self, error: &save_backend::Error) -> Result<()> {
        let question = match error {
            save_backend::Error::WrongKey => "That was not it. Password: ",
            _ => "Password: ",
        };
        self.tries += 1;
        self.given = KeyStorage::Password(prompt::password(question).await?);
        Ok(())
    }
}

async fn ask_twice(question: &str) -> Result<Zeroizing<String>> {
    let password = prompt::password(question).await?;
    if password.is_empty() {
        return Err(Error::Usage(
            "an empty password protects nothing".to_owned(),
        ));
    }
    if *prompt::password("Once more: ").await? != *password {
        return Err(Error::Usage("the two were not the same".to_owned()));
    }
    Ok(password)
}

/// The password in a file: its first line. What follows is not looked at, so notes can stand below it.
fn read(path: &Path) -> Result<Zeroizing<String>> {
    // As much as the longest line with its end takes, so that nothing is copied while it is read.
    let most = LONGEST + b"\r\n".len();
    let mut start = Zeroizing::new(Vec::with_capacity(most));
    std::fs::File::open(path)
        .and_then(|file| file.take(most as u64).read_to_end(&mut start))
        .map_err(Error::file(path, "read"))?;
    let line = first_line(&start);
    let no_password = |reason: &str| {
        let path = path.display();
        Error::Usage(format!("'{path}' holds no password: {reason}"))
    };
    if line.is_empty() {
        return Err(no_password("its first line is empty"));
    }
    if line.len() > LONGEST {
        let reason = format!("its first line is longer than {LONGEST} bytes");
        return Err(no_password(&reason));
    }
    match std::str::from_utf8(line) {
        Ok(line) => Ok(Zeroizing::new(line.to_owned())),
        Err(_) => Err(no_password("its first line is not valid UTF-8")),
    }
}

/// What stands before the first line end, which is `\n` or `\r\n`; all of it if there is none.
fn first_line(text: &[u8]) -> &[u8] {
    match text.iter().position(|&byte| byte == b'\n') {
        Some(end) => text[..end].strip_suffix(b"\r").unwrap_or(&text[..end]),
        None => text,
    }
}

fn text(name: &str, value: OsString) -> Result<Zeroizing<String>> {
    value
        .into_string()
        .map(Zeroizing::new)
        .map_err(|_| Error::Usage(format!("{name} is not valid UTF-8")))
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(Error::file(path, "found"))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::Arguments;

    fn common(line: &str) -> Common {
        Arguments::try_parse_from(line.split(' ')).unwrap().common
    }

    fn given_with(line: &str, password: Option<&str>) -> Result<KeyStorage> {
        given(&common(line), |name| {
            assert_eq!(name, PASSWORD);
            password.map(OsString::from)
        })
    }

    #[test]
    fn an_option_counts_for_more_than_the_variable() {
        let is = |line, password| given_with(line, password).unwrap();
        assert!(matches!(is("save ls", None), KeyStorage::Keyring));
        assert!(matches!(is("save ls", Some("")), KeyStorage::Keyring));
        assert!(matches!(
            is("save ls", Some("x")),
            KeyStorage::Password(password) if *password == "x"
        ));
        assert!(matches!(
            is("save ls --key-file k", Some("x")),
            KeyStorage::KeyFile(path) if path.is_absolute() && path.ends_with("k")
        ));
        assert!(matches!(
            is("save ls --insecure-key-storage", Some("x")),
            KeyStorage::InsecureFile
        ));
        assert!(matches!(
            is("save ls --ask-password", Some("x")),
            KeyStorage::Keyring
        ));
    }

    #[test]
    fn a_password_is_the_first_line_of_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("password");
        let line = format!("save ls --password-file {}", path.display());
        for (content, password) in [
            ("secret", Some("secret")),
            ("secret\n", Some("secret")),
            ("secret\r\n", Some("secret")),
            ("se\rcret\r", Some("se\rcret\r")),
            (" two words \n", Some(" two words ")),
            ("a\n\n", Some("a")),
            ("one\ntwo\nthree\n", Some("one")),
            ("one\r\ntwo\r\n", Some("one")),
            ("one\ntwo", Some("one")),
            ("", None),
            ("\n", None),
            ("\r\n", None),
            ("\nsecret\n", None),
            ("\r\nsecret\r\n", None),
        ] {
            std::fs::write(&path, content).unwrap();
            match (given_with(&line, None), password) {
                (Ok(KeyStorage::Password(got)), Some(password)) => {
                    assert_eq!(*got, password, "{content:?}");
                }
                (Err(Error::Usage(text)), None) => assert!(text.contains("no password")),
                (result, _) => panic!("{content:?}: {result:?}"),
            }
        }
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(given_with(&line, None), Err(Error::File { .. })));
    }

    #[test]
    fn only_the_first_line_of_a_password_file_is_judged() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("password");
        let read_from = |content: &[u8]| {
            std::fs::write(&path, content).unwrap();
            read(&path)
        };
        let longest = "a".repeat(LONGEST);
        for end in ["", "\n", "\r\n", "\r\nmore\n"] {
            let got = read_from(format!("{longest}{end}").as_bytes()).unwrap();
            assert!(*got == longest, "{end:?}");
        }
        for end in ["a", "a\n", "\rmore"] {
            let got = read_from(format!("{longest}{end}").as_bytes());
            assert!(matches!(got, Err(Error::Usage(text)) if text.contains("longer")));
        }
        let more = [b"a\n\xff".as_slice(), &[b'b'; 2 * LONGEST]].concat();
        assert_eq!(*read_from(&more).unwrap(), "a");
        let got = read_from(b"\xff\n");
        assert!(matches!(got, Err(Error::Usage(text)) if text.contains("UTF-8")));
    }
}
