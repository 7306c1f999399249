//! What the cluster is, as its API tells it, and what of it is in the way.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result, bail};
use clap::Args as ClapArgs;
use ipnet::IpNet;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::{ConfigMap, Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::api::{Api, ListParams, PostParams};
use kube::{Client, ResourceExt};
use model::Ranges;
use model::ranges::joined;
use serde_json::Value;
use types::Family;
use types::range::overlap;
use types::wire::{POD_CIDRS, SERVICE_CIDRS};

use crate::connect::explain;
use crate::findings::Finding;
use crate::given::{PODS, SERVICES};
use crate::manifest::{DNS_SERVICE, LABEL, NAME, NAMESPACE};

/// What was asked for on the command line; everything else is found out.
#[derive(Clone, Debug, Default, ClapArgs)]
pub struct Wanted {
    /// Addresses of all pods, one range for each family with commas between [default: found in the cluster]
    #[arg(long)]
    pub cluster_cidr: Option<String>,
    /// Addresses of Services [default: found in the cluster]
    #[arg(long)]
    pub service_cidr: Option<String>,
    /// Where pods ask for names [default: the kubelets' clusterDNS]
    #[arg(long)]
    pub dns_ip: Option<String>,
    /// The cluster's domain [default: the kubelets' clusterDomain]
    #[arg(long)]
    pub cluster_domain: Option<String>,
    /// Addresses of API servers, with commas between [default: the endpoints of default/kubernetes]
    #[arg(long)]
    pub api_servers: Option<String>,
}

/// A cluster as it was found.
#[derive(Debug)]
pub struct Found {
    pub version: String,
    pub nodes: Vec<Node>,
    pub cluster_cidrs: Vec<IpNet>,
    pub service_cidrs: Vec<IpNet>,
    pub dns_ips: Vec<IpAddr>,
    pub cluster_domain: String,
    pub api_servers: Vec<String>,
    /// The Service at the DNS address is somebody else's.
    pub foreign_dns: bool,
    /// Plumb is here already.
    pub installed: bool,
    pub findings: Vec<Finding>,
    /// Worth knowing, and in nobody's way.
    pub notes: Vec<String>,
}

/// The oldest minor version that this was tried with: streaming lists and ServiceCIDRs are on by default since then.
pub const OLDEST: u32 = 33;

pub async fn find(client: &Client, wanted: &Wanted) -> Result<Found> {
    permissions(client).await?;
    let version = client.apiserver_version().await.map_err(|error| explain(error, "the API's version"))?;
    let nodes: Vec<Node> = list(client, "nodes").await?;
    if nodes.is_empty() {
        bail!("the cluster has no nodes; join one first (kubeadm join), then run this again");
    }
    let mut found = Found {
        version: version.git_version,
        nodes,
        cluster_cidrs: Vec::new(),
        service_cidrs: Vec::new(),
        dns_ips: Vec::new(),
        cluster_domain: "cluster.local".into(),
        api_servers: Vec::new(),
        foreign_dns: false,
        installed: false,
        findings: Vec::new(),
        notes: Vec::new(),
    };
    if version.minor.trim_end_matches('+').parse::<u32>().is_ok_and(|minor| minor < OLDEST) {
        let cause =
            format!("Kubernetes {} is older than 1.{OLDEST}, with which nobody tried Plumb", found.version);
        found.findings.push(Finding::of(
            "version",
            "the cluster",
            cause,
            format!("upgrade it to 1.{OLDEST} or newer"),
        ));
    }
    let kubeadm = kubeadm(client).await;
    found.pod_ranges(wanted, kubeadm.as_deref())?;
    found.service_ranges(client, wanted, kubeadm.as_deref()).await?;
    found.overlaps();
    found.dns(client, wanted).await?;
    found.one_of_each_family();
    found.families_meet();
    found.servers(client, wanted).await?;
    found.others(client).await?;
    Ok(found)
}

async fn list<K>(client: &Client, what: &str) -> Result<Vec<K>>
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let all = Api::<K>::all(client.clone()).list(&ListParams::default()).await;
    Ok(all.map_err(|error| explain(error, &format!("list {what}")))?.items)
}

