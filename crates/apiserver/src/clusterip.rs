//! ClusterIPs of each family that a Service has, handed out by name so that the same Service tends to get the same
//! addresses.
//!
//! ```text
//!   ipFamilyPolicy  SingleStack: one family   PreferDualStack: both where the cluster has both
//!   ipFamilies      which, in order           RequireDualStack: both, or refused
//!   clusterIPs      one address of each       the first is clusterIP
//! ```

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::{Value, json};
use types::wire::SERVICE_CIDRS;
use types::{Families, Family};

use crate::invalid::Complaints;
use crate::kind::SERVICE;
use crate::object::{at, list, map_in, root, text};
use crate::status::Failure;
use crate::store::{Key, Transaction};

/// The stored field that all addresses of a Service are found by; not one to select by.
pub(crate) const ADDRESSES: &str = "spec.clusterIPs";
/// Addresses below are for Services that choose their own (KEP-3070: min(max(16, size/16), 256)).
const STATIC: u128 = 256;
/// The index of the IPv4 range's broadcast address, of which the IPv6 range has none.
const LAST: [u128; 2] = [(1 << 20) - 1, 1 << 16];

/// What an update does not say stays.
pub(crate) fn inherit(new: &mut Value, before: &Value) {
    let external = text(new, &["spec", "type"]) == "ExternalName";
    if external || text(before, &["spec", "type"]) == "ExternalName" {
        return;
    }
    let said =
        |field| at(new, &["spec", field]).is_some_and(|value| *value != json!("") && *value != json!([]));
    let policy = said("ipFamilyPolicy").then(|| text(new, &["spec", "ipFamilyPolicy"]).to_owned());
    let (addresses, families) = (said("clusterIP") || said("clusterIPs"), said("ipFamilies"));
    let mut fields = Vec::new();
    if policy.is_none() {
        fields.push("ipFamilyPolicy");
    }
    if !families {
        fields.push("ipFamilies");
    }
    if !addresses {
        fields.extend(["clusterIP", "clusterIPs"]);
    } else if !said("clusterIPs") && text(new, &["spec", "clusterIP"]) == text(before, &["spec", "clusterIP"])
    {
        fields.push("clusterIPs");
    }
    let spec = map_in(root(new), "spec");
    for field in fields {
        if let Some(value) = at(before, &["spec", field]) {
            spec.insert(field.to_owned(), value.clone());
        }
    }
}

/// Says which families the Service has, and gives it an address of each, or refuses the ones that it asks for.
pub(crate) fn allocate(
    tx: &Transaction<'_>,
    key: &Key,
    service: &mut Value,
    (before, cluster): (Option<&Value>, Families),
) -> Result<(), Failure> {
    let spec = map_in(root(service), "spec");
    if spec.get("type") == Some(&json!("ExternalName")) {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            spec.remove(field);
        }
        return Ok(());
    }
    let asked = asked(service, key)?;
    let headless = asked.first().is_some_and(|first| first == "None");
    let families = families(service, key, (&asked, headless), (before.is_some(), cluster))?;
    let names: Vec<String> = families.iter().map(Family::to_string).collect();
    map_in(root(service), "spec").insert("ipFamilies".to_owned(), json!(names));
    let addresses = if headless {
        vec!["None".to_owned()]
    } else {
        let mut addresses = Vec::new();
        for (index, family) in families.iter().enumerate() {
            let wanted = asked.get(index).map(String::as_str);
            let had =
                before.and_then(|b| list(b, &["spec", "clusterIPs"]).get(index)).and_then(Value::as_str);
            addresses.push(match wanted {
                Some(wanted) if had == Some(wanted) => wanted.to_owned(),
                _ => address(tx, key, *family, wanted)?,
            });
        }
        addresses
    };
    let spec = map_in(root(service), "spec");
    spec.insert("clusterIP".to_owned(), json!(addresses.first()));
    spec.insert("clusterIPs".to_owned(), json!(addresses));
    Ok(())
}

fn refusal(key: &Key, field: &str, value: &Value, why: &str) -> Failure {
    let mut complaints = Complaints::default();
    complaints.invalid(field, value, why);
    complaints.verdict(&SERVICE, &key.name).err().unwrap_or_else(|| Failure::internal(why.to_owned()))
}

/// The addresses that the object names.
fn asked(service: &Value, key: &Key) -> Result<Vec<String>, Failure> {
    let first = text(service, &["spec", "clusterIP"]);
    let all = list(service, &["spec", "clusterIPs"]);
    let all: Vec<String> =
        all.iter().filter_map(Value::as_str).filter(|ip| !ip.is_empty()).map(str::to_owned).collect();
    match all.first() {
        None if first.is_empty() => Ok(Vec::new()),
        None => Ok(vec![first.to_owned()]),
        Some(listed) if first.is_empty() || first == listed => Ok(all),
        Some(_) => Err(refusal(key, "spec.clusterIPs[0]", &json!(all), "first value must match `clusterIP`")),
    }
}

