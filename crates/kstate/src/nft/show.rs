//! Rulesets as text, much like `nft list ruleset` writes them. Rules are followed through their registers: a
//! register holds a term (what was loaded into it), and a match or an action prints the terms that it reads.
//!
//! ```text
//!   payload network 16/4 => r0      r0: ip daddr
//!   meta l4proto         => r1      r1: meta l4proto
//!   lookup @svc r0 => verdict       prints: ip daddr . meta l4proto vmap @svc
//! ```

use std::fmt;

use super::build::{Value, decode};
use super::{
    BaseChain, Chain, ChainKind, ElemData, ElemKey, Field, Hook, Op, Plan, Rule, Ruleset, Set, SetData,
    Table, TableFamily, TableId, Verdict,
};

mod rule;

impl fmt::Display for TableFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Inet => "inet",
            Self::Bridge => "bridge",
        })
    }
}

impl fmt::Display for TableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family, self.name)
    }
}

impl fmt::Display for ChainKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
            Self::Route => "route",
        })
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
        })
    }
}

impl fmt::Display for BaseChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let policy = if self.drop { "drop" } else { "accept" };
        write!(f, "type {} hook {} priority {}; policy {policy};", self.kind, self.hook, self.priority)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Return => f.write_str("return"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipv4 => "ipv4_addr",
            Self::Ipv6 => "ipv6_addr",
            Self::Proto => "inet_proto",
            Self::Port => "inet_service",
            Self::Mark => "mark",
            Self::IfName => "ifname",
            Self::Mac => "ether_addr",
        })
    }
}

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addr(address) => write!(f, "{address}"),
            Self::Proto(number) => match number {
                1 => f.write_str("icmp"),
                58 => f.write_str("icmpv6"),
                _ => match types::Protocol::from_number(*number) {
                    Some(protocol) => write!(f, "{protocol}"),
                    None => write!(f, "{number}"),
                },
            },
            Self::Port(port) => write!(f, "{port}"),
            Self::Mac(mac) => write!(f, "{mac}"),
            // As nft writes marks; slots and counts are numbers.
            Self::Word(word) if *word >= 1 << 24 => write!(f, "0x{word:08x}"),
            Self::Word(word) => write!(f, "{word}"),
            Self::IfName(name) => write!(f, "{name:?}"),
        }
    }
}

impl fmt::Display for Ruleset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (id, table) in &self.tables {
            write!(f, "table {id} {{\n{table}}}\n")?;
        }
        Ok(())
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, set) in &self.sets {
            writeln!(f, "  {} {name} {set}", set.word())?;
        }
        for (name, chain) in &self.chains {
            writeln!(f, "  chain {name} {}", ChainText { chain, table: Some(self) })?;
        }
        Ok(())
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", ChainText { chain: self, table: None })
    }
}

struct ChainText<'a> {
    chain: &'a Chain,
    table: Option<&'a Table>,
}

impl fmt::Display for ChainText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{\n")?;
        if let Some(base) = &self.chain.base {
            writeln!(f, "    {base}")?;
        }
        for rule in &self.chain.rules {
            writeln!(f, "    {}", rule.within(self.table))?;
        }
        f.write_str("  }")
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.within(None))
    }
}

impl Set {
    pub(super) fn word(&self) -> &'static str {
        if self.data == SetData::None { "set" } else { "map" }
    }

    /// `key : data` as nft writes it; bytes that do not fit the layout print as hex.
    pub fn show_element(&self, key: &ElemKey, data: &ElemData) -> String {
        let key = self.show_key(key);
        match data {
            ElemData::None => key,
            ElemData::Until { timeout_ms, left_ms } => key + &until(*timeout_ms, *left_ms),
            ElemData::Verdict(verdict) => format!("{key} : {verdict}"),
            ElemData::Value(bytes) => match &self.data {
                SetData::Values(fields) => format!("{key} : {}", show_values(fields, bytes)),
                SetData::None | SetData::Verdicts => format!("{key} : {}", hex(bytes)),
            },
        }
    }

    /// A key as nft writes it; ranges field by field.
    pub fn show_key(&self, key: &ElemKey) -> String {
        let Some(end) = key.end() else { return show_values(&self.key, key.start()) };
        match (decode(&self.key, key.start()), decode(&self.key, end)) {
            (Some(from), Some(to)) => {
                let parts = from
                    .iter()
                    .zip(&to)
                    .map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") });
                parts.collect::<Vec<_>>().join(" . ")
            }
            _ => format!("{}-{}", hex(key.start()), hex(end)),
        }
    }
}

