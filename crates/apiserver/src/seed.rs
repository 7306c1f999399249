//! What exists from the start: namespaces, their default ServiceAccounts, the API's and DNS' Services.

use serde_json::{Value, json};
use types::Family;
use types::wire::{API_IPS, DNS_IPS, TRACE_ACCOUNT};

use crate::api::Config;
use crate::kind::{ENDPOINT_SLICE, Kind, NAMESPACE, SERVICE, SERVICE_ACCOUNT};
use crate::object::metadata;
use crate::status::Failure;
use crate::store::{Key, Store, Transaction};
use crate::{defaults, moment, write};

/// Makes what is missing; what is there stays.
pub(crate) fn plant(store: &Store, config: &Config) -> Result<(), Failure> {
    store.write(|tx| {
        for name in ["default", "kube-node-lease", "kube-public", "kube-system"] {
            let namespace = json!({"metadata": {"labels": {"kubernetes.io/metadata.name": name}},
                "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}});
            put(tx, &NAMESPACE, "", name, namespace)?;
            put(tx, &SERVICE_ACCOUNT, name, "default", json!({}))?;
        }
        for name in ["plumb", TRACE_ACCOUNT] {
            put(tx, &SERVICE_ACCOUNT, "kube-system", name, json!({}))?;
        }
        put(tx, &SERVICE, "default", "kubernetes", api_service(config))?;
        put(tx, &SERVICE, "kube-system", "kube-dns", dns_service(config))?;
        put_api_slice(tx, config)
    })?;
    Ok(())
}

fn put(
    tx: &mut Transaction<'_>,
    kind: &'static Kind,
    namespace: &str,
    name: &str,
    mut object: Value,
) -> Result<(), Failure> {
    let key = Key::new(kind, namespace, name);
    if tx.get(&key).is_some() {
        return Ok(());
    }
    crate::object::name_type(kind, &mut object);
    let meta = metadata(&mut object);
    meta.insert("name".to_owned(), name.into());
    if kind.namespaced {
        meta.insert("namespace".to_owned(), namespace.into());
    }
    meta.insert("uid".to_owned(), write::new_uid()?.into());
    meta.insert("creationTimestamp".to_owned(), moment::format(moment::now()).into());
    if kind.generation {
        meta.insert("generation".to_owned(), 1.into());
    }
    defaults::apply(kind, &mut object);
    tx.put(key, object).map(drop)
}

/// Of the family in which the API is advertised, as Kubernetes has it.
fn api_service(config: &Config) -> Value {
    let family = Family::of(config.advertised.ip());
    let ip = family.pick(API_IPS);
    json!({
        "metadata": {"labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {"clusterIP": ip, "clusterIPs": [ip], "ipFamilies": [family.to_string()],
            "ipFamilyPolicy": "SingleStack", "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": 6443}]},
        "status": {"loadBalancer": {}},
    })
}

/// Of each family that the cluster has: the pods of one must find it, too.
fn dns_service(config: &Config) -> Value {
    let families = config.families.list();
    let ips: Vec<&str> = families.iter().map(|family| family.pick(DNS_IPS)).collect();
    let names: Vec<String> = families.iter().map(ToString::to_string).collect();
    let policy = if ips.len() > 1 { "PreferDualStack" } else { "SingleStack" };
    json!({
        "metadata": {"labels": {"k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS"}},
        "spec": {"clusterIP": ips.first(), "clusterIPs": ips, "ipFamilies": names, "ipFamilyPolicy": policy,
            "ports": [{"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53},
                      {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53}]},
        "status": {"loadBalancer": {}},
    })
}

/// The slice follows where the API is advertised, also after it moved.
fn put_api_slice(tx: &mut Transaction<'_>, config: &Config) -> Result<(), Failure> {
    let (address, port) = (config.advertised.ip().to_string(), config.advertised.port());
    let slice = json!({
        "metadata": {"labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": Family::of(config.advertised.ip()).to_string(),
        "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
    });
    let key = Key::new(&ENDPOINT_SLICE, "default", "kubernetes");
    let Some(stored) = tx.get(&key).cloned() else {
        return put(tx, &ENDPOINT_SLICE, "default", "kubernetes", slice);
    };
    let mut now = stored.value()?;
    for field in ["endpoints", "ports"] {
        crate::object::keep(crate::object::root(&mut now), Some(&slice), field);
    }
    if now != stored.value()? {
        write::bump_generation(&mut now);
        tx.put(key, now)?;
    }
    Ok(())
}
