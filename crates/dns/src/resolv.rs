//! /etc/resolv.conf (resolv.conf(5)): for a node's upstreams and for what a pod's resolver would do.

use std::net::IpAddr;

/// glibc and musl use the first three name servers.
const MAX_SERVERS: usize = 3;

/// What a resolver reads from the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvConf {
    pub servers: Vec<IpAddr>,
    pub search: Vec<String>,
    pub ndots: u32,
}

impl ResolvConf {
    /// Lines that are not understood are stepped over, as every resolver does.
    pub fn parse(text: &str) -> Self {
        let mut conf = Self { servers: Vec::new(), search: Vec::new(), ndots: 1 };
        for line in text.lines() {
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    // A scope (`fe80::1%eth0`) means nothing outside its interface.
                    conf.servers.extend(words.next().and_then(|word| word.parse::<IpAddr>().ok()));
                }
                // The last of `search` and `domain` wins.
                Some("search" | "domain") => conf.search = words.map(str::to_owned).collect(),
                Some("options") => {
                    for ndots in words.filter_map(|word| word.strip_prefix("ndots:")) {
                        conf.ndots = ndots.parse().unwrap_or(conf.ndots).min(15);
                    }
                }
                _ => {}
            }
        }
        conf.servers.truncate(MAX_SERVERS);
        conf
    }

    /// The names that a resolver tries for `name`, in order: with fewer dots than `ndots` the search list goes
    /// first, and a closing dot ends every search.
    pub fn candidates(&self, name: &str) -> Vec<String> {
        if let Some(absolute) = name.strip_suffix('.') {
            return vec![absolute.to_owned()];
        }
        let suffixes = self.search.iter().map(|suffix| suffix.trim_matches('.'));
        let searched = suffixes.map(|s| if s.is_empty() { name.to_owned() } else { format!("{name}.{s}") });
        let dots = name.matches('.').count();
        let literal = std::iter::once(name.to_owned());
        if dots >= self.ndots as usize {
            literal.chain(searched).collect()
        } else {
            searched.chain(literal).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "# pod\nnameserver 10.96.0.10\nsearch shop.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5 timeout:2\n";

    #[test]
    fn a_pods_file_is_read() {
        let conf = ResolvConf::parse(POD);
        assert_eq!(conf.servers, [IpAddr::from([10, 96, 0, 10])]);
        assert_eq!((conf.search.len(), conf.ndots), (3, 5));
        assert_eq!(ResolvConf::parse("garbage\nnameserver x\noptions ndots:x").servers, Vec::<IpAddr>::new());
    }

    #[test]
    fn the_search_list_goes_first_below_ndots() {
        let conf = ResolvConf::parse(POD);
        assert_eq!(conf.candidates("payments")[0], "payments.shop.svc.cluster.local");
        assert_eq!(conf.candidates("payments").last().map(String::as_str), Some("payments"));
        assert_eq!(conf.candidates("a.b.c.d.e.f")[0], "a.b.c.d.e.f");
        assert_eq!(conf.candidates("payments."), ["payments"]);
    }
}
