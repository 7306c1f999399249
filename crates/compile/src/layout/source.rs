//! The sources under which packets leave ([`semantics::snat`]), as rules.

use kstate::nft::build::{self, ct_status, rule};
use kstate::nft::key::{self, Part};
use kstate::nft::{Expr, Rule};
use semantics::Settings;
use semantics::snat::{self, Case, kept};
use types::wire::MASQUERADE_MARK;
use types::{Family, IfName};

use crate::fabric;

use super::{HAIRPIN, R0, daddr_outside, saddr_outside};

pub fn postrouting(settings: &Settings, family: Family) -> Vec<Rule> {
    let cases = snat::cases(settings, family);
    let rules = cases.iter().filter_map(|case| Some(rule(case.text(), exprs(case, settings, family)?)));
    rules.collect()
}

/// `None`: no packet can meet it, as there is no such link.
fn exprs(case: &Case, settings: &Settings, family: Family) -> Option<Vec<Expr>> {
    let translated = || [build::ct_status(R0)].into_iter().chain(build::has_bits(R0, ct_status::DST_NAT));
    let by = |link| Some([build::oifname(R0), build::is(R0, &IfName::new(link).ok()?)].into_iter());
    let when: Vec<Expr> = match case {
        Case::Stays => return Some(by("lo")?.chain([build::accept()]).collect()),
        Case::AskedFor => {
            let marked = [build::mark(R0)].into_iter().chain(build::has_bits(R0, MASQUERADE_MARK));
            let clear = [build::mark(R0), build::bitwise(R0, u32::MAX, MASQUERADE_MARK), build::set_mark(R0)];
            marked.chain(clear).collect()
        }
        Case::ToItself => {
            let pair = key::load(family, R0, &[Part::Saddr, Part::Daddr]).0;
            translated().chain(pair).chain([build::lookup(HAIRPIN, R0)]).collect()
        }
        Case::OfTheNode => {
            translated().chain([build::fib_saddr_type(R0), build::is(R0, build::RTN_LOCAL)]).collect()
        }
        Case::StrangerToClusterIp { services, pods } => {
            let asked = [build::original_daddr(family, R0)].into_iter();
            let asked = asked.chain(build::in_prefix(R0, *services));
            translated().chain(asked).chain(saddr_outside(family, pods.iter().copied())).collect()
        }
        Case::StrangerIntoFabric { pods } => {
            let stranger = saddr_outside(family, pods.iter().copied());
            by(fabric::of(settings.fabric).device()?)?
                .chain(stranger)
                .chain(daddr_outside(family, kept(family)))
                .collect()
        }
        Case::Out { from, unmasqueraded } => {
            let pod = [build::saddr(family, R0)].into_iter().chain(build::in_prefix(R0, *from));
            pod.chain(daddr_outside(family, unmasqueraded.iter().copied().chain(kept(family)))).collect()
        }
    };
    Some(when.into_iter().chain([build::masquerade_random()]).collect())
}
