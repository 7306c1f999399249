//! The first hop: what the resolver inside the pod says to the name, beside what the model says.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use dns::query::{Rcode, Type};
use dns::{Data, Finding, Hosts, Name, ResolvConf, Step, message};
use kernel::Netns;
use kernel::probe::{Answer, Probe};
use trace::exchange::Ask;
use trace::hop::{Fact, Hop, Stage};
pub use trace::observed::SERVFAIL;
use trace::observed::Sighting;
use types::Family;

use super::files::{self, Files};
use super::views::{Views, Wired};
use super::watch::now;
use super::ways;

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
    let literal = ask.host.split_once('%').map_or(ask.host.as_str(), |(address, _)| address);
    if let Ok(address) = literal.parse() {
        return Ok(Resolution { address: Some(address), ..Resolution::default() });
    }
    let netns = wired.netns.clone();
    let files = tokio::task::spawn_blocking(move || files::of(&netns)).await?;
    let Files { conf, hosts } = match files {
        Some(files) => files,
        None => views.usual_files(wired),
    };
    let families = families(wired, ask);
    if let Some(in_file) = in_file(views.node(), &ask.host, &hosts, &families) {
        return Ok(in_file);
    }
    let (family, steps) = chosen(views, &ask.host, &conf, &families);
    let mut fact = expected(&ask.host, &conf, &steps, views.lacks(&steps, family).await?);
    if let Fact::Resolve { full_name, note, .. } = &mut fact {
        *note = views.of_port(full_name, (ask.protocol, ask.port)).await?;
    }
    let expected = Some(Hop::new(Stage::Resolve, views.node(), fact));
    let (host, netns) = (ask.host.clone(), wired.netns.clone());
    let ours = conf.servers.iter().filter(|server| views.is_dns(**server));
    let pod = |server: &IpAddr| wired.ips.iter().find(|ip| ip.is_ipv4() == server.is_ipv4());
    let wiring = views.wiring().await?;
    let legs: Vec<_> = ours.filter_map(|server| Some(ways::answer(wiring, *server, *pod(server)?))).collect();
    let asked = tokio::task::spawn_blocking(move || {
        let mut seen = vec![look_up(&netns, &host, &conf, family)?];
        seen.extend(ways::look(&legs, None)?);
        Ok::<_, anyhow::Error>(seen)
    });
    let mut seen = asked.await??;
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

/// Those to ask for, in this order: the one that is wanted, or the pod's.
fn families(wired: &Wired, ask: &Ask) -> Vec<Family> {
    let mut families: Vec<Family> = match ask.family {
        Some(family) => vec![family],
        None => wired.ips.iter().map(|ip| Family::of(*ip)).collect(),
    };
    families.dedup();
    families
}

/// A name of the pod's own file is found before anybody is asked (`hosts: files dns`, nsswitch.conf(5)).
fn in_file(node: &str, host: &str, hosts: &Hosts, families: &[Family]) -> Option<Resolution> {
    let known = hosts.addresses(host);
    let of = |family: &Family| known.iter().copied().find(|address| Family::of(*address) == *family);
    let address = families.iter().find_map(of)?;
    let fact = Fact::Resolve {
        name: host.to_owned(),
        full_name: host.to_owned(),
        addresses: vec![address],
        step: 0,
        of: 0,
        upstream: false,
        lacks: None,
        alias: None,
        fails: None,
        in_file: true,
        note: None,
    };
    let seen = Sighting::Resolved {
        at: now(),
        micros: 0,
        full_name: host.to_owned(),
        addresses: vec![address],
        step: 0,
        error: None,
    };
    let expected = Some(Hop::new(Stage::Resolve, node, fact));
    Some(Resolution { address: Some(address), expected, seen: vec![seen] })
}

/// The first family in which the cluster knows the name, or the first of all, and what it says of it.
fn chosen(views: &Views, host: &str, conf: &ResolvConf, families: &[Family]) -> (Family, Vec<Step>) {
    let explained = |family: Family| (family, views.explain(host, conf, family));
    let known = |(_, steps): &(Family, Vec<Step>)| {
        steps.iter().any(|step| matches!(&step.finding, Finding::Addresses { .. }))
    };
    let found = families.iter().copied().map(explained).find(known);
    found.unwrap_or_else(|| explained(families.first().copied().unwrap_or(Family::V4)))
}

/// What the model expects of a name: the step that answers. `lacks`: what the name has not, if it is there.
pub fn expected(name: &str, conf: &ResolvConf, steps: &[Step], lacks: Option<String>) -> Fact {
    let of = conf.candidates(name).len();
    let upstream = steps.iter().any(|step| matches!(step.finding, Finding::Upstream { .. }));
    let found = steps.iter().zip(1..).find_map(|(step, n)| match &step.finding {
        Finding::Addresses { addresses, .. } => Some((n, step.name.clone(), addresses.clone())),
        _ => None,
    });
    let alias = steps.iter().find_map(|step| match &step.finding {
        Finding::Upstream { alias } => alias.clone(),
        _ => None,
    });
    let fails = steps.iter().find_map(|step| match &step.finding {
        Finding::Endless(why) => Some(why.clone()),
        _ => None,
    });
    let unknown = Fact::Resolve {
        name: name.to_owned(),
        full_name: String::new(),
        addresses: Vec::new(),
        step: 0,
        of,
        upstream,
        lacks,
        alias,
        fails,
        in_file: false,
        note: None,
    };
    match found {
        Some((step, full_name, addresses)) => Fact::Resolve {
            name: name.to_owned(),
            full_name,
            addresses,
            step,
            of,
            upstream: false,
            lacks: None,
            alias: None,
            fails: None,
            in_file: false,
            note: None,
        },
        None => unknown,
    }
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
pub fn ask(
    netns: &Netns,
    name: &str,
    conf: &ResolvConf,
    family: Family,
) -> Result<Result<Vec<IpAddr>, String>> {
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
                    last = format!("{server} {SERVFAIL}");
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
