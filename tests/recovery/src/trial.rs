//! One device that is killed, and what is left of it.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use tempfile::TempDir;

use crate::{Device, Operation, State};

pub(crate) const ROLE: &str = "SAVE_RECOVERY_ROLE";
pub(crate) const OPERATION: &str = "SAVE_RECOVERY_OPERATION";
pub(crate) const TRIAL: &str = "SAVE_RECOVERY_TRIAL";
/// Set if the change was acknowledged.
pub(crate) const ACKNOWLEDGED: &str = "SAVE_RECOVERY_ACKNOWLEDGED";
/// How often a change is polled before it is dropped.
pub(crate) const POLLS: &str = "SAVE_RECOVERY_POLLS";
/// Set if it is made again after that.
pub(crate) const AGAIN: &str = "SAVE_RECOVERY_AGAIN";
/// The writes that were counted, in the directory of a trial.
pub(crate) const LOG: &str = "log";
/// What a process says when the change is acknowledged.
pub(crate) const DONE: &str = "done";
/// Or that it was not, since the disk was full.
pub(crate) const FAILED: &str = "failed";
/// The file in the directory of a trial that lets the disk be full.
pub(crate) const FULL: &str = "full";

/// The signal that nobody can catch.
const SIGKILL: i32 = 9;

/// How often it is looked whether a process has stopped.
const POLL: Duration = Duration::from_millis(1);

/// What a process is to do.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Role {
    Prepare,
    Run,
    Restart,
    Full,
    Drop,
    Look,
    Check,
}

impl Run {
    /// Whether a write writes bytes, so that it can be torn.
    pub(crate) fn can_be_torn(&self, point: u64) -> bool {
        let index = usize::try_from(point - 1).unwrap();
        let call = self
            .writes
            .get(index)
            .and_then(|line| line.split(' ').next());
        matches!(call, Some("write" | "pwrite" | "pwrite64"))
    }
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Run => "run",
            Self::Restart => "restart",
            Self::Full => "full",
            Self::Drop => "drop",
            Self::Look => "look",
            Self::Check => "check",
        }
    }

    pub(crate) fn parse(name: &str) -> Option<Self> {
        let all = [
            Self::Prepare,
            Self::Run,
            Self::Restart,
            Self::Full,
            Self::Drop,
            Self::Look,
            Self::Check,
        ];
        all.into_iter().find(|role| role.name() == name)
    }
}

/// Makes a command that starts this program again.
pub type Launch<'a> = &'a (dyn Fn() -> Command + Sync);

/// Starts this program again as it is.
pub fn launch() -> Command {
    Command::new(env::current_exe().unwrap())
}

/// When a process is killed.
#[derive(Debug, Clone, Copy)]
pub struct Kill {
    /// Instead of the write with this number, the first being 1.
    pub point: u64,
    /// After the first half of that write.
    pub torn: bool,
}

/// How a change went.
#[derive(Debug)]
pub struct Run {
    /// The writes that were made or begun before the process died, each with its path.
    pub writes: Vec<String>,
    /// Whether the change was acknowledged, or the device had started, before that.
    pub acknowledged: bool,
}

/// What is on a device's disk at a write of a change, before that write: what a kill there would leave.
pub(crate) struct Moment<'a> {
    trial: Trial<'a>,
    /// The write, with its path.
    pub(crate) write: String,
}

impl Moment<'_> {
    /// Starts a device with what is there, without a network, and checks it. Gives what was found.
    pub(crate) fn look(&self) -> State {
        let said = Guarded::start(self.trial.command(Role::Look)).checked();
        state(&said)
    }
}

/// What was found after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Check {
    /// Whether the change was there.
    pub found: State,
    /// Blobs in the store at the end, when the change was made again and garbage collected.
    pub blobs: u64,
    /// Bytes of the store's files then, but for packs.
    pub files: u64,
    /// Bytes of its packs, in which many blobs lie.
    pub packs: u64,
}

/// One device in a directory of its own, which goes with this.
pub struct Trial<'a> {
    pub(crate) operation: &'a dyn Operation,
    launch: Launch<'a>,
    witness: Option<Witness<'a>>,
    dir: TempDir,
}

/// Somebody else who looks at the end what came of the change, and panics if it is not right.
pub type Witness<'a> = Box<dyn Fn() + Send + Sync + 'a>;

