//! `plumb bench guards`: what one request costs with and without what checks who sends.
//!
//! ```text
//!   one thread, one CPU:   client's socket ── pod's veth ── guards ── node (── tunnel ── node) ── server's socket
//! ```
//!
//! Both sockets are this thread's own, made in the network namespaces of two pods. What the kernel does for a packet on
//! its way over veth pairs runs in the thread that sends it, so the CPU time of the thread is that of the whole request.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use compile::guard::{Guard, links};
use kernel::{Netns, Nft, Rtnl, checksums, udp};
use kstate::nft::build::{self, rule};
use kstate::nft::{Reg, Rule, Ruleset, TableId, chains_of, diff, sets_of};
use types::wire::VXLAN_PORT;
use types::{IfName, Protocol};

use super::figures::{Figure, Line, Table, median};
use super::lab::{Lab, pods::Pods};

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Times that each way is measured with and without, in turns
    #[arg(long, default_value_t = 40)]
    pairs: u32,
    /// Requests of one measurement
    #[arg(long, default_value_t = 2000)]
    requests: u32,
    /// Take away this part alone [default: all]
    #[arg(long)]
    part: Option<Part>,
}

/// Of the guard.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// Rules of links in the tables of the families
    Links,
    /// The table of the bridge
    Bridge,
    /// The program at pods' ports and the node's own links
    Program,
    /// Of the bridge's table an empty chain on its hook: what the kernel takes for the hook
    Hook,
    /// Of the bridge's table the first rule: the least that says who sends
    Lookup,
}

impl Part {
    /// Which together are the guard.
    const ALL: [Self; 3] = [Self::Links, Self::Bridge, Self::Program];

    /// Takes away of what was found what this part is without.
    fn leave(self, found: &mut Ruleset) {
        let rules = match self {
            Self::Hook => 0,
            Self::Lookup => 1,
            Self::Links | Self::Bridge | Self::Program => return,
        };
        for chain in found.tables.values_mut().flat_map(|table| table.chains.values_mut()) {
            if chain.base.is_some() {
                chain.rules.truncate(rules);
            }
        }
    }

    fn tables(self) -> Vec<TableId> {
        match self {
            Self::Links => Guard::Links.tables(),
            Self::Bridge | Self::Hook | Self::Lookup => Guard::Ports.tables(),
            Self::Program => Vec::new(),
        }
    }
}

const NODES: [&str; 2] = ["node1", "node2"];
const PORT: u16 = 9000;

pub fn run(args: &Args) -> Result<Table> {
    ensure!(args.pairs >= 2, watch::Misused("an interval wants at least two pairs".into()));
    let stage = Stage::up()?;
    let parts = args.part.map_or(Part::ALL.to_vec(), |part| vec![part]);
    let mut guards =
        NODES.iter().map(|node| Guards::of(&stage.lab, node, &parts)).collect::<Result<Vec<_>>>()?;
    let mut table = Table::new("CPU of one request");
    for (way, server) in [("same node", &stage.near), ("across nodes", &stage.far)] {
        for (what, ask) in [("new connection", new_connection as Ask), ("kept connection", kept_connection)] {
            let mut both = [Vec::new(), Vec::new()];
            for pair in 0..args.pairs {
                // Who goes first changes, so that what drifts meets both alike.
                for with in [pair % 2 == 0, pair % 2 != 0] {
                    for guards in &mut guards {
                        guards.set(with)?;
                    }
                    let took = stage.client.netns.run(|| ask(server, args.requests))??;
                    both[usize::from(with)].push(took / args.requests);
                }
            }
            add(&mut table, &format!("{way}, {what}"), &both);
        }
    }
    Ok(table)
}

