//! What a resolver would take for a name or an address, said before anybody is asked.

use std::net::IpAddr;

use anyhow::{Result, bail};

/// With the link of a link-local one behind it (RFC 4007 §11).
pub fn address(host: &str) -> Option<IpAddr> {
    host.split('%').next().unwrap_or_default().parse().ok()
}

/// A name or an address.
pub fn check(host: &str) -> Result<()> {
    if address(host).is_some() {
        return Ok(());
    }
    let last = host.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
    // No top-level domain is a number (RFC 3696 §2).
    if !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit()) {
        bail!("{host:?} is no address: one has four numbers from 0 to 255, as 10.244.1.3");
    }
    if host.contains(':') {
        bail!(
            "{host:?} is no address; in front of a port an IPv6 address stands in brackets, as [fd00::1]:80"
        );
    }
    name(host)
}

/// A name alone, as `plumb dns` looks it up.
pub fn only_name(text: &str) -> Result<()> {
    if let Some((_, rest)) = text.split_once("://") {
        let host = rest.split(['/', ':']).next().unwrap_or_default();
        bail!("{text:?} is a URL, and names are looked up: give its host, {host:?}");
    }
    if address(text).is_some() {
        bail!(
            "{text} is an address, and names are looked up: give a name. `kubectl get services,pods -A -o wide` shows who \
             has an address"
        );
    }
    if let Some((name, port)) = text.split_once(':')
        && port.bytes().all(|byte| byte.is_ascii_digit())
    {
        bail!("{text:?} has a port, and names are looked up: give {name:?}");
    }
    check(text)
}

/// RFC 1035 §2.3.4; hosts have letters, digits and hyphens, and records of services underscores.
fn name(text: &str) -> Result<()> {
    let whole = text.strip_suffix('.').unwrap_or(text);
    let why = match whole {
        "" => "it is empty".to_owned(),
        _ if whole.len() > 253 => "it has more than 253 letters".to_owned(),
        _ if whole.split('.').any(str::is_empty) => "there is nothing between two of its dots".to_owned(),
        _ if whole.split('.').any(|label| label.len() > 63) => {
            "a part of it has more than 63 letters".to_owned()
        }
        _ => match whole.chars().find(|c| !c.is_ascii_alphanumeric() && !"-_.".contains(*c)) {
            Some(other) => format!("{other:?} stands in no name"),
            None => return Ok(()),
        },
    };
    bail!("{text:?} is no name: {why}; give one as api, api.shop or api.shop.svc.cluster.local")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_name_is_refused_with_the_reason() {
        for text in ["api", "api.shop.svc.cluster.local.", "_http._tcp.api.shop", "1st", "localhost"] {
            only_name(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        }
        let long = "a".repeat(64);
        for (text, word) in [
            ("", "empty"),
            (".", "empty"),
            ("a..b", "between two of its dots"),
            ("pay ments", "' '"),
            (long.as_str(), "63"),
            ("http://api:8080/x", "give its host, \"api\""),
            ("api:8080", "give \"api\""),
            ("10.96.8.89", "is an address"),
            ("fd00::1", "is an address"),
            ("10.244.1.300", "no address"),
            ("shop/api", "'/'"),
        ] {
            let error = only_name(text).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
