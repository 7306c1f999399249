//! The servers. Each answer says who gave it and which address it saw, so that a test can see translation.

use std::collections::VecDeque;
use std::io::{BufReader, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::http;

/// A request that does not come within this time is given up.
const PATIENCE: Duration = Duration::from_secs(30);

/// A longer datagram is not sent back.
const LONG: usize = 512;
/// What begins a datagram that is remembered, and how many are.
pub const WORD: &str = "word:";
const WORDS: usize = 1000;

#[derive(clap::Args, Clone, Debug)]
pub struct Serve {
    /// Serve HTTP on this port: / (who answers), /healthz, /readyz, /ready?set=BOOL, /stream?every=MS&lines=N,
    /// /heard?of=WORD (datagrams that began with `word:WORD`, newest last).
    #[arg(long, value_name = "PORT")]
    http: Vec<u16>,
    /// Answer lines over TCP on this port.
    #[arg(long, value_name = "PORT")]
    tcp: Vec<u16>,
    /// Answer datagrams on this UDP port.
    #[arg(long, value_name = "PORT")]
    udp: Vec<u16>,
    /// What to call ourselves; the hostname without it.
    #[arg(long)]
    name: Option<String>,
    /// Answer /readyz with 503 until /ready?set=true.
    #[arg(long)]
    unready: bool,
}

/// What all connections share.
#[derive(Clone)]
pub struct Face {
    name: Arc<str>,
    ready: Arc<AtomicBool>,
    heard: Arc<Mutex<VecDeque<String>>>,
}

impl Face {
    pub fn new(name: &str, ready: bool) -> Self {
        Self { name: name.into(), ready: Arc::new(AtomicBool::new(ready)), heard: Arc::default() }
    }

    /// Keeps a datagram's word, for who asks for it by another way: its sender may have been forged.
    fn hear(&self, said: &str) {
        let Some(word) = said.strip_prefix(WORD) else { return };
        let Ok(mut heard) = self.heard.lock() else { return };
        if heard.len() == WORDS {
            heard.pop_front();
        }
        heard.push_back(word.to_owned());
    }

    fn heard(&self, of: &str) -> String {
        let heard = self.heard.lock().map(|heard| heard.clone()).unwrap_or_default();
        heard.iter().filter(|word| word.starts_with(of)).map(|word| format!("{word}\n")).collect()
    }

    fn says(&self, peer: SocketAddr, local: SocketAddr) -> String {
        format!("name={} peer={} local={}", self.name, plain(peer), plain(local))
    }
}

/// IPv4 peers of a dual-stack socket in their own form.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

pub fn run(serve: &Serve) -> Result<ExitCode> {
    if serve.http.is_empty() && serve.tcp.is_empty() && serve.udp.is_empty() {
        bail!("nothing to serve; give --http PORT, --tcp PORT or --udp PORT");
    }
    let name = match &serve.name {
        Some(name) => name.clone(),
        None => std::fs::read_to_string("/proc/sys/kernel/hostname").context("read the hostname")?,
    };
    let face = Face::new(name.trim(), !serve.unready);
    let mut threads = Vec::new();
    for (ports, talk) in [(&serve.http, converse_http as Talk), (&serve.tcp, converse_lines as Talk)] {
        for port in ports {
            let listener = listen(*port)?;
            println!("serving tcp {port} as {}", face.name);
            threads.push(accept(listener, face.clone(), talk)?);
        }
    }
    for port in &serve.udp {
        let socket = any(|address| UdpSocket::bind((address, *port)))
            .with_context(|| format!("bind udp port {port}: another process may hold it"))?;
        println!("serving udp {port} as {}", face.name);
        threads.push(datagrams(socket, face.clone())?);
    }
    for thread in threads {
        if thread.join().is_err() {
            bail!("a server thread ended");
        }
    }
    Ok(ExitCode::FAILURE)
}

/// Both families where there is IPv6, else IPv4.
fn any<T>(open: impl Fn(std::net::IpAddr) -> std::io::Result<T>) -> std::io::Result<T> {
    match open(Ipv6Addr::UNSPECIFIED.into()) {
        // No IPv6 in this kernel, or switched off: EAFNOSUPPORT, EADDRNOTAVAIL.
        Err(error) if matches!(error.raw_os_error(), Some(97 | 99)) => open([0, 0, 0, 0].into()),
        other => other,
    }
}

pub fn listen(port: u16) -> Result<TcpListener> {
    any(|address| TcpListener::bind((address, port)))
        .with_context(|| format!("listen on tcp port {port}: another process may hold it"))
}

/// One connection's conversation.
pub type Talk = fn(&TcpStream, &Face) -> Result<()>;

pub fn accept(listener: TcpListener, face: Face, talk: Talk) -> std::io::Result<std::thread::JoinHandle<()>> {
    std::thread::Builder::new().name("accept".to_owned()).spawn(move || {
        for stream in listener.incoming() {
            let face = face.clone();
            let Ok(stream) = stream else { continue };
            let spawned = std::thread::Builder::new().stack_size(128 << 10).spawn(move || {
                // Nagle would hold a short line back; a peer that goes away is no news.
                let _ = stream.set_nodelay(true);
                let _ = stream.set_read_timeout(Some(PATIENCE));
                let _ = talk(&stream, &face);
            });
            if let Err(error) = spawned {
                eprintln!("plumb demo: no thread for a connection: {error}");
            }
        }
    })
}

pub fn datagrams(socket: UdpSocket, face: Face) -> std::io::Result<std::thread::JoinHandle<()>> {
    let local = socket.local_addr()?;
    std::thread::Builder::new().name("udp".to_owned()).spawn(move || {
        let mut buffer = [0; 2048];
        loop {
            let Ok((length, peer)) = socket.recv_from(&mut buffer) else { continue };
            let said = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default());
            // A long one is only counted, so that the answer fits wherever the question did.
            let said = if length > LONG { format!("{length} bytes") } else { said.trim_end().to_owned() };
            face.hear(&said);
            let answer = format!("{} said={said}\n", face.says(peer, local));
            // Lost on the way or refused here: the same to a datagram's sender.
            let _ = socket.send_to(answer.as_bytes(), peer);
        }
    })
}

