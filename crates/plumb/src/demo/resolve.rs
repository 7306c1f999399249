//! Names as a pod sees them: servers, search list and ndots of its own /etc/resolv.conf, over our codec.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use dns::cache::Message;
use dns::{Data, Hosts, Name, Rcode, Reply, ResolvConf, Type, message};

/// What one name of the search came to.
#[derive(Clone, Debug)]
pub struct Tried {
    pub name: String,
    pub server: IpAddr,
    pub reply: Reply,
}

impl Tried {
    /// It has what was asked for, or an alias for it.
    pub fn found(&self) -> bool {
        self.reply.rcode == Rcode::NOERROR && !self.reply.answers.is_empty()
    }
}

/// Asks servers.
#[derive(Clone, Debug)]
pub struct Resolver {
    pub conf: ResolvConf,
    pub port: u16,
    pub patience: Duration,
}

impl Resolver {
    /// From /etc/resolv.conf, perhaps with another server.
    pub fn open(server: Option<IpAddr>, patience: Duration) -> Result<Self> {
        let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        let mut conf = ResolvConf::parse(&text);
        conf.servers = server.map_or(conf.servers, |server| vec![server]);
        Ok(Self { conf, port: 53, patience })
    }

    /// The search, name by name, up to the first that has an answer.
    pub fn search(&self, name: &str, kind: Type) -> Result<Vec<Tried>> {
        let mut tried = Vec::new();
        for candidate in self.conf.candidates(name) {
            let (server, reply) = self.ask(&candidate, kind)?;
            let step = Tried { name: candidate, server, reply };
            let found = step.found();
            tried.push(step);
            if found {
                break;
            }
        }
        Ok(tried)
    }

    /// Every address of a host, which may be one itself.
    pub fn addresses(&self, host: &str) -> Result<Vec<IpAddr>> {
        let file = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
        let own = Hosts::parse(&file).addresses(host);
        if !own.is_empty() {
            return Ok(own);
        }
        if let Ok(address) = host.parse() {
            return Ok(vec![address]);
        }
        let mut codes = Vec::new();
        for kind in [Type::A, Type::AAAA] {
            let tried = self.search(host, kind)?;
            let found: Vec<IpAddr> =
                tried.iter().flat_map(|step| &step.reply.answers).filter_map(address).collect();
            if !found.is_empty() {
                return Ok(found);
            }
            codes.extend(tried.into_iter().map(|step| format!("{} {kind} {}", step.name, step.reply.rcode)));
        }
        bail!("{host} has no address; tried {}", codes.join(", "))
    }

    /// One name from the first server that answers.
    fn ask(&self, name: &str, kind: Type) -> Result<(IpAddr, Reply)> {
        let wire = Name::parse(name)?;
        let mut last = None;
        for server in &self.conf.servers {
            match self.exchange(SocketAddr::new(*server, self.port), &wire, kind) {
                Ok(reply) if reply.rcode == Rcode::SERVFAIL => last = Some((*server, reply)),
                Ok(reply) => return Ok((*server, reply)),
                Err(error) if last.is_none() && Some(server) == self.conf.servers.last() => {
                    return Err(error);
                }
                Err(_) => {}
            }
        }
        last.with_context(|| format!("no server for {name}: /etc/resolv.conf names none that answers"))
    }

    fn exchange(&self, server: SocketAddr, name: &Name, kind: Type) -> Result<Reply> {
        let id = kernel::udp::random()? as u16;
        let query = message::encode_query(id, name, kind);
        let what = || format!("ask {server} for {name} {kind}");
        let reply = self.over_udp(server, &query).with_context(what)?;
        let reply = if reply.truncated() { self.over_tcp(server, &query).with_context(what)? } else { reply };
        message::decode(reply.bytes())
            .with_context(|| format!("the answer of {server} for {name} cannot be read"))
    }

    /// Two tries, as resolvers do, the second with a socket of its own as glibc has it after an error: an answer of
    /// the network to the first port says nothing about the next.
    fn over_udp(&self, server: SocketAddr, query: &[u8]) -> Result<Message> {
        let any: SocketAddr = if server.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
        let mut buffer = [0; 4096];
        let mut error = None;
        for _ in 0..2 {
            let socket = UdpSocket::bind(any)?;
            socket.connect(server)?;
            socket.set_read_timeout(Some(self.patience))?;
            socket.send(query)?;
            match socket.recv(&mut buffer) {
                Ok(length) => {
                    let bytes = buffer.get(..length).unwrap_or_default().to_vec();
                    if let Some(message) = Message::accept(query, bytes) {
                        return Ok(message);
                    }
                }
                Err(failed) => error = Some(failed),
            }
        }
        match error {
            Some(error) => Err(error).context("no answer"),
            None => bail!("the answer belongs to another question"),
        }
    }

    fn over_tcp(&self, server: SocketAddr, query: &[u8]) -> Result<Message> {
        let mut stream = TcpStream::connect_timeout(&server, self.patience)?;
        stream.set_read_timeout(Some(self.patience))?;
        let mut framed = (query.len() as u16).to_be_bytes().to_vec();
        framed.extend_from_slice(query);
        stream.write_all(&framed)?;
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut bytes)?;
        Message::accept(query, bytes).context("the answer over TCP belongs to another question")
    }
}

fn address(record: &dns::Record) -> Option<IpAddr> {
    match record.data {
        Data::Address(address) => Some(address),
        _ => None,
    }
}
