//! What a new connection is asked ([`semantics::service::precedence`]), as rules: each question is a rule or two, and its answer
//! leads away.

use std::net::IpAddr;

use kstate::nft::build::{self, rule};
use kstate::nft::key::{self, Part};
use kstate::nft::{Expr, Rule};
use semantics::Settings;
use semantics::service::cause::{Cause, Lack};
use semantics::service::precedence::{self, AtNode, Caller, Question};
use types::{Family, Protocol};

use super::{
    CLUSTER_IPS, DNS, FRONTENDS, GUARDS, HOST_PORTS, HOST_PORTS_AT, NODE, OUTSIDE, R0, REJECT, SERVICES,
};
use super::{dns, lead, saddr_outside};
use crate::refusal::Refusal;

/// The chain of a hook, which ends in the questions to all.
pub fn first(settings: &Settings, family: Family, caller: Caller) -> Vec<Rule> {
    let questions = precedence::first(settings, family, caller);
    let asked = questions.iter().flat_map(|question| match (question, caller) {
        // The kernel gives what the node sends to its own socket.
        (Question::Dns(at), Caller::Node) => dns::queries(family, *at, &build::accept()).into(),
        (question, _) => asked(question, family),
    });
    asked.chain([rule("", [build::jump(SERVICES)])]).collect()
}

/// The chain of the questions to all.
pub fn services(questions: &[Question], family: Family) -> Vec<Rule> {
    questions.iter().flat_map(|question| asked(question, family)).collect()
}

/// The chain of the questions at an address of the node.
pub fn node(questions: &[Question], family: Family) -> Vec<Rule> {
    let at_node = questions.iter().flat_map(|question| match question {
        Question::OfNode(all) => all.as_slice(),
        _ => &[],
    });
    at_node.map(|question| asked_at_node(question, family)).collect()
}

fn asked(question: &Question, family: Family) -> Vec<Rule> {
    match question {
        Question::Dns(at) => dns::queries(family, *at, &build::goto(DNS)).into(),
        Question::SourceRanges => vec![rule("", frontend(family, GUARDS))],
        Question::Outside { pods } => {
            vec![lead::follow(family, OUTSIDE, saddr_outside(family, pods.iter().copied()))]
        }
        Question::Frontends => vec![lead::follow(family, FRONTENDS, [])],
        Question::OtherPort => {
            let of_service = [build::daddr(family, R0), build::lookup(CLUSTER_IPS, R0)].into_iter();
            vec![rule("a Service without this port", of_service.chain([build::goto(REJECT)]))]
        }
        Question::NoService(unused) => {
            let inside = [build::daddr(family, R0)].into_iter().chain(build::in_prefix(R0, *unused));
            vec![Refusal::NoService.dropped(inside)]
        }
        Question::OfNode(_) => {
            let of_node = [build::fib_daddr_type(R0), build::is(R0, build::RTN_LOCAL)].into_iter();
            vec![rule("", of_node.chain([build::goto(NODE)]))]
        }
    }
}

fn asked_at_node(question: &AtNode, family: Family) -> Rule {
    let at = |ip: IpAddr| [build::daddr(family, R0), build::is(R0, ip)].into_iter();
    let lead = |map, key: &[Part]| {
        let (mut exprs, to) = key::load(family, R0, key);
        exprs.push(build::map(map, R0, to));
        exprs.push(build::dnat(family, to, key::after(to, key::address(family))));
        rule("hostPort", exprs)
    };
    match question {
        AtNode::Api(api) => {
            let tcp = [build::l4proto(R0), build::is(R0, Protocol::Tcp)];
            let port = [build::th_dport(R0), build::is(R0, api.port()), build::ret()];
            rule("the Kubernetes API", at(api.ip()).chain(tcp).chain(port))
        }
        // A call would hang where it can be refused, or answered by the node.
        AtNode::Loopback(ip) => rule("::1 cannot leave the node", at(*ip).chain([build::ret()])),
        AtNode::PodAtAddress => lead(HOST_PORTS_AT, &[Part::Daddr, Part::Proto, Part::Dport]),
        AtNode::PodEverywhere => lead(HOST_PORTS, &[Part::Proto, Part::Dport]),
    }
}

/// TCP learns by a reset, everything else by ICMP port unreachable.
pub fn reject() -> Vec<Rule> {
    let cause = Refusal::of_service(Cause::Lack(Lack::Endpoint));
    let tcp = [build::l4proto(R0), build::is(R0, Protocol::Tcp)].into_iter();
    let logged = || cause.logged().into_iter();
    vec![
        rule(cause.comment(), tcp.chain(logged()).chain([build::reject_tcp_reset()])),
        rule(cause.comment(), logged().chain([build::reject()])),
    ]
}

pub fn unreachable() -> Vec<Rule> {
    let cause = Refusal::of_service(Cause::Lack(Lack::LocalEndpoint));
    vec![rule(cause.comment(), cause.logged().into_iter().chain([build::drop()]))]
}

/// Looks the destination up in a map from frontends to verdicts.
pub fn frontend(family: Family, map: &str) -> Vec<Expr> {
    let (mut exprs, _) = key::load(family, R0, &[Part::Daddr, Part::Proto, Part::Dport]);
    exprs.push(build::vmap(map, R0));
    exprs
}
