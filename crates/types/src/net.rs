//! Network words: families, protocols, hardware addresses, interface names.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

/// The two address families; everything that differs by family loops over these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Family {
    #[serde(rename = "IPv4")]
    V4,
    #[serde(rename = "IPv6")]
    V6,
}

impl Family {
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    pub fn of_net(net: &IpNet) -> Self {
        Self::of(net.addr())
    }

    /// The family that several are of, where each may have one.
    pub fn several(families: impl IntoIterator<Item = Self>) -> Option<Self> {
        let all = Vec::from_iter(families);
        Self::ALL.into_iter().find(|family| all.iter().filter(|other| *other == family).count() > 1)
    }

    /// One of two values, for IPv4 and IPv6.
    pub fn pick<T>(self, [v4, v6]: [T; 2]) -> T {
        match self {
            Self::V4 => v4,
            Self::V6 => v6,
        }
    }

    /// The address of this number; bits that the family has not are cut off.
    pub fn address(self, number: u128) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::from_bits(number as u32).into(),
            Self::V6 => Ipv6Addr::from_bits(number).into(),
        }
    }
}

/// An address as a number, to count with; [`Family::address`] is the way back.
pub fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// So many addresses further; after the last of all comes the first.
pub fn offset(address: IpAddr, by: u128) -> IpAddr {
    Family::of(address).address(number(address).wrapping_add(by))
}

/// The families of a cluster; what names none gets the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Families {
    #[default]
    Ipv4,
    Ipv6,
    Dual,
}

impl Families {
    pub fn list(self) -> &'static [Family] {
        match self {
            Self::Ipv4 => &[Family::V4],
            Self::Ipv6 => &[Family::V6],
            Self::Dual => &Family::ALL,
        }
    }

    /// The family that comes first.
    pub fn primary(self) -> Family {
        if self == Self::Ipv6 { Family::V6 } else { Family::V4 }
    }
}

impl fmt::Display for Families {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
            Self::Dual => "dual",
        })
    }
}

impl FromStr for Families {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        match text {
            "ipv4" => Ok(Self::Ipv4),
            "ipv6" => Ok(Self::Ipv6),
            "dual" => Ok(Self::Dual),
            _ => Err(ParseError::new(text, "a choice of families", "expected ipv4, ipv6 or dual")),
        }
    }
}

/// As Kubernetes writes it: `IPv4`, `IPv6`.
impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// A transport that Kubernetes knows, absent in an object means TCP; or the echo that a trace sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    #[default]
    Tcp,
    Udp,
    Sctp,
    /// Named by no object. An echo's identifier stands where the others have the sender's port.
    Icmp,
}

impl Protocol {
    /// Those of objects.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// The IANA protocol number, as in the IP header; of ICMP that of IPv4.
    pub fn number(self) -> u8 {
        self.number_in(Family::V4)
    }

    /// The number in packets of a family.
    pub fn number_in(self, family: Family) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
            Self::Icmp => family.pick([1, 58]),
        }
    }

    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|p| p.number() == number)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
            Self::Icmp => "icmp",
        })
    }
}

/// A word that does not have the form it should have: what it was, what it is not, and why.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{text:?} is not {what}: {why}")]
pub struct ParseError {
    pub text: String,
    pub what: &'static str,
    pub why: String,
}

impl ParseError {
    pub fn new(text: &str, what: &'static str, why: impl Into<String>) -> Self {
        Self { text: text.to_owned(), what, why: why.into() }
    }
}

impl FromStr for Protocol {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        match text.to_ascii_lowercase().as_str() {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            "sctp" => Ok(Self::Sctp),
            _ => Err(ParseError::new(text, "a protocol", "expected TCP, UDP or SCTP")),
        }
    }
}

/// An Ethernet address, printed as `02:00:00:00:00:01`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Mac {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            *byte = parts.next().and_then(|part| u8::from_str_radix(part, 16).ok()).ok_or_else(|| {
                ParseError::new(text, "a hardware address", "expected six hex bytes with colons")
            })?;
        }
        match parts.next() {
            None => Ok(Self(bytes)),
            Some(_) => Err(ParseError::new(text, "a hardware address", "more than six bytes")),
        }
    }
}

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A name the kernel accepts for an interface: 1 to 15 bytes, no `/`, `:` or white space, not `.` or `..`
/// (`dev_valid_name`, net/core/dev.c).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct IfName(String);

impl IfName {
    pub fn new(text: &str) -> Result<Self, ParseError> {
        let bad = |why: &str| Err(ParseError::new(text, "an interface name", why));
        match text {
            "" => bad("it is empty"),
            "." | ".." => bad("the kernel reserves it"),
            _ if text.len() > 15 => bad("it has more than 15 bytes"),
            _ if text.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control()) => {
                bad("it has a '/', ':', white space or control character")
            }
            _ => Ok(Self(text.to_owned())),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for IfName {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        Self::new(text)
    }
}

impl<'de> Deserialize<'de> for IfName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// A VXLAN network identifier, 24 bits (RFC 7348 §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Vni(pub u32);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_follow_the_kernel() {
        assert!(IfName::new("plumb.1").is_ok());
        for bad in ["", ".", "..", "a/b", "a:b", "a b", "sixteen-bytes-xx"] {
            assert!(IfName::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn macs_print_as_they_parse() {
        assert_eq!("0a:58:0A:f4:01:04".parse::<Mac>().map(|m| m.to_string()), Ok("0a:58:0a:f4:01:04".into()));
        for bad in ["", "0a:58", "0a:58:0a:f4:01:04:05", "zz:58:0a:f4:01:04"] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }
}
