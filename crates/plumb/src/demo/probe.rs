//! `plumb demo probe`: the client's side of `plumb connectivity test`. It carries out checks from where it stands,
//! all at once, each until it holds or its time is over, and then stays, so that its pod can be traced.

use std::collections::BTreeSet;
use std::io::BufReader;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use dns::{Data, Type};
use serde::{Deserialize, Serialize};

use super::call::connect;
use super::http::{self, Head, Url};
use super::resolve::Resolver;
use super::spoof::{self, Forge};

/// One try: a lost packet is sent again after a second.
const PATIENCE: Duration = Duration::from_millis(2500);
const PAUSE: Duration = Duration::from_millis(200);
/// Lines of a bulk transfer: 600 KB, some 400 full segments.
const LINES: u64 = 100_000;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    pub id: usize,
    pub ask: Ask,
    pub expect: Expect,
}

/// What is sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ask {
    /// GET, small.
    Http {
        url: String,
    },
    /// GET of so much that segments are full.
    Bulk {
        target: String,
    },
    Connect {
        target: String,
    },
    /// One datagram; `full`: as large as the interface takes, and not to be fragmented.
    Udp {
        target: String,
        full: bool,
    },
    Dns {
        name: String,
        kind: String,
    },
    /// What says that it is from somebody else. It holds when none of it arrives.
    Forge(Forge),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Expect {
    /// Nothing may get through.
    pub stopped: bool,
    /// Who may answer; empty: anybody.
    pub names: Vec<String>,
    pub seen_as: SeenAs,
    /// Of a name: exactly these; empty: any.
    pub addresses: BTreeSet<IpAddr>,
}

/// Whose address the other end sees.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SeenAs {
    #[default]
    Anyone,
    /// Our own.
    Self_,
    /// One of these (masquerade).
    One(Vec<IpAddr>),
}

/// One line of output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    pub id: usize,
    pub ok: bool,
    /// It could not be tried at all: `said` has the reason.
    #[serde(default)]
    pub unable: bool,
    /// What was seen, or why that is not what it should be.
    pub said: String,
    pub tries: u32,
    pub took_ms: u64,
}

/// Runs all and stays until it is ended.
pub fn run(checks: &str, settle: Duration) -> Result<ExitCode> {
    let checks: Vec<Check> =
        serde_json::from_str(checks).context("the checks are not what this version knows")?;
    std::thread::scope(|scope| {
        for check in &checks {
            scope.spawn(|| {
                let line = serde_json::to_string(&carry_out(check, settle)).unwrap_or_default();
                println!("{line}");
            });
        }
    });
    loop {
        std::thread::park();
    }
}

/// What does not hold within `settle` does not hold. A forged packet that arrived once has arrived.
fn carry_out(check: &Check, settle: Duration) -> Outcome {
    let began = Instant::now();
    let mut tries = 0;
    loop {
        tries += 1;
        let seen = attempt(&check.ask);
        let end = seen.as_ref().err().and_then(|error| error.downcast_ref::<spoof::End>());
        let (last, unable) = (end.is_some(), matches!(end, Some(spoof::End::Unable(_))));
        let found = judge(&check.expect, seen);
        if found.is_ok() || last || began.elapsed() > settle {
            let ok = found.is_ok();
            let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            let said = found.unwrap_or_else(|why| why);
            return Outcome { id: check.id, ok, unable, said, tries, took_ms };
        }
        std::thread::sleep(PAUSE);
    }
}

/// What came back.
#[derive(Debug, Default)]
struct Seen {
    text: String,
    own: Option<IpAddr>,
    addresses: BTreeSet<IpAddr>,
}

fn judge(expect: &Expect, seen: Result<Seen>) -> Result<String, String> {
    let seen = match (seen, expect.stopped) {
        (Err(error), true) => return Ok(format!("{error:#}")),
        (Err(error), false) => return Err(format!("{error:#}")),
        (Ok(seen), true) => return Err(format!("it got through: {}", seen.text)),
        (Ok(seen), false) => seen,
    };
    let name = field(&seen.text, "name=");
    if !expect.names.is_empty() && !name.is_some_and(|name| expect.names.iter().any(|known| known == name)) {
        return Err(format!(
            "{} answers, and not {}",
            name.unwrap_or("somebody else"),
            expect.names.join(" or ")
        ));
    }
    if !expect.addresses.is_empty() && seen.addresses != expect.addresses {
        return Err(format!("its addresses are {:?}, and should be {:?}", seen.addresses, expect.addresses));
    }
    let wanted = match &expect.seen_as {
        SeenAs::Anyone => return Ok(seen.text),
        SeenAs::Self_ => seen.own.into_iter().collect(),
        SeenAs::One(addresses) => addresses.clone(),
    };
    match peer(&seen.text) {
        Some(peer) if wanted.contains(&peer) => Ok(seen.text),
        Some(peer) => Err(format!("the other end sees {peer}, and should see {wanted:?}")),
        None => Err(format!("the other end does not say whom it sees: {:?}", seen.text)),
    }
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.split_whitespace().find_map(|word| word.strip_prefix(name))
}

