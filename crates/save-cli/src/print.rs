//! Results for people: tables, sizes, times, and nothing that could play tricks with a terminal.

use std::io::{self, Write};

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use save_backend::UtcTime;

use crate::error::{Error, Failure, Result};
use crate::items::{Activity, Item, Stage};
use crate::ops::short_key;

/// Prints a command's results, as JSON or for people.
pub struct Printer {
    json: bool,
    head: &'static [&'static str],
    rows: Vec<Vec<String>>,
    bar: Option<ProgressBar>,
}

impl Printer {
    /// For people, with a progress bar if standard error is a terminal; or as JSON, without.
    pub fn new(json: bool) -> Self {
        Self {
            json,
            head: &[],
            rows: Vec::new(),
            bar: None,
        }
    }

    /// Gives the table its titles.
    pub fn head(&mut self, head: &'static [&'static str]) {
        self.head = head;
    }

    /// Prints a result, or keeps it for the table.
    ///
    /// # Errors
    /// [`Error::Stream`] if standard output is closed.
    pub fn item(&mut self, item: &Item) -> Result<()> {
        if self.json {
            return line(&to_json(item));
        }
        match describe(item) {
            Described::Row(row) => {
                self.rows.push(row);
                Ok(())
            }
            Described::Line(text) => {
                self.finish()?;
                line(&text)
            }
            Described::Note(text) => {
                self.note(&text);
                Ok(())
            }
            Described::Nothing => Ok(()),
        }
    }

    /// Whether it prints JSON.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Prints a text as it is. It has to be no JSON that is printed, and nothing that others have written.
    ///
    /// # Errors
    /// [`Error::Stream`] if standard output is closed.
    pub fn text(&mut self, text: &str) -> Result<()> {
        self.finish()?;
        io::stdout()
            .lock()
            .write_all(text.as_bytes())
            .map_err(stdout)
    }

    /// Says something beside the results, on standard error; not with JSON.
    pub fn note(&mut self, text: &str) {
        if !self.json {
            self.clear();
            // Nobody to tell if standard error is closed.
            let _ = writeln!(io::stderr(), "{text}");
        }
    }

    /// Shows how far it has come.
    pub fn progress(&mut self, activity: &Activity) {
        if self.json {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            // The target hides itself where standard error is no terminal.
            ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr())
        });
        match activity.total {
            Some(total) if total > 0 => {
                if bar.length() != Some(total) {
                    bar.set_length(total);
                    bar.set_style(style(
                        "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
                    ));
                }
                bar.set_position(activity.done.min(total));
            }
            _ => {
                bar.set_style(style("{spinner} {msg}"));
                bar.tick();
            }
        }
        bar.set_message(match activity.stage {
            Stage::Connecting => "Waiting for the network",
            Stage::Storing => "Storing",
            Stage::Publishing => "Publishing",
            Stage::Finding => "Looking for it",
            Stage::Fetching => "Fetching",
            Stage::Verifying => "Verifying",
            Stage::Other => "Working",
        });
    }

    /// Prints the table, if there is one, and takes the progress bar away.
    ///
    /// # Errors
    /// [`Error::Stream`] if standard output is closed.
    pub fn finish(&mut self) -> Result<()> {
        self.clear();
        if self.rows.is_empty() {
            return Ok(());
        }
        let head = self.head.iter().map(|title| (*title).to_owned()).collect();
        self.rows.insert(0, head);
        for text in table(&std::mem::take(&mut self.rows)) {
            line(&text)?;
        }
        Ok(())
    }

    /// Prints how a command failed: as JSON to standard output, for people to standard error.
    pub fn failure(&mut self, failure: &Failure) {
        self.clear();
        // There is no better place to report that these streams are closed.
        let _ = if self.json {
            line(&serde_json::json!({ "error": failure }).to_string())
        } else {
            writeln!(io::stderr(), "save: {}", clean(&failure.message)).map_err(stdout)
        };
    }

    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Printer {
    fn drop(&mut self) {
        self.clear();
    }
}

enum Described {
    Row(Vec<String>),
    Line(String),
    Note(String),
    Nothing,
}

