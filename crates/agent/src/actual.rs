//! What the kernel holds of ours, and how that differs from what it should hold: one comparison for the loop that
//! mends it, the archive that tells of it, and the trace that explains by it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use compile::guard::Guard;
use kernel::Rtnl;
use kernel::net::{self, Scope};
use kernel::nft::{Nft, Observed};
use kstate::net::{LinkKind, NetState, Op, Plan, RouteKey};
use kstate::nft::{Ruleset, TableFamily, TableId};
use types::wire::TABLE;
use types::{Family, IfName};

/// The kernel's state of one look.
#[derive(Debug)]
pub struct Actual {
    pub nft: Ruleset,
    pub net: NetState,
}

/// How the actual state differs from the desired one.
#[derive(Debug)]
pub struct Drift {
    pub nft: kstate::nft::Plan,
    pub net: NetDrift,
}

#[derive(Debug)]
pub struct NetDrift {
    pub plan: kstate::net::Plan,
    /// Pods' veths that are gone, which no plan makes.
    pub lost: Vec<IfName>,
}

impl Actual {
    /// In the network namespace of the calling thread.
    pub fn observe(scope: &Scope) -> Result<Self> {
        Ok(Self { nft: tables(&mut Nft::open()?)?.ruleset, net: links(&mut Rtnl::open()?, scope)? })
    }

    pub fn differ(&self, nft: &Ruleset, net: &NetState) -> Drift {
        Drift { nft: kstate::nft::diff(nft, &self.nft), net: NetDrift::between(net, &self.net) }
    }
}

impl Drift {
    pub fn is_empty(&self) -> bool {
        self.nft.is_empty() && self.net.is_empty()
    }
}

impl NetDrift {
    pub fn between(desired: &NetState, actual: &NetState) -> Self {
        let lost = kstate::net::lost_veths(desired, actual).cloned().collect();
        Self { plan: kstate::net::diff(desired, actual), lost }
    }

    pub fn is_empty(&self) -> bool {
        self.plan.is_empty() && self.lost.is_empty()
    }

    /// What would mend it, step by step.
    pub fn steps(&self) -> impl Iterator<Item = String> {
        let again = self.lost.iter().map(|name| format!("make the veth {name} again"));
        self.plan.ops().map(ToString::to_string).chain(again)
    }
}

/// Those of the families and of the bridge, and the one in which agents built before 0.2.0 was released had the
/// guard of links: what is left there goes.
pub fn our_tables() -> Vec<TableId> {
    let former = TableId { family: TableFamily::Inet, name: TABLE.into() };
    Guard::ALL.into_iter().flat_map(Guard::tables).chain([former]).collect()
}

pub fn tables(nft: &mut Nft) -> Result<Observed> {
    nft.observe(&our_tables()).context(OBSERVE)
}

/// The same, as long as this holds; `None`: given up.
pub fn tables_while(nft: &mut Nft, go_on: &dyn Fn() -> bool) -> Result<Option<Observed>> {
    nft.observe_while(&our_tables(), go_on).context(OBSERVE)
}

const OBSERVE: &str = "observe nf_tables";

pub fn links(rtnl: &mut Rtnl, scope: &Scope) -> Result<NetState> {
    net::observe(rtnl, scope).context("observe links and routes")
}

/// What others have where routes of ours are missing, in the words of `ip route`. Nothing waits for it: where it cannot be
/// read there are no words.
pub fn in_place_of(rtnl: &mut Rtnl, plan: &Plan, actual: &NetState) -> BTreeMap<RouteKey, String> {
    read_in_place(rtnl, plan, actual).unwrap_or_else(|error| {
        tracing::warn!(error = format!("{error:#}"), "what others have in place of routes is not known");
        BTreeMap::new()
    })
}

fn read_in_place(rtnl: &mut Rtnl, plan: &Plan, actual: &NetState) -> Result<BTreeMap<RouteKey, String>> {
    let missing = plan.ops().filter_map(Op::place).filter(|key| !actual.routes.contains_key(key));
    let missing: BTreeSet<RouteKey> = missing.collect();
    let families: BTreeSet<Family> = missing.iter().map(|key| Family::of_net(&key.dst)).collect();
    let mut found = BTreeMap::new();
    for family in families {
        let in_place = rtnl.routes_that(family, |row| missing.contains(&row.key));
        let in_place = in_place.context("read the routes of others")?;
        let links = if in_place.is_empty() { Vec::new() } else { rtnl.links().context("read the links")? };
        for row in in_place {
            let dev = links.iter().find(|link| Some(link.index) == row.link).map(|link| &link.name);
            found.insert(row.key.clone(), row.words(dev));
        }
    }
    Ok(found)
}

/// All links that should be there by name, veths too: other programs' veths are none of our business.
pub fn scope(desired: &NetState) -> Scope {
    let mut scope = Scope::of(desired);
    let veths = desired.links.iter().filter(|(_, link)| link.kind == LinkKind::Veth);
    scope.links.extend(veths.map(|(name, _)| name.clone()));
    scope
}