/// `… peer=ADDRESS:PORT …` of our own server, `outside OWN PEER` of a lab's outside.
fn peer(text: &str) -> Option<IpAddr> {
    let word = field(text, "peer=").or_else(|| text.strip_prefix("outside ")?.split_whitespace().nth(1))?;
    word.parse::<SocketAddr>().ok().map(|peer| peer.ip())
}

fn attempt(ask: &Ask) -> Result<Seen> {
    match ask {
        Ask::Http { url } => get(&Url::parse(url)?),
        Ask::Bulk { target } => bulk(target),
        Ask::Connect { target } => {
            let (host, port) = http::split_port(target, None)?;
            let (stream, from) = connect(&host, port, PATIENCE)?;
            let own = Some(stream.local_addr()?.ip());
            Ok(Seen { text: format!("{from} takes the connection"), own, ..Seen::default() })
        }
        Ask::Udp { target, full } => datagram(target, *full),
        Ask::Dns { name, kind } => lookup(name, kind),
        Ask::Forge(forge) => {
            let text = spoof::carry_out(forge, PATIENCE)?;
            Ok(Seen { text, ..Seen::default() })
        }
    }
}

fn get(url: &Url) -> Result<Seen> {
    let (text, own) = fetch(url)?;
    Ok(Seen { text: text.trim().to_owned(), own: Some(own), ..Seen::default() })
}

/// The answer's text, and our own address.
pub fn fetch(url: &Url) -> Result<(String, IpAddr)> {
    let (mut stream, from) = connect(&url.host, url.port, PATIENCE)?;
    let own = stream.local_addr()?.ip();
    http::request(&mut stream, url)?;
    let mut reader = BufReader::new(&stream);
    let head = Head::read(&mut reader)?.with_context(|| format!("{from} closed unanswered"))?;
    let body = http::body(&head, &mut reader).with_context(|| format!("read from {from}"))?;
    ensure!(head.status()? < 400, "{from} answered {:?}", head.first);
    Ok((String::from_utf8_lossy(&body).into_owned(), own))
}

/// A small answer would come through a hole that a large one does not.
fn bulk(target: &str) -> Result<Seen> {
    let (host, port) = http::split_port(target, None)?;
    let path = format!("/stream?every=0&lines={LINES}");
    let (mut stream, from) = connect(&host, port, PATIENCE)?;
    http::request(&mut stream, &Url { host, port, path })?;
    let mut reader = BufReader::new(&stream);
    let head = Head::read(&mut reader)?.with_context(|| format!("{from} closed unanswered"))?;
    ensure!(head.status()? == 200, "{from} answered {:?}", head.first);
    let mut next = 0;
    while let Some(line) =
        http::line(&mut reader).with_context(|| format!("{from} fell silent after {next} lines"))?
    {
        ensure!(line == next.to_string(), "line {line:?} of {from} came as number {next}");
        next += 1;
    }
    ensure!(next == LINES, "{from} ended after {next} of {LINES} lines");
    Ok(Seen { text: format!("{LINES} lines in order from {from}"), ..Seen::default() })
}

