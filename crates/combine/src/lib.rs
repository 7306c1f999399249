//! Owns: which combinations of choices tests run: all of them, or the default and a seeded sample of the rest.
//! Never: ships; only tests and their runner use it. It knows no test.
//! In → Out: a seed, or words → combinations → flags of `plumb lab up`, words.
//! Read first: [`Combination`], [`sample`].

mod pairs;

use std::fmt;
use std::str::FromStr;

use types::{Backend, Fabric, Families, Wiring};

/// How many combinations beside the default a run of all tests takes.
pub const SAMPLE: usize = 2;

/// One of each choice. As text: `nftables+vxlan+bridge+ipv4`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Combination {
    pub backend: Backend,
    pub fabric: Fabric,
    pub wiring: Wiring,
    pub families: Families,
}

impl Combination {
    /// What `plumb lab up` has to be told. Backend, fabric and wiring have no flag while each has one variant.
    /// The second variant needs one here.
    pub fn flags(self) -> Vec<String> {
        vec!["--families".to_owned(), self.families.to_string()]
    }

    fn sizes() -> [usize; 4] {
        [Backend::ALL.len(), Fabric::ALL.len(), Wiring::ALL.len(), Families::ALL.len()]
    }

    fn at([backend, fabric, wiring, families]: [usize; 4]) -> Self {
        Self {
            backend: Backend::ALL[backend],
            fabric: Fabric::ALL[fabric],
            wiring: Wiring::ALL[wiring],
            families: Families::ALL[families],
        }
    }
}

impl fmt::Display for Combination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}+{}+{}", self.backend, self.fabric, self.wiring, self.families)
    }
}

impl FromStr for Combination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let words: Vec<&str> = text.split('+').collect();
        let [backend, fabric, wiring, families] = words[..] else {
            return Err(format!("{text:?} is no combination: expected one such as {}", Self::default()));
        };
        let said = |error: &dyn fmt::Display| format!("{text:?} is no combination: {error}");
        Ok(Self {
            backend: backend.parse().map_err(|e| said(&e))?,
            fabric: fabric.parse().map_err(|e| said(&e))?,
            wiring: wiring.parse().map_err(|e| said(&e))?,
            families: families.parse().map_err(|e| said(&e))?,
        })
    }
}

/// Every combination that there is, the default first.
pub fn all() -> Vec<Combination> {
    pairs::all(Combination::sizes()).into_iter().map(Combination::at).collect()
}

/// At most so many combinations beside the default: those that together have the most pairs of choices that the default
/// has not. The seed decides among equals, so that many runs meet them all.
pub fn sample(seed: u64, most: usize) -> Vec<Combination> {
    pairs::cover(Combination::sizes(), seed, most).into_iter().map(Combination::at).collect()
}

/// What this run of the tests takes beside the default, by the variable `PLUMB_COMBINATIONS`:
///
/// | value | combinations |
/// |---|---|
/// | unset | the [`sample`] of seed 0 |
/// | `seed:7` | the sample of that seed |
/// | `A,B` | those |
///
/// # Panics
/// When the variable holds something else.
pub fn from_environment() -> Vec<Combination> {
    let given = std::env::var("PLUMB_COMBINATIONS").unwrap_or_else(|_| "seed:0".to_owned());
    read(&given).unwrap_or_else(|error| panic!("PLUMB_COMBINATIONS: {error}"))
}

fn read(text: &str) -> Result<Vec<Combination>, String> {
    match text.strip_prefix("seed:") {
        Some(seed) => {
            let seed = seed.parse().map_err(|_| format!("{seed:?} is no seed: expected a number"))?;
            Ok(sample(seed, SAMPLE))
        }
        None => text.split(',').map(str::parse).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_is_read_back() {
        for combination in all() {
            assert_eq!(combination.to_string().parse(), Ok(combination));
        }
        assert_eq!(all()[0], Combination::default());
    }

    #[test]
    fn a_sample_leaves_the_default_to_the_tests_that_always_run() {
        for seed in 0..20 {
            let sample = sample(seed, SAMPLE);
            assert!(!sample.is_empty() && sample.len() <= SAMPLE, "{sample:?}");
            assert!(!sample.contains(&Combination::default()), "{sample:?}");
        }
    }

    /// Else one of them would be another under a false name.
    #[test]
    fn every_combination_is_told_by_its_flags() {
        let all = all();
        let told: std::collections::BTreeSet<_> = all.iter().map(|combination| combination.flags()).collect();
        assert_eq!(told.len(), all.len());
    }

    #[test]
    fn words_choose_and_others_are_refused() {
        assert_eq!(read("seed:3"), Ok(sample(3, SAMPLE)));
        let both = "nftables+vxlan+bridge+dual,nftables+vxlan+bridge+ipv6";
        assert_eq!(read(both).map(|read| read.len()), Ok(2));
        for (text, word) in [("seed:x", "no seed"), ("dual", "such as"), ("nftables+vxlan+bridge+v5", "v5")] {
            assert!(read(text).unwrap_err().contains(word), "{text}");
        }
    }
}