/// The lines of both, and the share that the guards add: median of the pairs, with its interval.
fn add(table: &mut Table, what: &str, [without, with]: &[Vec<Duration>; 2]) {
    let cpu = "CPU time of client, server and the kernel between them";
    table.add(Line::new(what, cpu, with).target("≤ 3 % above"));
    table.add(Line::new("  without guards", cpu, without));
    let mut shares: Vec<f64> = with
        .iter()
        .zip(without)
        .map(|(with, without)| (with.as_secs_f64() / without.as_secs_f64() - 1.0) * 100.0)
        .collect();
    shares.sort_by(f64::total_cmp);
    let [low, middle, high] = median_interval(&shares);
    table.note(format!(
        "{what}: guards add {middle:+.2} % (95 %: {low:+.2} to {high:+.2}, {} pairs)",
        shares.len()
    ));
    let micros = |samples: &[Duration]| median(samples).unwrap_or_default().as_secs_f64() * 1e6;
    table.figure(Figure {
        what: format!("guards, {what}"),
        measured: format!("{:.2} µs, {middle:+.2} % ({low:+.2} to {high:+.2})", micros(with)),
        floor: format!("without guards {:.2} µs", micros(without)),
        ratio: 1.0 + middle / 100.0,
        target: "≤ 3 % more".into(),
    });
}

/// The median of sorted values, and the values between which it lies with 95 %: the ranks n/2 ± 0.98 √n (the binomial
/// distribution of how many values lie below the median, by its normal approximation).
fn median_interval(sorted: &[f64]) -> [f64; 3] {
    let count = sorted.len() as f64;
    let at = |rank: f64| sorted.get((rank.max(0.0) as usize).min(sorted.len().saturating_sub(1))).copied();
    let reach = 0.98 * count.sqrt();
    [count / 2.0 - reach, count / 2.0, count / 2.0 + reach].map(|rank| at(rank).unwrap_or(f64::NAN))
}

struct Stage {
    lab: Lab,
    client: Place,
    near: TcpServer,
    far: TcpServer,
}

struct Place {
    netns: Netns,
    node: String,
    address: String,
}

struct TcpServer {
    listener: TcpListener,
    address: SocketAddr,
}

impl Stage {
    /// Two pods of one node and one of the other; the agents are paused, or they would put the guards back.
    fn up() -> Result<Self> {
        let lab = Lab::up(&mut Vec::new())?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let places = runtime.block_on(async {
            let pods = Pods::new(&lab.kubeconfig).await?;
            let mut places = Vec::new();
            for number in 0..4 {
                let name = format!("guards-{number}");
                pods.ready(&mut Vec::new(), &name, false).await?;
                places.push(pods.place(&name).await?);
            }
            Ok::<_, anyhow::Error>(places)
        })?;
        let mut places = places
            .into_iter()
            .map(|(node, address, name)| {
                let netns = Netns::open(lab.netns(&node, &name)?)?;
                Ok(Place { netns, node, address })
            })
            .collect::<Result<Vec<_>>>()?
            .into_iter();
        let client = places.next().context("four pods were made")?;
        let (near, far): (Vec<_>, Vec<_>) = places.partition(|place| place.node == client.node);
        let server = |places: Vec<Place>, which: &str| -> Result<TcpServer> {
            let place = places.into_iter().next().with_context(|| format!("no pod is on {which} node"))?;
            let address = format!("{}:{PORT}", place.address).parse()?;
            Ok(TcpServer { listener: place.netns.run(|| TcpListener::bind(address))??, address })
        };
        let (near, far) = (server(near, "the same")?, server(far, "the other")?);
        for node in NODES {
            lab.command(&["lab", "agent", "pause", node, "--name", &lab.name])?;
        }
        Ok(Self { lab, client, near, far })
    }
}

/// A node's guards: as they were found, what is left without them, and whether they are there.
struct Guards {
    netns: Netns,
    nft: Nft,
    with: Ruleset,
    without: Ruleset,
    /// Whether the program is taken away, too, and from which links it was.
    program: bool,
    programs: Vec<IfName>,
    there: bool,
}

impl Guards {
    fn of(lab: &Lab, node: &str, parts: &[Part]) -> Result<Self> {
        let netns = Netns::open(lab.node(node)?)?;
        let mut nft = Nft::open_in(&netns)?;
        let tables: Vec<TableId> = parts.iter().flat_map(|part| part.tables()).collect();
        let mut with = nft.observe(&tables)?.ruleset;
        ensure!(with.tables.len() == tables.len(), "{node} has no guards: {:?}", with.tables.keys());
        let without = without(&with);
        parts.iter().for_each(|part| part.leave(&mut with));
        let program = parts.contains(&Part::Program);
        // As found, which is more than a part of it.
        let there = !parts.iter().any(|part| matches!(part, Part::Hook | Part::Lookup));
        let mut guards = Self { netns, nft, with, without, program, programs: Vec::new(), there };
        if !there {
            let found = guards.nft.observe(&tables)?.ruleset;
            guards.nft.apply(&diff(&guards.without, &found), &found)?;
        }
        Ok(guards)
    }

