//! NetworkPolicies. Whatever cannot be understood allows nothing: a rule with one bad peer or port is left out
//! whole, since a rule that only lost its bad peer could end with none, and that would mean "any source".

use types::selector::{Operator, Requirement};
use types::{IpNet, Selector};

use k8s::networking::{IntOrString, LabelSelector, NetworkPolicySpec, Unknown};

use super::{Converted, Report};
use crate::Kind;
use crate::row::{IntOrName, Peer, Policy, PolicyPort, PolicyRule};

pub fn policy(policy: &k8s::NetworkPolicy) -> Converted<Policy> {
    let mut report = Report::new(Kind::Policy, policy.metadata.object_name());
    let mut reader = Reader { report: &mut report, unsupported: Vec::new() };
    let spec = &policy.spec;
    // A subject that cannot be read isolates more pods than meant (its readable part), and allows nothing.
    let pods = reader.selector("spec.podSelector", &spec.pod_selector);
    let whole = pods.is_some() & reader.known("spec", &spec.unknown);
    let pods = pods.unwrap_or_else(|| Selector { requirements: readable(&spec.pod_selector) });
    let (isolates_ingress, isolates_egress) = reader.directions(spec);
    let ingress = isolates_ingress.then(|| {
        let rules = spec.ingress.iter().enumerate().filter_map(|(i, rule)| {
            let at = format!("spec.ingress[{i}]");
            reader.rule(&at, ("from", &rule.from), &rule.ports, &rule.unknown)
        });
        rules.filter(|_| whole).collect()
    });
    let egress = isolates_egress.then(|| {
        let rules = spec.egress.iter().enumerate().filter_map(|(i, rule)| {
            let at = format!("spec.egress[{i}]");
            reader.rule(&at, ("to", &rule.to), &rule.ports, &rule.unknown)
        });
        rules.filter(|_| whole).collect()
    });
    let unsupported = reader.unsupported;
    let key = policy.metadata.object_name();
    report.done(Policy { key, pods, ingress, egress, unsupported })
}

fn readable(selector: &LabelSelector) -> Vec<Requirement> {
    Selector::from_labels(&selector.match_labels).requirements
}

const CLOSED: &str = "the rule allows nothing";

struct Reader<'a> {
    report: &'a mut Report,
    unsupported: Vec<String>,
}