/// What kubeadm was told, where it made the cluster.
async fn kubeadm(client: &Client) -> Option<String> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
    maps.get_opt("kubeadm-config").await.ok().flatten()?.data?.remove("ClusterConfiguration")
}

/// `networking.FIELD` of a ClusterConfiguration.
fn networking(kubeadm: Option<&str>, field: &str) -> Option<String> {
    let value: Value = serde_saphyr::from_str(kubeadm?).ok()?;
    value["networking"][field].as_str().map(str::to_owned).filter(|text| !text.is_empty())
}

/// Without those that lie in another: ServiceCIDRs may overlap (KEP-1880).
fn widest(ranges: &[IpNet]) -> Vec<IpNet> {
    let mut widest: Vec<IpNet> = Vec::new();
    for range in ranges {
        let within = |other: &IpNet| other != range && other.contains(range);
        if !ranges.iter().any(within) && !widest.contains(range) {
            widest.push(*range);
        }
    }
    widest
}

/// The tenth after a range's own address, which kubeadm gives the cluster's DNS.
pub fn usual_dns(range: &IpNet) -> Option<IpAddr> {
    let address = match range.network() {
        IpAddr::V4(first) => IpAddr::from(Ipv4Addr::from(u32::from(first).checked_add(10)?)),
        IpAddr::V6(first) => IpAddr::from(Ipv6Addr::from(u128::from(first).checked_add(10)?)),
    };
    range.contains(&address).then_some(address)
}

impl Found {
    pub fn node_names(&self) -> Vec<String> {
        self.nodes.iter().map(ResourceExt::name_any).collect()
    }

    fn pod_ranges(&mut self, wanted: &Wanted, kubeadm: Option<&str>) -> Result<()> {
        let mut assigned = Vec::new();
        for node in &self.nodes {
            let spec = node.spec.clone().unwrap_or_default();
            let cidrs = spec.pod_cidrs.unwrap_or_else(|| spec.pod_cidr.into_iter().collect());
            if cidrs.is_empty() {
                self.findings.push(Finding::fatal(
                    format!("node {}", node.name_any()),
                    "it has no pod CIDR (spec.podCIDRs)",
                    "have the controller manager assign them: --allocate-node-cidrs --cluster-cidr=10.244.0.0/16 \
                     (kubeadm init --pod-network-cidr=10.244.0.0/16)",
                ));
            }
            assigned.extend(cidrs.iter().filter_map(|cidr| cidr.parse::<IpNet>().ok()));
        }
        let given = wanted.cluster_cidr.clone().or_else(|| networking(kubeadm, "podSubnet"));
        self.cluster_cidrs = PODS.found(given.as_deref().unwrap_or(POD_CIDRS[0]))?;
        let inside = |cidr: &IpNet| self.cluster_cidrs.iter().any(|range| range.contains(cidr));
        if let Some(outside) = assigned.iter().find(|cidr| !inside(cidr)) {
            self.findings.push(Finding::fatal(
                format!("pod CIDR {outside} of a node"),
                format!("it is not in {}", joined(&self.cluster_cidrs)),
                "give --cluster-cidr as the controller manager has it (with a comma between two families)",
            ));
        }
        Ok(())
    }

