//! Owns: the loop of the controllers: watches feed one world, brains are asked, their writes are performed.
//! Never: decides anything itself; what to write is `control`'s business.
//! In → Out: watch events of a `kube::Client` (in process or over TLS) → requests to the same API.
//! Read first: [`run`], then [`queue`], then [`perform`].

mod path;
pub mod perform;
pub mod queue;
mod run;
mod watch;

pub use control::Settings;
pub use run::run;
