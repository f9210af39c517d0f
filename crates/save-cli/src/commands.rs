//! From the command line to an exit code.

use std::ffi::OsString;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser as _;
use save_backend::{Clock as _, Link, SystemClock};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use crate::args::{Arguments, Command, Common, Get, GroupCommand, Join, KeyCommand};
use crate::client::{self, Service};
use crate::daemon;
use crate::error::{Error, Failure, Result};
use crate::exit::Code;
use crate::export::Export;
use crate::items::{Item, Secret};
use crate::keys;
use crate::links::Plan;
use crate::ops::{Device, Operation};
use crate::print::{Printer, clean};
use crate::protocol::Frame;
use crate::settings::Settings;
use crate::signals::Signals;
use crate::socket::{self, Listener};
use crate::sources;

/// A text that is longer than this is no link.
const LONGEST_LINK_FILE: u64 = 64 * 1024;

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let line: Vec<OsString> = std::env::args_os().collect();
    let arguments = match Arguments::try_parse_from(&line) {
        Ok(arguments) => arguments,
        Err(error) => return usage(&error, &line),
    };
    log(&arguments.common);
    let mut printer = Printer::new(arguments.common.json);
    let result = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::Stream {
            stream: "runtime",
            source,
        })
        .and_then(|runtime| {
            let result = runtime.block_on(command(arguments, &mut printer));
            // The process ends now. Waiting could be for a prompt that nobody answers, and dropping what still runs would
            // make Veilid panic.
            std::mem::forget(runtime);
            result
        });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever closed the pipe has seen enough.
        Err(Error::Stream {
            stream: "output",
            source,
        }) if source.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            let failure = Failure::from(&error);
            printer.failure(&failure);
            ExitCode::from(failure.code.exit())
        }
    }
}

/// What clap says about a command line that it does not accept, and its help.
fn usage(error: &clap::Error, line: &[OsString]) -> ExitCode {
    if error.use_stderr() && line.iter().any(|argument| argument == "--json") {
        let text = error.to_string();
        let first = text.lines().next().unwrap_or_default();
        Printer::new(true).failure(&Failure {
            code: Code::Usage,
            message: first.strip_prefix("error: ").unwrap_or(first).to_owned(),
            retryable: false,
        });
    } else {
        // If there is nowhere to print it, the exit code says enough.
        let _ = error.print();
    }
    if error.use_stderr() {
        ExitCode::from(Code::Usage.exit())
    } else {
        ExitCode::SUCCESS
    }
}

fn log(common: &Common) {
    // Veilid logs under many short names, and reports as errors what is none, such as an address that nobody can reach.
    let (all, own) = match common.verbose {
        0 => ("off", "error"),
        1 => ("off", "info"),
        2 => ("info", "debug"),
        _ => ("debug", "trace"),
    };
    let crates = [
        "save_cli",
        "save_backend",
        "group",
        "repo",
        "tunnels",
        "store_adapter",
        "dht_records",
    ];
    let default = crates.iter().fold(all.to_owned(), |filter, name| {
        format!("{filter},{name}={own}")
    });
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
}

async fn command(arguments: Arguments, printer: &mut Printer) -> Result<()> {
    let Arguments { common, command } = arguments;
    let mut signals = Signals::new()?;
    match command {
        Command::Run => {
            let settings = Settings::load(&common)?;
            warn_of_insecure_keys(&common, printer);
            return run(&settings, printer, &mut signals).await;
        }
        Command::Wipe { yes: false } => {
            return Err(Error::Usage(
                "this takes everything away that is on this device, for good: say --yes if that is what you want"
                    .to_owned(),
            ));
        }
        Command::Wipe { yes: true } => {
            let settings = Settings::for_wipe(&common)?;
            return wipe(&settings, printer, &mut signals).await;
        }
        _ => {}
    }
    let request = tokio::select! {
        request = prepare(&common, command, printer) => request?,
        () = signals.next() => return Err(Error::Interrupted),
    };
    let settings = Settings::load(&common)?;
    printer.head(request.head);
    ask(&settings, request, printer, &mut signals).await?;
    printer.finish()
}

/// What to ask for, and what to do with the answer.
struct Request {
    operation: Operation,
    head: &'static [&'static str],
    export: Option<ExportPlan>,
    link: Option<Plan>,
}

struct ExportPlan {
    path: String,
    /// None for standard output.
    target: Option<PathBuf>,
    force: bool,
}

