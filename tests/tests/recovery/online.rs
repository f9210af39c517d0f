//! The tests, on a devnet.

use std::{env, process::Command, time::Duration};

use devnet::{Devnet, Host};
use recovery::{
    Effort, LIMIT, Launch, Operation, Scenario, Trial,
    operations::{OF_THE_OTHER, ONLINE},
};
use save_backend::{Backend, GroupId, LinkKind};
use tokio::{
    runtime::Runtime,
    time::{sleep, timeout},
};

/// At how many of a change's writes devices are killed and go on in their network. Each finds it twice, so there is time for some only,
/// unless this variable says how many. What a kill at each of the others leaves is looked at without a network.
const POINTS: u64 = 8;
const MORE_POINTS: &str = "SAVE_RECOVERY_POINTS";
/// From how many of them on the disk gets full, unless this variable says how many.
const FULL: u64 = 3;
const MORE_FULL: &str = "SAVE_RECOVERY_FULL";
/// How often a change is dropped half way.
const DROPS: u64 = 3;
const WORKERS: usize = 4;
/// Files of fewer bytes lie in packs.
const PACKED: u64 = 256 * 1024;

pub fn main() {
    recovery::child();
    devnet::trace_to_stderr();
    let scenarios = ONLINE
        .map(|operation| -> Scenario { (operation.name(), Box::new(move || kill(operation))) });
    recovery::run(scenarios.into());
}

fn kill(operation: &dyn Operation) {
    let runtime = Runtime::new().unwrap();
    let devnet = runtime.block_on(Devnet::start(devnet::MIN_NODES)).unwrap();
    // Whoever leaves has joined and fetched everything before.
    let points = if operation.leaves() {
        POINTS / 2
    } else {
        POINTS
    };
    let effort = Effort {
        most: of_variable(MORE_POINTS, points),
        in_turns: true,
        every: true,
        full: of_variable(MORE_FULL, FULL),
        drops: DROPS,
        dead: OF_THE_OTHER
            .iter()
            .map(|file| file.bytes().len() as u64)
            .filter(|len| *len < PACKED)
            .sum(),
        workers: WORKERS,
    };
    let ana = runtime.block_on(Ana::start(&devnet));
    let hosts: Vec<Host> = (0..WORKERS)
        .map(|n| runtime.block_on(devnet.host(&format!("ben-{n}"))).unwrap())
        .collect();
    let launches: Vec<_> = hosts
        .iter()
        .map(|host| || -> Command { host.command(env::current_exe().unwrap()) })
        .collect();
    let (ana_ref, runtime_ref) = (&ana, &runtime);
    recovery::sweep(operation.name(), effort, |worker| {
        let (group, link) = runtime_ref.block_on(ana_ref.group());
        let settings = hosts[worker].network_settings().serving_nobody();
        let launch: Launch<'_> = &launches[worker];
        Trial::new(operation, launch)
            .network(&serde_json::to_vec(&settings).unwrap(), &link)
            .witnessed(Box::new(move || {
                runtime_ref.block_on(async {
                    let ben: &[_] = &[Some("Ben")];
                    let members = if operation.leaves() { &[] } else { ben };
                    ana_ref.sees(&group, members).await;
                    ana_ref.leave(&group).await;
                });
            }))
    });
    runtime.block_on(async {
        ana.stop().await;
        devnet.stop().await.unwrap();
    });
}

fn of_variable(name: &str, usual: u64) -> u64 {
    env::var(name).map_or(usual, |value| value.parse().unwrap())
}

/// The member who is there all the time.
struct Ana {
    host: Host,
    backend: Backend,
}

impl Ana {
    async fn start(devnet: &Devnet) -> Self {
        let host = devnet.host("ana").await.unwrap();
        let directory = host.directory().join("device");
        let settings = serde_json::to_value(host.network_settings()).unwrap();
        let network = serde_json::from_value(settings).unwrap();
        let backend = host
            .run(async move {
                let backend = Backend::builder().directory(directory).network(network);
                let backend = backend.start().await.unwrap();
                backend.wait_online(LIMIT).await.unwrap();
                backend
            })
            .await;
        Self { host, backend }
    }

    /// Makes a group for one trial, with files in it. Gives its link too.
    async fn group(&self) -> (GroupId, String) {
        let (backend, sources) = (self.backend.clone(), self.host.directory().to_owned());
        self.host
            .run(async move {
                let id = backend.create_group("Archive", "Ana").await.unwrap().id;
                let sources = tempfile::tempdir_in(sources).unwrap();
                let files = recovery::sources(sources.path(), &OF_THE_OTHER);
                backend.put(&id, files, |_| {}).await.unwrap();
                backend.flush(&id, LIMIT).await.unwrap();
                let link = backend.link(&id, LinkKind::Member).await.unwrap();
                (id, link.expose().to_string())
            })
            .await
    }

    /// Waits until these are the other members, and checks that there are no more.
    async fn sees(&self, id: &GroupId, expected: &'static [Option<&'static str>]) {
        let (backend, id) = (self.backend.clone(), id.clone());
        let seen = self.host.run(async move {
            loop {
                let members = backend.members(&id, true).await.unwrap();
                let others = members.iter().filter(|member| !member.is_self);
                let names: Vec<_> = others.map(|other| other.name.as_deref()).collect();
                if names == expected {
                    return;
                }
                assert!(
                    names.len() < 2,
                    "the attempt that was killed left a member: {names:?}"
                );
                sleep(Duration::from_millis(200)).await;
            }
        });
        timeout(LIMIT, seen)
            .await
            .expect("who is a member is never seen");
    }

    /// Leaves the group of a trial that is over: hundreds of groups keep a device busy.
    async fn leave(&self, id: &GroupId) {
        let (backend, id) = (self.backend.clone(), id.clone());
        let told = self
            .host
            .run(async move { backend.leave_group(&id, LIMIT).await.unwrap() })
            .await;
        assert!(told, "leaving was not told");
    }

    async fn stop(self) {
        let backend = self.backend;
        self.host
            .run(async move { backend.stop().await.unwrap() })
            .await;
    }
}
