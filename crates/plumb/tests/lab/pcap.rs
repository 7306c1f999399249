//! A capture of all interfaces of a node by tcpdump, read as values. tcpdump is a witness that shares no code with us.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::net::Ipv4Addr;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::cluster::Lab;

/// An IPv4 packet, seen on an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packet {
    pub interface: String,
    pub from: String,
    pub to: String,
    pub protocol: u8,
    pub from_port: u16,
    pub to_port: u16,
    /// Of the whole packet with its headers.
    pub length: u16,
    pub dont_fragment: bool,
    pub fragment: bool,
    /// Flags of TCP.
    pub syn: bool,
    pub ack: bool,
    /// What VXLAN (port 8472) carries, with its network identifier.
    pub inside: Option<(u32, Box<Packet>)>,
}

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
const MARK: &str = "end-of-the-capture";

/// Becomes another program, whose `setgroups` does nothing and succeeds, by a seccomp filter. tcpdump, run by root, sets
/// the groups of the user that it is to become, which is root; but in a user namespace made by an ordinary user nobody
/// may (user_namespaces(7), "setgroups").
const KEEPING_GROUPS: &str = r#"
import ctypes, os, struct, sys
number = {"x86_64": 116, "aarch64": 159}[os.uname().machine]
load, equal, end = 0x20, 0x15, 0x06
code = [(load, 0, 0, 0), (equal, 0, 1, number), (end, 0, 0, 0x50000), (end, 0, 0, 0x7fff0000)]
body = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
program = Program(len(code), ctypes.addressof(body))
assert libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0, ctypes.get_errno()
os.execvp(sys.argv[1], sys.argv[1:])
"#;

/// An interface's index and the packet.
type Frame = (u32, Vec<u8>);

/// A running capture; ended by [`Capture::packets`], or by dropping it.
pub struct Capture<'lab> {
    lab: &'lab Lab,
    node: String,
    child: Child,
    /// tcpdump ends when this closes.
    stdin: Option<ChildStdin>,
    names: BTreeMap<u32, String>,
    marked: mpsc::Receiver<()>,
    reader: Option<JoinHandle<Vec<Frame>>>,
}

impl<'lab> Capture<'lab> {
    /// Returns once tcpdump listens.
    pub fn start(lab: &'lab Lab, node: &str) -> Self {
        let names = interfaces(lab, node);
        // The shell ends tcpdump when its standard input closes: also when this process is killed. It ends itself
        // when tcpdump does not start.
        let script = "exec 3<&0; python3 -c \"$1\" \
                      tcpdump -i any -y LINUX_SLL2 -n -U --immediate-mode -B 16384 -Z root -w - & \
                      dump=$!; (read end <&3; kill -INT $dump) > /dev/null 2>&1 & wait $dump";
        let mut child = lab
            .node_command(node)
            .args(["sh", "-c", script, "sh", KEEPING_GROUPS])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("plumb lab exec starts");
        let mut said = BufReader::new(child.stderr.take().expect("piped"));
        let mut all = String::new();
        while !all.contains("listening on") {
            let read = said.read_line(&mut all).expect("tcpdump speaks");
            assert!(read > 0, "tcpdump does not start on {node}: {all}");
        }
        // Whatever else it says must not block it.
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        let (mark, marked) = mpsc::channel();
        let stdout = child.stdout.take().expect("piped");
        let reader = std::thread::spawn(move || read(stdout, &mark));
        let stdin = child.stdin.take();
        Self { lab, node: node.to_owned(), child, stdin, names, marked, reader: Some(reader) }
    }