/// Does all that can be done, and finds all mistakes that can be found, before any node is started or asked.
async fn prepare(common: &Common, command: Command, printer: &mut Printer) -> Result<Request> {
    const GROUPS: &[&str] = &["KEY", "MEMBERS", "ROLE", "PUBLISHED", "NAME"];
    const MEMBERS: &[&str] = &[
        "KEY",
        "ROLE",
        "FILES",
        "SIZE",
        "LAST SEEN (UTC)",
        "LEFT ALONE",
        "NAME",
    ];
    let group = common.group.clone();
    let mut request = Request {
        operation: Operation::Status,
        head: &[],
        export: None,
        link: None,
    };
    match command {
        // These are served before this.
        Command::Run | Command::Wipe { .. } => {}
        Command::Status => request.head = GROUPS,
        Command::Group(GroupCommand::Create { name, me }) => {
            warn_of_insecure_keys(common, printer);
            request.operation = Operation::Create { name, me };
            request.head = GROUPS;
        }
        Command::Group(GroupCommand::Join(join)) => {
            warn_of_insecure_keys(common, printer);
            let text = read_link(&join, printer).await?;
            // What is wrong with the link can be said at once.
            let link = Link::parse(&text)?;
            link.check_expiry(SystemClock.now())?;
            if let Some(label) = link.label() {
                printer.note(&format!("the link is called '{}'", clean(label)));
            }
            request.operation = Operation::Join {
                link: Secret::new(text),
                me: join.me,
            };
            request.head = GROUPS;
        }
        Command::Group(GroupCommand::List) => {
            request.operation = Operation::Groups;
            request.head = GROUPS;
        }
        Command::Group(GroupCommand::Link(arguments)) => {
            let kind = arguments.kind.as_str().to_owned();
            request.link = Some(Plan::new(arguments)?);
            request.operation = Operation::Link { group, kind };
        }
        Command::Group(GroupCommand::Rename { name, me }) => {
            request.operation = Operation::Rename { group, name, me };
            request.head = GROUPS;
        }
        Command::Group(GroupCommand::Leave { yes: false, .. }) => {
            return Err(Error::Usage(
                "this takes the group away from this device, for good: say --yes if that is what you want"
                    .to_owned(),
            ));
        }
        Command::Group(GroupCommand::Leave { this_device, .. }) => {
            request.operation = Operation::Leave { group, this_device };
        }
        Command::Group(GroupCommand::Move { without, to }) => {
            request.operation = Operation::Move { group, without, to };
        }
        Command::Group(GroupCommand::Moved { follow }) => {
            request.operation = Operation::Moved { group, follow };
        }
        Command::Group(GroupCommand::Copy { to }) => {
            request.operation = Operation::Copy { group, to };
        }
        Command::Group(GroupCommand::Overrule { yes: false }) => {
            return Err(Error::Usage(
                "files that only your other device's list names may go for good: say --yes if that is what you want"
                    .to_owned(),
            ));
        }
        Command::Group(GroupCommand::Overrule { yes: true }) => {
            request.operation = Operation::Overrule { group };
            request.head = GROUPS;
        }
        Command::Members { refresh } => {
            request.operation = Operation::Members { group, refresh };
            request.head = MEMBERS;
        }
        Command::Put(put) => {
            let files = tokio::task::spawn_blocking(move || sources::collect(&put))
                .await
                .map_err(|_| Error::Interrupted)??;
            request.operation = Operation::Put { group, files };
        }
        Command::Ls { refresh, replaced } => {
            request.operation = match replaced {
                true => Operation::Replaced { group },
                false => Operation::List { group, refresh },
            };
            request.head = &["SIZE", "MODIFIED (UTC)", "HERE", "MEMBER", "PATH"];
        }
        Command::Get(get) => {
            request.export = Some(export_plan(&get)?);
            request.operation = match get.replaced {
                true => Operation::GetReplaced {
                    group,
                    path: get.path,
                },
                false => Operation::Get {
                    group,
                    member: get.from,
                    path: get.path,
                },
            };
        }
        Command::Sync { of, member } => {
            request.operation = Operation::Sync {
                group: of.or(group),
                member,
            };
            request.head = &["KEY", "FILES", "SIZE", "COMPLETE", "NAME"];
        }
        Command::Wanted => {
            request.operation = Operation::Wanted { group };
            request.head = &["MEMBER", "SINCE (UTC)", "NOW", "PATH"];
        }
        Command::Forget { path, from } => {
            request.operation = Operation::Forget {
                group,
                member: from,
                path,
            };
        }
        Command::Rm { path } => request.operation = Operation::Remove { group, path },
        Command::Ping { member } => request.operation = Operation::Ping { group, member },
        Command::Verify => request.operation = Operation::Verify,
        Command::Key(KeyCommand::Change(change)) => {
            let to = keys::new(&change, |name| std::env::var_os(name)).await?;
            request.operation = Operation::ChangeKeys { to };
        }
    }
    Ok(request)
}

