//! Tunnel streams as the byte streams of iroh-blobs' get protocol.

use std::{io, time::Duration};

use bytes::{Bytes, BytesMut};
use iroh::endpoint::VarInt;
use iroh_blobs::util::{RecvStream, SendStream};
use tokio::time::timeout;

/// A reader that takes nothing for so long does not keep its place.
const READS_NOTHING: Duration = Duration::from_secs(60);

/// The sending half of a tunnel stream, for iroh-blobs.
pub(crate) struct BlobSend(pub(crate) tunnels::SendStream);

/// The receiving half of a tunnel stream, for iroh-blobs.
pub(crate) struct BlobRecv {
    stream: tunnels::RecvStream,
    /// Called whenever some bytes came, also where a read waits for more.
    on_bytes: Option<Box<dyn FnMut() + Send + Sync>>,
}

impl BlobRecv {
    pub(crate) fn new(stream: tunnels::RecvStream) -> Self {
        Self {
            stream,
            on_bytes: None,
        }
    }

    pub(crate) fn on_bytes(&mut self, on_bytes: impl FnMut() + Send + Sync + 'static) {
        self.on_bytes = Some(Box::new(on_bytes));
    }

    pub(crate) fn into_inner(self) -> tunnels::RecvStream {
        self.stream
    }

    async fn read(&mut self, most: usize) -> io::Result<Bytes> {
        let bytes = self.stream.read(most).await?;
        if let Some(on_bytes) = self.on_bytes.as_mut().filter(|_| !bytes.is_empty()) {
            on_bytes();
        }
        Ok(bytes)
    }
}

impl SendStream for BlobSend {
    async fn send_bytes(&mut self, bytes: Bytes) -> io::Result<()> {
        self.send(&bytes).await
    }

    async fn send(&mut self, buf: &[u8]) -> io::Result<()> {
        let mut left = buf;
        while !left.is_empty() {
            let taken = timeout(READS_NOTHING, self.0.write(left)).await??;
            left = left.get(taken..).unwrap_or_default();
        }
        Ok(())
    }

    async fn sync(&mut self) -> io::Result<()> {
        self.0.flush().await.map_err(io::Error::from)
    }

    fn reset(&mut self, code: VarInt) -> io::Result<()> {
        self.0.reset(code.into_inner());
        Ok(())
    }

    async fn stopped(&mut self) -> io::Result<Option<VarInt>> {
        let code = self.0.stopped().await.map_err(io::Error::from)?;
        Ok(code.map(|code| VarInt::from_u64(code).unwrap_or(VarInt::MAX)))
    }

    fn id(&self) -> u64 {
        self.0.id()
    }
}

/// What iroh's own streams answer to an early end: nothing at all is an orderly end, a part is damage.
fn ended_early(got: usize) -> io::Error {
    match got {
        0 => io::ErrorKind::UnexpectedEof.into(),
        _ => io::ErrorKind::InvalidData.into(),
    }
}

impl RecvStream for BlobRecv {
    async fn recv_bytes(&mut self, len: usize) -> io::Result<Bytes> {
        let first = self.read(len).await?;
        // Mostly one piece has it all, and need not be copied.
        if first.len() == len || first.is_empty() {
            return Ok(first);
        }
        let mut bytes = BytesMut::from(first);
        while bytes.len() < len {
            let more = self.read(len - bytes.len()).await?;
            if more.is_empty() {
                break;
            }
            bytes.extend_from_slice(&more);
        }
        Ok(bytes.freeze())
    }

    async fn recv_bytes_exact(&mut self, len: usize) -> io::Result<Bytes> {
        let bytes = self.recv_bytes(len).await?;
        if bytes.len() < len {
            return Err(ended_early(bytes.len()));
        }
        Ok(bytes)
    }

    async fn recv_exact(&mut self, target: &mut [u8]) -> io::Result<()> {
        let bytes = self.recv_bytes_exact(target.len()).await?;
        target.copy_from_slice(&bytes);
        Ok(())
    }

    fn stop(&mut self, code: VarInt) -> io::Result<()> {
        self.stream.stop(code.into_inner());
        Ok(())
    }

    fn id(&self) -> u64 {
        self.stream.id()
    }
}
