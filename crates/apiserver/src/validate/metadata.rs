//! Names, labels and selectors (apimachinery, util/validation).

use serde_json::Value;

use crate::invalid::Complaints;
use crate::kind::Kind;
use crate::object::{at, list, text};

const LABEL_1123: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', \
    and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation \
    is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an \
    alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for \
    validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or \
    '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const QUALIFIED: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end \
    with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
    '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or \
    '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex \
    used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

pub(super) fn check(kind: &Kind, object: &Value, complaints: &mut Complaints) {
    let name = text(object, &["metadata", "name"]);
    if name.is_empty() {
        complaints.required("metadata.name", "name or generateName is required");
    } else {
        let why = match kind.kind {
            "Namespace" => label(name),
            "Service" => service_name(name),
            _ => subdomain(name),
        };
        if let Some(why) = why {
            complaints.invalid("metadata.name", &name.into(), &why);
        }
    }
    labels(at(object, &["metadata", "labels"]), "metadata.labels", complaints);
    let annotations = at(object, &["metadata", "annotations"]).and_then(Value::as_object);
    for key in annotations.into_iter().flatten().map(|(key, _)| key) {
        if let Some(why) = qualified_name(&key.to_lowercase()) {
            complaints.invalid("metadata.annotations", &key.as_str().into(), &why);
        }
    }
    for (index, owner) in list(object, &["metadata", "ownerReferences"]).iter().enumerate() {
        for field in ["apiVersion", "kind", "name", "uid"] {
            if text(owner, &[field]).is_empty() {
                let path = format!("metadata.ownerReferences[{index}].{field}");
                complaints.invalid(&path, &"".into(), &format!("{field} must not be empty"));
            }
        }
    }
    for value in list(object, &["metadata", "finalizers"]) {
        if let Some(why) = value.as_str().and_then(qualified_name) {
            complaints.invalid("metadata.finalizers", value, &why);
        }
    }
}

pub(super) fn labels(labels: Option<&Value>, path: &str, complaints: &mut Complaints) {
    for (key, value) in labels.and_then(Value::as_object).into_iter().flatten() {
        if let Some(why) = qualified_name(key) {
            complaints.invalid(path, &key.as_str().into(), &why);
        }
        if let Some(why) = value.as_str().and_then(label_value) {
            complaints.invalid(path, value, &why);
        }
    }
}

/// A label selector with its expressions.
pub(super) fn selector(selector: Option<&Value>, path: &str, complaints: &mut Complaints) {
    let Some(selector) = selector else { return };
    labels(selector.get("matchLabels"), &format!("{path}.matchLabels"), complaints);
    for (index, expression) in list(selector, &["matchExpressions"]).iter().enumerate() {
        let path = format!("{path}.matchExpressions[{index}]");
        let has_values = !list(expression, &["values"]).is_empty();
        match text(expression, &["operator"]) {
            "In" | "NotIn" if !has_values => {
                complaints.required(
                    &format!("{path}.values"),
                    "must be specified when `operator` is 'In' or 'NotIn'",
                );
            }
            "Exists" | "DoesNotExist" if has_values => complaints.forbidden(
                &format!("{path}.values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            ),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => complaints.invalid(
                &format!("{path}.operator"),
                &other.into(),
                "not a valid selector operator",
            ),
        }
        if let Some(why) = qualified_name(text(expression, &["key"])) {
            complaints.invalid(&format!("{path}.key"), &text(expression, &["key"]).into(), &why);
        }
    }
}

fn is_label(text: &str, first_may_be_digit: bool) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.chars().all(|c| plain(c) || c == '-')
        && text.chars().next_back().is_some_and(plain)
        && text
            .chars()
            .next()
            .is_some_and(|c| c.is_ascii_lowercase() || (first_may_be_digit && c.is_ascii_digit()))
}

/// A DNS label, RFC 1123.
pub(super) fn label(text: &str) -> Option<String> {
    if text.len() > 63 {
        return Some("must be no more than 63 bytes".to_owned());
    }
    (!is_label(text, true)).then(|| LABEL_1123.to_owned())
}

fn service_name(text: &str) -> Option<String> {
    if text.len() > 63 {
        return Some("must be no more than 63 bytes".to_owned());
    }
    (!is_label(text, false)).then(|| LABEL_1035.to_owned())
}

pub(super) fn subdomain(text: &str) -> Option<String> {
    if text.len() > 253 {
        return Some("must be no more than 253 bytes".to_owned());
    }
    (!text.split('.').all(|part| is_label(part, true))).then(|| SUBDOMAIN.to_owned())
}

fn is_name_part(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric();
    text.chars().all(|c| plain(c) || "-_.".contains(c))
        && text.chars().next().is_some_and(plain)
        && text.chars().next_back().is_some_and(plain)
}

/// `name` or `prefix.example.com/name`.
pub(super) fn qualified_name(text: &str) -> Option<String> {
    let (prefix, name) = match text.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    match prefix {
        Some("") => return Some("prefix part must be non-empty".to_owned()),
        Some(prefix) => {
            if let Some(why) = subdomain(prefix) {
                return Some(format!("prefix part {why}"));
            }
        }
        None => {}
    }
    match name {
        "" => Some("name part must be non-empty".to_owned()),
        _ if name.len() > 63 => Some("name part must be no more than 63 bytes".to_owned()),
        _ => (!is_name_part(name)).then(|| QUALIFIED.to_owned()),
    }
}

pub(super) fn label_value(text: &str) -> Option<String> {
    if text.len() > 63 {
        return Some("must be no more than 63 bytes".to_owned());
    }
    (!text.is_empty() && !is_name_part(text)).then(|| LABEL_VALUE.to_owned())
}

/// An IANA service name (RFC 6335 §5.1), as ports have.
pub(super) fn port_name(text: &str) -> Option<&'static str> {
    if text.is_empty() || text.len() > 15 {
        return Some("must be no more than 15 characters");
    }
    if !text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-') {
        return Some("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)");
    }
    if !text.chars().any(|c| c.is_ascii_lowercase()) {
        return Some("must contain at least one letter (a-z)");
    }
    if text.contains("--") {
        return Some("must not contain consecutive hyphens");
    }
    (text.starts_with('-') || text.ends_with('-')).then_some("must not begin or end with a hyphen")
}