    async fn service_ranges(
        &mut self,
        client: &Client,
        wanted: &Wanted,
        kubeadm: Option<&str>,
    ) -> Result<()> {
        let given = wanted.service_cidr.clone();
        let mut listed = Vec::new();
        if given.is_none() {
            // Absent before 1.33.
            let known: Vec<ServiceCIDR> = list(client, "servicecidrs").await.unwrap_or_default();
            listed = known.into_iter().filter_map(|object| object.spec?.cidrs).flatten().collect();
        }
        let listed = (!listed.is_empty()).then(|| listed.join(","));
        let text = given.or(listed).or_else(|| networking(kubeadm, "serviceSubnet"));
        let all = SERVICES.found(text.as_deref().unwrap_or(SERVICE_CIDRS[0]))?;
        self.service_cidrs = widest(&all);
        let kubernetes: Api<Service> = Api::namespaced(client.clone(), "default");
        let service =
            kubernetes.get_opt("kubernetes").await.map_err(|e| explain(e, "Service default/kubernetes"))?;
        let ip =
            service.and_then(|service| service.spec?.cluster_ip).and_then(|ip| ip.parse::<IpAddr>().ok());
        if let Some(ip) = ip.filter(|ip| !self.service_cidrs.iter().any(|range| range.contains(ip))) {
            self.findings.push(Finding::fatal(
                format!("--service-cidr {}", joined(&self.service_cidrs)),
                format!("the Service default/kubernetes has {ip}, which is not in it"),
                "give --service-cidr as the API server has it (--service-cluster-ip-range)",
            ));
        }
        Ok(())
    }

    fn overlaps(&mut self) {
        let mut all: Vec<(&str, &IpNet)> = self.cluster_cidrs.iter().map(|cidr| ("pods", cidr)).collect();
        all.extend(self.service_cidrs.iter().map(|cidr| ("Services", cidr)));
        for pods in &self.cluster_cidrs {
            if let Some(services) = self.service_cidrs.iter().find(|services| overlap(pods, services)) {
                self.findings.push(Finding::fatal(
                    format!("the pods' range {pods}"),
                    format!("it overlaps that of Services, {services}"),
                    "give ranges that do not, to the controller manager or the API server, and then here",
                ));
            }
        }
        for node in &self.nodes {
            let addresses = node.status.clone().unwrap_or_default().addresses.unwrap_or_default();
            for address in addresses.iter().filter_map(|address| address.address.parse::<IpAddr>().ok()) {
                let Some((whose, range)) = all.iter().find(|(_, range)| range.contains(&address)) else {
                    continue;
                };
                self.findings.push(Finding::fatal(
                    format!("node {}", node.name_any()),
                    format!("its address {address} lies in {range}, the range of {whose}"),
                    "choose a range that no machine of your network has (kubeadm: podSubnet, serviceSubnet)",
                ));
            }
        }
    }

    /// Agents take no others.
    fn one_of_each_family(&mut self) {
        let services = "the agents take one: give --service-cidr a range that holds all of them, or delete what is \
                        too much (kubectl get servicecidrs)";
        let pods = "give --cluster-cidr one range of each family, which holds every node's";
        let (service_cidrs, cluster_cidrs) = (joined(&self.service_cidrs), joined(&self.cluster_cidrs));
        let of_ranges = |ranges: &[IpNet]| Family::several(ranges.iter().map(Family::of_net));
        for (object, several, next) in [
            (format!("the pods' ranges {cluster_cidrs}"), of_ranges(&self.cluster_cidrs), pods),
            (format!("the Services' ranges {service_cidrs}"), of_ranges(&self.service_cidrs), services),
            (
                format!("the DNS addresses {}", joined(&self.dns_ips)),
                Family::several(self.dns_ips.iter().copied().map(Family::of)),
                "give --dns-ip one address of each family, and the same to the kubelets as clusterDNS",
            ),
        ] {
            if let Some(family) = several {
                self.findings.push(Finding::fatal(object, format!("more than one is {family}"), next));
            }
        }
    }

    fn families_meet(&mut self) {
        let ranges = Ranges { pods: &self.cluster_cidrs, services: &self.service_cidrs, dns: &self.dns_ips };
        if let Err(why) = ranges.meet() {
            let object = "the ranges of pods, Services and DNS";
            let next = "the flags of the controller manager, the API server and the kubelets have to be of one family";
            self.findings.push(Finding::fatal(object, why, next));
        }
    }

