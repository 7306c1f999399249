//! The network of a lab of two nodes: who reaches whom, under which address, by which way, and what is refused.
//!
//! ```text
//!   node1  echo1 echo3 friend1 guarded1 mute1   host1 (host network, :18080)
//!   node2  echo2 echo4         guarded2         host2
//! ```

mod agentless;
mod captures;
mod names;
mod policies;
mod reach;

use std::collections::BTreeMap;

use crate::cluster::{Checks, Kubectl, Lab};

const NS: &str = "mesh";
const SERVE: &str = r#"serve, --http, "8080", --tcp, "9000", --udp, "9001""#;
const ECHOS: [&str; 4] = ["echo1", "echo2", "echo3", "echo4"];

/// The lab, and what its pods and services are called in packets.
struct Mesh {
    lab: Lab,
    pods: BTreeMap<String, String>,
    services: BTreeMap<String, String>,
}

impl Mesh {
    fn up() -> Self {
        let lab = Lab::up(2);
        let mut manifest = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NS}}}\n");
        for (name, node) in [
            ("echo1", "node1"),
            ("echo2", "node2"),
            ("echo3", "node1"),
            ("echo4", "node2"),
            ("friend1", "node1"),
            ("guarded1", "node1"),
            ("guarded2", "node2"),
            ("mute1", "node1"),
        ] {
            manifest += &Lab::pod(NS, name, &format!("nodeName: {node}"), SERVE);
        }
        for node in ["node1", "node2"] {
            let place = format!("nodeName: {node}\n  hostNetwork: true");
            manifest += &Lab::pod(NS, &node.replace("node", "host"), &place, r#"serve, --http, "18080""#);
        }
        lab.apply(&format!("{manifest}---\n{}", include_str!("network/mesh.yaml")));
        lab.wait_ready(NS);
        let pods = named(&lab, "pods", "/status/podIP");
        let services = named(&lab, "services", "/spec/clusterIP");
        Self { lab, pods, services }
    }

    fn ip(&self, pod: &str) -> &str {
        &self.pods[pod]
    }

    fn service(&self, name: &str) -> &str {
        &self.services[name]
    }

    /// `plumb demo …` in a pod.
    #[track_caller]
    fn ask(&self, pod: &str, args: &[&str]) -> Answer {
        Answer(self.lab.demo_ok(NS, pod, args))
    }
}

fn named(lab: &Lab, kind: &str, field: &str) -> BTreeMap<String, String> {
    let list = lab.get(&["-n", NS, kind]);
    let text = |object: &serde_json::Value, field| {
        object.pointer(field).and_then(|value| value.as_str().map(str::to_owned))
    };
    let items = list["items"].as_array().expect("a list");
    items.iter().filter_map(|object| Some((text(object, "/metadata/name")?, text(object, field)?))).collect()
}

/// `name=echo1 peer=10.244.1.2:48248 local=10.244.2.3:8080`
struct Answer(String);

impl Answer {
    fn field(&self, name: &str) -> &str {
        let field = self.0.split_ascii_whitespace().find_map(|word| word.strip_prefix(&format!("{name}=")));
        field.unwrap_or_else(|| panic!("no {name} in {:?}", self.0))
    }

    fn name(&self) -> &str {
        self.field("name")
    }

    /// The address that the server saw.
    fn peer(&self) -> &str {
        self.field("peer").rsplit_once(':').expect("address and port").0
    }
}

#[test]
fn the_network_of_a_lab() {
    let mesh = Mesh::up();
    let mut checks = Checks::default();
    reach::checks(&mesh, &mut checks);
    names::checks(&mesh, &mut checks);
    policies::checks(&mesh, &mut checks);
    captures::checks(&mesh, &mut checks);
    agentless::checks(&mesh, &mut checks);
}
