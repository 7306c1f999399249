//! Owns: system calls: namespaces, processes, mounts, netlink and packet sockets. The only crate with `unsafe`.
//! Never: Kubernetes words, and no decision: it observes, applies and says what failed.
//! In → Out: plans and typed requests → kernel state; kernel state → `kstate` values.
//! Read first: [`netns::Netns`], [`process::Spawn`], [`veth::PodVeth`].

pub mod capture;
pub mod checksums;
pub mod conntrack;
pub mod echo;
pub mod error;
pub mod feature;
pub mod interrupt;
pub mod memory;
pub mod mount;
pub mod net;
pub mod netns;
pub mod nft;
pub mod out;
pub mod own;
pub mod probe;
pub mod process;
pub mod rtnl;
pub mod socket;
mod sysctl;
pub mod udp;
pub mod veth;

pub use error::Error;
pub use netns::{Netns, in_netns};
pub use nft::Nft;
pub use rtnl::Rtnl;