fn export_plan(get: &Get) -> Result<ExportPlan> {
    let target = match &get.output {
        Some(output) if output.as_os_str() == "-" => None,
        output => Some(sources::destination(
            output.as_deref(),
            &get.path,
            get.force,
        )?),
    };
    Ok(ExportPlan {
        path: get.path.clone(),
        target,
        force: get.force,
    })
}

async fn ask(
    settings: &Settings,
    request: Request,
    printer: &mut Printer,
    signals: &mut Signals,
) -> Result<()> {
    let service = tokio::select! {
        service = Service::open(settings) => service?,
        () = signals.next() => return Err(Error::Interrupted),
    };
    let (mut replies, own) = service.call(settings, request.operation.clone()).await?;
    let result = tokio::select! {
        result = receive(&mut replies, &request, own.is_some(), printer) => result,
        () = signals.next() => Err(Error::Interrupted),
    };
    drop(replies);
    if let Some(device) = own {
        let stopped = signals.or_exit(client::stop(&device.backend)).await;
        // How the command itself went is what counts; it is stored by now.
        if let Err(error) = stopped {
            tracing::warn!(error = %error, "the node did not end in order");
        }
    }
    result
}

async fn receive(
    replies: &mut client::Replies,
    request: &Request,
    own: bool,
    printer: &mut Printer,
) -> Result<()> {
    let mut export = None;
    while let Some(frame) = replies.next().await? {
        match frame {
            Frame::Progress(activity) => printer.progress(&activity),
            Frame::Item(item) => match (&request.export, &request.link) {
                (Some(plan), _) => export = Some(Receiving::start(plan, &item)?),
                (None, Some(plan)) => plan.show(item, printer)?,
                (None, None) => printer.item(&item)?,
            },
            Frame::Data(bytes) => {
                let receiving = export.as_mut().ok_or_else(|| Error::Protocol {
                    reason: "data without a file".to_owned(),
                })?;
                receiving.export.write(&bytes)?;
                receiving.got += bytes.len() as u64;
            }
            Frame::Request(_) | Frame::Done | Frame::Failed(_) => {
                return Err(Error::Protocol {
                    reason: "a message out of place".to_owned(),
                });
            }
        }
    }
    match (&request.export, export) {
        (None, _) => {}
        (Some(plan), None) => {
            return Err(Error::Protocol {
                reason: format!("no answer for '{}'", plan.path),
            });
        }
        (Some(plan), Some(receiving)) => {
            let item = receiving.finish(plan)?;
            // Standard output must hold nothing but the file.
            if plan.target.is_some() {
                printer.item(&item)?;
            }
        }
    }
    if own && matches!(request.operation, Operation::Put { .. }) {
        printer.note("others can fetch it while `save run` runs on this device");
    }
    Ok(())
}

/// A file on its way.
struct Receiving {
    export: Export,
    got: u64,
    size: u64,
    modified: Option<u64>,
}

impl Receiving {
    fn start(plan: &ExportPlan, item: &Item) -> Result<Self> {
        let Item::File { size, modified, .. } = item else {
            return Err(Error::Protocol {
                reason: "something else instead of a file".to_owned(),
            });
        };
        Ok(Self {
            export: match &plan.target {
                Some(target) => Export::file(target.clone(), plan.force)?,
                None => Export::Stdout,
            },
            got: 0,
            size: *size,
            modified: *modified,
        })
    }

    fn finish(self, plan: &ExportPlan) -> Result<Item> {
        if self.got != self.size {
            return Err(Error::WrongLength {
                path: plan.path.clone(),
                got: self.got,
                wanted: self.size,
            });
        }
        Ok(Item::Fetched {
            path: plan.path.clone(),
            file: self.export.finish(self.modified)?,
            size: self.size,
        })
    }
}

/// `save run`.
async fn run(settings: &Settings, printer: &mut Printer, signals: &mut Signals) -> Result<()> {
    let backend = tokio::select! {
        backend = start_daemon(settings) => backend?,
        () = signals.next() => return Err(Error::Interrupted),
    };
    let served = serve(settings, &backend, printer, signals).await;
    let begin = Instant::now();
    let stopped = signals.or_exit(client::stop(&backend)).await;
    served?;
    let complete = match stopped {
        Ok(()) => true,
        // Withdrawing the tunnels and closing the store have limits that are shorter, so only Veilid itself is late.
        Err(Error::SlowStop { .. }) => false,
        Err(error) => return Err(error),
    };
    let milliseconds = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
    let _ = printer.item(&Item::Stopped {
        milliseconds,
        complete,
    });
    Ok(())
}