/// As the API server completes them: from what is named, else the cluster's own first.
fn families(
    service: &mut Value,
    key: &Key,
    (asked, headless): (&[String], bool),
    (known, cluster): (bool, Families),
) -> Result<Vec<Family>, Failure> {
    let listed = list(service, &["spec", "ipFamilies"]).to_vec();
    let policy = text(service, &["spec", "ipFamilyPolicy"]).to_owned();
    let mut found = Vec::new();
    for (index, name) in listed.iter().enumerate() {
        let family = Family::ALL.into_iter().find(|family| *name == json!(family.to_string()));
        let elsewhere = headless && at(service, &["spec", "selector"]).is_none();
        match family.filter(|family| elsewhere || cluster.list().contains(family)) {
            Some(family) if !found.contains(&family) => found.push(family),
            Some(_) => {
                return Err(refusal(
                    key,
                    &format!("spec.ipFamilies[{index}]"),
                    name,
                    "may not be named twice",
                ));
            }
            None => {
                let why = "not configured on this cluster";
                return Err(refusal(key, &format!("spec.ipFamilies[{index}]"), name, why));
            }
        }
    }
    let of_addresses = asked.iter().filter_map(|ip| ip.parse::<IpAddr>().ok()).map(Family::of);
    for (index, family) in of_addresses.enumerate() {
        match found.get(index) {
            None if !found.contains(&family) => found.push(family),
            Some(known) if *known == family => {}
            known => {
                let wanted = known.map_or_else(|| "no second".to_owned(), |known| format!("an {known}"));
                let why = format!("expected {wanted} value as indicated by `ipFamilies[{index}]`");
                return Err(refusal(
                    key,
                    &format!("spec.clusterIPs[{index}]"),
                    &json!(asked.get(index)),
                    &why,
                ));
            }
        }
    }
    // Who names neither families nor a selector serves whatever its own slices hold.
    let bare = headless && at(service, &["spec", "selector"]).is_none() && listed.is_empty();
    let policy = match policy.as_str() {
        "" if bare => "RequireDualStack",
        "" => "SingleStack",
        known => known,
    }
    .to_owned();
    if found.is_empty() {
        found.push(cluster.primary());
    }
    let other = found.first().map(|first| first.pick([Family::V6, Family::V4]));
    match policy.as_str() {
        "RequireDualStack" if cluster != Families::Dual && !bare => {
            let why = "this cluster is not configured for dual-stack services";
            return Err(refusal(key, "spec.ipFamilyPolicy", &json!(policy), why));
        }
        "SingleStack" if found.len() > 1 && !known => {
            let why =
                "must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified";
            return Err(refusal(key, "spec.ipFamilyPolicy", &json!(policy), why));
        }
        // Its second address goes.
        "SingleStack" => found.truncate(1),
        "RequireDualStack" | "PreferDualStack" if found.len() == 1 => {
            found.extend(other.filter(|other| bare || cluster.list().contains(other)));
        }
        _ => {}
    }
    map_in(root(service), "spec").insert("ipFamilyPolicy".to_owned(), json!(policy));
    Ok(found)
}

/// A free address of the family's range, or the one that is wanted.
fn address(tx: &Transaction<'_>, key: &Key, family: Family, wanted: Option<&str>) -> Result<String, Failure> {
    let range = family.pick(SERVICE_CIDRS);
    let taken: BTreeSet<u128> = tx
        .all(SERVICE.plural)
        .filter(|(other, _)| *other != key)
        .filter_map(|(_, stored)| stored.fields.iter().find(|(field, _)| *field == ADDRESSES))
        .flat_map(|(_, list)| serde_json::from_str::<Vec<String>>(list).unwrap_or_default())
        .filter_map(|address| index_of(&address, family))
        .collect();
    let Some(wanted) = wanted else {
        let free = free(&taken, &format!("{}/{}", key.namespace, key.name), family);
        return free.map(|index| at_index(family, index).to_string()).ok_or_else(|| {
            Failure::internal(format!("failed to allocate a serviceIP: range {range} is full"))
        });
    };
    let refuse = |why: &str| Err(refusal(key, "spec.clusterIPs", &json!([wanted]), why));
    if wanted.parse::<IpAddr>().is_err() {
        return refuse("must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)");
    }
    match index_of(wanted, family) {
        None => refuse(&format!(
            "failed to allocate IP {wanted}: the provided IP ({wanted}) is not in the valid range. The range of \
             valid IPs is {range}"
        )),
        Some(index) if taken.contains(&index) => {
            refuse(&format!("failed to allocate IP {wanted}: provided IP is already allocated"))
        }
        Some(index) => Ok(at_index(family, index).to_string()),
    }
}

fn base(family: Family) -> u128 {
    let net: Option<types::IpNet> = family.pick(SERVICE_CIDRS).parse().ok();
    net.map_or(0, |net| types::number(net.network()))
}

fn at_index(family: Family, index: u128) -> IpAddr {
    family.address(base(family) + index)
}

/// Where in its range the address is; `None`: not among those that can be given.
fn index_of(address: &str, family: Family) -> Option<u128> {
    let address = address.parse().ok().filter(|address| Family::of(*address) == family)?;
    let index = types::number(address).checked_sub(base(family))?;
    (0 < index && index < family.pick(LAST)).then_some(index)
}

/// The first free address from a place that the name chooses.
fn free(taken: &BTreeSet<u128>, seed: &str, family: Family) -> Option<u128> {
    let dynamic = family.pick(LAST) - STATIC;
    let start = u128::from_str_radix(&types::hash8(seed), 16).unwrap_or(0) % dynamic;
    (0..dynamic).map(|step| STATIC + (start + step) % dynamic).find(|index| !taken.contains(index))
}
