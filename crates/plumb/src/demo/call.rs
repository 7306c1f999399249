//! The clients.

use std::io::{BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use dns::{Data, Record, Type};

use super::http::{self, Head, Url};
use super::resolve::Resolver;

/// Resolves, connects to the first address that takes the connection, and says which.
pub fn connect(host: &str, port: u16, patience: Duration) -> Result<(TcpStream, SocketAddr)> {
    let addresses = Resolver::open(None, patience)?.addresses(host)?;
    let mut last = None;
    for address in addresses {
        let address = SocketAddr::new(address, port);
        match TcpStream::connect_timeout(&address, patience) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(patience))?;
                stream.set_write_timeout(Some(patience))?;
                return Ok((stream, address));
            }
            Err(error) => last = Some(Err(error).with_context(|| format!("connect {address}"))),
        }
    }
    last.unwrap_or_else(|| bail!("{host} has no address"))
}

/// An answer and how it came.
struct Got {
    status: u16,
    body: Vec<u8>,
    from: SocketAddr,
    after: Duration,
}

fn fetch(url: &Url, patience: Duration) -> Result<Got> {
    let start = Instant::now();
    let (mut stream, from) = connect(&url.host, url.port, patience)?;
    let what = || format!("GET {} from {from}", url.path);
    http::request(&mut stream, url).with_context(what)?;
    let mut reader = BufReader::new(&stream);
    let head =
        Head::read(&mut reader).with_context(what)?.with_context(|| format!("{from} closed unanswered"))?;
    let body = http::body(&head, &mut reader).with_context(what)?;
    Ok(Got { status: head.status()?, body, from, after: start.elapsed() })
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn code(good: bool) -> ExitCode {
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

pub fn get(url: &str, patience: Duration) -> Result<ExitCode> {
    let got = fetch(&Url::parse(url)?, patience)?;
    kernel::out::stdout().write_all(&got.body)?;
    eprintln!("HTTP {} from {} after {:.1} ms", got.status, got.from, milliseconds(got.after));
    Ok(code(got.status < 400))
}

/// One line each: number, status or error, time, the first line of the answer.
pub fn repeat(url: &str, every: Duration, count: Option<u64>, patience: Duration) -> Result<ExitCode> {
    let url = Url::parse(url)?;
    let mut good = true;
    for number in 1..=count.unwrap_or(u64::MAX) {
        let start = Instant::now();
        match fetch(&url, patience) {
            Ok(got) => {
                let text = String::from_utf8_lossy(&got.body);
                let first = text.lines().next().unwrap_or_default();
                println!("{number} {} {:.1} ms {first}", got.status, milliseconds(got.after));
                good &= got.status < 400;
            }
            Err(error) => {
                println!("{number} error {:.1} ms {error:#}", milliseconds(start.elapsed()));
                good = false;
            }
        }
        if !kernel::out::heard() {
            break;
        }
        if Some(number) != count {
            std::thread::sleep(every.saturating_sub(start.elapsed()));
        }
    }
    Ok(code(good))
}

pub fn tcp(target: &str, say: &str, patience: Duration) -> Result<ExitCode> {
    let (host, port) = http::split_port(target, None)?;
    let start = Instant::now();
    let (mut stream, from) = connect(&host, port, patience)?;
    writeln!(stream, "{say}").with_context(|| format!("send to {from}"))?;
    let answer = http::line(&mut BufReader::new(&stream)).with_context(|| format!("read from {from}"))?;
    println!("{}", answer.with_context(|| format!("{from} closed unanswered"))?);
    eprintln!("tcp from {from} after {:.1} ms", milliseconds(start.elapsed()));
    Ok(ExitCode::SUCCESS)
}

/// A socket of our own for one peer.
fn udp_to(target: &str, patience: Duration) -> Result<(UdpSocket, SocketAddr)> {
    let (host, port) = http::split_port(target, None)?;
    let addresses = Resolver::open(None, patience)?.addresses(&host)?;
    let address = addresses.first().map(|address| SocketAddr::new(*address, port)).context("no address")?;
    let any: SocketAddr = if address.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.connect(address).with_context(|| format!("udp to {address}"))?;
    socket.set_read_timeout(Some(patience))?;
    Ok((socket, address))
}

fn exchange(socket: &UdpSocket, address: SocketAddr, say: &str) -> Result<String> {
    socket.send(say.as_bytes()).with_context(|| format!("send to {address}"))?;
    let mut buffer = [0; 2048];
    let length = socket
        .recv(&mut buffer)
        .map_err(http::in_time)
        .with_context(|| format!("no answer from udp {address}"))?;
    Ok(String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).trim_end().to_owned())
}

/// One datagram, one answer: a lost one is an error here, not something to hide by a second try.
pub fn udp(target: &str, say: &str, patience: Duration) -> Result<ExitCode> {
    let (socket, address) = udp_to(target, patience)?;
    let start = Instant::now();
    println!("{}", exchange(&socket, address, say)?);
    eprintln!("udp from {address} after {:.1} ms", milliseconds(start.elapsed()));
    Ok(ExitCode::SUCCESS)
}

/// As forwarders and telephones do: the source port stays, so the kernel sees one flow for ever.
pub fn udp_flow(target: &str, say: &str, every: Duration, patience: Duration) -> Result<ExitCode> {
    let (socket, address) = udp_to(target, patience)?;
    for number in 1u64.. {
        let start = Instant::now();
        match exchange(&socket, address, say) {
            Ok(answer) => println!("{number} {:.1} ms {answer}", milliseconds(start.elapsed())),
            Err(error) => println!("{number} error {error:#}"),
        }
        if !kernel::out::heard() {
            break;
        }
        std::thread::sleep(every.saturating_sub(start.elapsed()));
    }
    Ok(ExitCode::SUCCESS)
}

pub fn dns(name: &str, kind: &str, server: Option<IpAddr>, patience: Duration) -> Result<ExitCode> {
    let kind =
        Type::parse(kind).with_context(|| format!("{kind:?} is not a record type; write A, AAAA, SRV …"))?;
    let resolver = Resolver::open(server, patience)?;
    let tried = resolver.search(name, kind)?;
    let mut found = false;
    for (number, step) in tried.iter().enumerate() {
        let code = match step.reply.answers.is_empty() {
            true if step.reply.rcode == dns::Rcode::NOERROR => "NODATA".to_owned(),
            _ => step.reply.rcode.to_string(),
        };
        println!("{}. {} {kind} {code} from {}", number + 1, step.name, step.server);
        step.reply.answers.iter().for_each(|record| println!("   {}", show(record)));
        found = step.found();
    }
    Ok(code(found))
}

fn show(record: &Record) -> String {
    let Record { owner, ttl, data } = record;
    let data = match data {
        Data::Address(IpAddr::V4(address)) => format!("A {address}"),
        Data::Address(IpAddr::V6(address)) => format!("AAAA {address}"),
        Data::Alias(target) => format!("CNAME {target}"),
        Data::Pointer(target) => format!("PTR {target}"),
        Data::Service { priority, weight, port, target } => {
            format!("SRV {priority} {weight} {port} {target}")
        }
        Data::Text(text) => format!("TXT {text:?}"),
        Data::Other { kind, text } => format!("{kind} {text}"),
    };
    format!("{owner} {ttl} {data}")
}

/// Reads numbered lines; any gap is the finding this command is for.
pub fn stream(target: &str, every: u64, lines: Option<u64>, patience: Duration) -> Result<ExitCode> {
    let (host, port) = http::split_port(target, None)?;
    let wanted = lines.map(|lines| format!("&lines={lines}")).unwrap_or_default();
    let (mut stream, from) = connect(&host, port, patience)?;
    let url = Url { host, port, path: format!("/stream?every={every}{wanted}") };
    http::request(&mut stream, &url)?;
    let mut reader = BufReader::new(&stream);
    let head = Head::read(&mut reader)?.with_context(|| format!("{from} closed unanswered"))?;
    ensure!(head.status()? == 200, "{from} answered {:?}", head.first);
    println!("streaming from {from}");
    let start = Instant::now();
    let mut next = 0;
    let mut shown = start;
    loop {
        let line = http::line(&mut reader)
            .with_context(|| format!("the stream from {from} broke after {next} lines"))?;
        let Some(line) = line else { break };
        ensure!(
            line == next.to_string(),
            "the stream from {from} is damaged: line {line:?} came as number {next}"
        );
        next += 1;
        if shown.elapsed() > Duration::from_secs(1) {
            shown = Instant::now();
            println!("{next} lines");
            if !kernel::out::heard() {
                return Ok(ExitCode::SUCCESS);
            }
        }
    }
    println!("{next} lines in order in {:.1} s", start.elapsed().as_secs_f64());
    match lines {
        Some(lines) if lines != next => bail!("the stream from {from} ended after {next} of {lines} lines"),
        _ => Ok(ExitCode::SUCCESS),
    }
}