/// Starts the backend, where need be after a command that uses the directory at the moment.
async fn start_daemon(settings: &Settings) -> Result<save_backend::Backend> {
    match Service::open(settings).await? {
        Service::Daemon(_) => Err(Error::AlreadyRunning {
            directory: settings.directory.clone(),
        }),
        Service::Own(device) => Ok(device.backend),
    }
}

/// Serves until a signal comes.
async fn serve(
    settings: &Settings,
    backend: &save_backend::Backend,
    printer: &mut Printer,
    signals: &mut Signals,
) -> Result<()> {
    let listener = Listener::bind(&settings.directory)?;
    let pid = std::process::id();
    let device = Device {
        backend: backend.clone(),
        directory: settings.directory.clone(),
        daemon: Some(pid),
        wiped: CancellationToken::new(),
    };
    // Serving does not depend on whether anybody reads what it prints.
    let _ = printer.item(&Item::Running {
        directory: settings.directory.clone(),
        pid,
    });
    let online = async {
        // Tried again for as long as it takes: serving does not depend on it.
        while let Err(error) = backend.wait_online(settings.timeout).await {
            tracing::info!(error = %error, "still not online");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::pin!(online);
    let requests = daemon::serve(&listener, &device);
    tokio::pin!(requests);
    let mut waiting = true;
    loop {
        tokio::select! {
            () = signals.next() => return Ok(()),
            // The device is no more.
            () = &mut requests => return Ok(()),
            () = &mut online, if waiting => {
                waiting = false;
                let _ = printer.item(&Item::Online);
            }
        }
    }
}

/// `save wipe`: by the running `save run`, which then ends, or by this process. Where there is no device, nothing is touched.
async fn wipe(settings: &Settings, printer: &mut Printer, signals: &mut Signals) -> Result<()> {
    let deadline = tokio::time::Instant::now() + settings.timeout;
    loop {
        if let Some(stream) = socket::connect(&settings.directory).await? {
            let request = Request {
                operation: Operation::Wipe,
                head: &[],
                export: None,
                link: None,
            };
            let service = Service::Daemon(stream);
            let (mut replies, _) = service.call(settings, request.operation.clone()).await?;
            receive(&mut replies, &request, false, printer).await?;
            break;
        }
        match client::wipe(settings).await {
            Ok(()) => {
                let directory = settings.directory.clone();
                printer.item(&Item::Wiped { directory })?;
                break;
            }
            Err(Error::DirectoryInUse { .. }) if tokio::time::Instant::now() < deadline => {}
            Err(error) => return Err(error),
        }
        tokio::select! {
            () = tokio::time::sleep(client::RETRY_INTERVAL) => {}
            () = signals.next() => return Err(Error::Interrupted),
        }
    }
    printer.note(
        "flash memory can keep remains of it for a while; a key file, and what others have, are not touched",
    );
    Ok(())
}

fn warn_of_insecure_keys(common: &Common, printer: &mut Printer) {
    if common.insecure_key_storage {
        printer.note(
            "warning: the keys are kept in a plain file; whoever can read the directory can read all that is archived",
        );
    }
}

/// The link for `group join`: from the argument, standard input, a file, or the user.
async fn read_link(join: &Join, printer: &mut Printer) -> Result<Zeroizing<String>> {
    if let Some(file) = &join.file {
        let open = std::fs::File::open(file).map_err(Error::file(file, "read"))?;
        return read_text(open).map_err(Error::file(file, "read"));
    }
    match &join.link {
        Some(link) if link != "-" => {
            printer.note(
                "warning: a link given as an argument can be seen by every process of this machine, and stays in the \
                 shell's history; give it on standard input or in a file",
            );
            return Ok(Zeroizing::new(link.clone()));
        }
        Some(_) => {}
        None => {
            if io::stdin().is_terminal() {
                let mut stderr = io::stderr();
                // Without the question, the answer still counts.
                let _ = write!(stderr, "The group's link: ").and_then(|()| stderr.flush());
                return blocking(|| {
                    let mut line = Zeroizing::new(String::new());
                    io::stdin().read_line(&mut line).map(|_| line)
                })
                .await;
            }
        }
    }
    blocking(|| read_text(io::stdin())).await
}

async fn blocking(
    read: impl FnOnce() -> io::Result<Zeroizing<String>> + Send + 'static,
) -> Result<Zeroizing<String>> {
    tokio::task::spawn_blocking(read)
        .await
        .map_err(|_| Error::Interrupted)?
        .map_err(|source| Error::Stream {
            stream: "input",
            source,
        })
}

fn read_text(from: impl io::Read) -> io::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    from.take(LONGEST_LINK_FILE).read_to_string(&mut text)?;
    Ok(text)
}
