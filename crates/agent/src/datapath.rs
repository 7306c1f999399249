//! The kernel as the loop sees it: believed state, small changes, and full comparison.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Result, bail};
use compile::NetChange;
use compile::guard::{Guard, links};
use compile::layout;
use kernel::Rtnl;
use kernel::net::{self, Scope};
use kernel::nft::{ApplyError, Nft, Observed};
use kstate::net::{NetState, Op, PortOptions, RouteKey};
use kstate::nft::{ElemData, ElemKey, Heir, Ruleset, TableId};
use types::wire::{BRIDGE, TRACE_TABLE, VXLAN_DEVICE};
use types::{Family, IfName, Mac};

use crate::actual::{self, NetDrift};
use crate::drops::Drops;
use crate::flows::Flows;
use crate::settings::Args;

#[derive(Debug)]
pub struct Datapath {
    nft: Nft,
    pub rtnl: Rtnl,
    pub flows: Flows,
    /// What rtnetlink would say, as far as we know: the last look and what we did since.
    believed: NetState,
    /// The generation at which the kernel's tables were known to be right. As long as only we have raised it, they
    /// are, and need no look, however many Services there are.
    right_at: Option<u32>,
    /// Where the machine itself hears of routers.
    uplinks: BTreeSet<IfName>,
    drops: Drops,
}

/// Whether it is known already who may send by which link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guarded {
    /// No table of ours is there.
    Nothing,
    Whole,
    /// By tables of an earlier version, or in part.
    Otherwise,
}

/// Elements by table and set.
type Inherited = BTreeMap<(TableId, Arc<str>), BTreeMap<ElemKey, ElemData>>;

/// Steps by which the kernel differs, or did until they were taken: how many, and the first few in words. A first load has
/// 100,000 of them, which nobody reads.
#[derive(Clone, Debug, Default)]
pub struct Steps {
    pub count: usize,
    /// In words, as many as are known one by one.
    known: Vec<String>,
}

/// So many steps are told one by one.
const TOLD: usize = 4;
/// So many are kept in words, to see what is new among them.
const KNOWN: usize = 256;

impl Steps {
    pub fn add(&mut self, step: impl ToString) {
        self.count += 1;
        if self.known.len() < KNOWN {
            self.known.push(step.to_string());
        }
    }

    /// Those that are told one by one.
    pub fn told(&self) -> &[String] {
        self.known.get(..TOLD).unwrap_or(&self.known)
    }

    pub fn known(&self) -> &[String] {
        &self.known
    }

    /// And these, as far as they are others: of more steps than are kept that is not known.
    pub fn and(mut self, others: impl IntoIterator<Item = String>) -> Self {
        let all_known = self.count == self.known.len();
        for other in others.into_iter().filter(|_| all_known) {
            if !self.known.contains(&other) {
                self.add(other);
            }
        }
        self
    }

    /// With those first that are not among these.
    pub fn new_first(mut self, before: &BTreeSet<String>) -> Self {
        self.known.sort_by_key(|step| before.contains(step));
        self
    }
}

