//! Where an object lives in the API.

use control::Kind;
use types::ObjectName;

/// The collection of a kind, in one namespace or over all.
pub(crate) fn collection(kind: Kind, namespace: &str) -> String {
    let version = kind.api_version();
    let root = if version.contains('/') { "apis" } else { "api" };
    let plural = kind.plural();
    if namespace.is_empty() {
        format!("/{root}/{version}/{plural}")
    } else {
        format!("/{root}/{version}/namespaces/{namespace}/{plural}")
    }
}

pub(crate) fn object(kind: Kind, name: &ObjectName) -> String {
    format!("{}/{}", collection(kind, &name.namespace), name.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_place() {
        let pod = object(Kind::Pod, &ObjectName::new("shop", "web"));
        assert_eq!(pod, "/api/v1/namespaces/shop/pods/web");
        let set = object(Kind::ReplicaSet, &ObjectName::new("shop", "web"));
        assert_eq!(set, "/apis/apps/v1/namespaces/shop/replicasets/web");
        assert_eq!(object(Kind::Node, &ObjectName::cluster("node1")), "/api/v1/nodes/node1");
    }
}
