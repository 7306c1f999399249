//! What a node has lost of its way to the others and out, by what the kernel shows of it in /proc/PID/net, which can be
//! read from outside of the lab.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;

use types::Family;

use crate::plan;

/// What `plumb lab up` gives back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    Link,
    LinkUp,
    Address(IpAddr),
    Route(Family),
    /// A route bars the way to the API at this address.
    Way(IpAddr),
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link => f.write_str("its eth0 is gone"),
            Self::LinkUp => f.write_str("its eth0 is down"),
            Self::Address(address) => write!(f, "its address {address} is on no interface"),
            Self::Route(family) => write!(f, "its default route of {} is gone", name(*family)),
            Self::Way(api) => write!(f, "a route of it bars the way to the API at {api}"),
        }
    }
}

impl Lost {
    /// What is said once it is there again.
    pub fn mended(self) -> String {
        match self {
            Self::Link => "its eth0 is there again".to_owned(),
            Self::LinkUp => "eth0 is up again".to_owned(),
            Self::Address(address) => format!("it has its address {address} again"),
            Self::Route(family) => format!("it has its default route of {} again", name(family)),
            Self::Way(api) => format!("nothing bars its way to the API at {api} any more"),
        }
    }
}

fn name(family: Family) -> &'static str {
    family.pick(["IPv4", "IPv6"])
}

/// All of it in one line. What went with the link is not said besides.
pub fn told(lost: &[Lost]) -> Option<String> {
    let first = lost.first()?;
    match first {
        Lost::Link | Lost::LinkUp => Some(first.to_string()),
        _ => Some(lost.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
    }
}

/// The tables of a network namespace. Without IPv6 in the kernel those of IPv6 are not there.
#[derive(Debug, Default)]
pub struct Tables {
    dev: String,
    dev_mcast: String,
    fib_trie: String,
    route: String,
    if_inet6: String,
    ipv6_route: String,
}

impl Tables {
    /// `None`: the namespace has just ended.
    pub fn read(net: &Path) -> Option<Self> {
        let read = |file: &str| std::fs::read_to_string(net.join(file));
        Some(Self {
            dev: read("dev").ok()?,
            dev_mcast: read("dev_mcast").ok()?,
            fib_trie: read("fib_trie").ok()?,
            route: read("route").ok()?,
            if_inet6: read("if_inet6").unwrap_or_default(),
            ipv6_route: read("ipv6_route").unwrap_or_default(),
        })
    }

    /// What is not there of eth0, these addresses, a default route and the way to the API of each family of them.
    pub fn lost(&self, own: &[IpAddr]) -> Vec<Lost> {
        if !names_uplink(&self.dev) {
            return vec![Lost::Link];
        }
        let link = (!self.is_up()).then_some(Lost::LinkUp);
        let addresses = own.iter().copied().filter(|address| !self.has_address(*address)).map(Lost::Address);
        let families = own.iter().copied().map(Family::of);
        let routes = families.clone().filter(|family| !self.has_default_route(*family)).map(Lost::Route);
        let barred = families.map(plan::api).filter(|api| self.bars(*api)).map(Lost::Way);
        link.into_iter().chain(addresses).chain(routes).chain(barred).collect()
    }

    /// An interface hears the group of all hosts of each family from when it is brought up until it is taken down
    /// (net/ipv4/igmp.c, `ip_mc_up`; net/ipv6/addrconf.c): 01:00:5e:00:00:01 and 33:33:00:00:00:01.
    fn is_up(&self) -> bool {
        let groups = ["01005e000001", "333300000001"];
        let hears = |line: &str| names_uplink(line) && groups.iter().any(|group| line.ends_with(group));
        self.dev_mcast.lines().any(|line| hears(line.trim_end()))
    }

    /// By fib_trie, where an address of the machine is `|-- ADDRESS` before `/32 host LOCAL`, and if_inet6.
    fn has_address(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(_) => {
                let lines: Vec<&str> = self.fib_trie.lines().map(str::trim).collect();
                let leaf = format!("|-- {address}");
                lines
                    .windows(2)
                    .any(|pair| matches!(pair, [at, of] if *at == leaf && of.ends_with("host LOCAL")))
            }
            IpAddr::V6(ip) => {
                let digits: String = ip.octets().iter().map(|octet| format!("{octet:02x}")).collect();
                self.if_inet6.lines().any(|line| line.starts_with(&digits))
            }
        }
    }

    /// Whether a route of no interface has exactly this address, which no other can be longer than.
    fn bars(&self, address: IpAddr) -> bool {
        let words = |line: &str| line.split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let is_at =
            |words: &[String], at: usize, right: &str| words.get(at).is_some_and(|word| word == right);
        match address {
            IpAddr::V4(ip) => {
                // In the byte order of the machine.
                let own = format!("{:08X}", u32::from_ne_bytes(ip.octets()));
                let mut lines = self.route.lines().map(words);
                lines.any(|it| is_at(&it, 0, "*") && is_at(&it, 1, &own) && is_at(&it, 7, "FFFFFFFF"))
            }
            IpAddr::V6(ip) => {
                let own: String = ip.octets().iter().map(|octet| format!("{octet:02x}")).collect();
                let mut lines = self.ipv6_route.lines().map(words);
                lines.any(|it| is_at(&it, 0, &own) && is_at(&it, 1, "80") && is_at(&it, 9, "lo"))
            }
        }
    }

    /// One of no interface refuses (`*`, and of IPv6 `lo`).
    fn has_default_route(&self, family: Family) -> bool {
        let words = |line: &str| line.split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let table = family.pick([&self.route, &self.ipv6_route]);
        table.lines().map(words).any(|words| {
            let word = |at: usize| words.get(at).map(String::as_str).unwrap_or_default();
            match family {
                Family::V4 => word(1) == "00000000" && word(7) == "00000000" && word(0) != "*",
                Family::V6 => {
                    word(0).len() == 32
                        && word(0).bytes().all(|digit| digit == b'0')
                        && word(1) == "00"
                        && word(9) != "lo"
                }
            }
        })
    }
}

