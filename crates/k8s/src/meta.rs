//! What all objects share.

use serde::{Deserialize, Deserializer};
use types::{Labels, ObjectName};

/// A kind that the API serves: where it is and how its objects are named.
pub trait Object {
    const GROUP: &'static str;
    const VERSION: &'static str;
    const KIND: &'static str;
    const PLURAL: &'static str;

    fn meta(&self) -> &Meta;
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Meta {
    #[serde(deserialize_with = "null_is_default")]
    pub name: String,
    #[serde(deserialize_with = "null_is_default")]
    pub namespace: String,
    #[serde(deserialize_with = "null_is_default")]
    pub uid: String,
    pub resource_version: Option<String>,
    #[serde(deserialize_with = "null_is_default")]
    pub labels: Labels,
    #[serde(deserialize_with = "null_is_default")]
    pub annotations: Annotations,
    pub creation_timestamp: Option<String>,
    pub deletion_timestamp: Option<String>,
}

impl Meta {
    pub fn object_name(&self) -> ObjectName {
        ObjectName::new(&self.namespace, &self.name)
    }
}

/// The annotations that mean something here; the others (often kilobytes) are skipped while parsing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Annotations {
    /// [`types::wire::VTEP_MAC_ANNOTATION`]
    #[serde(rename = "plumb.dev/vtep-mac")]
    pub vtep_mac: Option<String>,
    /// [`types::wire::SOURCES_ANNOTATION`]
    #[serde(rename = "plumb.dev/allowed-sources")]
    pub allowed_sources: Option<String>,
    /// There on mirror pods alone: what a kubelet shows of a static pod (pkg/kubelet/types/constants.go).
    #[serde(rename = "kubernetes.io/config.mirror")]
    pub config_mirror: Option<String>,
    /// The static pod's uid, which is the hash of its manifest.
    #[serde(rename = "kubernetes.io/config.hash")]
    pub config_hash: Option<String>,
}

/// Go writes an empty required list as `null` (`"endpoints": null`).
pub(crate) fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Implements [`Object`] for a struct with a `metadata` field.
macro_rules! object {
    ($type:ty, $group:literal, $version:literal, $kind:literal, $plural:literal) => {
        impl $crate::Object for $type {
            const GROUP: &'static str = $group;
            const VERSION: &'static str = $version;
            const KIND: &'static str = $kind;
            const PLURAL: &'static str = $plural;

            fn meta(&self) -> &$crate::Meta {
                &self.metadata
            }
        }
    };
}
pub(crate) use object;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_annotations_are_those_of_the_wire() {
        let (mac, sources) = (types::wire::VTEP_MAC_ANNOTATION, types::wire::SOURCES_ANNOTATION);
        let json = format!(r#"{{"annotations":{{"{mac}":"m","x":"y","{sources}":"s"}}}}"#);
        let meta: Meta = serde_json::from_str(&json).unwrap();
        assert_eq!(meta.annotations.vtep_mac.as_deref(), Some("m"));
        assert_eq!(meta.annotations.allowed_sources.as_deref(), Some("s"));
    }

    #[test]
    fn null_is_absent() {
        let meta: Meta =
            serde_json::from_str(r#"{"name":"a","namespace":null,"labels":null,"annotations":null}"#)
                .unwrap();
        assert_eq!(meta, Meta { name: "a".into(), ..Meta::default() });
    }
}
