//! A flow that its policies no longer allow, of the server or of the client, ends both ways: what the server goes on
//! sending does not arrive, though nothing that the client sends is dropped meanwhile. It goes on when they allow it again.

use types::Family;

use super::{NS, Siege, Watch};
use crate::cluster::Kubectl;

/// Label of a pod, and what closes it.
const CLOSINGS: [(&str, &str, &str); 2] =
    [("the server's policy", "role=stranger", "role=friend"), ("the client's policy", "quiet=yes", "quiet-")];

pub fn both_ways(siege: &Siege, family: Family) {
    let service = siege.lab.get(&["-n", NS, "service", "talk"]);
    let ips = service["spec"]["clusterIPs"].as_array().expect("addresses").iter();
    let mut ips = ips.filter_map(|ip| ip.as_str());
    let service = ips.find(|ip| ip.contains(':') == (family == Family::V6)).expect("of each family");
    let direct = siege.ip("victim1", family);
    for (at, (what, close, open)) in CLOSINGS.into_iter().enumerate() {
        let server = siege.start("victim1", "talk(9001, 8080)");
        let sport = 41000 + at;
        let mut clients: Vec<(String, Watch)> = Vec::new();
        for (client, host, kind, port) in [
            ("friend1", direct, "udp", 9001),
            ("friend2", direct, "udp", 9001),
            ("friend1", service, "udp", 9002),
            ("friend2", service, "udp", 9002),
            ("friend1", direct, "tcp", 8080),
            ("friend2", direct, "tcp", 8080),
        ] {
            let sport = sport + if host == direct { 0 } else { 100 };
            let hear = format!("hear({kind:?}, {host:?}, {port}, {sport})");
            clients.push((format!("{client}: {hear}, {what}"), siege.start(client, &hear)));
        }
        let closed = Closed::by(siege, close, open);
        for (client, heard) in &mut clients {
            assert_eq!(heard.line(), "silence", "{client}");
        }
        drop(closed);
        for (client, heard) in &mut clients {
            assert_eq!(heard.line(), "again", "{client}");
        }
        server.words(|| siege.end("victim1", "::1", 9001));
    }
}

/// Friends that a label keeps apart; they are friends again for the next check, whatever comes of this one.
struct Closed<'a> {
    siege: &'a Siege,
    open: &'a str,
}

impl<'a> Closed<'a> {
    fn by(siege: &'a Siege, close: &str, open: &'a str) -> Self {
        let closed = Self { siege, open };
        closed.label(close);
        closed
    }

    fn label(&self, label: &str) {
        let friends = ["-n", NS, "label", "--overwrite", "pod", "friend1", "friend2", label];
        self.siege.lab.kubectl_ok(&friends);
    }
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.label(self.open);
    }
}
