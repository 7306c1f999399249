//! What is wrong with an object, field by field, in kube-apiserver's words (apimachinery, field/errors.go).

use serde_json::{Value, json};

use crate::kind::Kind;
use crate::status::Failure;

/// One complaint.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct FieldError {
    pub field: String,
    pub cause: &'static str,
    pub body: String,
}

/// Collects complaints while an object is walked.
#[derive(Debug, Default)]
pub(crate) struct Complaints(pub Vec<FieldError>);

impl Complaints {
    fn push(&mut self, field: &str, cause: &'static str, body: String) {
        self.0.push(FieldError { field: field.to_owned(), cause, body });
    }

    pub(crate) fn required(&mut self, field: &str, detail: &str) {
        let body =
            if detail.is_empty() { "Required value".to_owned() } else { format!("Required value: {detail}") };
        self.push(field, "FieldValueRequired", body);
    }

    pub(crate) fn invalid(&mut self, field: &str, value: &Value, detail: &str) {
        self.push(field, "FieldValueInvalid", format!("Invalid value: {value}: {detail}"));
    }

    pub(crate) fn unsupported(&mut self, field: &str, value: &Value, allowed: &[&str]) {
        let allowed: Vec<_> = allowed.iter().map(|word| format!("\"{word}\"")).collect();
        let body = format!("Unsupported value: {value}: supported values: {}", allowed.join(", "));
        self.push(field, "FieldValueNotSupported", body);
    }

    pub(crate) fn duplicate(&mut self, field: &str, value: &Value) {
        self.push(field, "FieldValueDuplicate", format!("Duplicate value: {value}"));
    }

    pub(crate) fn too_many(&mut self, field: &str, found: usize, most: usize) {
        let body = format!("Too many: {found}: must have at most {most} items");
        self.push(field, "FieldValueTooMany", body);
    }

    pub(crate) fn forbidden(&mut self, field: &str, detail: &str) {
        self.push(field, "FieldValueForbidden", format!("Forbidden: {detail}"));
    }

    /// All of them as one failure, or nothing to complain about.
    pub(crate) fn verdict(self, kind: &Kind, name: &str) -> Result<(), Failure> {
        let lines: Vec<_> = self.0.iter().map(|e| format!("{}: {}", e.field, e.body)).collect();
        let text = match lines.as_slice() {
            [] => return Ok(()),
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let qualified = if kind.group.is_empty() {
            kind.kind.to_owned()
        } else {
            format!("{}.{}", kind.kind, kind.group)
        };
        let causes: Vec<_> =
            self.0.iter().map(|e| json!({"reason": e.cause, "message": e.body, "field": e.field})).collect();
        let details = json!({"name": name, "group": kind.group, "kind": kind.kind, "causes": causes});
        Err(Failure::new(422, "Invalid", format!("{qualified} \"{name}\" is invalid: {text}"))
            .with_details(details))
    }
}
