//! Which names stand for two things. Nobody can make two meanings of one name as long as SHA-256 holds; if somebody does
//! all the same, whatever a policy allows by that name could be what another allows. So nothing is: the set is empty,
//! the chain drops, and both owners hear of it.

use std::collections::{BTreeMap, BTreeSet};

use kstate::nft::{Chain, Expr};

use super::{Fragment, Known, Name};
use crate::refusal::Refusal;
use semantics::meaning::Check;
use semantics::{Diagnostic, Key, Severity};

/// What the names of one table stand for, with how many fragments say so.
#[derive(Debug, Default)]
pub struct Meanings {
    /// Hardly ever more than one.
    known: BTreeMap<Name, Vec<(Check, usize)>>,
    contested: BTreeSet<Name>,
}

impl Meanings {
    /// Takes a unit's fragment in the place of the one before. Yields whether a name is contested now that was not, or
    /// the reverse: then what others made of that name must be made anew.
    pub fn learn(&mut self, old: Option<&Known>, new: &Fragment) -> bool {
        let before = self.contested.len();
        let mut turned = false;
        for (name, check) in &new.meanings {
            let all = self.known.entry(name.clone()).or_default();
            match all.iter_mut().find(|(known, _)| known == check) {
                Some((_, count)) => *count += 1,
                None => all.push((*check, 1)),
            }
            turned |= all.len() > 1 && self.contested.insert(name.clone());
        }
        for (name, check) in old.iter().flat_map(|old| &old.meanings) {
            let Some(all) = self.known.get_mut(name) else { continue };
            if let Some((_, count)) = all.iter_mut().find(|(known, _)| known == check) {
                *count = count.saturating_sub(1);
            }
            all.retain(|(_, count)| *count > 0);
            let left = all.len();
            if left == 0 {
                self.known.remove(name);
            }
            turned |= left < 2 && self.contested.remove(name);
        }
        turned || before != self.contested.len()
    }

    /// Takes from a fragment what it has under contested names. `owner`: the object that it is made of.
    pub fn withhold(&self, fragment: &mut Fragment, owner: impl Fn() -> Option<Key>) {
        for name in &self.contested {
            fragment.elements.remove(name);
            for (own, chain) in &mut fragment.chains {
                if own == name || remembers(chain, name) {
                    chain.rules = vec![Refusal::TwoMeanings.dropped([])];
                }
            }
            if let Some(object) = owner().filter(|_| fragment.meanings.contains_key(name)) {
                fragment.diagnostics.push(finding(object, name));
            }
        }
    }
}

/// Whether it puts clients into the set, whose elements are no fragment's to take away.
fn remembers(chain: &Chain, name: &Name) -> bool {
    let into = |expr: &Expr| matches!(expr, Expr::Update { set, .. } if *set == **name);
    chain.rules.iter().flat_map(|rule| &rule.exprs).any(into)
}

