//! `members_cold*`: reading who is in a group on a device that has never seen its record, in calls on Veilid.

use devnet::Devnet;

use super::MEMBERS;
use crate::{
    Arguments, Result,
    device::Device,
    protocol::{Request, SlotsRead},
    report::{Figure, Limit},
};

/// What a group reads at once.
const AT_ONCE: f64 = 16.0;

pub(super) async fn run(arguments: &Arguments) -> Result<()> {
    if !MEMBERS.iter().any(|(_, figure)| arguments.wants(figure)) {
        return Ok(());
    }
    let devnet = Devnet::start(devnet::MIN_NODES).await?;
    let writer = Device::start(&devnet, "writer").await?;
    let reader = Device::start(&devnet, "reader").await?;
    for (members, figure) in MEMBERS {
        if arguments.wants(figure) {
            let members = (members / usize::from(arguments.scale)).max(1);
            let measured = measure(arguments, &writer, &reader, members).await?;
            measured.print(
                arguments.json,
                figure,
                "calls",
                &[
                    Limit::RatioTo(1.0),
                    Limit::MoreTo("most_at_once", AT_ONCE),
                    Limit::MoreTo("again_calls", 1.0),
                    Limit::MoreTo("changed_calls", 2.0),
                ],
            );
        }
    }
    reader.stop().await?;
    writer.stop().await?;
    Ok(devnet.stop().await?)
}

/// The baseline are bare calls on Veilid for the same: one to open the record, one to inspect it, and one for the
/// name and each slot.
async fn measure(
    arguments: &Arguments,
    writer: &Device,
    reader: &Device,
    members: usize,
) -> Result<Figure> {
    let group: String = writer.ask(Request::WriteSlots { members }).await?;
    let read = async || -> Result<SlotsRead> {
        let owner = group.clone();
        let read: SlotsRead = reader.ask(Request::ReadMembers { owner }).await?;
        if read.members != members {
            return Err(format!("{} members were read of {members}", read.members).into());
        }
        Ok(read)
    };
    let bare = async || -> Result<SlotsRead> {
        let owner = group.clone();
        reader.ask(Request::ReadSlotsBare { owner }).await
    };
    let mut figure = Figure::default();
    for round in 0..arguments.rounds {
        let first = round.is_multiple_of(2);
        let before = if first { None } else { Some(bare().await?) };
        let cold = read().await?;
        let again = read().await?;
        writer
            .ask::<()>(Request::ChangeSlot {
                owner: group.clone(),
            })
            .await?;
        let changed = read().await?;
        reader
            .ask::<()>(Request::ForgetMembers {
                owner: group.clone(),
            })
            .await?;
        let bare = match before {
            Some(before) => before,
            None => bare().await?,
        };
        if bare.members != members {
            return Err(format!("bare calls found {} slots of {members}", bare.members).into());
        }
        figure.push(cold.calls as f64, bare.calls as f64);
        for (name, value) in [
            ("members", members as f64),
            ("gets", cold.gets as f64),
            ("most_at_once", cold.most_at_once as f64),
            ("cold_ms", cold.milliseconds),
            ("bare_ms", bare.milliseconds),
            ("again_calls", again.calls as f64),
            ("again_ms", again.milliseconds),
            ("changed_calls", changed.calls as f64),
            ("changed_ms", changed.milliseconds),
            ("here_ms", changed.here_milliseconds),
        ] {
            figure.push_more(name, value);
        }
    }
    Ok(figure)
}
