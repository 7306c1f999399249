//! Owns: what a DNS query about the cluster is answered with: names, records, NXDOMAIN or NODATA, sizes.
//! Never: sockets, clocks, files, randomness. Time enters as `now`, chance as a seed.
//! In → Out: `model::Cluster` + changed keys → [`Zone`]; query bytes → answer bytes and an [`Outcome`].
//! Read first: [`Zone::update`], then [`Zone::answer`]; the names are drawn in [`zone`].

pub mod answer;
pub mod cache;
pub mod explain;
pub mod hosts;
pub mod listing;
pub mod message;
pub mod name;
pub mod query;
pub mod resolv;
#[cfg(test)]
mod testbed;
pub mod zone;

pub use answer::{Outcome, Transport};
pub use cache::Cache;
pub use explain::{Finding, Step};
pub use hosts::Hosts;
pub use listing::Listed;
pub use message::{Data, Record, Reply};
pub use name::{Name, NameError};
pub use query::{Fault, Query, Rcode, Type};
pub use resolv::ResolvConf;
pub use zone::{Edit, Settings, Zone};