fn finding(object: Key, name: &Name) -> Diagnostic {
    Diagnostic {
        object,
        field: "the kernel's names".to_owned(),
        severity: Severity::Error,
        message: format!(
            "{name} would stand for two different things (a collision of hashes): nothing is allowed by it"
        ),
        next_step: "look for who else has this message, change a selector or name of either, and report it"
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kstate::nft::ElemData;
    use kstate::nft::build::{self, rule};
    use model::{
        Attachment, Cluster, Event, IntOrName, Kind, NamedPort, Peer, Pod, Policy, PolicyPort, PolicyRule,
        Row,
    };
    use types::{Family, IfName, Mac, ObjectName, Protocol, Selector};

    use crate::{policy, service};
    use semantics::policy::resolve::Direction;
    use semantics::policy::tier::tiers;
    use semantics::service::plan::{Front, Outcome, PortPlan, ServicePlan, Way};

    fn fragment(check: u8) -> Fragment {
        let mut fragment = Fragment::default();
        fragment.mean("pods_1", [check; 16]);
        fragment.mean("in_1", [check; 16]);
        fragment.element("pods_1", [10, 244, 1, check].as_slice().into(), ElemData::None);
        fragment.element("svc", [10, 96, 0, check].as_slice().into(), ElemData::None);
        fragment
            .chains
            .insert("in_1".into(), Chain { base: None, rules: vec![rule("allow", [build::ret()])] });
        fragment
    }

    /// A pod with a policy of every kind of peer and port, so many that they are merged.
    fn of_policies() -> Fragment {
        let mut cluster = Cluster::default();
        let pod = ObjectName::new("shop", "web");
        let port = |port| PolicyPort { protocol: Protocol::Tcp, port: Some(port), end_port: None };
        let numbered = |n: u16| PolicyRule {
            peers: vec![
                Peer::Block { cidr: format!("11.0.{n}.0/24").parse().unwrap(), except: Vec::new() },
                Peer::Pods { namespaces: None, pods: Some(Selector::default()) },
            ],
            ports: vec![port(IntOrName::Number(8000 + n)), port(IntOrName::Name("web".to_owned()))],
        };
        let policy = Policy {
            key: ObjectName::new("shop", "all"),
            ingress: Some((0..12).map(numbered).collect()),
            ..Policy::default()
        };
        let ports = vec![NamedPort { name: "web".to_owned(), protocol: Protocol::Tcp, port: 80 }];
        let row = Pod { key: pod.clone(), uid: "u".to_owned(), ports, ..Pod::default() };
        cluster.apply(Event::Upsert(Row::Policy(Box::new(policy))));
        cluster.apply(Event::Upsert(Row::Pod(Box::new(row))));
        let attachment = Attachment {
            wiring: types::Wiring::default(),
            container: "c".to_owned(),
            pod,
            uid: "u".to_owned(),
            ips: vec![[10, 244, 1, 2].into()],
            host_if: IfName::new("veth1").unwrap(),
            mac: Mac::default(),
            host_ports: Vec::new(),
            withheld: Vec::new(),
        };
        let of = |direction| (direction, tiers(&cluster, &attachment, direction, Family::V4));
        policy::nftables::attachment_fragment(&attachment.ips, &Direction::ALL.map(of), Family::V4)
    }

    /// A Service with affinity and source ranges.
    fn of_service() -> Fragment {
        let way = |endpoint: &str| Way {
            outcome: Outcome::Spread(vec![endpoint.parse().unwrap()]),
            masquerade: false,
        };
        let front = Front {
            address: [192, 0, 2, 7].into(),
            port: 80,
            inside: way("10.244.1.2:80"),
            outside: Some(way("10.244.2.2:80")),
            sources: vec!["203.0.113.0/24".parse().unwrap()],
        };
        let (name, protocol) = ("http".to_owned(), Protocol::Tcp);
        let port = PortPlan { name, protocol, fronts: vec![front], affinity: Some(60) };
        let service = ObjectName::new("shop", "web");
        let plan = ServicePlan { service, ports: vec![port], ..ServicePlan::default() };
        service::nftables::fragment(&plan)
    }

    /// What a chain does with whoever comes there.
    fn drops(chain: &Chain) -> bool {
        matches!(&chain.rules[..], [rule] if rule.exprs == [build::counter(), build::drop()])
    }

    #[test]
    fn nothing_of_any_kind_is_allowed_by_a_name_that_stands_for_two_things() {
        let mut kinds = BTreeSet::new();
        for whole in [of_policies(), of_service()] {
            for (name, check) in &whole.meanings {
                let mut meanings = Meanings::default();
                let mut other = Fragment::default();
                other.mean(name.clone(), check.map(|byte| !byte));
                meanings.learn(None, &whole);
                assert!(meanings.learn(None, &other), "{name}");
                let mut withheld = whole.clone();
                let owner = Key::new(Kind::Service, ObjectName::new("shop", "web"));
                meanings.withhold(&mut withheld, || Some(owner.clone()));
                assert!(!withheld.elements.contains_key(name), "{name} has elements");
                let asks = |chain: &Chain| {
                    chain.rules.iter().any(|rule| kstate::nft::sets_of(rule).contains(&**name))
                };
                for (own, chain) in &withheld.chains {
                    let dynamic = whole.sets.get(name).is_some_and(|set| set.dynamic);
                    let concerned = own == name || dynamic && asks(&whole.chains[own]);
                    assert_eq!(drops(chain), concerned, "{own}, for {name}");
                }
                let said: Vec<_> = withheld.diagnostics.iter().map(ToString::to_string).collect();
                assert!(said.len() == 1 && said[0].contains(&**name), "{name}: {said:?}");
                let parts: Vec<&str> = name.split('_').collect();
                let is_class = name.starts_with("in_") && parts.last().is_some_and(|hash| hash.len() == 32);
                let is_clients = parts.len() == 2 && parts[0] == "aff";
                kinds.insert(
                    match parts[0] {
                        "in" if is_class => "class",
                        "aff" if is_clients => "clients",
                        kind => kind,
                    }
                    .to_owned(),
                );
            }
        }
        let all = ["aff", "blocks", "class", "clients", "guard", "in", "pods", "port", "ports"];
        assert_eq!(kinds.iter().collect::<Vec<_>>(), all);
    }

    #[test]
    fn two_meanings_under_one_name_allow_nothing_and_both_owners_hear_of_it() {
        let mut meanings = Meanings::default();
        let (one, other) = (fragment(1), fragment(2));
        assert!(!meanings.learn(None, &one));
        assert!(!meanings.learn(None, &one), "two units of one meaning share it");
        assert!(meanings.learn(None, &other));
        for fragment in [&one, &other] {
            let mut withheld = fragment.clone();
            let owner = Key::new(Kind::Pod, ObjectName::new("shop", "web"));
            meanings.withhold(&mut withheld, || Some(owner.clone()));
            assert_eq!(withheld.elements.keys().collect::<Vec<_>>(), ["svc"]);
            let rules = &withheld.chains["in_1"].rules;
            assert!(rules.len() == 1 && rules[0].exprs.contains(&build::drop()), "{rules:?}");
            let said: Vec<_> = withheld.diagnostics.iter().map(ToString::to_string).collect();
            assert!(said.len() == 2 && said[1].contains("pods_1"), "{said:?}");
        }
        // It is over when one of them goes; that the others are made anew is the caller's.
        assert!(meanings.learn(Some(&other.clone().known()), &Fragment::default()));
        let mut whole = one.clone();
        meanings.withhold(&mut whole, || None);
        assert_eq!(whole, one);
        assert!(!meanings.learn(Some(&one.clone().known()), &one));
    }
}
