//! As much HTTP/1.1 as two peers of ours need: one request, one answer, then the connection closes.

use std::io::{BufRead, ErrorKind, Read, Write};
use std::num::NonZeroU16;

use anyhow::{Context, Result, bail, ensure};
use watch::Misused;

/// Lines of a request or answer, and bytes of each, that are read at most.
const MAX_LINES: usize = 100;
const MAX_LINE: u64 = 8192;
const MAX_BODY: u64 = 16 << 20;

/// `http://host[:port][/path]` in parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    pub host: String,
    pub port: u16,
    pub path: String,
}

impl Url {
    pub fn parse(text: &str) -> Result<Self> {
        let rest = match text.split_once("://") {
            Some(("http", rest)) => rest,
            Some((scheme, _)) => bail!(Misused(format!("{text}: the demo speaks http, not {scheme}"))),
            None => text,
        };
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, "/"),
        };
        let (host, port) = split_port(authority, Some(80)).with_context(|| text.to_owned())?;
        Ok(Self { host, port, path: path.to_owned() })
    }
}

/// `host:port`, `[v6]:port`, and a host alone if there is a default.
pub fn split_port(text: &str, default: Option<u16>) -> Result<(String, u16)> {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, tail)) => (host, tail.strip_prefix(':')),
        None => text.rsplit_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    ensure!(!host.is_empty(), Misused(format!("{text:?} has no host; write HOST:PORT")));
    let port = match (port, default) {
        (Some(port), _) => {
            let wrong = |_| Misused(format!("{port:?} is not a port; write 1 to 65535"));
            port.parse::<NonZeroU16>().map_err(wrong)?.get()
        }
        (None, Some(port)) => port,
        (None, None) => bail!(Misused(format!("{text:?} has no port; write HOST:PORT"))),
    };
    Ok((host.to_owned(), port))
}

/// The kernel says of a socket's time that is over EAGAIN (socket(7), SO_RCVTIMEO), which nobody reads as that.
pub fn in_time(error: std::io::Error) -> std::io::Error {
    match error.kind() {
        ErrorKind::WouldBlock => std::io::Error::new(ErrorKind::TimedOut, "timeout: no answer in time"),
        _ => error,
    }
}

/// One line without its end; `None` at the end of the stream.
pub fn line(from: &mut impl BufRead) -> std::io::Result<Option<String>> {
    let mut line = Vec::new();
    from.by_ref().take(MAX_LINE).read_until(b'\n', &mut line).map_err(in_time)?;
    if line.is_empty() {
        return Ok(None);
    }
    let text = String::from_utf8_lossy(&line);
    Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned()))
}

/// The head of a request or answer: its first line and its headers, names in lower case.
pub struct Head {
    pub first: String,
    pub headers: Vec<(String, String)>,
}

impl Head {
    pub fn read(from: &mut impl BufRead) -> Result<Option<Self>> {
        let Some(first) = line(from)? else { return Ok(None) };
        let mut headers = Vec::new();
        for _ in 0..MAX_LINES {
            let text = line(from)?.context("the peer closed in the middle of the headers")?;
            if text.is_empty() {
                return Ok(Some(Self { first, headers }));
            }
            if let Some((name, value)) = text.split_once(':') {
                headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
            }
        }
        bail!("more than {MAX_LINES} headers")
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The status of an answer.
    pub fn status(&self) -> Result<u16> {
        let mut words = self.first.split_whitespace();
        let version = words.next().unwrap_or_default();
        ensure!(version.starts_with("HTTP/1."), "the peer does not speak HTTP/1: {:?}", self.first);
        words
            .next()
            .and_then(|code| code.parse().ok())
            .with_context(|| format!("no status in {:?}", self.first))
    }
}

/// Writes a GET.
pub fn request(to: &mut impl Write, url: &Url) -> std::io::Result<()> {
    let Url { host, port, path } = url;
    let text = format!("GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n");
    to.write_all(text.as_bytes()).map_err(in_time)
}

/// Reads an answer's body, its end marked by length, chunks or the end of the connection.
pub fn body(head: &Head, from: &mut impl BufRead) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    if head.header("transfer-encoding").is_some_and(|te| te.eq_ignore_ascii_case("chunked")) {
        loop {
            let size = line(from)?.context("the peer closed in the middle of a chunk")?;
            let size = size.split(';').next().unwrap_or_default().trim().to_owned();
            let size = u64::from_str_radix(&size, 16).with_context(|| format!("chunk size {size:?}"))?;
            if size == 0 {
                return Ok(body);
            }
            ensure!(size + body.len() as u64 <= MAX_BODY, "the answer has more than {MAX_BODY} bytes");
            let got = from.by_ref().take(size).read_to_end(&mut body).map_err(in_time)?;
            ensure!(got as u64 == size, "the peer closed in the middle of a chunk");
            line(from)?;
        }
    }
    let length =
        head.header("content-length").map(str::parse::<u64>).transpose().context("content-length")?;
    let got = from
        .by_ref()
        .take(length.unwrap_or(MAX_BODY).min(MAX_BODY))
        .read_to_end(&mut body)
        .map_err(in_time)? as u64;
    if let Some(length) = length {
        ensure!(got == length, "the peer closed after {got} of {length} bytes");
    }
    Ok(body)
}

/// Writes a whole answer.
pub fn answer(to: &mut impl Write, status: u16, body: &str) -> std::io::Result<()> {
    let reason = match status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        _ => "Service Unavailable",
    };
    let length = body.len();
    let text = format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    to.write_all(text.as_bytes())
}

/// The value of `name` in a query string.
pub fn query<'a>(path: &'a str, name: &str) -> Option<&'a str> {
    let (_, query) = path.split_once('?')?;
    query.split('&').filter_map(|pair| pair.split_once('=')).find(|(n, _)| *n == name).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_timeout_is_called_one() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let said = Head::read(&mut BufReader::new(&stream)).map(drop).unwrap_err();
        assert_eq!(format!("{said:#}"), "timeout: no answer in time");
    }
}
