//! Any list of API objects: read as the watch reads them, compiled one after the other and all at once, which is
//! the same; the zone of the same cluster is built. Nothing panics, whatever the API holds.
//!
//! Input: a JSON array of objects. Pods with an address on node1 are wired to it.
#![no_main]

use compile::backend::nftables::Composed;
use compile::{Compiled, Compiler, Pieces, whole};
use dns::Zone;
use libfuzzer_sys::fuzz_target;
use model::{Attachment, Event, Row};
use semantics::Settings;

#[path = "world.rs"]
mod world;

fn settings() -> Settings {
    let parse = |words: [&str; 2]| words.map(|word| word.parse().expect("a range")).to_vec();
    Settings {
        node: "node1".into(),
        pod_pools: parse(["10.244.0.0/16", "fd00:10:244::/56"]),
        unmasqueraded: parse(["10.244.0.0/16", "fd00:10:244::/56"]),
        service_cidrs: parse(["10.96.0.0/12", "fd00:10:96::/112"]),
        dns_ips: vec!["10.96.0.10".parse().expect("an address")],
        allow_sources: ["198.18.0.0/15", "2001:db8::/32"].map(|net| net.parse().expect("a prefix")).into(),
        api: Vec::new(),
        backend: types::Backend::Nftables,
        fabric: types::Fabric::Vxlan,
        wiring: types::Wiring::Bridge,
        mtu: 1450,
        uplinks: std::collections::BTreeSet::new(),
    }
}

/// The attachment of a pod that has an address on this node.
fn attachment(row: &Row) -> Option<Row> {
    let Row::Pod(pod) = row else { return None };
    if pod.node.as_deref() != Some("node1") || pod.ips.is_empty() {
        return None;
    }
    Some(Row::Attachment(Box::new(Attachment {
        container: pod.key.to_string(),
        pod: pod.key.clone(),
        uid: pod.uid.clone(),
        ips: pod.ips.clone(),
        wiring: types::Wiring::Bridge,
        host_if: "veth0".parse().expect("a name"),
        mac: types::Mac::default(),
        host_ports: Vec::new(),
        withheld: Vec::new(),
    })))
}

fuzz_target!(|data: &[u8]| {
    let Ok(objects) = serde_json::from_slice(data) else { return };
    let rows: Vec<Row> =
        world::rows(&objects).flat_map(|row| [attachment(&row), Some(row)]).flatten().collect();

    let mut cluster = world::listed(Vec::new());
    let (mut compiler, mut tables) = (Compiler::new(settings()), Composed::default());
    let mut take = |Compiled { pieces, .. }| {
        pieces.into_iter().for_each(|Pieces::Nftables(pieces)| drop(tables.compose(pieces)));
    };
    take(compiler.update(cluster.synced().expect("every list has ended"), &[]));
    for row in rows.clone() {
        let keys = cluster.apply(Event::Upsert(row));
        take(compiler.update(cluster.synced().expect("every list has ended"), &keys));
    }
    let listed = world::listed(rows);
    let all = listed.synced().expect("every list has ended");
    let desired = whole(all, settings());
    assert!(**tables.ruleset() == desired.nft, "one after the other is not the same as all at once");
    // What the own Node loses is kept until it is there again (Compiler::compile_net).
    let kept = desired.net.links.is_empty();
    assert!(kept || *compiler.net() == desired.net, "one after the other is not the same as all at once");
    Zone::build(dns::Settings::new("cluster.local").expect("a domain"), &all, 1);
});
