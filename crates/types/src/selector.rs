//! Label selectors: one type for NetworkPolicy peers, Services and `kubectl -l`.

use std::fmt;

use crate::labels::Labels;
use crate::net::ParseError;

/// All requirements must hold; none at all selects everything (NP-01).
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    pub requirements: Vec<Requirement>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Requirement {
    pub key: String,
    pub operator: Operator,
}

/// `NotIn` also matches an object that lacks the key (NP-06).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operator {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
}

impl Selector {
    /// The selector of a `matchLabels` map, or of a Service's `spec.selector`.
    pub fn from_labels(labels: &Labels) -> Self {
        let requirements = labels
            .iter()
            .map(|(key, value)| Requirement { key: key.clone(), operator: Operator::In(vec![value.clone()]) })
            .collect();
        Self { requirements }
    }

    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|r| {
            let value = labels.get(&r.key);
            match &r.operator {
                Operator::In(values) => value.is_some_and(|v| values.contains(v)),
                Operator::NotIn(values) => value.is_none_or(|v| !values.contains(v)),
                Operator::Exists => value.is_some(),
                Operator::DoesNotExist => value.is_none(),
            }
        })
    }

    /// The text form of `labelSelector=`: `a=b,c!=d,e in (f,g),h notin (i),j,!k`.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        split_outside_parentheses(text)
            .filter(|term| !term.is_empty())
            .map(parse_term)
            .collect::<Result<_, _>>()
            .map(|requirements| Self { requirements })
    }
}

fn split_outside_parentheses(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0;
    text.split(move |c| {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        c == ',' && depth == 0
    })
    .map(str::trim)
}

fn parse_term(term: &str) -> Result<Requirement, ParseError> {
    let requirement = |key: &str, operator| {
        let key = key.trim();
        if key.is_empty() || key.contains(|c: char| c.is_whitespace() || "()!=,".contains(c)) {
            return Err(ParseError::new(
                term,
                "a label requirement",
                "the key is empty or has a forbidden character",
            ));
        }
        Ok(Requirement { key: key.to_owned(), operator })
    };
    if let Some(key) = term.strip_prefix('!') {
        return requirement(key, Operator::DoesNotExist);
    }
    for (word, not) in [(" notin ", true), (" in ", false)] {
        if let Some((key, list)) =
            term.replacen(" notin(", " notin (", 1).replacen(" in(", " in (", 1).split_once(word)
        {
            let values = list
                .trim()
                .strip_prefix('(')
                .and_then(|l| l.strip_suffix(')'))
                .ok_or_else(|| {
                    ParseError::new(term, "a label requirement", "expected a list in parentheses")
                })?
                .split(',')
                .map(|v| v.trim().to_owned())
                .collect();
            return requirement(key, if not { Operator::NotIn(values) } else { Operator::In(values) });
        }
    }
    if let Some((key, value)) = term.split_once("!=") {
        return requirement(key, Operator::NotIn(vec![value.trim().to_owned()]));
    }
    match term.split_once("==").or_else(|| term.split_once('=')) {
        Some((key, value)) => requirement(key, Operator::In(vec![value.trim().to_owned()])),
        None => requirement(term, Operator::Exists),
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, r) in self.requirements.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            let key = &r.key;
            match &r.operator {
                Operator::In(values) if values.len() == 1 => write!(f, "{comma}{key}={}", values[0])?,
                Operator::In(values) => write!(f, "{comma}{key} in ({})", values.join(","))?,
                Operator::NotIn(values) if values.len() == 1 => write!(f, "{comma}{key}!={}", values[0])?,
                Operator::NotIn(values) => write!(f, "{comma}{key} notin ({})", values.join(","))?,
                Operator::Exists => write!(f, "{comma}{key}")?,
                Operator::DoesNotExist => write!(f, "{comma}!{key}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn every_operator_parses_prints_and_matches() {
        let text = "app=web,tier!=db,zone in (a,b),ring notin (x,y),gpu,!old";
        let selector = Selector::parse(text).unwrap();
        assert_eq!(selector.to_string(), text);
        let good = labels(&[("app", "web"), ("zone", "b"), ("gpu", "")]);
        assert!(selector.matches(&good));
        for (key, value) in [("tier", "db"), ("ring", "x"), ("old", "1"), ("zone", "c"), ("app", "api")] {
            let mut bad = good.clone();
            bad.insert(key.into(), value.into());
            assert!(!selector.matches(&bad), "{key}={value}");
        }
    }

    #[test]
    fn nothing_required_selects_everything() {
        assert!(Selector::parse("").unwrap().matches(&labels(&[])));
    }

    #[test]
    fn bad_terms_are_refused() {
        for bad in ["=a", "a b=c", "a in b", "!"] {
            assert!(Selector::parse(bad).is_err(), "{bad}");
        }
    }
}
