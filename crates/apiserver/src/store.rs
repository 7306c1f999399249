//! Where objects live: one map in memory, one ring of events, one writer to disk.
//!
//! ```text
//!            write ──> State { objects, ring, revision } ──> disk thread: one transaction per group
//!                           │                                        │ committed revision
//!   list, get <─────────────┤                                        ▼
//!   watchers  <── cursor ───┘ (each sees events only up to the committed revision)
//! ```
//! An object's bytes exist once: the map, the ring and the watchers share them. Nothing is answered or
//! published before it is on disk, so that a revision that anyone saw never comes back with another meaning.

mod disk;
mod ring;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::watch;
use types::Labels;

use crate::kind::{KINDS, Kind};
use crate::status::Failure;
use crate::{Error, defaults};
use ring::Ring;
pub use ring::{Change, Event};

/// Which object: its resource (`pods`, `deployments.apps`), namespace (empty for cluster scope) and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub resource: String,
    pub namespace: String,
    pub name: String,
}

impl Key {
    pub fn new(kind: &'static Kind, namespace: &str, name: &str) -> Self {
        Self {
            resource: kind.stored_as().qualified(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }
}

/// An object at one revision: its bytes, and what selectors look at.
#[derive(Debug)]
pub struct Stored {
    pub revision: u64,
    pub raw: Bytes,
    pub labels: Labels,
    /// Selectable fields with their values, in the order of [`Kind::fields`].
    pub fields: Vec<(&'static str, String)>,
}

impl Stored {
    fn new(kind: Option<&'static Kind>, revision: u64, raw: Bytes, object: &Value) -> Self {
        let labels = object["metadata"]["labels"].as_object().map_or_else(Labels::new, |map| {
            map.iter().map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned())).collect()
        });
        let fields = kind.map_or(&[][..], |k| k.fields);
        let fields = fields.iter().map(|field| (*field, crate::select::field_text(object, field))).collect();
        Self { revision, raw, labels, fields }
    }

    /// An object that is only shown: the outcome of a dry run.
    pub(crate) fn unstored(object: &Value) -> Self {
        Self { revision: 0, raw: object.to_string().into(), labels: Labels::new(), fields: Vec::new() }
    }

    /// The object as a tree.
    pub fn value(&self) -> Result<Value, Failure> {
        serde_json::from_slice(&self.raw)
            .map_err(|e| Failure::internal(format!("a stored object cannot be read: {e}")))
    }
}

/// The state of the cluster. Cloning shares it.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    committed: watch::Sender<u64>,
    disk: Option<disk::Disk>,
}

struct State {
    objects: BTreeMap<Key, Arc<Stored>>,
    ring: Ring,
    revision: u64,
}

impl Store {
    /// A store that lives as long as the process: for tests.
    pub fn in_memory() -> Self {
        let state = State { objects: BTreeMap::new(), ring: Ring::starting_at(1), revision: 1 };
        Self {
            shared: Arc::new(Shared {
                state: Mutex::new(state),
                committed: watch::Sender::new(1),
                disk: None,
            }),
        }
    }

