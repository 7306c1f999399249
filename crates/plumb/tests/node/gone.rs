//! An API server that is gone without a word: no FIN, no RST, packets to it just vanish.

use std::process::Command;
use std::time::Instant;

use kernel::Netns;
use serde_json::json;

use crate::stage::{API, Stage, wait_for};

fn nft(netns: &Netns, rules: &str) {
    let done = netns.run(|| Command::new("nft").arg(rules).output()).unwrap().unwrap();
    assert!(done.status.success(), "{done:?}");
}

/// Until the node has what the API says now.
fn follows(stage: &Stage, service: &str, address: &str) {
    let object = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": service },
        "spec": { "clusterIP": address, "ports": [{ "port": 80 }] },
    });
    stage.create("/api/v1/namespaces/default/services", &object);
    wait_for(&format!("Service {service} is in the kernel"), || {
        stage.nodes[0].run("nft list table ip plumb").contains(address).then_some(())
    });
}

#[test]
fn an_api_server_that_vanished_is_left_for_the_next() {
    let mut stage = Stage::new(1);
    let node = &mut stage.nodes[0];
    node.kill();
    let both: Vec<String> = API.iter().map(|address| format!("https://{address}")).collect();
    node.flags = vec!["--api-servers".into(), both.join(",")];
    node.start();
    node.wait_ready();
    follows(&stage, "before", "10.96.7.1");
    // Watches have nothing to say and the node sends nothing: only keepalive can tell.
    nft(
        &stage.underlay,
        "add table inet gone; \
         add chain inet gone in { type filter hook input priority 0; }; \
         add chain inet gone out { type filter hook output priority 0; }; \
         add rule inet gone in tcp dport 6443 drop; add rule inet gone out tcp sport 6443 drop",
    );
    let vanished = Instant::now();
    follows(&stage, "after", "10.96.7.2");
    println!("a vanished API server was left after {:.1} s", vanished.elapsed().as_secs_f64());
    // And back: the one in use goes, the first is there again.
    nft(&stage.underlay, "flush table inet gone; add rule inet gone in tcp dport 6444 drop");
    follows(&stage, "again", "10.96.7.3");
}
