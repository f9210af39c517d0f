//! Links, addresses, routes and queues, through netlink.
//!
//! Each function opens a netlink socket on the thread that it runs on, so it acts in that
//! thread's network namespace.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd as _};

use futures::{StreamExt as _, TryStreamExt as _};
use rtnetlink::packet_core::{DefaultNla, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute};
use rtnetlink::packet_route::route::{RouteHeader, RouteScope, RouteType};
use rtnetlink::packet_route::rule::RuleAction;
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use crate::rate::TokenBucket;
use crate::{Error, Result};

/// The name of a host's network interface inside its namespace.
pub(crate) const HOST_LINK: &str = "eth0";

/// The addresses of one host and of the router's end of its link.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Addresses {
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
    router_v6: Ipv6Addr,
}

/// The router's address on every link.
const ROUTER_V4: Ipv4Addr = Ipv4Addr::new(192, 88, 99, 254);

impl Addresses {
    /// Veilid publishes itself only on addresses that it counts as global; these two ranges are
    /// counted so, and nobody routes them.
    pub(crate) fn of(index: u8) -> Self {
        let network = u16::from(index);
        Self {
            v4: Ipv4Addr::new(192, 88, 99, index),
            v6: Ipv6Addr::new(0x3fff, 0, network, 0, 0, 0, 0, 2),
            router_v6: Ipv6Addr::new(0x3fff, 0, network, 0, 0, 0, 0, 1),
        }
    }
}

/// Brings the loopback interface of this namespace up.
pub(crate) async fn bring_loopback_up() -> Result<()> {
    let netlink = connect()?;
    set_up(&netlink, "lo").await
}

/// On the router: makes the link to a host, whose end goes straight into the host's namespace.
pub(crate) async fn create(name: &str, host: impl AsFd, addresses: Addresses) -> Result<()> {
    let netlink = connect()?;
    let peer = LinkMessageBuilder::<LinkUnspec>::new()
        .name(HOST_LINK.to_owned())
        .append_extra_attribute(LinkAttribute::NetNsFd(host.as_fd().as_raw_fd()))
        .build();
    let pair = LinkVeth::new(name, HOST_LINK)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .build();
    netlink
        .link()
        .add(pair)
        .execute()
        .await
        .map_err(Error::netlink("making a link"))?;
    set_up(&netlink, name).await?;
    let link = index(&netlink, name).await?;
    add_address(&netlink, link, ROUTER_V4.into(), 32).await?;
    add_address(&netlink, link, addresses.router_v6.into(), 64).await?;
    add_host_route(&netlink, link, addresses).await
}

/// On the router: forwards between the host and everybody else, or silently drops it all.
///
/// The link itself stays up. A link that goes down takes its carrier with it, whereupon a Veilid
/// node tears its network down and does not get ready again for minutes; what an access network
/// does far more often is to lose packets while the interface looks fine.
pub(crate) async fn set_connected(name: &str, addresses: Addresses, connected: bool) -> Result<()> {
    for family in ["ipv4", "ipv6"] {
        let path = format!("/proc/sys/net/{family}/conf/{name}/forwarding");
        let value = if connected { "1" } else { "0" };
        std::fs::write(&path, value).map_err(Error::file(path))?;
    }
    let netlink = connect()?;
    let drop_v6 = RouteMessageBuilder::<Ipv6Addr>::new()
        .destination_prefix(addresses.v6, 128)
        .kind(RouteType::BlackHole)
        .build();
    if connected {
        let link = index(&netlink, name).await?;
        add_host_route(&netlink, link, addresses).await?;
        // An error means that the host was not cut off.
        let _ = netlink.route().del(drop_v6).execute().await;
        return Ok(());
    }
    let drop_v4 = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(addresses.v4, 32)
        .kind(RouteType::BlackHole)
        .build();
    for route in [drop_v4, drop_v6] {
        netlink
            .route()
            .add(route)
            .replace()
            .execute()
            .await
            .map_err(Error::netlink("taking the route to a host away"))?;
    }
    Ok(())
}

