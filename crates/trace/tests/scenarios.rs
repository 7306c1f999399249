//! The scenarios: each `scenarios/NAME.yaml` holds packets and the manifests they meet; `NAME.out` beside it says
//! what becomes of each packet and what the manifests add to the kernel's state. `UPDATE=1` rewrites the latter;
//! read the difference before you commit it. The packets' fates come from running the compiled rules, and must
//! be what the semantics allow, so a golden file cannot record a mistake that only one of the two makes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use compile::role::Role;
use compile::whole;
use model::{Attachment, Cluster, Event, HostPort, Kind, Row, from_k8s};
use semantics::Settings;
use serde::Deserialize;
use serde_json::{Value, json};
use trace::eval::{self, End, Kernel};
use trace::packet::{CtState, Packet, Place};
use trace::reference::{Fate, fates};
use types::wire::{DNS_IPS, POD_CIDRS, SERVICE_CIDRS};
use types::{Families, Family, IfName, IpNet, Mac, ObjectName, Protocol, hash8};

/// The first document of a scenario.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Scenario {
    /// What it is about, with the ids of the checklist lines that it proves.
    about: String,
    /// Whose rules are looked at.
    node: String,
    /// Of which families nodes, pods and Services have addresses: ipv4, ipv6 or dual.
    #[serde(default)]
    families: Families,
    /// Whether that node's agent answers DNS.
    #[serde(default = "yes")]
    dns_here: bool,
    /// The agents' `--allow-sources`.
    #[serde(default)]
    allow_sources: Vec<String>,
    packets: Vec<Asked>,
}

fn yes() -> bool {
    true
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    /// `namespace/pod`, `node`, or an address outside.
    from: String,
    to: SocketAddr,
    #[serde(default)]
    protocol: Protocol,
    /// A further source of the pod.
    #[serde(default, rename = "as")]
    source: Option<IpAddr>,
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scenarios")
}

impl Scenario {
    fn settings(&self) -> Settings {
        let of = |choices: [&str; 2]| -> Vec<IpNet> {
            self.families.list().iter().map(|f| f.pick(choices).parse().expect("a prefix")).collect()
        };
        Settings {
            node: self.node.clone(),
            pod_pools: of(POD_CIDRS),
            unmasqueraded: of(POD_CIDRS),
            service_cidrs: of(SERVICE_CIDRS),
            dns_ips: self
                .families
                .list()
                .iter()
                .map(|f| f.pick(DNS_IPS).parse().expect("an address"))
                .collect(),
            allow_sources: self.allow_sources.iter().map(|net| net.parse().expect("a prefix")).collect(),
            api: vec!["192.168.1.2:6443".parse().expect("an address")],
            backend: types::Backend::default(),
            fabric: types::Fabric::default(),
            wiring: types::Wiring::default(),
            mtu: 1450,
            uplinks: BTreeSet::new(),
        }
    }

