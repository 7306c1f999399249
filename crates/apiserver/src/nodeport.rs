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

/// Numbers of other Services, whatever their protocols. One Service may use a number once for each protocol.
type Taken = BTreeSet<i64>;

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
    let seed = |index: &dyn std::fmt::Display| format!("{}/{}/{index}", key.namespace, key.name);
    let taken = taken(tx, key)?;
    if !wanted || ports.is_empty() {
        return health_check(service, before, (&taken, &BTreeSet::new()), &seed(&"health"));
    }
    let mut own: BTreeSet<(i64, String)> = BTreeSet::new();
    let mut complaints = Complaints::default();
    for (index, port) in ports.iter_mut().enumerate() {
        let protocol = text(port, &["protocol"]).to_owned();
        let asked = match integer(port, &["nodePort"]) {
            0 => before.map_or(0, |before| previous(before, port)),
            asked => asked,
        };
        let number = match asked {
            0 => {
                free(|number| taken.contains(&number) || own.iter().any(|(n, _)| *n == number), &seed(&index))
            }
            asked => Some(asked),
        };
        let Some(number) = number else {
            return Err(Failure::internal("failed to allocate a nodePort: range is full"));
        };
        if taken.contains(&number) || !own.insert((number, protocol)) {
            let field = format!("spec.ports[{index}].nodePort");
            complaints.invalid(&field, &number.into(), "provided port is already allocated");
        }
        root(port).insert("nodePort".to_owned(), number.into());
    }
    complaints.verdict(&SERVICE, &key.name)?;
    map_in(root(service), "spec").insert("ports".to_owned(), json!(ports));
    health_check(service, before, (&taken, &own), &seed(&"health"))
}

/// Where a load balancer asks which nodes have endpoints of their own.
fn health_check(
    service: &mut Value,
    before: Option<&Value>,
    (taken, own): (&Taken, &BTreeSet<(i64, String)>),
    seed: &str,
) -> Result<(), Failure> {
    let local = text(service, &["spec", "externalTrafficPolicy"]) == "Local";
    if text(service, &["spec", "type"]) != "LoadBalancer" || !local {
        return Ok(());
    }
    let used = |number| taken.contains(&number) || own.iter().any(|(n, _)| *n == number);
    let kept = before.map_or(0, |before| integer(before, &["spec", "healthCheckNodePort"]));
    let number = match integer(service, &["spec", "healthCheckNodePort"]) {
        0 if kept != 0 => kept,
        0 => free(used, seed)
            .ok_or_else(|| Failure::internal("failed to allocate a nodePort: range is full"))?,
        asked if used(asked) => {
            let name = text(service, &["metadata", "name"]);
            let mut complaints = Complaints::default();
            let detail = "provided port is already allocated";
            complaints.invalid("spec.healthCheckNodePort", &asked.into(), detail);
            return complaints.verdict(&SERVICE, name);
        }
        asked => asked,
    };
    map_in(root(service), "spec").insert("healthCheckNodePort".to_owned(), number.into());
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
            taken.insert(integer(port, &["nodePort"]));
        }
        taken.insert(integer(&service, &["spec", "healthCheckNodePort"]));
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
fn free(used: impl Fn(i64) -> bool, seed: &str) -> Option<i64> {
    let start = i64::from_str_radix(&types::hash8(seed), 16).unwrap_or(0);
    (0..COUNT).map(|step| FIRST + (start + step) % COUNT).find(|number| !used(*number))
}
