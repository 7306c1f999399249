//! Connection tracking against the kernel, in a network namespace of its own.

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::process::Command;

use kernel::Netns;
use kernel::conntrack::Conntrack;
use kernel::nft::Nft;
use kstate::nft::build::*;
use kstate::nft::{BaseChain, Chain, ChainKind, Expr, Hook, Reg, Ruleset, Table, TableFamily, TableId, diff};
use netlink::conntrack::{Filter, status};
use types::Family;

/// A TCP segment without flags, which conntrack calls invalid (nf_conntrack_proto_tcp.c, tcp_new).
const SEGMENT: &str = r#"
import socket, struct
out = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
out.sendto(struct.pack("!HHIIBBHHH", 9, 9, 1, 0, 5 << 4, 0, 0, 0, 0), ("127.0.0.1", 0))
"#;

/// What is sent to port 53 goes to `port`.
fn redirect(port: u16) -> Ruleset {
    let r = Reg(0);
    let to = [
        l4proto(r),
        is(r, types::Protocol::Udp),
        th_dport(r),
        is(r, 53_u16),
        immediate(r, port.to_be_bytes()),
    ];
    let rules = vec![rule("", to.into_iter().chain([Expr::Redirect { port: Some(r) }]))];
    let base = Some(BaseChain { kind: ChainKind::Nat, hook: Hook::Output, priority: -100, drop: false });
    let table =
        Table { chains: [("output".to_owned(), Chain { base, rules })].into(), sets: BTreeMap::new() };
    // In both families: the kernel tracks connections where a rule needs it.
    let id = |family| TableId { family, name: "plumb".into() };
    let tables = [TableFamily::Ip, TableFamily::Ip6].map(|family| (id(family), table.clone()));
    Ruleset { tables: tables.into() }
}

#[test]
fn a_connection_is_seen_filtered_and_forgotten() {
    let netns = Netns::fresh().expect("a network namespace");
    netns
        .run(|| {
            let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("ip is installed");
            assert!(up.success());
            let server = UdpSocket::bind("127.0.0.1:0").expect("a server");
            let port = server.local_addr().expect("its address").port();
            let desired = redirect(port);
            let plan = diff(&desired, &Ruleset::default());
            Nft::open().expect("a socket").apply(&plan, &desired).expect("apply");
            let client = UdpSocket::bind("127.0.0.1:0").expect("a client");
            for destination in ["127.0.0.1:53", "127.0.0.1:54"] {
                client.send_to(b"question", destination).expect("send");
            }
            let mut conntrack = Conntrack::open().expect("a socket");
            let all = conntrack.entries(Family::V4, &Filter::default()).expect("entries");
            assert_eq!(all.len(), 2, "{all:?}");
            let usage = conntrack.usage().expect("the use");
            let limit =
                std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max").expect("the limit");
            assert_eq!((usage.entries, usage.limit), (2, limit.trim().parse().expect("a number")));
            // What belongs to no connection and begins none: a segment without a flag.
            let before = conntrack.counted().expect("counters");
            assert_eq!((before.drop, before.early_drop), (0, 0), "{before:?}");
            let raw = ["-c", SEGMENT];
            let sent = Command::new("python3").args(raw).status().expect("python3 is installed");
            assert!(sent.success());
            let after = conntrack.counted().expect("counters");
            assert!(after.invalid > before.invalid, "{before:?} {after:?}");
            let localhost = "127.0.0.1".parse().ok();
            let dns = Filter {
                protocol: Some(17),
                dst: localhost,
                dst_port: Some(53),
                src: localhost,
                answerer: None,
            };
            let found = conntrack.entries(Family::V4, &dns).expect("entries");
            let [entry] = found.as_slice() else { panic!("{found:?}") };
            assert_eq!(entry.original.src, client.local_addr().expect("its address"));
            assert_eq!((entry.original.dst.port(), entry.reply.src.port()), (53, port));
            assert_ne!(entry.status & status::DST_NAT, 0);
            assert_eq!(entry.status & status::SEEN_REPLY, 0);
            assert!(entry.timeout.is_some_and(|seconds| seconds > 0));
            assert!(
                conntrack
                    .entries(Family::V4, &Filter { protocol: Some(6), ..dns })
                    .expect("entries")
                    .is_empty()
            );
            assert!(conntrack.entries(Family::V6, &Filter::default()).expect("entries").is_empty());
            let six = UdpSocket::bind("[::1]:0").expect("an IPv6 client");
            for destination in ["[::1]:53", "[::1]:54"] {
                six.send_to(b"question", destination).expect("send");
            }
            let localhost = "::1".parse().ok();
            let dns = Filter {
                protocol: Some(17),
                dst: localhost,
                dst_port: Some(53),
                src: localhost,
                answerer: None,
            };
            let found = conntrack.entries(Family::V6, &dns).expect("entries");
            let [of_six] = found.as_slice() else { panic!("{found:?}") };
            assert_eq!(of_six.original.src, six.local_addr().expect("its address"));
            assert!(conntrack.delete(of_six).expect("delete"));
            assert!(conntrack.delete(entry).expect("delete"));
            assert!(!conntrack.delete(entry).expect("delete again"));
            let left = conntrack.entries(Family::V4, &Filter::default()).expect("entries");
            assert_eq!(left.iter().map(|entry| entry.original.dst.port()).collect::<Vec<_>>(), [54]);
        })
        .expect("the test's body");
}

#[test]
fn connections_are_found_by_who_answers_and_forgotten_together() {
    let netns = Netns::fresh().expect("a network namespace");
    netns
        .run(|| {
            for words in ["link set lo up", "address add fd00::2/128 dev lo nodad"] {
                let done = Command::new("ip").args(words.split(' ')).status().expect("ip is installed");
                assert!(done.success());
            }
            let desired = redirect(54);
            Nft::open()
                .expect("a socket")
                .apply(&diff(&desired, &Ruleset::default()), &desired)
                .expect("apply");
            let mut conntrack = Conntrack::open().expect("a socket");
            for (family, client, servers) in [
                (Family::V4, "127.0.0.1:0", ["127.0.0.2", "127.0.0.3"]),
                (Family::V6, "[::1]:0", ["fd00::2", "::1"]),
            ] {
                let client = UdpSocket::bind(client).expect("a client");
                let servers = servers.map(|server| server.parse::<std::net::IpAddr>().expect("an address"));
                for port in 1000..1300 {
                    client.send_to(b"x", (servers[0], port)).expect("send");
                }
                client.send_to(b"x", (servers[1], 1000)).expect("send");
                let answers = Filter { answerer: Some(servers[0]), ..Filter::default() };
                let found = conntrack.entries(family, &answers).expect("entries");
                assert_eq!(found.len(), 300, "{family}");
                let even = |entry: &netlink::conntrack::Entry| entry.original.dst.port().is_multiple_of(2);
                assert_eq!(conntrack.entries_that(family, &answers, even).expect("entries").len(), 150);
                assert_eq!(conntrack.delete_all(&found[..10]).expect("delete"), 10);
                assert_eq!(conntrack.delete_all(&found).expect("delete"), 290, "ten were forgotten already");
                let left = conntrack.entries(family, &Filter::default()).expect("entries");
                assert_eq!(left.iter().map(|e| e.reply.src.ip()).collect::<Vec<_>>(), [servers[1]]);
            }
        })
        .expect("the test's body");
}
