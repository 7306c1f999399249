//! SCTP by its packets: an association's first two chunks, each with the checksum that its receiver checks. They are
//! written and read through raw sockets, so that the kernel's own SCTP, which few machines have, is not needed; what
//! translates them (nf_conntrack, nf_nat) is the kernel's in any case.

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Command, Stdio};

use kernel::Netns;
use serde_json::{Value, json};
use types::{Families, Family};

use crate::host_ports::wired_at;
use crate::services::ip;
use crate::stage::{Stage, wait_for};

/// RFC 9260: 3.1 the common header, 3.3.2 INIT, 3.3.3 INIT ACK. The answer's cookie says whom the server saw.
///
///     serve PORT                      answers every INIT of its port, in both families
///     call ADDRESS PORT OWN-PORT      exits 0 and prints the cookie, or 1 after half a second
const ENDS: &str = r#"
import os, select, socket, struct, sys, time
SCTP, INIT, INIT_ACK, COOKIE = 132, 1, 2, 7

def crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82f63b78 if crc & 1 else 0)
    return struct.pack("<I", crc ^ 0xffffffff)

def packet(ports, tag, kind, own_tag, cookie=b""):
    more = struct.pack("!HH", COOKIE, 4 + len(cookie)) + cookie + b"\0" * (-len(cookie) % 4) if cookie else b""
    chunk = struct.pack("!BBHIIHHI", kind, 0, 20 + len(more), own_tag, 65536, 1, 1, 1) + more
    head = struct.pack("!HHI", *ports, tag)
    return head + crc32c(head + bytes(4) + chunk) + chunk

def read(family, data):
    if family == socket.AF_INET:
        data = data[(data[0] & 15) * 4:]
    if len(data) < 32 or data[8:12] != crc32c(data[:8] + bytes(4) + data[12:]):
        return None
    source, to, tag = struct.unpack("!HHI", data[:8])
    length, = struct.unpack("!H", data[34:36]) if len(data) >= 36 else (4,)
    return source, to, tag, data[12], struct.unpack("!I", data[16:20])[0], data[36:32 + length]

def serve(port):
    sockets = [socket.socket(family, socket.SOCK_RAW, SCTP) for family in (socket.AF_INET, socket.AF_INET6)]
    print("ready", flush=True)
    while True:
        for one in select.select(sockets, [], [])[0]:
            data, peer = one.recvfrom(2048)
            got = read(one.family, data)
            if got and got[1] == port and got[3] == INIT and got[2] == 0:
                one.sendto(packet((port, got[0]), got[4], INIT_ACK, 77, peer[0].encode()), (peer[0], 0))

def call(address, port, own):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    one = socket.socket(family, socket.SOCK_RAW, SCTP)
    tag = int.from_bytes(os.urandom(4), "big") | 1
    one.sendto(packet((own, port), 0, INIT, tag), (address, 0))
    end = time.monotonic() + 0.5
    while (left := end - time.monotonic()) > 0 and select.select([one], [], [], left)[0]:
        data, peer = one.recvfrom(2048)
        got = read(family, data)
        if got and got[:4] == (port, own, tag, INIT_ACK) and peer[0] == address:
            print(got[5].decode())
            return 0
    return 1

words = sys.argv[2:]
sys.exit(serve(int(words[0])) if sys.argv[1] == "serve" else call(words[0], int(words[1]), int(words[2])))
"#;

fn python(args: &[&str]) -> Command {
    let mut command = Command::new("python3");
    command.args(["-c", ENDS]).args(args);
    command
}

/// A server at 8080 of a pod; it ends with this.
struct Listener(Child);

