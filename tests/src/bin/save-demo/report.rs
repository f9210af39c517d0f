//! What the demo says: a story with times for people, or an object for each step.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::story::Failure;

/// One step, as JSON.
#[derive(Serialize)]
struct Step<'a> {
    step: u64,
    name: &'a str,
    ok: bool,
    text: &'a str,
    seconds: f64,
    bytes: u64,
}

/// The last line, as JSON.
#[derive(Serialize)]
struct Summary {
    ok: bool,
    steps: u64,
    bytes: u64,
    seconds: f64,
    peak_rss_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Prints the steps and counts.
pub struct Report {
    json: bool,
    begin: Instant,
    steps: u64,
    bytes: u64,
    peak_memory: u64,
}

impl Report {
    /// A report that begins now.
    pub fn new(json: bool) -> Self {
        Self {
            json,
            begin: Instant::now(),
            steps: 0,
            bytes: 0,
            peak_memory: 0,
        }
    }

    /// A line between the steps, for people only.
    pub fn chapter(&self, text: &str) {
        if !self.json {
            println!("\n{text}");
        }
    }

    /// A step that is done: its name for programs, what happened for people, how long it took, and how many bytes were read
    /// and found equal.
    pub fn step(&mut self, name: &str, text: &str, took: Duration, bytes: u64) {
        self.steps += 1;
        self.bytes += bytes;
        if self.json {
            print(&Step {
                step: self.steps,
                name,
                ok: true,
                text,
                seconds: rounded(took),
                bytes,
            });
        } else {
            let rate = if bytes >= 1_000_000 && took > Duration::ZERO {
                let rate = bytes as f64 / took.as_secs_f64() / 1e6;
                format!(", {rate:.1} MB/s")
            } else {
                String::new()
            };
            println!(
                "{:>7.1} s  {text} ({:.2} s{rate})",
                self.begin.elapsed().as_secs_f64(),
                took.as_secs_f64()
            );
        }
    }

    /// Remembers the largest memory that a device has used.
    pub fn memory(&mut self, bytes: u64) {
        self.peak_memory = self.peak_memory.max(bytes);
    }

    /// The last line, and the exit code.
    pub fn end(self, told: Result<(), Failure>) -> ExitCode {
        let seconds = rounded(self.begin.elapsed());
        let error = told.as_ref().err().map(ToString::to_string);
        if self.json {
            print(&Summary {
                ok: told.is_ok(),
                steps: self.steps,
                bytes: self.bytes,
                seconds,
                peak_rss_bytes: self.peak_memory,
                error,
            });
        } else if let Some(error) = error {
            println!(
                "\nFailed after {} steps and {seconds} s: {error}",
                self.steps
            );
        } else {
            println!(
                "\nDone: {} steps, {} bytes read back and found equal, {seconds} s, at most {} MiB of memory in a device.",
                self.steps,
                self.bytes,
                self.peak_memory / (1024 * 1024)
            );
        }
        if told.is_ok() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

fn print(line: &impl Serialize) {
    println!(
        "{}",
        serde_json::to_string(line).expect("a line is plain data")
    );
}

fn rounded(time: Duration) -> f64 {
    (time.as_secs_f64() * 1000.0).round() / 1000.0
}