    /// What the kubelets tell pods to ask; else the Service's address; else what kubeadm would take.
    async fn dns(&mut self, client: &Client, wanted: &Wanted) -> Result<()> {
        let services: Api<Service> = Api::namespaced(client.clone(), NAMESPACE);
        let what = format!("Service {NAMESPACE}/{DNS_SERVICE}");
        let service = services.get_opt(DNS_SERVICE).await.map_err(|error| explain(error, &what))?;
        self.foreign_dns =
            service.as_ref().is_some_and(|s| s.labels().get(LABEL).map(String::as_str) != Some(NAME));
        let holds = service.and_then(|service| service.spec?.cluster_ip);
        let kubelet = self.kubelet(client).await;
        let of_kubelet = kubelet.as_ref().and_then(|config| {
            let list = config["clusterDNS"].as_array()?;
            Some(list.iter().filter_map(|ip| ip.as_str()).collect::<Vec<_>>().join(","))
                .filter(|text| !text.is_empty())
        });
        let usual = || self.service_cidrs.first().and_then(usual_dns).map(|ip| ip.to_string());
        let text =
            wanted.dns_ip.clone().or(of_kubelet.clone()).or(holds.clone()).or_else(usual).unwrap_or_default();
        for word in text.split(',').map(str::trim) {
            // One that was given has been read before.
            let ip: IpAddr = word
                .parse()
                .with_context(|| format!("the cluster's DNS address {word:?} is none; give --dns-ip"))?;
            if !self.service_cidrs.iter().any(|range| range.contains(&ip)) {
                self.findings.push(Finding::fatal(
                    format!("the DNS address {ip}"),
                    format!("it is not in the range of Services, {}", joined(&self.service_cidrs)),
                    "give --dns-ip, and the same to the kubelets as clusterDNS",
                ));
            }
            self.dns_ips.push(ip);
        }
        let first = self.dns_ips.first().map(ToString::to_string);
        if let (Some(held), Some(first)) = (&holds, &first)
            && held != first
        {
            self.findings.push(Finding::fatal(
                what.clone(),
                format!("it has the address {held}, but the kubelets tell pods to ask {first}"),
                format!("delete the Service, or have clusterDNS of every kubelet and --dns-ip be {held}"),
            ));
        }
        if self.foreign_dns {
            self.notes.push(format!(
                "{what} belongs to another DNS server (CoreDNS?): it stays as it is, but from now on each node's \
                 agent answers at its address. Names of the cluster and of the world are the same; zones of its own \
                 configuration (Corefile) are not taken over. Then: kubectl -n {NAMESPACE} scale deployment coredns \
                 --replicas=0"
            ));
        }
        let domain = kubelet.and_then(|config| config["clusterDomain"].as_str().map(str::to_owned));
        self.cluster_domain =
            wanted.cluster_domain.clone().or(domain).unwrap_or_else(|| "cluster.local".into());
        Ok(())
    }

    /// The configuration of one kubelet that answers.
    async fn kubelet(&self, client: &Client) -> Option<Value> {
        for node in self.nodes.iter().take(3) {
            let path = format!("/api/v1/nodes/{}/proxy/configz", node.name_any());
            let request = http::Request::get(path).body(Vec::new()).ok()?;
            if let Ok(answer) = client.request::<Value>(request).await {
                return Some(answer["kubeletconfig"].clone());
            }
        }
        None
    }

