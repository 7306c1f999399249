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
    answer(&mut stream, timeout)
}

const NOT_HTTP: &str = "it answered, and not in HTTP";
const GLANCE: Duration = Duration::from_millis(5);

/// What comes back within the time. Whoever says something that cannot become HTTP, or ends the connection, has answered
/// as soon as the whole request has come to it: some speak first.
fn answer(stream: &mut TcpStream, timeout: Duration) -> std::io::Result<String> {
    let late = || std::io::Error::from(std::io::ErrorKind::TimedOut);
    let started = Instant::now();
    let mut head = Vec::new();
    let mut chunk = [0; 1024];
    while is_http(&head) && head.len() < 8192 {
        if head.windows(2).any(|w| w == b"\r\n") {
            let line = String::from_utf8_lossy(&head);
            return Ok(line
                .split_whitespace()
                .nth(1)
                .map_or(NOT_HTTP.to_owned(), |code| format!("HTTP {code}")));
        }
        match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(read) => head.extend_from_slice(chunk.get(..read).unwrap_or_default()),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
            Err(error) => return Err(error),
        }
        if started.elapsed() > timeout {
            return Err(late());
        }
    }
    while kernel::probe::unacknowledged(stream).is_some_and(|bytes| bytes > 0) {
        if started.elapsed() > timeout {
            return Err(late());
        }
        std::thread::sleep(GLANCE);
    }
    let word = if head.is_empty() { "it ended the connection, and said nothing" } else { NOT_HTTP };
    Ok(word.to_owned())
}

/// Whether it can be the beginning of an answer in HTTP (RFC 9112 §4).
fn is_http(head: &[u8]) -> bool {
    head.iter().zip(b"HTTP/").all(|(said, expected)| said == expected)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// What a server says, and whether it waits for the request before.
    fn told(says: &'static [u8], stays: bool) -> Result<String, std::io::ErrorKind> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 16 << 10]);
            let _ = stream.write_all(says);
            while stays && stream.read(&mut [0; 64]).is_ok_and(|read| read > 0) {}
        });
        let ask = Ask {
            host: "db".into(),
            port: 5432,
            protocol: Protocol::Tcp,
            family: None,
            http_path: Some("/".into()),
        };
        let told = http(client, &ask, "/", Duration::from_secs(2)).map_err(|error| error.kind());
        server.join().unwrap();
        told
    }

    #[test]
    fn who_answers_otherwise_than_in_http_has_answered() {
        for (says, stays, expected) in [
            (b"HTTP/1.1 204 No Content\r\n".as_slice(), true, "HTTP 204"),
            (b"db from=10.244.1.4 said=GET\n", true, NOT_HTTP),
            (b"E", true, NOT_HTTP),
            (b"SSH-2.0-x\r\n", false, NOT_HTTP),
            (b"", false, "it ended the connection, and said nothing"),
        ] {
            assert_eq!(told(says, stays).as_deref(), Ok(expected), "{says:?}");
        }
        // Nothing, or the beginning of an answer whose rest is lost.
        for says in [b"".as_slice(), b"HTTP/1."] {
            let end = told(says, true).expect_err("no answer");
            assert!(matches!(end, std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut), "{end:?}");
        }
    }
}
