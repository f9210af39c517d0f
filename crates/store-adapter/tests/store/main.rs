//! What the store promises as an iroh-blobs store, beside iroh's own in-memory store, on each backend.
#![allow(clippy::unwrap_used)] // a test that unwraps an error fails, which is what it is for

mod errors;
mod export;
mod gc;
mod import;
mod lifecycle;
mod partial;
mod streams;
mod support;
mod tags;
mod transfer;
