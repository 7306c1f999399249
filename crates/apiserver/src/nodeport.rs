//! NodePorts: 30000–32767, for Services of type NodePort and LoadBalancer.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::invalid::Complaints;
use crate::kind::SERVICE;
use crate::object::{at, integer, list, map_in, root, text};
use crate::status::Failure;
use crate::store::{Key, Transaction};

const FIRST: i64 = 30_000;
const COUNT: i64 = 2768;

/// A node port and its protocol: TCP and UDP have numbers of their own.
type Taken = BTreeSet<(i64, String)>;

/// Numbers the ports that have none, keeping what the Service had; refuses numbers that another Service has.
pub(crate) fn allocate(
    tx: &Transaction<'_>,
    key: &Key,
    service: &mut Value,
    before: Option<&Value>,
) -> Result<(), Failure> {
    let wanted = match text(service, &["spec", "type"]) {
        "NodePort" => true,
        "LoadBalancer" => {
            at(service, &["spec", "allocateLoadBalancerNodePorts"]) != Some(&Value::Bool(false))
        }
        _ => false,
    };
    let mut ports = list(service, &["spec", "ports"]).to_vec();
    if !wanted || ports.is_empty() {
        return Ok(());
    }
    let mut taken = taken(tx, key)?;
    let mut complaints = Complaints::default();
    for (index, port) in ports.iter_mut().enumerate() {
        let protocol = text(port, &["protocol"]).to_owned();
        let asked = match integer(port, &["nodePort"]) {
            0 => before.map_or(0, |before| previous(before, port)),
            asked => asked,
        };
        let number = match asked {
            0 => free(&taken, &protocol, &format!("{}/{}/{index}", key.namespace, key.name)),
            asked => Some(asked),
        };
        let Some(number) = number else {
            return Err(Failure::internal("failed to allocate a nodePort: range is full"));
        };
        if !taken.insert((number, protocol)) {
            let field = format!("spec.ports[{index}].nodePort");
            complaints.invalid(&field, &number.into(), "provided port is already allocated");
        }
        root(port).insert("nodePort".to_owned(), number.into());
    }
    complaints.verdict(&SERVICE, &key.name)?;
    map_in(root(service), "spec").insert("ports".to_owned(), json!(ports));
    Ok(())
}

fn taken(tx: &Transaction<'_>, key: &Key) -> Result<Taken, Failure> {
    let mut taken = Taken::new();
    for (_, stored) in tx.all(SERVICE.plural).filter(|(other, _)| *other != key) {
        let may_have = stored.fields.iter().any(|(f, v)| *f == "spec.type" && v != "ClusterIP");
        if !may_have {
            continue;
        }
        let service = stored.value()?;
        for port in list(&service, &["spec", "ports"]) {
            taken.insert((integer(port, &["nodePort"]), text(port, &["protocol"]).to_owned()));
        }
    }
    Ok(taken)
}

/// The number that the same port had before this change.
fn previous(before: &Value, port: &Value) -> i64 {
    let same = |old: &&Value| {
        integer(old, &["port"]) == integer(port, &["port"])
            && text(old, &["protocol"]) == text(port, &["protocol"])
    };
    list(before, &["spec", "ports"]).iter().find(same).map_or(0, |old| integer(old, &["nodePort"]))
}

/// The first free number from a place that the name chooses.
fn free(taken: &Taken, protocol: &str, seed: &str) -> Option<i64> {
    let start = i64::from_str_radix(&types::hash8(seed), 16).unwrap_or(0);
    let numbers = (0..COUNT).map(|step| FIRST + (start + step) % COUNT);
    numbers.into_iter().find(|number| !taken.contains(&(*number, protocol.to_owned())))
}
