//! What the program at a pod's port lets in: frames whose checksum the kernel is to fill in (packet(7), PACKET_VNET_HDR), and
//! where. What it turns away never comes to the node's own stack.

use std::fs::File;
use std::io::{Error, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use kernel::veth::{self, PodVeth, Port};
use kernel::{Netns, Rtnl, checksums};
use kstate::net::PortOptions;
use types::{IfName, Mac};

const POD: Mac = Mac([0x0a, 0x58, 10, 244, 1, 4]);
const NODE: Mac = Mac([0x0a, 0x58, 0x0a, 0xf4, 1, 1]);
const ALL_NODES: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
/// The program at links of nodes has one count in a process.
static COUNT: std::sync::Mutex<()> = std::sync::Mutex::new(());
/// The last byte of an honest frame.
const HONEST: u8 = 255;

fn name(text: &str) -> IfName {
    IfName::new(text).expect("a good name")
}

/// A node with a bridge, and a pod at it.
fn stage() -> (Netns, Netns) {
    let [node, pod] = [(); 2].map(|()| Netns::fresh().expect("fresh"));
    let mut rtnl = Rtnl::open_in(&node).expect("open");
    let kind = kstate::net::LinkKind::Bridge;
    let link = kstate::net::Link { kind, mac: Some(NODE), mtu: Some(1450), up: true, port: None };
    let bridge = name("cni0");
    let mut batch = rtnl.socket_mut().batch();
    batch.add(|writer, seq| netlink::route::add_link(writer, seq, &bridge, &link, None));
    assert_eq!(rtnl.socket_mut().run(batch).expect("run"), []);
    let index = rtnl.index(&bridge).expect("index");
    let mut batch = rtnl.socket_mut().batch();
    let address = "10.244.1.1/24".parse().expect("an address");
    batch.add(|writer, seq| netlink::route::add_address(writer, seq, index, address));
    assert_eq!(rtnl.socket_mut().run(batch).expect("run"), []);
    let veth = PodVeth {
        host: &name("veth1"),
        host_mac: None,
        netns: &pod,
        interface: &name("eth0"),
        mac: Some(POD),
        mtu: Some(1450),
        addresses: &["10.244.1.4/32".parse().expect("an address")],
        routes: &[],
        bridge: Some(Port { bridge: &bridge, options: PortOptions::OF_POD }),
        loopback: true,
    };
    veth::create(&mut rtnl, &veth).expect("create");
    begin((&node, &pod));
    (node, pod)
}

/// Waits until the port forwards: the bridge hears a moment later that there is a carrier (net/core/link_watch.c).
fn begin((node, pod): (&Netns, &Netns)) {
    let case = Case { v6: false, protocol: UDP, before: NO_OPTIONS, place: (34, 6), good: true, ident: 1 };
    let mut receiver = node.run(|| receiver(false, UDP)).expect("run");
    let soon = libc::timeval { tv_sec: 0, tv_usec: 20_000 };
    set(&receiver, (libc::SOL_SOCKET, libc::SO_RCVTIMEO), &soon);
    let mut raw = pod.run(sender).expect("run");
    let end = std::time::Instant::now() + Duration::from_secs(20);
    loop {
        send(&mut raw, None, &case.frame(&body(0), (0, false)));
        if receiver.read(&mut [0; 2000]).is_ok() {
            return;
        }
        assert!(std::time::Instant::now() < end, "nothing arrives");
    }
}

fn socket(family: i32, kind: i32, protocol: i32) -> File {
    // SAFETY: no memory is passed.
    let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    assert!(fd >= 0, "{}", Error::last_os_error());
    // SAFETY: it is open and nobody else's.
    File::from(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn set<T>(socket: &File, (level, option): (i32, i32), value: &T) {
    let length = u32::try_from(size_of::<T>()).expect("a size");
    // SAFETY: the value lives through the call and its length is given.
    let done = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, option, std::ptr::from_ref(value).cast(), length)
    };
    assert_eq!(done, 0, "{}", Error::last_os_error());
}

/// Of the pod, with a header before each frame that says what is to be filled in.
fn sender() -> File {
    const PACKET_VNET_HDR: i32 = 15;
    let raw = socket(libc::AF_PACKET, libc::SOCK_RAW, 0);
    set(&raw, (libc::SOL_PACKET, PACKET_VNET_HDR), &1_i32);
    // SAFETY: all zeroes are an address.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    let index = Rtnl::open().expect("open").index(&name("eth0")).expect("an index");
    address.sll_ifindex = index as i32;
    let length = size_of::<libc::sockaddr_ll>() as u32;
    // SAFETY: the address lives through the call and its length is given.
    let done = unsafe { libc::bind(raw.as_raw_fd(), (&raw const address).cast(), length) };
    assert_eq!(done, 0, "{}", Error::last_os_error());
    raw
}

/// All packets of a protocol that come to the node, whatever they hold.
fn receiver(v6: bool, protocol: u8) -> File {
    let raw = socket(if v6 { libc::AF_INET6 } else { libc::AF_INET }, libc::SOCK_RAW, protocol.into());
    let patience = libc::timeval { tv_sec: Duration::from_secs(20).as_secs() as i64, tv_usec: 0 };
    set(&raw, (libc::SOL_SOCKET, libc::SO_RCVTIMEO), &patience);
    raw
}

/// Where a checksum is to be filled in, from the frame's start, or nowhere.
type Place = Option<(u16, u16)>;

#[derive(Clone, Copy)]
struct Case {
    v6: bool,
    protocol: u8,
    /// What stands before the transport header: options of IPv4, extension headers of IPv6.
    before: &'static [u8],
    place: (u16, u16),
    good: bool,
    /// What fragments of one packet have in common.
    ident: u8,
}

fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
    let mut all: u32 = words.sum();
    while all > 0xffff {
        all = (all & 0xffff) + (all >> 16);
    }
    !(all as u16)
}

