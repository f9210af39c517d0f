//! The command line of a test program.

use libtest_mimic::{Arguments, Trial};

/// A scenario, by name.
pub type Scenario = (&'static str, Box<dyn FnOnce() + Send>);

/// Runs the scenarios that the arguments of a test program ask for, one after the other since each has workers of its own, and ends
/// the process.
pub fn run(scenarios: Vec<Scenario>) -> ! {
    let trials = scenarios
        .into_iter()
        .map(|(name, scenario)| {
            Trial::test(name, || {
                scenario();
                Ok(())
            })
        })
        .collect();
    let arguments = Arguments {
        test_threads: Some(1),
        ..Arguments::from_args()
    };
    libtest_mimic::run(&arguments, trials).exit()
}
