//! Running other programs, and saying in one sentence what is missing.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Why a task failed.
#[derive(Debug)]
pub(crate) struct Failure {
    /// What to say; nothing where the program that failed has said it.
    pub(crate) message: Option<String>,
    /// The exit code of this process.
    pub(crate) code: u8,
}

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            message: Some(message.into()),
            code: 1,
        }
    }
}

pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// A program about to be run.
pub(crate) struct Run(Command);

impl Run {
    pub(crate) fn new(program: impl Into<OsString>) -> Self {
        let mut command = Command::new(program.into());
        command.current_dir(root());
        // `cargo run` describes this package in the environment. Build scripts that read such variables (ring's does) would
        // run anew, and all that depends on them be built anew, at every change between `cargo build` and `cargo xtask`.
        for (name, _) in env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
                command.env_remove(&name);
            }
        }
        Self(command)
    }

    pub(crate) fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.0.arg(argument.into());
        self
    }

    pub(crate) fn args<A: Into<OsString>>(
        mut self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Self {
        self.0.args(arguments.into_iter().map(Into::into));
        self
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.0.env(name, value);
        self
    }

    /// Runs it to its end; its exit code becomes ours.
    pub(crate) fn run(mut self) -> Result<()> {
        let name = self.0.get_program().to_string_lossy().into_owned();
        let status = self
            .0
            .status()
            .map_err(|error| Failure::new(format!("{name} cannot be run: {error}")))?;
        if status.success() {
            return Ok(());
        }
        let code = status.code().and_then(|code| u8::try_from(code).ok());
        Err(Failure {
            message: None,
            code: code.unwrap_or(1),
        })
    }

    /// Whether it ends well; what it prints is not shown.
    pub(crate) fn succeeds(mut self) -> bool {
        self.0
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    }
}

/// The cargo that runs this.
pub(crate) fn cargo<A: Into<OsString>>(arguments: impl IntoIterator<Item = A>) -> Run {
    Run::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into())).args(arguments)
}

/// A binary of the workspace.
pub(crate) fn binary(profile: &str, name: &str) -> Result<Run> {
    Ok(Run::new(target()?.join(profile).join(name)))
}

/// A binary of the workspace, run in network namespaces of its own.
pub(crate) fn in_devnet(profile: &str, binary: &str) -> Result<Run> {
    let folder = target()?.join(profile);
    Ok(Run::new(folder.join("devnet-run")).arg(folder.join(binary)))
}

/// Cargo's setting that starts each test binary in network namespaces, for `--config`. A list, unlike the environment variable
/// of the same meaning, so that the path may have spaces. Tests on a network run one after the other, since they share few
/// processors.
pub(crate) fn runner() -> Result<String> {
    let version = output("rustc", &["-vV"])?;
    let host = version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .ok_or_else(|| Failure::new("rustc -vV does not say what machine this is"))?;
    let path = target()?.join("debug").join("devnet-run");
    let path = path
        .display()
        .to_string()
        .replace('\\', "\\\\")
        .replace('"', "\\\"");
    Ok(format!(
        "target.{host}.runner=[\"{path}\", \"--serial\", \"integration-tests\"]"
    ))
}

/// Where cargo builds to.
fn target() -> Result<PathBuf> {
    let cargo = env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let arguments = ["metadata", "--no-deps", "--format-version", "1"];
    let metadata = output(&cargo, &arguments)?;
    // One string of a large JSON object; a JSON library would be this crate's only dependency.
    let key = "\"target_directory\":\"";
    metadata
        .split_once(key)
        .and_then(|(_, rest)| rest.split_once('"'))
        .map(|(path, _)| PathBuf::from(path))
        .ok_or_else(|| Failure::new("cargo metadata does not say where it builds to"))
}

/// The workspace's folder.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask is a folder of the workspace")
}

fn output(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(root())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| Failure::new(format!("{program} cannot be run: {error}")))?;
    if !output.status.success() {
        return Err(Failure::new(format!(
            "{program} {} failed",
            arguments.join(" ")
        )));
    }
    String::from_utf8(output.stdout)
        .map_err(|_| Failure::new(format!("{program} printed something else than text")))
}

/// Looks for what cargo would miss only after minutes.
pub(crate) fn prerequisites() -> Result<()> {
    if !cfg!(target_os = "linux") {
        return Err(Failure::new(
            "the test network needs Linux: it is made of network namespaces",
        ));
    }
    let compiler = env::var_os("CC").unwrap_or_else(|| "cc".into());
    if !Run::new(compiler).arg("--version").succeeds() {
        return Err(Failure::new(
            "a C compiler is missing: install one, such as Debian's package build-essential",
        ));
    }
    namespaces()
}

/// Whether network namespaces are allowed. `devnet-run` finds out by itself, but only once it is built; so this asks the
/// `unshare` command, where there is one.
fn namespaces() -> Result<()> {
    let works = |arguments: &[&str]| {
        Run::new("unshare")
            .args(arguments.iter().copied())
            .succeeds()
    };
    if !works(&["--version"])
        || works(&["--net", "true"])
        || works(&["--user", "--map-root-user", "--net", "true"])
    {
        return Ok(());
    }
    let settings = [
        ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
        ("kernel.unprivileged_userns_clone", "0", "1"),
        ("user.max_user_namespaces", "0", "15000"),
        ("user.max_net_namespaces", "0", "15000"),
    ];
    let remedy = settings.iter().find_map(|(name, forbids, allows)| {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        let value = std::fs::read_to_string(path).ok()?;
        (value.trim() == *forbids).then(|| format!("run `sudo sysctl -w {name}={allows}`"))
    });
    let remedy = remedy.unwrap_or_else(|| {
        "a sandbox or container forbids them (Docker: --security-opt seccomp=unconfined)".to_owned()
    });
    Err(Failure::new(format!(
        "the test network needs network namespaces, which this user may not make: {remedy}, or run as root"
    )))
}
