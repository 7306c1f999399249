//! Ranges and addresses as people give them to programs: what is wrong with one is said with what would be right.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::net::ParseError;

/// What is no host's own, or means something else on each (RFC 6890), and what it is.
pub const SPECIAL: [(&str, &str); 10] = [
    ("0.0.0.0/8", "no host's"),
    ("127.0.0.0/8", "each host's own (loopback)"),
    ("169.254.0.0/16", "each link's own (link-local)"),
    ("224.0.0.0/4", "for multicast"),
    ("255.255.255.255/32", "for broadcast"),
    ("::/128", "no host's"),
    ("::1/128", "each host's own (loopback)"),
    ("::ffff:0:0/96", "IPv4's, written as IPv6"),
    ("fe80::/10", "each link's own (link-local)"),
    ("ff00::/8", "for multicast"),
];

/// Whether the two have an address in common.
pub fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

/// What of a prefix lies in none of the others.
pub fn without(net: IpNet, others: &[IpNet]) -> Vec<IpNet> {
    let near: Vec<IpNet> = others.iter().copied().filter(|other| overlap(other, &net)).collect();
    if near.is_empty() {
        return vec![net];
    }
    if near.iter().any(|other| other.contains(&net)) {
        return Vec::new();
    }
    let halves = net.subnets(net.prefix_len() + 1).into_iter().flatten();
    halves.flat_map(|half| without(half, &near)).collect()
}

/// Which addresses of the range are no host's, and what they are.
pub fn special(net: &IpNet) -> Option<(IpNet, &'static str)> {
    let mut all = SPECIAL.iter().filter_map(|(range, what)| Some((range.parse::<IpNet>().ok()?, *what)));
    all.find(|(range, _)| overlap(range, net))
}

const RANGE: &str = "a range of addresses";

/// A range that addresses are given out of. Bits beyond its length are cut off, as Kubernetes' own programs do with theirs.
pub fn lenient(text: &str) -> Result<IpNet, ParseError> {
    let wrong = |why: String| ParseError::new(text, RANGE, why);
    let text = text.trim();
    let Ok(net) = text.parse::<IpNet>() else {
        return Err(wrong(match text.parse::<IpAddr>() {
            Ok(IpAddr::V4(_)) => format!("it has no length, as in {text}/16"),
            Ok(IpAddr::V6(_)) => format!("it has no length, as in {text}/48"),
            Err(_) => "expected such as 10.244.0.0/16 or fd00:10:244::/48".to_owned(),
        }));
    };
    match special(&net) {
        None => Ok(net.trunc()),
        Some((range, what)) => Err(wrong(format!(
            "{range} is {what}; take one of a private network, such as 10.244.0.0/16 or fd00:10:244::/48"
        ))),
    }
}

/// The same of somebody who is there to be asked: bits beyond the length are a slip of the pen in one or the other.
pub fn range(text: &str) -> Result<IpNet, ParseError> {
    let net = lenient(text)?;
    match text.trim().parse() == Ok(net) {
        true => Ok(net),
        false => {
            Err(ParseError::new(text, RANGE, format!("it has bits beyond its length; the range is {net}")))
        }
    }
}

/// The address of one host.
pub fn address(text: &str) -> Result<IpAddr, ParseError> {
    let wrong = |why: String| ParseError::new(text, "an address", why);
    let address: IpAddr = text
        .trim()
        .parse()
        .map_err(|_| wrong("expected such as 10.96.0.10 or fd00:10:96::a, without a length".to_owned()))?;
    match special(&address.into()) {
        None => Ok(address),
        Some((range, what)) => Err(wrong(format!("{range} is {what}"))),
    }
}

/// What packets may come from: an address, or a range of them.
pub fn source(text: &str) -> Result<IpNet, ParseError> {
    let wrong = |why: String| ParseError::new(text, "an address or a range of them", why);
    let one = text.trim().parse::<IpAddr>().map(IpNet::from);
    let Ok(net) = one.or_else(|_| text.trim().parse::<IpNet>()) else {
        return Err(wrong("expected such as 203.0.113.7 or 2001:db8::/48".to_owned()));
    };
    if net.trunc() != net {
        let (range, address) = (net.trunc(), net.addr());
        return Err(wrong(format!(
            "it has bits beyond its length; the range is {range}, the one address {address}"
        )));
    }
    // A range of everything may hold them: nobody is granted those.
    match special(&net).filter(|(range, _)| range.contains(&net)) {
        None => Ok(net),
        Some((range, what)) => Err(wrong(format!("{range} is {what}"))),
    }
}

/// What an MTU of pods may be. Every host takes 576 bytes (RFC 791); no link with fewer than 1280 has IPv6 (RFC 8200,
/// section 5).
pub const MTUS: &str = "give a whole number from 576 to 65535 (from 1280 where pods have IPv6), or leave it out: agents then take that \
                        of the node's interface, less the tunnel's headers";

/// An MTU of pods; 0 where none was chosen, as manifests have it.
pub fn mtu(text: &str) -> Result<u32, &'static str> {
    let mtu = text.trim().parse().map_err(|_| MTUS)?;
    if mtu == 0 { Ok(mtu) } else { mtu_fits(mtu, false).map(|()| mtu) }
}

