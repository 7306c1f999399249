//! A [`ServicePlan`] as elements of the flat layout: rules never change, only elements do
//! (see [`crate::layout`] for the chains that read them).

mod affinity;

use kstate::nft::build::{self, encode, rule};
use kstate::nft::{Chain, ElemData, Reg, Verdict};
use types::{Family, IpNet, ObjectName, Protocol};

use crate::fragment::Fragment;
use crate::layout::{CLUSTER_IPS, Draw, ENDPOINTS, FRONTENDS, GUARDS, LOCAL_SLOTS, Lead, OUTSIDE};
use crate::layout::{HOST_PORTS, HOST_PORTS_AT, PINNED, PINNED_OUTSIDE};
use crate::refusal::Refusal;
use semantics::meaning::Meaning;
use semantics::service::cause::Cause;
use semantics::service::host_port::HostFront;
use semantics::service::plan::{Front, Outcome, PortPlan, ServicePlan, Way};

/// How the names of chains of source ranges begin, and those of what keeps clients at an endpoint.
pub const GUARD: &str = "guard";
pub const AFFINITY: &str = "aff";

pub fn fragment(plan: &ServicePlan) -> Fragment {
    let mut fragment = Fragment { diagnostics: plan.diagnostics.clone(), ..Fragment::default() };
    for address in &plan.addresses {
        fragment.element(CLUSTER_IPS, encode(&[(*address).into()]), ElemData::None);
    }
    for port in &plan.ports {
        for front in &port.fronts {
            lead(&mut fragment, plan, port, front);
        }
    }
    if let Some(at) = plan.health {
        // Whoever wants the port after Services, such as a pod as its host port, is not asked.
        let key = encode(&[at.ip().into(), Protocol::Tcp.into(), at.port().into()]);
        fragment.element(FRONTENDS, key, Lead::Accept.data());
    }
    fragment
}

/// Elements that lead to a pod from ports of the node.
pub fn host_ports(fragment: &mut Fragment, fronts: &[HostFront]) {
    for HostFront { address, protocol, port, pod } in fronts {
        let to = ElemData::Value(encode(&[pod.ip().into(), pod.port().into()]));
        match address {
            Some(address) => {
                let key = encode(&[(*address).into(), (*protocol).into(), (*port).into()]);
                fragment.element(HOST_PORTS_AT, key, to);
            }
            None => fragment.element(HOST_PORTS, encode(&[(*protocol).into(), (*port).into()]), to),
        }
    }
}

/// Elements and chains that lead from one frontend to its endpoints.
fn lead(fragment: &mut Fragment, plan: &ServicePlan, port: &PortPlan, front: &Front) {
    let key = [front.address.into(), port.protocol.into(), front.port.into()];
    let role = if front.outside.is_some() { "in" } else { "ip" };
    let inside = target(fragment, (plan, port, front), (&front.inside, role), Side::Inside);
    if let Some(way) = &front.outside {
        let outside = match *way == front.inside {
            true => inside,
            false => target(fragment, (plan, port, front), (way, "out"), Side::Outside),
        };
        fragment.element(OUTSIDE, encode(&key), outside.data());
    }
    fragment.element(FRONTENDS, encode(&key), inside.data());
    if !front.sources.is_empty() {
        let whole = Meaning::of("guard").text(&plan.service.namespace).text(&plan.service.name);
        let whole = front.sources.iter().fold(whole.count(front.sources.len()), Meaning::shown);
        let (hash, check) = whole.digest();
        let name = format!("{GUARD}_{hash}");
        fragment.mean(name.clone(), check);
        fragment.chains.insert(name.clone().into(), guard(&name, &front.sources, &plan.service));
        fragment.element(GUARDS, encode(&key), ElemData::Verdict(Verdict::Jump(name)));
    }
}

/// Who asks: the outside has slots and chains of its own where its endpoints differ.
#[derive(Clone, Copy)]
enum Side {
    Inside,
    Outside,
}

/// `role`: ways of a port that have one role have the same endpoints, whichever address was asked.
fn target(
    fragment: &mut Fragment,
    (plan, port, front): (&ServicePlan, &PortPlan, &Front),
    (way, role): (&Way, &'static str),
    side: Side,
) -> Lead {
    let endpoints = match &way.outcome {
        Outcome::Without(lack) => return Lead::Without(*lack),
        Outcome::Spread(endpoints) => endpoints,
    };
    let (first_slot, pinned_map, pinned_lead) = match side {
        Side::Inside => (0, PINNED, Lead::Pinned),
        Side::Outside => (LOCAL_SLOTS, PINNED_OUTSIDE, Lead::PinnedOutside),
    };
    if let Some(seconds) = port.affinity {
        let clients = Meaning::of("affinity").text(&plan.service.namespace).text(&plan.service.name);
        let clients = clients.text(&port.name).shown(port.protocol);
        let masquerade = way.masquerade;
        let pinned = affinity::Pinned { port: clients, role, seconds, masquerade };
        let chain = Verdict::Goto(affinity::chain(fragment, &pinned, endpoints));
        let key = encode(&[front.address.into(), port.protocol.into(), front.port.into()]);
        fragment.element(pinned_map, key, ElemData::Verdict(chain));
        return pinned_lead;
    }
    let mut count = 0_u32;
    for (slot, endpoint) in (first_slot..first_slot + LOCAL_SLOTS).zip(endpoints) {
        let key = [slot.into(), front.address.into(), port.protocol.into(), front.port.into()];
        let data = encode(&[endpoint.ip().into(), endpoint.port().into()]);
        fragment.element(ENDPOINTS, encode(&key), ElemData::Value(data));
        count += 1;
    }
    let draw = Draw::of(count, first_slot, way.masquerade);
    let lead = Lead::Draw(draw);
    if !draw.is_always() {
        fragment.chains.insert(draw.chain().into(), draw.rules(Family::of(front.address)));
        lead.known(fragment);
    }
    lead
}

/// Back to where it came from for a source that may, the end for others (L-02).
fn guard(name: &str, sources: &[IpNet], service: &ObjectName) -> Chain {
    let source = Reg(0);
    let allow = |net: &IpNet| {
        let exprs =
            [build::saddr(Family::of_net(net), source)].into_iter().chain(build::in_prefix(source, *net));
        rule("", exprs.chain([build::ret()]))
    };
    let mut rules: Vec<_> = sources.iter().map(allow).collect();
    let cause = Refusal::of_service(Cause::SourceRange);
    let logged = cause.logged_in(name, service);
    rules.push(rule(cause.comment_about(service), logged.into_iter().chain([build::drop()])));
    Chain { base: None, rules }
}
