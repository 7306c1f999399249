//! Templates, their hashes and the revisions that `kubectl rollout history` shows.

use serde_json::{Value, json};
use types::ObjectName;

use super::{DESIRED, HASH, MAX, REVISION, Rollout};
use crate::kind::Kind;
use crate::view::{Condition, Deployment, DeploymentStatus, OwnerReference, ReplicaSet};
use crate::world::World;
use crate::write::Write;

const HISTORY: &str = "deployment.kubernetes.io/revision-history";

/// Annotations that describe one object and are not handed down.
const OWN: [&str; 5] = ["kubectl.kubernetes.io/last-applied-configuration", REVISION, HISTORY, DESIRED, MAX];

pub(super) fn of(set: &ReplicaSet) -> i64 {
    set.metadata.annotations.get(REVISION).and_then(|r| r.parse().ok()).unwrap_or(0)
}

/// The oldest set with the Deployment's template. The hash counts too: a server that fills in defaults in one
/// of the two templates must not cause a rollout.
pub(super) fn latest<'a>(deployment: &Deployment, sets: &[&'a ReplicaSet]) -> Option<&'a ReplicaSet> {
    let template = bare(&deployment.spec.template);
    let hash = hash(deployment);
    let same =
        |s: &&&ReplicaSet| s.metadata.labels.get(HASH) == Some(&hash) || bare(&s.spec.template) == template;
    sets.iter().find(same).copied()
}

/// A template without the label that tells its ReplicaSet's pods from others, and without empty metadata.
fn bare(template: &Value) -> Value {
    let mut template = template.clone();
    if let Some(labels) = template["metadata"]["labels"].as_object_mut() {
        labels.remove(HASH);
    }
    if let Some(metadata) = template["metadata"].as_object_mut() {
        metadata.retain(|_, v| !v.is_null() && *v != json!({}));
    }
    template
}

