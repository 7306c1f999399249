//! `/openapi/v3`: the shapes of the kinds with what kubectl needs of them: merge keys for patches, and that
//! PATCH knows `fieldValidation` (without that, `kubectl apply` refuses to validate).

use std::collections::BTreeSet;

use http::Response;
use serde_json::{Map, Value, json};

use crate::api::Body;
use crate::kind::{KINDS, Kind};
use crate::response;
use crate::schema::{Field, Merge, Struct, Type, named, type_name};

/// The answer to an OpenAPI path, if it is one that is had here.
pub(crate) fn answer(steps: &[&str]) -> Option<Response<Body>> {
    match steps {
        ["openapi", "v3"] => {
            let paths: Map<_, _> = versions()
                .into_iter()
                .map(|path| {
                    let url = format!("/openapi/v3/{path}?hash={}", env!("CARGO_PKG_VERSION"));
                    (path, json!({"serverRelativeURL": url}))
                })
                .collect();
            Some(response::json(200, &json!({"paths": paths})))
        }
        ["openapi", "v3", "api", "v1"] => Some(document("")),
        ["openapi", "v3", "apis", group, "v1"] if KINDS.iter().any(|kind| kind.group == *group) => {
            Some(document(group))
        }
        ["openapi", "v2"] => Some(older()),
        _ => None,
    }
}

/// An empty document of version 2, in the only encoding that kubectl asks for: field 1 of openapi.v2.Document is
/// "2.0". kubectl wants it for a manifest of kind List, skips what it does not find there (kubectl,
/// pkg/util/openapi/validation), and has the items judged by the server, one by one. Without it, it refuses Lists.
fn older() -> Response<Body> {
    response::whole(200, "application/com.github.proto-openapi.spec.v2.v1.0+protobuf", &b"\x0a\x032.0"[..])
}

fn versions() -> BTreeSet<String> {
    KINDS
        .iter()
        .map(
            |kind| {
                if kind.group.is_empty() { "api/v1".to_owned() } else { format!("apis/{}/v1", kind.group) }
            },
        )
        .collect()
}

fn document(group: &str) -> Response<Body> {
    let mut paths = Map::new();
    let mut needed = BTreeSet::new();
    let mut schemas = Map::new();
    for kind in KINDS.into_iter().filter(|kind| kind.group == group) {
        let (collection, object) = urls(kind);
        paths.insert(collection, json!({"post": operation(kind, "post")}));
        paths.insert(
            object,
            json!({"get": operation(kind, "get"), "put": operation(kind, "put"), "patch": operation(kind, "patch"),
                "delete": operation(kind, "delete")}),
        );
        let shape = type_name(kind);
        gather(shape, &mut needed);
    }
    for name in needed {
        if let Some(shape) = named(name) {
            schemas.insert(shape.definition.to_owned(), schema(shape));
        }
    }
    response::json(
        200,
        &json!({"openapi": "3.0.0", "info": {"title": "Plumb", "version": env!("CARGO_PKG_VERSION")},
            "paths": paths, "components": {"schemas": schemas}}),
    )
}

fn urls(kind: &Kind) -> (String, String) {
    let base = if kind.group.is_empty() { "/api/v1".to_owned() } else { format!("/apis/{}/v1", kind.group) };
    let scope = if kind.namespaced { "/namespaces/{namespace}" } else { "" };
    let collection = format!("{base}{scope}/{}", kind.plural);
    let object = format!("{collection}/{{name}}");
    (collection, object)
}

fn operation(kind: &Kind, method: &str) -> Value {
    let parameters: Vec<_> = ["dryRun", "fieldManager", "fieldValidation", "pretty"]
        .into_iter()
        .filter(|_| method != "get")
        .map(|name| json!({"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": true}}))
        .collect();
    json!({
        "operationId": format!("{method}{}", kind.kind),
        "x-kubernetes-action": method,
        "x-kubernetes-group-version-kind": {"group": kind.group, "version": kind.version, "kind": kind.kind},
        "parameters": parameters,
        "responses": {"200": {"description": "OK"}},
    })
}

fn gather(name: &'static str, needed: &mut BTreeSet<&'static str>) {
    if !needed.insert(name) {
        return;
    }
    for field in named(name).map(|shape| shape.fields.as_slice()).unwrap_or_default() {
        if let Some(inner) = inner_struct(&field.ty) {
            gather(inner, needed);
        }
    }
}

fn inner_struct(ty: &Type) -> Option<&'static str> {
    match ty {
        Type::List(inner) | Type::Map(inner) => inner_struct(inner),
        Type::Struct(name) => Some(name),
        _ => None,
    }
}

fn schema(shape: &Struct) -> Value {
    let properties: Map<_, _> =
        shape.fields.iter().map(|field| (field.name.to_owned(), property(field))).collect();
    let mut schema = json!({"type": "object", "properties": properties});
    let kind = KINDS.into_iter().find(|kind| type_name(kind) == shape.name);
    if let (Some(kind), Value::Object(map)) = (kind, &mut schema) {
        let names = json!([{"group": kind.group, "version": kind.version, "kind": kind.kind}]);
        map.insert("x-kubernetes-group-version-kind".to_owned(), names);
    }
    schema
}

fn property(field: &Field) -> Value {
    let mut property = type_schema(&field.ty);
    let Value::Object(map) = &mut property else { return property };
    match field.merge {
        Merge::ByKey(key) => {
            map.insert("x-kubernetes-list-type".to_owned(), "map".into());
            map.insert("x-kubernetes-list-map-keys".to_owned(), json!([key]));
            map.insert("x-kubernetes-patch-merge-key".to_owned(), key.into());
            map.insert("x-kubernetes-patch-strategy".to_owned(), "merge".into());
        }
        Merge::Set => {
            map.insert("x-kubernetes-list-type".to_owned(), "set".into());
            map.insert("x-kubernetes-patch-strategy".to_owned(), "merge".into());
        }
        Merge::RetainKeys => _ = map.insert("x-kubernetes-patch-strategy".to_owned(), "retainKeys".into()),
        Merge::Replace if matches!(field.ty, Type::List(_)) => {
            map.insert("x-kubernetes-list-type".to_owned(), "atomic".into());
        }
        Merge::Replace => {}
    }
    property
}

fn type_schema(ty: &Type) -> Value {
    match ty {
        Type::String => json!({"type": "string"}),
        Type::Bool => json!({"type": "boolean"}),
        Type::Int32 => json!({"type": "integer", "format": "int32"}),
        Type::Int64 => json!({"type": "integer", "format": "int64"}),
        Type::Float => json!({"type": "number", "format": "double"}),
        Type::Quantity => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
        Type::IntOrString => {
            json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
        }
        Type::Time | Type::MicroTime => json!({"type": "string", "format": "date-time"}),
        Type::Bytes => json!({"type": "string", "format": "byte"}),
        Type::Any => json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}),
        Type::List(item) => json!({"type": "array", "items": type_schema(item)}),
        Type::Map(item) => json!({"type": "object", "additionalProperties": type_schema(item)}),
        Type::Struct(name) => {
            let definition = named(name).map_or("", |shape| shape.definition);
            // In allOf, because what stands beside a bare $ref is ignored.
            json!({"allOf": [{"$ref": format!("#/components/schemas/{definition}")}]})
        }
    }
}