async fn add_host_route(netlink: &Handle, link: u32, addresses: Addresses) -> Result<()> {
    let route = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(addresses.v4, 32)
        .output_interface(link)
        .scope(RouteScope::Link)
        .build();
    netlink
        .route()
        .add(route)
        .replace()
        .execute()
        .await
        .map_err(Error::netlink("adding a route to a host"))
}

/// On a host: its addresses and default routes, once the link is there.
pub(crate) async fn configure_host(addresses: Addresses) -> Result<()> {
    let netlink = connect()?;
    set_up(&netlink, "lo").await?;
    let link = index(&netlink, HOST_LINK).await?;
    add_address(&netlink, link, addresses.v4.into(), 32).await?;
    add_address(&netlink, link, addresses.v6.into(), 64).await?;
    set_up(&netlink, HOST_LINK).await?;
    // The gateway is in no network of this host, hence on-link.
    let v4 = RouteMessageBuilder::<Ipv4Addr>::new()
        .gateway(ROUTER_V4)
        .output_interface(link)
        .onlink()
        .build();
    let v6 = RouteMessageBuilder::<Ipv6Addr>::new()
        .gateway(addresses.router_v6)
        .output_interface(link)
        .build();
    for route in [v4, v6] {
        netlink
            .route()
            .add(route)
            .replace()
            .execute()
            .await
            .map_err(Error::netlink("adding a default route"))?;
    }
    Ok(())
}

/// Packets that wait in a TUN device for whoever reads it.
const TUN_QUEUE: u32 = 10_000;
/// Rules of the router, in this order, and the first of the tables that lead into a TUN device.
const FROM_TUN: u32 = 100;
const TO_TUN: u32 = 200;
const TUN_TABLES: u32 = 1_000;

impl Addresses {
    /// The routing table that leads into the TUN device of this host.
    fn tun_table(self) -> u32 {
        TUN_TABLES + u32::from(self.v4.octets()[3])
    }
}

/// On the router: takes a TUN device up, and sees to it that what comes out of it is delivered to the host, and that there is a
/// table by which packets get into it. No packet does so before [`divert`].
pub(crate) async fn configure_tun(name: &str, addresses: Addresses) -> Result<()> {
    // What comes out of the device has the address of another host than the one that the device is for.
    for name in ["all", name] {
        let path = format!("/proc/sys/net/ipv4/conf/{name}/rp_filter");
        std::fs::write(&path, "0").map_err(Error::file(path))?;
    }
    let netlink = connect()?;
    let link = index(&netlink, name).await?;
    let up = LinkUnspec::new_with_index(link)
        .append_extra_attribute(LinkAttribute::TxQueueLen(TUN_QUEUE))
        .up();
    netlink
        .link()
        .set(up.build())
        .execute()
        .await
        .map_err(Error::netlink("taking a TUN device up"))?;
    let table = addresses.tun_table();
    let v4 = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(addresses.v4, 32)
        .output_interface(link)
        .scope(RouteScope::Link)
        .table_id(table)
        .build();
    let v6 = RouteMessageBuilder::<Ipv6Addr>::new()
        .destination_prefix(addresses.v6, 128)
        .output_interface(link)
        .table_id(table)
        .build();
    for route in [v4, v6] {
        netlink
            .route()
            .add(route)
            .replace()
            .execute()
            .await
            .map_err(Error::netlink("adding a route to a TUN device"))?;
    }
    let main = u32::from(RouteHeader::RT_TABLE_MAIN);
    let action = "adding a rule for a TUN device";
    let rule = || {
        netlink
            .rule()
            .add()
            .input_interface(name.to_owned())
            .table_id(main)
            .priority(FROM_TUN)
            .action(RuleAction::ToTable)
    };
    let (v4, v6) = (rule().v4(), rule().v6());
    v4.execute().await.map_err(Error::netlink(action))?;
    v6.execute().await.map_err(Error::netlink(action))
}