    fn set(&mut self, there: bool) -> Result<()> {
        if there == self.there {
            return Ok(());
        }
        let (wanted, had) = if there { (&self.with, &self.without) } else { (&self.without, &self.with) };
        self.nft.apply(&diff(wanted, had), &self.with)?;
        if self.program {
            let links = std::mem::take(&mut self.programs);
            self.programs = self.netns.run(|| -> Result<Vec<IfName>> {
                let mut rtnl = Rtnl::open()?;
                if !there {
                    return Ok(checksums::leave(&mut rtnl)?);
                }
                links.iter().try_for_each(|link| checksums::guard(&mut rtnl, link).map(drop))?;
                Ok(Vec::new())
            })??;
        }
        self.there = there;
        Ok(())
    }
}

/// Nothing on the hooks leads to what the guard has. The tunnel's packets are no flows, as with it.
fn without(guarded: &Ruleset) -> Ruleset {
    let mut all = guarded.clone();
    let bridges = Guard::Ports.tables();
    all.tables.retain(|table, _| !bridges.contains(table));
    let leads = |rule: &Rule| {
        let mut to = chains_of(rule);
        to.any(links::is_own) || sets_of(rule).contains(links::LINKS)
    };
    for chain in all.tables.values_mut().flat_map(|table| table.chains.iter_mut()) {
        let (name, chain) = chain;
        if chain.base.is_none() {
            continue;
        }
        chain.rules.retain(|rule| !leads(rule));
        if name == "raw" {
            let r = Reg(0);
            let udp = [build::l4proto(r), build::is(r, Protocol::Udp)].into_iter();
            let port = [build::th_dport(r), build::is(r, VXLAN_PORT), build::notrack()];
            chain.rules.push(rule("", udp.chain(port)));
        }
    }
    all
}

type Ask = fn(&TcpServer, u32) -> Result<Duration>;

/// A request of 100 bytes and an answer of 300 over a connection of its own.
fn new_connection(server: &TcpServer, count: u32) -> Result<Duration> {
    timed(|| {
        for _ in 0..count {
            let (mut asks, mut answers) = connect(server)?;
            request(&mut asks, &mut answers)?;
        }
        Ok(())
    })
}

/// The same over one connection.
fn kept_connection(server: &TcpServer, count: u32) -> Result<Duration> {
    let (mut asks, mut answers) = connect(server)?;
    timed(|| (0..count).try_for_each(|_| request(&mut asks, &mut answers)))
}

fn connect(server: &TcpServer) -> Result<(TcpStream, TcpStream)> {
    let asks = TcpStream::connect(server.address)?;
    // Closed by a reset: nothing waits for the last segment, and the port is free again.
    rustix::net::sockopt::set_socket_linger(&asks, Some(Duration::ZERO))?;
    asks.set_nodelay(true)?;
    let (answers, _) = server.listener.accept()?;
    answers.set_nodelay(true)?;
    Ok((asks, answers))
}

fn request(asks: &mut TcpStream, answers: &mut TcpStream) -> Result<()> {
    let mut bytes = [0; 300];
    asks.write_all(&bytes[..100])?;
    answers.read_exact(&mut bytes[..100])?;
    answers.write_all(&bytes)?;
    asks.read_exact(&mut bytes)?;
    Ok(())
}

/// CPU time of this thread, on one CPU.
fn timed(work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    udp::pin(udp::two_cpus()?.0)?;
    let spent = || -> Result<Duration> {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Ok(Duration::new(now.tv_sec.try_into()?, now.tv_nsec.try_into()?))
    };
    let before = spent()?;
    work()?;
    Ok(spent()?.saturating_sub(before))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_of_the_median() {
        let values: Vec<f64> = (0..100).map(f64::from).collect();
        assert_eq!(median_interval(&values), [40.0, 50.0, 59.0]);
        assert_eq!(median_interval(&[1.0, 2.0]), [1.0, 2.0, 2.0]);
        assert!(median_interval(&[])[1].is_nan());
    }
}
