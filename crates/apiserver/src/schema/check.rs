//! Does a JSON tree have the shape of its kind? Messages are those of kube-apiserver's decoder.

use serde_json::{Map, Value};

use super::{Struct, Type, named, type_name};
use crate::kind::Kind;
use crate::status::Failure;

/// What `?fieldValidation=` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Strictness {
    Strict,
    Warn,
    Ignore,
}

/// Drops nulls and unknown fields. Returns the paths of unknown fields under `Warn`, refuses them under
/// `Strict`, and refuses values of the wrong type always.
pub(crate) fn conform(
    kind: &Kind,
    object: &mut Value,
    strictness: Strictness,
) -> Result<Vec<String>, Failure> {
    let Some(shape) = named(type_name(kind)) else { return Ok(Vec::new()) };
    let mut walk = Walk { path: String::new(), go_path: String::new(), unknown: Vec::new() };
    let cannot = |why: String| {
        let message = format!(
            "{} in version \"{}\" cannot be handled as a {}: {why}",
            kind.kind, kind.version, kind.kind
        );
        Failure::bad_request(message)
    };
    walk.structure(shape, object).map_err(cannot)?;
    if strictness == Strictness::Strict && !walk.unknown.is_empty() {
        let list: Vec<_> = walk.unknown.iter().map(|path| format!("unknown field \"{path}\"")).collect();
        return Err(cannot(format!("strict decoding error: {}", list.join(", "))));
    }
    Ok(if strictness == Strictness::Ignore { Vec::new() } else { walk.unknown })
}

struct Walk {
    /// `spec.containers[0].image`, as strict errors have it.
    path: String,
    /// `spec.containers.image`, as Go's decoder has it.
    go_path: String,
    unknown: Vec<String>,
}

impl Walk {
    fn structure(&mut self, shape: &Struct, value: &mut Value) -> Result<(), String> {
        let Value::Object(map) = value else { return Err(self.mismatch("", value, shape.name)) };
        let (path, go_path) = (self.path.len(), self.go_path.len());
        let mut unknown = Vec::new();
        for (name, value) in map.iter_mut() {
            self.push(name);
            match shape.field(name) {
                None => unknown.push(name.clone()),
                Some(field) => self.value(shape.name, &field.ty, value)?,
            }
            if shape.field(name).is_none() {
                self.unknown.push(self.path.clone());
            }
            self.path.truncate(path);
            self.go_path.truncate(go_path);
        }
        map.retain(|name, value| !value.is_null() && !unknown.contains(name));
        Ok(())
    }

    fn push(&mut self, name: &str) {
        for path in [&mut self.path, &mut self.go_path] {
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(name);
        }
    }