impl Listener {
    fn new(netns: &Netns) -> Self {
        let start = || python(&["serve", "8080"]).stdout(Stdio::piped()).spawn();
        let mut child = netns.run(start).unwrap().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "ready");
        Self(child)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whom the server saw, if one answered. Each call has a port of its own, so that no earlier flow decides.
fn call(from: &Netns, to: SocketAddr) -> Option<IpAddr> {
    static PORT: std::sync::atomic::AtomicU16 = std::sync::atomic::AtomicU16::new(20_000);
    let own = PORT.fetch_add(1, std::sync::atomic::Ordering::Relaxed).to_string();
    let args = ["call", &to.ip().to_string(), &to.port().to_string(), &own];
    let output = from.run(|| python(&args).output()).unwrap().unwrap();
    assert!(output.stderr.is_empty(), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    output.status.success().then(|| ip(said.trim()))
}

#[track_caller]
fn sees(from: &Netns, (address, port): (&str, u16), whom: IpAddr) {
    let to = SocketAddr::new(ip(address), port);
    wait_for(&format!("{to} answers, and has seen {whom}"), || (call(from, to) == Some(whom)).then_some(()));
}

#[track_caller]
fn closed(from: &Netns, (address, port): (&str, u16)) {
    let to = SocketAddr::new(ip(address), port);
    wait_for(&format!("{to} does not answer"), || call(from, to).is_none().then_some(()));
}

fn object(kind: &str, version: &str, name: &str, rest: Value) -> Value {
    let mut object = json!({
        "apiVersion": version, "kind": kind, "metadata": { "name": name, "namespace": "default" },
    });
    object.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
    object
}

#[test]
fn an_association_reaches_pods_by_services_node_ports_and_host_ports() {
    let stage = Stage::of(2, Families::Dual);
    let mappings = json!([{ "hostPort": 5060, "containerPort": 8080, "protocol": "sctp", "hostIP": "" }]);
    let (web, addresses) = wired_at(&stage, "web", mappings);
    let _listener = Listener::new(&web.netns);
    let (near, near_ips) = wired_at(&stage, "near", json!([]));
    let spec = json!({
        "type": "NodePort", "ipFamilyPolicy": "RequireDualStack", "clusterIPs": ["10.96.14.7", "fd00:10:96::e7"],
        "clusterIP": "10.96.14.7", "ports": [{ "port": 80, "protocol": "SCTP" }],
    });
    let made = stage.create(
        "/api/v1/namespaces/default/services",
        &object("Service", "v1", "web", json!({ "spec": spec })),
    );
    let node_port = u16::try_from(made["spec"]["ports"][0]["nodePort"].as_u64().unwrap()).unwrap();
    for family in Family::ALL {
        let own = addresses.iter().find(|it| Family::of(**it) == family).unwrap();
        let slice = json!({
            "metadata": { "name": format!("web-{}", family.pick([4, 6])), "namespace": "default",
                "labels": { "kubernetes.io/service-name": "web" } },
            "addressType": family.to_string(), "ports": [{ "name": "", "port": 8080, "protocol": "SCTP" }],
            "endpoints": [{ "addresses": [own], "nodeName": "node1", "conditions": {} }],
        });
        let slice = object("EndpointSlice", "discovery.k8s.io/v1", "web", slice);
        stage.create("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", &slice);
        let client = *near_ips.iter().find(|it| Family::of(**it) == family).unwrap();
        let service = family.pick(["10.96.14.7", "fd00:10:96::e7"]);
        let [here, there] = [10, 11]
            .map(|host| family.pick([format!("192.168.1.{host}"), format!("fd00:192:168:1::{host}")]));
        let outside = ip(family.pick(["192.168.1.2", "fd00:192:168:1::2"]));
        let gateway = ip(family.pick(["10.244.1.1", "fd00:10:244:1::1"]));
        // The pod itself, which shows that the ends understand each other; its Service; by itself (M-01).
        sees(&near.netns, (&own.to_string(), 8080), client);
        sees(&near.netns, (service, 80), client);
        sees(&web.netns, (service, 80), gateway);
        // The port of a node hides the caller, on the pod's node and on another.
        sees(&stage.underlay, (&here, node_port), gateway);
        sees(&stage.underlay, (&there, node_port), ip(family.pick(["10.244.2.0", "fd00:10:244:2::"])));
        // The port of the pod on its node does not.
        sees(&stage.underlay, (&here, 5060), outside);
        sees(&near.netns, (&here, 5060), client);
        sees(&stage.nodes[0].netns, (&here, 5060), gateway);
        closed(&stage.underlay, (&there, 5060));
        // The pod's own port is no port of the node's.
        closed(&stage.underlay, (&here, 8080));
    }
    stage.nodes[0].del(&web).unwrap();
    for address in ["192.168.1.10", "fd00:192:168:1::10"] {
        closed(&stage.underlay, (address, 5060));
    }
}

/// NP-24: a port of SCTP is none of TCP's.
#[test]
fn a_policy_tells_sctp_from_the_others() {
    let stage = Stage::of(1, Families::Dual);
    let (web, addresses) = wired_at(&stage, "web", json!([]));
    let (client, client_ips) = wired_at(&stage, "client", json!([]));
    let _listener = Listener::new(&web.netns);
    let policies = "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies";
    let ports = |protocol: &str| json!([{ "ports": [{ "port": 8080, "protocol": protocol }] }]);
    let spec = json!({ "podSelector": { "matchLabels": { "app": "web" } }, "ingress": ports("TCP") });
    let all = || addresses.iter().map(IpAddr::to_string).zip(&client_ips);
    all().for_each(|(own, client_ip)| sees(&client.netns, (&own, 8080), *client_ip));
    stage.create(policies, &object("NetworkPolicy", "networking.k8s.io/v1", "web", json!({ "spec": spec })));
    all().for_each(|(own, _)| closed(&client.netns, (&own, 8080)));
    stage.patch(&format!("{policies}/web"), &json!({ "spec": { "ingress": ports("SCTP") } }));
    all().for_each(|(own, client_ip)| sees(&client.netns, (&own, 8080), *client_ip));
}
