//! Owns: which pod is wired to this node and how that comes and goes: CNI sessions, records, addresses, orphans; what becomes
//! of the node when its Node object changes ([`Own`]); what follows from a look at the kernel ([`drift`]).
//! Never: files, sockets, clocks, threads; it sees no kernel and deletes nothing itself.
//! In → Out: [`Input`], [`Facts`], now → [`Output`]s, which somebody performs in their order and answers.
//! Read first: [`Attachments::step`].
//!
//! ```text
//!   ADD   address, record ─ Save ─> Saved ─ row ─> Followed: policies are in the kernel ─ Wire ─> Wired ─ Reply
//!   DEL   Unwire ─> Unwired ─ address released, record gone ─ Save ─> Saved ─> Followed ─ Reply
//! ```
//! A process that is killed between any two of these leaves either a record whose veth is missing (it is released at the next
//! start) or a veth with its record (which DEL removes). `tests/histories.rs` kills it everywhere.

mod add;
mod attachments;
pub mod drift;
mod facts;
mod follow;
mod host_port;
mod input;
mod orphan;
mod output;
mod own;
mod pending;
mod read;
mod record;
mod recording;
mod records;
mod remove;
mod replay;
mod reserve;
mod steps;
mod text;

pub use add::host_ifs;
pub use attachments::Attachments;
pub use facts::{Facts, Live, Network, Shown, Situation};
pub use input::{Answer, Asked, Doubt, Input, RequestId};
pub use orphan::is_gone;
pub use output::{Note, Output, Reply, Wire};
pub use own::{Outcome, Own};
pub use record::Record;
pub use recording::{Bounds, Recording};
pub use records::Records;
pub use replay::{Decided, Replay, Turn, Waits};
pub use steps::Steps;
