//! What a person typed, as an [`Ask`], as far as it needs no cluster.

use std::net::IpAddr;

use anyhow::{Result, bail};
use trace::exchange::Ask;
use types::{Family, Protocol};

use super::host::{self, address};
use super::named::{Kind, Named};

/// What is asked for.
#[derive(Debug)]
pub struct Target {
    pub ask: Ask,
    /// What the cluster has to say first: which port, or which address, this is.
    pub named: Option<Named>,
}

/// `http://HOST[:PORT][/PATH]`, `https://…` (a connection, no request), `HOST:PORT`, `[V6]:PORT`, or an address.
/// `svc/NAME:PORT`, `pod/NAME:PORT` and `node/NAME:PORT` are kubectl's way of writing the second, where PORT may be a name.
/// `ping:HOST` asks for an echo, and `ping:pod/NAME`.
pub fn parse(text: &str, udp: bool, family: Option<Family>) -> Result<Target> {
    let echoed = text.strip_prefix("ping:").and_then(object);
    let mut target = match (object(text), echoed) {
        (_, Some(object)) => echo_of(text, udp, object)?,
        (Some(object), None) => of_object(text, udp, object)?,
        (None, None) => {
            no_scheme(text)?;
            Target { ask: plain(text, text, udp)?, named: None }
        }
    };
    if let (Some(family), Some(address)) =
        (family, address(&target.ask.host).filter(|_| target.named.is_none()))
        && Family::of(address) != family
    {
        let flag = family.pick(["-4", "-6"]);
        bail!(
            "{flag} asks for an {family} address, and {address} is one of {}: leave {flag} out",
            Family::of(address)
        );
    }
    target.ask.family = family;
    Ok(target)
}

/// An object in the place of a URL's host: it would be asked for as a name.
fn no_scheme(text: &str) -> Result<()> {
    let Some((scheme, rest)) = text.split_once("://") else { return Ok(()) };
    let named = rest.split_once('/').and_then(|(word, rest)| Some((Kind::of(word)?, rest)));
    let Some((kind, rest)) = named.filter(|(_, rest)| !rest.is_empty()) else { return Ok(()) };
    let (name, port) = split(rest.split('/').next().unwrap_or_default());
    let usual = if scheme == "https" { "443" } else { "80" };
    let (word, number) = (kind.word(), port.unwrap_or(usual));
    let url = match (kind, port) {
        (Kind::Service, Some(port)) if port != usual => format!(" or {scheme}://{name}:{port}"),
        (Kind::Service, _) => format!(" or {scheme}://{name}"),
        _ => String::new(),
    };
    bail!("{text:?}: {word}/NAME:PORT takes no {scheme}://; give {word}/{name}:{number}{url}")
}

/// Of a Service by its name in DNS; only a headless one has who answers.
fn echo_of(text: &str, udp: bool, (kind, namespace, name): (Kind, Option<&str>, &str)) -> Result<Target> {
    let host = match (kind, namespace) {
        (Kind::Service, Some(namespace)) => &format!("{name}.{namespace}"),
        _ => name,
    };
    let named = (kind != Kind::Service).then(|| Named::new(kind, namespace, name, "0"));
    Ok(Target { ask: echo(text, host, udp)?, named })
}

/// `svc/REST`, `pod/REST`, `node/REST`, or the first two behind a namespace.
fn object(text: &str) -> Option<(Kind, Option<&str>, &str)> {
    let (first, rest) = text.split_once('/')?;
    if let Some(kind) = Kind::of(first) {
        return Some((kind, None, rest));
    }
    let (word, rest) = rest.split_once('/')?;
    let kind = Kind::of(word).filter(|kind| *kind != Kind::Node)?;
    Some((kind, Some(first), rest))
}

fn of_object(text: &str, udp: bool, (kind, namespace, rest): (Kind, Option<&str>, &str)) -> Result<Target> {
    let (name, port) = split(rest);
    if let Some(namespace) = namespace {
        host::check(namespace)?;
    }
    let Some(port) = port else {
        bail!("{text:?} has no port: give {}/NAME:PORT, by its number or its name", kind.word())
    };
    let is_number = port.parse::<u16>().is_ok_and(|port| port > 0);
    if !is_number && kind == Kind::Node {
        bail!("{text:?}: the ports of a node have no names; give a number from 1 to 65535");
    }
    if !is_number && !is_port_name(port) {
        bail!("{text:?}: the port is neither a number from 1 to 65535 nor the name of one");
    }
    // The names of Services are in DNS, which is traced as well.
    let full = match (kind, namespace) {
        (Kind::Service, Some(namespace)) => format!("{name}.{namespace}"),
        _ => name.to_owned(),
    };
    let number = if is_number { port } else { "1" };
    let ask = plain(text, &format!("{full}:{number}"), udp)?;
    let named = Named::new(kind, namespace, name, port);
    Ok(Target { ask, named: (kind != Kind::Service || !is_number).then_some(named) })
}

