//! `--api-servers`: addresses that an agent can open a connection to, and that no pod and no Service has.

use std::net::IpAddr;

use anyhow::{Result, bail};
use model::Ranges;
use types::range;

use super::{holding, is_domain};

pub fn check(text: &str, ranges: &Ranges<'_>) -> Result<()> {
    for server in text.split(',').map(str::trim).filter(|_| !text.is_empty()) {
        let host = match host(server) {
            Ok(host) => host,
            Err(why) => bail!(
                "--api-servers {server:?} is not the address of a server: {why}; give such as https://192.0.2.10:6443"
            ),
        };
        let Ok(ip) = host.trim_matches(['[', ']']).parse::<IpAddr>() else { continue };
        if let Some(what) = nobodys(ip) {
            bail!(
                "--api-servers {server}: {ip} is the address of no server ({what}); give the one that a server has on its \
                 own machine"
            );
        }
        if let Some((flag, net)) = holding(ranges).find(|(_, net)| net.contains(&ip)) {
            bail!(
                "--api-servers {server} is in {flag} {net}, which nodes reach by these very agents; give the address that a \
                 server has on its own machine"
            );
        }
    }
    Ok(())
}

/// A proxy on each node's loopback leads to servers, too.
fn nobodys(ip: IpAddr) -> Option<String> {
    if ip.is_loopback() {
        return None;
    }
    range::special(&ip.into()).map(|(range, what)| format!("{range} is {what}"))
}

/// That of `https://HOST:PORT` or `HOST:PORT`, as the agents read it (`agent::api::server`), or what is wrong with it.
fn host(text: &str) -> Result<String, &'static str> {
    let whole = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
    let uri = whole.parse::<http::Uri>().map_err(|_| "it is no URL")?;
    let authority = uri.authority().ok_or("it has no host")?;
    if !matches!(uri.scheme_str(), Some("https" | "http")) {
        return Err("it is neither https nor http");
    }
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err("something follows its port");
    }
    if authority.as_str().contains('@') {
        return Err("it has a user in it");
    }
    let host = authority.host();
    let own = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if uri.scheme_str() == Some("http") && !own {
        return Err("over http anybody on the way reads the agents' tokens");
    }
    let port = authority.as_str().strip_prefix(host).unwrap_or_default();
    let as_written =
        |port: &str| port.parse::<u16>().is_ok_and(|number| number > 0 && number.to_string() == port);
    if !port.is_empty() && !port.strip_prefix(':').is_some_and(as_written) {
        return Err("its port is no number from 1 to 65535, without leading zeros");
    }
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    let numbers = || host.rsplit('.').next().is_some_and(|last| last.chars().all(|c| c.is_ascii_digit()));
    let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    if address.is_err() && (!is_domain(&name) || numbers()) {
        return Err("its host is neither an address nor a name");
    }
    Ok(host.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> String {
        let ranges = Ranges { pods: &[], services: &[], dns: &[] };
        check(text, &ranges).map_or_else(|error| error.to_string(), |()| String::new())
    }

    #[test]
    fn addresses_that_no_server_has_are_refused() {
        for (server, what) in [
            ("https://0.0.0.0:6443", "no host's"),
            ("0.0.0.1:6443", "no host's"),
            ("https://224.0.0.1:6443", "multicast"),
            ("255.255.255.255:6443", "broadcast"),
            ("169.254.1.1:6443", "link-local"),
            ("[::]:6443", "no host's"),
            ("https://[fe80::1]:6443", "link-local"),
            ("[ff02::1]:6443", "multicast"),
            ("[::ffff:192.0.2.1]:6443", "written as IPv6"),
        ] {
            assert!(
                said(server).contains(what) && said(server).contains(server),
                "{server}: {}",
                said(server)
            );
        }
        for server in [
            "127.0.0.1:6443",
            "http://127.0.0.1:8080",
            "[::1]:6443",
            "192.0.2.1",
            "https://API.example:443/",
            "[2001:db8::1]:1",
        ] {
            assert_eq!(said(server), "", "{server}");
        }
    }

    #[test]
    fn what_is_no_address_of_a_server_says_why() {
        for (server, why) in [
            ("https://192.0.2.1:06443", "port"),
            ("192.0.2.1:0", "port"),
            ("192.0.2.1:65536", "port"),
            ("192.0.2.1:", "port"),
            ("192.0.2.1:+6443", ""),
            ("192.0.2.300:6443", "neither an address nor a name"),
            ("10.1:6443", "neither an address nor a name"),
            ("api_server:6443", "neither an address nor a name"),
            ("https://you@192.0.2.1:6443", "a user"),
            ("https://192.0.2.1:6443/path", "follows its port"),
            ("ftp://192.0.2.1", "neither https nor http"),
            ("http://192.0.2.1:6443", "reads the agents' tokens"),
            ("[fe80::1%25eth0]:6443", ""),
            ("a,,b", ""),
        ] {
            let said = said(server);
            assert!(said.starts_with("--api-servers") && said.contains(why), "{server}: {said}");
        }
    }
}