impl Case {
    /// `part`: the fragment's offset in bytes, and whether more follow.
    fn frame(&self, body: &[u8], part: (u16, bool)) -> Vec<u8> {
        let mut frame = if self.v6 { ALL_NODES } else { NODE.0 }.to_vec();
        frame.extend(POD.0);
        let length = u16::try_from(self.before.len() + body.len()).expect("a length");
        if self.v6 {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(length.to_be_bytes());
            frame.extend([if self.before.is_empty() { self.protocol } else { 60 }, 1]);
            frame.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0x08, 0x58, 0x0a, 0xff, 0xfe, 0xf4, 1, 4]);
            frame.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        } else {
            let words = u8::try_from(5 + self.before.len() / 4).expect("a length");
            let mut ip = vec![0x40 | words, 0];
            ip.extend((20 + length).to_be_bytes());
            ip.extend([0, self.ident]);
            ip.extend(((part.0 / 8) | (u16::from(part.1) << 13)).to_be_bytes());
            ip.extend([64, self.protocol, 0, 0, 10, 244, 1, 4, 10, 244, 1, 1]);
            ip.extend(self.before);
            let check = sum(&ip).to_be_bytes();
            ip[10..12].copy_from_slice(&check);
            frame.extend([8, 0]);
            frame.extend(ip);
        }
        if self.v6 {
            frame.extend(self.before);
        }
        frame.extend(body);
        frame
    }
}

fn send(raw: &mut File, place: Place, frame: &[u8]) {
    let (start, offset) = place.unwrap_or_default();
    let mut bytes = vec![u8::from(place.is_some()), 0, 0, 0, 0, 0];
    bytes.extend(start.to_ne_bytes());
    bytes.extend(offset.to_ne_bytes());
    bytes.extend(frame);
    raw.write_all(&bytes).expect("send");
}

/// Whether what is sent arrives, that ends with 1; something honest is sent last.
fn arrives(case: &Case, (node, pod): (&Netns, &Netns), attack: impl FnOnce(&mut File) + Send) -> bool {
    let mut receiver = node.run(|| receiver(case.v6, case.protocol)).expect("run");
    let honest = case.frame(&body(HONEST), (0, false));
    pod.run(|| {
        let mut raw = sender();
        attack(&mut raw);
        send(&mut raw, None, &honest);
    })
    .expect("run");
    let mut seen = false;
    let mut buffer = [0; 2000];
    loop {
        let length = receiver.read(&mut buffer).expect("an honest packet arrives");
        match buffer.get(length - 1) {
            Some(&HONEST) => return seen,
            Some(1) => seen = true,
            _ => {}
        }
    }
}

/// Of any protocol: an even length, so that IPv6's checksum of raw sockets is not asked for.
fn body(last: u8) -> [u8; 80] {
    let mut body = [0x45; 80];
    body[79] = last;
    body
}