fn datagram(target: &str, full: bool) -> Result<Seen> {
    let (host, port) = http::split_port(target, None)?;
    let addresses = Resolver::open(None, PATIENCE)?.addresses(&host)?;
    let to = addresses.first().map(|address| SocketAddr::new(*address, port)).context("no address")?;
    let any: SocketAddr = if to.is_ipv4() { ([0; 4], 0).into() } else { ([0_u16; 8], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.connect(to).with_context(|| format!("udp to {to}"))?;
    socket.set_read_timeout(Some(PATIENCE / 2))?;
    let payload = if full { vec![b'x'; full_size(&socket)?] } else { b"hello".to_vec() };
    let what = || format!("a datagram of {} bytes to {to}", payload.len());
    socket.send(&payload).with_context(what)?;
    let mut buffer = [0; 2048];
    let length = socket.recv(&mut buffer).map_err(http::in_time).with_context(what).context("no answer")?;
    let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).trim().to_owned();
    Ok(Seen { text, own: Some(socket.local_addr()?.ip()), ..Seen::default() })
}

/// Bytes that fill a packet of the MTU of the interface, which is that of our own address.
fn full_size(socket: &UdpSocket) -> Result<usize> {
    kernel::udp::whole_datagrams(socket).context("have datagrams leave whole")?;
    let own = socket.local_addr()?.ip();
    let mtu = interface(own)?.1;
    // RFC 791, RFC 8200, RFC 768.
    let headers = if own.is_ipv4() { 20 + 8 } else { 40 + 8 };
    Ok(usize::try_from(mtu)?.saturating_sub(headers))
}

/// Name and MTU of the interface that has this address of ours.
pub fn interface(own: IpAddr) -> Result<(types::IfName, u32)> {
    let mut rtnl = kernel::Rtnl::open()?;
    let link = rtnl.addresses()?.iter().find(|row| row.address.addr() == own).map(|row| row.link);
    let row = rtnl.links()?.into_iter().find(|row| Some(row.index) == link);
    let found = row.and_then(|row| Some((row.name, row.mtu?)));
    found.with_context(|| format!("no interface has our address {own}"))
}

fn lookup(name: &str, kind: &str) -> Result<Seen> {
    let parsed = Type::parse(kind).with_context(|| format!("{kind:?} is no record type"))?;
    let tried = Resolver::open(None, PATIENCE)?.search(name, parsed)?;
    let Some(step) = tried.last().filter(|step| step.found()) else {
        let codes: Vec<String> =
            tried.iter().map(|step| format!("{} {}", step.name, step.reply.rcode)).collect();
        bail!("{name} has no {kind}: {}", codes.join(", "));
    };
    let addresses = step.reply.answers.iter().filter_map(|record| match record.data {
        Data::Address(address) => Some(address),
        _ => None,
    });
    let addresses: BTreeSet<IpAddr> = addresses.collect();
    Ok(Seen {
        text: format!("{} {kind} {addresses:?} from {}", step.name, step.server),
        own: None,
        addresses,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(text: &str) -> Result<Seen> {
        Ok(Seen { text: text.into(), own: Some([10, 244, 1, 2].into()), ..Seen::default() })
    }

    #[test]
    fn an_answer_is_judged_by_who_gives_it_and_whom_it_saw() {
        let expect = Expect { names: vec!["server-0".into()], seen_as: SeenAs::Self_, ..Expect::default() };
        let good = "name=server-0 peer=10.244.1.2:40000 local=10.244.1.3:8080";
        assert_eq!(judge(&expect, seen(good)), Ok(good.to_owned()));
        for (text, word) in [
            ("name=server-1 peer=10.244.1.2:1 local=x", "server-1 answers"),
            ("name=server-0 peer=192.168.1.10:1 local=x", "sees 192.168.1.10"),
            ("name=server-0", "does not say"),
        ] {
            assert!(judge(&expect, seen(text)).unwrap_err().contains(word), "{text}");
        }
        let outside = Expect { seen_as: SeenAs::One(vec![[192, 168, 1, 10].into()]), ..Expect::default() };
        assert!(judge(&outside, seen("outside 203.0.113.10:80 192.168.1.10:5000")).is_ok());
        assert!(judge(&outside, seen("outside 203.0.113.10:80 10.244.1.2:5000")).is_err());
    }

    #[test]
    fn what_must_be_stopped_must_fail() {
        let expect = Expect { stopped: true, ..Expect::default() };
        assert!(judge(&expect, seen("name=x")).unwrap_err().contains("got through"));
        assert!(judge(&expect, Err(anyhow::anyhow!("timed out"))).is_ok());
    }

    #[test]
    fn checks_travel_as_json() {
        let check = Check {
            id: 3,
            ask: Ask::Udp { target: "10.0.0.1:9".into(), full: true },
            expect: Expect { seen_as: SeenAs::One(vec![[10, 0, 0, 2].into()]), ..Expect::default() },
        };
        let text = serde_json::to_string(&check).unwrap();
        assert_eq!(serde_json::from_str::<Check>(&text).unwrap(), check);
    }
}
