//! Owns: the lab's Kubernetes-compatible API: kinds, storage, verbs, discovery, tables, credentials, TLS.
//! Never: a second kube-apiserver, and no decision of a controller: what watches objects lives elsewhere.
//! In → Out: an HTTP request (in process or over TLS) → objects, events, tables, or a Status that says why not.
//! Read first: [`Api`], then [`kind::KINDS`], then [`store::Store`].

pub mod api;
mod clusterip;
pub mod credentials;
mod defaults;
mod delete;
pub mod dial;
mod discovery;
mod error;
mod events;
mod form;
mod invalid;
pub mod kind;
mod moment;
mod node;
mod nodeport;
mod object;
mod openapi;
mod patch;
mod query;
mod read;
mod request;
mod response;
mod review;
mod schema;
mod seed;
mod select;
mod serve;
mod service_type;
pub mod status;
pub mod store;
mod subresource;
mod table;
pub mod validate;
mod watch;
mod write;

pub use api::{Api, Body, Config};
pub use credentials::{Credentials, Identity};
pub use dial::{NoNodes, NodeDial, Stream};
pub use error::Error;
pub use patch::manifest;
pub use serve::serve;
pub use store::Store;
