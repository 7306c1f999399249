//! A machine on the nodes' network says, by router advertisements, that pods are on its link.

use std::collections::BTreeSet;
use std::time::Duration;

use types::Family;

use super::{OUTSIDE, Siege};
use crate::cluster::wait_for;

const PATIENCE: Duration = Duration::from_secs(60);
const NODES: [&str; 2] = ["node1", "node2"];

/// Not even while nodes believe that pods are on its link.
pub fn adverts(siege: &Siege) {
    let victims = ["victim1", "victim2"].map(|pod| siege.ip(pod, Family::V6));
    let advertise = |seconds: u32| siege.outside(&format!("advertise({victims:?}, {seconds})"));
    let ways = || NODES.map(|node| victims.map(|to| siege.lab.node_ok(node, &["ip", "route", "get", to])));
    let believed = |how: bool| move |way: &String| way.contains(" dev eth0") == how;
    let heard = siege.begin(siege.outside_command(), &format!("watch(claimed={victims:?})"));
    wait_for("nodes believe it", PATIENCE, || {
        advertise(600);
        ways().as_flattened().iter().all(believed(true)).then_some(()).ok_or_else(|| format!("{:?}", ways()))
    });
    for victim in victims {
        for friend in ["friend1", "friend2"] {
            siege.python(friend, &format!("say({victim:?}, 9001, 'by-a-pod')"));
        }
        for node in NODES {
            let says = format!(
                "import socket\nsocket.socket(socket.AF_INET6, socket.SOCK_DGRAM).sendto(b'<by-a-node>', ({victim:?}, 9001))"
            );
            // The kernel may say that it was dropped.
            siege.lab.node(node, &["python3", "-c", &says]);
        }
    }
    let words = heard.words(|| siege.end("friend1", OUTSIDE[1], 9001));
    wait_for("nodes forget it", PATIENCE, || {
        for node in NODES {
            for victim in victims {
                siege.lab.node(node, &["ip", "route", "del", &format!("{victim}/128"), "dev", "eth0"]);
            }
        }
        ways().as_flattened().iter().all(believed(false)).then_some(()).ok_or_else(|| format!("{:?}", ways()))
    });
    assert_eq!(words, BTreeSet::from(["END".to_owned()]), "the router hears only what is for it");
    siege.seen(&["victim1", "victim2"], Family::V6, || ());
}
