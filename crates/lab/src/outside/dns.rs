//! A DNS server that knows one name, `outside.test`, and relays the rest to the machine's resolvers.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use types::{Families, Family};

use crate::plan::outside;

/// `outside.test` (RFC 6761 §6.2 keeps .test for such use) in wire form.
const OWN_NAME: &[u8] = b"\x07outside\x04test\x00";
/// glibc waits 5 s for an answer: give up before, so that it hears SERVFAIL.
const PATIENCE: Duration = Duration::from_secs(4);
const HEADER: usize = 12;

/// The machine's resolvers, in order; and of which families our own name has addresses.
#[derive(Debug)]
pub struct Upstream(Vec<SocketAddr>, Families);

impl Upstream {
    pub fn of_machine(families: Families) -> Self {
        Self::parse(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default(), families)
    }

    fn parse(text: &str, families: Families) -> Self {
        let servers = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
        Self(
            servers.filter_map(|text| text.trim().parse::<IpAddr>().ok()).map(|ip| (ip, 53).into()).collect(),
            families,
        )
    }

    async fn ask_udp(&self, query: &[u8]) -> Option<Vec<u8>> {
        let each = PATIENCE / u32::try_from(self.0.len().max(1)).unwrap_or(1);
        for server in &self.0 {
            if let Ok(Ok(answer)) = tokio::time::timeout(each, ask_udp(*server, query)).await {
                return Some(answer);
            }
        }
        None
    }

    async fn ask_tcp(&self, query: &[u8]) -> Option<Vec<u8>> {
        let each = PATIENCE / u32::try_from(self.0.len().max(1)).unwrap_or(1);
        for server in &self.0 {
            if let Ok(Ok(answer)) = tokio::time::timeout(each, ask_tcp(*server, query)).await {
                return Some(answer);
            }
        }
        None
    }
}

