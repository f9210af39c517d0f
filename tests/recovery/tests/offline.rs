//! Changes that need no network, killed at each of their writes, on a disk that gets full, and dropped half way.

#[cfg(target_os = "linux")]
fn main() {
    use recovery::{Effort, Scenario, Trial, child, launch, operations::OFFLINE, run, sweep};

    /// Every write, in every way.
    const EFFORT: Effort = Effort {
        most: u64::MAX,
        in_turns: false,
        every: false,
        full: 8,
        drops: 12,
        dead: 0,
        workers: 2,
    };

    child();
    let scenarios = OFFLINE.map(|operation| -> Scenario {
        let scenario = move || {
            let prepared = Trial::new(operation, &launch);
            prepared.prepare();
            sweep(operation.name(), EFFORT, |_| prepared.copied());
        };
        (operation.name(), Box::new(scenario))
    });
    run(scenarios.into());
}

#[cfg(not(target_os = "linux"))]
fn main() {}
