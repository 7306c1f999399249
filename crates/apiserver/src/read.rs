//! GET and LIST.

use base64::Engine;
use bytes::{BufMut, Bytes, BytesMut};
use http::Response;
use serde_json::{Value, json};

use crate::api::Body;
use crate::form::{self, Form, shown};
use crate::request::Call;
use crate::response;
use crate::select::Selection;
use crate::status::Failure;
use crate::store::{Key, ListQuery, Listed, Stored};
use crate::table;

const BASE64: base64::engine::GeneralPurpose = base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// One object.
pub(crate) async fn get(call: &Call) -> Result<Response<Body>, Failure> {
    let key = Key::new(call.kind, &call.namespace, &call.name);
    let (found, revision) = call.api.inner.store.get(&key);
    call.api.inner.store.settled(revision).await?;
    let stored = found.ok_or_else(|| Failure::not_found(call.kind.group, call.kind.plural, &call.name))?;
    one(call, 200, &stored)
}

/// An object in the form that was asked for.
pub(crate) fn one(call: &Call, code: u16, stored: &Stored) -> Result<Response<Body>, Failure> {
    Ok(match call.form {
        Form::Whole if form::is_stored_form(call.kind) => {
            response::whole(code, response::JSON, stored.raw.clone())
        }
        Form::Whole => response::json(code, &shown(call.kind, stored)?),
        Form::Metadata => response::json(code, &form::partial(&stored.value()?)),
        Form::Table { whole_objects } => {
            let object = shown(call.kind, stored)?;
            let revision = stored.revision.to_string();
            let rows = vec![table::row(call.kind, object, whole_objects)];
            response::json(code, &table::whole(call.kind, &json!({"resourceVersion": revision}), rows))
        }
    })
}

/// Many objects: all of a kind, of a namespace, or of a selection, page by page on one snapshot.
pub(crate) async fn list(call: &Call) -> Result<Response<Body>, Failure> {
    let store = &call.api.inner.store;
    let selection =
        Selection::parse(call.kind, call.query.get("labelSelector"), call.query.get("fieldSelector"))?;
    let resource = call.kind.stored_as().qualified();
    let page = Page::of(call)?;
    let start = page.start.as_ref().map(|(namespace, name)| (namespace.as_str(), name.as_str()));
    let query = ListQuery { resource: &resource, namespace: &call.namespace, start, at: page.at };
    let mut listed = store.list(&query).map_err(|failure| match start {
        Some(_) => Failure::expired(
            "The provided continue parameter is too old to display a consistent list result. You can start a \
             new list without the continue parameter.",
        ),
        None => failure,
    })?;
    store.settled(listed.revision).await?;
    listed.objects.retain(|(key, stored)| selection.matches(key, stored));
    let rest = listed.objects.len().saturating_sub(page.limit);
    listed.objects.truncate(page.limit);
    let mut metadata = json!({"resourceVersion": listed.revision.to_string()});
    if let (true, Some((last, _)), Value::Object(map)) = (rest > 0, listed.objects.last(), &mut metadata) {
        map.insert("continue".to_owned(), Page::token(listed.revision, last).into());
        if selection.is_everything() {
            map.insert("remainingItemCount".to_owned(), rest.into());
        }
    }
    render(call, &metadata, &listed)
}

fn render(call: &Call, metadata: &Value, listed: &Listed) -> Result<Response<Body>, Failure> {
    if let Form::Table { whole_objects } = call.form {
        let rows = listed
            .objects
            .iter()
            .map(|(_, stored)| Ok(table::row(call.kind, shown(call.kind, stored)?, whole_objects)));
        let rows = rows.collect::<Result<_, Failure>>()?;
        return Ok(response::json(200, &table::whole(call.kind, metadata, rows)));
    }
    let (kind, version) = match call.form {
        Form::Metadata => ("PartialObjectMetadata", "meta.k8s.io/v1".to_owned()),
        _ => (call.kind.kind, call.kind.api_version()),
    };
    let size: usize = listed.objects.iter().map(|(_, stored)| stored.raw.len() + 1).sum();
    let mut body = BytesMut::with_capacity(size + 256);
    body.put_slice(
        format!(r#"{{"kind":"{kind}List","apiVersion":"{version}","metadata":{metadata},"items":["#)
            .as_bytes(),
    );
    for (index, (_, stored)) in listed.objects.iter().enumerate() {
        if index > 0 {
            body.put_u8(b',');
        }
        body.put_slice(&bytes_of(call, stored)?);
    }
    body.put_slice(b"]}");
    Ok(response::whole(200, response::JSON, body.freeze()))
}

/// The object's JSON in the form of the call (tables aside).
pub(crate) fn bytes_of(call: &Call, stored: &Stored) -> Result<Bytes, Failure> {
    Ok(match call.form {
        Form::Metadata => form::partial(&stored.value()?).to_string().into(),
        _ if form::is_stored_form(call.kind) => stored.raw.clone(),
        _ => shown(call.kind, stored)?.to_string().into(),
    })
}

/// Where a list begins and ends. The token holds the snapshot's revision and the last name seen.
struct Page {
    limit: usize,
    at: u64,
    start: Option<(String, String)>,
}

impl Page {
    fn of(call: &Call) -> Result<Self, Failure> {
        let limit = call.query.number("limit").filter(|n| *n > 0);
        let limit = limit.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
        let token = call.query.get("continue");
        if token.is_empty() {
            let at = if call.query.get("resourceVersionMatch") == "Exact" {
                call.query.number("resourceVersion").unwrap_or(0)
            } else {
                // "at least this revision": what there is now is never older than what anyone has seen.
                0
            };
            return Ok(Self { limit, at, start: None });
        }
        let bad = || Failure::bad_request("continue key is not valid: list again without it");
        let text =
            BASE64.decode(token).ok().and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(bad)?;
        let mut words = text.splitn(3, '/');
        let (at, namespace, name) = (words.next(), words.next(), words.next());
        let at = at.and_then(|at| at.parse().ok()).filter(|at| *at > 0).ok_or_else(bad)?;
        let start = namespace.zip(name).ok_or_else(bad)?;
        Ok(Self { limit, at, start: Some((start.0.to_owned(), start.1.to_owned())) })
    }

    fn token(revision: u64, last: &Key) -> String {
        BASE64.encode(format!("{revision}/{}/{}", last.namespace, last.name))
    }
}