    /// Two nodes as the lab has them, and the namespaces that every cluster has.
    fn given(&self) -> Vec<Value> {
        let of = |choices: [String; 2]| -> Vec<String> {
            self.families.list().iter().map(|family| family.pick(choices.clone())).collect()
        };
        let node = |n: u8| {
            let own = of([format!("192.168.1.{}", 9 + n), format!("fd00:192:168:1::{}", 9 + n)]);
            let addresses: Vec<Value> =
                own.iter().map(|address| json!({"type": "InternalIP", "address": address})).collect();
            json!({
                "apiVersion": "v1", "kind": "Node",
                "metadata": {"name": format!("node{n}"),
                    "annotations": {"plumb.dev/vtep-mac": compile::fabric::vxlan::vtep_mac(&format!("node{n}")).to_string()}},
                "spec": {"podCIDRs": of([format!("10.244.{n}.0/24"), format!("fd00:10:244:{n}::/64")])},
                "status": {"addresses": addresses},
            })
        };
        let namespace = |name: &str| {
            json!({"apiVersion": "v1", "kind": "Namespace",
                "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}}})
        };
        vec![node(1), node(2), namespace("default"), namespace("kube-system")]
    }
}

fn row(manifest: Value, diagnostics: &mut BTreeSet<String>) -> Option<Row> {
    fn read<T: for<'a> Deserialize<'a>>(manifest: &Value) -> T {
        serde_json::from_value(manifest.clone()).unwrap_or_else(|error| panic!("{error}: {manifest}"))
    }
    let kind = manifest["kind"].as_str().unwrap_or_default().to_owned();
    let mut note = |found: Vec<model::Diagnostic>| diagnostics.extend(found.iter().map(ToString::to_string));
    macro_rules! converted {
        ($convert:path) => {{
            let converted = $convert(&read(&manifest));
            note(converted.diagnostics);
            converted.row
        }};
    }
    Some(match kind.as_str() {
        "Node" => Row::Node(converted!(from_k8s::node)),
        "Namespace" => Row::Namespace(converted!(from_k8s::namespace)),
        "Pod" => Row::Pod(Box::new(converted!(from_k8s::pod))),
        "Service" => Row::Service(Box::new(converted!(from_k8s::service))),
        "EndpointSlice" => Row::EndpointSlice(converted!(from_k8s::endpoint_slice)?),
        "NetworkPolicy" => Row::Policy(Box::new(converted!(from_k8s::policy))),
        other => panic!("a scenario cannot hold {other:?}"),
    })
}

/// What the kubelet would hand to CNI for a pod.
fn host_ports(manifest: &Value) -> Vec<HostPort> {
    let containers = manifest["spec"]["containers"].as_array().into_iter().flatten();
    let ports = containers.flat_map(|container| container["ports"].as_array().into_iter().flatten());
    let number = |value: &Value| value.as_u64().and_then(|n| u16::try_from(n).ok());
    ports
        .filter_map(|port| {
            Some(HostPort {
                protocol: port["protocol"].as_str().unwrap_or("TCP").parse().expect("a protocol"),
                port: number(&port["hostPort"])?,
                container_port: number(&port["containerPort"])?,
                host_ip: port["hostIP"].as_str().map(|ip| ip.parse().expect("an address")),
            })
        })
        .collect()
}

/// The cluster, with each pod of the node wired to it.
fn cluster(manifests: Vec<Value>, node: &str, diagnostics: &mut BTreeSet<String>) -> Cluster {
    let mut cluster = Cluster::default();
    for kind in Kind::ALL {
        cluster.apply(Event::Start(kind));
        cluster.apply(Event::Done(kind));
    }
    let mut ports = BTreeMap::new();
    for manifest in manifests {
        let meta = &manifest["metadata"];
        let name = |field: &str| meta[field].as_str().unwrap_or_default();
        ports.insert(ObjectName::new(name("namespace"), name("name")), host_ports(&manifest));
        if let Some(row) = row(manifest, diagnostics) {
            cluster.apply(Event::Upsert(row));
        }
    }
    let here = cluster.pods.values().filter(|p| p.node.as_deref() == Some(node) && !p.host_network);
    let attachments: Vec<_> = here
        .map(|pod| Attachment {
            wiring: types::Wiring::default(),
            container: pod.key.to_string(),
            pod: pod.key.clone(),
            uid: pod.uid.clone(),
            ips: pod.ips.clone(),
            host_if: IfName::new(&format!("veth{}", hash8(&pod.key.to_string()))).expect("a name"),
            mac: Mac::default(),
            host_ports: ports.get(&pod.key).cloned().unwrap_or_default(),
            withheld: Vec::new(),
        })
        .collect();
    // Endpoints on the node whose pods are not written out.
    let slices = cluster.slices.values().flat_map(|slice| &slice.endpoints);
    let there = slices.filter(|endpoint| endpoint.node.as_deref() == Some(node));
    let unwritten: BTreeSet<IpAddr> = there.map(|endpoint| endpoint.address).collect();
    let known = |ip: &IpAddr| cluster.pods.values().any(|pod| pod.ips.contains(ip));
    let unwritten = unwritten.into_iter().filter(|ip| !known(ip)).map(|ip| Attachment {
        wiring: types::Wiring::default(),
        container: ip.to_string(),
        pod: ObjectName::new("", ip.to_string()),
        uid: String::new(),
        ips: vec![ip],
        host_if: IfName::new(&format!("veth{}", hash8(&ip.to_string()))).expect("a name"),
        mac: Mac::default(),
        host_ports: Vec::new(),
        withheld: Vec::new(),
    });
    let attachments: Vec<_> = attachments.into_iter().chain(unwritten).collect();
    for attachment in attachments {
        cluster.apply(Event::Upsert(Row::Attachment(Box::new(attachment))));
    }
    cluster
}

fn packet(asked: &Asked, cluster: &Cluster, node: &str) -> Packet {
    let Ok(name) = asked.from.parse::<ObjectName>();
    let family = Family::of(asked.to.ip());
    let own = |ips: &[IpAddr]| {
        let of_family = ips.iter().copied().find(|ip| Family::of(*ip) == family);
        of_family.unwrap_or_else(|| panic!("{} has no {family} address: {ips:?}", asked.from))
    };
    let (iif, src) = match cluster.pods.get(&name) {
        Some(pod) if pod.node.as_deref() == Some(node) => {
            (Some("cni0"), asked.source.unwrap_or_else(|| own(&pod.ips)))
        }
        Some(pod) => (Some("plumb.1"), own(&pod.ips)),
        None if asked.from == "node" => (None, own(&cluster.nodes[node].addresses)),
        None => (Some("eth0"), asked.from.parse().expect("a pod, `node` or an address")),
    };
    Packet {
        iif: iif.map(|name| IfName::new(name).expect("a name")),
        src,
        dst: asked.to.ip(),
        protocol: asked.protocol,
        sport: 40000,
        dport: asked.to.port(),
        ct: CtState::New,
    }
}

fn fate(path: &eval::Path) -> Fate {
    match path.end {
        End::Local => Fate::Local(path.destination),
        End::Out(_) => Fate::Out { to: path.destination, masquerade: path.masquerade },
        End::Rejected => Fate::Rejected,
        End::Dropped | End::Unreachable => Fate::Dropped,
    }
}

fn say(fate: &Fate) -> String {
    match fate {
        Fate::Local(to) => format!("to the node, {to}"),
        Fate::Out { to, masquerade: false } => format!("to {to}"),
        Fate::Out { to, masquerade: true } => format!("to {to}, masqueraded"),
        Fate::Rejected => "rejected".to_owned(),
        Fate::Dropped => "dropped".to_owned(),
    }
}

/// Drift and traces lead an object to a hop by its role, and know it by its name alone.
fn each_object_has_a_role(nft: &kstate::nft::Ruleset) {
    for (id, table) in &nft.tables {
        let nameless = table.chains.keys().filter(|chain| Role::of_chain(chain).is_none());
        assert_eq!(nameless.collect::<Vec<_>>(), Vec::<&String>::new(), "chains of {id}");
        let nameless = table.sets.keys().filter(|set| Role::of_set(set).is_none());
        assert_eq!(nameless.collect::<Vec<_>>(), Vec::<&std::sync::Arc<str>>::new(), "sets of {id}");
    }
}

/// What a scenario comes to, as its golden file says it.
fn play(text: &str) -> String {
    let mut documents: Vec<Value> = serde_saphyr::from_multiple(text).expect("YAML");
    let scenario: Scenario = serde_json::from_value(documents.remove(0)).expect("a scenario");
    let node = scenario.node.as_str();
    let mut diagnostics = BTreeSet::new();
    let empty = cluster(scenario.given(), node, &mut diagnostics);
    let full = cluster(scenario.given().into_iter().chain(documents).collect(), node, &mut diagnostics);
    let before = whole(empty.synced().expect("synced"), scenario.settings());
    let desired = whole(full.synced().expect("synced"), scenario.settings());
    diagnostics.extend(desired.diagnostics.iter().map(ToString::to_string));

    each_object_has_a_role(&desired.nft);

    let mut out = format!("# {}\n\n", scenario.about);
    let Settings { pod_pools, unmasqueraded, service_cidrs, dns_ips, allow_sources, api, .. } =
        scenario.settings();
    let dns_here = scenario.dns_here;
    let node_name = node.to_owned();
    let of_link = Vec::new();
    let place = Place {
        fabric: types::Fabric::default(),
        wiring: types::Wiring::default(),
        node: node_name,
        pod_pools,
        unmasqueraded,
        service_cidrs,
        dns_ips,
        allow_sources,
        api,
        dns_here,
        of_link,
        broadcasts: Vec::new(),
    };
    let local = &full.nodes[node].addresses;
    let socket = dns_here.then_some(false);
    let kernel = Kernel { nft: &desired.nft, net: &desired.net, local, socket };
    for asked in &scenario.packets {
        let packet = packet(asked, &full, node);
        let paths = eval::all(&packet, &kernel);
        let found: BTreeSet<_> = paths.iter().map(fate).collect();
        assert_eq!(found, fates(&packet, &full, &place), "{}: {packet:?}\n{paths:#?}", scenario.about);
        let fates: Vec<_> = found.iter().map(say).collect();
        let source = asked.source.map(|source| format!(" as {source}")).unwrap_or_default();
        let fates = fates.join(" | ");
        writeln!(out, "{}{source} → {} {}: {fates}", asked.from, asked.protocol, asked.to).expect("a string");
        // The rule that ended it, where one did.
        if let Some(step) = paths
            .iter()
            .filter_map(|p| p.steps.last())
            .find(|s| ["drop", "reject"].contains(&s.action.as_str()))
        {
            writeln!(out, "    {} in {}: {}", step.action, step.chain, step.comment).expect("a string");
        }
    }
    let plan = kstate::nft::diff(&desired.nft, &before.nft);
    write!(out, "\nnode {node} gains\n\n{}", plan.show(&desired.nft)).expect("a string");
    if !diagnostics.is_empty() {
        out.push_str("\n\ndiagnostics\n\n");
        out.extend(diagnostics.iter().map(|line| format!("{line}\n")));
    }
    format!("{}\n", out.trim_end())
}

#[test]
fn scenarios_come_out_as_their_golden_files_say() {
    let update = std::env::var_os("UPDATE").is_some();
    let mut inputs: Vec<_> = std::fs::read_dir(directory())
        .expect("scenarios/")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|e| e == "yaml"))
        .collect();
    inputs.sort();
    assert!(inputs.len() >= 12, "only {} scenarios found", inputs.len());
    let mut wrong = Vec::new();
    for input in inputs {
        let result = play(&std::fs::read_to_string(&input).expect("a readable scenario"));
        let golden = input.with_extension("out");
        if update {
            std::fs::write(&golden, &result).expect("a writable golden file");
        } else if std::fs::read_to_string(&golden).unwrap_or_default() != result {
            wrong.push(format!("{}:\n{result}", golden.display()));
        }
    }
    assert!(wrong.is_empty(), "not as written (UPDATE=1 rewrites):\n{}", wrong.join("\n"));
}
