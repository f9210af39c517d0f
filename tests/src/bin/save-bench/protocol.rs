//! What the bench and its devices say to each other: a line of JSON for each request and each answer.

use devnet::ChaosPreset;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A request, and the number by which its answer is known. Several may be under way.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Line {
    pub(crate) id: u64,
    pub(crate) request: Request,
}

/// The answer to a request.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Answer {
    pub(crate) id: u64,
    pub(crate) result: Result<Value, String>,
}

/// What a device is asked to do. What it answers with stands beside each.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    /// Waits until the node is on the network: nothing.
    Ready,
    /// Makes a group: [`Keys`].
    Create,
    /// Joins a group, whose owner's key pair this is: [`Keys`].
    Join { owner: String },
    /// Opens a group that the device was in before it was started again: nothing.
    Load { keys: Keys },
    /// Waits until everything is published: nothing.
    Flush,
    /// Writes files: how long that took, in seconds.
    Put(Put),
    /// Waits until a member's file or folder of this name is listed: nothing.
    See { repo: String, name: String },
    /// Fetches a member's file, or all in a folder: [`Fetched`].
    Fetch(Fetch),
    /// Calls a member: seconds until the answer.
    Ping { repo: String },
    /// A route on which bare calls are answered: the route.
    RawRoute,
    /// Makes bare calls: [`Called`].
    Call(Call),
    /// Listens for tunnels that ask for bytes: the route.
    Serve,
    /// Reads bytes through one stream of a tunnel over this route: how long that took, in seconds.
    Stream { route: Vec<u8>, bytes: usize },
    /// Makes a group of so many members and publishes their slots: the owner's key pair.
    WriteSlots { members: usize },
    /// Changes the slot of one member of such a group and publishes it: nothing.
    ChangeSlot { owner: String },
    /// Reads the members of a group from the network: [`SlotsRead`].
    ReadMembers { owner: String },
    /// Forgets the record of a group that was read: nothing.
    ForgetMembers { owner: String },
    /// Reads the slots of a group in bare calls on Veilid, and forgets its record: [`SlotsRead`].
    ReadSlotsBare { owner: String },
    /// Simulates a bad link inside the node from now on, or a good one again: nothing.
    Chaos { preset: Option<ChaosPreset> },
    /// What the node did so far: [`Counts`].
    Counts,
    /// The memory of the process: [`Memory`]. The peak starts anew.
    Memory,
    /// Ends the device in good order: nothing.
    Stop,
}

/// What a device needs to open its group again.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Keys {
    /// The key pair of the group's owner.
    pub(crate) owner: String,
    /// The key pair of the member's repo.
    pub(crate) pair: String,
    /// The public key of the member's repo.
    pub(crate) repo: String,
}

/// Files to write.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Put {
    /// The file's name; for more than one, that of a folder.
    pub(crate) name: String,
    pub(crate) files: usize,
    /// The size of each, in bytes.
    pub(crate) bytes: u64,
}

/// A file, or a folder of them, to fetch.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Fetch {
    pub(crate) repo: String,
    pub(crate) name: String,
    /// The process is to kill itself once so many verified bytes are here.
    pub(crate) die_at: Option<u64>,
}

/// What was fetched.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Fetched {
    /// Until all was stored.
    pub(crate) seconds: f64,
    /// Until the first verified byte.
    pub(crate) first: Option<f64>,
    /// Bytes of the files, before sealing.
    pub(crate) bytes: u64,
    /// What the tunnels did meanwhile.
    pub(crate) counts: Counts,
}

impl Fetched {
    /// Megabytes a second.
    pub(crate) fn rate(&self) -> f64 {
        self.bytes as f64 / self.seconds / 1e6
    }
}

/// Bare calls to make.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Call {
    pub(crate) route: Vec<u8>,
    pub(crate) calls: usize,
    pub(crate) in_flight: usize,
    /// Bytes of each call, at least [`crate::calls::LEAST`].
    pub(crate) bytes: usize,
    /// Bytes of each reply.
    pub(crate) reply: usize,
}

/// What came of bare calls.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Called {
    /// Until the last reply that came.
    pub(crate) seconds: f64,
    /// Calls that were answered.
    pub(crate) answered: usize,
}

/// What reading the slots of a group took.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct SlotsRead {
    /// Members that were found.
    pub(crate) members: usize,
    /// Calls on Veilid, and those of them that read a subkey.
    pub(crate) calls: u64,
    pub(crate) gets: u64,
    /// The most calls that were under way at one time since the device was started.
    pub(crate) most_at_once: u64,
    pub(crate) milliseconds: f64,
    /// Reading them once more from what is here.
    pub(crate) here_milliseconds: f64,
}

/// What a node did since it was started.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Counts {
    /// `app_call`s of the tunnels, made.
    pub(crate) calls: u64,
    /// `app_call`s to the tunnels, answered.
    pub(crate) answers: u64,
    /// Bytes of messages and replies.
    pub(crate) sent: u64,
    /// Bytes of messages and replies.
    pub(crate) received: u64,
    /// Calls on Veilid's DHT for the group's records.
    pub(crate) dht: u64,
    /// All that passed the host's link, in bytes.
    pub(crate) link: u64,
}

impl Counts {
    pub(crate) fn since(&self, before: &Self) -> Self {
        Self {
            calls: self.calls - before.calls,
            answers: self.answers - before.answers,
            sent: self.sent - before.sent,
            received: self.received - before.received,
            dht: self.dht - before.dht,
            link: self.link - before.link,
        }
    }
}

/// The memory of a process, in KiB.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Memory {
    /// In use now.
    pub(crate) now: u64,
    /// The most since this was asked last.
    pub(crate) peak: u64,
}
