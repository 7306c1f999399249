//! The state that agents of 039c3aa leave: by such agents, or as it was recorded.
//!
//! ```text
//!   039c3aa/nodeN.transactions.gz   all that the agent sent to nf_tables while the objects of `world.rs` came: of each
//!                                   datagram the length (four bytes, the lowest first) and the bytes
//!   039c3aa/nodeN.records.json      its file of attachments; paths of namespaces are each run's own
//! ```
//! They are bytes because nft, which would read text, writes the same rules by other expressions than the agent does. To
//! record anew: a build of that commit whose `kernel::nft::Nft::commit` writes `transaction.bytes` down, and this test
//! with `PLUMB_FORMER`.

use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use kernel::socket::{NetlinkSocket, Subsystem};
use serde_json::Value;

use crate::stage::{Node, Stage};
use crate::ways::bare;

/// Has agents of this program make everything that agents make.
pub fn begin(stage: &mut Stage, program: &Path) {
    for number in 0..stage.nodes.len() {
        let node = bare(stage, number);
        node.program = program.to_owned();
        node.start();
    }
    for node in &stage.nodes {
        node.wait_ready();
    }
}

/// Puts what was recorded in the place of what this version's agents have made.
pub fn load(stage: &mut Stage) {
    for node in &mut stage.nodes {
        node.kill();
        for table in ["ip plumb", "ip6 plumb", "bridge plumb"] {
            node.run(&format!("nft delete table {table}"));
        }
        let mut transactions = Vec::new();
        let file = std::fs::File::open(recorded(node, "transactions.gz")).unwrap();
        GzDecoder::new(file).read_to_end(&mut transactions).unwrap();
        send(node, &transactions);
        records(node);
    }
}

fn recorded(node: &Node, what: &str) -> PathBuf {
    let of_tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/node/upgrade/039c3aa");
    of_tests.join(format!("{}.{what}", node.name))
}

fn send(node: &Node, mut recorded: &[u8]) {
    let socket = node.netns.run(|| NetlinkSocket::open(Subsystem::Netfilter)).unwrap().unwrap();
    while let Some((length, rest)) = recorded.split_first_chunk() {
        let (datagram, rest) = rest.split_at(u32::from_le_bytes(*length) as usize);
        socket.send(datagram).unwrap();
        recorded = rest;
    }
}

/// The earlier agent's file, with what is this run's own.
fn records(node: &Node) {
    let files = std::fs::read_dir(node.dir.join("data")).unwrap().map(|entry| entry.unwrap().path());
    let path = files.into_iter().find(|path| path.extension().is_some_and(|it| it == "json")).unwrap();
    let read = |path: &Path| -> Value { serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() };
    let now = read(&path);
    let mut former = read(&recorded(node, "records.json"));
    let all = former["records"].as_object_mut().unwrap();
    assert_eq!(all.len(), now["records"].as_object().unwrap().len());
    for (handle, record) in all {
        let now = &now["records"][handle.as_str()];
        assert_eq!((&record["ips"], &record["host_if"]), (&now["ips"], &now["host_if"]), "{handle}");
        for own in ["netns", "uid"] {
            record[own] = now[own].clone();
        }
    }
    std::fs::write(&path, former.to_string()).unwrap();
}