/// On the router: sends what is meant for a host into its TUN device, or straight to it again.
pub(crate) async fn divert(addresses: Addresses, diverted: bool) -> Result<()> {
    let netlink = connect()?;
    let rule = || {
        netlink
            .rule()
            .add()
            .table_id(addresses.tun_table())
            .priority(TO_TUN)
            .action(RuleAction::ToTable)
    };
    let mut v4 = rule().v4().destination_prefix(addresses.v4, 32);
    let mut v6 = rule().v6().destination_prefix(addresses.v6, 128);
    let action = "changing the way to a host";
    if diverted {
        v4.execute().await.map_err(Error::netlink(action))?;
        return v6.execute().await.map_err(Error::netlink(action));
    }
    for message in [v4.message_mut(), v6.message_mut()] {
        netlink
            .rule()
            .del(std::mem::take(message))
            .execute()
            .await
            .map_err(Error::netlink(action))?;
    }
    Ok(())
}

/// Puts a token bucket before what leaves by a link, or takes it away.
pub(crate) async fn shape(name: &str, bucket: Option<TokenBucket>) -> Result<()> {
    let mut netlink = connect()?;
    let link = index(&netlink, name).await?;
    let current = queueing(name).await?;
    let mut message = TcMessage::with_index(link.cast_signed());
    message.header.parent = TcHandle::ROOT;
    let request = match bucket {
        None if current != TokenBucket::KIND => return Ok(()),
        None => {
            let mut request =
                NetlinkMessage::from(RouteNetlinkMessage::DelQueueDiscipline(message));
            request.header.flags = NLM_F_REQUEST | NLM_F_ACK;
            request
        }
        Some(bucket) => {
            message
                .attributes
                .push(TcAttribute::Kind(TokenBucket::KIND.to_owned()));
            let options = bucket
                .attributes()
                .map(|(kind, value)| TcOption::Other(DefaultNla::new(kind, value)));
            message
                .attributes
                .push(TcAttribute::Options(options.into()));
            let mut request =
                NetlinkMessage::from(RouteNetlinkMessage::NewQueueDiscipline(message));
            request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
            request
        }
    };
    let action = "changing a link's rate";
    let mut answers = netlink.request(request).map_err(Error::netlink(action))?;
    while let Some(answer) = answers.next().await {
        if let NetlinkPayload::Error(error) = answer.payload
            && error.code.is_some()
        {
            return Err(Error::netlink(action)(rtnetlink::Error::NetlinkError(
                error,
            )));
        }
    }
    Ok(())
}

/// The kind of the queue before what leaves by a link, such as `noqueue` or `tbf`.
pub(crate) async fn queueing(name: &str) -> Result<String> {
    let netlink = connect()?;
    let link = index(&netlink, name).await?.cast_signed();
    let mut queues = netlink.qdisc().get().index(link).execute();
    while let Some(queue) = queues
        .try_next()
        .await
        .map_err(Error::netlink("reading a link's queue"))?
    {
        if queue.header.index != link || queue.header.parent != TcHandle::ROOT {
            continue;
        }
        for attribute in queue.attributes {
            if let TcAttribute::Kind(kind) = attribute {
                return Ok(kind);
            }
        }
    }
    Ok("noqueue".to_owned())
}

fn connect() -> Result<Handle> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(|source| Error::System {
        action: "opening a netlink socket",
        source,
    })?;
    tokio::spawn(connection);
    Ok(handle)
}

async fn index(netlink: &Handle, name: &str) -> Result<u32> {
    let action = "finding a link";
    let found = netlink
        .link()
        .get()
        .match_name(name.to_owned())
        .execute()
        .try_next()
        .await
        .map_err(Error::netlink(action))?;
    match found {
        Some(link) => Ok(link.header.index),
        None => Err(Error::netlink(action)(rtnetlink::Error::RequestFailed)),
    }
}

async fn set_up(netlink: &Handle, name: &str) -> Result<()> {
    let link = LinkUnspec::new_with_index(index(netlink, name).await?).up();
    netlink
        .link()
        .set(link.build())
        .execute()
        .await
        .map_err(Error::netlink("taking a link up"))
}

async fn add_address(netlink: &Handle, link: u32, address: IpAddr, prefix: u8) -> Result<()> {
    let mut request = netlink.address().add(link, address, prefix).replace();
    if address.is_ipv6() {
        // There is nobody else on the link, and waiting for the duplicate check costs seconds.
        request
            .message_mut()
            .attributes
            .push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    request
        .execute()
        .await
        .map_err(Error::netlink("adding an address"))
}