/// Whether a table of /proc/net has a line of eth0.
fn names_uplink(table: &str) -> bool {
    let is_it = |word: &str| word.trim_end_matches(':') == "eth0";
    table.lines().any(|line| line.split_ascii_whitespace().any(is_it))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &str = "00000000000000000000000000000000";

    /// A node with both families, as the kernel shows it.
    fn whole() -> Tables {
        Tables {
            dev: "Inter-|   Receive\n    lo:       0\n  eth0:     906\n".into(),
            dev_mcast: "3    eth0            1     0     333300000001\n3    eth0            1     0     01005e000001\n"
                .into(),
            fib_trie: "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 192.168.1.10\n        /32 host LOCAL\n     |-- 192.168.1.11\n        /32 link UNICAST\n".into(),
            route: "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\n\
                    eth0\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\n\
                    eth0\t0001A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\n".into(),
            if_inet6: "fd001921680001000000000000000010 02 40 00 80     eth0\n".into(),
            ipv6_route: format!(
                "{ALL} 00 {ALL} 00 fd001921680001000000000000000001 00000400 00000001 00000000 00000003 eth0\n\
                 {ALL} 00 {ALL} 00 {ALL} ffffffff 00000001 00000000 00200200       lo\n"
            ),
        }
    }

    fn own() -> [IpAddr; 2] {
        ["192.168.1.10", "fd00:1921:6800:100::10"].map(|text| text.parse().unwrap())
    }

    #[test]
    fn what_is_lost_is_told_as_what_it_is() {
        let said = |break_it: fn(&mut Tables)| {
            let mut tables = whole();
            break_it(&mut tables);
            told(&tables.lost(&own()))
        };
        assert_eq!(said(|_| ()), None);
        assert_eq!(said(|it| it.dev = "    lo: 0\n".into()).as_deref(), Some("its eth0 is gone"));
        let down = said(|it| {
            (it.dev_mcast, it.route) = ("2    p  1 0 01005e000001\n".into(), String::new());
            it.if_inet6.clear();
        });
        assert_eq!(down.as_deref(), Some("its eth0 is down"));
        let flushed = said(|it| {
            it.fib_trie.clear();
            it.route.clear();
        });
        assert_eq!(
            flushed.as_deref(),
            Some("its address 192.168.1.10 is on no interface, its default route of IPv4 is gone")
        );
        let no_way = said(|it| it.ipv6_route = it.ipv6_route.lines().last().unwrap_or_default().to_owned());
        assert_eq!(no_way.as_deref(), Some("its default route of IPv6 is gone"));
        let barred = said(|it| {
            it.route.push_str("*\t0201A8C0\t00000000\t0205\t0\t0\t0\tFFFFFFFF\n");
            let api = "fd001920016800010000000000000002";
            let other = api.replace("0192001680001", "0192001680009");
            for to in [api, other.as_str()] {
                it.ipv6_route
                    .push_str(&format!("{to} 80 {ALL} 00 {ALL} 00000400 00000001 00000000 00200200 lo\n"));
            }
        });
        let v4 = "a route of it bars the way to the API at 192.168.1.2";
        assert!(barred.as_deref().is_some_and(|said| said.starts_with(v4)), "{barred:?}");
    }

    #[test]
    fn an_address_is_where_the_kernel_says_that_it_is_its_own() {
        for (address, has) in [
            ("192.168.1.10", true),
            ("192.168.1.1", false),
            ("192.168.1.11", false),
            ("fd00:1921:6800:100::10", true),
            ("fd00:1921:6800:100::11", false),
        ] {
            assert_eq!(whole().has_address(address.parse().unwrap()), has, "{address}");
        }
    }
}
