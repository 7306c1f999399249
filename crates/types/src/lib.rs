//! Owns: the words that every other crate shares: addresses, protocols, names, labels, selectors.
//! Never: I/O, and no meaning beyond the word itself: nothing here knows a Service or a route.
//! In → Out: text → typed words → text.
//! Read first: [`name::ObjectName`], [`selector::Selector`].

pub mod choice;
pub mod labels;
pub mod name;
pub mod net;
pub mod range;
pub mod selector;
pub mod shares;
pub mod wire;

pub use choice::{Backend, Fabric, Wiring};
pub use ipnet::{IpNet, Ipv4Net, Ipv6Net};
pub use labels::Labels;
pub use name::{ObjectName, hash8};
pub use net::{Families, Family, IfName, Mac, Protocol, Vni, number, offset};
pub use selector::Selector;
