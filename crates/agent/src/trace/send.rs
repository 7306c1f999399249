//! Sends the traced packet: one real connection from inside the pod's network namespace.

use std::io::{Read, Write};
use std::net::{SocketAddr, SocketAddrV6, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kernel::echo::Echo;
use kernel::probe::{Answer, Connected, Probe};
use kernel::{Netns, Rtnl};
use trace::exchange::{Ask, Flow};
use trace::observed::{Sighting, SocketEnd};
use types::{IfName, Protocol};

use super::views::Wired;
use super::watch::now;

/// A socket of the pod that has sent nothing yet.
#[derive(Debug)]
pub enum Sender {
    Probe(Probe),
    Echo(Echo),
}

impl Sender {
    pub fn source(&self) -> SocketAddr {
        match self {
            Self::Probe(probe) => probe.source(),
            Self::Echo(echo) => echo.source(),
        }
    }
}

/// Takes the source port, before anything is sent.
pub fn reserve(wired: &Wired, source: SocketAddr, protocol: Protocol) -> Result<Sender> {
    let netns =
        Netns::open(&wired.netns).with_context(|| format!("pod {}: open its namespace", wired.pod))?;
    let probe = match protocol {
        Protocol::Tcp => Probe::tcp(&netns, source).map(Sender::Probe),
        Protocol::Udp => Probe::udp(&netns, source).map(Sender::Probe),
        Protocol::Icmp => Echo::open(&netns, source).map(Sender::Echo),
        Protocol::Sctp => bail!("a trace sends TCP or UDP; SCTP needs a client in the pod"),
    };
    probe.with_context(|| format!("pod {}: take a source port", wired.pod))
}

/// A connection that nobody answers for so long is not waited for: a first packet is lost or it is not, and the next
/// would leave after a second (RFC 6298 §2).
const CONNECTING: Duration = Duration::from_millis(400);

/// The destination, with the pod's link where it is of that alone.
pub fn scoped(wired: &Wired, to: SocketAddr, ask: &Ask) -> Result<SocketAddr> {
    let (SocketAddr::V6(v6), Some((_, link))) = (to, ask.host.split_once('%')) else { return Ok(to) };
    let index = Rtnl::open_in(&Netns::open(&wired.netns)?)?.index(&IfName::new(link)?);
    let index = index.with_context(|| format!("pod {} has no link {link}", wired.pod))?;
    Ok(SocketAddrV6::new(*v6.ip(), v6.port(), 0, index).into())
}

/// `to`: the flow's destination, as [`scoped`] has it.
pub async fn send(
    sender: Sender,
    (flow, to): (Flow, SocketAddr),
    ask: Ask,
    timeout: Duration,
) -> Result<Sighting> {
    let sent = tokio::task::spawn_blocking(move || {
        let (at, started) = (now(), Instant::now());
        let patience = timeout.min(CONNECTING);
        let end = match sender {
            Sender::Echo(echo) => match datagram(echo.exchange(to, 1, patience)?, started) {
                SocketEnd::Answered { micros, .. } => {
                    SocketEnd::Answered { text: "echo reply".to_owned(), micros }
                }
                other => other,
            },
            Sender::Probe(probe) if flow.protocol == Protocol::Udp => {
                datagram(probe.exchange(to, b"plumb trace\n", patience)?, started)
            }
            Sender::Probe(probe) => stream(probe.connect(to, patience)?, &ask, started, timeout)?,
        };
        Ok::<_, kernel::Error>((at, end))
    });
    let sent = sent.await.context("the sender ended early")?;
    let (at, end) = sent.with_context(|| format!("send to {}", flow.destination))?;
    Ok(Sighting::Sent { at, source: flow.source, destination: flow.destination, end })
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

fn datagram(answer: Answer, started: Instant) -> SocketEnd {
    match answer {
        Answer::Datagram(bytes) => {
            SocketEnd::Answered { text: format!("{} bytes", bytes.len()), micros: micros(started) }
        }
        Answer::Refused => SocketEnd::Refused,
        Answer::Unreachable(_) => SocketEnd::Unreachable,
        Answer::Silent => SocketEnd::Silent,
    }
}

fn stream(
    connected: Connected,
    ask: &Ask,
    started: Instant,
    timeout: Duration,
) -> Result<SocketEnd, kernel::Error> {
    Ok(match connected {
        Connected::Yes(stream) => match &ask.http_path {
            Some(path) => match http(stream, ask, path, timeout) {
                Ok(status) => SocketEnd::Answered { text: status, micros: micros(started) },
                // It connected, so small packets pass.
                Err(_) => SocketEnd::Stalled,
            },
            None => SocketEnd::Answered { text: "connected".into(), micros: micros(started) },
        },
        Connected::Refused => SocketEnd::Refused,
        Connected::Unreachable(_) => SocketEnd::Unreachable,
        Connected::Silent => SocketEnd::Silent,
    })
}

/// The header that fills a request to the size of a packet.
const FILL: &str = "X-Plumb-Trace";

/// One request; yields `HTTP 200`.
fn http(mut stream: TcpStream, ask: &Ask, path: &str, timeout: Duration) -> std::io::Result<String> {
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    // An IPv6 address stands in brackets there (RFC 3986 §3.2.2).
    // Without its link, which is the sender's affair (RFC 6874 §3).
    let host = ask.host.split('%').next().unwrap_or_default();
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let port = ask.port;
    let mut request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUser-Agent: plumb-trace\r\nConnection: close\r\n{FILL}: "
    );
    // As much as one packet takes: that full-size packets pass is part of what is asked.
    let room = kernel::probe::segment(&stream).unwrap_or(536).min(8192);
    request.extend(std::iter::repeat_n('x', room.saturating_sub(request.len() + 4)));
    request.push_str("\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut head = Vec::new();
    let mut chunk = [0; 1024];
    while !head.windows(2).any(|w| w == b"\r\n") && head.len() < 8192 {
        match stream.read(&mut chunk)? {
            0 => break,
            read => head.extend_from_slice(chunk.get(..read).unwrap_or_default()),
        }
    }
    let line = String::from_utf8_lossy(&head);
    let status = line.split_whitespace().nth(1).filter(|_| line.starts_with("HTTP/"));
    Ok(status.map_or_else(|| "an answer that is not HTTP".to_owned(), |status| format!("HTTP {status}")))
}
