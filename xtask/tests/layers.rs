//! No crate depends on a layer above its own.
#![allow(clippy::unwrap_used)] // a test that unwraps an error fails, which is what it is for

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, MetadataCommand};

/// What each crate of the workspace may depend on, in the workspace and of the two networks it stands on.
const LAYERS: [(&str, &[&str]); 13] = [
    ("dht-records", &["veilid-core"]),
    ("store-adapter", &["iroh", "iroh-blobs", "veilid-core"]),
    ("tunnels", &["veilid-core"]),
    (
        "repo",
        &[
            "dht-records",
            "store-adapter",
            "tunnels",
            "iroh-blobs",
            "veilid-core",
        ],
    ),
    (
        "group",
        &[
            "repo",
            "dht-records",
            "store-adapter",
            "tunnels",
            "iroh",
            "iroh-blobs",
            "veilid-core",
        ],
    ),
    (
        "save-backend",
        &[
            "group",
            "repo",
            "dht-records",
            "store-adapter",
            "tunnels",
            "veilid-core",
        ],
    ),
    ("save-cli", &["save-backend"]),
    ("save-ffi", &["save-backend"]),
    ("devnet", &["veilid-core"]),
    ("xtask", &[]),
    ("kill-at-write", &[]),
    (
        "recovery",
        &["save-backend", "dht-records", "kill-at-write"],
    ),
    (
        "integration-tests",
        &[
            "devnet",
            "recovery",
            "save-backend",
            "group",
            "repo",
            "dht-records",
            "store-adapter",
            "tunnels",
            "iroh",
            "iroh-blobs",
            "veilid-core",
        ],
    ),
];

/// Crates that hold the layers together: the project's own, and the networks that only some may touch.
fn is_layer(name: &str, own: &BTreeSet<String>) -> bool {
    own.contains(name) || ["iroh", "iroh-blobs", "veilid-core"].contains(&name)
}

#[test]
fn nothing_depends_upward() {
    let metadata = MetadataCommand::new().no_deps().exec().unwrap();
    let allowed: BTreeMap<&str, &[&str]> = LAYERS.into_iter().collect();
    let own: BTreeSet<String> = metadata
        .packages
        .iter()
        .map(|package| package.name.to_string())
        .collect();
    let mut wrong = Vec::new();
    for package in &metadata.packages {
        let name = package.name.as_str();
        let Some(allowed) = allowed.get(name) else {
            wrong.push(format!("{name} is in no layer: name its layer here"));
            continue;
        };
        for dependency in &package.dependencies {
            if dependency.kind == DependencyKind::Development {
                continue;
            }
            if is_layer(&dependency.name, &own) && !allowed.contains(&dependency.name.as_str()) {
                wrong.push(format!("{name} must not depend on {}", dependency.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_table_itself_has_no_circle() {
    let allowed: BTreeMap<&str, &[&str]> = LAYERS.into_iter().collect();
    for (name, below) in LAYERS {
        for lower in below {
            let back = allowed
                .get(lower)
                .is_some_and(|below| below.contains(&name));
            assert!(!back, "{name} and {lower} may depend on each other");
        }
    }
}
