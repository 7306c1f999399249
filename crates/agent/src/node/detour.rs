//! Routes and rules of others that take what is for pods: they are not ours, and nothing of them is put away.
//!
//! ```text
//!   a route within a pod CIDR: the longer prefix wins, and the lower metric ─> named with the node whose pods it takes
//!   a rule before the main table that ends it, or whose table has a route there ─> the same
//! ```

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use compile::net::own_links;
use kernel::Rtnl;
use kstate::net::{ROUTE_PROTOCOL, RouteKey};
use netlink::route::{RT_TABLE_LOCAL, RouteRow, RuleAction, RuleRow, SEVERAL};
use semantics::Diagnostic;
use types::{Family, IfName, IpNet};

use super::underlay::about;

/// IPv6's metric of a route without one (IP6_RT_PRIO_USER), and of those that come with an address.
const METRIC_V6: [u32; 2] = [1024, 256];

/// A node that speaks BGP has a million routes: so many times as long as a look took nobody looks again, or this long.
const SHARE: u32 = 20;
const LONGEST: Duration = Duration::from_secs(60);

/// What others have, as far as it may concern pods.
#[derive(Clone, Debug, Default)]
pub struct Detours {
    known: bool,
    /// Not before then is it looked at again.
    rest: Option<Instant>,
    routes: Vec<RouteRow>,
    rules: Vec<RuleRow>,
    links: BTreeMap<u32, IfName>,
    /// The ranges that pods have their addresses of.
    pods: Vec<IpNet>,
}

impl Detours {
    /// It has to be looked at again.
    pub fn forget(&mut self) {
        self.known = false;
    }

    /// Once, after each change, and while there is something: IPv4's routes go with their link without a word.
    pub fn look(&mut self, rtnl: &mut Rtnl, pods: &[IpNet]) -> Result<(), kernel::Error> {
        let nothing = self.known && self.routes.is_empty() && self.rules.is_empty();
        if nothing || self.rest.is_some_and(|until| Instant::now() < until) {
            return Ok(());
        }
        let began = Instant::now();
        let links: BTreeMap<u32, IfName> =
            rtnl.links()?.into_iter().map(|row| (row.index, row.name)).collect();
        let (mut routes, mut rules) = (Vec::new(), Vec::new());
        for family in Family::ALL {
            let before = before_main(rtnl.rules(family)?).into_iter();
            rules.extend(before.filter(|rule| may_select(rule, pods)));
            routes.extend(rtnl.routes_that(family, |row| {
                let dst = row.key.dst;
                let within = pods.iter().any(|pods| pods.contains(&dst));
                let around = !row.is_in_common() && pods.iter().any(|pods| dst.contains(pods));
                (within || around) && row.protocol != ROUTE_PROTOCOL && !is_of_ours(row, &links)
            })?);
        }
        let rest = Some(Instant::now() + (began.elapsed() * SHARE).min(LONGEST));
        *self = Self { known: true, rest, routes, rules, links, pods: pods.to_vec() };
        Ok(())
    }

    /// What of it takes packets to pods, one finding for the pods of each node.
    pub fn taken(&self, node: &str, nodes: &BTreeMap<String, model::Node>) -> Vec<Diagnostic> {
        if self.routes.is_empty() && self.rules.is_empty() {
            return Vec::new();
        }
        let all = nodes.values().flat_map(|owner| owner.pod_cidrs.iter().map(move |cidr| (owner, cidr)));
        let found = all.filter_map(|(owner, cidr)| {
            let (what, next) = self.takes(cidr, owner.name == node)?;
            let whose =
                if owner.name == node { "its own pods" } else { &format!("pods of node {}", owner.name) };
            let message = format!("{what} takes packets to {whose} ({cidr}) away from Plumb's route");
            Some(about(node, "routes", message, next))
        });
        found.collect()
    }

