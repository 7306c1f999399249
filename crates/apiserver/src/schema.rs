//! The shapes of objects, read from `schema/kinds.txt`: one source for validation, patches and OpenAPI.

pub(crate) mod check;

use std::collections::BTreeMap;
use std::sync::OnceLock;

use crate::kind::Kind;

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Type {
    String,
    Bool,
    Int32,
    Int64,
    Float,
    Quantity,
    IntOrString,
    Time,
    MicroTime,
    Bytes,
    /// Known by name only.
    Any,
    List(Box<Type>),
    Map(Box<Type>),
    Struct(&'static str),
}

/// How a strategic merge patch treats the field.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Merge {
    Replace,
    /// A list of objects told apart by this field.
    ByKey(&'static str),
    /// A list of primitives merged as a set.
    Set,
    /// A map of which only the keys named in the patch stay (KEP: `$retainKeys`).
    RetainKeys,
}

#[derive(Debug)]
pub(crate) struct Field {
    pub name: &'static str,
    pub ty: Type,
    pub merge: Merge,
}

#[derive(Debug)]
pub(crate) struct Struct {
    pub name: &'static str,
    /// `io.k8s.api.core.v1.Pod`.
    pub definition: &'static str,
    pub fields: Vec<Field>,
}

impl Struct {
    pub(crate) fn field(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|field| field.name == name)
    }
}

/// Every type by name.
pub(crate) fn all() -> &'static BTreeMap<&'static str, Struct> {
    static TYPES: OnceLock<BTreeMap<&'static str, Struct>> = OnceLock::new();
    TYPES.get_or_init(|| parse(include_str!("schema/kinds.txt")))
}

pub(crate) fn named(name: &str) -> Option<&'static Struct> {
    all().get(name)
}

/// The name of a kind's type; the two Events share a kind but not a shape.
pub(crate) fn type_name(kind: &Kind) -> &'static str {
    if kind.group == "events.k8s.io" { "EventsV1Event" } else { kind.kind }
}

fn parse(text: &'static str) -> BTreeMap<&'static str, Struct> {
    let mut types: Vec<Struct> = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let mut words = line.split_whitespace();
        let (Some(name), Some(second)) = (words.next(), words.next()) else { continue };
        if !line.starts_with(' ') {
            types.push(Struct { name, definition: second, fields: Vec::new() });
        } else if let Some(last) = types.last_mut() {
            let merge = match words.next() {
                Some("set") => Merge::Set,
                Some("retainKeys") => Merge::RetainKeys,
                Some(word) => word.strip_prefix("merge=").map_or(Merge::Replace, Merge::ByKey),
                None => Merge::Replace,
            };
            last.fields.push(Field { name, ty: parse_type(second), merge });
        }
    }
    types.into_iter().map(|t| (t.name, t)).collect()
}

fn parse_type(text: &'static str) -> Type {
    let inside = |open, close| text.strip_prefix(open).and_then(|t: &'static str| t.strip_suffix(close));
    if let Some(item) = inside('[', ']') {
        return Type::List(Box::new(parse_type(item)));
    }
    if let Some(value) = inside('{', '}') {
        return Type::Map(Box::new(parse_type(value)));
    }
    match text {
        "string" => Type::String,
        "bool" => Type::Bool,
        "int32" => Type::Int32,
        "int64" => Type::Int64,
        "float" => Type::Float,
        "quantity" => Type::Quantity,
        "intstr" => Type::IntOrString,
        "time" => Type::Time,
        "microtime" => Type::MicroTime,
        "bytes" => Type::Bytes,
        "any" => Type::Any,
        name => Type::Struct(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn structs_of(ty: &Type) -> Option<&'static str> {
        match ty {
            Type::List(inner) | Type::Map(inner) => structs_of(inner),
            Type::Struct(name) => Some(name),
            _ => None,
        }
    }

    #[test]
    fn every_named_type_and_merge_key_exists() {
        for kind in crate::kind::KINDS {
            assert!(named(type_name(kind)).is_some(), "{}", kind.kind);
        }
        for owner in all().values() {
            for field in &owner.fields {
                let inner = structs_of(&field.ty);
                assert!(inner.is_none_or(|n| named(n).is_some()), "{}.{}: {inner:?}", owner.name, field.name);
                if let (Merge::ByKey(key), Some(inner)) = (field.merge, inner.and_then(named)) {
                    assert!(inner.field(key).is_some(), "{}.{} merges by {key}", owner.name, field.name);
                }
            }
        }
    }
}
