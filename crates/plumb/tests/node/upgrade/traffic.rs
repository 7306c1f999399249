//! What passes, what is tried and must not, and who sees it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kernel::Netns;
use rustix::net::{AddressFamily, SocketType};

use crate::stage::{Pod, wait_for};

/// Longer than any retransmission that a moment without rules could cause, and than a busy machine needs.
const PATIENCE: Duration = Duration::from_secs(30);

/// Says its name to whoever connects, then says back what it hears; datagrams too.
pub fn serve(pod: &Pod, port: u16) {
    let (listener, socket) = pod
        .netns
        .run(|| (TcpListener::bind(("::", port)).unwrap(), UdpSocket::bind(("::", port)).unwrap()))
        .unwrap();
    let name = pod.name.clone();
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let name = name.clone();
            std::thread::spawn(move || say_back(stream, &name));
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], from);
        }
    });
}

fn say_back(mut stream: TcpStream, name: &str) {
    let _ = stream.set_nodelay(true);
    let _ = stream.write_all(format!("{name}\n").as_bytes());
    let mut buffer = [0; 64];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
}

fn connect(netns: &Netns, from: Option<IpAddr>, to: SocketAddr) -> TcpStream {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let open = || -> std::io::Result<TcpStream> {
        let socket = rustix::net::socket(family, SocketType::STREAM, None)?;
        if let Some(from) = from {
            rustix::net::bind(&socket, &SocketAddr::new(from, 0))?;
        }
        rustix::net::connect(&socket, &to)?;
        Ok(TcpStream::from(socket))
    };
    let stream = netns.run(open).unwrap().unwrap_or_else(|error| panic!("{from:?} → {to}: {error}"));
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// The name of the server that this client is led to.
pub fn who_answers(netns: &Netns, client: IpAddr, to: SocketAddr) -> String {
    let mut name = String::new();
    BufReader::new(connect(netns, Some(client), to)).read_line(&mut name).unwrap();
    name.trim().to_owned()
}

/// Counts, and says what went wrong.
#[derive(Default)]
struct State {
    done: AtomicU64,
    failed: Mutex<Option<String>>,
}

impl State {
    /// Waits until so many more were done.
    fn goes_on(&self, what: &str, more: u64) {
        let until = self.done.load(Ordering::Relaxed) + more;
        wait_for(&format!("{what} goes on"), || {
            let failed = self.failed.lock().unwrap();
            assert!(failed.is_none(), "{what} after {:?}: {failed:?}", self.done);
            (self.done.load(Ordering::Relaxed) >= until).then_some(())
        });
    }
}

/// One connection, by which something is said and heard back again and again, until it is dropped.
pub struct Stream {
    what: String,
    state: Arc<State>,
    _stop: Sender<()>,
}

impl Stream {
    pub fn tcp(netns: &Netns, to: SocketAddr) -> Self {
        let mut reader = BufReader::new(connect(netns, None, to));
        let from = reader.get_ref().local_addr().unwrap();
        let mut name = String::new();
        reader.read_line(&mut name).unwrap();
        Self::start(format!("TCP from {from} to {to} at {}", name.trim()), move |word| {
            reader.get_mut().write_all(&word)?;
            let mut heard = [0; 8];
            reader.read_exact(&mut heard)?;
            Ok(heard)
        })
    }

    /// Not one datagram may be lost: the next is sent when the one before is back.
    pub fn udp(netns: &Netns, to: SocketAddr) -> Self {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = netns.run(|| UdpSocket::bind(any)).unwrap().unwrap();
        socket.connect(to).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let from = socket.local_addr().unwrap();
        Self::start(format!("UDP from {from} to {to}"), move |word| {
            socket.send(&word)?;
            let mut heard = [0; 8];
            socket.recv(&mut heard)?;
            Ok(heard)
        })
    }

    fn start(
        what: String,
        mut say: impl FnMut([u8; 8]) -> std::io::Result<[u8; 8]> + Send + 'static,
    ) -> Self {
        let state = Arc::new(State::default());
        let (stop, stopped) = channel();
        let at = Arc::clone(&state);
        std::thread::spawn(move || {
            for count in 1_u64.. {
                match say(count.to_be_bytes()) {
                    Ok(heard) if heard == count.to_be_bytes() => at.done.store(count, Ordering::Relaxed),
                    other => return *at.failed.lock().unwrap() = Some(format!("{count}: {other:?}")),
                }
                if !rests(&stopped, Duration::from_millis(2)) {
                    return;
                }
            }
        });
        Self { what, state, _stop: stop }
    }

    pub fn goes_on(&self, more: u64) {
        self.state.goes_on(&self.what, more);
    }
}

/// `false` when the other side is gone.
fn rests(stopped: &Receiver<()>, time: Duration) -> bool {
    stopped.recv_timeout(time) == Err(RecvTimeoutError::Timeout)
}

/// New flows all the time, of UDP and TCP, until it is dropped. What becomes of them the receivers' watches say.
pub struct Denied {
    what: String,
    state: Arc<State>,
    _stop: Sender<()>,
}

impl Denied {
    pub fn start(netns: &Netns, to: &[SocketAddr]) -> Self {
        Self::from(netns, None, to)
    }

    pub fn start_from(netns: &Netns, from: &str, to: &[SocketAddr]) -> Self {
        Self::from(netns, Some(from.parse().unwrap()), to)
    }

    fn from(netns: &Netns, from: Option<IpAddr>, to: &[SocketAddr]) -> Self {
        let state = Arc::new(State::default());
        let (stop, stopped) = channel();
        let (at, to) = (Arc::clone(&state), to.to_vec());
        let what = format!("what is denied to {to:?}");
        let netns = same(netns);
        std::thread::spawn(move || {
            let attempts = move || {
                // On a busy machine it takes long, and the agent that takes over wants the processor, too.
                let mut took = Duration::ZERO;
                while rests(&stopped, (took * 2).max(Duration::from_millis(1))) {
                    let began = Instant::now();
                    for to in &to {
                        for kind in
                            [SocketType::DGRAM, SocketType::DGRAM, SocketType::DGRAM, SocketType::STREAM]
                        {
                            try_once(from, *to, kind);
                            at.done.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    took = began.elapsed();
                }
            };
            netns.run(attempts).unwrap();
        });
        Self { what, state, _stop: stop }
    }

    pub fn goes_on(&self, more: u64) {
        self.state.goes_on(&self.what, more);
    }
}

/// The same namespace, for a thread of its own.
fn same(netns: &Netns) -> Netns {
    Netns::open(format!("/proc/self/fd/{}", netns.as_fd().as_raw_fd())).unwrap()
}

/// A datagram or a SYN from a port of its own; that it fails is what is asked for.
fn try_once(from: Option<IpAddr>, to: SocketAddr, kind: SocketType) {
    use rustix::net::SocketFlags;
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let Ok(socket) = rustix::net::socket_with(family, kind, SocketFlags::NONBLOCK, None) else { return };
    if let Some(from) = from {
        rustix::net::bind(&socket, &SocketAddr::new(from, 0)).unwrap();
    }
    let connected = rustix::net::connect(&socket, &to).is_ok();
    if connected && kind == SocketType::DGRAM {
        let _ = rustix::io::write(&socket, b"denied");
    }
}

/// A counter in the receiver's own nf_tables, of every packet that matches, before anything else sees it.
pub struct Watch {
    netns: Netns,
}

impl Watch {
    pub fn start(netns: &Netns, matches: &[String]) -> Self {
        let rules = matches.iter().map(|matches| format!("add rule inet watch in {matches} counter;"));
        let rules: String = rules.collect();
        nft(
            netns,
            &format!(
                "add table inet watch; \
                 add chain inet watch in {{ type filter hook prerouting priority -400; }}; {rules}"
            ),
        );
        Self { netns: same(netns) }
    }

    pub fn counted(&self) -> u64 {
        let rules = nft(&self.netns, "list table inet watch");
        let counts = rules.split("packets ").skip(1);
        counts.map(|text| text.split(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }
}

fn nft(netns: &Netns, rules: &str) -> String {
    let done = netns.run(|| Command::new("nft").arg(rules).output()).unwrap().unwrap();
    assert!(done.status.success(), "{rules}: {done:?}");
    String::from_utf8_lossy(&done.stdout).into_owned()
}
