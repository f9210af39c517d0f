//! The serving side of the socket: one request for each connection.

use futures::{SinkExt as _, StreamExt as _};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::codec::{FramedRead, FramedWrite};

use crate::error::{Error, Failure};
use crate::ops::{self, BACKLOG, Device};
use crate::protocol::{Call, Frame, FrameCodec};
use crate::socket::Listener;

/// How many requests may run at once; further ones wait in the socket's queue.
const MAX_REQUESTS: usize = 64;

/// Answers requests until the device is wiped, or this is dropped, which cancels those that run.
pub async fn serve(listener: &Listener, device: &Device) {
    let mut requests = JoinSet::new();
    let mut open = true;
    while open || !requests.is_empty() {
        tokio::select! {
            Some(ended) = requests.join_next(), if !requests.is_empty() => {
                if let Err(error) = ended && error.is_panic() {
                    tracing::error!("a request panicked");
                }
            }
            // Those that run get their answers: the one that wiped it, and failures.
            () = device.wiped.cancelled(), if open => open = false,
            accepted = listener.accept(), if open && requests.len() < MAX_REQUESTS => match accepted {
                Ok(stream) => {
                    requests.spawn(converse(stream, device.clone()));
                }
                Err(error) => {
                    // Out of descriptors, most likely. Requests that end give some back.
                    tracing::warn!(error = %error, "cannot accept a connection");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            },
        }
    }
}

async fn converse(stream: UnixStream, device: Device) {
    let (reader, writer) = stream.into_split();
    let mut incoming = FramedRead::new(reader, FrameCodec);
    let mut outgoing = FramedWrite::new(writer, FrameCodec);
    let call = match incoming.next().await {
        Some(Ok(Frame::Request(call))) => call,
        Some(Ok(_)) => {
            return refuse(&mut outgoing, "the first message is not a request").await;
        }
        Some(Err(Error::Protocol { reason })) => return refuse(&mut outgoing, &reason).await,
        // Somebody who only looked whether the socket answers.
        Some(Err(_)) | None => return,
    };
    tokio::select! {
        () = relay(&mut outgoing, device, call) => {}
        // A client says nothing after its request, so whatever comes means that it is gone or confused.
        _ = incoming.next() => tracing::debug!("a client went away"),
    }
}

type Outgoing = FramedWrite<tokio::net::unix::OwnedWriteHalf, FrameCodec>;

async fn relay(outgoing: &mut Outgoing, device: Device, call: Call) {
    let (sender, mut frames) = mpsc::channel(BACKLOG);
    let write = async {
        while let Some(frame) = frames.recv().await {
            if outgoing.send(&frame).await.is_err() {
                return;
            }
        }
    };
    // Both end: the answer when the request is done, the writer when the answer has dropped its sender or the client is gone.
    let answer = async {
        ops::answer(device, call, sender).await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = write => {}
        () = answer => {}
    }
}

async fn refuse(outgoing: &mut Outgoing, reason: &str) {
    let failure = Failure::from(&Error::Protocol {
        reason: reason.to_owned(),
    });
    // Who does not speak the protocol may not read the answer either.
    let _ = outgoing.send(&Frame::Failed(failure)).await;
}