const UDP: u8 = 17;
const TCP: u8 = 6;
const NO_OPTIONS: &[u8] = &[];
/// Four of them that say nothing (RFC 791 §3.1).
const OPTIONS: &[u8] = &[1, 1, 1, 1];

/// From the protocol, what is before it, and where.
fn cases() -> Vec<Case> {
    let case = |v6, (protocol, before), place, good| Case { v6, protocol, before, place, good, ident: 1 };
    let v4 = |protocol, place, good| case(false, (protocol, NO_OPTIONS), place, good);
    let v6 = |protocol, place, good| case(true, (protocol, NO_OPTIONS), place, good);
    const TO_UDP: &[u8] = &[UDP, 0, 1, 4, 0, 0, 0, 0];
    const MORE: [u8; 8] = [60, 0, 1, 4, 0, 0, 0, 0];
    const EIGHT: [[u8; 8]; 8] = [MORE, MORE, MORE, MORE, MORE, MORE, MORE, [UDP, 0, 1, 4, 0, 0, 0, 0]];
    const EIGHT_TO_UDP: &[u8] = EIGHT.as_flattened();
    vec![
        v4(UDP, (34, 6), true),
        v4(UDP, (34, 2), false),
        v4(UDP, (28, 0), false),
        v4(UDP, (36, 4), false),
        v4(UDP, (34, 8), false),
        v4(UDP, (42, 0), true),
        v4(UDP, (76, 6), true),
        v4(136, (34, 6), true),
        v4(TCP, (34, 16), true),
        v4(TCP, (34, 2), false),
        v4(TCP, (54, 0), false),
        v4(132, (34, 8), true),
        v4(132, (34, 2), false),
        v4(33, (34, 6), true),
        v4(1, (34, 2), false),
        v4(47, (58, 16), true),
        v4(47, (34, 4), false),
        v4(4, (54, 16), true),
        v4(4, (34, 12), false),
        case(false, (UDP, OPTIONS), (38, 6), true),
        case(false, (UDP, OPTIONS), (34, 6), false),
        v6(UDP, (54, 6), true),
        v6(UDP, (54, 2), false),
        v6(UDP, (36, 0), false),
        v6(UDP, (62, 0), true),
        v6(TCP, (54, 16), true),
        v6(TCP, (54, 2), false),
        case(true, (UDP, TO_UDP), (62, 6), true),
        case(true, (UDP, TO_UDP), (54, 6), false),
        case(true, (UDP, EIGHT_TO_UDP), (118, 6), true),
        case(true, (UDP, EIGHT_TO_UDP), (110, 6), false),
    ]
}

#[test]
fn only_checksums_in_their_places_come_in() {
    let (node, pod) = stage();
    if let Err(missing) = checksums::program() {
        assert!(missing.contains("CAP_SYS_ADMIN"), "only an ordinary user has none: {missing}");
        return;
    }
    for case in cases() {
        let Case { v6, protocol, place, .. } = case;
        let frame = case.frame(&body(1), (0, false));
        let came = arrives(&case, (&node, &pod), |raw| send(raw, Some(place), &frame));
        assert_eq!(came, case.good, "{} protocol {protocol} {place:?}", if v6 { "IPv6" } else { "IPv4" });
    }
}

/// A pod's port stands for the link of a node.
#[test]
fn at_a_link_of_the_node_what_is_dropped_is_counted() {
    let _alone = COUNT.lock();
    let (node, pod) = stage();
    let Ok(program) = checksums::program() else { return };
    let mut rtnl = Rtnl::open_in(&node).expect("open");
    let link = name("veth1");
    assert!(checksums::guard(&mut rtnl, &link).expect("guard"), "in the place of another");
    assert!(!checksums::guard(&mut rtnl, &link).expect("guard"), "it is there");
    for case in cases() {
        let before = program.dropped().expect("a count");
        let frame = case.frame(&body(1), (0, false));
        let came = arrives(&case, (&node, &pod), |raw| send(raw, Some(case.place), &frame));
        let dropped = program.dropped().expect("a count") - before;
        assert_eq!((came, dropped), (case.good, u64::from(!case.good)), "{} {:?}", case.protocol, case.place);
    }
    assert_eq!(checksums::leave(&mut rtnl).expect("leave"), [link]);
}

