//! What a change has to tell of itself to be tested.

use async_trait::async_trait;

use crate::Device;

/// What a device has of a change after it was killed in the midst of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nothing, as far as anybody can see; the change can be made again.
    Old,
    /// All of it.
    New,
}

/// A change of a device that takes several steps on the disk. Its functions panic where something fails, but for the change itself.
#[async_trait]
pub trait Operation: Sync {
    /// What is done, in words.
    fn name(&self) -> &'static str;

    /// Whether it writes to the store of blobs, besides the tables.
    fn writes_blobs(&self) -> bool {
        true
    }

    /// Whether half of it may show after an error, until the next attempt or the next start does the rest.
    fn is_finished_later(&self) -> bool {
        false
    }

    /// Whether the device is no member of the linked group afterwards.
    fn leaves(&self) -> bool {
        false
    }

    /// Makes what has to be there before. Besides that, the device has its kept files.
    async fn prepare(&self, device: &Device);

    /// Makes the change, also where it was made before; when this returns without an error, the change counts as acknowledged.
    async fn apply(&self, device: &Device) -> save_backend::Result<()>;

    /// Which of the two states the device is in, from what is on its disk; panics if it is neither.
    async fn state(&self, device: &Device) -> State;
}
