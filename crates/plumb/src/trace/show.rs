//! A report as lines for a person: one hop a line, what is wrong below it, the verdict last.
//!
//! ```text
//!   n  what     text                                              beside it                    time
//! ✗ 8 tunnel   VXLAN 1, 192.168.1.10 → 192.168.1.11:8472          50 bytes more
//!              ✗ the FDB entry … is missing
//! ```

use std::fmt;

use trace::hop::Step;
use trace::observed::Sighting;
use trace::{Fact, HopResult, Outcome, Stage};
use types::ObjectName;

use super::{Conclusion, Report};

pub struct Shown<'a> {
    pub report: &'a Report,
    pub full: bool,
}

/// A longer text does not push the columns beside it away from the others.
const WIDEST: usize = 64;

/// The number of the hop that no packet passes.
const RESOLVE: &str = "1";

/// One line: mark, number, word, text, what belongs beside it, time.
struct Line {
    mark: char,
    number: String,
    word: String,
    text: String,
    detail: String,
    took: Option<u64>,
    below: Vec<String>,
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<Line> = self.report.hops.iter().flat_map(|result| self.lines(result)).collect();
        let widest = |column: fn(&Line) -> &str| {
            let widths = lines.iter().map(|line| column(line).chars().count());
            widths.filter(|width| *width <= WIDEST).max().unwrap_or_default()
        };
        let (text, detail) = (widest(|line| &line.text), widest(|line| &line.detail));
        for line in &lines {
            line.write(f, text, detail)?;
        }
        if self.full {
            self.sightings(f)?;
        }
        self.verdict(f)
    }
}

impl Line {
    fn write(&self, f: &mut fmt::Formatter<'_>, text: usize, detail: usize) -> fmt::Result {
        let Self { mark, number, word, .. } = self;
        // A name's answer was waited for; all others are times since the sighting before.
        let plus = if self.number == RESOLVE { "" } else { "+" };
        let took = self.took.map(|took| format!("{plus}{}", duration(took))).unwrap_or_default();
        let line =
            format!("{mark}{number:>2} {word:<9}{:<text$}   {:<detail$}   {took:>9}", self.text, self.detail);
        writeln!(f, "{}", line.trim_end())?;
        self.below.iter().try_for_each(|line| writeln!(f, "    {:<9}{line}", ""))
    }
}

impl Shown<'_> {
    fn lines(&self, result: &HopResult) -> Vec<Line> {
        let hop = &result.hop;
        let (mark, why) = match &result.outcome {
            Outcome::Agree { .. } => (' ', None),
            Outcome::Disagree { why } => ('✗', Some(format!("✗ {why}"))),
            Outcome::NotAsked { why } => ('?', Some(format!("? {why}"))),
            Outcome::NotReached => ('·', None),
        };
        let mut text = text(result);
        if result.outcome == Outcome::NotReached {
            text = format!("not reached: {text}");
        }
        let below = hop.fact.misses().iter().map(ToString::to_string).chain(why).collect();
        let first = Line {
            mark,
            number: hop.n.to_string(),
            word: word(result),
            text,
            detail: hop.fact.detail(),
            took: result.took.filter(|took| *took > 0),
            below,
        };
        let steps = match &hop.fact {
            Fact::Return { steps, .. } if self.full => steps.as_slice(),
            _ => &[],
        };
        let times = result.steps.iter().copied().chain(std::iter::repeat(None));
        let steps = steps.iter().zip(times).map(|(Step { word, node, text, .. }, took)| Line {
            mark: ' ',
            number: String::new(),
            word: String::new(),
            text: format!("{word:<10}{text}"),
            detail: node.clone(),
            took,
            below: Vec::new(),
        });
        std::iter::once(first).chain(steps).collect()
    }

    fn sightings(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for observed in &self.report.observed {
            writeln!(f, "\nseen on {}:", observed.node)?;
            let first = observed.sightings.iter().find_map(|sighting| match sighting {
                Sighting::Frame { at, .. } => Some(*at),
                _ => None,
            });
            for sighting in &observed.sightings {
                sighted(f, sighting, first.unwrap_or_default())?;
            }
        }
        writeln!(f)
    }

    /// Further hops at which they disagree, where the packet got through all the same.
    fn also(&self) -> String {
        let wrong = self.report.hops.iter().filter(|hop| matches!(hop.outcome, Outcome::Disagree { .. }));
        let numbers: Vec<String> = wrong.skip(1).map(|hop| hop.hop.n.to_string()).collect();
        if numbers.is_empty() { String::new() } else { format!(", also at {},", numbers.join(", ")) }
    }

    /// It came to whoever has the address.
    fn closed(&self) -> bool {
        self.report.hops.iter().any(|result| matches!(result.hop.fact, Fact::Pod { .. }))
    }

    /// Whose port another node was asked for.
    fn node_port(&self) -> Option<&ObjectName> {
        self.report.hops.iter().find_map(|result| match &result.hop.fact {
            Fact::Direct { service, .. } => service.as_ref(),
            _ => None,
        })
    }

    fn verdict(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { agree, of, broken, not_asked, next, conclusion, took_ms, .. } = self.report;
        match (broken, conclusion) {
            (Some(broken), _) => write!(
                f,
                "model and kernel disagree at hop {} ({}){} and agree at {agree} of {of}",
                broken.n,
                broken.at(),
                self.also()
            ),
            (None, Conclusion::Denied) => {
                write!(f, "model and kernel agree at {agree} of {of}: the policy stops the packet")
            }
            (None, Conclusion::Refused) if self.closed() => {
                write!(f, "model and kernel agree at {agree} of {of}: nobody listens on the port")
            }
            (None, Conclusion::Refused) => {
                write!(f, "model and kernel agree at {agree} of {of}: the packet ends where it should")
            }
            (None, Conclusion::NoName) => write!(f, "there is no address for it; nothing was sent"),
            (None, _) => write!(f, "model and kernel agree at {agree} of {of}"),
        }?;
        if let Some(service) = self.node_port() {
            write!(f, "; it is a nodePort of {service}")?;
        }
        not_asked.keys().try_for_each(|node| write!(f, "; {node} could not be asked"))?;
        if let Some(next) = next {
            write!(f, "; next: {next}")?;
        }
        writeln!(f, "; traced in {:.2} s", *took_ms as f64 / 1e3)
    }
}

