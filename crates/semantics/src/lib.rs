//! Owns: what Kubernetes' objects mean for the network of one node, decided once, before any backend.
//! Never: kernel state (no table, chain, route or link), I/O, clocks, chance.
//! In → Out: [`model::Cluster`], [`Settings`] → [`service::plan::ServicePlan`]s, [`policy::tier::Tier`]s, the addresses that
//! nodes and pods have; [`Diagnostic`]s.
//! Read first: `view.rs` and `topology.rs`, then `service/plan.rs` and `policy/tier.rs`.

pub mod conntrack;
mod diagnostic;
pub mod dns;
pub mod due;
pub mod further;
pub mod meaning;
pub mod node;
pub mod policy;
pub mod service;
mod settings;
pub mod snat;
pub mod topology;
pub mod unit;
pub mod view;

pub use diagnostic::{Diagnostic, Severity};
/// Whose a [`Diagnostic`] is.
pub use model::Key;
pub use settings::Settings;
pub use topology::Topology;
pub use view::View;
