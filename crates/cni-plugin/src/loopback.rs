//! The plugin `loopback`, which containerd runs by name in every sandbox before the configured network: the same
//! executable under another name, so that nothing else needs to be installed.

use std::path::Path;

use cni::{Attach, Code, Error, Interface, Ip, Reply, Request, Success, Version};
use kernel::{Netns, Rtnl};
use types::{IpNet, Mac};

/// The name of the executable.
pub const NAME: &str = "loopback";
/// `lo` is the first interface of every namespace (LOOPBACK_IFINDEX of linux/net/loopback.c).
const LO: u32 = 1;
/// What the kernel gives `lo` once it is up.
const ADDRESSES: [&str; 2] = ["127.0.0.1/8", "::1/128"];

/// Whether this program was called by the name of the plugin.
pub fn is_meant(program: &Path) -> bool {
    program.file_name().is_some_and(|name| name == NAME)
}

/// DEL does nothing: `lo` ends with its namespace, and what still runs in it may need it until then.
pub fn answer(request: &Request) -> Reply {
    let version = request.version();
    let done = match request {
        Request::Version(version) => Ok(Request::versions(*version)),
        Request::Add(attach) => add(attach, version),
        Request::Check(attach) => check(attach).map(|()| String::new()),
        Request::Del(_) | Request::Gc(_) | Request::Status(_) => Ok(String::new()),
    };
    match done {
        Ok(stdout) => Reply { exit: 0, stdout },
        Err(error) => Reply { exit: 1, stdout: error.render(version) },
    }
}

/// The result of an earlier plugin is handed on as it came.
fn add(attach: &Attach, version: Version) -> Result<String, Error> {
    bring_up(attach)?;
    if let Some(prev) = &attach.config.prev {
        return Ok(prev.raw.to_string());
    }
    let lo =
        Interface { name: "lo".into(), mac: Some(Mac::default()), mtu: None, sandbox: attach.netns.clone() };
    let of = |address: IpNet| Ip { address, gateway: None, interface: Some(0) };
    let ips = ADDRESSES.iter().filter_map(|text| text.parse().ok()).map(of).collect();
    Ok(Success { interfaces: vec![lo], ips, ..Success::default() }.render(version))
}

/// Doing it again does no harm.
fn bring_up(attach: &Attach) -> Result<(), Error> {
    with_lo(attach, |rtnl| rtnl.set_up(LO))
}

/// CHECK reports, and changes nothing (SPEC.md of CNI, "CHECK"). A `lo` that is up has its addresses by the kernel.
fn check(attach: &Attach) -> Result<(), Error> {
    let links = with_lo(attach, Rtnl::links)?;
    match links.iter().find(|link| link.index == LO) {
        Some(lo) if lo.up => Ok(()),
        _ => {
            let msg = format!("lo of {} is not up", attach.netns.as_deref().unwrap_or_default());
            Err(Error::new(Code::CheckFailed, msg, "somebody took it down; make the container again"))
        }
    }
}

fn with_lo<T>(attach: &Attach, ask: impl FnOnce(&mut Rtnl) -> Result<T, kernel::Error>) -> Result<T, Error> {
    let path = attach.netns.as_deref().unwrap_or_default();
    let gone = |error: kernel::Error| {
        let details = "the container may be gone; the runtime has to give a path that exists";
        Error::new(Code::UnknownContainer, error.to_string(), details)
    };
    let netns = Netns::open(path).map_err(gone)?;
    let done = Rtnl::open_in(&netns).and_then(|mut rtnl| ask(&mut rtnl));
    done.map_err(|error| Error::new(Code::Kernel, format!("lo of {path}: {error}"), "loopback needs root"))
}
