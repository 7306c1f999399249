//! What a resolver should hear, from the model alone: the first hop of `plumb trace`.

use std::net::IpAddr;

use crate::answer::{Outcome, Transport};
use crate::message::{self, Data};
use crate::name::Name;
use crate::query::{Rcode, Type};
use crate::resolv::ResolvConf;
use crate::zone::Zone;

/// One name that a resolver tries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub name: String,
    pub finding: Finding,
}

/// What the zone says to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The addresses, with the aliases on the way.
    Addresses { aliases: Vec<String>, addresses: Vec<IpAddr> },
    /// The name exists without an address of this family.
    NoData,
    /// There is no such name.
    NoName,
    /// An upstream decides; `alias` is the name asked there, when a Service of type ExternalName leads to it.
    Upstream { alias: Option<String> },
    /// SERVFAIL until the first lists are there.
    NotSynced,
    /// SERVFAIL for good: aliases lead in a circle, or on too often; why, in words.
    Endless(String),
    /// It is no name.
    Invalid(String),
}

impl Finding {
    fn ends_search(&self) -> bool {
        let alias = matches!(self, Self::Upstream { alias: Some(_) } | Self::Endless(_));
        alias || matches!(self, Self::Addresses { .. } | Self::NotSynced)
    }
}

impl Zone {
    /// The steps of a resolver (glibc's order) that looks for `name`'s A or AAAA, up to the first that answers. A
    /// step that an upstream decides does not end the list: the model cannot know its answer.
    pub fn explain(&self, name: &str, conf: &ResolvConf, kind: Type) -> Vec<Step> {
        let mut steps = Vec::new();
        for name in conf.candidates(name) {
            let finding = self.finding(&name, kind);
            let last = finding.ends_search();
            steps.push(Step { name, finding });
            if last {
                break;
            }
        }
        steps
    }

    /// What this zone answers to one whole name.
    pub fn finding(&self, name: &str, kind: Type) -> Finding {
        let name = match Name::parse(name) {
            Ok(name) => name,
            Err(error) => return Finding::Invalid(error.to_string()),
        };
        let query = message::encode_query(0, &name, kind);
        let mut out = vec![0; usize::from(u16::MAX)];
        let length = match self.answer(&query, &mut out, Transport::Tcp, 0) {
            Outcome::Answered(length) => length,
            Outcome::Follow { target, .. } => return Finding::Upstream { alias: Some(target.to_string()) },
            Outcome::Forward | Outcome::Drop => return Finding::Upstream { alias: None },
        };
        let Some(reply) = message::decode(out.get(..length).unwrap_or_default()) else {
            return Finding::Invalid("the answer cannot be read back".to_owned());
        };
        match reply.rcode {
            Rcode::NXDOMAIN => Finding::NoName,
            Rcode::SERVFAIL if reply.answers.is_empty() => Finding::NotSynced,
            Rcode::SERVFAIL => Finding::Endless(endless(&reply.answers)),
            _ => found(&reply.answers),
        }
    }
}

/// The aliases in their order, the last once more where it leads back.
fn endless(answers: &[message::Record]) -> String {
    let plain = |name: &str| name.trim_end_matches('.').to_owned();
    let mut names: Vec<String> = answers.iter().map(|record| plain(&record.owner)).collect();
    let last = answers.last().and_then(|record| match &record.data {
        Data::Alias(target) => Some(plain(target)),
        _ => None,
    });
    let circle = last.as_ref().is_some_and(|last| names.contains(last));
    names.extend(last);
    let word = if circle { "alias circle" } else { "aliases lead on too often" };
    format!("{word}: {}; change their externalName", names.join(" → "))
}

fn found(answers: &[message::Record]) -> Finding {
    let mut aliases = Vec::new();
    let mut addresses = Vec::new();
    for record in answers {
        match &record.data {
            Data::Address(address) => addresses.push(*address),
            Data::Alias(target) => aliases.push(target.clone()),
            _ => {}
        }
    }
    if addresses.is_empty() { Finding::NoData } else { Finding::Addresses { aliases, addresses } }
}
