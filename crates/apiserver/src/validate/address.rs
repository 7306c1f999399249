//! Addresses and ranges as kube-apiserver reads them (apimachinery, util/validation/ip.go, with StrictIPCIDRValidation,
//! KEP-4858; pkg/apis/core/validation, `ValidateEndpointIP`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::Value;
use types::IpNet;

use crate::invalid::Complaints;

const BAD_IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
const BAD_CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";

/// An address in a field that is older than strict validation: any spelling of it, but none that another reader could
/// take for another address. Values that the object had before stay.
pub(super) fn ip(value: &Value, field: &str, had: &[Value], complaints: &mut Complaints) -> Option<IpAddr> {
    let text = value.as_str().unwrap_or_default();
    if had.contains(value) {
        return text.parse().ok();
    }
    let why = match (text.parse::<IpAddr>(), without_zeros(text)) {
        (Ok(IpAddr::V6(address)), _) if address.to_ipv4_mapped().is_some() => {
            "must not be an IPv4-mapped IPv6 address"
        }
        (Ok(address), _) => return Some(address),
        (Err(_), Some(_)) => "must not have leading 0s",
        (Err(_), None) => BAD_IP,
    };
    complaints.invalid(field, value, why);
    None
}

/// As [`ip`], and in the one spelling of RFC 5952.
pub(super) fn canonical_ip(value: &Value, field: &str, complaints: &mut Complaints) -> Option<IpAddr> {
    let address = ip(value, field, &[], complaints)?;
    let text = address.to_string();
    if value.as_str() == Some(&text) {
        return Some(address);
    }
    complaints.invalid(field, value, &format!("must be in canonical form ({text:?})"));
    None
}

/// A range of the same kind of field.
pub(super) fn cidr(value: &Value, field: &str, had: &[Value], complaints: &mut Complaints) -> Option<IpNet> {
    cidr_text(value.as_str().unwrap_or_default(), value, field, (had, complaints))
}

/// `text`: the value as it is judged, which may be without the blanks around it.
pub(super) fn cidr_text(
    text: &str,
    value: &Value,
    field: &str,
    (had, complaints): (&[Value], &mut Complaints),
) -> Option<IpNet> {
    if had.contains(value) {
        return text.parse::<IpNet>().ok().map(|net| net.trunc());
    }
    let (net, why) = read_cidr(text);
    if let Some(why) = why {
        complaints.invalid(field, &text.into(), why);
    }
    net
}

/// The range, where it can be told, and what is wrong with how it is written.
fn read_cidr(text: &str) -> (Option<IpNet>, Option<&'static str>) {
    let Some((address, length)) = text.split_once('/') else { return (None, Some(BAD_CIDR)) };
    let strict = address.parse::<IpAddr>().ok();
    let digits = !length.is_empty() && length.chars().all(|c| c.is_ascii_digit());
    let number = length.parse::<u8>().ok().filter(|_| digits);
    let (Some(ip), Some(number)) = (strict.or_else(|| without_zeros(address).map(IpAddr::V4)), number) else {
        return (None, Some(BAD_CIDR));
    };
    let Ok(net) = IpNet::new(ip, number) else { return (None, Some(BAD_CIDR)) };
    let mapped = matches!(ip, IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some());
    let why = if strict.is_none() || (length.len() > 1 && length.starts_with('0')) {
        Some("must not have leading 0s in IP or prefix length")
    } else if mapped {
        Some("must not have an IPv4-mapped IPv6 address")
    } else if net.trunc() != net {
        Some("must not have bits set beyond the prefix length")
    } else {
        None
    };
    (Some(net.trunc()), why)
}

/// `010.0.0.1` as it was once read: decimal.
fn without_zeros(text: &str) -> Option<Ipv4Addr> {
    let octets: Vec<u8> = text
        .split('.')
        .map(|part| part.parse().ok().filter(|_| part.chars().all(|c| c.is_ascii_digit())))
        .collect::<Option<_>>()?;
    <[u8; 4]>::try_from(octets).ok().map(Ipv4Addr::from)
}

/// An address that a Service may lead to: not one that means something else on every node (CVE-2020-8558,
/// CVE-2021-25740).
pub(super) fn endpoint(address: IpAddr, value: &Value, field: &str, complaints: &mut Complaints) {
    // Go's `netip.Addr` for both families.
    let (link, multicast) = match address {
        IpAddr::V4(ip) => (ip.is_link_local(), ip.octets().starts_with(&[224, 0, 0])),
        IpAddr::V6(ip) => (is_link_local(ip), ip.segments()[0] & 0xff0f == 0xff02),
    };
    let text = value.as_str().unwrap_or_default();
    if address.is_unspecified() {
        complaints.invalid(field, value, &format!("may not be unspecified ({text})"));
    }
    if address.is_loopback() {
        complaints.invalid(field, value, "may not be in the loopback range (127.0.0.0/8, ::1/128)");
    }
    if link {
        complaints.invalid(field, value, "may not be in the link-local range (169.254.0.0/16, fe80::/10)");
    }
    if multicast {
        let why = "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)";
        complaints.invalid(field, value, why);
    }
}

fn is_link_local(ip: Ipv6Addr) -> bool {
    ip.segments()[0] & 0xffc0 == 0xfe80
}
