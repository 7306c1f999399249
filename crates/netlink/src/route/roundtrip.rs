//! What is encoded decodes to the same, and the bytes are those that rtnetlink documents.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use kstate::net::{Forward, Link, LinkKind, PortOptions, ROUTE_PROTOCOL, Route, RouteKey, RouteKind};
use proptest::prelude::*;
use types::{IfName, IpNet, Mac, Vni};

use super::*;
use crate::message::{Writer, messages};

fn ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<u32>().prop_map(|bits| Ipv4Addr::from(bits).into()),
        any::<u128>().prop_map(|bits| Ipv6Addr::from(bits).into()),
    ]
}

/// An address with a prefix length that fits it.
fn net() -> impl Strategy<Value = IpNet> {
    (ip(), 0..=32_u8).prop_filter_map("a prefix", |(ip, length)| IpNet::new(ip, length).ok())
}

/// The one message that `encode` writes, decoded.
fn decoded<T>(
    encode: impl FnOnce(&mut Writer),
    decode: impl Fn(&crate::message::Message<'_>) -> Option<T>,
) -> Option<T> {
    let mut writer = Writer::new();
    encode(&mut writer);
    let all: Vec<Option<T>> = messages(writer.as_bytes()).map(|message| decode(&message)).collect();
    let [one] = <[Option<T>; 1]>::try_from(all).ok()?;
    one
}

proptest! {
    #[test]
    fn routes((net, via, onlink, src) in (net(), any::<bool>(), any::<bool>(), any::<bool>()), table in any::<u32>()) {
        let host = net.addr();
        let route = Route {
            dev: None,
            via: via.then_some(host),
            onlink,
            src: src.then_some(host),
            kind: RouteKind::Unicast,
        };
        let key = RouteKey { dst: net.trunc(), table };
        let row = decoded(|writer| set_route(writer, 1, &key, &route, Some(7)), decode_route);
        prop_assert_eq!(row, Some(RouteRow { key, protocol: ROUTE_PROTOCOL, link: Some(7), metric: 0, other: None, route }));
    }

    #[test]
    fn addresses(address in net(), link in any::<u32>()) {
        let row = decoded(|writer| add_address(writer, 1, link, address), decode_address);
        prop_assert_eq!(row, Some(AddressRow { link, address }));
    }

    #[test]
    fn neighbours_and_forwarding_entries(ip in ip(), mac in any::<[u8; 6]>(), link in any::<u32>()) {
        let mac = Mac(mac);
        let row = |fdb| NeighbourRow { link, ip: Some(ip), mac: Some(mac), permanent: true, fdb, port: false };
        let neighbour = decoded(|writer| set_neighbour(writer, 1, link, ip, mac), decode_neighbour);
        prop_assert_eq!(neighbour, Some(row(false)));
        let entry = decoded(|writer| set_fdb(writer, 1, link, mac, Forward::Node(ip)), decode_neighbour);
        prop_assert_eq!(entry, Some(row(true)));
        prop_assert_eq!(entry.and_then(|row| row.forward()), Some(Forward::Node(ip)));
        let at_port = decoded(|writer| set_fdb(writer, 1, link, mac, Forward::Port), decode_neighbour);
        prop_assert_eq!(
            at_port,
            Some(NeighbourRow { link, ip: None, mac: Some(mac), permanent: false, fdb: true, port: true })
        );
    }

    #[test]
    fn options_of_ports(bits in any::<[bool; 8]>()) {
        let on = PortOptions::NAMES.into_iter().zip(bits).filter(|(_, on)| *on);
        let options = on.fold(PortOptions::default(), |all, ((option, _), _)| all.and(option));
        // Which is no attribute.
        let options = options.without(PortOptions::CHECKSUMS);
        let name = IfName::new("veth1").expect("a good name");
        let row = decoded(|writer| set_port(writer, 1, &name, options), decode_link).expect("a link");
        prop_assert_eq!(row.port, Some((options, PortOptions::default())));
    }

    #[test]
    fn links(local in ip(), vni in 0..1_u32 << 24, port in any::<u16>(), mac in any::<[u8; 6]>(), up in any::<bool>()) {
        let kind = LinkKind::Vxlan { vni: Vni(vni), local, port };
        let link = Link { kind, mac: Some(Mac(mac)), mtu: Some(1450), up, port: None };
        let name = IfName::new("plumb.1").expect("a good name");
        let row = decoded(|writer| add_link(writer, 1, &name, &link, Some(3)), decode_link).expect("a link");
        prop_assert_eq!(row.link_kind(), Some(link.kind));
        prop_assert_eq!((row.name, row.mac, row.mtu, row.up, row.master), (name, link.mac, link.mtu, up, Some(3)));
    }
}

/// Linux before 5.18 does not tell whether a port is locked.
#[test]
fn an_option_that_the_kernel_does_not_tell_of_is_unknown() {
    let mut writer = Writer::new();
    writer.message(head(RTM_NEWLINK, 0, 1), |writer| {
        writer.raw(&[0; 16]);
        writer.text(3, "veth1");
        writer.nest(18, |writer| {
            writer.text(4, "bridge");
            writer.nest(5, |writer| {
                [8, 9, 27, 30].into_iter().for_each(|kind| writer.u8(kind, 0));
                writer.u8(33, 1);
                writer.u16(31, 0xfffd);
            });
        });
    });
    let row = messages(writer.as_bytes()).next().and_then(|message| decode_link(&message)).expect("a link");
    let isolated = PortOptions::ISOLATED.and(PortOptions::GROUP_FWD);
    assert_eq!(row.port, Some((isolated, PortOptions::LOCKED)));
}

/// `10.244.2.0/24 via 10.244.2.0 dev <7> onlink proto 112`, laid out as rtnetlink(7) says.
#[test]
fn a_tunnel_route_in_bytes() {
    let mut writer = Writer::new();
    let key = RouteKey { dst: "10.244.2.0/24".parse().expect("a network"), table: 254 };
    let via = Some(IpAddr::from([10, 244, 2, 0]));
    let route = Route { dev: None, via, onlink: true, src: None, kind: RouteKind::Unicast };
    set_route(&mut writer, 1, &key, &route, Some(7));
    let rtmsg = [2, 24, 0, 0, 254, 112, 0, 1, 4, 0, 0, 0];
    let attributes = [
        [8, 0, 1, 0, 10, 244, 2, 0],
        [8, 0, 15, 0, 254, 0, 0, 0],
        [8, 0, 5, 0, 10, 244, 2, 0],
        [8, 0, 4, 0, 7, 0, 0, 0],
    ];
    let header = [60, 0, 0, 0, 24, 0, 0x05, 0x05, 1, 0, 0, 0, 0, 0, 0, 0];
    // The host's byte order is little-endian wherever this is tested.
    assert_eq!(writer.as_bytes(), [&header[..], &rtmsg, attributes.as_flattened()].concat());
}