    /// Sends a last packet of our own, waits until tcpdump has shown it, and returns what came before.
    pub fn packets(mut self) -> Vec<Packet> {
        // Nobody listens there, and nobody has to answer: it has been sent when this returns.
        self.lab.node_demo(&self.node, &["udp", "192.168.1.1:9", "--say", MARK, "--timeout", "0.01"]);
        let marked = self.marked.recv_timeout(Duration::from_secs(60));
        marked.expect("tcpdump shows the last packet within 20 s");
        self.stdin = None;
        let frames = self.reader.take().expect("once").join().expect("the capture is readable");
        let name = |index: &u32| self.names.get(index).cloned().unwrap_or_else(|| format!("if{index}"));
        frames.iter().filter_map(|(index, bytes)| parse(&name(index), bytes)).collect()
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        self.stdin = None;
        let _ = self.child.wait();
    }
}

fn interfaces(lab: &Lab, node: &str) -> BTreeMap<u32, String> {
    let links = lab.node_ok(node, &["ip", "-j", "link"]);
    let links: serde_json::Value = serde_json::from_str(&links).expect("ip prints JSON");
    let links = links.as_array().expect("a list");
    let index =
        |link: &serde_json::Value| link["ifindex"].as_u64().and_then(|index| u32::try_from(index).ok());
    links.iter().filter_map(|link| Some((index(link)?, link["ifname"].as_str()?.to_owned()))).collect()
}

/// Interface and packet, each, until the mark has been seen and the stream ends.
fn read(mut from: impl Read, mark: &mpsc::Sender<()>) -> Vec<Frame> {
    let mut header = [0; 24];
    let mut frames = Vec::new();
    if from.read_exact(&mut header).is_err() {
        return frames;
    }
    let word = |bytes: &[u8]| u32::from_ne_bytes(bytes.try_into().expect("four bytes"));
    assert_eq!((word(&header[..4]), word(&header[20..])), (0xa1b2_c3d4, 276), "pcap of LINUX_SLL2");
    let mut head = [0; 16];
    while from.read_exact(&mut head).is_ok() {
        let mut frame = vec![0; word(&head[8..12]) as usize];
        if from.read_exact(&mut frame).is_err() {
            break;
        }
        if frame.windows(MARK.len()).any(|window| window == MARK.as_bytes()) {
            let _ = mark.send(());
        }
        // LINUX_SLL2: protocol, 2 reserved, interface index (4), type, packet type, address: 20 bytes.
        if frame.get(..2) == Some(&[8, 0]) {
            let index = u32::from_be_bytes(frame[4..8].try_into().expect("four bytes"));
            frames.push((index, frame.split_off(20)));
        }
    }
    frames
}

fn parse(interface: &str, bytes: &[u8]) -> Option<Packet> {
    let short = |bytes: &[u8], at: usize| Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
    let address =
        |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok()?).to_string());
    if bytes.first()? >> 4 != 4 {
        return None;
    }
    let flags = short(bytes, 6)?;
    let mut packet = Packet {
        interface: interface.to_owned(),
        from: address(12)?,
        to: address(16)?,
        protocol: *bytes.get(9)?,
        length: short(bytes, 2)?,
        dont_fragment: flags & 0x4000 != 0,
        fragment: flags & 0x3fff != 0,
        ..Packet::default()
    };
    let payload = bytes.get(usize::from(bytes.first()? & 15) * 4..)?;
    if matches!(packet.protocol, TCP | UDP) && flags & 0x1fff == 0 {
        (packet.from_port, packet.to_port) = (short(payload, 0)?, short(payload, 2)?);
    }
    if packet.protocol == TCP {
        let flags = payload.get(13).copied().unwrap_or_default();
        (packet.syn, packet.ack) = (flags & 2 != 0, flags & 16 != 0);
    }
    // UDP 8, VXLAN 8 (flags, 24 bits of identifier), Ethernet 14.
    if packet.protocol == UDP && packet.to_port == 8472 && short(payload, 8 + 8 + 12) == Some(0x800) {
        let number = u32::from_be_bytes([0, *payload.get(12)?, *payload.get(13)?, *payload.get(14)?]);
        packet.inside = Some((number, Box::new(parse(interface, payload.get(8 + 8 + 14..)?)?)));
    }
    Some(packet)
}
