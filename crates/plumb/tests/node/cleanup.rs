//! `plumb node-cleanup` takes everything from a node, whatever state its agent ended in.

use std::process::{Command, Output};

use crate::stage::{Node, Stage, wait_for};

/// In the node's own network namespace.
fn cleanup(node: &Node) -> Output {
    let path = |name: &str| node.dir.join(name).display().to_string();
    let mut command = Command::new(crate::said::plumb());
    command.args(["node-cleanup", "--data", &path("data")]);
    command.args(["--cni-conf-dir", &path("net.d"), "--socket", &path("agent.sock")]);
    node.netns.run(move || command.output()).unwrap().unwrap()
}

#[test]
fn a_killed_agents_node_is_clean_afterwards() {
    let mut stage = Stage::new(1);
    let (_pod, _) = stage.wired(0, "web");
    let node = &mut stage.nodes[0];
    let said = String::from_utf8_lossy(&cleanup(node).stderr).into_owned();
    assert!(said.contains("another agent works on"), "{said}");
    // What an agent leaves that is killed while it traces.
    node.run("nft add table ip plumb_trace");
    node.run("nft add table ip6 plumb_trace");
    node.run("nft add table ip theirs");
    let addresses = node.run("ip -o -4 addr");
    let uplink = addresses.lines().find(|line| line.contains(" 192.168.1.10/")).unwrap();
    let uplink = uplink.split_ascii_whitespace().nth(1).unwrap();
    let filters = format!("tc filter show dev {uplink} ingress");
    // An ordinary user can have no program.
    if kernel::checksums::program().is_ok() {
        wait_for("the node's own link has its program", || {
            node.run(&filters).contains("plumb_uplink").then_some(())
        });
    }
    node.kill();
    let done = cleanup(node);
    assert!(done.status.success(), "{done:?}");
    assert_eq!(node.run("nft list tables").trim(), "table ip theirs");
    for (look, word) in
        [("ip -o link", "cni0"), ("ip -o link", "plumb"), ("ip -o link", "veth"), ("ip addr", "10.96.0.10")]
    {
        assert!(!node.run(look).contains(word), "{look}: {}", node.run(look));
    }
    assert_eq!(node.run("ip route show proto 112"), "");
    assert!(!node.run(&filters).contains("plumb_uplink"), "{}", node.run(&filters));
    assert!(!node.dir.join("net.d/10-plumb.conflist").exists());
    assert!(!node.dir.join("data").exists());
    let again = cleanup(node);
    assert!(again.status.success(), "nothing is left to clean: {again:?}");
}
