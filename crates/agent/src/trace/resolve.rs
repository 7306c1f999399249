//! The first hop: what the resolver inside the pod says to the name, beside what the model says.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use dns::query::{Rcode, Type};
use dns::{Data, Finding, Name, ResolvConf, message};
use kernel::Netns;
use kernel::probe::{Answer, Probe};
use trace::exchange::Ask;
use trace::hop::{Fact, Hop, Stage};
use trace::observed::Sighting;
use types::Family;

use super::views::{Views, Wired};
use super::watch::now;

/// How long one server is waited for; a resolver of the C library waits 5 s, a person does not.
const PATIENCE: Duration = Duration::from_millis(500);

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
    let (family, fact) = chosen(views, wired, ask, &conf);
    let expected = Some(Hop::new(Stage::Resolve, views.node(), fact));
    let (host, netns) = (ask.host.clone(), wired.netns.clone());
    let mut seen = vec![tokio::task::spawn_blocking(move || look_up(&netns, &host, &conf, family)).await??];
    seen.extend(views.dns_drift());
    let answered = seen.iter().find_map(|sighting| match sighting {
        Sighting::Resolved { addresses, .. } => addresses.first().copied(),
        _ => None,
    });
    // Without an answer the model's address shows the rest of the way, where the cause may lie.
    let address = answered.or_else(|| match expected.as_ref().map(|hop| &hop.fact) {
        Some(Fact::Resolve { addresses, .. }) => addresses.first().copied(),
        _ => None,
    });
    Ok(Resolution { address, expected, seen })
}

/// The family to ask for: the one that is wanted, or the pod's first in which the cluster knows the name.
fn chosen(views: &Views, wired: &Wired, ask: &Ask, conf: &ResolvConf) -> (Family, Fact) {
    let mut families: Vec<Family> = match ask.family {
        Some(family) => vec![family],
        None => wired.ips.iter().map(|ip| Family::of(*ip)).collect(),
    };
    families.dedup();
    let explained = |family: Family| (family, views.explain(&ask.host, conf, family));
    let known =
        |(_, fact): &(Family, Fact)| matches!(fact, Fact::Resolve { addresses, .. } if !addresses.is_empty());
    let found = families.iter().copied().map(explained).find(known);
    found.unwrap_or_else(|| explained(families.first().copied().unwrap_or(Family::V4)))
}

/// What the model expects of a name: the step that answers.
pub fn expected(name: &str, conf: &ResolvConf, steps: &[dns::Step]) -> Fact {
    let of = conf.candidates(name).len();
    let upstream = steps.iter().any(|step| matches!(step.finding, Finding::Upstream { .. }));
    let found = steps.iter().zip(1..).find_map(|(step, n)| match &step.finding {
        Finding::Addresses { addresses, .. } => Some((n, step.name.clone(), addresses.clone())),
        _ => None,
    });
    let name = name.to_owned();
    match found {
        Some((step, full_name, addresses)) => {
            Fact::Resolve { name, full_name, addresses, step, of, upstream: false }
        }
        None => {
            Fact::Resolve { name, full_name: String::new(), addresses: Vec::new(), step: 0, of, upstream }
        }
    }
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

/// Asks as glibc would: the search list in order, A or AAAA records, the first server that answers.
fn look_up(netns: &std::path::Path, host: &str, conf: &ResolvConf, family: Family) -> Result<Sighting> {
    let netns = Netns::open(netns).context("open the pod's namespace to resolve")?;
    let (at, began) = (now(), Instant::now());
    let resolved = |full_name: &str, addresses, step, error| Sighting::Resolved {
        at,
        micros: u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX),
        full_name: full_name.to_owned(),
        addresses,
        step,
        error,
    };
    for (name, step) in conf.candidates(host).into_iter().zip(1..) {
        match ask(&netns, &name, conf, family)? {
            Ok(addresses) if !addresses.is_empty() => return Ok(resolved(&name, addresses, step, None)),
            Ok(_) => {}
            Err(why) => return Ok(resolved(&name, Vec::new(), step, Some(format!("{name}: {why}")))),
        }
    }
    let error =
        conf.servers.is_empty().then(|| "there is nobody to ask: resolv.conf names no server".to_owned());
    Ok(resolved(host, Vec::new(), 0, error))
}

/// Addresses of one name; an inner error is the resolver's and ends the search.
fn ask(netns: &Netns, name: &str, conf: &ResolvConf, family: Family) -> Result<Result<Vec<IpAddr>, String>> {
    let Ok(wire) = Name::parse(name) else { return Ok(Err("it is no name".to_owned())) };
    let id = kernel::udp::random().context("choose a query's id")? as u16;
    let query = message::encode_query(id, &wire, family.pick([Type::A, Type::AAAA]));
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
