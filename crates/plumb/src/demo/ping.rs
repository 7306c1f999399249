//! Echo requests, as ping(8) sends them, and its lines as far as scripts read them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use kernel::Rtnl;
use kernel::echo::Echo;
use kernel::probe::Answer;
use types::IfName;

use super::resolve::Resolver;

/// `plumb demo ping`, with the letters of ping(8).
#[derive(clap::Args, Debug)]
pub struct Ping {
    /// A name or an address
    host: String,
    /// Stop after so many; for ever without
    #[arg(short = 'c', long)]
    count: Option<u64>,
    /// Seconds between two
    #[arg(short = 'i', long, default_value_t = 1.0)]
    interval: f64,
    /// Seconds that an answer is waited for
    #[arg(short = 'W', long, default_value_t = 3.0)]
    timeout: f64,
}

/// `fe80::1%eth0`: an address of a link, and the link's index.
fn of_link(host: &str) -> Result<Option<(Ipv6Addr, u32)>> {
    let Some((address, link)) = host.split_once('%') else { return Ok(None) };
    let Ok(address) = address.parse() else { return Ok(None) };
    let index = Rtnl::open()?.index(&IfName::new(link)?);
    Ok(Some((address, index.with_context(|| format!("{host}: there is no interface {link} here"))?)))
}

/// Exit code 0: there was an answer.
pub fn run(ping: &Ping) -> Result<ExitCode> {
    let seconds = |seconds: f64| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::from_secs(3));
    let patience = seconds(ping.timeout).max(Duration::from_millis(1));
    let (address, link) = match of_link(&ping.host)? {
        Some((address, link)) => (address.into(), link),
        None => {
            let found = Resolver::open(None, patience)?.addresses(&ping.host)?;
            (*found.first().with_context(|| format!("{} has no address", ping.host))?, 0)
        }
    };
    let to = match address {
        IpAddr::V6(ip) => SocketAddrV6::new(ip, 0, 0, link).into(),
        IpAddr::V4(_) => SocketAddr::new(address, 0),
    };
    let any = match address.is_ipv4() {
        true => SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0),
        false => SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0),
    };
    let echo = Echo::here(any)?;
    println!("PING {} ({address}) 56 data bytes", ping.host);
    let (mut sent, mut received) = (0_u64, 0_u64);
    for number in 1..=ping.count.unwrap_or(u64::MAX) {
        // The field of the packet has 16 bits, and begins anew after them.
        let (start, sequence) = (Instant::now(), number as u16);
        sent = number;
        match echo.exchange(to, sequence, patience)? {
            Answer::Datagram(body) => {
                received += 1;
                let took = start.elapsed().as_secs_f64() * 1e3;
                println!("{} bytes from {address}: icmp_seq={sequence} time={took:.3} ms", body.len() + 8);
            }
            Answer::Refused => {
                println!(
                    "From {address}: icmp_seq={sequence} Destination Port Unreachable: rejected on the way"
                );
            }
            Answer::Unreachable(error) => println!("icmp_seq={sequence} {error}"),
            Answer::Silent => println!("icmp_seq={sequence} no answer within {patience:?}"),
        }
        if !kernel::out::heard() {
            break;
        }
        if Some(number) != ping.count {
            std::thread::sleep(seconds(ping.interval).saturating_sub(start.elapsed()));
        }
    }
    println!("{sent} packets transmitted, {received} received");
    Ok(if received > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