/// Whether pods, with IPv6 or without, can have it.
pub fn mtu_fits(mtu: u32, ipv6: bool) -> Result<(), &'static str> {
    let least = if ipv6 { 1280 } else { 576 };
    if (least..=65_535).contains(&mtu) { Ok(()) } else { Err(MTUS) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::net::{Family, offset};

    fn said<T: ToString>(of: impl Fn(&str) -> Result<T, ParseError>, text: &str) -> String {
        of(text).map_or_else(|error| error.to_string(), |value| value.to_string())
    }

    #[test]
    fn a_range_is_what_its_text_says_or_why_not() {
        for (text, strict, kind) in [
            ("10.1.0.0/16", "10.1.0.0/16", "10.1.0.0/16"),
            (" fd00:10:244::/48", "fd00:10:244::/48", "fd00:10:244::/48"),
            (
                "10.1.2.3/16",
                "\"10.1.2.3/16\" is not a range of addresses: it has bits beyond its length; the range is 10.1.0.0/16",
                "10.1.0.0/16",
            ),
            (
                "fd00::1/64",
                "\"fd00::1/64\" is not a range of addresses: it has bits beyond its length; the range is fd00::/64",
                "fd00::/64",
            ),
        ] {
            assert_eq!((said(range, text).as_str(), said(lenient, text).as_str()), (strict, kind));
        }
        for (text, why) in [
            ("10.96.0.0", "it has no length, as in 10.96.0.0/16"),
            ("fd00::", "it has no length, as in fd00::/48"),
            ("10.244.0.0/33", "expected such as 10.244.0.0/16"),
            ("", "expected such as 10.244.0.0/16"),
            ("127.0.0.0/16", "127.0.0.0/8 is each host's own (loopback); take one of a private network"),
            ("0.0.0.0/0", "0.0.0.0/8 is no host's"),
            ("fe80::/64", "fe80::/10 is each link's own (link-local)"),
            ("224.0.0.0/24", "224.0.0.0/4 is for multicast"),
        ] {
            let begin = format!("{text:?} is not a range of addresses: {why}");
            for said in [said(range, text), said(lenient, text)] {
                assert!(said.starts_with(&begin), "{said}");
            }
        }
    }

    #[test]
    fn an_mtu_is_one_that_links_can_have() {
        for (text, right) in [("0", Ok(0)), ("576", Ok(576)), ("65535", Ok(65_535))] {
            assert_eq!(mtu(text), right);
        }
        for text in ["575", "65536", "-1", "abc", "", "4294967296"] {
            assert_eq!(mtu(text), Err(MTUS), "{text}");
        }
        assert_eq!((mtu_fits(1279, true), mtu_fits(1279, false)), (Err(MTUS), Ok(())));
    }

    #[test]
    fn an_address_is_a_hosts() {
        assert_eq!(said(address, " 10.96.0.10"), "10.96.0.10");
        for (text, why) in [
            ("10.96.0", "expected such as 10.96.0.10"),
            ("10.96.0.10/32", "without a length"),
            ("127.0.0.53", "127.0.0.0/8 is each host's own (loopback)"),
            ("::", "::/128 is no host's"),
        ] {
            assert!(said(address, text).contains(why), "{text}");
        }
    }

    #[test]
    fn sources_are_hosts_and_ranges_of_them() {
        for (text, right) in [
            ("203.0.113.7", "203.0.113.7/32"),
            ("2001:db8::/48", "2001:db8::/48"),
            ("0.0.0.0/0", "0.0.0.0/0"),
        ] {
            assert_eq!(said(source, text), right);
        }
        for (text, why) in [
            (
                "203.0.113.9/24",
                "it has bits beyond its length; the range is 203.0.113.0/24, the one address 203.0.113.9",
            ),
            ("203.0.113.0-9", "expected such as 203.0.113.7"),
            ("224.0.0.251", "224.0.0.0/4 is for multicast"),
        ] {
            assert!(said(source, text).contains(why), "{text}");
        }
    }

    /// In few addresses, so that they meet.
    fn net() -> impl Strategy<Value = IpNet> {
        (any::<u8>(), 24..=32_u8, any::<bool>()).prop_map(|(last, length, v4)| {
            let text = match v4 {
                true => format!("10.0.0.{last}/{length}"),
                false => format!("fd00::{last:x}/{}", length + 96),
            };
            text.parse::<IpNet>().unwrap().trunc()
        })
    }

    proptest! {
        #[test]
        fn what_is_left_of_a_prefix_is_all_that_the_others_do_not_have(
            net in net(),
            others in prop::collection::vec(net(), 0..6),
        ) {
            let left = without(net, &others);
            let first = Family::of_net(&net).pick(["10.0.0.0", "fd00::"]).parse().unwrap();
            for address in (0..256).map(|by| offset(first, by)) {
                let expected = net.contains(&address) && !others.iter().any(|other| other.contains(&address));
                let times = left.iter().filter(|left| left.contains(&address)).count();
                prop_assert_eq!(times, usize::from(expected), "{} in {:?}", address, left);
            }
        }
    }
}
