//! Lets kube-rs list and watch our slim structs: it only needs to know where they are and their version.

use std::borrow::Cow;

use k8s::Object;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::NamespaceResourceScope;
use serde::{Deserialize, Deserializer};

/// `object` as it was sent; `meta` carries only what kube-rs reads.
#[derive(Clone, Debug)]
pub struct Slim<T> {
    meta: ObjectMeta,
    pub object: T,
}

impl<'de, T: Object + Deserialize<'de>> Deserialize<'de> for Slim<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let object = T::deserialize(deserializer)?;
        let meta =
            ObjectMeta { resource_version: object.meta().resource_version.clone(), ..ObjectMeta::default() };
        Ok(Self { meta, object })
    }
}

impl<T: Object> kube::Resource for Slim<T> {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        T::KIND.into()
    }

    fn group((): &()) -> Cow<'_, str> {
        T::GROUP.into()
    }

    fn version((): &()) -> Cow<'_, str> {
        T::VERSION.into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        T::PLURAL.into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}

#[cfg(test)]
mod tests {
    use kube::Resource;

    use super::*;

    #[test]
    fn urls_and_versions_are_what_the_api_serves() {
        assert_eq!(Slim::<k8s::Pod>::url_path(&(), None), "/api/v1/pods");
        assert_eq!(
            Slim::<k8s::EndpointSlice>::url_path(&(), None),
            "/apis/discovery.k8s.io/v1/endpointslices"
        );
        let pod: Slim<k8s::Pod> = serde_json::from_str(r#"{"metadata":{"resourceVersion":"42"}}"#).unwrap();
        assert_eq!(pod.meta().resource_version.as_deref(), Some("42"));
    }
}
