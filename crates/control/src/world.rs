//! The world as the controllers see it: one row per object, newest version wins.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;
use types::ObjectName;

use crate::kind::Kind;
use crate::view::{Deployment, EndpointSlice, Lease, Meta, Namespace, Node, Other, Pod, ReplicaSet, Service};

/// One object, cut down to what some brain reads.
#[derive(Clone, Debug, PartialEq)]
pub enum Row {
    Namespace(Namespace),
    Node(Node),
    Lease(Lease),
    Pod(Box<Pod>),
    Service(Box<Service>),
    EndpointSlice(EndpointSlice),
    Deployment(Box<Deployment>),
    ReplicaSet(Box<ReplicaSet>),
    Other(Other),
}

#[derive(Debug, Error)]
#[error(
    "{kind} {name} cannot be read: {cause}; it is left out of every decision until it is corrected (kubectl edit)"
)]
pub struct RowError {
    pub kind: Kind,
    pub name: ObjectName,
    pub cause: serde_json::Error,
}

impl Row {
    /// Reads an object as the API sends it.
    pub fn parse(kind: Kind, object: &Value) -> Result<Self, RowError> {
        let object = without_nulls(object);
        let text =
            |key: &str| object["metadata"].get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let name = ObjectName::new(text("namespace"), text("name"));
        let row = match kind {
            Kind::Namespace => view(object).map(Self::Namespace),
            Kind::Node => view(object).map(Self::Node),
            Kind::Lease => view(object).map(Self::Lease),
            Kind::Pod => view(object).map(|v| Self::Pod(Box::new(v))),
            Kind::Service => view(object).map(|v| Self::Service(Box::new(v))),
            Kind::EndpointSlice => view(object).map(Self::EndpointSlice),
            Kind::Deployment => view(object).map(|v| Self::Deployment(Box::new(v))),
            Kind::ReplicaSet => view(object).map(|v| Self::ReplicaSet(Box::new(v))),
            Kind::ConfigMap | Kind::ServiceAccount | Kind::NetworkPolicy => view(object).map(Self::Other),
        };
        row.map_err(|cause| RowError { kind, name, cause })
    }

    pub fn meta(&self) -> &Meta {
        match self {
            Self::Namespace(v) => &v.metadata,
            Self::Node(v) => &v.metadata,
            Self::Lease(v) => &v.metadata,
            Self::Pod(v) => &v.metadata,
            Self::Service(v) => &v.metadata,
            Self::EndpointSlice(v) => &v.metadata,
            Self::Deployment(v) => &v.metadata,
            Self::ReplicaSet(v) => &v.metadata,
            Self::Other(v) => &v.metadata,
        }
    }
}

fn view<T: DeserializeOwned>(object: Value) -> Result<T, serde_json::Error> {
    serde_json::from_value(object)
}

/// `null` means absent everywhere in the API (`creationTimestamp: null` in every template kubectl makes).
fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(
            map.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), without_nulls(v))).collect(),
        ),
        Value::Array(list) => Value::Array(list.iter().map(without_nulls).collect()),
        other => other.clone(),
    }
}

/// A view with a kind of its own, so that `world.get::<Pod>(name)` can be written.
pub trait View: Sized + 'static {
    const KIND: Kind;
    fn of(row: &Row) -> Option<&Self>;
}

macro_rules! views {
    ($($kind:ident),*) => {$(
        impl View for $kind {
            const KIND: Kind = Kind::$kind;
            fn of(row: &Row) -> Option<&Self> {
                match row {
                    Row::$kind(view) => Some(view),
                    _ => None,
                }
            }
        }
    )*};
}
views!(Namespace, Node, Lease, Pod, Service, EndpointSlice, Deployment, ReplicaSet);

/// What a change did: the row before and the row after.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    pub kind: Kind,
    pub name: ObjectName,
    pub before: Option<Row>,
    pub after: Option<Row>,
}

/// How many deleted objects are remembered, so that a late answer to our own write cannot raise one again.
const TOMBSTONES: usize = 4096;

/// Every row by kind and name.
#[derive(Clone, Debug, Default)]
pub struct World {
    rows: BTreeMap<(Kind, ObjectName), Row>,
    uids: BTreeMap<String, (Kind, ObjectName)>,
    buried: BTreeSet<String>,
    burials: VecDeque<String>,
    /// When the clock that dates what is written was last set by somebody, or first looked at.
    clock_set: Option<Timestamp>,
}

/// How long ago something was. Times are written down by a clock that somebody may set at any moment.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    pub now: Timestamp,
    set: Option<Timestamp>,
}

impl Clock {
    /// Seconds since what is dated `then`. A time that has not come yet was written before the clock was set back: it
    /// counts from then on.
    pub fn since(&self, then: Timestamp) -> i64 {
        let began = match self.set {
            Some(set) if then.as_second() > self.now.as_second() => set,
            _ => then,
        };
        self.now.as_second().saturating_sub(began.as_second())
    }

    /// The same, for what was watched all along: what is dated earlier than the clock was set counts from then on, too.
    pub fn silent_since(&self, then: Timestamp) -> i64 {
        let watched = self.set.map_or(i64::MAX, |set| self.now.as_second() - set.as_second());
        self.since(then).min(watched)
    }
}

