//! Names of chains and sets that stand for a meaning: equal meanings share one kernel object, and no two different ones
//! may. Whoever writes a NetworkPolicy or a Service chooses most of a meaning, so the hash must be one in which nobody
//! finds two texts of one value: SHA-256 (FIPS 180-4), of which 128 bits are the name and the other 128 are compared.

use sha2::{Digest, Sha256};
use types::Selector;
use types::selector::Operator;

/// A meaning, part by part. Each part goes in with its length, so that no two lists of parts read alike, whatever
/// characters they have.
#[derive(Clone)]
pub struct Meaning(Sha256);

/// The half of a meaning's hash that is not in its name.
pub type Check = [u8; 16];

impl Meaning {
    /// `kind`: what sort of thing has it. Things of one kind have one layout.
    pub fn of(kind: &str) -> Self {
        Self(Sha256::new()).text(kind)
    }

    pub fn text(mut self, text: &str) -> Self {
        self.0.update((text.len() as u64).to_be_bytes());
        self.0.update(text);
        self
    }

    pub fn shown(self, part: impl ToString) -> Self {
        self.text(&part.to_string())
    }

    pub fn count(mut self, items: usize) -> Self {
        self.0.update((items as u64).to_be_bytes());
        self
    }

    pub fn selector(self, selector: &Selector) -> Self {
        selector.requirements.iter().fold(self.count(selector.requirements.len()), |meaning, requirement| {
            let meaning = meaning.text(&requirement.key);
            let (word, values) = match &requirement.operator {
                Operator::In(values) => ("in", values.as_slice()),
                Operator::NotIn(values) => ("not in", values.as_slice()),
                Operator::Exists => ("exists", [].as_slice()),
                Operator::DoesNotExist => ("does not exist", [].as_slice()),
            };
            let meaning = meaning.text(word).count(values.len());
            values.iter().fold(meaning, |meaning, value| meaning.text(value))
        })
    }

    /// Its name as 32 hex digits, and what tells it from another meaning that had the same.
    pub fn digest(self) -> (String, Check) {
        let all = self.0.finalize();
        let (name, rest) = all.split_at(16);
        let mut check = Check::default();
        check.copy_from_slice(rest);
        (name.iter().map(|byte| format!("{byte:02x}")).collect(), check)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names must not change with the version: an upgrade would rewrite every table.
    #[test]
    fn a_meaning_has_the_same_name_in_every_version() {
        // printf '\0\0\0\0\0\0\0\4pods' | sha256sum
        let (name, check) = Meaning::of("pods").digest();
        let check: String = check.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(name + &check, "c737f93a5865b3dcb28258eb82bd633f6d9cd4bd29feb5b4ab5c608604ec8de2");
    }

    #[test]
    fn parts_do_not_run_into_each_other() {
        let of = |parts: &[&str]| parts.iter().fold(Meaning::of("x"), |m, part| m.text(part)).digest();
        assert_ne!(of(&["ab", "c"]), of(&["a", "bc"]));
        assert_ne!(of(&["a,b"]), of(&["a", "b"]));
        assert_ne!(of(&["a"]), of(&["a", ""]));
    }
}
