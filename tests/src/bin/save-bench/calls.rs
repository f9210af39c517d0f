//! Bare calls: what the network carries without any of this project's code.

use std::time::Instant;

use futures::{StreamExt, stream};
use veilid_core::{OperationId, Target, VeilidAPI, VeilidAppCall};

use crate::{
    Result,
    protocol::{Call, Called},
};

/// A bare call starts with this, then says in 4 bytes, big-endian, how long its reply is to be.
const MARK: &[u8; 16] = b"a bare call     ";
/// The shortest bare call, in bytes.
pub(crate) const LEAST: usize = MARK.len() + 4;

/// How a bare call is answered: its id, and the length of the reply. `None` for a call of somebody else.
pub(crate) fn asked(call: &VeilidAppCall) -> Option<(OperationId, usize)> {
    let (length, _) = call
        .message()
        .strip_prefix(MARK)?
        .split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    Some((call.id(), length))
}

/// Makes calls of one size with so many in flight.
pub(crate) async fn make(api: &VeilidAPI, plan: Call) -> Result<Called> {
    let route = api.import_remote_private_route(plan.route)?;
    let context = api.routing_context()?;
    let mut message = MARK.to_vec();
    message.extend_from_slice(&u32::try_from(plan.reply)?.to_be_bytes());
    message.resize(plan.bytes.max(LEAST), 7);
    let start = Instant::now();
    let mut replies = stream::iter(0..plan.calls)
        .map(|_| context.app_call(Target::RouteId(route.clone()), message.clone()))
        .buffer_unordered(plan.in_flight);
    let (mut answered, mut seconds) = (0, 0.0);
    while let Some(reply) = replies.next().await {
        match reply {
            // Waiting in vain for the last ones is not held against the calls.
            Ok(reply) if reply.len() == plan.reply => {
                answered += 1;
                seconds = start.elapsed().as_secs_f64();
            }
            Ok(reply) => return Err(format!("a reply of {} bytes", reply.len()).into()),
            Err(error) => tracing::debug!(%error, "a bare call was lost"),
        }
    }
    Ok(Called { seconds, answered })
}
