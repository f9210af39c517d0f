//! The cores against each other, over every kind of bad network.

use std::time::Duration;

use super::sim::{Link, MS, Sim, protocol, route};
use crate::{Error, Limits};

mod admission;
mod bounds;
mod ends;
mod links;
mod network;
mod scenarios;
mod silence;