fn word(result: &HopResult) -> String {
    let hop = &result.hop;
    match (&hop.fact, hop.stage) {
        (_, Stage::Node) => hop.node.clone(),
        (Fact::Pod { pod: None, on: Some(_), .. }, _) => "node".to_owned(),
        (Fact::Pod { pod: None, on: None, .. }, _) => "outside".to_owned(),
        (_, stage) => stage.word().to_owned(),
    }
}

/// The expected, with what only the packet itself could tell.
fn text(result: &HopResult) -> String {
    let text = &result.hop.text;
    let Outcome::Agree { seen } = &result.outcome else { return text.clone() };
    match &result.hop.fact {
        Fact::Resolve { addresses, .. } if addresses.is_empty() && !seen.is_empty() => {
            format!("{text}, {seen}")
        }
        Fact::Socket { .. } => seen.clone(),
        Fact::Route { prefix: None, .. } => format!("{text}: {seen}"),
        Fact::Masq { masquerade: true, .. } => format!("yes, {seen}"),
        Fact::Tunnel { vni, .. } => format!("VXLAN {vni}, {seen}"),
        Fact::Pod { .. } => format!("{text}, {seen}"),
        _ => text.clone(),
    }
}

fn sighted(f: &mut fmt::Formatter<'_>, sighting: &Sighting, first: u64) -> fmt::Result {
    match sighting {
        Sighting::Frame { at, dev, direction, packet, outer } => {
            let way = format!("{direction:?}").to_lowercase();
            let since = at.saturating_sub(first) / 1000;
            let (from, to, bytes) = (packet.source, packet.destination, packet.bytes);
            write!(f, "  {since:>7} µs  {:<15} {way:<3}  {from} → {to}, {bytes} bytes", dev.as_str())?;
            match outer {
                Some(outer) => {
                    writeln!(f, ", in VXLAN {} {} → {}", outer.vni, outer.source, outer.destination)
                }
                None => writeln!(f),
            }
        }
        Sighting::Nft { rule } => {
            let of = if rule.answer { "answer" } else { "packet" };
            let comment =
                if rule.comment.is_empty() { String::new() } else { format!(" # {}", rule.comment) };
            let (hook, table, chain, verdict) = (&rule.hook, &rule.table, &rule.chain, &rule.verdict);
            writeln!(f, "  {of:<10}  nft {hook:<11}  {} {table} {chain}: {verdict}{comment}", rule.family)
        }
        Sighting::Conntrack { original, reply } => writeln!(
            f,
            "  conntrack   {} → {}, answers {} → {}",
            original.source, original.destination, reply.source, reply.destination
        ),
        Sighting::Drift { stage, text } => writeln!(f, "  not as it should be ({}): {text}", stage.word()),
        Sighting::Resolved { .. } | Sighting::Sent { .. } => Ok(()),
    }
}

fn duration(nanos: u64) -> String {
    match nanos {
        0..10_000 => format!("{:.1} µs", nanos as f64 / 1e3),
        10_000..1_000_000 => format!("{} µs", nanos / 1000),
        _ => format!("{:.1} ms", nanos as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Broken;
    use super::*;

    #[test]
    fn the_last_line_says_what_to_do_about_a_node_that_is_away() {
        let report = Report {
            pod: ObjectName::new("shop", "web"),
            target: "http://far:8080".to_owned(),
            hops: Vec::new(),
            agree: 7,
            of: 12,
            broken: Some(Broken {
                n: 8,
                stage: Stage::Tunnel,
                place: "tunnel",
                node: Some("node1".to_owned()),
                why: "it did not leave the node".to_owned(),
            }),
            not_asked: [("node2".to_owned(), "no answer".to_owned())].into(),
            next: Some("plumb lab up --name ci".to_owned()),
            conclusion: Conclusion::Broken,
            took_ms: 5010,
            observed: Vec::new(),
        };
        assert_eq!(
            Shown { report: &report, full: false }.to_string(),
            "model and kernel disagree at hop 8 (tunnel on node1) and agree at 7 of 12; node2 could not be asked; next: plumb \
             lab up --name ci; traced in 5.01 s\n"
        );
    }
}