/// The machine's links carry more than pods' packets: tags are looked behind, and what is no IP is not judged.
#[test]
fn at_a_link_of_the_node_tags_are_looked_behind_and_other_protocols_pass() {
    let _alone = COUNT.lock();
    let (node, pod) = stage();
    let Ok(program) = checksums::program() else { return };
    let mut rtnl = Rtnl::open_in(&node).expect("open");
    checksums::guard(&mut rtnl, &name("veth1")).expect("guard");
    const TAG: [u8; 4] = [0x81, 0, 0, 0];
    const OUTER: [u8; 4] = [0x88, 0xa8, 0, 0];
    let honest = cases().into_iter().next().expect("a case");
    let frame = |before: &[u8], end: u8| {
        let frame = honest.frame(&body(end), (0, false));
        [&frame[..12], before, &frame[12..]].concat()
    };
    let dropped = |before: &[u8], offset: u16| {
        let count = program.dropped().expect("a count");
        let more = u16::try_from(before.len()).expect("a length");
        let tagged = frame(before, 1);
        arrives(&honest, (&node, &pod), |raw| send(raw, Some((34 + more, offset)), &tagged));
        program.dropped().expect("a count") - count
    };
    let two = [OUTER, TAG].concat();
    for tags in [&[][..], &TAG, &OUTER, &two] {
        assert_eq!((dropped(tags, 6), dropped(tags, 2)), (0, 1), "{tags:?}");
    }
    // MPLS and PPPoE, in front of what would be IP.
    for kind in [[0x88, 0x47, 0, 0], [0x88, 0x64, 0x11, 0]] {
        assert_eq!((dropped(&kind, 6), dropped(&kind, 2)), (0, 0), "{kind:?}");
    }
}

#[test]
fn a_fragment_has_no_checksum_that_is_still_to_be_filled_in() {
    let (node, pod) = stage();
    if checksums::program().is_err() {
        return;
    }
    let place = (34, 6);
    let case = Case { v6: false, protocol: UDP, before: NO_OPTIONS, place, good: true, ident: 1 };
    let whole = body(1);
    for (ident, filled) in (2..).zip([None, Some(0), Some(1)]) {
        let case = Case { ident, ..case };
        let parts = [case.frame(&whole[..40], (0, true)), case.frame(&whole[40..], (40, false))];
        let came = arrives(&case, (&node, &pod), |raw| {
            for (n, part) in parts.iter().enumerate() {
                send(raw, Some(place).filter(|_| filled == Some(n)), part);
            }
        });
        assert_eq!(came, filled.is_none(), "{filled:?}");
    }
}

/// What the pod's own stack leaves to be filled in: large segments, datagrams in fragments.
#[test]
fn what_a_kernel_sends_by_itself_comes_in() {
    use std::net::{TcpListener, TcpStream, UdpSocket};
    let (node, pod) = stage();
    let mut gateway = Rtnl::open_in(&pod).expect("open");
    let index = gateway.index(&name("eth0")).expect("an index");
    let mut batch = gateway.socket_mut().batch();
    let subnet = "10.244.1.7/24".parse().expect("an address");
    batch.add(|writer, seq| netlink::route::add_address(writer, seq, index, subnet));
    assert_eq!(gateway.socket_mut().run(batch).expect("run"), []);
    let (listener, server) = node
        .run(|| {
            (TcpListener::bind("10.244.1.1:7").expect("bind"), UdpSocket::bind("10.244.1.1:7").expect("bind"))
        })
        .expect("run");
    server.set_read_timeout(Some(Duration::from_secs(20))).expect("a time-out");
    let sent = vec![7; 400_000];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            pod.run(|| {
                let mut stream = TcpStream::connect("10.244.1.1:7").expect("connect");
                stream.write_all(&sent).expect("write");
                let client = UdpSocket::bind("10.244.1.4:0").expect("bind");
                client.send_to(&sent[..4000], "10.244.1.1:7").expect("send");
            })
            .expect("run");
        });
        let mut heard = Vec::new();
        let mut peer = listener.accept().expect("accept").0;
        peer.read_to_end(&mut heard).expect("read");
        assert!(heard == sent, "{} bytes", heard.len());
        let mut buffer = [0; 5000];
        assert_eq!(server.recv(&mut buffer).expect("a datagram"), 4000);
    });
}
