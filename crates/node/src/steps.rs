//! What differs, in words.

use std::collections::BTreeSet;
use std::fmt;

/// Steps by which the kernel differs, or did until they were taken: how many, and the first few in words. A first load has
/// 100,000 of them, which nobody reads.
#[derive(Clone, Debug, Default)]
pub struct Steps {
    pub count: usize,
    /// In words, as many as are known one by one.
    known: Vec<String>,
}

/// So many steps are told one by one.
const TOLD: usize = 4;
/// So many are kept in words, to see what is new among them.
const KNOWN: usize = 256;

impl Steps {
    pub fn add(&mut self, step: impl ToString) {
        self.count += 1;
        if self.known.len() < KNOWN {
            self.known.push(step.to_string());
        }
    }

    /// Those that are told one by one.
    pub fn told(&self) -> &[String] {
        self.known.get(..TOLD).unwrap_or(&self.known)
    }

    pub fn known(&self) -> &[String] {
        &self.known
    }

    /// One by one, and how many more there are.
    pub fn into_words(self) -> Vec<String> {
        let more = self.count.saturating_sub(self.known.len());
        let more = (more > 0).then(|| format!("and {more} more"));
        self.known.into_iter().chain(more).collect()
    }

    /// And these, as far as they are others: of more steps than are kept that is not known.
    pub fn and(mut self, others: impl IntoIterator<Item = String>) -> Self {
        let all_known = self.count == self.known.len();
        for other in others.into_iter().filter(|_| all_known) {
            if !self.known.contains(&other) {
                self.add(other);
            }
        }
        self
    }

    /// With those first that are not among these.
    pub fn new_first(mut self, before: &BTreeSet<String>) -> Self {
        self.known.sort_by_key(|step| before.contains(step));
        self
    }
}

/// The first few, and how many more there are.
impl fmt::Display for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.told().join("; "))?;
        match self.count.saturating_sub(self.told().len()) {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

impl<S: ToString> FromIterator<S> for Steps {
    fn from_iter<I: IntoIterator<Item = S>>(all: I) -> Self {
        let mut steps = Self::default();
        all.into_iter().for_each(|step| steps.add(step));
        steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_counted_beyond_those_that_are_kept() {
        let steps = |range: std::ops::Range<usize>| range.map(|n| format!("step {n}")).collect::<Steps>();
        let others = ["step 1", "another"].map(str::to_owned);
        let many = steps(0..404).and(others.clone());
        assert_eq!(many.to_string(), "step 0; step 1; step 2; step 3; and 400 more");
        assert_eq!(steps(0..2).and(others.clone()).to_string(), "step 0; step 1; another");
        assert_eq!(Steps::default().and(others).to_string(), "step 1; another");
    }
}
