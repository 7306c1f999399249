//! ClusterIPs: 10.96.0.0/12, handed out by name so that the same Service tends to get the same address.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use serde_json::{Value, json};

use crate::invalid::Complaints;
use crate::kind::SERVICE;
use crate::object::{at, map_in, root, text};
use crate::status::Failure;
use crate::store::{Key, Transaction};

const FIRST: u32 = u32::from_be_bytes([10, 96, 0, 0]);
const BITS: u32 = 20;
/// The range as messages name it.
pub(crate) const RANGE: &str = "10.96.0.0/12";
/// Addresses below are for Services that choose their own (KEP-3070: min(max(16, size/16), 256)).
const STATIC: u32 = 256;

/// An update that says nothing about the address keeps it.
pub(crate) fn inherit(new: &mut Value, before: &Value) {
    let external = text(new, &["spec", "type"]) == "ExternalName";
    if external || !text(new, &["spec", "clusterIP"]).is_empty() {
        return;
    }
    let spec = map_in(root(new), "spec");
    for field in ["clusterIP", "clusterIPs"] {
        if let Some(value) = at(before, &["spec", field]) {
            spec.insert(field.to_owned(), value.clone());
        }
    }
}

/// Gives the Service its address, or refuses the one that it asks for.
pub(crate) fn allocate(
    tx: &Transaction<'_>,
    key: &Key,
    service: &mut Value,
    before: Option<&Value>,
) -> Result<(), Failure> {
    if text(service, &["spec", "type"]) == "ExternalName" {
        return Ok(());
    }
    let asked = text(service, &["spec", "clusterIP"]).to_owned();
    if asked == "None" {
        map_in(root(service), "spec").insert("clusterIPs".to_owned(), json!(["None"]));
        return Ok(());
    }
    if !asked.is_empty() && before.is_some_and(|b| text(b, &["spec", "clusterIP"]) == asked) {
        return Ok(());
    }
    let taken: BTreeSet<u32> = tx
        .all(SERVICE.plural)
        .filter(|(other, _)| *other != key)
        .filter_map(|(_, stored)| stored.fields.iter().find(|(f, _)| *f == "spec.clusterIP"))
        .filter_map(|(_, address)| address.parse::<Ipv4Addr>().ok())
        .map(u32::from)
        .collect();
    let refuse = |why: &str| {
        let mut complaints = Complaints::default();
        complaints.invalid("spec.clusterIPs", &json!([asked]), why);
        complaints.verdict(&SERVICE, &key.name)
    };
    let address = if asked.is_empty() {
        let Some(free) = free(&taken, &key.to_seed()) else {
            return Err(Failure::internal(format!("failed to allocate a serviceIP: range {RANGE} is full")));
        };
        free
    } else {
        let Ok(address) = asked.parse::<Ipv4Addr>() else {
            return refuse("must be a valid IP address, (e.g. 10.9.8.7)");
        };
        let number = u32::from(address);
        if number >> BITS != FIRST >> BITS || number == FIRST || number == FIRST | ((1 << BITS) - 1) {
            return refuse(&format!(
                "failed to allocate IP {asked}: the provided IP ({asked}) is not in the valid range. The range of \
                 valid IPs is {RANGE}"
            ));
        }
        if taken.contains(&number) {
            return refuse(&format!("failed to allocate IP {asked}: provided IP is already allocated"));
        }
        number
    };
    let address = Ipv4Addr::from(address).to_string();
    let spec = map_in(root(service), "spec");
    spec.insert("clusterIP".to_owned(), address.as_str().into());
    spec.insert("clusterIPs".to_owned(), json!([address]));
    Ok(())
}

/// The first free address from a place that the name chooses.
fn free(taken: &BTreeSet<u32>, seed: &str) -> Option<u32> {
    let dynamic = (1 << BITS) - 1 - STATIC;
    let start = u32::from_str_radix(&types::hash8(seed), 16).unwrap_or(0) % dynamic;
    (0..dynamic).map(|step| FIRST + STATIC + (start + step) % dynamic).find(|a| !taken.contains(a))
}

impl Key {
    fn to_seed(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}
