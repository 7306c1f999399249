//! The API's way to say no: a `Status` object, as kubectl and kube-rs read it.

use serde_json::{Value, json};

/// A refused request: what, why, and where in the object.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    pub code: u16,
    pub reason: &'static str,
    pub message: String,
    pub details: Option<Value>,
}

impl Failure {
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: None }
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// An unknown path.
    pub fn no_such_path() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource")
    }

    /// An unknown object, `pods "web" not found`.
    pub fn not_found(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} \"{name}\" not found", qualified(resource, group));
        Self::new(404, "NotFound", message)
            .with_details(json!({"name": name, "group": group, "kind": resource}))
    }

    pub fn already_exists(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", qualified(resource, group));
        let details = json!({"name": name, "group": group, "kind": resource});
        Self::new(409, "AlreadyExists", message).with_details(details)
    }

    pub fn conflict(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let what = qualified(resource, group);
        let message = format!("Operation cannot be fulfilled on {what} \"{name}\": {why}");
        let details = json!({"name": name, "group": group, "kind": resource});
        Self::new(409, "Conflict", message).with_details(details)
    }

    pub fn forbidden(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let message = format!("{} \"{name}\" is forbidden: {why}", qualified(resource, group));
        let details = json!({"name": name, "group": group, "kind": resource});
        Self::new(403, "Forbidden", message).with_details(details)
    }

    /// A resourceVersion or continue token that is no longer held: list again.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// Something kube-apiserver has and this one has not; `instead` says what to do.
    pub fn unsupported(what: &str, instead: &str) -> Self {
        Self::new(405, "MethodNotAllowed", format!("the lab's API does not have {what}: {instead}"))
    }

    /// A body in another encoding than JSON.
    pub fn media_type(content_type: &str) -> Self {
        let message = format!(
            "the lab's API reads JSON, not {content_type:?}: write the object to a file and use \
             `kubectl apply -f FILE` or `kubectl create -f FILE` instead"
        );
        Self::new(415, "UnsupportedMediaType", message)
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(500, "InternalError", message)
    }

    pub fn with_details(mut self, details: Value) -> Self {
        self.details = Some(details);
        self
    }

    /// The `Status` object.
    pub fn to_value(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if let (Some(details), Some(map)) = (&self.details, status.as_object_mut()) {
            map.insert("details".to_owned(), details.clone());
        }
        status
    }
}

/// `deployments.apps`, or `pods` of the core group.
pub(crate) fn qualified(resource: &str, group: &str) -> String {
    if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") }
}
