//! Requests that are answered, not stored: tokens for the agents, and questions about who may do what.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use http::Response;
use serde_json::{Value, json};

use crate::api::Body;
use crate::credentials::{Identity, random_hex};
use crate::kind::SERVICE_ACCOUNT;
use crate::object::{at, list, text};
use crate::request::Call;
use crate::status::Failure;
use crate::store::Key;
use crate::{Api, moment, response};

/// kube-apiserver's bounds of a token's life.
const SHORTEST: i64 = 600;
const LONGEST: i64 = 3600;
/// Without an audience a token is for the API itself.
const API_AUDIENCE: &str = "https://kubernetes.default.svc.cluster.local";

/// Tokens that were handed out and have not expired. They die with the process: whoever uses one asks again.
#[derive(Default)]
pub(crate) struct Tokens(Mutex<BTreeMap<String, Issued>>);

struct Issued {
    user: String,
    uid: String,
    audiences: Vec<String>,
    until: i64,
}

/// POST …/serviceaccounts/NAME/token.
pub(crate) async fn token(call: &Call, request: Value) -> Result<Response<Body>, Failure> {
    let key = Key::new(&SERVICE_ACCOUNT, &call.namespace, &call.name);
    let account = call.api.inner.store.get(&key).0;
    let account =
        account.ok_or_else(|| Failure::not_found("", SERVICE_ACCOUNT.plural, &call.name))?.value()?;
    let mut audiences: Vec<String> = list(&request, &["spec", "audiences"])
        .iter()
        .filter_map(|audience| audience.as_str().map(str::to_owned))
        .collect();
    if audiences.is_empty() {
        audiences.push(API_AUDIENCE.to_owned());
    }
    let asked = at(&request, &["spec", "expirationSeconds"]).and_then(Value::as_i64).unwrap_or(LONGEST);
    let seconds = asked.clamp(SHORTEST, LONGEST);
    let now = moment::now();
    let token = random_hex(32).map_err(|e| Failure::internal(format!("no random numbers: {e}")))?;
    let issued = Issued {
        user: format!("system:serviceaccount:{}:{}", call.namespace, call.name),
        uid: text(&account, &["metadata", "uid"]).to_owned(),
        audiences: audiences.clone(),
        until: now + seconds,
    };
    {
        let mut tokens = call.api.inner.tokens.0.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.retain(|_, issued| issued.until > now);
        tokens.insert(token.clone(), issued);
    }
    Ok(response::json(
        201,
        &json!({"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1",
            "metadata": {"name": call.name, "namespace": call.namespace},
            "spec": {"audiences": audiences, "expirationSeconds": seconds},
            "status": {"token": token, "expirationTimestamp": moment::format(now + seconds)}}),
    ))
}

/// The reviews by their plural; `None` for something else.
pub(crate) fn answer(
    api: &Api,
    identity: &Identity,
    plural: &str,
    request: &Value,
) -> Option<Response<Body>> {
    let spec = request.get("spec").cloned().unwrap_or_else(|| json!({}));
    let (kind, group, status) = match plural {
        "tokenreviews" => ("TokenReview", "authentication", review_token(api, &spec)),
        "selfsubjectreviews" => (
            "SelfSubjectReview",
            "authentication",
            json!({"userInfo": {"username": identity.to_string(), "groups": ["system:masters", "system:authenticated"]}}),
        ),
        "selfsubjectaccessreviews" => (
            "SelfSubjectAccessReview",
            "authorization",
            json!({"allowed": true, "reason": "in a lab, whoever has a token may do everything"}),
        ),
        _ => return None,
    };
    let version = format!("{group}.k8s.io/v1");
    let mut review = json!({"kind": kind, "apiVersion": version, "metadata": {}, "status": status});
    if kind != "SelfSubjectReview" {
        crate::object::root(&mut review).insert("spec".to_owned(), spec);
    }
    Some(response::json(201, &review))
}

/// Is the token valid for one of the audiences? Without any, for the API's own.
fn review_token(api: &Api, spec: &Value) -> Value {
    let token = text(spec, &["token"]);
    let asked: Vec<_> = list(spec, &["audiences"]).iter().filter_map(Value::as_str).collect();
    let asked = if asked.is_empty() { vec![API_AUDIENCE] } else { asked };
    let tokens = api.inner.tokens.0.lock().unwrap_or_else(PoisonError::into_inner);
    let found = tokens.get(token).filter(|issued| issued.until > moment::now());
    let Some(issued) = found else {
        let own = api.inner.config.credentials.as_ref().and_then(|credentials| credentials.identify(token));
        return match own.filter(|_| asked.contains(&API_AUDIENCE)) {
            Some(identity) => json!({"authenticated": true, "audiences": [API_AUDIENCE],
                "user": {"username": identity.to_string(), "groups": ["system:masters", "system:authenticated"]}}),
            None => {
                json!({"authenticated": false, "user": {}, "error": "the token is unknown or has expired"})
            }
        };
    };
    let shared: Vec<_> =
        issued.audiences.iter().filter(|audience| asked.contains(&audience.as_str())).collect();
    if shared.is_empty() {
        let error =
            format!("token audiences {:?} is invalid for the target audiences {asked:?}", issued.audiences);
        return json!({"authenticated": false, "user": {}, "error": error});
    }
    json!({"authenticated": true, "audiences": shared, "user": {"username": issued.user, "uid": issued.uid,
        "groups": ["system:serviceaccounts", "system:authenticated"]}})
}
