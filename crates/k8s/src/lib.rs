//! Owns: the slim serde structs of the Kubernetes kinds that Plumb reads: only the fields some brain looks at.
//! Never: a client, defaults that need meaning (model::from_k8s fills them), or an error for one odd field.
//! In → Out: the API's JSON → structs; unknown fields are skipped, `null` is the same as absent.
//! Read first: [`Object`], then [`core::Pod`].
//!
//! One object that cannot be parsed fails a whole list, and with it the watch: so numbers are wide, enums and
//! addresses are strings, and everything may be absent. Judging the values is model::from_k8s' work.

pub mod core;
pub mod discovery;
mod meta;
pub mod networking;
pub mod supported;

pub use crate::core::{Namespace, Node, Pod, Service};
pub use crate::discovery::EndpointSlice;
pub use crate::meta::{Annotations, Meta, Object};
pub use crate::networking::NetworkPolicy;
