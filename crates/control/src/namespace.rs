//! Namespace deletion: everything in it is deleted, then its finalizer goes, and with it the namespace.

use types::ObjectName;

use crate::kind::Kind;
use crate::view::Namespace;
use crate::world::World;
use crate::write::{Decision, Propagation, Target, Write};

const FINALIZER: &str = "kubernetes";

pub fn decide(world: &World, name: &str) -> Decision {
    let Some(namespace) = world.named::<Namespace>(name) else { return Decision::default() };
    if !namespace.metadata.terminating() || !namespace.spec.finalizers.iter().any(|f| f == FINALIZER) {
        return Decision::default();
    }
    let inside: Vec<_> = world.metas().filter(|(kind, m)| kind.namespaced() && m.namespace == name).collect();
    if inside.is_empty() {
        let target = Target {
            kind: Kind::Namespace,
            name: ObjectName::cluster(name),
            uid: namespace.metadata.uid.clone(),
        };
        return Decision::writes(vec![
            Write::DeleteEvents { namespace: name.to_owned() },
            Write::Finalize { namespace: target },
        ]);
    }
    let deletions = inside.into_iter().filter(|(_, meta)| !meta.terminating()).map(|(kind, meta)| {
        Write::Delete { target: Target::of(kind, meta), propagation: Propagation::Background, done: None }
    });
    Decision::writes(deletions.collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::memory::Memory;

    #[test]
    fn a_namespace_goes_after_the_last_thing_in_it() {
        let mut api = Memory::default();
        api.apply(Kind::Namespace, "shop", json!({"spec": {"finalizers": ["kubernetes"]}}));
        api.apply(Kind::ConfigMap, "shop/c", json!({}));
        api.apply(Kind::ConfigMap, "other/c", json!({}));
        api.apply(Kind::Pod, "shop/web", json!({"spec": {"nodeName": "node1"}}));
        api.delete(Kind::Namespace, "shop");
        api.settle();
        assert!(!api.has(Kind::ConfigMap, "shop/c") && api.has(Kind::ConfigMap, "other/c"));
        // The pod ends with grace, and the namespace waits for its kubelet.
        assert!(api.has(Kind::Pod, "shop/web") && api.has(Kind::Namespace, "shop"));
        api.remove(Kind::Pod, "shop/web");
        api.settle();
        assert!(!api.has(Kind::Namespace, "shop"));
    }

    #[test]
    fn a_namespace_that_lives_is_left_alone() {
        let mut api = Memory::default();
        api.apply(Kind::Namespace, "shop", json!({"spec": {"finalizers": ["kubernetes"]}}));
        api.apply(Kind::ConfigMap, "shop/c", json!({}));
        api.settle();
        assert!(api.has(Kind::ConfigMap, "shop/c") && api.has(Kind::Namespace, "shop"));
    }
}
