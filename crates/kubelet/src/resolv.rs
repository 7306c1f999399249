//! The text of a pod's /etc/resolv.conf and /etc/hosts. Pure.
//!
//! dnsPolicy (spec dns.md; kubernetes pkg/kubelet/network/dns/dns.go, `GetPodDNS`):
//!
//! | policy                  | nameserver      | search                              | options |
//! |-------------------------|-----------------|-------------------------------------|---------|
//! | ClusterFirst            | the cluster DNS | `<ns>.svc.<zone> svc.<zone> <zone>` | ndots:5 |
//! | ClusterFirst, hostNetwork | as Default    |                                     |         |
//! | ClusterFirstWithHostNet | as ClusterFirst |                                     |         |
//! | Default                 | the node's file |                                     |         |
//! | None                    | only dnsConfig  |                                     |         |

use k8s_openapi::api::core::v1::PodSpec;

/// Where the cluster's DNS is and what zone it serves.
#[derive(Clone, Debug)]
pub struct ClusterDns {
    /// One of each family; none is empty.
    pub servers: Vec<String>,
    pub zone: String,
}

/// kubelet refuses more (pkg/apis/core/validation: MaxDNSNameservers, MaxDNSSearchPaths).
const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCH: usize = 32;

#[derive(Debug, Default, PartialEq, Eq)]
struct Resolv {
    nameservers: Vec<String>,
    search: Vec<String>,
    options: Vec<String>,
}

/// /etc/resolv.conf of a pod of `namespace`; `node` is the text of the node's own file.
pub fn render_resolv(spec: &PodSpec, namespace: &str, dns: &ClusterDns, node: &str) -> String {
    let host_network = spec.host_network.unwrap_or(false);
    let mut resolv = match spec.dns_policy.as_deref().unwrap_or("ClusterFirst") {
        "None" => Resolv::default(),
        "Default" => parse_resolv(node),
        "ClusterFirst" if host_network => parse_resolv(node),
        _ => Resolv {
            nameservers: dns.servers.clone(),
            search: vec![
                format!("{namespace}.svc.{}", dns.zone),
                format!("svc.{}", dns.zone),
                dns.zone.clone(),
            ],
            options: vec!["ndots:5".into()],
        },
    };
    if let Some(config) = &spec.dns_config {
        append_new(&mut resolv.nameservers, config.nameservers.iter().flatten().cloned());
        append_new(&mut resolv.search, config.searches.iter().flatten().cloned());
        for option in config.options.iter().flatten() {
            let Some(name) = &option.name else { continue };
            // An option of dnsConfig replaces one of the same name (`mergeDNSOptions`).
            resolv.options.retain(|old| old.split(':').next() != Some(name));
            resolv.options.push(match &option.value {
                Some(value) => format!("{name}:{value}"),
                None => name.clone(),
            });
        }
    }
    resolv.nameservers.truncate(MAX_NAMESERVERS);
    resolv.search.truncate(MAX_SEARCH);
    resolv.render()
}

impl Resolv {
    fn render(&self) -> String {
        let mut text = String::new();
        if !self.search.is_empty() {
            text += &format!("search {}\n", self.search.join(" "));
        }
        for server in &self.nameservers {
            text += &format!("nameserver {server}\n");
        }
        if !self.options.is_empty() {
            text += &format!("options {}\n", self.options.join(" "));
        }
        text
    }
}

fn parse_resolv(text: &str) -> Resolv {
    let mut resolv = Resolv::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => resolv.nameservers.extend(words.next().map(str::to_owned)),
            Some("search" | "domain") => resolv.search = words.map(str::to_owned).collect(),
            Some("options") => resolv.options.extend(words.map(str::to_owned)),
            _ => {}
        }
    }
    resolv
}

fn append_new(list: &mut Vec<String>, more: impl Iterator<Item = String>) {
    for item in more {
        if !list.contains(&item) {
            list.push(item);
        }
    }
}

/// /etc/hosts of a pod: itself at each of its addresses, and its hostAliases (pkg/kubelet/kubelet_pods.go, `managedHostsFileContent`).
pub fn render_hosts(spec: &PodSpec, hostname: &str, addresses: &[String]) -> String {
    let mut text = String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for address in addresses {
        text += &match &spec.subdomain {
            Some(subdomain) => format!("{address}\t{hostname}.{subdomain}\t{hostname}\n"),
            None => format!("{address}\t{hostname}\n"),
        };
    }
    for alias in spec.host_aliases.iter().flatten() {
        text += &format!(
            "{}\t{}\n",
            alias.ip,
            alias.hostnames.iter().flatten().cloned().collect::<Vec<_>>().join("\t")
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: serde_json::Value) -> PodSpec {
        let mut json = json;
        json["containers"] = serde_json::json!([]);
        serde_json::from_value(json).expect("a pod spec")
    }

    fn render(json: serde_json::Value) -> String {
        let dns = ClusterDns { servers: vec!["10.96.0.10".into()], zone: "cluster.local".into() };
        render_resolv(
            &spec(json),
            "shop",
            &dns,
            "nameserver 203.0.113.10\nsearch corp.example\noptions edns0\n",
        )
    }

    #[test]
    fn cluster_first_searches_the_namespace_first() {
        let expected = "search shop.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n";
        assert_eq!(render(serde_json::json!({})), expected);
        assert_eq!(
            render(serde_json::json!({"hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"})),
            expected
        );
    }

    #[test]
    fn the_host_network_and_default_use_the_nodes_file() {
        let node = "search corp.example\nnameserver 203.0.113.10\noptions edns0\n";
        assert_eq!(render(serde_json::json!({"hostNetwork": true})), node);
        assert_eq!(render(serde_json::json!({"dnsPolicy": "Default"})), node);
    }

    #[test]
    fn dns_config_adds_and_replaces() {
        let config = serde_json::json!({
            "nameservers": ["1.1.1.1", "10.96.0.10"], "searches": ["x.example"],
            "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}],
        });
        assert_eq!(
            render(serde_json::json!({ "dnsConfig": config.clone() })),
            "search shop.svc.cluster.local svc.cluster.local cluster.local x.example\n\
             nameserver 10.96.0.10\nnameserver 1.1.1.1\noptions ndots:2 edns0\n"
        );
        assert_eq!(
            render(serde_json::json!({ "dnsPolicy": "None", "dnsConfig": config })),
            "search x.example\nnameserver 1.1.1.1\nnameserver 10.96.0.10\noptions ndots:2 edns0\n"
        );
    }

    #[test]
    fn hosts_names_the_pod_and_its_aliases() {
        let spec = spec(serde_json::json!({"hostAliases": [{"ip": "10.0.0.1", "hostnames": ["a", "b"]}]}));
        let text = render_hosts(&spec, "web", &["10.244.1.4".to_owned()]);
        assert!(text.ends_with("10.244.1.4\tweb\n10.0.0.1\ta\tb\n"), "{text}");
    }
}
