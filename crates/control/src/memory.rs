//! The world of the tests: an API in memory that behaves (versions, uids, finalizers, preconditions), asks the
//! brains whom a change woke and performs what they decide, until nothing is left to do.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use types::ObjectName;

use crate::brain::{Brain, Key, Settings, decide};
use crate::kind::Kind;
use crate::view::Pod;
use crate::wake::wake;
use crate::world::{Change, Row, World};
use crate::write::{Notice, Propagation, Write};

pub(crate) struct Memory {
    pub world: World,
    pub now: Timestamp,
    pub settings: Settings,
    pub events: Vec<Notice>,
    /// Every write that was performed, in order.
    pub journal: Vec<String>,
    objects: BTreeMap<(Kind, ObjectName), Value>,
    version: u64,
    woken: BTreeSet<(Brain, Key)>,
    later: BTreeSet<(Brain, Key)>,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            world: World::default(),
            now: Timestamp::from_second(1_800_000_000).unwrap(),
            settings: Settings::default(),
            events: Vec::new(),
            journal: Vec::new(),
            objects: BTreeMap::new(),
            version: 0,
            woken: BTreeSet::new(),
            later: BTreeSet::new(),
        }
    }
}

pub(crate) fn merge(into: &mut Value, patch: &Value) {
    match patch {
        Value::Object(fields) => {
            if !into.is_object() {
                *into = json!({});
            }
            for (key, value) in fields {
                if value.is_null() {
                    into.as_object_mut().unwrap().remove(key);
                } else {
                    merge(&mut into[key], value);
                }
            }
        }
        other => *into = other.clone(),
    }
}

impl Memory {
    fn key(name: &str) -> ObjectName {
        let Ok(key) = name.parse();
        key
    }

    pub fn object(&self, kind: Kind, name: &str) -> &Value {
        &self.objects[&(kind, Self::key(name))]
    }

    pub fn has(&self, kind: Kind, name: &str) -> bool {
        self.objects.contains_key(&(kind, Self::key(name)))
    }

    /// Creates or replaces; metadata that the API owns is kept or made up.
    pub fn apply(&mut self, kind: Kind, name: &str, object: Value) {
        let key = Self::key(name);
        let mut object = object;
        if !object["metadata"].is_object() {
            object["metadata"] = json!({});
        }
        object["metadata"]["name"] = json!(key.name);
        if !key.namespace.is_empty() {
            object["metadata"]["namespace"] = json!(key.namespace);
        }
        match self.objects.get(&(kind, key.clone())) {
            Some(known) => object["metadata"]["uid"] = known["metadata"]["uid"].clone(),
            None => {
                object["metadata"]["uid"] = json!(format!("uid-{}", self.version + 1));
                object["metadata"]["creationTimestamp"] = json!(self.now.to_string());
            }
        }
        self.put(kind, key, object);
    }

    pub fn merge(&mut self, kind: Kind, name: &str, patch: &Value) {
        let mut object = self.object(kind, name).clone();
        merge(&mut object, patch);
        self.put(kind, Self::key(name), object);
    }

    fn put(&mut self, kind: Kind, key: ObjectName, mut object: Value) {
        self.version += 1;
        let before = self.objects.get(&(kind, key.clone()));
        let changed = before.is_none_or(|b| b["spec"] != object["spec"]);
        let generation = before.and_then(|b| b["metadata"]["generation"].as_i64()).unwrap_or(0);
        object["metadata"]["generation"] = json!(generation + i64::from(changed));
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let row = Row::parse(kind, &object).unwrap();
        let waits = |part: &str| object[part]["finalizers"].as_array().is_some_and(|f| !f.is_empty());
        let held = waits("metadata") || (kind == Kind::Namespace && waits("spec"));
        let graceful = kind == Kind::Pod && object["spec"]["nodeName"].is_string();
        let dead = object["metadata"]["deletionTimestamp"].is_string() && !held && !graceful;
        self.objects.insert((kind, key.clone()), object);
        let change = self.world.put(kind, row);
        self.wake(change);
        if dead {
            self.remove_key(kind, &key);
        }
    }

    fn wake(&mut self, change: Option<Change>) {
        if let Some(change) = change {
            self.woken.extend(wake(&self.world, &change));
        }
    }

    /// Takes an object out at once, as a kubelet does with a pod that has ended.
    pub fn remove(&mut self, kind: Kind, name: &str) {
        self.remove_key(kind, &Self::key(name));
    }

    fn remove_key(&mut self, kind: Kind, key: &ObjectName) {
        if let Some(object) = self.objects.remove(&(kind, key.clone())) {
            let change = self.world.remove(kind, key, object["metadata"]["uid"].as_str().unwrap());
            self.wake(change);
        }
    }

    pub fn delete(&mut self, kind: Kind, name: &str) {
        self.delete_key(kind, &Self::key(name), None);
    }

    pub fn delete_with(&mut self, kind: Kind, name: &str, finalizer: &str) {
        self.delete_key(kind, &Self::key(name), Some(finalizer));
    }

