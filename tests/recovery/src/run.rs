//! The command line of a test program.

/// A scenario, by name.
pub type Scenario<'a> = (&'a str, Box<dyn FnOnce() + 'a>);

/// Runs the scenarios that the arguments name, as `cargo test` passes them on to every test program; all of them without any.
pub fn run(scenarios: Vec<Scenario<'_>>) {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let list = arguments.iter().any(|argument| argument == "--list");
    let filters: Vec<&String> = arguments
        .iter()
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    for (name, scenario) in scenarios {
        if list {
            println!("{name}: test");
        } else if filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()))
        {
            println!("test {name} ...");
            scenario();
            println!("test {name} ... ok");
        }
    }
}