impl<'a> Trial<'a> {
    /// A trial whose device is made when the change is run.
    pub fn new(operation: &'a dyn Operation, launch: Launch<'a>) -> Self {
        Self {
            operation,
            launch,
            witness: None,
            dir: tempfile::Builder::new()
                .prefix("recovery-")
                .tempdir()
                .unwrap(),
        }
    }

    /// Gives it a network, by settings in JSON, and a group there, by a link.
    pub fn network(self, settings: &[u8], link: &str) -> Self {
        fs::write(Device::network(self.dir.path()), settings).unwrap();
        fs::write(Device::link_file(self.dir.path()), link).unwrap();
        self
    }

    /// Has somebody else look at the end of each check.
    pub fn witnessed(self, witness: Witness<'a>) -> Self {
        Self {
            witness: Some(witness),
            ..self
        }
    }

    /// Makes the device now, ready for the change and stopped.
    pub fn prepare(&self) {
        let mut child = Guarded::start(self.command(Role::Prepare));
        let status = child.0.wait().unwrap();
        assert!(status.success(), "preparing ended with {status}");
    }

    /// A trial that begins with a copy of this one's device.
    pub fn copied(&self) -> Self {
        let copy = Self::new(self.operation, self.launch);
        copy_all(self.dir.path(), copy.dir.path());
        copy
    }

    fn command(&self, role: Role) -> Command {
        let mut command = (self.launch)();
        command
            .env(ROLE, role.name())
            .env(OPERATION, self.operation.name())
            .env(TRIAL, self.dir.path())
            .env_remove(ACKNOWLEDGED)
            .env_remove(AGAIN)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        command
    }

    /// Runs the change in a process that is killed: at a point, or without one when the change is acknowledged.
    pub fn run(&self, kill: Option<Kill>) -> Run {
        self.killed(Role::Run, kill)
    }

    /// Runs the change without an early kill, in a process that stops at each of its writes, and copies what is on the disk then.
    pub(crate) fn run_copying(&self) -> (Run, Vec<Moment<'a>>) {
        let (mut command, log) = self.counted(Role::Run);
        command.env("KILL_AT_WRITE_STOPS", "");
        let mut child = Guarded::start(command);
        let mut lines = child.lines();
        let reading = thread::spawn(move || lines.next().is_some_and(|line| line == DONE));
        let pid = Pid::from_child(&child.0);
        let mut moments = Vec::new();
        // The process's end is left for the child's own wait.
        while !reading.is_finished() {
            let stopped = waitid(
                WaitId::Pid(pid),
                WaitIdOptions::STOPPED | WaitIdOptions::NOHANG,
            );
            // Of a process that has ended, there is nothing to be told; that is found out below.
            if !matches!(stopped, Ok(Some(_))) {
                thread::sleep(POLL);
                continue;
            }
            let trial = Self::new(self.operation, &launch);
            copy_all(self.dir.path(), trial.dir.path());
            fs::remove_file(Device::network(trial.dir.path())).unwrap();
            moments.push(Moment {
                trial,
                write: writes(&log).pop().unwrap(),
            });
            kill_process(pid, Signal::CONT).unwrap();
        }
        let acknowledged = reading.join().unwrap();
        child.0.kill().unwrap();
        child.was_killed();
        let run = Run {
            writes: writes(&log),
            acknowledged,
        };
        // The last one may have come when it was done.
        assert!(
            moments.len() + 1 >= run.writes.len(),
            "it stopped at {} of {} writes",
            moments.len(),
            run.writes.len()
        );
        (run, moments)
    }

    /// Starts the device again, in a process that is killed: at a point, or without one when it has started.
    pub fn restart(&self, kill: Option<Kill>) -> Run {
        // It is counted from the first write on.
        fs::write(self.dir.path().join(LOG), "").unwrap();
        self.killed(Role::Restart, kill)
    }

    /// Runs the change in a process whose disk is full from the write with this number on, until the change succeeded or failed; then
    /// again with space. Gives how the first attempt went.
    pub(crate) fn run_on_full_disk(&self, point: u64) -> Run {
        let (mut command, log) = self.counted(Role::Full);
        command.env("KILL_AT_WRITE_POINT", point.to_string()).env(
            "KILL_AT_WRITE_FULL",
            self.dir.path().canonicalize().unwrap().join(FULL),
        );
        let said = Guarded::start(command).checked();
        Run {
            writes: writes(&log),
            acknowledged: said == DONE,
        }
    }

