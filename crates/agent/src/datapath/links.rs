//! Links, addresses, routes, neighbours, forwarding entries, sysctls.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use compile::{NetChange, wiring};
use kernel::Rtnl;
use kernel::net::{self, Scope};
use kstate::net::{Forward, LinkKind, NetState, Op, PortOptions, RouteKey, Told, Touched};
use node::Record;
use types::{IfName, IpNet};

use super::{Found, Steps};
use crate::actual::{self, NetDrift};

#[derive(Debug)]
pub struct Links {
    pub rtnl: Rtnl,
    /// What rtnetlink would say, as far as we know: the last look and what we did since.
    believed: NetState,
    /// Pods' veths that are being made: what is there of them is no state yet.
    coming: BTreeSet<IfName>,
    /// Where the machine itself hears of routers.
    uplinks: BTreeSet<IfName>,
    /// Addresses on the loopback device that are ours.
    loopback: Vec<IpNet>,
}

fn net_steps(plan: &kstate::net::Plan, actual: &NetState, others: &BTreeMap<RouteKey, String>) -> Steps {
    let instead = |op: &Op| op.place().and_then(|key| others.get(&key)).map(String::as_str);
    plan.ops().map(|op| kstate::net::Difference { op, actual, instead: instead(op) }).collect()
}

impl Links {
    /// Looks and compares.
    pub fn differ(&mut self, desired: &NetState) -> Result<Found> {
        let NetDrift { plan, lost } = self.plan(desired)?;
        let others = actual::in_place_of(&mut self.rtnl, &plan, &self.believed);
        Ok(Found { steps: net_steps(&plan, &self.believed, &others), lost })
    }

    /// Looks, compares, mends.
    pub fn converge(&mut self, desired: &NetState) -> Result<Found> {
        self.keep_advertisements(desired)?;
        let NetDrift { plan, lost } = self.plan(desired)?;
        let others = actual::in_place_of(&mut self.rtnl, &plan, &self.believed);
        let steps = net_steps(&plan, &self.believed, &others);
        self.perform(&plan)?;
        Ok(Found { steps, lost })
    }

    /// All that is recognised as ours. No record is asked, since it may be lost or of another version. What tells of the machine's links that are only
    /// looked at goes with it.
    pub fn clear(&mut self) -> Result<Steps> {
        let scope = Scope { links: self.owned()?, loopback: self.loopback.clone(), ..Scope::default() };
        let actual = net::observe(&mut self.rtnl, &scope)?;
        let plan = kstate::net::diff(&NetState::default(), &actual);
        self.perform(&plan)?;
        let mut gone: Steps = plan.ops().collect();
        let watched =
            kernel::checksums::leave(&mut self.rtnl).context("take the programs from the machine's links")?;
        watched.iter().for_each(|link| gone.add(format!("- program for checksums at {link}")));
        Ok(gone)
    }

    /// In the network namespace of the calling thread. `loopback`: addresses there that are ours.
    pub fn open(loopback: Vec<IpNet>) -> Result<Self> {
        let believed = NetState::default();
        Ok(Self {
            rtnl: Rtnl::open()?,
            believed,
            coming: BTreeSet::new(),
            uplinks: BTreeSet::new(),
            loopback,
        })
    }

    /// The links of every wiring and fabric, and the node's ends of pods'.
    fn owned(&mut self) -> Result<BTreeSet<IfName>> {
        let ours = compile::net::own_links().map(IfName::new).collect::<Result<BTreeSet<_>, _>>()?;
        let rows = self.rtnl.links().context("list the links")?;
        let name = |index| rows.iter().find(|row| row.index == index).map(|row| row.name.as_str());
        let is_pods = |master: Option<u32>| wiring::all().any(|wiring| wiring.is_pods(master.and_then(name)));
        let ports = rows.iter().filter(|row| is_pods(row.master));
        Ok(ports.map(|row| row.name.clone()).chain(ours).collect())
    }

    /// Carries out the difference to what we believe is there.
    pub fn follow(&mut self, change: &NetChange, desired: &NetState) -> Result<()> {
        let plan = match change {
            NetChange::Nothing => return Ok(()),
            NetChange::Entries(touched) => kstate::net::diff_of(touched, desired, &self.believed),
            NetChange::Anything => kstate::net::diff(desired, &self.believed),
        };
        self.perform(&plan)
    }

    fn plan(&mut self, desired: &NetState) -> Result<NetDrift> {
        self.believed = actual::links(&mut self.rtnl, &actual::scope(desired))?;
        self.believed.links.retain(|name, _| !self.coming.contains(name));
        self.believed.fdb.retain(|(name, _), _| !self.coming.contains(name));
        Ok(NetDrift::between(desired, &self.believed))
    }

