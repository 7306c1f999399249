//! A [`ServicePlan`] as elements of the flat layout: rules never change, only elements do
//! (see [`crate::layout`] for the chains that read them).

use kstate::nft::build::{self, encode};
use kstate::nft::key::{Part, address, after, load};
use kstate::nft::{Chain, ElemData, Reg, Verdict};
use types::{Family, Protocol};

use super::plan::{Outcome, PortPlan, ServicePlan};
use crate::Settings;
use crate::fragment::Fragment;
use crate::layout::{self, CLUSTER_IPS, ENDPOINTS, FRONTENDS, REJECT, UNREACHABLE};

/// TCP and UDP port of DNS.
const DNS_PORT: u16 = 53;

pub fn fragment(plan: &ServicePlan, settings: &Settings, family: Family) -> Fragment {
    let mut fragment = Fragment { diagnostics: plan.diagnostics.clone(), ..Fragment::default() };
    for ip in &plan.addresses {
        fragment.element(CLUSTER_IPS, encode(&[(*ip).into()]), ElemData::None);
        for port in &plan.ports {
            // DNS is answered on this node, not spread (the layout's `dns` chain sees it first).
            if settings.dns_ip(family) == Some(*ip) && is_dns(port) {
                continue;
            }
            let front = [(*ip).into(), port.protocol.into(), port.port.into()];
            let verdict = outcome(&mut fragment, port, &front, family);
            fragment.element(FRONTENDS, encode(&front), ElemData::Verdict(verdict));
        }
    }
    fragment
}

fn is_dns(port: &PortPlan) -> bool {
    port.port == DNS_PORT && port.protocol != Protocol::Sctp
}

fn outcome(
    fragment: &mut Fragment,
    port: &PortPlan,
    front: &[build::Value<'_>; 3],
    family: Family,
) -> Verdict {
    match &port.outcome {
        Outcome::Reject => Verdict::Goto(REJECT.to_owned()),
        Outcome::Drop => Verdict::Goto(UNREACHABLE.to_owned()),
        Outcome::Spread(endpoints) => {
            let mut slots = 0_u32;
            for endpoint in endpoints {
                let [address, protocol, dport] = *front;
                let key = encode(&[slots.into(), address, protocol, dport]);
                let data = encode(&[endpoint.ip().into(), endpoint.port().into()]);
                fragment.element(ENDPOINTS, key, ElemData::Value(data));
                slots += 1;
            }
            let name = layout::spread_chain(slots);
            fragment.chains.insert(name.clone().into(), spread(slots, family));
            Verdict::Goto(name)
        }
    }
}

/// The chain that all services of `count` endpoints share: draws a slot and goes where it leads.
fn spread(count: u32, family: Family) -> Chain {
    let draw = |modulus| {
        let slot = Part::Slot { modulus, offset: 0 };
        let (mut exprs, to) = load(family, Reg(0), &[slot, Part::Daddr, Part::Proto, Part::Dport]);
        exprs.push(build::map(ENDPOINTS, Reg(0), to));
        exprs.push(build::dnat(family, to, after(to, address(family))));
        build::rule("", exprs)
    };
    // The second rule is for a packet that drew a slot which a shrinking service has just lost: slot 0 is
    // always there.
    let last = build::rule("the service lost its endpoints meanwhile", [build::counter(), build::drop()]);
    Chain { base: None, rules: vec![draw(count), draw(1), last] }
}