impl Reader<'_> {
    /// NP-02: without types, ingress always and egress when it has a rule; with types, literally those.
    fn directions(&mut self, spec: &NetworkPolicySpec) -> (bool, bool) {
        if spec.policy_types.is_empty() {
            return (true, !spec.egress.is_empty());
        }
        for other in spec.policy_types.iter().filter(|t| *t != "Ingress" && *t != "Egress") {
            self.unsupported.push(format!("spec.policyTypes: {other}"));
            self.report.add(
                "Unsupported",
                format!(
                    "spec.policyTypes: {other:?} is not known to this version; nothing is isolated for it"
                ),
            );
        }
        let has = |name: &str| spec.policy_types.iter().any(|t| t == name);
        (has("Ingress"), has("Egress"))
    }

    /// Whether there is no field that this program does not know.
    fn known(&mut self, at: &str, unknown: &Unknown) -> bool {
        for field in unknown.keys() {
            self.unsupported.push(format!("{at}.{field}"));
            self.report.add(
                "Unsupported",
                format!("{at}.{field} is not known to this version; what holds it allows nothing"),
            );
        }
        unknown.is_empty()
    }

    fn rule(
        &mut self,
        at: &str,
        (field, peers): (&str, &[k8s::networking::Peer]),
        ports: &[k8s::networking::PolicyPort],
        unknown: &Unknown,
    ) -> Option<PolicyRule> {
        let known = self.known(at, unknown);
        // Every part is read, so that one look at the events shows all that is wrong.
        let peers: Vec<Option<Peer>> = peers
            .iter()
            .enumerate()
            .map(|(i, peer)| self.peer(&format!("{at}.{field}[{i}]"), peer))
            .collect();
        let ports: Vec<Option<PolicyPort>> =
            ports.iter().enumerate().map(|(i, port)| self.port(&format!("{at}.ports[{i}]"), port)).collect();
        let peers = peers.into_iter().collect::<Option<_>>()?;
        let ports = ports.into_iter().collect::<Option<_>>()?;
        known.then_some(PolicyRule { peers, ports })
    }

    fn peer(&mut self, at: &str, peer: &k8s::networking::Peer) -> Option<Peer> {
        let known = self.known(at, &peer.unknown);
        match (&peer.ip_block, &peer.namespace_selector, &peer.pod_selector) {
            (Some(block), None, None) => self.block(&format!("{at}.ipBlock"), block),
            (None, None, None) => {
                let message =
                    format!("{at}: a peer needs podSelector, namespaceSelector or ipBlock; {CLOSED}");
                self.report.add("InvalidField", message);
                None
            }
            (None, namespaces, pods) => {
                let namespaces = self.optional(&format!("{at}.namespaceSelector"), namespaces.as_ref());
                let pods = self.optional(&format!("{at}.podSelector"), pods.as_ref());
                Some(Peer::Pods { namespaces: namespaces?, pods: pods? })
            }
            (Some(_), _, _) => {
                let message = format!("{at}: ipBlock stands alone, without selectors; {CLOSED}");
                self.report.add("InvalidField", message);
                None
            }
        }
        .filter(|_| known)
    }

    /// `Some(None)`: there is no selector; `None`: there is one that cannot be read.
    fn optional(&mut self, at: &str, selector: Option<&LabelSelector>) -> Option<Option<Selector>> {
        match selector {
            None => Some(None),
            Some(selector) => self.selector(at, selector).map(Some),
        }
    }

    /// NP-34: host bits are masked. An exception that cannot be read closes the rule, not only itself.
    fn block(&mut self, at: &str, block: &k8s::networking::IpBlock) -> Option<Peer> {
        let known = self.known(at, &block.unknown);
        let cidr: Option<IpNet> = self.report.parse(&format!("{at}.cidr"), &block.cidr, CLOSED);
        let except: Option<Vec<IpNet>> = block
            .except
            .iter()
            .map(|text| {
                self.report.parse(&format!("{at}.except"), text, CLOSED).map(|net: IpNet| net.trunc())
            })
            .collect();
        let (cidr, except) = (cidr?.trunc(), except?);
        known.then_some(Peer::Block { cidr, except })
    }

    fn port(&mut self, at: &str, port: &k8s::networking::PolicyPort) -> Option<PolicyPort> {
        let known = self.known(at, &port.unknown);
        let protocol = self.report.protocol(&format!("{at}.protocol"), port.protocol.as_deref(), CLOSED)?;
        let number = match &port.port {
            None => None,
            Some(IntOrString::Int(number)) => {
                Some(IntOrName::Number(self.report.port(&format!("{at}.port"), *number, CLOSED)?))
            }
            // An integer in quotes is a name to the API, and no port can have it.
            Some(IntOrString::String(name)) => Some(IntOrName::Name(name.clone())),
        };
        let end_port = match port.end_port {
            None => None,
            Some(end) => Some(self.report.port(&format!("{at}.endPort"), end, CLOSED)?),
        };
        match (end_port, &number) {
            (Some(end), Some(IntOrName::Number(start))) if end >= *start => {}
            (None, _) => {}
            (Some(end), _) => {
                let why = format!("needs a numeric port that is not larger (NP-23); {CLOSED}");
                self.report.invalid(&format!("{at}.endPort"), end, &why);
                return None;
            }
        }
        known.then_some(PolicyPort { protocol, port: number, end_port })
    }

    fn selector(&mut self, at: &str, selector: &LabelSelector) -> Option<Selector> {
        let mut sound = self.known(at, &selector.unknown);
        let mut requirements = readable(selector);
        for expression in &selector.match_expressions {
            let values = expression.values.clone();
            let operator = match (expression.operator.as_str(), values.is_empty()) {
                ("In", false) => Operator::In(values),
                ("NotIn", false) => Operator::NotIn(values),
                ("Exists", true) => Operator::Exists,
                ("DoesNotExist", true) => Operator::DoesNotExist,
                (other, _) => {
                    let why =
                        "needs In or NotIn with values, or Exists or DoesNotExist without; it allows nothing";
                    self.report.invalid(&format!("{at}.matchExpressions[].operator"), other, why);
                    sound = false;
                    continue;
                }
            };
            requirements.push(Requirement { key: expression.key.clone(), operator });
        }
        sound.then_some(Selector { requirements })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::Protocol;

    fn of(spec: &str) -> Converted<Policy> {
        let json = format!(r#"{{"metadata":{{"name":"p","namespace":"n"}},"spec":{spec}}}"#);
        policy(&serde_json::from_str(&json).unwrap())
    }

    #[test]
    fn np_02_types_are_taken_literally_and_defaulted_when_absent() {
        let isolates = |spec: &str| {
            let row = of(spec).row;
            (row.ingress.is_some(), row.egress.is_some())
        };
        assert_eq!(isolates(r#"{"podSelector":{}}"#), (true, false));
        assert_eq!(isolates(r#"{"podSelector":{},"egress":[]}"#), (true, false));
        assert_eq!(isolates(r#"{"podSelector":{},"egress":[{}]}"#), (true, true));
        assert_eq!(isolates(r#"{"podSelector":{},"policyTypes":["Egress"],"ingress":[{}]}"#), (false, true));
    }

    #[test]
    fn np_03_no_rule_denies_and_an_empty_rule_allows() {
        assert_eq!(of(r#"{"podSelector":{}}"#).row.ingress, Some(vec![]));
        let open = of(r#"{"podSelector":{},"ingress":[{}]}"#).row;
        assert_eq!(open.ingress, Some(vec![PolicyRule::default()]));
    }

    #[test]
    fn np_05_selectors_of_a_peer_stay_together() {
        let row = of(r#"{"podSelector":{},"ingress":[{"from":[
            {"namespaceSelector":{},"podSelector":{"matchLabels":{"a":"b"}}},{"podSelector":{}}]}]}"#)
        .row;
        let peers = &row.ingress.unwrap()[0].peers;
        assert!(matches!(&peers[0], Peer::Pods { namespaces: Some(_), pods: Some(_) }));
        assert!(matches!(&peers[1], Peer::Pods { namespaces: None, pods: Some(_) }));
    }

    #[test]
    fn np_20_the_default_protocol_is_tcp() {
        let row = of(r#"{"podSelector":{},"ingress":[{"ports":[{"port":80},{"protocol":"SCTP"}]}]}"#).row;
        let ports = &row.ingress.unwrap()[0].ports;
        assert_eq!((ports[0].protocol, ports[1].protocol), (Protocol::Tcp, Protocol::Sctp));
        assert_eq!(ports[1].port, None);
    }

    #[test]
    fn np_23_a_range_needs_a_number_that_is_not_larger() {
        for bad in [r#"{"port":"http","endPort":90}"#, r#"{"port":80,"endPort":79}"#, r#"{"endPort":79}"#] {
            let converted = of(&format!(r#"{{"podSelector":{{}},"ingress":[{{"ports":[{bad}]}}]}}"#));
            assert_eq!(converted.row.ingress, Some(vec![]), "{bad}");
            assert_eq!(converted.diagnostics.len(), 1, "{bad}");
        }
        let good = of(r#"{"podSelector":{},"ingress":[{"ports":[{"port":80,"endPort":80}]}]}"#).row;
        assert_eq!(good.ingress.unwrap()[0].ports[0].end_port, Some(80));
    }

    #[test]
    fn np_34_host_bits_are_masked() {
        let row = of(r#"{"podSelector":{},"ingress":[{"from":[{"ipBlock":{"cidr":"10.1.2.3/8"}}]}]}"#).row;
        let Peer::Block { cidr, .. } = &row.ingress.unwrap()[0].peers[0] else { panic!("not a block") };
        assert_eq!(cidr.to_string(), "10.0.0.0/8");
    }

    #[test]
    fn what_cannot_be_read_closes_its_rule_and_never_the_others() {
        for bad in [
            r#"{}"#,
            r#"{"ipBlock":{"cidr":"nonsense"}}"#,
            r#"{"ipBlock":{"cidr":"10.0.0.0/8","except":["x"]}}"#,
            r#"{"ipBlock":{"cidr":"10.0.0.0/8"},"podSelector":{}}"#,
            r#"{"podSelector":{"matchExpressions":[{"key":"a","operator":"Like","values":["b"]}]}}"#,
            r#"{"podSelector":{},"nodeSelector":{}}"#,
        ] {
            let spec = format!(r#"{{"podSelector":{{}},"ingress":[{{"from":[{bad}]}},{{}}]}}"#);
            let converted = of(&spec);
            assert_eq!(converted.row.ingress, Some(vec![PolicyRule::default()]), "{bad}");
            assert_eq!(converted.diagnostics.len(), 1, "{bad}: {:?}", converted.diagnostics);
        }
    }

    #[test]
    fn a_subject_that_cannot_be_read_isolates_and_allows_nothing() {
        let converted = of(r#"{"podSelector":{"matchLabels":{"app":"db"},
            "matchExpressions":[{"key":"a","operator":"Gt","values":["1"]}]},"ingress":[{}]}"#);
        assert_eq!(converted.row.ingress, Some(vec![]));
        assert_eq!(converted.row.pods.to_string(), "app=db");
    }

    #[test]
    fn unknown_fields_are_collected() {
        let converted =
            of(r#"{"podSelector":{},"tier":"x","ingress":[{"when":"y"},{"ports":[{"icmp":8}]}]}"#);
        assert_eq!(
            converted.row.unsupported,
            ["spec.tier", "spec.ingress[0].when", "spec.ingress[1].ports[0].icmp"]
        );
        assert_eq!(converted.row.ingress, Some(vec![]));
    }
}
