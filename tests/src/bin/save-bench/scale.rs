//! Large groups and large repos: what they cost as they grow.

mod files;
mod members;

pub(crate) use files::{CHILD, child};

use crate::{Arguments, Result};

/// All figures of this module by one name.
pub(crate) const NAME: &str = "scale";

/// Numbers of members, and the figure of each.
const MEMBERS: [(usize, &str); 3] = [
    (10, "members_cold_10"),
    (100, "members_cold_100"),
    (1_000, "members_cold"),
];

/// Numbers of files, and the two figures of each.
const FILES: [(usize, &str, &str); 4] = [
    (100, "list_cached_100", "put_one_more_100"),
    (1_000, "list_cached_1000", "put_one_more_1000"),
    (10_000, "list_cached_10000", "put_one_more_10000"),
    (100_000, "list_cached", "put_one_more"),
];

/// Whether a figure is one of this module's.
pub(crate) fn has(figure: &str) -> bool {
    MEMBERS.iter().any(|(_, name)| *name == figure)
        || FILES
            .iter()
            .any(|(_, list, put)| *list == figure || *put == figure)
}

/// Measures what was asked for.
pub(crate) async fn run(arguments: &Arguments) -> Result<()> {
    members::run(arguments).await?;
    files::run(arguments).await
}
