//! A wall clock that is set while an agent works. It is not this machine's: `vm` runs this in a virtual machine.

use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kernel::Nft;
use kstate::nft::{TableFamily, TableId};
use serde_json::json;

use crate::stage::{Pod, Stage, connects_at_once, listen, wait_for};

const HOUR: i64 = 3_600;
const DECADE: i64 = 10 * 365 * 24 * HOUR;
/// Where the cluster's DNS address lies.
const DNS: &str = "10.96.0.10/32";

fn jump(seconds: i64) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let then = now.checked_add_signed(seconds).unwrap();
    let set = Command::new("date").args(["-s", &format!("@{then}")]).output().unwrap();
    assert!(set.status.success(), "{set:?}");
    let off = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs().abs_diff(then);
    assert!(off < 600, "the clock is {off} s from where it was set to");
}

/// A Service of one pod that were not there before.
fn serve(stage: &Stage, turn: usize) -> (Pod, SocketAddr) {
    let (pod, ip) = stage.wired(0, &format!("server{turn}"));
    let address = format!("10.96.1.{turn}");
    let name = format!("web{turn}");
    stage.create(
        "/api/v1/namespaces/default/services",
        &json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": "default" },
            "spec": { "clusterIP": address, "ports": [{ "port": 80, "targetPort": 8080 }] },
        }),
    );
    stage.create(
        "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices",
        &json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": { "name": name, "namespace": "default", "labels": { "kubernetes.io/service-name": name } },
            "ports": [{ "name": "", "port": 8080, "protocol": "TCP" }],
            "endpoints": [{ "addresses": [ip], "conditions": {} }],
        }),
    );
    (pod, format!("{address}:80").parse().unwrap())
}

#[test]
#[ignore = "sets the machine's clock: vm::an_agent_goes_on_when_the_clock_jumps runs it where that harms nobody"]
fn everything_goes_on() {
    assert!(std::env::var_os("PLUMB_TEST_VM").is_some(), "this is not a virtual machine");
    let stage = Stage::new(1);
    let node = &stage.nodes[0];
    // This kernel is older than the machine's: it takes all tables (Debian 12 has 6.1).
    let tables = [TableFamily::Ip, TableFamily::Ip6, TableFamily::Bridge]
        .map(|family| TableId { family, name: types::wire::TABLE.into() });
    wait_for("all tables are there", || {
        let found = Nft::open_in(&node.netns).unwrap().observe(&tables).unwrap().ruleset.tables;
        (found.len() == tables.len()).then_some(())
    });
    let (client, _) = stage.wired(0, "client");
    let (first, at) = serve(&stage, 1);
    let listener = listen(&first, 8080);
    wait_for("the first Service answers", || connects_at_once(&client.netns, at).then_some(()));
    let stream =
        client.netns.run(|| TcpStream::connect_timeout(&at, Duration::from_secs(300))).unwrap().unwrap();
    let (mut far, _) = loop {
        let (far, from) = listener.accept().unwrap();
        // An IPv4 client of a socket of both families.
        if SocketAddr::new(from.ip().to_canonical(), from.port()) == stream.local_addr().unwrap() {
            break (far, from);
        }
    };
    for (turn, seconds) in [HOUR, -3 * HOUR, DECADE, -DECADE].into_iter().enumerate() {
        jump(seconds);
        let (pod, at) = serve(&stage, turn + 2);
        let _listener = listen(&pod, 8080);
        wait_for("a Service that came after the jump", || connects_at_once(&client.netns, at).then_some(()));
        node.run(&format!("ip address del {DNS} dev lo"));
        wait_for("what was taken away is back", || {
            node.run("ip address show dev lo").contains(DNS).then_some(())
        });
        stage.delete(&format!("/api/v1/namespaces/default/pods/{}", pod.name));
        node.del(&pod).unwrap();
        let text = format!("after {seconds} s");
        std::io::Write::write_all(&mut &stream, text.as_bytes()).unwrap();
        let mut heard = vec![0; text.len()];
        far.set_read_timeout(Some(Duration::from_secs(300))).unwrap();
        std::io::Read::read_exact(&mut far, &mut heard).unwrap();
        assert_eq!(String::from_utf8_lossy(&heard), text, "a stream that was there lives on");
        node.wait_ready();
    }
}