fn describe(item: &Item) -> Described {
    let name = |name: &Option<String>| name.as_deref().map_or_else(|| "-".to_owned(), clean);
    let yes = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    match item {
        Item::Group {
            id,
            name: called,
            members,
            role,
            published,
            pending,
            ..
        } => Described::Row(vec![
            short_key(id).to_owned(),
            members.to_string(),
            clean(role),
            if pending.is_empty() {
                yes(*published)
            } else {
                format!("no ({})", clean(&pending.join(", ")))
            },
            name(called),
        ]),
        Item::Link { link, .. } => Described::Line(link.expose().to_owned()),
        Item::LinkPicture { kind, file, .. } => Described::Line(format!(
            "QR code of a {} link -> {}",
            clean(kind),
            clean(&file.to_string_lossy())
        )),
        Item::Member {
            name: called,
            repo,
            role,
            is_self,
            files,
            bytes,
            last_seen,
            ignored,
            ..
        } => Described::Row(vec![
            short_key(repo).to_owned(),
            role.as_deref().map_or_else(|| "?".to_owned(), clean),
            files.map_or_else(|| "?".to_owned(), |files| files.to_string()),
            bytes.map_or_else(|| "?".to_owned(), |bytes| HumanBytes(bytes).to_string()),
            last_seen.map_or_else(|| "-".to_owned(), date),
            ignored.as_ref().map_or_else(
                || "-".to_owned(),
                |left| format!("{} s ({})", left.seconds, clean(&left.reason)),
            ),
            name(called) + if *is_self { " (this device)" } else { "" },
        ]),
        Item::Guest {
            device,
            role,
            last_seen,
        } => Described::Row(vec![
            short_key(device).to_owned(),
            role.as_deref()
                .map_or_else(|| "reader or replica".to_owned(), clean),
            "-".to_owned(),
            "-".to_owned(),
            date(*last_seen),
            "-".to_owned(),
            "(a device without a slot)".to_owned(),
        ]),
        Item::Left {
            group,
            told,
            this_device,
        } => Described::Line(left(group, *told, *this_device)),
        Item::Moved { by, member, to, .. } => Described::Line(format!(
            "{} ({}) says that the group moved to {}",
            name(member),
            short_key(by),
            short_key(to)
        )),
        Item::Copied {
            copied,
            there,
            missing,
            ..
        } => Described::Line(format!(
            "copied {copied} files; {there} were there already, {missing} are not on this device"
        )),
        Item::File {
            path,
            size,
            modified,
            repo,
            member,
            is_self,
            here,
            ..
        } => Described::Row(vec![
            HumanBytes(*size).to_string(),
            modified.map_or_else(|| "-".to_owned(), date),
            yes(*here),
            match (is_self, member) {
                (true, _) => "(this device)".to_owned(),
                (false, Some(member)) => clean(member),
                (false, None) => short_key(repo).to_owned(),
            },
            clean(path),
        ]),
        Item::Stored { path, size } => {
            Described::Line(format!("stored {} ({})", clean(path), HumanBytes(*size)))
        }
        Item::Removed { path } => Described::Line(format!("removed {}", clean(path))),
        Item::Publication {
            published: true, ..
        } => Described::Line("published".to_owned()),
        Item::Publication { reason, .. } => Described::Line(format!(
            "stored here, not yet published{}",
            reason
                .as_deref()
                .map_or_else(String::new, |reason| format!(": {}", clean(reason)))
        )),
        Item::Fetched {
            path,
            file: Some(file),
            size,
        } => Described::Line(format!(
            "{} -> {} ({})",
            clean(path),
            clean(&file.to_string_lossy()),
            HumanBytes(*size)
        )),
        // Standard output holds the file itself.
        Item::Fetched { .. } => Described::Nothing,
        Item::Synced {
            repo,
            member,
            files,
            files_total,
            bytes,
            complete,
            ..
        } => Described::Row(vec![
            short_key(repo).to_owned(),
            format!("{files}/{files_total}"),
            HumanBytes(*bytes).to_string(),
            yes(*complete),
            name(member),
        ]),
        Item::Wanted {
            repo,
            member,
            path,
            since,
            active,
        } => Described::Row(vec![
            member
                .as_deref()
                .map_or_else(|| short_key(repo).to_owned(), clean),
            date(*since),
            if *active { "fetching" } else { "waiting" }.to_owned(),
            path.as_deref()
                .map_or_else(|| "(all files)".to_owned(), clean),
        ]),
        Item::Forgotten { path, .. } => Described::Line(format!(
            "no longer wanted: {}",
            path.as_deref()
                .map_or_else(|| "all files of the member".to_owned(), clean)
        )),
        Item::Pong {
            repo,
            member,
            milliseconds,
        } => Described::Line(format!(
            "{} ({}) answered in {milliseconds:.0} ms",
            name(member),
            short_key(repo)
        )),
        Item::Silent {
            repo,
            member,
            error,
        } => Described::Line(format!(
            "{} ({}): {}",
            name(member),
            short_key(repo),
            clean(&error.message)
        )),
        Item::Status {
            directory,
            daemon,
            online,
            backend,
        } => Described::Line(status(directory, *daemon, *online, backend)),
        Item::Verified {
            pieces,
            bytes,
            damaged,
        } => Described::Line(format!(
            "read {pieces} pieces ({}), {} damaged",
            HumanBytes(*bytes),
            damaged.len()
        )),
        Item::KeysChanged { protection } => Described::Line(format!(
            "from now on the keys are protected by {}",
            match protection.as_str() {
                "keyring" => "the system's keyring",
                "password" => "the new password",
                "key_file" =>
                    "the key file; keep a copy of it, and neither of them with this device",
                _ => "nothing",
            }
        )),
        Item::Wiped { directory } => Described::Line(format!(
            "everything in '{}' is gone",
            clean(&directory.to_string_lossy())
        )),
        Item::Running { directory, .. } => Described::Note(format!(
            "save is running in '{}'; Ctrl-C ends it",
            clean(&directory.to_string_lossy())
        )),
        Item::Online => Described::Note("online: others can fetch this device's files".to_owned()),
        Item::Stopped { milliseconds, .. } => {
            Described::Note(format!("stopped after {milliseconds} ms"))
        }
    }
}