impl World {
    /// The clock shows something else than the time that has passed.
    pub fn clock_was_set(&mut self, at: Timestamp) {
        self.clock_set = Some(at);
    }

    pub fn clock(&self, now: Timestamp) -> Clock {
        Clock { now, set: self.clock_set }
    }

    /// Takes a row in, unless a newer version of it is known already: rows come from the watch and from the
    /// answers to our own writes, in any order (ES-09: this is what keeps a decision from being made twice).
    pub fn put(&mut self, kind: Kind, row: Row) -> Option<Change> {
        let meta = row.meta();
        let (name, uid) = (meta.key(), meta.uid.clone());
        let key = (kind, name.clone());
        let known = self.rows.get(&key);
        let stale = known.is_some_and(|k| k.meta().uid == uid && k.meta().version() > meta.version());
        if stale || self.buried.contains(&uid) || known == Some(&row) {
            return None;
        }
        let before = self.rows.insert(key.clone(), row.clone());
        if let Some(replaced) = before.as_ref().filter(|b| b.meta().uid != uid) {
            let gone = replaced.meta().uid.clone();
            self.uids.remove(&gone);
            self.bury(gone);
        }
        self.uids.insert(uid, key);
        Some(Change { kind, name, before, after: Some(row) })
    }

    /// Forgets an object; with a uid, only that incarnation of it.
    pub fn remove(&mut self, kind: Kind, name: &ObjectName, uid: &str) -> Option<Change> {
        let key = (kind, name.clone());
        if !uid.is_empty() {
            self.bury(uid.to_owned());
            if self.rows.get(&key)?.meta().uid != uid {
                return None;
            }
        }
        let before = self.rows.remove(&key)?;
        self.uids.remove(&before.meta().uid);
        Some(Change { kind, name: name.clone(), before: Some(before), after: None })
    }

    fn bury(&mut self, uid: String) {
        if self.buried.insert(uid.clone()) {
            self.burials.push_back(uid);
        }
        if self.burials.len() > TOMBSTONES
            && let Some(oldest) = self.burials.pop_front()
        {
            self.buried.remove(&oldest);
        }
    }

    /// Takes a pod as bound: the answer to a binding does not carry the pod.
    pub fn assume_bound(&mut self, name: &ObjectName, node: &str) {
        if let Some(Row::Pod(pod)) = self.rows.get_mut(&(Kind::Pod, name.clone())) {
            node.clone_into(&mut pod.spec.node_name);
        }
    }

    pub fn get<T: View>(&self, name: &ObjectName) -> Option<&T> {
        self.rows.get(&(T::KIND, name.clone())).and_then(T::of)
    }

    /// A cluster-scoped object.
    pub fn named<T: View>(&self, name: &str) -> Option<&T> {
        self.get(&ObjectName::cluster(name))
    }

    pub fn all<T: View>(&self) -> impl Iterator<Item = &T> {
        self.of_kind(T::KIND).filter_map(|(_, row)| T::of(row))
    }

    /// Those of one namespace, by name.
    pub fn within<'a, T: View>(&'a self, namespace: &str) -> impl Iterator<Item = &'a T> + use<'a, T> {
        let namespace = namespace.to_owned();
        self.rows
            .range((T::KIND, ObjectName::new(&namespace, ""))..)
            .take_while(move |((kind, name), _)| *kind == T::KIND && *name.namespace == *namespace)
            .filter_map(|(_, row)| T::of(row))
    }

    fn of_kind(&self, kind: Kind) -> impl Iterator<Item = (&ObjectName, &Row)> {
        self.rows
            .range((Bound::Included((kind, ObjectName::default())), Bound::Unbounded))
            .take_while(move |((k, _), _)| *k == kind)
            .map(|((_, name), row)| (name, row))
    }

    pub fn names(&self, kind: Kind) -> Vec<ObjectName> {
        self.of_kind(kind).map(|(name, _)| name.clone()).collect()
    }

    pub fn row(&self, kind: Kind, name: &ObjectName) -> Option<&Row> {
        self.rows.get(&(kind, name.clone()))
    }

    pub fn meta(&self, kind: Kind, name: &ObjectName) -> Option<&Meta> {
        self.rows.get(&(kind, name.clone())).map(Row::meta)
    }

    /// Every object, whatever its kind.
    pub fn metas(&self) -> impl Iterator<Item = (Kind, &Meta)> {
        self.rows.iter().map(|((kind, _), row)| (*kind, row.meta()))
    }

    pub fn by_uid(&self, uid: &str) -> Option<(Kind, &Meta)> {
        let (kind, name) = self.uids.get(uid)?;
        Some((*kind, self.meta(*kind, name)?))
    }

    /// Everything that names `uid` as an owner.
    pub fn dependents<'a>(&'a self, uid: &'a str) -> impl Iterator<Item = (Kind, &'a Meta)> {
        self.metas().filter(move |(_, m)| m.owner_references.iter().any(|o| o.uid == uid))
    }
}
