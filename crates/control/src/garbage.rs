//! Garbage collection by owner: what nobody owns any more goes (background); an owner that is deleted in the
//! foreground waits for its dependents; an owner that is deleted with orphans lets them go free.

use serde_json::json;
use types::ObjectName;

use crate::kind::Kind;
use crate::view::{Meta, OwnerReference};
use crate::world::World;
use crate::write::{Decision, Propagation, Target, Write};

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

pub fn decide(world: &World, kind: Kind, name: &ObjectName) -> Decision {
    let Some(meta) = world.meta(kind, name) else { return Decision::default() };
    let has = |finalizer: &str| meta.finalizers.iter().any(|f| f == finalizer);
    Decision::writes(match meta.terminating() {
        true if has(ORPHAN) => orphan(world, kind, meta),
        true if has(FOREGROUND) => foreground(world, kind, meta),
        true => Vec::new(),
        false => collect(world, kind, meta),
    })
}

/// An owner counts as gone when its kind is known here and no object has its uid. Owners of other kinds are
/// taken to live: better a leftover than a wrong deletion.
fn gone(world: &World, owner: &OwnerReference) -> bool {
    Kind::of_reference(&owner.api_version, &owner.kind).is_some() && world.by_uid(&owner.uid).is_none()
}

fn collect(world: &World, kind: Kind, meta: &Meta) -> Vec<Write> {
    let owners = &meta.owner_references;
    if owners.is_empty() {
        return Vec::new();
    }
    if owners.iter().all(|o| gone(world, o)) {
        return vec![Write::Collect { target: Target::of(kind, meta), owners: owners.clone() }];
    }
    let dying = |o: &OwnerReference| {
        world
            .by_uid(&o.uid)
            .is_some_and(|(_, owner)| owner.terminating() && owner.finalizers.iter().any(|f| f == FOREGROUND))
    };
    // With a foreground owner the dependent goes in the same way, so that the whole tree waits for its leaves.
    if owners.iter().all(|o| gone(world, o) || dying(o)) {
        return vec![Write::Delete {
            target: Target::of(kind, meta),
            propagation: propagation(world, meta),
            done: None,
        }];
    }
    Vec::new()
}

fn propagation(world: &World, meta: &Meta) -> Propagation {
    match world.dependents(&meta.uid).next() {
        Some(_) => Propagation::Foreground,
        None => Propagation::Background,
    }
}

fn foreground(world: &World, kind: Kind, meta: &Meta) -> Vec<Write> {
    let mut writes = Vec::new();
    let mut blocked = false;
    for (dependent_kind, dependent) in world.dependents(&meta.uid) {
        let blocks = |o: &OwnerReference| o.uid == meta.uid && o.block_owner_deletion;
        blocked |= dependent.owner_references.iter().any(blocks);
        if !dependent.terminating() {
            writes.extend(collect(world, dependent_kind, dependent));
        }
    }
    if !blocked {
        writes.push(without(kind, meta, FOREGROUND));
    }
    writes
}

fn orphan(world: &World, kind: Kind, meta: &Meta) -> Vec<Write> {
    let mut writes: Vec<Write> = world
        .dependents(&meta.uid)
        .map(|(dependent_kind, dependent)| {
            let rest: Vec<_> = dependent.owner_references.iter().filter(|o| o.uid != meta.uid).collect();
            let patch = json!({"metadata": {"ownerReferences": rest}});
            Write::patch(dependent_kind, dependent, patch)
        })
        .collect();
    if writes.is_empty() {
        writes.push(without(kind, meta, ORPHAN));
    }
    writes
}

fn without(kind: Kind, meta: &Meta, finalizer: &str) -> Write {
    let rest: Vec<_> = meta.finalizers.iter().filter(|f| *f != finalizer).collect();
    let patch = json!({"metadata": {"resourceVersion": meta.resource_version, "finalizers": rest}});
    Write::patch(kind, meta, patch)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::memory::Memory;

    fn owned(api: &Memory, kind: Kind, name: &str) -> Value {
        let owner = api.object(kind, name);
        json!({"metadata": {"ownerReferences": [{
            "apiVersion": kind.api_version(), "kind": kind.name(), "controller": true,
            "blockOwnerDeletion": true,
            "name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"]}]}})
    }

    /// A Deployment of no replicas owns a ConfigMap, which owns another: three levels without other brains.
    fn tree() -> Memory {
        let mut api = Memory::default();
        api.apply(Kind::ServiceAccount, "shop/root", json!({}));
        let branch = owned(&api, Kind::ServiceAccount, "shop/root");
        api.apply(Kind::ConfigMap, "shop/branch", branch);
        let leaf = owned(&api, Kind::ConfigMap, "shop/branch");
        api.apply(Kind::ConfigMap, "shop/leaf", leaf);
        api.settle();
        api
    }

    #[test]
    fn background_takes_the_tree_down_after_its_root() {
        let mut api = tree();
        api.delete(Kind::ServiceAccount, "shop/root");
        assert!(!api.has(Kind::ServiceAccount, "shop/root"));
        api.settle();
        assert!(!api.has(Kind::ConfigMap, "shop/branch") && !api.has(Kind::ConfigMap, "shop/leaf"));
    }

    #[test]
    fn foreground_keeps_the_root_until_its_leaves_are_gone() {
        let mut api = tree();
        // A finalizer of somebody else holds the leaf.
        let mut leaf = api.object(Kind::ConfigMap, "shop/leaf").clone();
        leaf["metadata"]["finalizers"] = json!(["example.org/hold"]);
        api.apply(Kind::ConfigMap, "shop/leaf", leaf.clone());
        api.delete_with(Kind::ServiceAccount, "shop/root", FOREGROUND);
        api.settle();
        for (kind, name) in [(Kind::ServiceAccount, "shop/root"), (Kind::ConfigMap, "shop/branch")] {
            assert!(api.has(kind, name), "{name} waits");
        }
        api.remove(Kind::ConfigMap, "shop/leaf");
        api.settle();
        for (kind, name) in [(Kind::ServiceAccount, "shop/root"), (Kind::ConfigMap, "shop/branch")] {
            assert!(!api.has(kind, name), "{name} is gone");
        }
    }

    #[test]
    fn orphans_lose_their_owner_and_live() {
        let mut api = tree();
        api.delete_with(Kind::ServiceAccount, "shop/root", ORPHAN);
        api.settle();
        assert!(!api.has(Kind::ServiceAccount, "shop/root"));
        let branch = api.object(Kind::ConfigMap, "shop/branch");
        assert_eq!(branch["metadata"]["ownerReferences"], json!([]));
        assert!(api.has(Kind::ConfigMap, "shop/leaf"));
    }

    #[test]
    fn an_owner_of_a_kind_that_is_not_known_is_taken_to_live() {
        let mut api = Memory::default();
        let owner = json!([{"apiVersion": "example.org/v1", "kind": "Robot", "name": "r", "uid": "u-1"}]);
        api.apply(Kind::ConfigMap, "shop/c", json!({"metadata": {"ownerReferences": owner}}));
        api.settle();
        assert!(api.has(Kind::ConfigMap, "shop/c"));
    }
}
