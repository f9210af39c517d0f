//! The process of a device.

use std::{
    env,
    fs::{self, File},
    future::poll_fn,
    io::{Read, Write},
    path::{Path, PathBuf},
    process::exit,
    task::Poll,
};

use save_backend::ErrorKind;

use crate::{
    Device, Operation, State,
    device::limited,
    operations::{OFFLINE, ONLINE},
    trial::{ACKNOWLEDGED, AGAIN, DONE, FAILED, FULL, LOG, OPERATION, POLLS, ROLE, Role, TRIAL},
};

/// How the names of files end that hold many blobs.
const PACK: &str = ".pack";

/// Is the process of a device, and does not return, if that is what this process was started for.
pub fn child() {
    let Ok(role) = env::var(ROLE) else { return };
    let role = Role::parse(&role).unwrap();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|_| "off".into()))
        .with_writer(std::io::stderr)
        .init();
    let name = env::var(OPERATION).unwrap();
    let operation = *OFFLINE
        .iter()
        .chain(&ONLINE)
        .find(|operation| operation.name() == name)
        .unwrap();
    let trial = PathBuf::from(env::var_os(TRIAL).unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        match role {
            Role::Prepare => {
                let device = prepared(operation, &trial).await;
                limited("stopping", device.backend.stop()).await.unwrap();
            }
            Role::Run => apply(operation, &trial).await,
            Role::Restart => {
                let _device = Device::start(&trial).await;
                done();
            }
            Role::Full => on_full_disk(operation, &trial).await,
            Role::Drop => drop_half_way(operation, &trial).await,
            Role::Look => {
                let (device, found) = look(operation, &trial).await;
                limited("stopping", device.backend.stop()).await.unwrap();
                tell(&format!("{found:?}"));
            }
            Role::Check => check(operation, &trial).await,
        }
    });
    exit(0);
}

/// A device that is ready for the change, in a new directory.
async fn prepared(operation: &dyn Operation, trial: &Path) -> Device {
    let device = Device::start(trial).await;
    device.online().await;
    device.keep().await;
    operation.prepare(&device).await;
    device
}

/// A device before the change.
async fn before(operation: &dyn Operation, trial: &Path) -> Device {
    let device = if Device::directory(trial).exists() {
        Device::start(trial).await
    } else {
        prepared(operation, trial).await
    };
    assert_eq!(operation.state(&device).await, State::Old);
    device
}

/// Makes the change, unless it is killed before.
async fn apply(operation: &dyn Operation, trial: &Path) {
    let device = before(operation, trial).await;
    // From here on it is counted.
    File::create(trial.join(LOG)).unwrap();
    operation.apply(&device).await.unwrap();
    done();
}

/// Makes the change while the disk gets full. Whether it is made then or not, what was there can be read, and as soon as there is space
/// it can be made.
async fn on_full_disk(operation: &dyn Operation, trial: &Path) {
    let device = before(operation, trial).await;
    let full = trial.join(FULL);
    File::create(&full).unwrap();
    File::create(trial.join(LOG)).unwrap();
    let outcome = operation.apply(&device).await;
    if let Err(error) = &outcome {
        assert_eq!(error.kind(), ErrorKind::Io, "{error:?}");
    }
    if outcome.is_ok() || !operation.is_finished_later() {
        let found = operation.state(&device).await;
        assert!(
            found == State::New || outcome.is_err(),
            "acknowledged, and not made"
        );
    }
    device.check_kept().await;
    fs::remove_file(full).unwrap();
    operation.apply(&device).await.unwrap();
    assert_eq!(operation.state(&device).await, State::New);
    device.check_kept().await;
    limited("stopping", device.backend.stop()).await.unwrap();
    tell(if outcome.is_ok() { DONE } else { FAILED });
}

/// Begins the change and drops it. Nothing else is harmed by that, and it can be made again at once.
async fn drop_half_way(operation: &dyn Operation, trial: &Path) {
    let most: u64 = env::var(POLLS).unwrap().parse().unwrap();
    let device = before(operation, trial).await;
    let mut polls = 0;
    let mut change = operation.apply(&device);
    let outcome = poll_fn(|context| match change.as_mut().poll(context) {
        Poll::Ready(outcome) => Poll::Ready(Some(outcome)),
        Poll::Pending => {
            polls += 1;
            if polls < most {
                Poll::Pending
            } else {
                Poll::Ready(None)
            }
        }
    })
    .await;
    drop(change);
    let mut made = outcome.is_some();
    if let Some(outcome) = outcome {
        outcome.unwrap();
    }
    device.check_kept().await;
    if !made && env::var_os(AGAIN).is_some() {
        operation.apply(&device).await.unwrap();
        assert_eq!(operation.state(&device).await, State::New);
        made = true;
    }
    limited("stopping", device.backend.stop()).await.unwrap();
    tell(&format!("{} {polls}", if made { DONE } else { FAILED }));
}

/// Says that it is done, and waits to be killed.
fn done() {
    tell(DONE);
    // Ends as well where nobody is there any more who could kill it.
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

/// Checks what is left of a device that was killed.
async fn look(operation: &dyn Operation, trial: &Path) -> (Device, State) {
    let acknowledged = env::var_os(ACKNOWLEDGED).is_some();
    let device = Device::start(trial).await;
    device.check_kept().await;
    let found = operation.state(&device).await;
    assert!(
        found == State::New || !acknowledged,
        "what was acknowledged is not there"
    );
    verify(&device).await;
    (device, found)
}

/// Checks what is left of a device that was killed, makes the change again, and checks everything once more.
async fn check(operation: &dyn Operation, trial: &Path) {
    let (device, found) = look(operation, trial).await;
    device.online().await;
    for _ in 0..2 {
        operation.apply(&device).await.unwrap();
        assert_eq!(operation.state(&device).await, State::New);
    }
    verify(&device).await;
    let collected = device.backend.collect_garbage();
    limited("collecting garbage", collected).await.unwrap();
    assert_eq!(operation.state(&device).await, State::New);
    device.check_kept().await;
    let blobs = verify(&device).await;
    limited("stopping", device.backend.stop()).await.unwrap();
    let store = Device::directory(trial).join("blobs");
    let packs = size_of(&store, &|name| name.ends_with(PACK));
    let files = size_of(&store, &|name| !name.ends_with(PACK));
    tell(&format!("{found:?} {blobs} {files} {packs}"));
}

/// Checks that nothing in the store is damaged, and says how many blobs there are.
async fn verify(device: &Device) -> u64 {
    let report = limited("verifying", device.backend.verify(|_| {})).await;
    let report = report.unwrap();
    assert_eq!(report.damaged, []);
    report.blobs
}

/// The bytes of the files in a directory whose names are counted.
fn size_of(directory: &Path, counts: &dyn Fn(&str) -> bool) -> u64 {
    let entries = fs::read_dir(directory).unwrap();
    let sizes = entries.map(|entry| {
        let entry = entry.unwrap();
        match entry.metadata().unwrap() {
            metadata if metadata.is_dir() => size_of(&entry.path(), counts),
            metadata if counts(&entry.file_name().to_string_lossy()) => metadata.len(),
            _ => 0,
        }
    });
    sizes.sum()
}

fn tell(word: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{word}").unwrap();
    out.flush().unwrap();
}
