//! /etc/hosts (hosts(5)): what a pod's resolver reads before it asks anybody.

use std::net::IpAddr;

/// The lines of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hosts(Vec<(IpAddr, Vec<String>)>);

impl Hosts {
    /// Lines that are not understood are stepped over.
    pub fn parse(text: &str) -> Self {
        let line = |line: &str| {
            let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
            let address = words.next()?.parse().ok()?;
            Some((address, words.map(str::to_owned).collect()))
        };
        Self(text.lines().filter_map(line).collect())
    }

    /// The addresses of a name, in the order of the file. Names are alike whatever their case (RFC 952).
    pub fn addresses(&self, name: &str) -> Vec<IpAddr> {
        let has = |names: &[String]| names.iter().any(|known| known.eq_ignore_ascii_case(name));
        self.0.iter().filter(|(_, names)| has(names)).map(|(address, _)| *address).collect()
    }

    /// Each address with its names.
    pub fn entries(&self) -> impl Iterator<Item = (IpAddr, &[String])> {
        self.0.iter().map(|(address, names)| (*address, names.as_slice()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_file_is_read() {
        let text = "# Kubernetes-managed\n127.0.0.1\tlocalhost\n::1 localhost ip6-localhost # both\nx y\n10.244.1.4\tweb web.shop\n\n";
        let hosts = Hosts::parse(text);
        let [v4, v6]: [IpAddr; 2] = ["127.0.0.1", "::1"].map(|text| text.parse().unwrap());
        assert_eq!(hosts.addresses("localhost"), [v4, v6]);
        assert_eq!(hosts.addresses("WEB.shop"), [IpAddr::from([10, 244, 1, 4])]);
        assert_eq!(hosts.addresses("both"), Vec::<IpAddr>::new());
        assert_eq!(hosts.entries().count(), 3);
    }
}
