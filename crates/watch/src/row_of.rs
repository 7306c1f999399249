//! Which row an object becomes.

use std::collections::BTreeSet;
use std::fmt::Debug;

use model::from_k8s::{self, Converted};
use model::{Diagnostic, Key, Kind, Row};
use serde::de::DeserializeOwned;

use crate::Message;

/// A kind that is followed.
pub trait RowOf: k8s::Object + DeserializeOwned + Clone + Debug + Send + Sync + 'static {
    const ROW: Kind;

    /// `None`: the object concerns nobody here.
    fn row(&self) -> Converted<Option<Row>>;
}

macro_rules! row_of {
    ($object:ty, $kind:ident, $convert:path, $wrap:expr) => {
        impl RowOf for $object {
            const ROW: Kind = Kind::$kind;

            fn row(&self) -> Converted<Option<Row>> {
                let Converted { row, diagnostics } = $convert(self);
                Converted { row: $wrap(row), diagnostics }
            }
        }
    };
}

row_of!(k8s::Node, Node, from_k8s::node, |row| Some(Row::Node(row)));
row_of!(k8s::Namespace, Namespace, from_k8s::namespace, |row| Some(Row::Namespace(row)));
row_of!(k8s::Pod, Pod, from_k8s::pod, |row| Some(Row::Pod(Box::new(row))));
row_of!(k8s::Service, Service, from_k8s::service, |row| Some(Row::Service(Box::new(row))));
row_of!(k8s::EndpointSlice, EndpointSlice, from_k8s::endpoint_slice, |row: Option<_>| row
    .map(Row::EndpointSlice));
row_of!(k8s::NetworkPolicy, Policy, from_k8s::policy, |row| Some(Row::Policy(Box::new(row))));

/// Speaks only of objects that have something wrong, or had.
pub fn diagnostics_of(key: &Key, found: Vec<Diagnostic>, diagnosed: &mut BTreeSet<Key>) -> Vec<Message> {
    let changed = if found.is_empty() { diagnosed.remove(key) } else { diagnosed.insert(key.clone()) };
    if found.is_empty() && !changed { Vec::new() } else { vec![Message::Diagnosed(key.clone(), found)] }
}