/// That a group was left, and what the others know of it.
fn left(group: &str, told: bool, this_device: bool) -> String {
    let others = match (told, this_device) {
        (true, _) => "",
        (false, true) => "; the others are not told",
        (false, false) => "; the others are told when the network can be reached",
    };
    let group = short_key(group);
    format!("this device is no longer in the group {group}{others}")
}

fn status(
    directory: &std::path::Path,
    daemon: Option<u32>,
    online: bool,
    backend: &serde_json::Value,
) -> String {
    let mut text = format!("directory   {}\n", clean(&directory.to_string_lossy()));
    text.push_str(&match daemon {
        Some(pid) => format!("save run    running, process {pid}\n"),
        None => "save run    not running: others cannot fetch this device's files\n".to_owned(),
    });
    text.push_str(if online {
        "network     online"
    } else {
        "network     offline"
    });
    if let Some(attachment) = backend.get("attachment").and_then(|value| value.as_str()) {
        text.push_str(&format!(" ({})", clean(attachment)));
    }
    let leaving = backend.get("leaving").and_then(|value| value.as_array());
    for group in leaving.into_iter().flatten().filter_map(|id| id.as_str()) {
        let group = short_key(group);
        text.push_str(&format!(
            "\nleft        {group}: the others are not told yet"
        ));
    }
    text
}

/// Columns as wide as their widest cell, two spaces apart; the last one is not padded.
fn table(rows: &[Vec<String>]) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    rows.iter()
        .map(|row| {
            let cells: Vec<String> = row
                .iter()
                .zip(&widths)
                .enumerate()
                .map(|(column, (cell, width))| {
                    if column + 1 == columns {
                        cell.clone()
                    } else {
                        format!("{cell:<width$}")
                    }
                })
                .collect();
            cells.join("  ")
        })
        .collect()
}

/// Replaces what could steer a terminal or turn the reading direction: names and paths come from other people.
pub(crate) fn clean(text: &str) -> String {
    let harmful = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars()
        .map(|c| {
            if harmful(c) {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            }
        })
        .collect()
}

/// Date and time, UTC.
fn date(seconds: u64) -> String {
    UtcTime(seconds).to_string()
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the templates are constants and valid")
}

fn line(text: &str) -> Result<()> {
    writeln!(io::stdout().lock(), "{text}").map_err(stdout)
}

fn stdout(source: io::Error) -> Error {
    Error::Stream {
        stream: "output",
        source,
    }
}

fn to_json(item: &Item) -> String {
    // Only maps with keys that are no strings could fail.
    serde_json::to_string(item).expect("an item is plain data")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_steer_the_terminal() {
        assert_eq!(clean("a\u{1b}[2Jb\nc"), "a\u{fffd}[2Jb\u{fffd}c");
        assert_eq!(clean("gpj.\u{202e}exe"), "gpj.\u{fffd}exe");
        assert_eq!(clean("Zoë 😀"), "Zoë 😀");
    }

    #[test]
    fn who_left_is_told_what_the_others_know() {
        assert!(left("key", true, false).ends_with("the group key"));
        assert!(
            left("key", false, false)
                .ends_with("; the others are told when the network can be reached")
        );
        assert!(left("key", false, true).ends_with("; the others are not told"));
    }

    #[test]
    fn columns_are_aligned() {
        let rows =
            [["A", "LONG", "Z"], ["wide", "x", "end"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(table(&rows), ["A     LONG  Z", "wide  x     end"]);
    }
}
