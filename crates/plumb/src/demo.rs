//! `plumb demo`: what the image `plumb.local/demo` runs. A small server that says who answered and whom it saw, and
//! a client whose names go through the pod's own /etc/resolv.conf, search list and all.
//!
//! Threads and blocking sockets: a pod of it costs under 3 MB.

mod ask;
mod call;
mod http;
mod ping;
pub mod probe;
mod resolve;
mod serve;
pub mod spoof;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Subcommand;

#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Answer HTTP, TCP and UDP with this pod's name and the address of the peer.
    Serve(serve::Serve),
    /// GET an http URL and print the answer's body.
    Get {
        url: String,
        #[command(flatten)]
        patience: Patience,
    },
    /// Send a line over TCP and print the answer.
    Tcp {
        /// HOST:PORT
        target: String,
        #[arg(long, default_value = "hello")]
        say: String,
        #[command(flatten)]
        patience: Patience,
    },
    /// Send a datagram over UDP and print the answer.
    Udp {
        /// HOST:PORT
        target: String,
        #[arg(long, default_value = "hello")]
        say: String,
        /// Again and again from the same socket, so many milliseconds apart; one line each, lost ones too.
        #[arg(long)]
        every: Option<u64>,
        #[command(flatten)]
        patience: Patience,
    },
    /// Send echo requests, for pods of images that have no ping of their own.
    Ping(ping::Ping),
    /// Look a name up as a resolver does and print every step and record.
    Dns {
        name: String,
        #[arg(default_value = "A")]
        kind: String,
        /// Ask this server instead of those in /etc/resolv.conf.
        #[arg(long)]
        server: Option<std::net::IpAddr>,
        #[command(flatten)]
        patience: Patience,
    },
    /// Look a name up again and again, over a socket that is kept and over new ones, and count what went wrong.
    Ask(ask::Ask),
    /// GET an http URL again and again, each over a connection of its own; one line each.
    Loop {
        url: String,
        /// Milliseconds between the starts of two calls.
        #[arg(long, default_value_t = 1000)]
        every: u64,
        /// Stop after so many; for ever without.
        #[arg(long)]
        count: Option<u64>,
        #[command(flatten)]
        patience: Patience,
    },
    /// Carry out the checks of `plumb connectivity test`, say a line of JSON each, and stay.
    #[command(hide = true)]
    Probe {
        /// JSON
        checks: String,
        /// Seconds until what does not hold is said not to
        #[arg(long)]
        settle: u64,
    },
    /// Read a server's /stream and check that no line of it is lost, doubled or out of order.
    Stream {
        /// HOST:PORT of a `serve --http`
        target: String,
        /// Milliseconds between two lines.
        #[arg(long, default_value_t = 10)]
        every: u64,
        /// Stop after so many lines; when the server ends it without.
        #[arg(long)]
        lines: Option<u64>,
        #[command(flatten)]
        patience: Patience,
    },
}

#[derive(clap::Args, Clone, Copy, Debug)]
struct Patience {
    /// Seconds until a silent peer counts as failed.
    #[arg(long, default_value_t = 3.0)]
    timeout: f64,
}

impl Patience {
    fn duration(self) -> Duration {
        Duration::try_from_secs_f64(self.timeout)
            .unwrap_or(Duration::from_secs(3))
            .max(Duration::from_millis(1))
    }
}

/// Runs one demo command. Exit code 1: the peer answered with a failure or the name has no record.
pub fn run(args: Args) -> Result<ExitCode> {
    match args.command {
        Command::Serve(serve) => serve::run(&serve),
        Command::Get { url, patience } => call::get(&url, patience.duration()),
        Command::Tcp { target, say, patience } => call::tcp(&target, &say, patience.duration()),
        Command::Udp { target, say, every: None, patience } => call::udp(&target, &say, patience.duration()),
        Command::Udp { target, say, every: Some(every), patience } => {
            call::udp_flow(&target, &say, Duration::from_millis(every), patience.duration())
        }
        Command::Ping(ping) => ping::run(&ping),
        Command::Dns { name, kind, server, patience } => call::dns(&name, &kind, server, patience.duration()),
        Command::Ask(ask) => ask::run(&ask, Patience { timeout: ask.timeout }.duration()),
        Command::Loop { url, every, count, patience } => {
            call::repeat(&url, Duration::from_millis(every), count, patience.duration())
        }
        Command::Probe { checks, settle } => probe::run(&checks, Duration::from_secs(settle)),
        Command::Stream { target, every, lines, patience } => {
            call::stream(&target, every, lines, patience.duration())
        }
    }
}

#[cfg(test)]
mod tests;
