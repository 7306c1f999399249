//! `plumb demo ask`: a name again and again, by two clients of each server: one keeps its socket, as some resolvers do,
//! and with it its source port; the other takes a new one for each query. Nothing is lost unseen: whatever did not go
//! well with the first datagram is counted.

use std::fmt;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dns::cache::Message;
use dns::{Name, Rcode, Type, message};

use super::resolve::Resolver;

/// A line after so many, and whenever something went wrong.
const LINE: u64 = 50;
const PORT: u16 = 53;
/// Datagrams for one query (resolv.conf(5) has two).
const TRIES: u64 = 3;

#[derive(clap::Args, Debug)]
pub struct Ask {
    /// Whole name, with or without its last dot.
    pub name: String,
    /// Ask these servers instead of those in /etc/resolv.conf.
    #[arg(long = "server", value_delimiter = ',')]
    pub servers: Vec<IpAddr>,
    /// Milliseconds between the starts of two queries.
    #[arg(long, default_value_t = 5)]
    pub every: u64,
    /// Stop each client after so many; for ever without.
    #[arg(long)]
    pub count: Option<u64>,
    /// Seconds until a query is sent again.
    #[arg(long, default_value_t = 5.0)]
    pub timeout: f64,
}

/// What became of one client's queries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    answered: u64,
    /// Datagrams that nobody answered in time.
    again: u64,
    refused: u64,
    /// Answers without an address.
    wrong: u64,
    /// Never answered.
    lost: u64,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { answered, again, refused, wrong, lost } = self;
        write!(f, "{answered} answered {again} again {refused} refused {wrong} wrong {lost} lost")
    }
}

impl Tally {
    fn trouble(&self) -> u64 {
        self.again + self.refused + self.wrong + self.lost
    }
}

pub fn run(ask: &Ask, patience: Duration) -> Result<ExitCode> {
    let servers = match ask.servers.is_empty() {
        true => Resolver::open(None, patience)?.conf.servers,
        false => ask.servers.clone(),
    };
    ensure!(!servers.is_empty(), "no server: /etc/resolv.conf names none");
    let name = Name::parse(ask.name.trim_end_matches('.'))?;
    let results: Vec<Result<Tally>> = std::thread::scope(|scope| {
        let clients = servers.iter().flat_map(|server| [(*server, true), (*server, false)]);
        let name = &name;
        let threads: Vec<_> = clients
            .map(|(server, keeps)| scope.spawn(move || Client { server, keeps, patience }.ask(ask, name)))
            .collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined.map(|result| result.unwrap_or_else(|_| anyhow::bail!("a client panicked"))).collect()
    });
    let tallies = results.into_iter().collect::<Result<Vec<_>>>()?;
    let good = tallies.iter().all(|tally| tally.trouble() == 0);
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

struct Client {
    server: IpAddr,
    keeps: bool,
    patience: Duration,
}

impl Client {
    fn ask(&self, ask: &Ask, name: &Name) -> Result<Tally> {
        let kind = if self.server.is_ipv4() { Type::A } else { Type::AAAA };
        let word = if self.keeps { "kept" } else { "new" };
        let (mut tally, mut socket) = (Tally::default(), self.socket()?);
        for number in 1..=ask.count.unwrap_or(u64::MAX) {
            let start = Instant::now();
            let before = tally.trouble();
            if !self.keeps {
                socket = self.socket()?;
            }
            let query = message::encode_query(kernel::udp::random()? as u16, name, kind);
            self.query(&socket, &query, &mut tally)?;
            if number % LINE == 1 || Some(number) == ask.count || tally.trouble() > before {
                println!("{} {word}: {tally}", self.server);
            }
            if !kernel::out::heard() {
                break;
            }
            std::thread::sleep(Duration::from_millis(ask.every).saturating_sub(start.elapsed()));
        }
        Ok(tally)
    }

    fn socket(&self) -> Result<UdpSocket> {
        let any: SocketAddr = if self.server.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
        let socket = UdpSocket::bind(any)?;
        socket.connect((self.server, PORT)).with_context(|| format!("udp to {}", self.server))?;
        socket.set_read_timeout(Some(self.patience))?;
        Ok(socket)
    }

    fn query(&self, socket: &UdpSocket, query: &[u8], tally: &mut Tally) -> Result<()> {
        for _ in 0..TRIES {
            let reply = socket.send(query).and_then(|_| self.reply(socket, query));
            match reply {
                Ok(Some(message)) => {
                    let decoded = message::decode(message.bytes());
                    let right = decoded.is_some_and(|r| r.rcode == Rcode::NOERROR && !r.answers.is_empty());
                    *(if right { &mut tally.answered } else { &mut tally.wrong }) += 1;
                    return Ok(());
                }
                Ok(None) => tally.again += 1,
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => tally.refused += 1,
                Err(error) => return Err(error).context("ask for the name"),
            }
        }
        tally.lost += 1;
        Ok(())
    }

    /// What answers this query; later answers to earlier ones are waited past.
    fn reply(&self, socket: &UdpSocket, query: &[u8]) -> std::io::Result<Option<Message>> {
        let end = Instant::now() + self.patience;
        let mut buffer = [0; 4096];
        while Instant::now() < end {
            match socket.recv(&mut buffer) {
                Ok(length) => {
                    let bytes = buffer.get(..length).unwrap_or_default().to_vec();
                    if let Some(message) = Message::accept(query, bytes) {
                        return Ok(Some(message));
                    }
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}