/// The first few, and how many more there are.
impl fmt::Display for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.told().join("; "))?;
        match self.count.saturating_sub(self.told().len()) {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

impl<S: ToString> FromIterator<S> for Steps {
    fn from_iter<I: IntoIterator<Item = S>>(all: I) -> Self {
        let mut steps = Self::default();
        all.into_iter().for_each(|step| steps.add(step));
        steps
    }
}

fn steps_of(plan: &kstate::nft::Plan, desired: &Ruleset, actual: &Ruleset) -> Steps {
    plan.ops.iter().map(|op| kstate::nft::Difference { op, desired, actual }).collect()
}

fn net_steps(plan: &kstate::net::Plan, actual: &NetState, others: &BTreeMap<RouteKey, String>) -> Steps {
    let instead = |op: &Op| op.place().and_then(|key| others.get(&key)).map(String::as_str);
    plan.ops().map(|op| kstate::net::Difference { op, actual, instead: instead(op) }).collect()
}

impl Datapath {
    /// In the network namespace of the calling thread. `drops`: what rules have counted before they are rewritten.
    pub fn open(drops: Drops) -> Result<Self> {
        let believed = NetState::default();
        let (nft, rtnl, flows) = (Nft::open()?, Rtnl::open()?, Flows::open()?);
        drops.open()?;
        Ok(Self { nft, rtnl, flows, believed, right_at: None, uplinks: BTreeSet::new(), drops })
    }

    /// Marks our own transactions among those that the kernel tells of.
    pub fn nft_portid(&self) -> u32 {
        self.nft.portid()
    }

    /// Carries out what the compiler says has changed.
    pub fn update_nft(&mut self, plan: &kstate::nft::Plan, desired: &Ruleset) -> Result<()> {
        let right_at = self.right_at.take();
        self.drops.keep_before(plan);
        self.right_at = self.applied(right_at, |nft| nft.apply(plan, desired))?;
        Ok(())
    }

    /// The generation after our own transactions.
    fn applied(
        &mut self,
        from: Option<u32>,
        apply: impl FnOnce(&mut Nft) -> Result<(), ApplyError>,
    ) -> Result<Option<u32>> {
        let before = self.nft.committed();
        apply(&mut self.nft)?;
        Ok(from.map(|generation| generation.wrapping_add(self.nft.committed().wrapping_sub(before))))
    }

    /// The steps by which the kernel's tables differ from what they should be.
    fn plan_nft(&mut self, desired: &Ruleset) -> Result<(kstate::nft::Plan, Observed)> {
        let observed = actual::tables(&mut self.nft)?;
        Ok((kstate::nft::diff(desired, &observed.ruleset), observed))
    }

    /// The same in words.
    pub fn differ_nft(&mut self, desired: &Ruleset) -> Result<Steps> {
        let (plan, observed) = self.plan_nft(desired)?;
        Ok(steps_of(&plan, desired, &observed.ruleset))
    }

    /// Takes every table of ours away, those of traces too, which are no drift while an agent runs.
    pub fn clear_nft(&mut self) -> Result<Steps> {
        let of_traces = Family::ALL.map(|family| TableId { family: family.into(), name: TRACE_TABLE.into() });
        let all: Vec<TableId> = actual::our_tables().into_iter().chain(of_traces).collect();
        let observed = self.nft.observe(&all)?;
        let plan = kstate::nft::diff(&Ruleset::default(), &observed.ruleset);
        self.nft.apply(&plan, &observed.ruleset)?;
        self.right_at = None;
        Ok(plan.ops.iter().collect())
    }

    /// What there is of the guard, of whichever process.
    pub fn guarded(&mut self) -> Result<Guarded> {
        let mut found = Vec::new();
        for table in actual::our_tables() {
            found.extend(self.nft.chains(&table)?.map(|chains| (table, chains)));
        }
        let has_guard = |table: &TableId| {
            let has = |chain: &str| {
                found.iter().any(|(other, chains)| other == table && chains.contains_key(chain))
            };
            has(layout::RAW) && has(links::FROM_WIRE)
        };
        Ok(match found.is_empty() {
            true => Guarded::Nothing,
            false if Guard::Links.tables().iter().all(has_guard) => Guarded::Whole,
            false => Guarded::Otherwise,
        })
    }

    /// Makes these tables, before it is known what they should be in the end.
    pub fn begin_nft(&mut self, guard: &Ruleset) -> Result<()> {
        self.converge_nft(guard)?;
        self.right_at = None;
        Ok(())
    }

    /// Whether only we have changed anything since the kernel's tables were known to be right: one question.
    pub fn nft_is_right(&mut self) -> Result<bool> {
        Ok(match self.right_at.take() {
            Some(right_at) if right_at == self.nft.generation()? => {
                self.right_at = Some(right_at);
                true
            }
            _ => false,
        })
    }

    /// Looks, compares, mends.
    pub fn converge_nft(&mut self, desired: &Ruleset) -> Result<Steps> {
        self.right_at = None;
        let (mut plan, observed) = self.plan_nft(desired)?;
        let steps = steps_of(&plan, desired, &observed.ruleset);
        plan.begin_with(self.inherited(desired, &observed.ruleset));
        self.drops.keep_before(&plan);
        // Layouts of sets that exist come from the actual state, those of new ones from the plan.
        let actual = &observed.ruleset;
        self.right_at = match plan.is_empty() {
            true => Some(observed.generation),
            false => self.applied(Some(observed.generation), |nft| nft.apply(&plan, actual))?,
        };
        Ok(steps)
    }

    /// What sets under new names take over from those under the old ones: the clients of an agent of before keep their
    /// endpoints. Without it they would be drawn anew, which is no reason to leave the rest as it is.
    fn inherited(&mut self, desired: &Ruleset, actual: &Ruleset) -> Inherited {
        let mut found = Inherited::new();
        for Heir { table, set, of } in kstate::nft::heirs(desired, actual) {
            match self.nft.remembered(&table, &of) {
                Ok(clients) => _ = found.insert((table, set), clients),
                Err(error) => {
                    tracing::warn!(%error, "clients in the set {of} of table {table} are drawn anew: it cannot be read");
                }
            }
        }
        found
    }

    /// Carries out the difference to what we believe is there.
    pub fn update_net(&mut self, change: &NetChange, desired: &NetState) -> Result<()> {
        let plan = match change {
            NetChange::Nothing => return Ok(()),
            NetChange::Entries(touched) => kstate::net::diff_of(touched, desired, &self.believed),
            NetChange::Anything => kstate::net::diff(desired, &self.believed),
        };
        self.perform(&plan)
    }

    fn plan_net(&mut self, desired: &NetState) -> Result<NetDrift> {
        self.believed = actual::links(&mut self.rtnl, &actual::scope(desired))?;
        Ok(NetDrift::between(desired, &self.believed))
    }

    /// How links, addresses, routes and entries differ, in words; and pods' veths that are gone.
    pub fn differ_net(&mut self, desired: &NetState) -> Result<(Steps, Vec<IfName>)> {
        let NetDrift { plan, lost } = self.plan_net(desired)?;
        let others = actual::in_place_of(&mut self.rtnl, &plan, &self.believed)?;
        Ok((net_steps(&plan, &self.believed, &others), lost))
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

    /// Looks, compares, mends.
    pub fn converge_net(&mut self, desired: &NetState) -> Result<(Steps, Vec<IfName>)> {
        self.keep_advertisements(desired)?;
        let NetDrift { plan, lost } = self.plan_net(desired)?;
        let others = actual::in_place_of(&mut self.rtnl, &plan, &self.believed)?;
        let steps = net_steps(&plan, &self.believed, &others);
        self.perform(&plan)?;
        Ok((steps, lost))
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

    /// A veth that was just made, as it should be, with its forwarding entry.
    pub fn believe_veth(&mut self, name: &IfName, desired: &NetState) {
        if let Some(link) = desired.links.get(name) {
            self.believed.links.insert(name.clone(), link.clone());
        }
        let lowest = (name.clone(), Mac([0; 6]));
        let entries = desired.fdb.range(lowest..).take_while(|((link, _), _)| link == name);
        self.believed.fdb.extend(entries.map(|(key, to)| (key.clone(), *to)));
    }

    /// What the kernel does not have of what ports should have, as far as a port was seen.
    pub fn unknown_port_options(&self) -> PortOptions {
        let ports = self.believed.links.values().filter_map(|link| link.port.as_ref());
        ports.fold(PortOptions::default(), |all, port| all.and(port.unknown))
    }
}

/// For the listener, which is there before anything is desired: all that ever will be. What it hears only makes
/// us look, so a stranger's veth does no harm.
pub fn listening_scope(args: &Args) -> Result<Scope> {
    Ok(Scope {
        links: [BRIDGE, VXLAN_DEVICE].into_iter().map(IfName::new).collect::<Result<_, _>>()?,
        veth_prefix: Some("veth".to_owned()),
        loopback: args.dns_ips.iter().copied().map(Into::into).collect(),
        pods: args.cluster_cidrs.clone(),
        sysctls: BTreeSet::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_counted_beyond_those_that_are_kept() {
        let steps = |range: std::ops::Range<usize>| range.map(|n| format!("step {n}")).collect::<Steps>();
        let others = ["step 1", "another"].map(str::to_owned);
        let many = steps(0..404).and(others.clone());
        assert_eq!(many.to_string(), "step 0; step 1; step 2; step 3; and 400 more");
        assert_eq!(steps(0..2).and(others.clone()).to_string(), "step 0; step 1; another");
        assert_eq!(Steps::default().and(others).to_string(), "step 1; another");
    }
}
