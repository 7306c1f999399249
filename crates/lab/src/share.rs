//! `--mount DIR:PATH`: a directory of the machine at another path of every node, and so of its pods, which see the machine's
//! own /tmp and /run nowhere.

use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use watch::Misused;

/// One directory and where nodes have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    pub from: PathBuf,
    pub at: PathBuf,
}

/// Whether both name the same: their order has no meaning.
pub fn are_same(one: &[Share], other: &[Share]) -> bool {
    let within = |all: &[Share], others: &[Share]| all.iter().all(|share| others.contains(share));
    within(one, other) && within(other, one)
}

/// What a node or a pod has of its own.
const OWN: [&str; 8] = ["dev", "etc", "opt", "proc", "run", "sys", "tmp", "var"];

impl Share {
    /// Everything that can be wrong with it, before a lab is started.
    pub fn parse(text: &str) -> Result<Self> {
        let Some((from, at)) = text.rsplit_once(':').filter(|(from, at)| !from.is_empty() && !at.is_empty())
        else {
            bail!(Misused(format!("--mount {text:?} is not DIR:PATH; give such as ./target/debug:/app")));
        };
        let from = Path::new(from);
        let from = from.canonicalize().with_context(|| format!("--mount {text}: {}", from.display()))?;
        if !from.is_dir() {
            bail!("--mount {text}: {} is no directory", from.display());
        }
        let at = PathBuf::from(at);
        let mut parts = at.components();
        let (root, first) = (parts.next(), parts.next());
        let Some(Component::Normal(first)) = first.filter(|_| root == Some(Component::RootDir)) else {
            bail!(Misused(format!(
                "--mount {text}: {} is no path of a node; give a whole one, such as /app",
                at.display()
            )));
        };
        if parts.any(|part| !matches!(part, Component::Normal(_))) {
            bail!(Misused(format!("--mount {text}: {} has .. in it", at.display())));
        }
        if OWN.iter().any(|own| first == *own) || first == ".host" {
            bail!(Misused(format!(
                "--mount {text}: nodes and pods have a /{} of their own; choose another path",
                first.to_string_lossy()
            )));
        }
        // A new directory below one of the machine's would be made there.
        if Path::new("/").join(first).exists() && !at.is_dir() {
            bail!(
                "--mount {text}: {} is not on this machine, and nothing is made there; choose a directory that is, or a \
                 new one below /",
                at.display()
            );
        }
        Ok(Self { from, at })
    }
}

impl std::fmt::Display for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.from.display(), self.at.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_a_path_of_its_own_in_nodes() {
        let share = Share::parse("/usr/../usr/bin:/app/bin").expect("a new path");
        assert_eq!(
            share.to_string(),
            Path::new("/usr/bin").canonicalize().expect("there").display().to_string() + ":/app/bin"
        );
        Share::parse("/usr:/usr/lib").expect("a directory of the machine");
        for (text, why) in [
            ("/usr/bin", "is not DIR:PATH"),
            (":/app", "is not DIR:PATH"),
            ("/no/such:/app", "--mount /no/such:/app: /no/such"),
            ("/etc/passwd:/app", "is no directory"),
            ("/usr:app", "is no path of a node"),
            ("/usr:/", "is no path of a node"),
            ("/usr:/app/../etc", "has .. in it"),
            ("/usr:/tmp/app", "have a /tmp of their own"),
            ("/usr:/usr/no-such-directory", "nothing is made there"),
        ] {
            let error = format!("{:#}", Share::parse(text).expect_err(text));
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn the_order_of_mounts_has_no_meaning() {
        let [bin, lib] =
            ["/usr/bin:/app-bin", "/usr/lib:/app-lib"].map(|text| Share::parse(text).expect(text));
        let both = [bin.clone(), lib.clone()];
        assert!(are_same(&both, &[lib.clone(), bin.clone()]) && are_same(&[], &[]));
        assert!(!are_same(&both, &both[..1]) && !are_same(&[lib], &[bin]));
    }
}
