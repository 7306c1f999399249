//! What concerns the node's own processes: no pod tells them how large a packet may be on a way that is not the pod's, and
//! they hear what they send to a group by the pods' bridge.

use types::Family;

use super::{GATEWAYS, NODES, OUTSIDE, Siege};

/// An error about a packet of node1's own process to the outside. Routers outside may say so.
pub fn path_mtu(siege: &Siege, family: Family) {
    let (node, far) = (family.pick(NODES[0]), family.pick(OUTSIDE));
    let listen = format!(
        "s = socket.socket(socket.{}, socket.SOCK_DGRAM)\ns.bind(('', 45000))\nprint('ready', flush=True)\ns.recv(100)",
        family.pick(["AF_INET", "AF_INET6"])
    );
    let complain = |word: &str| {
        format!(
            "about = ip({node:?}, {far:?}, 17, udp({node:?}, {far:?}, 45000, 9, mark({word:?})))\n\
             family, protocol = {}\n\
             four = b'\\3\\4\\0\\0' + struct.pack('!HH', 0, 1300) + about\n\
             four = four[:2] + struct.pack('!H', sum16(four)) + four[4:]\n\
             six = struct.pack('!BBHI', 2, 0, 0, 1300) + about\n\
             socket.socket(family, socket.SOCK_RAW, protocol).sendto(four if protocol == 1 else six, ({node:?}, 0))\n\
             print('sent')",
            family.pick(["socket.AF_INET, 1", "socket.AF_INET6, 58"])
        )
    };
    let way = || siege.lab.node_ok("node1", &["ip", "route", "get", far]);
    let forget = || {
        for family in ["-4", "-6"] {
            siege.lab.node_ok("node1", &["ip", family, "route", "flush", "cache"]);
        }
    };
    let mut python = siege.lab.node_command("node1");
    python.arg("python3");
    let process = siege.begin(python, &listen);
    forget();
    siege.python("thief1", &complain("by-a-pod"));
    assert!(!way().contains("mtu 1300"), "a pod was believed: {}", way());
    siege.outside(&complain("by-a-router"));
    assert!(way().contains("mtu 1300"), "nobody was believed: {}", way());
    forget();
    process.words(|| siege.end("thief1", node, 45000));
}

/// Not as somebody who is no pod of the node.
pub fn groups(siege: &Siege, family: Family) {
    let (own, group) = (family.pick(GATEWAYS), family.pick(["224.0.0.251", "ff05::fb"]));
    let hears = format!(
        "import ipaddress,socket,struct\n\
         own, group, six = {own:?}, {group:?}, {}\nlink = socket.if_nametoindex('cni0')\n\
         of = socket.AF_INET6 if six else socket.AF_INET\n\
         hears, says = socket.socket(of, socket.SOCK_DGRAM), socket.socket(of, socket.SOCK_DGRAM)\n\
         hears.bind(('', 45001))\nsays.bind((own, 0))\nhears.settimeout(20)\n\
         packed = lambda address: ipaddress.ip_address(address).packed\n\
         if six:\n    \
         hears.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, packed(group) + struct.pack('I', link))\n    \
         says.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, link)\n\
         else:\n    \
         hears.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, packed(group) + packed(own))\n    \
         says.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, packed(own))\n\
         says.sendto(b'hello', (group, 45001))\nprint(hears.recvfrom(100)[1][0])",
        family.pick(["False", "True"])
    );
    assert_eq!(siege.lab.node_ok("node1", &["python3", "-c", &hears]).trim(), own);
}
