//! From outside into a lab: its processes carry other numbers here, so they are reached through the anchor's
//! own /proc, `/proc/<anchor>/root/proc/<pid inside>`.

use std::fs::File;
use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use kernel::process::{Namespaces, Process, Signal, Spawn};

use crate::plan::{Plan, node_address, node_number};
use crate::rundir::RunDir;
use crate::{adopt, list};

/// A living lab.
#[derive(Debug)]
pub struct Inside {
    pub run: RunDir,
    pub plan: Plan,
    pub anchor: Process,
}

impl Inside {
    /// The lab of this name; an error says how to start it.
    pub fn find(name: &str) -> Result<Self> {
        let run = RunDir::of(name)?;
        match adopt::anchor(&run)? {
            Some(anchor) => Ok(Self { plan: Plan::read(&run)?, run, anchor }),
            None => {
                let others: Vec<String> =
                    list::running().iter().map(|name| format!("--name {name}")).collect();
                let others = match others.is_empty() {
                    true => String::new(),
                    false => format!("; what runs is {}", others.join(", ")),
                };
                bail!("lab {name} is not running; start it with: plumb lab up --name {name}{others}")
            }
        }
    }

    /// /proc of a process of the lab, by its number inside.
    pub fn proc(&self, pid: u32) -> PathBuf {
        format!("/proc/{}/root/proc/{pid}", self.anchor.pid()).into()
    }

    /// The number inside of the noted process, if it lives.
    pub fn living(&self, process: &str) -> Option<u32> {
        let (pid, started) = adopt::noted(&self.run.pid_file(process))?;
        let stat = std::fs::read_to_string(self.proc(pid).join("stat")).ok()?;
        let fields = stat.rsplit_once(')')?.1;
        let mut fields = fields.split_ascii_whitespace();
        let state = fields.next()?;
        (state != "Z" && fields.nth(18)?.parse() == Ok(started)).then_some(pid)
    }

    /// Ends the noted process. The number inside means nothing here, so it is reached by its /proc directory, which
    /// is opened before the process is judged: a successor with the same number cannot be meant.
    pub fn kill(&self, process: &str) -> Result<()> {
        let Some((pid, _)) = adopt::noted(&self.run.pid_file(process)) else { return Ok(()) };
        let Ok(directory) = File::open(self.proc(pid)) else { return Ok(()) };
        if self.living(process) == Some(pid) {
            // One that has just ended by itself is as good.
            Process::signal_entry(&directory, Signal::KILL).with_context(|| format!("kill {process}"))?;
        }
        Ok(())
    }

    /// Resident memory of a process in KiB.
    pub fn resident(&self, pid: u32) -> Option<u64> {
        let status = std::fs::read_to_string(self.proc(pid).join("status")).ok()?;
        status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))?
            .trim()
            .strip_suffix(" kB")?
            .trim()
            .parse()
            .ok()
    }

    /// What the node has lost of its way to the others: its eth0, which is down or gone, or an address.
    pub fn cut_off(&self, node: &str) -> Option<String> {
        let (holder, number) = (self.living(&format!("hold-{node}"))?, node_number(node)?);
        let net = self.proc(holder).join("net");
        let read = |file: &str| std::fs::read_to_string(net.join(file));
        // Without IPv6 in the kernel there is no file of its addresses.
        let (links, trie, inet6) =
            (read("dev").ok()?, read("fib_trie").ok()?, read("if_inet6").unwrap_or_default());
        if !names_uplink(&links) || !names_uplink(&read("route").ok()?) && !names_uplink(&inet6) {
            return Some("its eth0 is down or gone".to_owned());
        }
        let own = self.plan.families.list().iter().map(|family| node_address(number, *family));
        let lost = own.filter(|address| !has_address(&trie, &inet6, *address)).map(|ip| ip.to_string());
        let lost: Vec<String> = lost.collect();
        (!lost.is_empty()).then(|| format!("its address {} is on no interface", lost.join(", ")))
    }

    pub fn check_node(&self, node: &str) -> Result<()> {
        if node_number(node).is_none_or(|number| number > self.plan.nodes) {
            bail!(
                "lab {} has no node {node:?}; it has {}",
                self.plan.name,
                self.plan.node_names().join(", ")
            );
        }
        Ok(())
    }

    /// A spawn that will run inside the node. Moves this process into the lab's user namespace (of an ordinary
    /// user) for good, which wants a process of one thread.
    pub fn spawn_in(&self, node: &str, program: &str) -> Result<Spawn> {
        self.check_node(node)?;
        let holder = self
            .living(&format!("hold-{node}"))
            .with_context(|| format!("{node} is being made anew; try again in a moment"))?;
        let files = ["mnt", "net", "uts", "pid"].map(|kind| {
            let path = self.proc(holder).join("ns").join(kind);
            File::open(&path).with_context(|| format!("open {}", path.display()))
        });
        if !kernel::own::is_root() {
            self.anchor.enter_for_good(Namespaces::USER)?;
        }
        let mut spawn = Spawn::program(program).directory("/").env(crate::plan::NODE_VARIABLE, node);
        let kinds = [Namespaces::MOUNT, Namespaces::NET, Namespaces::UTS, Namespaces::PID];
        for (kind, file) in kinds.into_iter().zip(files) {
            spawn = spawn.join(kind, file?)?;
        }
        Ok(spawn)
    }
}

/// Whether a table of /proc/net has a line of eth0.
fn names_uplink(table: &str) -> bool {
    let is_it = |word: &str| word.trim_end_matches(':') == "eth0";
    table.lines().any(|line| line.split_ascii_whitespace().any(is_it))
}

/// By /proc/net/fib_trie, where an address of the machine is `|-- ADDRESS` before `/32 host LOCAL`, and /proc/net/if_inet6.
fn has_address(trie: &str, inet6: &str, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => {
            let lines: Vec<&str> = trie.lines().map(str::trim).collect();
            let leaf = format!("|-- {address}");
            lines.windows(2).any(|pair| matches!(pair, [at, of] if *at == leaf && of.ends_with("host LOCAL")))
        }
        IpAddr::V6(ip) => {
            let digits: String = ip.octets().iter().map(|octet| format!("{octet:02x}")).collect();
            inet6.lines().any(|line| line.starts_with(&digits))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_where_the_kernel_says_that_it_is_its_own() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 192.168.1.10\n        /32 host LOCAL\n     |-- 192.168.1.11\n        /32 link UNICAST\n";
        let inet6 = "fd001921680001000000000000000010 02 40 00 80     eth0\n";
        for (address, has) in [
            ("192.168.1.10", true),
            ("192.168.1.1", false),
            ("192.168.1.11", false),
            ("fd00:1921:6800:100::10", true),
            ("fd00:1921:6800:100::11", false),
        ] {
            assert_eq!(has_address(trie, inet6, address.parse().unwrap()), has, "{address}");
        }
    }

    #[test]
    fn an_uplink_that_is_up_is_in_a_table_of_the_kernels() {
        let head = "Iface\tDestination\tGateway\n";
        assert!(names_uplink(&format!("{head}cni0\t0001F40A\t0\neth0\t0001A8C0\t0\n")));
        assert!(names_uplink("fe800000000000000000000000000001 02 40 20 80     eth0\n"));
        assert!(!names_uplink(&format!("{head}cni0\t0001F40A\t0\nveth0\t0\t0\n")));
    }
}
