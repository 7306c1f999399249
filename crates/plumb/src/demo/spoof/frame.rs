//! Frames by hand: Ethernet, IPv4 and IPv6, UDP, ARP and neighbour advertisements, with checksums as their receivers
//! check them.

use std::net::{IpAddr, Ipv6Addr};

use types::{Family, Mac};

pub const BROADCAST: Mac = Mac([0xff; 6]);
const ETHERTYPES: [[u8; 2]; 2] = [[0x08, 0x00], [0x86, 0xdd]];
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// From whom to whom, as the Ethernet header has it.
#[derive(Clone, Copy, Debug)]
pub struct Wire {
    pub to: Mac,
    pub from: Mac,
}

impl Wire {
    fn head(self) -> Vec<u8> {
        [self.to.0, self.from.0].concat()
    }

    /// An IP packet.
    pub fn ip(self, packet: &[u8]) -> Vec<u8> {
        let kind = match packet.first().is_some_and(|first| first >> 4 == 6) {
            true => ETHERTYPES[1],
            false => ETHERTYPES[0],
        };
        [self.head(), kind.to_vec(), packet.to_vec()].concat()
    }

    /// The same with an 802.1Q tag of priority alone, which a port without VLANs takes, too.
    pub fn tagged(self, packet: &[u8]) -> Vec<u8> {
        let plain = self.ip(packet);
        let (head, rest) = plain.split_at(12);
        [head, &[0x81, 0, 0, 0], rest].concat()
    }

    /// RFC 826: `operation` 1 asks, 2 answers; either says that `sender` is at `mac`.
    pub fn arp(self, operation: u8, mac: Mac, sender: [u8; 4]) -> Vec<u8> {
        let fixed = [0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, operation];
        [&self.head()[..], &fixed, &mac.0, &sender, &self.to.0, &sender].concat()
    }
}

/// A datagram of UDP from and to addresses of one family.
pub fn udp((from, to): (IpAddr, IpAddr), (sport, dport): (u16, u16), payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap_or(u16::MAX).to_be_bytes();
    let datagram = [&sport.to_be_bytes()[..], &dport.to_be_bytes(), &length, &[0, 0], payload].concat();
    ip((from, to), UDP, 64, checked((from, to), UDP, 6, datagram))
}

/// An unsolicited advertisement that `target` is at `mac`, overriding what was known (RFC 4861 §4.4), to all nodes.
pub fn advertisement(from: Ipv6Addr, target: Ipv6Addr, mac: Mac) -> Vec<u8> {
    let all = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let message = [&[136, 0, 0, 0, 0x20, 0, 0, 0][..], &target.octets(), &[2, 1], &mac.0].concat();
    let ends = (from.into(), all.into());
    // RFC 4861 §7.1.2: from no router.
    ip(ends, ICMPV6, 255, checked(ends, ICMPV6, 2, message))
}

/// The link-local address that goes with a MAC (EUI-64, RFC 4291 appendix A).
pub fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn ip((from, to): (IpAddr, IpAddr), protocol: u8, hops: u8, payload: Vec<u8>) -> Vec<u8> {
    let addresses = [octets(from), octets(to)].concat();
    let length = |more: usize| u16::try_from(more + payload.len()).unwrap_or(u16::MAX).to_be_bytes();
    let mut head = match Family::of(from) {
        Family::V4 => [&[0x45, 0][..], &length(20), &[0, 0, 0, 0, hops, protocol, 0, 0], &addresses].concat(),
        Family::V6 => [&[0x60, 0, 0, 0][..], &length(0), &[protocol, hops], &addresses].concat(),
    };
    if Family::of(from) == Family::V4 {
        let sum = sum(&head);
        put(&mut head, 10, sum);
    }
    [head, payload].concat()
}

/// With the checksum over the pseudo-header (RFC 768, RFC 8200 §8.1) in its place.
fn checked((from, to): (IpAddr, IpAddr), protocol: u8, at: usize, mut message: Vec<u8>) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes();
    let pseudo =
        [octets(from), octets(to), length.to_vec(), vec![0, 0, 0, protocol], message.clone()].concat();
    // Zero would say that there is none.
    let sum = match sum(&pseudo) {
        0 => 0xffff,
        sum => sum,
    };
    put(&mut message, at, sum);
    message
}

fn put(bytes: &mut [u8], at: usize, sum: u16) {
    if let Some(place) = bytes.get_mut(at..at + 2) {
        place.copy_from_slice(&sum.to_be_bytes());
    }
}

/// RFC 1071.
fn sum(bytes: &[u8]) -> u16 {
    let mut total: u32 = 0;
    for pair in bytes.chunks(2) {
        let low = pair.get(1).copied().unwrap_or_default();
        total += u32::from(u16::from_be_bytes([pair.first().copied().unwrap_or_default(), low]));
        total = (total & 0xffff) + (total >> 16);
    }
    !u16::try_from(total).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use netlink::packet::Frame;

    use super::*;

    const WIRE: Wire = Wire { to: BROADCAST, from: Mac([2, 0, 0, 0, 0, 1]) };

    /// The example of RFC 1071 §3, and that a whole IPv4 header sums up to nothing.
    #[test]
    fn checksums_are_those_of_the_internet() {
        assert_eq!(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
        let packet = udp(([10, 0, 0, 1].into(), [10, 0, 0, 2].into()), (1, 2), b"odd");
        assert_eq!(sum(&packet[..20]), 0);
        let pseudo = [&packet[12..20], &[0, 17, 0, 11], &packet[20..]].concat();
        assert_eq!(sum(&pseudo), 0);
    }

    #[test]
    fn a_frame_says_what_was_asked_for() {
        for (from, to) in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")] {
            let packet = udp((from.parse().unwrap(), to.parse().unwrap()), (1, 2), b"word");
            let frame = WIRE.ip(&packet);
            let frame = Frame::parse(&frame).unwrap();
            assert_eq!((frame.dst, frame.src), (WIRE.to, WIRE.from));
            let read = frame.packet().unwrap();
            assert_eq!((read.src.to_string(), read.dst.to_string()), (from.to_owned(), to.to_owned()));
            assert_eq!((read.ports(), read.length), (Some((1, 2)), packet.len()));
            let tagged = WIRE.tagged(&packet);
            assert_eq!((Frame::parse(&tagged).unwrap().ethertype, &tagged[18..]), (0x8100, &packet[..]));
        }
    }

    #[test]
    fn an_arp_claim_has_both_addresses_in_their_places() {
        let frame = WIRE.arp(2, WIRE.from, [10, 0, 0, 1]);
        assert_eq!(frame.len(), 14 + 28);
        assert_eq!((&frame[22..28], &frame[28..32]), (&WIRE.from.0[..], &[10, 0, 0, 1][..]));
    }
}