    /// Runs the change in a process that drops it after so many polls, and makes it `again` or not. Gives how it went, and how often it
    /// was polled.
    pub(crate) fn run_dropping(&self, polls: u64, again: bool) -> (Run, u64) {
        let mut command = self.command(Role::Drop);
        command.env(POLLS, polls.to_string());
        if again {
            command.env(AGAIN, "");
        }
        let said = Guarded::start(command).checked();
        let (word, polls) = said.split_once(' ').unwrap();
        let run = Run {
            writes: Vec::new(),
            acknowledged: word == DONE,
        };
        (run, polls.parse().unwrap())
    }

    /// The command of a process whose writes are counted, and their log.
    fn counted(&self, role: Role) -> (Command, PathBuf) {
        let dir = self.dir.path().canonicalize().unwrap();
        let log = dir.join(LOG);
        let mut command = self.command(role);
        command
            .env("LD_PRELOAD", interposer())
            .env("KILL_AT_WRITE_BELOW", Device::directory(&dir))
            .env("KILL_AT_WRITE_LOG", &log);
        (command, log)
    }

    fn killed(&self, role: Role, kill: Option<Kill>) -> Run {
        let (mut command, log) = self.counted(role);
        if let Some(kill) = kill {
            command.env("KILL_AT_WRITE_POINT", kill.point.to_string());
            if kill.torn {
                command.env("KILL_AT_WRITE_TORN", "");
            }
        }
        let mut child = Guarded::start(command);
        let said = child.lines().next();
        let acknowledged = said.is_some_and(|line| line == DONE);
        let writes = writes(&log);
        if acknowledged {
            child.0.kill().unwrap();
        }
        child.was_killed();
        if let (Some(kill), false) = (kill, acknowledged) {
            assert_eq!(writes.len() as u64, kill.point, "killed elsewhere");
        }
        Run {
            writes,
            acknowledged,
        }
    }

    /// Starts the device again and checks everything.
    pub fn check(&self, run: &Run) -> Check {
        let mut command = self.command(Role::Check);
        if run.acknowledged {
            command.env(ACKNOWLEDGED, "");
        }
        let said = Guarded::start(command).checked();
        if let Some(witness) = &self.witness {
            witness();
        }
        let mut words = said.split(' ').skip(1);
        let mut number = || words.next().unwrap().parse().unwrap();
        Check {
            found: state(&said),
            blobs: number(),
            files: number(),
            packs: number(),
        }
    }
}

/// The state that a check says first.
fn state(said: &str) -> State {
    match said.split(' ').next().unwrap() {
        "Old" => State::Old,
        "New" => State::New,
        other => panic!("{other} is no state"),
    }
}

fn writes(log: &Path) -> Vec<String> {
    let log = fs::read_to_string(log).unwrap_or_default();
    log.lines().map(str::to_owned).collect()
}

/// A process that does not outlive this.
struct Guarded(Child);

impl Guarded {
    fn start(mut command: Command) -> Self {
        Self(command.spawn().unwrap())
    }

    /// Waits for its end, which has to be a kill.
    fn was_killed(&mut self) {
        let status = self.0.wait().unwrap();
        assert_eq!(
            status.signal(),
            Some(SIGKILL),
            "the process ended with {status} instead of being killed"
        );
    }

    /// What it says, and it has to succeed.
    fn checked(mut self) -> String {
        let said = self.lines().next();
        let status = self.0.wait().unwrap();
        assert!(status.success(), "the process ended with {status}");
        said.unwrap()
    }

    fn lines(&mut self) -> impl Iterator<Item = String> + use<> {
        let stdout = self.0.stdout.take().unwrap();
        BufReader::new(stdout).lines().map(|line| line.unwrap())
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // It has ended already unless a check failed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The library that kills; cargo builds it next to the test programs.
fn interposer() -> PathBuf {
    let name = "libkill_at_write.so";
    let path = env::current_exe().unwrap().with_file_name(name);
    assert!(path.is_file(), "there is no {}", path.display());
    path
}

fn copy_all(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir(&target).unwrap();
            copy_all(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).unwrap();
        }
    }
}
