//! The first hop: what the resolver inside the pod says to the name, beside what the model says.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use dns::query::{Rcode, Type};
use dns::{Data, Finding, Name, ResolvConf, message};
use kernel::Netns;
use kernel::probe::{Answer, Probe};
use trace::exchange::Ask;
use trace::hop::{Fact, Hop, Stage};
use trace::observed::Sighting;

use super::views::{Views, Wired};
use super::watch::now;

/// How long one server is waited for; a resolver of the C library waits 5 s, a person does not.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
pub struct Resolution {
    /// Where to go on to.
    pub address: Option<IpAddr>,
    pub expected: Option<Hop>,
    pub seen: Vec<Sighting>,
}

pub async fn resolve(views: &Views, wired: &Wired, ask: &Ask) -> Result<Resolution> {
    if let Ok(address) = ask.host.parse() {
        return Ok(Resolution { address: Some(address), ..Resolution::default() });
    }
    let netns = wired.netns.clone();
    let conf = tokio::task::spawn_blocking(move || conf_of(&netns)).await?;
    let conf = match conf {
        Some(conf) => conf,
        None => views.usual_conf(&wired.pod),
    };
    let expected = views.explain(&ask.host, &conf).map(|fact| Hop::new(Stage::Resolve, views.node(), fact));
    let (host, netns) = (ask.host.clone(), wired.netns.clone());
    let mut seen = vec![tokio::task::spawn_blocking(move || look_up(&netns, &host, &conf)).await??];
    seen.extend(views.dns_drift());
    let address = seen.iter().find_map(|sighting| match sighting {
        Sighting::Resolved { addresses, .. } => addresses.first().copied(),
        _ => None,
    });
    Ok(Resolution { address, expected, seen })
}

/// What the model expects of a name: the step that answers.
pub fn expected(name: &str, conf: &ResolvConf, steps: &[dns::Step]) -> Fact {
    let of = conf.candidates(name).len();
    let mut fact =
        Fact::Resolve { name: name.to_owned(), full_name: String::new(), addresses: Vec::new(), step: 0, of };
    if let Some((at, last)) = steps.iter().enumerate().next_back()
        && let Finding::Addresses { addresses, .. } = &last.finding
    {
        fact = Fact::Resolve {
            name: name.to_owned(),
            full_name: last.name.clone(),
            addresses: addresses.clone(),
            step: at + 1,
            of,
        };
    }
    fact
}

/// The resolv.conf that processes of the pod see: that of any process in its network namespace with a mount
/// namespace of its own. `None` where there is none (a pod that only sleeps in its sandbox).
fn conf_of(netns: &std::path::Path) -> Option<ResolvConf> {
    let inode = fs::metadata(netns).ok()?.ino();
    let own_root = fs::metadata("/proc/self/ns/mnt").ok()?.ino();
    let same = |path: PathBuf, inode: u64| fs::metadata(path).is_ok_and(|meta| meta.ino() == inode);
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let process = entry.path();
        if !entry.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit())
            || !same(process.join("ns/net"), inode)
            || same(process.join("ns/mnt"), own_root)
        {
            continue;
        }
        let conf =
            fs::read_to_string(process.join("root/etc/resolv.conf")).map(|text| ResolvConf::parse(&text));
        if let Ok(conf) = conf
            && !conf.servers.is_empty()
            && !conf.search.is_empty()
        {
            return Some(conf);
        }
    }
    None
}

/// Asks as glibc would: the search list in order, A records, the first server that answers.
fn look_up(netns: &std::path::Path, host: &str, conf: &ResolvConf) -> Result<Sighting> {
    let netns = Netns::open(netns).context("open the pod's namespace to resolve")?;
    let at = now();
    let mut error = None;
    for (step, name) in conf.candidates(host).into_iter().enumerate() {
        match ask(&netns, &name, conf)? {
            Ok(addresses) if !addresses.is_empty() => {
                return Ok(Sighting::Resolved {
                    at,
                    full_name: name,
                    addresses,
                    step: step + 1,
                    error: None,
                });
            }
            Ok(_) => error = Some(format!("{name}: there is no such name, or it has no A record")),
            Err(why) => {
                error = Some(format!("{name}: {why}"));
                break;
            }
        }
    }
    let error = error.or_else(|| Some("there is nothing to ask: resolv.conf names no server".to_owned()));
    Ok(Sighting::Resolved { at, full_name: host.to_owned(), addresses: Vec::new(), step: 0, error })
}

/// Addresses of one name; an inner error is the resolver's and ends the search.
fn ask(netns: &Netns, name: &str, conf: &ResolvConf) -> Result<Result<Vec<IpAddr>, String>> {
    let Ok(wire) = Name::parse(name) else { return Ok(Err("it is no name".to_owned())) };
    let id = kernel::udp::random().context("choose a query's id")? as u16;
    let query = message::encode_query(id, &wire, Type::A);
    let mut last = "no server answers".to_owned();
    for server in &conf.servers {
        let any: SocketAddr = match server {
            IpAddr::V4(_) => (std::net::Ipv4Addr::UNSPECIFIED, 0).into(),
            IpAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let answer = Probe::udp(netns, any)?.exchange(SocketAddr::new(*server, 53), &query, PATIENCE)?;
        match answer {
            Answer::Datagram(bytes) => match message::decode(&bytes) {
                Some(reply) if reply.id == id && reply.rcode == Rcode::SERVFAIL => {
                    last = format!("{server} answers SERVFAIL");
                }
                Some(reply) if reply.id == id => {
                    let addresses = reply.answers.iter().filter_map(|record| match record.data {
                        Data::Address(address) => Some(address),
                        _ => None,
                    });
                    return Ok(Ok(addresses.collect()));
                }
                _ => last = format!("{server} sent something that is no answer"),
            },
            Answer::Refused => last = format!("{server} refuses: no DNS server listens there"),
            Answer::Unreachable(error) => last = format!("{server}: {error}"),
            Answer::Silent => last = format!("{server} did not answer within {PATIENCE:?}"),
        }
    }
    Ok(Err(last))
}