/// As the API has it (RFC 6335 §5.1): letters and digits, with single hyphens between them.
fn is_port_name(text: &str) -> bool {
    let plain = text.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-');
    let letter = text.bytes().any(|c| c.is_ascii_lowercase());
    plain && letter && text.len() <= 63
}

/// `said`: as it was typed, for messages.
fn plain(said: &str, text: &str, udp: bool) -> Result<Ask> {
    if text.trim().is_empty() {
        bail!("the target is missing: give http://HOST, HOST:PORT, an address or ping:HOST");
    }
    if let Some(host) = text.strip_prefix("ping:") {
        return echo(text, host, udp);
    }
    let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
    let (scheme, rest) = text.split_once("://").map_or((None, text), |(scheme, rest)| (Some(scheme), rest));
    let (authority, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
    let usual = match scheme {
        None => None,
        Some("http") => Some(80),
        Some("https") => Some(443),
        Some(other) => bail!("{said:?}: a trace knows http://, https:// and HOST:PORT, not {other}://"),
    };
    if scheme.is_some() && udp {
        bail!("{said:?} with --udp: URLs travel over TCP; give HOST:PORT");
    }
    if scheme.is_none() && path != "/" {
        bail!("{said:?} has a path and no http:// before it");
    }
    let (host, port) = split(authority);
    let host = &host_of(said, &in_words(host))?;
    let port = match (port.map(str::parse::<u16>), usual) {
        (Some(Ok(port)), _) if port > 0 => port,
        (Some(_), _) => bail!(
            "{said:?}: the port is not a number from 1 to 65535; svc/NAME:PORT and pod/NAME:PORT take its name as well"
        ),
        (None, Some(usual)) => usual,
        (None, None) if address(host).is_some() => 80,
        (None, None) => bail!("{said:?} has no port: give HOST:PORT or http://HOST"),
    };
    let http_path = (scheme == Some("http")).then(|| path.to_owned());
    Ok(Ask { host: host.clone(), port, protocol, family: None, http_path })
}

fn echo(text: &str, host: &str, udp: bool) -> Result<Ask> {
    let (host, port) = split(host);
    let host = &in_words(host);
    if udp || port.is_some() || host.contains('/') {
        bail!(
            "{text:?}: an echo travels over ICMP, which has neither ports nor paths; give ping:HOST, \
             ping:pod/NAME, ping:svc/NAME or ping:node/NAME"
        );
    }
    Ok(Ask { host: host_of(text, host)?, port: 0, protocol: Protocol::Icmp, family: None, http_path: None })
}

fn host_of(text: &str, host: &str) -> Result<String> {
    if host.is_empty() {
        bail!("{text:?} has no host");
    }
    if let Some(IpAddr::V6(of_link)) = address(host).filter(|_| !host.ends_with("%eth0"))
        && of_link.is_unicast_link_local()
    {
        bail!(
            "{host} is link-local: each link has such addresses, and without one a program in the pod gets EINVAL; the \
             pod's is eth0: {of_link}%eth0"
        );
    }
    host::check(host)?;
    Ok(host.to_owned())
}

/// A URL has %25 before the link (RFC 6874 §2).
fn in_words(host: &str) -> String {
    match host.split_once("%25") {
        Some((address, link)) if address.parse::<IpAddr>().is_ok() => format!("{address}%{link}"),
        _ => host.to_owned(),
    }
}

fn split(authority: &str) -> (&str, Option<&str>) {
    if let Some((host, rest)) = authority.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
        return (host, rest.strip_prefix(':'));
    }
    match authority.rsplit_once(':') {
        // More than one colon without brackets: an IPv6 address.
        Some((host, _)) if host.contains(':') => (authority, None),
        Some((host, port)) => (host, Some(port)),
        None => (authority, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_understood() {
        for (text, host, port, path) in [
            ("http://payments:8080", "payments", 8080, Some("/")),
            ("http://payments/a?b=c", "payments", 80, Some("/a?b=c")),
            ("https://10.96.0.1", "10.96.0.1", 443, None),
            ("db:5432", "db", 5432, None),
            ("10.96.14.7", "10.96.14.7", 80, None),
            ("[fd00::1]:53", "fd00::1", 53, None),
            ("fd00::1", "fd00::1", 80, None),
            ("fe80::1%eth0", "fe80::1%eth0", 80, None),
            ("svc/api:8080", "api", 8080, None),
            ("service/api.shop:8080", "api.shop", 8080, None),
            ("shop/svc/api:8080", "api.shop", 8080, None),
            ("ping:db", "db", 0, None),
            ("ping:svc/db", "db", 0, None),
            ("ping:shop/svc/db", "db.shop", 0, None),
            ("http://db/svc/b1:8080", "db", 80, Some("/svc/b1:8080")),
            ("http://pod/", "pod", 80, Some("/")),
            ("ping:fd00::1", "fd00::1", 0, None),
            ("ping:[fd00::1]", "fd00::1", 0, None),
            ("[fe80::1%eth0]:53", "fe80::1%eth0", 53, None),
            ("http://[fe80::1%eth0]", "fe80::1%eth0", 80, Some("/")),
            ("http://[fe80::1%25eth0]:8080/a", "fe80::1%eth0", 8080, Some("/a")),
        ] {
            let Target { ask, named } = parse(text, false, None).unwrap();
            assert!(named.is_none(), "{text}");
            assert_eq!((ask.host.as_str(), ask.port, ask.http_path.as_deref()), (host, port, path), "{text}");
        }
    }

    #[test]
    fn a_port_may_have_a_name_where_the_cluster_can_say_which_it_is() {
        for (text, kind, namespace, name, port) in [
            ("svc/api:http", Kind::Service, None, "api", "http"),
            ("svc/api.shop:http-2", Kind::Service, Some("shop"), "api", "http-2"),
            ("svc/api.shop.svc.cluster.local:http", Kind::Service, Some("shop"), "api", "http"),
            ("shop/svc/api:http", Kind::Service, Some("shop"), "api", "http"),
            ("pod/web:http", Kind::Pod, None, "web", "http"),
            ("shop/pod/web:8080", Kind::Pod, Some("shop"), "web", "8080"),
            ("node/node1:22", Kind::Node, None, "node1", "22"),
            ("ping:pod/web", Kind::Pod, None, "web", "0"),
            ("ping:shop/pod/web", Kind::Pod, Some("shop"), "web", "0"),
            ("ping:node/node1", Kind::Node, None, "node1", "0"),
        ] {
            let named = parse(text, false, None).unwrap().named;
            assert_eq!(named, Some(Named::new(kind, namespace, name, port)), "{text}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        for (text, word) in [
            ("payments", "no port"),
            ("svc/payments", "no port"),
            ("", "target is missing"),
            ("10.244.1.300", "no address"),
            ("10.244.1.300:80", "no address"),
            ("fd00::x", "no address"),
            ("pay ments:80", "no name"),
            ("http://a..b", "no name"),
            ("db:70000", "1 to 65535"),
            ("db:http", "svc/NAME:PORT"),
            ("svc/db:70000", "1 to 65535"),
            ("svc/db:Http", "the name of one"),
            ("svc/db:", "the name of one"),
            ("svc/:http", "no host"),
            ("pod/db", "pod/NAME:PORT"),
            ("pod/d b:80", "no name"),
            ("a b/pod/db:80", "no name"),
            ("ftp://x", "ftp"),
            ("http://:80", "no host"),
            ("db:1/x", "http://"),
            ("ping:db:80", "ping:HOST"),
            ("ping:pod/web:80", "ping:pod/NAME"),
            ("http://pod/b1:8080", "pod/NAME:PORT takes no http://; give pod/b1:8080"),
            ("http://svc/a:80", "svc/NAME:PORT takes no http://; give svc/a:80 or http://a"),
            ("https://svc/a:8443", "give svc/a:8443 or https://a:8443"),
            ("http://node/node1", "give node/node1:80"),
            ("node/node1:http", "no names"),
            ("ping:", "no host"),
            ("fe80::1", "fe80::1%eth0"),
            ("[fe80::1%lo]:80", "fe80::1%eth0"),
        ] {
            let error = parse(text, false, None).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
        assert!(parse("http://x", true, None).is_err() && parse("ping:x", true, None).is_err());
    }

    #[test]
    fn an_address_of_another_family_than_asked_for_is_a_slip() {
        for (text, family, flag) in [("10.244.1.2:80", Family::V6, "-6"), ("ping:fd00::1", Family::V4, "-4")]
        {
            let error = parse(text, false, Some(family)).unwrap_err().to_string();
            assert!(error.contains(&format!("leave {flag} out")), "{error}");
        }
        for text in ["10.244.1.2:80", "db:80", "pod/db:80"] {
            assert_eq!(parse(text, false, Some(Family::V4)).unwrap().ask.family, Some(Family::V4));
        }
    }
}