/// Every line gets one back.
pub fn converse_lines(stream: &TcpStream, face: &Face) -> Result<()> {
    let (peer, local) = (stream.peer_addr()?, stream.local_addr()?);
    let mut reader = BufReader::new(stream);
    while let Some(said) = http::line(&mut reader)? {
        writeln!(&mut &*stream, "{} said={said}", face.says(peer, local))?;
    }
    Ok(())
}

pub fn converse_http(stream: &TcpStream, face: &Face) -> Result<()> {
    let (peer, local) = (stream.peer_addr()?, stream.local_addr()?);
    let mut reader = BufReader::new(stream);
    let Some(head) = http::Head::read(&mut reader)? else { return Ok(()) };
    let mut words = head.first.split_whitespace();
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or("/"));
    let mut out = stream;
    if method != "GET" && method != "HEAD" {
        return Ok(http::answer(&mut out, 405, "only GET\n")?);
    }
    let (status, text) = match path.split('?').next().unwrap_or_default() {
        "/stream" => return stream_lines(stream, path),
        "/" => (200, format!("{}\n", face.says(peer, local))),
        "/heard" => (200, face.heard(http::query(path, "of").unwrap_or_default())),
        "/hostname" => (200, format!("{}\n", face.name)),
        "/healthz" => (200, "ok\n".to_owned()),
        "/readyz" if face.ready.load(Ordering::Relaxed) => (200, "ready\n".to_owned()),
        "/readyz" => (503, "not ready\n".to_owned()),
        "/ready" => match http::query(path, "set").map(str::parse::<bool>) {
            Some(Ok(ready)) => {
                face.ready.store(ready, Ordering::Relaxed);
                (200, format!("ready={ready}\n"))
            }
            _ => (400, "write /ready?set=true or /ready?set=false\n".to_owned()),
        },
        _ => (404, format!("no {path} here\n")),
    };
    Ok(http::answer(&mut out, status, &text)?)
}

/// Numbered lines, so that the reader can prove that none is missing. The end of the connection is the end.
fn stream_lines(stream: &TcpStream, path: &str) -> Result<()> {
    let number =
        |name, default| http::query(path, name).and_then(|v| v.parse::<u64>().ok()).unwrap_or(default);
    let (every, lines) = (number("every", 10), number("lines", u64::MAX));
    let mut out = stream;
    out.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n")?;
    let mut batch = Vec::new();
    for line in 0..lines {
        writeln!(batch, "{line}")?;
        // Without a pause, full segments.
        if every > 0 || batch.len() > 8192 {
            out.write_all(&batch)?;
            batch.clear();
            std::thread::sleep(Duration::from_millis(every));
        }
    }
    Ok(out.write_all(&batch)?)
}
