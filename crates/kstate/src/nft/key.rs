//! Concatenated keys of either family. An address fills one register or four, so whatever follows it lies
//! elsewhere; a key is therefore written as its parts, and this says where each of them goes:
//!
//! ```
//! use kstate::nft::key::{Part, load};
//! use kstate::nft::Reg;
//! use types::Family;
//!
//! let (exprs, next) = load(Family::V6, Reg(0), &[Part::Daddr, Part::Proto, Part::Dport]);
//! assert_eq!((exprs.len(), next), (3, Reg(6)));
//! ```

use types::Family;

use super::{Expr, Field, Reg, build};

/// One part of a key, as the packet or chance shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Saddr,
    Daddr,
    /// The destination before any NAT.
    OriginalDaddr,
    /// Who answers the flow, and at which port.
    ReplySaddr,
    ReplySport,
    Proto,
    Sport,
    Dport,
    Mark,
    /// A random number in `offset..offset + modulus`.
    Slot {
        modulus: u32,
        offset: u32,
    },
}

/// The address field of a family.
pub fn address(family: Family) -> Field {
    if family == Family::V4 { Field::Ipv4 } else { Field::Ipv6 }
}

impl Part {
    /// Its type in the key of a set.
    pub fn field(self, family: Family) -> Field {
        match self {
            Self::Saddr | Self::Daddr | Self::OriginalDaddr | Self::ReplySaddr => address(family),
            Self::Proto => Field::Proto,
            Self::Sport | Self::Dport | Self::ReplySport => Field::Port,
            Self::Mark | Self::Slot { .. } => Field::Mark,
        }
    }

    /// The expression that writes it from `dreg` on.
    pub fn load(self, family: Family, dreg: Reg) -> Expr {
        match self {
            Self::Saddr => build::saddr(family, dreg),
            Self::Daddr => build::daddr(family, dreg),
            Self::OriginalDaddr => build::original_daddr(family, dreg),
            Self::ReplySaddr => build::reply_saddr(family, dreg),
            Self::ReplySport => build::ct_reply_sport(dreg),
            Self::Proto => build::l4proto(dreg),
            Self::Sport => build::th_sport(dreg),
            Self::Dport => build::th_dport(dreg),
            Self::Mark => build::mark(dreg),
            Self::Slot { modulus, offset } => build::numgen_from(dreg, modulus, offset),
        }
    }
}

/// Writes the parts one after the other from `first` on; yields the register after the last, too.
pub fn load(family: Family, first: Reg, parts: &[Part]) -> (Vec<Expr>, Reg) {
    let mut next = first;
    let mut exprs = Vec::with_capacity(parts.len());
    for part in parts {
        exprs.push(part.load(family, next));
        next = after(next, part.field(family));
    }
    (exprs, next)
}

/// The register after a field that begins in `reg`.
pub fn after(reg: Reg, field: Field) -> Reg {
    Reg(reg.0.saturating_add(u8::try_from(field.padded() / 4).unwrap_or(u8::MAX)))
}