    fn takes(&self, cidr: &IpNet, own: bool) -> Option<(String, String)> {
        let flag = Family::of_net(cidr).pick(["", " -6"]);
        if let Some(row) = self.routes.iter().find(|row| row.is_in_common() && wins(row, cidr, own)) {
            let words = self.words(row);
            let what = format!("somebody's route `{words}`");
            return Some((
                what,
                format!(
                    "take it away (`ip{flag} route del {}`), or lead it around the pods",
                    self.command(row)
                ),
            ));
        }
        let rules = self.rules.iter().filter(|rule| rule.family == Family::of_net(cidr));
        let before_ours =
            rules.take_while(|rule| !(has_main(rule) && rule.to.is_none_or(|to| to.contains(cidr))));
        before_ours.filter(|rule| self.selects(rule, cidr)).find_map(|rule| {
            let by = match rule.action {
                RuleAction::End(_) => String::new(),
                RuleAction::Table(table) => {
                    let row = self.routes.iter().find(|row| in_its_table(row, table, rule, cidr))?;
                    // The kernel goes on to the next rule.
                    let thrown = |other: &RouteRow| {
                        let (at, longer) = (&other.key, other.key.dst.prefix_len() > row.key.dst.prefix_len());
                        at.table == table && other.other == Some("throw") && at.dst.contains(cidr) && longer
                    };
                    if self.routes.iter().any(thrown) {
                        return None;
                    }
                    format!(" (by `{}`)", self.words(row))
                }
                RuleAction::Nothing => return None,
            };
            let what = format!("somebody's rule `{rule}`{by}");
            let (priority, before) = (rule.priority, rule.priority.saturating_sub(1));
            let next = format!(
                "take it away (`ip{flag} rule del priority {priority}`), or have pods' packets pass it: `ip{flag} rule add to \
                 {cidr} lookup main priority {before}`"
            );
            Some((what, next))
        })
    }

    /// Whether packets to these pods are among those that a rule is about. They have no mark that a rule could know.
    fn selects(&self, rule: &RuleRow, cidr: &IpNet) -> bool {
        let is_of_pods = |net: &IpNet| self.pods.iter().any(|pods| overlap(pods, net));
        if rule.inverted {
            return !rule.from.is_some_and(|from| is_of_pods(&from))
                && !rule.to.is_some_and(|to| to.contains(cidr));
        }
        let by_ours = |iif: &IfName| own_links().any(|own| own == iif.as_str());
        !rule.marked
            && rule.iif.as_ref().is_none_or(by_ours)
            && rule.from.is_none_or(|from| is_of_pods(&from))
            && rule.to.is_none_or(|to| overlap(&to, cidr))
    }

    /// As `ip route del` takes it.
    fn command(&self, row: &RouteRow) -> String {
        let words = self.words(row);
        words.strip_suffix(&format!(" by {SEVERAL}")).map(str::to_owned).unwrap_or(words)
    }

    fn words(&self, row: &RouteRow) -> String {
        row.words(row.link.and_then(|link| self.links.get(&link)))
    }
}

/// Made by the kernel with our links and their addresses. IPv6 hangs local routes on `lo`.
fn is_of_ours(row: &RouteRow, links: &BTreeMap<u32, IfName>) -> bool {
    let dev = row.link.and_then(|link| links.get(&link)).map(IfName::as_str);
    row.is_of_kernel() && dev.is_some_and(|dev| dev == "lo" || own_links().any(|own| own == dev))
}

/// Whether packets of pods, which have no mark, may be among those that it is about.
fn may_select(rule: &RuleRow, pods: &[IpNet]) -> bool {
    let of_pods = |net: &IpNet| pods.iter().any(|pods| overlap(pods, net));
    rule.inverted || (!rule.marked && rule.from.is_none_or(|from| of_pods(&from)))
}

/// Those that come before the main table has all packets, in their order.
fn before_main(mut rules: Vec<RuleRow>) -> Vec<RuleRow> {
    rules.sort_by_key(|rule| rule.priority);
    let before = rules.into_iter().take_while(|rule| rule.to.is_some() || !has_main(rule));
    // The local table holds the node's own addresses.
    let local = RuleAction::Table(RT_TABLE_LOCAL);
    before.filter(|rule| !rule.aside && ![local, RuleAction::Nothing].contains(&rule.action)).collect()
}

/// Whether it has the main table, which has ours, for whoever sends by whatever link.
fn has_main(rule: &RuleRow) -> bool {
    let narrow = rule.from.is_some() || rule.iif.is_some() || rule.marked || rule.aside || rule.inverted;
    rule.action == RuleAction::Table(RouteKey::MAIN) && !narrow
}

/// Whether a route of the tables that all packets are looked up in is found before ours. The same in IPv4 has replaced it,
/// which is drift.
fn wins(row: &RouteRow, cidr: &IpNet, own: bool) -> bool {
    let dst = row.key.dst;
    let ours = METRIC_V6[usize::from(own)];
    let same = dst.prefix_len() == cidr.prefix_len();
    let first = row.key.table == RT_TABLE_LOCAL || (dst.addr().is_ipv6() && row.metric < ours);
    cidr.contains(&dst) && (!same || first) && row.other != Some("throw")
}

fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

fn in_its_table(row: &RouteRow, table: u32, rule: &RuleRow, cidr: &IpNet) -> bool {
    let dst = row.key.dst;
    let counts = rule.suppress.is_none_or(|length| u32::from(dst.prefix_len()) > length);
    row.key.table == table && overlap(&dst, cidr) && counts && row.other != Some("throw")
}

#[cfg(test)]
mod tests {
    use kstate::net::{Route, RouteKind};

    use super::*;