    /// Of this node, which has these addresses: before anything is made.
    pub fn learn_uplinks(&mut self, addresses: &[IpAddr]) -> Result<()> {
        self.uplinks = net::advertised_links(&mut self.rtnl, addresses)?;
        Ok(())
    }

    /// Before forwarding is turned on, and again for a link that was replaced.
    fn keep_advertisements(&self, desired: &NetState) -> Result<()> {
        if !desired.sysctls.contains_key("net/ipv6/conf/all/forwarding") {
            return Ok(());
        }
        for link in &self.uplinks {
            if net::keep_advertisements(link)? {
                tracing::info!(%link, "takes router advertisements on although this node forwards: accept_ra is 2");
            }
        }
        Ok(())
    }

    fn perform(&mut self, plan: &kstate::net::Plan) -> Result<()> {
        let failures = net::apply(&mut self.rtnl, plan)?;
        if let Some(first) = failures.first() {
            bail!("{first} ({} of {} steps failed)", failures.len(), plan.ops().count());
        }
        self.believed.edit(plan);
        Ok(())
    }

    /// Whether a sysctl of ours has another value than at the last look: of most of them the kernel tells nobody.
    pub fn sysctls_were_changed(&self, desired: &NetState) -> bool {
        let differs = |path: &String| {
            net::sysctl(path).is_ok_and(|now| now.as_ref() != self.believed.sysctls.get(path))
        };
        desired.sysctls.keys().any(differs)
    }

    /// Pods' veths that are being made.
    pub fn leave_out(&mut self, coming: BTreeSet<IfName>) {
        self.coming = coming;
    }

    /// A veth that was just made, with its forwarding entry.
    pub fn believe_veth(&mut self, record: &Record, mtu: u32) {
        let name = &record.host_if;
        let Some(mut link) = wiring::of(record.wiring).host_link(mtu) else { return };
        if let Some(port) = &mut link.port {
            if !port.options.has(PortOptions::LEARNING) {
                self.believed.fdb.insert((name.clone(), record.mac), Forward::Port);
            }
            let program =
                kernel::checksums::program().map_or(PortOptions::CHECKSUMS, |_| PortOptions::default());
            port.unknown = self.unknown_port_options().and(program);
            port.options = port.options.without(port.unknown);
        }
        self.believed.links.insert(name.clone(), link);
    }

    /// Makes it what it should be by now, if that has changed while it was made.
    pub fn follow_veth(&mut self, record: &Record, desired: &NetState) -> Result<()> {
        let (name, entry) = (&record.host_if, (record.host_if.clone(), record.mac));
        let is_met = match (desired.links.get(name), self.believed.links.get(name)) {
            (Some(wanted), Some(believed)) => wanted.is_met_by(believed),
            // It is being taken away already.
            (wanted, _) => wanted.is_none(),
        };
        if is_met && desired.fdb.get(&entry) == self.believed.fdb.get(&entry) {
            return Ok(());
        }
        let fdb = [entry].into();
        self.follow(&NetChange::Entries(Touched { fdb, ..Touched::default() }), desired)
    }

    /// What the kernel does not have of what ports should have, as far as a port was seen.
    pub fn unknown_port_options(&self) -> PortOptions {
        let ports = self.believed.links.values().filter_map(|link| link.port.as_ref());
        ports.fold(PortOptions::default(), |all, port| all.and(port.unknown))
    }

    /// Of what the kernel has told, what we do not know: somebody else's doing.
    pub fn contradicting<'a>(&self, told: &'a [Told]) -> Vec<&'a Told> {
        kstate::net::contradicting(told, &self.believed)
    }

    /// Whether a pod's veth of this name is there, as far as we know.
    pub fn has_veth(&self, name: &IfName) -> bool {
        self.believed.links.get(name).is_some_and(|link| link.kind == LinkKind::Veth)
    }
}

/// For the listener, which is there before anything is desired: all that ever will be. What it hears only makes
/// us look, so a stranger's veth does no harm.
pub fn listening_scope(dns_ips: &[IpAddr], pods: &[IpNet]) -> Result<Scope> {
    Ok(Scope {
        links: compile::net::own_links().map(IfName::new).collect::<Result<_, _>>()?,
        veth_prefix: Some("veth".to_owned()),
        loopback: dns_ips.iter().copied().map(Into::into).collect(),
        pods: pods.to_vec(),
        sysctls: BTreeSet::new(),
    })
}
