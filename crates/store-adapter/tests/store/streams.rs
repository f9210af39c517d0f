//! The provider's and the getter's ends of a connection in memory.

use std::io;

use iroh::endpoint::VarInt;
use iroh_blobs::{
    api::Store,
    get,
    provider::{self, events::EventSender},
    util::{
        AsyncReadRecvStream, AsyncReadRecvStreamExtra, AsyncWriteSendStream,
        AsyncWriteSendStreamExtra,
    },
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, DuplexStream, Take};

/// How much the connection holds.
const BUFFER: usize = 64 * 1024;

/// What comes in, up to a limit at which the connection is cut.
pub(crate) struct Incoming(Take<DuplexStream>);

/// What goes out; dropping it is the end.
pub(crate) struct Outgoing(DuplexStream);

impl AsyncReadRecvStreamExtra for Incoming {
    fn inner(&mut self) -> &mut (impl AsyncRead + Unpin + Send) {
        &mut self.0
    }

    fn stop(&mut self, _: VarInt) -> io::Result<()> {
        Ok(())
    }

    fn id(&self) -> u64 {
        0
    }
}

impl AsyncWriteSendStreamExtra for Outgoing {
    fn inner(&mut self) -> &mut (impl AsyncWrite + Unpin + Send) {
        &mut self.0
    }

    fn reset(&mut self, _: VarInt) -> io::Result<()> {
        Ok(())
    }

    async fn stopped(&mut self) -> io::Result<Option<VarInt>> {
        std::future::pending().await
    }

    fn id(&self) -> u64 {
        0
    }
}

pub(crate) type Receiving = AsyncReadRecvStream<Incoming>;
pub(crate) type Sending = AsyncWriteSendStream<Outgoing>;

/// A connection to iroh's own provider over `store`.
pub(crate) fn connect(store: &Store) -> (Receiving, Sending) {
    connect_until(store, u64::MAX)
}

/// A connection that is cut after so many bytes of the answer.
pub(crate) fn connect_until(store: &Store, limit: u64) -> (Receiving, Sending) {
    let (request, requested) = tokio::io::duplex(BUFFER);
    let (answer, answered) = tokio::io::duplex(BUFFER);
    let provider = provider::StreamPair::new(
        0,
        AsyncReadRecvStream::new(Incoming(requested.take(u64::MAX))),
        AsyncWriteSendStream::new(Outgoing(answer)),
        EventSender::DEFAULT,
    );
    // What the provider could not serve shows on the other side.
    tokio::spawn(provider::handle_stream(provider, store.clone()));
    (
        AsyncReadRecvStream::new(Incoming(answered.take(limit))),
        AsyncWriteSendStream::new(Outgoing(request)),
    )
}

/// Such a connection for iroh's get code.
pub(crate) fn get_from(store: &Store) -> get::StreamPair<Receiving, Sending> {
    get_until(store, u64::MAX)
}

/// One that is cut.
pub(crate) fn get_until(store: &Store, limit: u64) -> get::StreamPair<Receiving, Sending> {
    let (recv, send) = connect_until(store, limit);
    get::StreamPair::new(0, recv, send)
}