    fn delete_key(&mut self, kind: Kind, key: &ObjectName, finalizer: Option<&str>) {
        let Some(mut object) = self.objects.get(&(kind, key.clone())).cloned() else { return };
        if let Some(finalizer) = finalizer {
            if !object["metadata"]["finalizers"].is_array() {
                object["metadata"]["finalizers"] = json!([]);
            }
            object["metadata"]["finalizers"].as_array_mut().unwrap().push(json!(finalizer));
        }
        object["metadata"]["deletionTimestamp"] = json!(self.now.to_string());
        self.put(kind, key.clone(), object);
    }

    pub fn ready_node(&mut self, name: &str) {
        let conditions = json!([{"type": "Ready", "status": "True",
            "lastHeartbeatTime": self.now.to_string(), "lastTransitionTime": self.now.to_string()}]);
        self.apply(Kind::Node, name, json!({"status": {"conditions": conditions}}));
    }

    /// Plays the kubelet: the pod runs and is ready.
    pub fn run_pod(&mut self, namespace: &str, name: &str) {
        let ip = format!("10.244.1.{}", self.version % 250 + 2);
        let status = json!({"status": {"phase": "Running", "podIP": ip, "conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": self.now.to_string()}]}});
        self.merge(Kind::Pod, &format!("{namespace}/{name}"), &status);
    }

    /// Time passes, and everything that depends on it is asked again.
    pub fn pass(&mut self, seconds: i64) {
        self.now += SignedDuration::from_secs(seconds);
        let later = std::mem::take(&mut self.later);
        self.woken.extend(later);
    }

    /// Somebody sets the clock.
    pub fn set_clock(&mut self, seconds: i64) {
        self.pass(seconds);
        self.world.clock_was_set(self.now);
    }

    /// One decision; false when nobody is awake.
    pub fn step(&mut self) -> bool {
        let Some((brain, key)) = self.woken.pop_first() else { return false };
        let decision = decide(brain, &self.world, &key, (&self.settings, self.now));
        if decision.again_in.is_some() {
            self.later.insert((brain, key));
        }
        for write in decision.writes {
            self.journal.push(write.to_string());
            self.perform(write);
        }
        true
    }

    /// Until nobody has anything to do.
    pub fn settle(&mut self) {
        for _ in 0..20_000 {
            if !self.step() {
                return;
            }
        }
        panic!("the brains never rest: {:#?}", self.journal.iter().rev().take(12).collect::<Vec<_>>());
    }

    fn lives(&self, target: &crate::write::Target) -> Option<Value> {
        let object = self.objects.get(&(target.kind, target.name.clone()))?;
        (object["metadata"]["uid"] == json!(target.uid)).then(|| object.clone())
    }

    fn perform(&mut self, write: Write) {
        match write {
            Write::Create { kind, mut object, done } => {
                let meta = &object["metadata"];
                let namespace = meta["namespace"].as_str().unwrap_or_default().to_owned();
                let name = match meta["name"].as_str() {
                    Some(name) => name.to_owned(),
                    None => format!("{}{:05}", meta["generateName"].as_str().unwrap(), self.version),
                };
                object["metadata"]["generateName"].take();
                let key = ObjectName::new(namespace, name);
                assert!(!self.objects.contains_key(&(kind, key.clone())), "{kind} {key} exists");
                self.apply(kind, &key.to_string(), object);
                self.events.extend(done);
            }
            Write::Patch { target, patch, .. } => {
                let Some(mut object) = self.lives(&target) else { return };
                let expected = &patch["metadata"]["resourceVersion"];
                if expected.is_string() && *expected != object["metadata"]["resourceVersion"] {
                    return;
                }
                merge(&mut object, &patch);
                self.put(target.kind, target.name, object);
            }
            Write::Delete { target, propagation, done } => {
                if self.lives(&target).is_some() {
                    let finalizer = (propagation == Propagation::Foreground).then_some("foregroundDeletion");
                    self.delete_key(target.kind, &target.name, finalizer);
                    self.events.extend(done);
                }
            }
            Write::Collect { target, owners } => {
                let lives = |uid: &str| self.objects.values().any(|o| o["metadata"]["uid"] == uid);
                assert!(!owners.iter().any(|o| lives(&o.uid)), "an owner of {target} lives");
                self.delete_key(target.kind, &target.name, None);
            }
            Write::Bind { pod, node, done } => {
                if self.lives(&pod).is_some() {
                    self.merge(pod.kind, &pod.name.to_string(), &json!({"spec": {"nodeName": node}}));
                    self.events.push(done);
                }
            }
            Write::DeleteEvents { .. } => {}
            Write::Finalize { namespace } => {
                let Some(mut object) = self.lives(&namespace) else { return };
                object["spec"]["finalizers"] = json!([]);
                self.put(Kind::Namespace, namespace.name, object);
            }
            Write::Post(notice) => self.events.push(notice),
        }
    }

    pub fn active_pods(&self) -> Vec<&Pod> {
        self.world.all::<Pod>().filter(|p| p.active()).collect()
    }
}
