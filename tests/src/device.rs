//! A device of its own: a `save run` in a process on a devnet host, driven through the `save` command.

use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use devnet::Host;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

/// What can go wrong with a device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no `save` next to this program; build the whole workspace.
    #[error("there is no `save` at {}: build the whole workspace first", .path.display())]
    NoBinary {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The system refused something.
    #[error("{action}: {source}")]
    Io {
        /// What was tried.
        action: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A command failed.
    #[error("{device}: `save {command}` failed with exit code {code:?}: {message}")]
    Command {
        /// Whose command.
        device: String,
        /// The command.
        command: String,
        /// Its exit code; none if a signal ended it.
        code: Option<i32>,
        /// The word for its failure in JSON; empty if there was none.
        kind: String,
        /// What it said.
        message: String,
    },
    /// Something did not come in time.
    #[error("{device}: {what} did not happen within {} s", .limit.as_secs())]
    TooSlow {
        /// Whose.
        device: String,
        /// What was waited for.
        what: String,
        /// For how long.
        limit: Duration,
    },
    /// `save run` ended although nobody asked it to, or printed what it should not.
    #[error("{device}: save run {what}")]
    Daemon {
        /// Whose.
        device: String,
        /// What it did.
        what: String,
    },
}

/// A result of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A device. Its process is killed when it is dropped, and when this process ends in any way.
pub struct Device {
    name: String,
    host: Host,
    binary: PathBuf,
    directory: PathBuf,
    network: PathBuf,
    daemon: Option<Daemon>,
    peak_memory: u64,
}

struct Daemon {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Device {
    /// A device on a host, with a directory in the host's own. Starts nothing yet.
    pub fn new(name: &str, host: Host) -> Result<Self> {
        let directory = host.directory().join("save");
        let network = host.directory().join("network.json");
        host.network_settings()
            .write(&network)
            .map_err(|error| Error::Io {
                action: format!("writing {}", network.display()),
                source: io::Error::other(error),
            })?;
        Ok(Self {
            name: name.to_owned(),
            binary: save_binary()?,
            host,
            directory,
            network,
            daemon: None,
            peak_memory: 0,
        })
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The host that it is on.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The directory of its `save`.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A `save` command for this device, on its host, with JSON output.
    pub fn command(&self) -> Command {
        let mut command = self.host.command(&self.binary);
        // SAFETY: runs between fork and exec, and makes one system call without allocating.
        #[allow(
            unsafe_code,
            reason = "the only way to bind a child's life to this process"
        )]
        unsafe {
            command.pre_exec(|| {
                let signal = Some(rustix::process::Signal::KILL);
                Ok(rustix::process::set_parent_process_death_signal(signal)?)
            });
        }
        command
            .arg("--json")
            .arg("--dir")
            .arg(&self.directory)
            .arg("--network")
            .arg(&self.network)
            .env_remove("SAVE_GROUP")
            .env_remove("SAVE_DIR")
            .env_remove("SAVE_NETWORK")
            .env_remove("SAVE_PASSWORD")
            .env_remove("SAVE_PASSWORD_FILE")
            .env_remove("SAVE_KEY_FILE");
        let mut command = Command::from(command);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Starts `save run`, and returns when it serves. It need not be online yet.
    ///
    /// The system kills the process when the *thread* that started it ends, so call this from the main thread, or one
    /// that lives as long.
    pub async fn start(&mut self, limit: Duration) -> Result<()> {
        let mut child = self
            .command()
            .arg("run")
            .spawn()
            .map_err(self.io("starting save run"))?;
        let stdout = child.stdout.take().ok_or_else(|| Error::Daemon {
            device: self.name.clone(),
            what: "has no standard output".into(),
        })?;
        self.daemon = Some(Daemon {
            child,
            lines: BufReader::new(stdout).lines(),
        });
        self.expect("running", limit).await.map(drop)
    }

    /// Waits until `save run` has reached the network.
    pub async fn online(&mut self, limit: Duration) -> Result<()> {
        self.expect("online", limit).await.map(drop)
    }

    /// Waits for a line of `save run`.
    async fn expect(&mut self, wanted: &str, limit: Duration) -> Result<Value> {
        let device = self.name.clone();
        let Some(daemon) = &mut self.daemon else {
            return Err(Error::Daemon {
                device,
                what: "is not running".into(),
            });
        };
        let lines = async {
            loop {
                let what = match daemon.lines.next_line().await {
                    Ok(Some(line)) => match serde_json::from_str::<Value>(&line) {
                        Ok(value) if value["type"] == wanted => return Ok(value),
                        Ok(value) if value.get("error").is_some() => {
                            format!("failed: {}", value["error"]["message"])
                        }
                        Ok(_) => continue,
                        Err(_) => format!("printed what is no JSON: {line}"),
                    },
                    Ok(None) => format!("ended before it was {wanted}"),
                    Err(error) => format!("cannot be read: {error}"),
                };
                return Err(Error::Daemon {
                    device: device.clone(),
                    what,
                });
            }
        };
        match tokio::time::timeout(limit, lines).await {
            Ok(found) => found,
            Err(_) => Err(Error::TooSlow {
                device: device.clone(),
                what: format!("save run being {wanted}"),
                limit,
            }),
        }
    }

    /// The process id of `save run`.
    pub fn pid(&self) -> Option<u32> {
        self.daemon.as_ref().and_then(|daemon| daemon.child.id())
    }

    /// The largest memory that any `save run` of this device has used so far, in bytes.
    pub fn peak_memory(&mut self) -> u64 {
        if let Some(now) = self.pid().and_then(high_water_mark) {
            self.peak_memory = self.peak_memory.max(now);
        }
        self.peak_memory
    }

    /// Ends `save run` with SIGTERM, and says how long it took.
    pub async fn stop(&mut self, limit: Duration) -> Result<Duration> {
        self.peak_memory();
        let Some(mut daemon) = self.daemon.take() else {
            return Ok(Duration::ZERO);
        };
        let begin = Instant::now();
        signal(&daemon.child, rustix::process::Signal::TERM).map_err(self.io("sending SIGTERM"))?;
        match tokio::time::timeout(limit, daemon.child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(begin.elapsed()),
            Ok(Ok(status)) => Err(Error::Daemon {
                device: self.name.clone(),
                what: format!("ended with {status} instead of in order"),
            }),
            Ok(Err(error)) => Err(self.io("waiting for save run")(error)),
            Err(_) => Err(Error::TooSlow {
                device: self.name.clone(),
                what: "stopping".into(),
                limit,
            }),
        }
    }

    /// Kills `save run`, as a crash or a dead battery would.
    pub async fn kill(&mut self) -> Result<()> {
        if let Some(mut daemon) = self.daemon.take() {
            daemon
                .child
                .kill()
                .await
                .map_err(self.io("killing save run"))?;
        }
        Ok(())
    }

    /// Runs a command, and gives the lines that it printed.
    pub async fn save<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Result<Vec<Value>> {
        self.save_with(arguments, None).await
    }

    /// As [`Device::save`], with a text on standard input.
    pub async fn save_with<S: AsRef<OsStr>>(
        &self,
        arguments: &[S],
        input: Option<&str>,
    ) -> Result<Vec<Value>> {
        let (status, lines, stderr) = self.run(arguments, input).await?;
        if status.success() {
            return Ok(lines);
        }
        let error = lines.iter().find_map(|line| line.get("error"));
        let field = |name: &str| error.and_then(|error| error[name].as_str());
        Err(Error::Command {
            device: self.name.clone(),
            command: shown(arguments),
            code: status.code(),
            kind: field("code").unwrap_or_default().to_owned(),
            message: field("message").unwrap_or(stderr.trim()).to_owned(),
        })
    }

    async fn run<S: AsRef<OsStr>>(
        &self,
        arguments: &[S],
        input: Option<&str>,
    ) -> Result<(ExitStatus, Vec<Value>, String)> {
        let action = || format!("running `save {}`", shown(arguments));
        let mut command = self.command();
        command.args(arguments).stderr(Stdio::piped());
        if input.is_some() {
            command.stdin(Stdio::piped());
        }
        let mut child = command.spawn().map_err(self.io(&action()))?;
        if let (Some(text), Some(mut stdin)) = (input, child.stdin.take()) {
            // A command that fails before it reads says why itself.
            let _ = stdin.write_all(text.as_bytes()).await;
        }
        let output = child.wait_with_output().await.map_err(self.io(&action()))?;
        let lines = String::from_utf8_lossy(&output.stdout)
            .lines()
            .map(serde_json::from_str)
            .collect::<Result<_, _>>()
            .map_err(|error| self.io(&action())(error.into()))?;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok((output.status, lines, stderr))
    }

    /// Runs a command again and again until its lines are as wanted; commands that fail and may be retried count as
    /// not yet.
    pub async fn until<S: AsRef<OsStr>>(
        &self,
        arguments: &[S],
        what: &str,
        limit: Duration,
        wanted: impl Fn(&[Value]) -> bool,
    ) -> Result<Vec<Value>> {
        let mut last = None;
        let attempts = async {
            loop {
                match self.save(arguments).await {
                    Ok(lines) if wanted(&lines) => return lines,
                    Ok(_) => last = None,
                    Err(error) => last = Some(error),
                }
                tokio::time::sleep(Duration::from_millis(250)).await;
            }
        };
        match tokio::time::timeout(limit, attempts).await {
            Ok(lines) => Ok(lines),
            // The reason why it could not be asked says more than that it did not come.
            Err(_) => Err(last.unwrap_or_else(|| Error::TooSlow {
                device: self.name.clone(),
                what: what.to_owned(),
                limit,
            })),
        }
    }

    fn io(&self, action: &str) -> impl FnOnce(io::Error) -> Error + use<> {
        let action = format!("{}: {action}", self.name);
        move |source| Error::Io { action, source }
    }
}

/// The `save` that was built with this program.
pub fn save_binary() -> Result<PathBuf> {
    let own = std::env::current_exe().map_err(|source| Error::Io {
        action: "finding this program".into(),
        source,
    })?;
    let beside = own.with_file_name("save");
    // Test binaries lie one directory deeper.
    let above = own.parent().and_then(Path::parent).map(|d| d.join("save"));
    [Some(beside.clone()), above]
        .into_iter()
        .flatten()
        .find(|path| path.is_file())
        .ok_or(Error::NoBinary { path: beside })
}

/// Arguments for a message.
fn shown<S: AsRef<OsStr>>(arguments: &[S]) -> String {
    let words: Vec<_> = arguments
        .iter()
        .map(|argument| argument.as_ref().to_string_lossy())
        .collect();
    words.join(" ")
}

fn signal(child: &Child, signal: rustix::process::Signal) -> io::Result<()> {
    let pid = child
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .and_then(rustix::process::Pid::from_raw)
        .ok_or_else(|| io::Error::other("it has ended already"))?;
    Ok(rustix::process::kill_process(pid, signal)?)
}

/// The largest resident memory of a process so far, in bytes.
fn high_water_mark(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kilobytes.checked_mul(1024)
}
