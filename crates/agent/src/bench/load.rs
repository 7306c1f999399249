//! The cluster that is loaded, and its changes, as the API's JSON has them.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use model::{Event, Kind, Node, Row, from_k8s};
use serde_json::json;

use super::subject::NODE;

#[derive(Clone, Copy, Debug)]
pub enum Change {
    Replace,
    Resize,
}

/// A cluster of equal Services.
pub struct Load {
    services: u32,
    endpoints: u32,
    rows: Vec<Row>,
}

impl Load {
    pub fn new(services: u32, endpoints: u32) -> Result<Self> {
        let mut load = Self { services, endpoints, rows: vec![Row::Node(node()?)] };
        for service in 0..services {
            load.rows.push(service_row(service)?);
            let addresses: Vec<u32> = (0..endpoints).collect();
            load.rows.push(slice_row(&slice(service, &addresses)?)?);
        }
        Ok(load)
    }

    /// The first lists of all kinds.
    pub fn events(&self) -> Vec<Event> {
        let start = Kind::ALL.into_iter().filter(|kind| *kind != Kind::Attachment).map(Event::Start);
        let upserts = self.rows.iter().cloned().map(Event::Upsert);
        let done = Kind::ALL.into_iter().map(Event::Done);
        // The loop has listed its attachments itself; for the floor the second `Done` is the first.
        start.chain(upserts).chain(done).collect()
    }

    /// The slice of another Service each time, as a watch would send it after its change number `number`.
    pub fn changed(&self, change: Change, number: u32) -> Result<Vec<u8>> {
        // Any spread over services will do, as long as it is the same in every run. Both kinds of change meet
        // different services, so that a replaced endpoint never changes how many there are.
        let half = self.services / 2;
        let of = number.wrapping_mul(7919) % half.max(1);
        let mut addresses: Vec<u32> = (0..self.endpoints).collect();
        match change {
            Change::Replace => {
                if let Some(first) = addresses.first_mut() {
                    *first = FRESH + number;
                }
                slice(of, &addresses)
            }
            Change::Resize => {
                if (number / half.max(1)).is_multiple_of(2) {
                    addresses.pop();
                }
                slice(of + half, &addresses)
            }
        }
    }
}

/// Numbers of addresses that nobody has at the start.
const FRESH: u32 = 0x8000;

fn node() -> Result<Node> {
    Ok(Node {
        name: NODE.to_owned(),
        addresses: vec![super::ADDRESS],
        pod_cidrs: vec!["10.244.1.0/24".parse()?],
        announced: model::Announced { vtep_mac: Some(compile::fabric::vxlan::vtep_mac(NODE)) },
        ..Node::default()
    })
}

fn service_row(number: u32) -> Result<Row> {
    let address = Ipv4Addr::from_bits(Ipv4Addr::new(10, 96, 1, 0).to_bits() + number);
    let object: k8s::Service = serde_json::from_value(json!({
        "metadata": { "name": format!("s{number}"), "namespace": "team", "uid": format!("uid-{number}") },
        "spec": {
            "type": "ClusterIP", "clusterIP": address, "clusterIPs": [address],
            "ports": [{ "name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080 }],
        },
    }))?;
    Ok(Row::Service(Box::new(from_k8s::service(&object).row)))
}

/// As the API server writes it, with all that a controller fills in.
fn slice(service: u32, addresses: &[u32]) -> Result<Vec<u8>> {
    let endpoint = |number: &u32| {
        let address =
            Ipv4Addr::from_bits(Ipv4Addr::new(10, 244, 0, 0).to_bits() + ((service * 13 + number) & 0xffff));
        json!({
            "addresses": [address], "conditions": { "ready": true, "serving": true, "terminating": false },
            "nodeName": NODE,
            "targetRef": { "kind": "Pod", "namespace": "team", "name": format!("s{service}-{number}"),
                "uid": "5b1c1b50-6b43-4d2a-9d6f-2f1d6b5f1c11" },
        })
    };
    Ok(serde_json::to_vec(&json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "name": format!("s{service}-x7k2p"), "namespace": "team", "resourceVersion": "4711", "generation": 2,
            "labels": { "kubernetes.io/service-name": format!("s{service}"),
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io" },
        },
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
        "endpoints": addresses.iter().map(endpoint).collect::<Vec<_>>(),
    }))?)
}

fn slice_row(json: &[u8]) -> Result<Row> {
    let object: k8s::EndpointSlice = serde_json::from_slice(json)?;
    from_k8s::endpoint_slice(&object).row.map(Row::EndpointSlice).context("a slice of a Service")
}

/// What the watch makes of the object in its event.
pub fn event_of(json: &[u8]) -> Result<Event> {
    Ok(Event::Upsert(slice_row(json)?))
}
