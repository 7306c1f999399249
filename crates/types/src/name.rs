//! Names of Kubernetes objects, and short stable hashes of them for kernel names.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// `namespace/name`; cluster-scoped objects have an empty namespace and print without the slash. A clone shares the
/// text: each of a hundred thousand objects is named in many places.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectName {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl ObjectName {
    pub fn new(namespace: impl AsRef<str>, name: impl AsRef<str>) -> Self {
        Self { namespace: namespace.as_ref().into(), name: name.as_ref().into() }
    }

    /// A cluster-scoped object, such as a Node.
    pub fn cluster(name: impl AsRef<str>) -> Self {
        Self::new("", name)
    }

    /// An object of the same namespace.
    pub fn sibling(&self, name: impl AsRef<str>) -> Self {
        Self { namespace: Arc::clone(&self.namespace), name: name.as_ref().into() }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

impl FromStr for ObjectName {
    type Err = std::convert::Infallible;

    /// `ns/name`, or `name` alone for a cluster-scoped object.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text.split_once('/') {
            Some((namespace, name)) => Self::new(namespace, name),
            None => Self::cluster(text),
        })
    }
}

/// Eight hex digits that are stable across runs, machines and versions: FNV-1a, 32 bits folded from 64.
/// Kernel names start with them (unique, visually distinct) and end with the human part.
pub fn hash8(text: &str) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in text.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("{:08x}", (hash >> 32) as u32 ^ hash as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_print_as_they_parse() {
        for text in ["shop/web", "node1"] {
            let Ok(name) = text.parse::<ObjectName>();
            assert_eq!(name.to_string(), text);
        }
    }

    #[test]
    fn hashes_are_the_same_in_every_version() {
        assert_eq!(hash8("shop/web"), hash8("shop/web"));
        assert_eq!(hash8(""), "4fd0bfc1");
    }
}
