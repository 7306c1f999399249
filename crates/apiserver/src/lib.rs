//! Owns: the lab's Kubernetes-compatible API: kinds, storage, verbs, discovery, tables, credentials, TLS.
//! Never: a second kube-apiserver, and no decision of a controller: what watches objects lives elsewhere.
//! In → Out: an HTTP request (in process or over TLS) → objects, events, tables, or a Status that says why not.
//! Read first: [`Api`], then [`kind::KINDS`], then [`store::Store`].

pub mod api;
pub mod credentials;
pub mod dial;
mod error;
pub mod kind;
mod moment;
mod request;
mod response;
mod select;
mod serve;
pub mod status;
pub mod store;

pub use api::{Api, Body, Config};
pub use credentials::{Credentials, Identity};
pub use dial::{NoNodes, NodeDial, Stream};
pub use error::Error;
pub use serve::serve;
pub use store::Store;