    fn route(dst: &str, table: u32, other: Option<&'static str>) -> RouteRow {
        let key = RouteKey { dst: dst.parse().unwrap(), table };
        let route = Route { dev: None, via: None, onlink: false, src: None, kind: RouteKind::Unicast };
        RouteRow { key, protocol: 3, link: None, metric: 0, other, route }
    }

    fn rule(priority: u32, action: RuleAction) -> RuleRow {
        RuleRow {
            family: Family::V4,
            priority,
            from: None,
            to: None,
            iif: None,
            marked: false,
            aside: false,
            inverted: false,
            suppress: None,
            action,
        }
    }

    /// What is said of node2's pods, asked on node1.
    fn said(routes: Vec<RouteRow>, rules: Vec<RuleRow>) -> Option<String> {
        let pods = vec!["10.244.0.0/16".parse().unwrap()];
        let mut all =
            vec![rule(0, RuleAction::Table(RT_TABLE_LOCAL)), rule(32766, RuleAction::Table(RouteKey::MAIN))];
        all.extend(rules);
        let (rules, links) = (before_main(all), BTreeMap::new());
        let detours = Detours { known: true, rest: None, routes, rules, links, pods };
        let node = model::Node {
            name: "node2".into(),
            pod_cidrs: vec!["10.244.2.0/24".parse().unwrap()],
            ..model::Node::default()
        };
        let found = detours.taken("node1", &[("node2".to_owned(), node)].into());
        assert!(found.len() < 2);
        found.first().map(|found| format!("{}; {}", found.what(), found.next_step))
    }

    #[test]
    fn a_route_within_pods_addresses_is_named_and_one_around_them_is_none() {
        let main = |dst, other| said(vec![route(dst, RouteKey::MAIN, other)], Vec::new());
        let found = main("10.244.2.0/25", Some("blackhole")).unwrap();
        for words in [
            "`blackhole 10.244.2.0/25`",
            "pods of node node2 (10.244.2.0/24)",
            "`ip route del blackhole 10.244.2.0/25`",
        ] {
            assert!(found.contains(words), "{found}");
        }
        for harmless in ["10.244.3.0/25", "10.244.0.0/16"] {
            assert_eq!(main(harmless, None), None);
        }
        assert_eq!(main("10.244.2.0/25", Some("throw")), None);
        let several = main("10.244.2.0/25", Some(SEVERAL)).unwrap();
        assert!(several.contains("`ip route del 10.244.2.0/25`"), "{several}");
        assert!(said(vec![route("10.244.2.7/32", RT_TABLE_LOCAL, Some("local"))], Vec::new()).is_some());
    }

    #[test]
    fn a_rule_that_has_pods_packets_is_named_with_the_route_that_takes_them() {
        let all = |table| vec![route("0.0.0.0/0", table, None)];
        let lookup = |priority| rule(priority, RuleAction::Table(100));
        let net = |text: &str| Some(text.parse::<IpNet>().unwrap());
        let found = said(all(100), vec![lookup(50)]).unwrap();
        for words in ["rule `lookup 100` (by `0.0.0.0/0 table 100`)", "`ip rule del priority 50`"] {
            assert!(found.contains(words), "{found}");
        }
        let ends = RuleRow { to: net("10.244.2.0/25"), ..rule(50, RuleAction::End("blackhole")) };
        assert!(said(Vec::new(), vec![ends]).unwrap().contains("`to 10.244.2.0/25 blackhole`"));
        let passed = RuleRow { to: net("10.244.0.0/16"), ..rule(49, RuleAction::Table(RouteKey::MAIN)) };
        // As wg-quick has it: the main table's default route does not count, and comes first.
        let wireguard = [
            RuleRow { suppress: Some(0), ..rule(48, RuleAction::Table(RouteKey::MAIN)) },
            RuleRow { marked: true, inverted: true, ..lookup(49) },
        ];
        let thrown = [all(100), vec![route("10.244.0.0/16", 100, Some("throw"))]].concat();
        assert_eq!(said(thrown, vec![lookup(50)]), None, "the kernel goes on to the next rule");
        for (rules, table) in [
            (vec![lookup(50)], 101),
            (vec![lookup(40000)], 100),
            (vec![RuleRow { marked: true, ..lookup(50) }], 100),
            (vec![RuleRow { from: net("192.168.1.10/32"), ..lookup(50) }], 100),
            (vec![RuleRow { suppress: Some(0), ..lookup(50) }], 100),
            (vec![passed, lookup(50)], 100),
            (wireguard.to_vec(), 100),
        ] {
            assert_eq!(said(all(table), rules.clone()), None, "{rules:?}");
        }
        let [_, not_marked] = wireguard;
        assert!(said(all(100), vec![not_marked]).is_some());
    }
}
