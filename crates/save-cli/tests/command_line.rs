//! The `save` binary as a shell sees it, as far as no node has to be started.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// Runs `save` in a directory of its own; standard input holds `input`.
fn save(directory: &Path, arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_save"))
        .args(arguments)
        .current_dir(directory)
        .env("SAVE_DIR", directory.join("save"))
        .env_remove("SAVE_NETWORK")
        .env_remove("SAVE_GROUP")
        .env_remove("SAVE_PASSWORD")
        .env_remove("SAVE_PASSWORD_FILE")
        .env_remove("SAVE_KEY_FILE")
        .env_remove("SAVE_NEW_PASSWORD")
        .env_remove("RUST_LOG")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that fails before it reads its input closes it.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

/// The exit code, the word in JSON and the message of a command that fails.
fn failure(directory: &Path, arguments: &[&str], input: &str) -> (i32, String, String) {
    let all = [&["--json"], arguments].concat();
    let output = save(directory, &all, input);
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let [line] = &lines[..] else {
        panic!("one line is expected: {text}");
    };
    let error = &line["error"];
    assert!(error["retryable"].is_boolean());
    (
        output.status.code().unwrap(),
        error["code"].as_str().unwrap().to_owned(),
        error["message"].as_str().unwrap().to_owned(),
    )
}

#[test]
fn help_is_worth_reading() {
    let directory = tempfile::tempdir().unwrap();
    let output = save(directory.path(), &["--help"], "");
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).unwrap();
    for part in [
        "Examples:",
        "Exit codes:",
        "save group join",
        "--insecure-key-storage",
        "--password-file",
        "--key-file",
        "SAVE_PASSWORD",
    ] {
        assert!(text.contains(part), "{part} is missing in:\n{text}");
    }
    for command in ["run", "put", "get", "group", "key", "wipe", "verify"] {
        let output = save(directory.path(), &[command, "--help"], "");
        assert_eq!(output.status.code(), Some(0));
    }
    assert!(!directory.path().join("save").exists());
}

#[test]
fn a_wrong_command_line_is_usage() {
    let directory = tempfile::tempdir().unwrap();
    for arguments in [&["fly"][..], &["put"], &["get", "a", "--unknown"]] {
        let (code, word, message) = failure(directory.path(), arguments, "");
        assert_eq!((code, word.as_str()), (2, "usage"), "{message}");
        assert!(!message.is_empty());
    }
    let output = save(directory.path(), &["fly"], "");
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
    assert!(String::from_utf8_lossy(&output.stderr).contains("fly"));
}

#[test]
fn a_bad_link_is_said_at_once_and_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let link = include_str!("../../../docs/formats/link.md")
        .split_once("```valid\n")
        .unwrap()
        .1
        .lines()
        .next()
        .unwrap()
        .rsplit(' ')
        .next()
        .unwrap();
    let expired = save_backend::Link::parse(link).unwrap();
    let expired = expired.with_expiry(1).unwrap().expose();
    let cases = [
        (String::new(), "not a link"),
        ("hello".to_owned(), "not a link"),
        (link.replace(":1/", ":2/"), "version 2"),
        (link.replace("member", "owner"), "'owner'"),
        (link[..link.len() - 3].to_owned(), "cut short"),
        (link.split('#').next().unwrap().to_owned(), "after the '#'"),
        (link.replace("#eb", "#ec"), "mistyped"),
        (format!("{link} thanks"), "followed by"),
        (expired.to_string(), "expired: it was good until 1970-01-01"),
    ];
    for (text, said) in cases {
        let (code, word, message) = failure(directory.path(), &["group", "join", "-"], &text);
        assert_eq!((code, word.as_str()), (6, "bad_link"));
        assert!(message.contains(said), "{said} is not in: {message}");
        let secret = link.rsplit('#').next().unwrap();
        assert!(!message.contains(&secret[..12]));
    }
    assert!(!directory.path().join("save").exists());
}

#[test]
fn a_link_file_that_is_missing_is_not_found() {
    let directory = tempfile::tempdir().unwrap();
    let (code, word, message) = failure(
        directory.path(),
        &["group", "join", "--file", "link.txt"],
        "",
    );
    assert_eq!((code, word.as_str()), (3, "not_found"));
    assert!(message.contains("link.txt"));
}

#[test]
fn a_link_as_an_argument_is_warned_of() {
    let directory = tempfile::tempdir().unwrap();
    let output = save(directory.path(), &["group", "join", "save+dweb:1/"], "");
    assert_eq!(output.status.code(), Some(6));
    assert!(String::from_utf8_lossy(&output.stderr).contains("standard input"));
}

#[test]
fn put_names_what_it_cannot_take() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("folder")).unwrap();
    let (code, word, message) = failure(directory.path(), &["put", "missing.txt"], "");
    assert_eq!((code, word.as_str()), (3, "not_found"));
    assert!(message.contains("missing.txt"));
    let (code, word, message) = failure(directory.path(), &["put", "folder"], "");
    assert_eq!((code, word.as_str()), (2, "usage"));
    assert!(message.contains("folder") && message.contains("--recursive"));
}