    fn value(&mut self, owner: &str, ty: &Type, value: &mut Value) -> Result<(), String> {
        if value.is_null() {
            return Ok(());
        }
        match (ty, &mut *value) {
            (Type::Any, _)
            | (Type::Bool, Value::Bool(_))
            | (Type::Float | Type::Quantity, Value::Number(_))
            | (Type::String | Type::IntOrString, Value::String(_)) => Ok(()),
            (Type::Int32, Value::Number(n)) if n.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) => Ok(()),
            (Type::IntOrString, Value::Number(n)) if n.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) => {
                Ok(())
            }
            (Type::Int64, Value::Number(n)) if n.is_i64() => Ok(()),
            (Type::Time | Type::MicroTime, Value::String(text)) => match crate::moment::parse(text) {
                Some(_) => Ok(()),
                None => Err(format!(
                    "parsing time {text:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse {text:?} as \"2006\""
                )),
            },
            (Type::Quantity, Value::String(text)) if is_quantity(text) => Ok(()),
            (Type::Quantity, Value::String(_)) => Err("quantities must match the regular expression \
                 '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
                .to_owned()),
            (Type::Bytes, Value::String(text)) => {
                use base64::Engine;
                let decoded = base64::engine::general_purpose::STANDARD.decode(text.as_bytes());
                decoded.map(|_| ()).map_err(|e| format!("illegal base64 data: {e}"))
            }
            (Type::List(item), Value::Array(items)) => self.list(owner, item, items),
            (Type::Map(item), Value::Object(map)) => self.map(owner, item, map),
            (Type::Struct(name), Value::Object(_)) => {
                named(name).map_or(Ok(()), |shape| self.structure(shape, value))
            }
            _ => Err(self.mismatch(owner, value, &go_type(ty))),
        }
    }

    fn list(&mut self, owner: &str, item: &Type, items: &mut [Value]) -> Result<(), String> {
        let length = self.path.len();
        for (index, value) in items.iter_mut().enumerate() {
            self.path.push_str(&format!("[{index}]"));
            self.value(owner, item, value)?;
            self.path.truncate(length);
        }
        Ok(())
    }

    fn map(&mut self, owner: &str, item: &Type, map: &mut Map<String, Value>) -> Result<(), String> {
        let (path, go_path) = (self.path.len(), self.go_path.len());
        for (key, value) in map.iter_mut() {
            self.path.push_str(&format!(".{key}"));
            self.value(owner, item, value)?;
            if value.is_null() {
                // Go decodes null into the zero value and keeps the key.
                *value = if matches!(item, Type::String | Type::Bytes) { "".into() } else { Value::Null };
            }
            self.path.truncate(path);
            self.go_path.truncate(go_path);
        }
        Ok(())
    }

    fn mismatch(&self, owner: &str, value: &Value, wanted: &str) -> String {
        let found = match value {
            Value::Null => "null",
            Value::Bool(_) => "bool",
            Value::Number(n) if n.is_f64() && wanted.starts_with("int") => {
                return self.unmarshal(owner, &format!("number {n}"), wanted);
            }
            Value::Number(n) if wanted.starts_with("int") => {
                return self.unmarshal(owner, &format!("number {n}"), wanted);
            }
            Value::Number(_) => "number",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        self.unmarshal(owner, found, wanted)
    }

    fn unmarshal(&self, owner: &str, found: &str, wanted: &str) -> String {
        if owner.is_empty() && self.go_path.is_empty() {
            return format!("json: cannot unmarshal {found} into Go value of type v1.{wanted}");
        }
        format!(
            "json: cannot unmarshal {found} into Go struct field {owner}.{} of type {wanted}",
            self.go_path
        )
    }
}

fn go_type(ty: &Type) -> String {
    match ty {
        Type::String => "string".to_owned(),
        Type::Bool => "bool".to_owned(),
        Type::Int32 => "int32".to_owned(),
        Type::Int64 => "int64".to_owned(),
        Type::Float => "float64".to_owned(),
        Type::Quantity => "resource.Quantity".to_owned(),
        Type::IntOrString => "intstr.IntOrString".to_owned(),
        Type::Time => "v1.Time".to_owned(),
        Type::MicroTime => "v1.MicroTime".to_owned(),
        Type::Bytes => "[]uint8".to_owned(),
        Type::Any => "interface {}".to_owned(),
        Type::List(item) => format!("[]{}", go_type(item)),
        Type::Map(item) => format!("map[string]{}", go_type(item)),
        Type::Struct(name) => format!("v1.{name}"),
    }
}

/// `100m`, `1.5Gi`, `1e3`: a decimal number with a suffix (apimachinery, pkg/api/resource).
fn is_quantity(text: &str) -> bool {
    let number = text.trim_start_matches(['+', '-']);
    let digits = number.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let (number, suffix) = number.split_at(number.len() - digits.len());
    let exponent = suffix.strip_prefix(['e', 'E']).is_some_and(|e| e.parse::<i32>().is_ok());
    let suffixes = ["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    number.parse::<f64>().is_ok() && (exponent || suffixes.contains(&suffix))
}
