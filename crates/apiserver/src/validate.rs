//! Is an object one that the cluster can work with? Complaints are kube-apiserver's, field by field.

use serde_json::Value;

use crate::invalid::Complaints;
use crate::kind::Kind;
use crate::object::text;

/// A new object.
pub(crate) fn create(kind: &Kind, object: &Value, complaints: &mut Complaints) {
    let _ = kind;
    if text(object, &["metadata", "name"]).is_empty() {
        complaints.required("metadata.name", "name or generateName is required");
    }
}

/// A changed object.
pub(crate) fn update(kind: &Kind, new: &Value, _before: &Value, complaints: &mut Complaints) {
    create(kind, new, complaints);
}