#[test]
fn get_never_writes_over_a_file_unasked() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("notes.txt"), "mine").unwrap();
    for arguments in [
        &["get", "a/notes.txt"][..],
        &["get", "x", "-o", "notes.txt"],
    ] {
        let (code, word, message) = failure(directory.path(), arguments, "");
        assert_eq!((code, word.as_str()), (5, "already_exists"));
        assert!(message.contains("notes.txt"));
    }
    let (code, word, _) = failure(directory.path(), &["get", "a/.."], "");
    assert_eq!((code, word.as_str()), (7, "bad_path"));
}

#[test]
fn what_cannot_become_of_a_link_is_said_at_once() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("link.png"), "mine").unwrap();
    for (arguments, wanted) in [
        (&["--png", "link.png"][..], (5, "already_exists")),
        (&["--png", "."], (5, "already_exists")),
        (&["--png", "-", "--qr"], (2, "usage")),
        (&["--expires", "7"], (2, "usage")),
        (&["--label", "a\nb"], (2, "usage")),
    ] {
        let all = [&["group", "link"], arguments].concat();
        let (code, word, message) = failure(directory.path(), &all, "");
        assert_eq!((code, word.as_str()), wanted, "{message}");
    }
    assert!(!directory.path().join("save").exists());
}

#[test]
fn bad_network_settings_are_named() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("network.json"), "{").unwrap();
    let arguments = ["--network", "network.json", "ls"];
    let (code, word, message) = failure(directory.path(), &arguments, "");
    assert_eq!((code, word.as_str()), (12, "io"));
    assert!(message.contains("network.json"));
    let arguments = ["--network", "missing.json", "ls"];
    let (code, word, _) = failure(directory.path(), &arguments, "");
    assert_eq!((code, word.as_str()), (3, "not_found"));
}

#[test]
fn what_is_wrong_with_a_password_is_said_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = ["ls", "--password-file", "missing"];
    let (code, word, message) = failure(directory.path(), &arguments, "");
    assert_eq!((code, word.as_str()), (3, "not_found"));
    assert!(message.contains("missing"));
    std::fs::write(directory.path().join("empty"), "\n").unwrap();
    let arguments = ["ls", "--password-file", "empty"];
    let (code, word, message) = failure(directory.path(), &arguments, "");
    assert_eq!((code, word.as_str()), (2, "usage"));
    assert!(message.contains("empty"));
    // Standard input is no terminal here, so there is nobody to ask.
    let (code, word, message) = failure(directory.path(), &["ls", "--ask-password"], "");
    assert_eq!((code, word.as_str()), (2, "usage"));
    assert!(message.contains("terminal"));
    let (code, word, message) = failure(directory.path(), &["key", "change"], "");
    assert_eq!((code, word.as_str()), (2, "usage"));
    assert!(message.contains("--new-password-file"));
    let entries = std::fs::read_dir(directory.path().join("save"))
        .map(|entries| entries.count())
        .unwrap_or_default();
    assert_eq!(entries, 0);
}

#[test]
fn nothing_is_wiped_without_yes() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("save");
    std::fs::create_dir(&data).unwrap();
    std::fs::create_dir(data.join("blobs")).unwrap();
    std::fs::write(data.join("id"), "0123456789abcdef".repeat(2)).unwrap();
    let (code, word, message) = failure(directory.path(), &["wipe"], "");
    assert_eq!((code, word.as_str()), (2, "usage"));
    assert!(message.contains("--yes"));
    assert!(data.join("blobs").exists());
    // What is not ours stays.
    std::fs::write(data.join("mine.txt"), "mine").unwrap();
    let output = save(directory.path(), &["--json", "wipe", "--yes"], "");
    assert_eq!(output.status.code(), Some(0));
    let line: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(line["type"], "wiped");
    let left: Vec<_> = std::fs::read_dir(&data)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["mine.txt"]);
}

#[test]
fn where_no_device_is_nothing_is_wiped() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("save");
    let refused = || {
        let (code, word, message) = failure(directory.path(), &["wipe", "--yes"], "");
        assert_eq!((code, word.as_str()), (3, "not_found"));
        assert!(message.contains("no device in"), "{message}");
        assert!(message.contains(data.to_str().unwrap()), "{message}");
    };
    refused();
    assert!(!data.exists());
    std::fs::create_dir(&data).unwrap();
    refused();
    assert_eq!(std::fs::read_dir(&data).unwrap().count(), 0);
    // Called as a device calls them, but another program's.
    std::fs::create_dir(data.join("blobs")).unwrap();
    std::fs::write(data.join("blobs/one"), "mine").unwrap();
    std::fs::write(data.join("id"), "mine").unwrap();
    refused();
    assert!(data.join("blobs/one").exists());
    assert_eq!(std::fs::read_dir(&data).unwrap().count(), 2);
}

#[test]
fn wiping_needs_neither_password_nor_network_settings() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("save");
    std::fs::write(directory.path().join("network.json"), "{").unwrap();
    for option in [
        &["--network", "network.json"][..],
        &["--password-file", "missing"],
        &["--key-file", "missing"],
        &["--ask-password"],
    ] {
        std::fs::create_dir(&data).unwrap();
        std::fs::write(data.join("id"), "0123456789abcdef".repeat(2)).unwrap();
        let output = save(directory.path(), &[&["wipe", "--yes"], option].concat(), "");
        assert_eq!(output.status.code(), Some(0), "{option:?}");
        assert!(!data.exists());
    }
}
