//! Owns: the CNI protocol: environment and config → a typed request; results and errors as each version wants.
//! Never: files, processes, sockets, or what an ADD does to the kernel.
//! In → Out: environment + stdin → [`Request`] → (whoever performs it) → [`Success`] or [`Error`] → stdout.
//! Read first: [`Request::parse`].
//!
//! CNI 1.1.0 (containernetworking/cni SPEC.md), with its older versions down to 0.3.0.

mod config;
mod error;
mod exchange;
mod request;
mod result;
mod version;

pub use config::{Config, PortMapping, Prev, RuntimeConfig};
pub use error::{Code, Error};
pub use exchange::{Call, Reply};
pub use request::{Attach, Command, Gc, Id, PodRef, Request};
pub use result::{Dns, Interface, Ip, Route, Success};
pub use version::Version;
