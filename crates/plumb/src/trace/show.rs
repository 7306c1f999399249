//! A report as lines for a person: one hop a line, what is wrong below it, the verdict last.

use std::fmt;

use trace::observed::Sighting;
use trace::{Fact, HopResult, Outcome, Stage};

use super::Report;

pub struct Shown<'a> {
    pub report: &'a Report,
    pub full: bool,
}

/// Where the column of times begins.
const TIMES: usize = 92;

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut before = None;
        for result in &self.report.hops {
            if result.hop.stage == Stage::Return && !self.full && self.report.broken.is_none() {
                continue;
            }
            self.hop(f, result, before)?;
            if let Some(at) = result.at {
                before = Some((result.hop.node.as_str(), at));
            }
        }
        if self.full {
            self.sightings(f)?;
        }
        self.verdict(f)
    }
}

impl Shown<'_> {
    fn hop(
        &self,
        f: &mut fmt::Formatter<'_>,
        result: &HopResult,
        before: Option<(&str, u64)>,
    ) -> fmt::Result {
        let hop = &result.hop;
        let word = match hop.stage {
            Stage::Node => hop.node.as_str(),
            stage => stage.word(),
        };
        let mark = match &result.outcome {
            Outcome::Agree { .. } => ' ',
            Outcome::Disagree { .. } => '✗',
            Outcome::NotReached => '·',
        };
        let text = match (&result.outcome, &hop.fact) {
            (Outcome::Agree { seen }, Fact::Pod { .. }) => format!("{}, {seen}", hop.text),
            _ => hop.text.clone(),
        };
        let line = format!("{mark}{:>2} {word:<8} {text}", hop.n);
        // Clocks of two nodes are not compared.
        let took = match (result.at, before) {
            (Some(at), Some((node, last))) if node == hop.node && at >= last => Some(at - last),
            _ => None,
        };
        match took {
            Some(nanos) => {
                let gap = TIMES.saturating_sub(line.chars().count());
                writeln!(f, "{line}{:gap$} {:>10}", "", format!("+{}", duration(nanos)))?;
            }
            None => writeln!(f, "{line}")?,
        }
        match &result.outcome {
            Outcome::Disagree { why } => writeln!(f, "    {:<8} ✗ {why}", ""),
            Outcome::NotReached => writeln!(f, "    {:<8} · not reached", ""),
            Outcome::Agree { .. } => Ok(()),
        }
    }

    fn sightings(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for observed in &self.report.observed {
            writeln!(f, "\nseen on {}:", observed.node)?;
            for sighting in &observed.sightings {
                match sighting {
                    Sighting::Frame { dev, direction, packet, outer, .. } => {
                        let way = format!("{direction:?}").to_lowercase();
                        write!(f, "  {dev:<15} {way:<3} {} → {}", packet.source, packet.destination)?;
                        match outer {
                            Some(outer) => {
                                writeln!(
                                    f,
                                    "  in VXLAN {} {} → {}",
                                    outer.vni, outer.source, outer.destination
                                )?;
                            }
                            None => writeln!(f)?,
                        }
                    }
                    Sighting::Nft { rule, .. } => writeln!(
                        f,
                        "  nft {} {}/{}: {} {}",
                        rule.hook, rule.table, rule.chain, rule.verdict, rule.comment
                    )?,
                    Sighting::Conntrack { original, reply } => writeln!(
                        f,
                        "  conntrack {} → {}, answers {} → {}",
                        original.source, original.destination, reply.source, reply.destination
                    )?,
                    Sighting::Drift { stage, text } => writeln!(f, "  drift ({}): {text}", stage.word())?,
                    Sighting::Resolved { .. } | Sighting::Sent { .. } => {}
                }
            }
        }
        Ok(())
    }

    fn verdict(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { agree, of, broken, allowed, .. } = self.report;
        match broken {
            Some(n) => writeln!(f, "model and kernel disagree at hop {n}; they agree at {agree} of {of}"),
            None if *allowed => {
                writeln!(f, "model and kernel agree at {agree} of {of}; the answer came back the same way")
            }
            None => writeln!(
                f,
                "model and kernel agree at {agree} of {of}: the packet is stopped where it should be"
            ),
        }
    }
}

fn duration(nanos: u64) -> String {
    match nanos {
        0..10_000 => format!("{:.1} µs", nanos as f64 / 1e3),
        10_000..1_000_000 => format!("{} µs", nanos / 1000),
        _ => format!("{:.1} ms", nanos as f64 / 1e6),
    }
}