    /// A store in an SQLite file, made if it is missing.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let (connection, loaded) = disk::load(path)?;
        let revision = loaded.revision.max(1);
        let mut objects = BTreeMap::new();
        for (key, revision, raw) in loaded.objects {
            let (object, raw) = read(&key, raw).map_err(|e| Error::StoredObject {
                path: path.to_owned(),
                cause: format!("{} {}/{}: {e}", key.resource, key.namespace, key.name),
            })?;
            let stored = Stored::new(kind_of(&key), revision, raw, &object);
            objects.insert(key, Arc::new(stored));
        }
        // Events before this start are gone: whoever wants them gets 410 and lists again.
        let state = State { objects, ring: Ring::starting_at(revision), revision };
        let committed = watch::Sender::new(revision);
        let disk = disk::Disk::start(connection, committed.clone());
        Ok(Self { shared: Arc::new(Shared { state: Mutex::new(state), committed, disk: Some(disk) }) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic while the lock was held can only have come from reading: changes are applied at the end.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until everything up to the revision is on disk.
    pub async fn settled(&self, revision: u64) -> Result<(), Failure> {
        let mut committed = self.shared.committed.subscribe();
        match committed.wait_for(|at| *at >= revision).await {
            Ok(at) if *at == u64::MAX => Err(Failure::internal(
                "the API's storage failed; see the API's log, free disk space, and restart the lab's API",
            )),
            Ok(_) => Ok(()),
            Err(_) => Err(Failure::internal("the API is shutting down; try again")),
        }
    }

    /// Notified whenever more is committed.
    pub fn commits(&self) -> watch::Receiver<u64> {
        self.shared.committed.subscribe()
    }

    /// The newest revision, committed or not.
    pub fn revision(&self) -> u64 {
        self.state().revision
    }

    /// One object, and the revision at which it was read.
    pub fn get(&self, key: &Key) -> (Option<Arc<Stored>>, u64) {
        let state = self.state();
        (state.objects.get(key).cloned(), state.revision)
    }

    /// Runs `change` alone; what it put and removed happens at its end, or not at all.
    /// The answer is durable only after [`Self::settled`] of the returned revision.
    pub fn write<T>(
        &self,
        change: impl FnOnce(&mut Transaction<'_>) -> Result<T, Failure>,
    ) -> Result<(T, u64), Failure> {
        let mut state = self.state();
        let mut transaction = Transaction { revision: state.revision, state: &state, changes: Vec::new() };
        let answer = change(&mut transaction)?;
        let changes = transaction.changes;
        for change in changes {
            self.apply(&mut state, change);
        }
        let revision = state.revision;
        if self.shared.disk.is_none() {
            self.shared.committed.send_if_modified(|at| std::mem::replace(at, revision) != revision);
        }
        Ok((answer, revision))
    }

    fn apply(&self, state: &mut State, change: Pending) {
        let Pending { key, stored, removes } = change;
        state.revision = stored.revision;
        let before = if removes {
            state.objects.remove(&key)
        } else {
            state.objects.insert(key.clone(), stored.clone())
        };
        if let Some(disk) = &self.shared.disk {
            let raw = (!removes).then(|| stored.raw.clone());
            disk.write(disk::Record { key: key.clone(), revision: stored.revision, raw });
        }
        let change = match (&before, removes) {
            (_, true) => Change::Deleted,
            (None, false) => Change::Added,
            (Some(_), false) => Change::Modified,
        };
        state.ring.push(Event { revision: stored.revision, change, key: Arc::new(key), now: stored, before });
    }

    /// Objects of a resource in a namespace (all if empty), after `start`, as they were at `at` (now if 0).
    pub fn list(&self, query: &ListQuery<'_>) -> Result<Listed, Failure> {
        let state = self.state();
        let revision = if query.at == 0 { state.revision } else { query.at };
        let mut objects: Vec<_> = state
            .objects
            .range((query.start_bound(), Bound::Unbounded))
            .take_while(|(key, _)| key.resource == query.resource)
            .filter(|(key, _)| query.wants(key))
            .map(|(key, stored)| (key.clone(), stored.clone()))
            .collect();
        if revision < state.revision {
            // A snapshot of the past: what the ring says that came after is taken back.
            let undo = state.ring.states_at(revision, query.resource)?;
            objects.retain(|(key, _)| !undo.contains_key(key));
            let start = query.start_key();
            let back = undo.into_iter().filter_map(|(key, was)| Some((key, was?)));
            objects
                .extend(back.filter(|(key, _)| query.wants(key) && start.as_ref().is_none_or(|s| key > s)));
            objects.sort_by(|a, b| a.0.cmp(&b.0));
        }
        Ok(Listed { revision, objects })
    }

    /// Up to `limit` committed events of the resource after the cursor, and the new cursor.
    pub fn events(&self, resource: &str, after: u64, limit: usize) -> Result<(Vec<Event>, u64), Failure> {
        let committed = *self.shared.committed.borrow();
        self.state().ring.after(resource, after, committed, limit)
    }

    /// Objects of a resource and the revision from which events continue, both committed.
    pub async fn snapshot(&self, resource: &str, namespace: &str) -> Result<Listed, Failure> {
        let listed = self.list(&ListQuery { resource, namespace, start: None, at: 0 })?;
        self.settled(listed.revision).await?;
        Ok(listed)
    }
}

/// What to list.
#[derive(Clone, Copy, Debug)]
pub struct ListQuery<'a> {
    pub resource: &'a str,
    pub namespace: &'a str,
    /// Continue after this namespace and name.
    pub start: Option<(&'a str, &'a str)>,
    /// The revision of the snapshot, 0 for now.
    pub at: u64,
}

impl ListQuery<'_> {
    fn start_key(&self) -> Option<Key> {
        let (namespace, name) = self.start?;
        Some(Key {
            resource: self.resource.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    }

    fn start_bound(&self) -> Bound<Key> {
        match self.start_key() {
            Some(key) => Bound::Excluded(key),
            None => Bound::Included(Key {
                resource: self.resource.to_owned(),
                namespace: self.namespace.to_owned(),
                name: String::new(),
            }),
        }
    }

    fn wants(&self, key: &Key) -> bool {
        self.namespace.is_empty() || key.namespace == self.namespace
    }
}

/// A consistent reading.
#[derive(Debug)]
pub struct Listed {
    pub revision: u64,
    pub objects: Vec<(Key, Arc<Stored>)>,
}

struct Pending {
    key: Key,
    stored: Arc<Stored>,
    removes: bool,
}

/// A write in progress: reads see the state before it.
pub struct Transaction<'a> {
    state: &'a State,
    revision: u64,
    changes: Vec<Pending>,
}

impl Transaction<'_> {
    pub fn get(&self, key: &Key) -> Option<&Arc<Stored>> {
        self.state.objects.get(key)
    }

    /// Every object of a resource, in all namespaces.
    pub fn all(&self, resource: &str) -> impl Iterator<Item = (&Key, &Arc<Stored>)> {
        let first = Key { resource: resource.to_owned(), namespace: String::new(), name: String::new() };
        self.state.objects.range(first..).take_while(move |(key, _)| key.resource == resource)
    }

    /// Stores the object under the next revision and returns it as stored.
    pub fn put(&mut self, key: Key, object: Value) -> Result<Arc<Stored>, Failure> {
        self.push(key, object, false)
    }

    /// Removes the object; its last state bears the revision of the removal, as watchers expect.
    pub fn remove(&mut self, key: Key, last: Value) -> Result<Arc<Stored>, Failure> {
        self.push(key, last, true)
    }

    fn push(&mut self, key: Key, mut object: Value, removes: bool) -> Result<Arc<Stored>, Failure> {
        self.revision += 1;
        let stored = {
            let metadata = object.get_mut("metadata").and_then(Value::as_object_mut);
            let metadata = metadata.ok_or_else(|| Failure::bad_request("the object has no metadata"))?;
            metadata.insert("resourceVersion".to_owned(), Value::String(self.revision.to_string()));
            let raw = serde_json::to_vec(&object).map_err(|e| Failure::internal(e.to_string()))?;
            Arc::new(Stored::new(kind_of(&key), self.revision, raw.into(), &object))
        };
        self.changes.push(Pending { key, stored: stored.clone(), removes });
        Ok(stored)
    }
}

/// What an earlier version stored lacks defaults that this one has: it gets them as it is read, or every change of it would
/// be one of these, too. kube-apiserver reads from etcd likewise.
fn read(key: &Key, raw: Bytes) -> serde_json::Result<(Value, Bytes)> {
    let stored: Value = serde_json::from_slice(&raw)?;
    let mut object = stored.clone();
    if let Some(kind) = kind_of(key) {
        defaults::apply(kind, &mut object);
    }
    let raw = if object == stored { raw } else { serde_json::to_vec(&object)?.into() };
    Ok((object, raw))
}

fn kind_of(key: &Key) -> Option<&'static Kind> {
    KINDS.into_iter().find(|kind| kind.qualified() == key.resource)
}