/// Letters and digits without vowels, so that no hash spells a word (k8s.io/apimachinery/util/rand).
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// The template's hash: FNV-1a over its canonical text and the collision count, each decimal digit as a
/// letter, as kube-controller-manager spells it.
pub(super) fn hash(deployment: &Deployment) -> String {
    let mut text = String::new();
    canonical(&bare(&deployment.spec.template), &mut text);
    if let Some(collisions) = deployment.status.collision_count {
        text.push_str(&collisions.to_string());
    }
    let fnv = text.bytes().fold(0x811c_9dc5_u32, |h, byte| (h ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let letter =
        |digit: u8| ALPHABET.get(usize::from(digit) % ALPHABET.len()).map_or('b', |c| char::from(*c));
    fnv.to_string().bytes().map(letter).collect()
}

/// JSON with sorted keys, whatever order the map keeps.
fn canonical(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => {
            let mut fields: Vec<_> = map.iter().collect();
            fields.sort_by_key(|(key, _)| *key);
            out.push('{');
            for (key, field) in fields {
                out.push_str(&Value::from(key.as_str()).to_string());
                out.push(':');
                canonical(field, out);
                out.push(',');
            }
            out.push('}');
        }
        Value::Array(list) => {
            out.push('[');
            for item in list {
                canonical(item, out);
                out.push(',');
            }
            out.push(']');
        }
        scalar => out.push_str(&scalar.to_string()),
    }
}

impl Rollout<'_> {
    /// The revision that the latest template has or gets.
    fn revision(&self) -> i64 {
        let next = self.old().map(of).max().unwrap_or(0) + 1;
        self.latest.map_or(next, |latest| of(latest).max(next))
    }

    /// Makes the ReplicaSet of a new template. A foreign set of the same name is a collision of hashes: the
    /// count goes into the status, and the next decision has another hash.
    pub(super) fn start(&self, world: &World, status: &mut DeploymentStatus) -> Vec<Write> {
        let deployment = self.deployment;
        let meta = &deployment.metadata;
        let hash = hash(deployment);
        let name = format!("{}-{hash}", meta.name);
        if world.get::<ReplicaSet>(&ObjectName::new(&meta.namespace, &name)).is_some() {
            status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
            return Vec::new();
        }
        let replicas = self.first_size();
        let mut template = deployment.spec.template.clone();
        template["metadata"]["labels"][HASH] = json!(hash);
        let mut annotations = self.handed_down();
        annotations.extend(self.sizes().as_object().cloned().unwrap_or_default());
        let revision = self.revision().to_string();
        annotations.insert(REVISION.into(), json!(revision));
        let match_expressions = deployment.spec.selector.match_expressions.iter().map(|e| {
            let mut requirement = json!({"key": e.key, "operator": e.operator});
            if !e.values.is_empty() {
                requirement["values"] = json!(e.values);
            }
            requirement
        });
        let mut selector = json!({"matchLabels": deployment.spec.selector.match_labels});
        selector["matchLabels"][HASH] = json!(hash);
        if !deployment.spec.selector.match_expressions.is_empty() {
            selector["matchExpressions"] = match_expressions.collect();
        }
        let mut object = json!({
            "apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": {
                "name": name, "namespace": meta.namespace, "labels": template["metadata"]["labels"],
                "annotations": annotations,
                "ownerReferences": [OwnerReference::controller(Kind::Deployment, meta)],
            },
            "spec": {"replicas": replicas, "selector": selector, "template": template},
        });
        if deployment.spec.min_ready_seconds > 0 {
            object["spec"]["minReadySeconds"] = json!(deployment.spec.min_ready_seconds);
        }
        if deployment.spec.progress_deadline_seconds.is_some() {
            self.set_condition(
                status,
                Condition {
                    kind: "Progressing".into(),
                    status: "True".into(),
                    reason: "NewReplicaSetCreated".into(),
                    message: format!("Created new replica set \"{name}\""),
                    ..Condition::default()
                },
            );
        }
        let done = (replicas > 0).then(|| self.scaled_notice(&name, 0, replicas));
        let mut writes = vec![Write::Create { kind: Kind::ReplicaSet, object, done }];
        writes.extend(self.publish_revision(&revision));
        writes
    }

    fn handed_down(&self) -> serde_json::Map<String, Value> {
        let annotations = self.deployment.metadata.annotations.iter();
        annotations.filter(|(k, _)| !OWN.contains(&k.as_str())).map(|(k, v)| (k.clone(), json!(v))).collect()
    }

    fn publish_revision(&self, revision: &str) -> Option<Write> {
        let meta = &self.deployment.metadata;
        let patch = json!({"metadata": {"annotations": {REVISION: revision}}});
        (meta.annotations.get(REVISION).map(String::as_str) != Some(revision))
            .then(|| Write::patch(Kind::Deployment, meta, patch))
    }

    /// Keeps the latest set's revision the highest one (a rollback makes an old set the latest again), and
    /// hands the Deployment's annotations and minReadySeconds down.
    pub(super) fn revise(&self) -> Vec<Write> {
        let Some(latest) = self.latest else { return Vec::new() };
        let revision = self.revision().to_string();
        let known = |key: &str| latest.metadata.annotations.get(key);
        let mut annotations = self.handed_down();
        annotations.retain(|key, value| known(key).map(String::as_str) != value.as_str());
        if known(REVISION) != Some(&revision) {
            let mut history: Vec<&str> = known(HISTORY).map(|h| h.split(',').collect()).unwrap_or_default();
            history.extend(known(REVISION).map(String::as_str));
            if !history.is_empty() {
                annotations.insert(HISTORY.into(), json!(history.join(",")));
            }
            annotations.insert(REVISION.into(), json!(revision));
        }
        let mut patch = json!({});
        if !annotations.is_empty() {
            patch["metadata"]["annotations"] = Value::Object(annotations);
        }
        if latest.spec.min_ready_seconds != self.deployment.spec.min_ready_seconds {
            patch["spec"]["minReadySeconds"] = json!(self.deployment.spec.min_ready_seconds);
        }
        let mut writes = Vec::new();
        if patch != json!({}) {
            writes.push(Write::patch(Kind::ReplicaSet, &latest.metadata, patch));
        }
        writes.extend(self.publish_revision(&revision));
        writes
    }
}