fn show_values(fields: &[Field], bytes: &[u8]) -> String {
    match decode(fields, bytes) {
        Some(values) => values.iter().map(Value::to_string).collect::<Vec<_>>().join(" . "),
        None => hex(bytes),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold("0x".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

fn join(fields: &[Field]) -> String {
    fields.iter().map(Field::to_string).collect::<Vec<_>>().join(" . ")
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{\n    type {}", join(&self.key))?;
        match &self.data {
            SetData::None => {}
            SetData::Verdicts => f.write_str(" : verdict")?,
            SetData::Values(fields) => write!(f, " : {}", join(fields))?,
        }
        f.write_str("\n")?;
        if let Some(size) = self.size {
            writeln!(f, "    size {size}")?;
        }
        let flags =
            [(self.interval, "interval"), (self.dynamic, "dynamic"), (self.timeout_ms.is_some(), "timeout")];
        let flags: Vec<&str> = flags.iter().filter(|(on, _)| *on).map(|(_, flag)| *flag).collect();
        if !flags.is_empty() {
            writeln!(f, "    flags {}", flags.join(","))?;
        }
        if let Some(timeout) = self.timeout_ms {
            writeln!(f, "    timeout {}", rule::milliseconds(timeout))?;
        }
        if !self.elements.is_empty() {
            f.write_str("    elements = {\n")?;
            for (key, data) in &self.elements {
                writeln!(f, "      {},", self.show_element(key, data))?;
            }
            f.write_str("    }\n")?;
        }
        f.write_str("  }")
    }
}

fn until(timeout_ms: Option<u64>, left_ms: u64) -> String {
    let timeout = timeout_ms.map(|timeout| format!(" timeout {}", rule::milliseconds(timeout)));
    format!("{} expires {}", timeout.unwrap_or_default(), rule::milliseconds(left_ms))
}

impl Plan {
    /// The plan with keys printed by the layouts of the sets in `known` (desired or actual state).
    pub fn show<'a>(&'a self, known: &'a Ruleset) -> impl fmt::Display + 'a {
        PlanText { plan: self, known: Some(known) }
    }
}

/// Keys of sets that the plan itself does not add print as hex; [`Plan::show`] knows better.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", PlanText { plan: self, known: None })
    }
}

struct PlanText<'a> {
    plan: &'a Plan,
    known: Option<&'a Ruleset>,
}

impl PlanText<'_> {
    fn layout(&self, table: &TableId, name: &str) -> Option<&Set> {
        let added = self.plan.ops.iter().find_map(|op| match op {
            Op::AddSet { table: t, set, layout } if t == table && **set == *name => Some(layout.as_ref()),
            _ => None,
        });
        added.or_else(|| self.known?.tables.get(table)?.sets.get(name))
    }
}

impl fmt::Display for PlanText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Elements of one set come in runs; looking its layout up once per run keeps big plans linear.
        let mut last: Option<(&TableId, &str, Option<&Set>)> = None;
        for op in &self.plan.ops {
            if let Op::AddElement { table, set, .. } | Op::DeleteElement { table, set, .. } = op
                && last.is_none_or(|(t, s, _)| (t, s) != (table, &**set))
            {
                last = Some((table, set, self.layout(table, set)));
            }
            let layout = last.and_then(|(_, _, layout)| layout);
            writeln!(f, "{}", OpText { op, layout, known: self.known })?;
        }
        Ok(())
    }
}

/// As in a plan, keys as hex.
impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", OpText { op: self, layout: None, known: None })
    }
}

struct OpText<'a> {
    op: &'a Op,
    layout: Option<&'a Set>,
    known: Option<&'a Ruleset>,
}

impl fmt::Display for OpText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key_text = |key: &ElemKey| match (self.layout, key.end()) {
            (Some(set), _) => set.show_key(key),
            (None, None) => hex(key.start()),
            (None, Some(end)) => format!("{}-{}", hex(key.start()), hex(end)),
        };
        match self.op {
            Op::AddTable(table) => write!(f, "add table {table}"),
            Op::DeleteTable(table) => write!(f, "delete table {table}"),
            Op::AddChain { table, chain, base: None } => write!(f, "add chain {table} {chain}"),
            Op::AddChain { table, chain, base: Some(base) } => {
                write!(f, "add chain {table} {chain} {{ {base} }}")
            }
            Op::DeleteChain { table, chain } => write!(f, "delete chain {table} {chain}"),
            Op::SetRules { table, chain, rules } if rules.is_empty() => {
                write!(f, "flush chain {table} {chain}")
            }
            Op::SetRules { table, chain, rules } => {
                writeln!(f, "set rules {table} {chain} {{")?;
                let around = self.known.and_then(|known| known.tables.get(table));
                for rule in rules {
                    writeln!(f, "    {}", rule.within(around))?;
                }
                f.write_str("}")
            }
            Op::AddSet { table, set, layout } => {
                let fields = match &layout.data {
                    SetData::None => join(&layout.key),
                    SetData::Verdicts => format!("{} : verdict", join(&layout.key)),
                    SetData::Values(data) => format!("{} : {}", join(&layout.key), join(data)),
                };
                write!(f, "add {} {table} {set} {{ type {fields}; }}", layout.word())
            }
            Op::DeleteSet { table, set, .. } => write!(f, "delete set {table} {set}"),
            Op::AddElement { table, set, key, data } => {
                write!(f, "add element {table} {set} {{ {}", key_text(key))?;
                match (data, self.layout.map(|set| &set.data)) {
                    (ElemData::None, _) => {}
                    (ElemData::Until { timeout_ms, left_ms }, _) => {
                        f.write_str(&until(*timeout_ms, *left_ms))?;
                    }
                    (ElemData::Verdict(verdict), _) => write!(f, " : {verdict}")?,
                    (ElemData::Value(bytes), Some(SetData::Values(fields))) => {
                        write!(f, " : {}", show_values(fields, bytes))?;
                    }
                    (ElemData::Value(bytes), _) => write!(f, " : {}", hex(bytes))?,
                }
                f.write_str(" }")
            }
            Op::DeleteElement { table, set, key } => {
                write!(f, "delete element {table} {set} {{ {} }}", key_text(key))
            }
        }
    }
}
