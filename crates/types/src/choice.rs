//! What a cluster chooses among: who carries Services, how a packet reaches another node, how a pod is attached. An
//! alternative is a variant here and a folder where it is carried out; tests iterate over `ALL`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::Families;
use crate::net::ParseError;
use crate::wire::BRIDGE;

/// An enum of alternatives: each has one word, in flags, messages and names of tests. The first is the default.
macro_rules! choice {
    ($(#[$doc:meta])* $name:ident, $what:literal: $($(#[$of:meta])* $variant:ident = $word:literal),+ $(,)?) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$of])* $variant),+
        }

        impl $name {
            /// Every alternative that there is, the default first.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            pub fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word),+
                }
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self::ALL[0]
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.word())
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.word())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }

        impl FromStr for $name {
            type Err = ParseError;

            fn from_str(text: &str) -> Result<Self, ParseError> {
                let found = Self::ALL.iter().copied().find(|choice| choice.word() == text);
                found.ok_or_else(|| ParseError::new(text, $what, concat!("expected one of:", $(" ", $word),+)))
            }
        }
    };
}

choice!(
    /// What turns a Service's address into an endpoint's.
    Backend, "a backend of Services":
    /// Maps and verdicts of the tables `ip plumb` and `ip6 plumb`.
    Nftables = "nftables",
);

choice!(
    /// How a packet reaches a pod of another node.
    Fabric, "a fabric":
    /// In UDP from node to node (RFC 7348).
    Vxlan = "vxlan",
);

choice!(
    /// How a pod is attached to its node.
    Wiring, "a wiring":
    /// A veth pair whose node end is a port of `cni0`; packets between pods are routed.
    Bridge = "bridge",
);

impl Wiring {
    /// The link of the node by which packets of all its pods come and go. `None`: each has its own.
    pub fn link(self) -> Option<&'static str> {
        match self {
            Self::Bridge => Some(BRIDGE),
        }
    }
}

impl Families {
    /// Every alternative that there is, the default first.
    pub const ALL: &[Self] = &[Self::Ipv4, Self::Dual, Self::Ipv6];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_back_and_others_are_refused_with_the_choice() {
        for choice in Backend::ALL {
            assert_eq!(choice.word().parse(), Ok(*choice));
        }
        for choice in Fabric::ALL {
            assert_eq!(choice.to_string().parse(), Ok(*choice));
        }
        for choice in Wiring::ALL {
            assert_eq!(choice.to_string().parse(), Ok(*choice));
        }
        let said = "vxlam".parse::<Fabric>().unwrap_err().to_string();
        assert!(said.contains("vxlam") && said.contains("a fabric") && said.contains("vxlan"), "{said}");
    }
}