async fn ask_udp(server: SocketAddr, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let any: IpAddr = if server.is_ipv4() { [0, 0, 0, 0].into() } else { [0_u16; 8].into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut answer = vec![0; 65_535];
    loop {
        let length = socket.recv(&mut answer).await?;
        if answer.get(..2) == query.get(..2) {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

async fn ask_tcp(server: SocketAddr, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    write_message(&mut stream, query).await?;
    read_message(&mut stream).await
}

pub async fn serve_udp(socket: UdpSocket, upstream: Arc<Upstream>) -> Result<()> {
    let socket = Arc::new(socket);
    let mut query = vec![0; 65_535];
    loop {
        let (length, peer) = socket.recv_from(&mut query).await?;
        let query = query.get(..length).unwrap_or_default().to_vec();
        let (socket, upstream) = (socket.clone(), upstream.clone());
        tokio::spawn(async move {
            let answer = match own_answer(&query, upstream.1) {
                Some(answer) => Some(answer),
                None => upstream.ask_udp(&query).await.or_else(|| failure(&query)),
            };
            if let Some(answer) = answer {
                // An asker that has gone away is no concern of ours.
                let _ = socket.send_to(&answer, peer).await;
            }
        });
    }
}

pub async fn serve_tcp(listener: TcpListener, upstream: Arc<Upstream>) -> Result<()> {
    loop {
        let (mut stream, _) = listener.accept().await?;
        let upstream = upstream.clone();
        tokio::spawn(async move {
            while let Ok(Ok(query)) = tokio::time::timeout(PATIENCE, read_message(&mut stream)).await {
                let answer = match own_answer(&query, upstream.1) {
                    Some(answer) => Some(answer),
                    None => upstream.ask_tcp(&query).await.or_else(|| failure(&query)),
                };
                let Some(answer) = answer else { return };
                if write_message(&mut stream, &answer).await.is_err() {
                    return;
                }
            }
        });
    }
}

/// Two bytes of length, then the message (RFC 1035 §4.2.2).
async fn read_message(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut message = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write_message(stream: &mut TcpStream, message: &[u8]) -> std::io::Result<()> {
    let length = u16::try_from(message.len()).map_err(std::io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), message].concat()).await
}

/// The answer for our own name: A 203.0.113.10 and AAAA 2001:db8::10, and no data of any other type.
fn own_answer(query: &[u8], families: Families) -> Option<Vec<u8>> {
    let question = query.get(HEADER..HEADER + OWN_NAME.len() + 4)?;
    let (name, kind) = question.split_at(OWN_NAME.len());
    if !name.eq_ignore_ascii_case(OWN_NAME) || query.get(4..6) != Some(&[0, 1]) {
        return None;
    }
    // Type A is 1, AAAA 28 (RFC 3596 §2.1), class IN 1.
    let of_type = |family: &&Family| kind == [0, family.pick([1, 28]), 0, 1];
    let address = families.list().iter().find(of_type).map(|family| outside(*family));
    // QR, AA, RD as asked, RA; one question; no answer or one.
    let mut answer = vec![*query.first()?, *query.get(1)?, 0x84 | query.get(2)? & 1, 0x80, 0, 1];
    answer.extend([0, u8::from(address.is_some()), 0, 0, 0, 0]);
    answer.extend(question);
    // The name by pointer to the question, type, IN, 60 s, length.
    match address {
        Some(IpAddr::V4(v4)) => {
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
            answer.extend(v4.octets());
        }
        Some(IpAddr::V6(v6)) => {
            answer.extend([0xc0, 12, 0, 28, 0, 1, 0, 0, 0, 60, 0, 16]);
            answer.extend(v6.octets());
        }
        None => {}
    }
    Some(answer)
}

/// SERVFAIL to this query, so that the asker need not wait for its own timeout.
fn failure(query: &[u8]) -> Option<Vec<u8>> {
    let mut answer = query.get(..HEADER)?.to_vec();
    answer.splice(2..4, [0x80 | query.get(2)? & 1, 0x82]);
    // Without the question: counts are zero.
    answer.splice(4..HEADER, [0; 8]);
    Some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(name: &[u8], kind: u8) -> Vec<u8> {
        [&[7, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0], name, &[0, kind, 0, 1]].concat()
    }

    #[test]
    fn our_own_name_is_answered_and_others_are_relayed() {
        let answer = own_answer(&query(b"\x07OutSide\x04test\x00", 1), Families::Ipv4).expect("an answer");
        assert_eq!(answer.get(..8), Some(&[7, 9, 0x85, 0x80, 0, 1, 0, 1][..]));
        assert!(answer.ends_with(&[203, 0, 113, 10]));
        let no_data = own_answer(&query(OWN_NAME, 28), Families::Ipv4).expect("an answer");
        assert_eq!(no_data.get(6..8), Some(&[0, 0][..]));
        let v6 = own_answer(&query(OWN_NAME, 28), Families::Dual).expect("an answer");
        assert!(v6.ends_with(&[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10]));
        assert_eq!(own_answer(&query(b"\x05other\x04test\x00", 1), Families::Dual), None);
        assert_eq!(own_answer(&[1, 2, 3], Families::Dual), None);
    }

    #[test]
    fn servfail_bears_the_id() {
        assert_eq!(
            failure(&query(OWN_NAME, 1)).as_deref(),
            Some(&[7, 9, 0x81, 0x82, 0, 0, 0, 0, 0, 0, 0, 0][..])
        );
        assert_eq!(failure(&[1]), None);
    }

    #[test]
    fn resolvers_come_from_resolv_conf() {
        let upstream = Upstream::parse(
            "# x\nnameserver 10.0.0.1\nsearch a\nnameserver 127.0.0.53\nnameserver bad\n",
            Families::Ipv4,
        );
        assert_eq!(
            upstream.0,
            ["10.0.0.1:53".parse().expect("addr"), "127.0.0.53:53".parse().expect("addr")]
        );
    }
}