    /// Where the API servers themselves are: the agents cannot use the Service that they are to carry.
    async fn servers(&mut self, client: &Client, wanted: &Wanted) -> Result<()> {
        if let Some(text) = &wanted.api_servers {
            self.api_servers = text.split(',').map(str::to_owned).collect();
            return Ok(());
        }
        let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), "default");
        let selected = ListParams::default().labels("kubernetes.io/service-name=kubernetes");
        let slices =
            slices.list(&selected).await.map_err(|error| explain(error, "EndpointSlices of the API"))?;
        for slice in slices.items {
            let port = slice.ports.unwrap_or_default().first().and_then(|port| port.port).unwrap_or(6443);
            for address in slice.endpoints.iter().flatten().flat_map(|endpoint| endpoint.addresses.clone()) {
                let host = if address.contains(':') { format!("[{address}]") } else { address };
                self.api_servers.push(format!("https://{host}:{port}"));
            }
        }
        Ok(())
    }

    /// Who else carries Services or pods here.
    async fn others(&mut self, client: &Client) -> Result<()> {
        let sets: Vec<DaemonSet> = list(client, "daemonsets").await?;
        for set in &sets {
            let (namespace, name) = (set.namespace().unwrap_or_default(), set.name_any());
            let running = set.status.as_ref().is_some_and(|status| status.desired_number_scheduled > 0);
            if namespace == NAMESPACE && name == NAME {
                self.installed = true;
            } else if name == "kube-proxy" && running {
                self.findings.push(Finding::of(
                    "kube-proxy",
                    format!("DaemonSet {namespace}/{name}"),
                    "it carries Services too: whichever of the two sees a packet first chooses its endpoint, and \
                     NodePorts are taken twice",
                    format!(
                        "kubectl -n {namespace} patch daemonset {name} -p '{{\"spec\":{{\"template\":{{\"spec\":\
                         {{\"nodeSelector\":{{\"plumb.dev/kube-proxy\":\"yes\"}}}}}}}}}}' (pods keep their \
                         connections; its rules go with the next boot, or with kube-proxy --cleanup on each node)"
                    ),
                ));
            }
        }
        Ok(())
    }
}

/// What this program itself will do; the agents' rights are among what it gives away, which takes the same rights.
const NEEDED: [(&str, &str, &str, bool); 9] = [
    ("", "nodes", "list", false),
    ("", "serviceaccounts", "create", true),
    ("", "services", "create", true),
    ("", "pods", "create", true),
    ("", "pods", "deletecollection", true),
    ("apps", "daemonsets", "create", true),
    ("rbac.authorization.k8s.io", "clusterroles", "create", false),
    ("rbac.authorization.k8s.io", "clusterrolebindings", "create", false),
    ("authentication.k8s.io", "tokenreviews", "create", false),
];

async fn permissions(client: &Client) -> Result<()> {
    let mut missing = Vec::new();
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    for (group, resource, verb, namespaced) in NEEDED {
        let attributes = ResourceAttributes {
            group: Some(group.into()),
            resource: Some(resource.into()),
            verb: Some(verb.into()),
            namespace: namespaced.then(|| NAMESPACE.into()),
            ..ResourceAttributes::default()
        };
        let spec =
            SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() };
        let review = SelfSubjectAccessReview { spec, ..Default::default() };
        let answer = reviews.create(&PostParams::default(), &review).await;
        let answer =
            answer.map_err(|error| explain(error, "ask what you may do (SelfSubjectAccessReview)"))?;
        if !answer.status.is_some_and(|status| status.allowed) {
            missing.push(format!("{verb} {resource}{}", if namespaced { " in kube-system" } else { "" }));
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    bail!(
        "this kubeconfig's user may not: {}; take an administrator's kubeconfig, or have one run `kubectl create \
         clusterrolebinding NAME --clusterrole=cluster-admin --user=YOU`",
        missing.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(text: &str) -> Vec<IpNet> {
        PODS.found(text).unwrap()
    }

    #[test]
    fn the_usual_dns_address_is_the_tenth_of_either_family() {
        for (range, address) in [
            ("10.96.0.0/12", Some("10.96.0.10")),
            ("fd00:10:96::/112", Some("fd00:10:96::a")),
            ("10.96.0.0/30", None),
            ("255.255.255.255/32", None),
        ] {
            let address = address.map(|text| text.parse::<IpAddr>().unwrap());
            assert_eq!(usual_dns(&range.parse().unwrap()), address, "{range}");
        }
    }

    #[test]
    fn a_range_within_another_does_not_count() {
        assert_eq!(widest(&nets("10.96.0.0/16,10.96.0.0/12,10.96.0.0/12")), nets("10.96.0.0/12"));
        let apart = nets("10.96.0.0/16,10.112.0.0/16,fd00:10:96::/112");
        assert_eq!(widest(&apart), apart);
    }
}
