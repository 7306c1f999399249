//! Requests that are answered, not stored: tokens for the agents, and questions about who may do what.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use http::Response;
use ring::hmac;
use serde_json::{Value, json};
use types::wire::TOKEN_NODE;

use crate::api::Body;
use crate::credentials::{Credentials, Identity, random_hex};
use crate::kind::{NODE, SERVICE_ACCOUNT};
use crate::object::{at, list, text};
use crate::request::Call;
use crate::status::Failure;
use crate::store::Key;
use crate::{Api, Error, moment, response};

/// kube-apiserver's bounds of a token's life.
const SHORTEST: i64 = 600;
const LONGEST: i64 = 3600;
/// Without an audience a token is for the API itself.
const API_AUDIENCE: &str = "https://kubernetes.default.svc.cluster.local";

/// Signs and checks the tokens of service accounts: JSON web tokens (RFC 7519) with HMAC-SHA-256, so that nothing has
/// to be kept of them and they outlive this process.
pub(crate) struct Tokens(hmac::Key);

/// `{"alg":"HS256","typ":"JWT"}`; no other is ever accepted.
const HEADER: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9";

impl Tokens {
    /// Without credentials the API is used in process alone, and its tokens live as long.
    pub fn open(credentials: Option<&Credentials>) -> Result<Self, Error> {
        let path = "/dev/urandom".into();
        let secret = match credentials {
            Some(credentials) => credentials.token_key()?,
            None => random_hex(32).map_err(|source| Error::CredentialFile { path, source })?,
        };
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes())))
    }

    fn sign(&self, claims: &Value) -> String {
        let said = format!("{HEADER}.{}", BASE64.encode(claims.to_string()));
        let signature = BASE64.encode(hmac::sign(&self.0, said.as_bytes()));
        format!("{said}.{signature}")
    }

    /// The claims of a token of ours that has not expired.
    fn read(&self, token: &str, now: i64) -> Option<Value> {
        let (said, signature) = token.rsplit_once('.')?;
        hmac::verify(&self.0, said.as_bytes(), &BASE64.decode(signature).ok()?).ok()?;
        let claims: Value = serde_json::from_slice(&BASE64.decode(said.split_once('.')?.1).ok()?).ok()?;
        (claims.get("exp")?.as_i64()? > now).then_some(claims)
    }
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
    let bound = bound_node(call, &request)?;
    let token = call.api.inner.tokens.sign(&json!({
        "node": bound,
        "iss": API_AUDIENCE, "sub": format!("system:serviceaccount:{}:{}", call.namespace, call.name),
        "uid": text(&account, &["metadata", "uid"]), "aud": audiences, "iat": now, "exp": now + seconds,
    }));
    Ok(response::json(
        201,
        &json!({"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1",
            "metadata": {"name": call.name, "namespace": call.namespace},
            "spec": {"audiences": audiences, "expirationSeconds": seconds,
                "boundObjectRef": at(&request, &["spec", "boundObjectRef"])},
            "status": {"token": token, "expirationTimestamp": moment::format(now + seconds)}}),
    ))
}

/// The name of the Node that a token shall live and be good for (KEP-4193); the lab binds to nothing else.
fn bound_node(call: &Call, request: &Value) -> Result<Option<String>, Failure> {
    let Some(bound) = at(request, &["spec", "boundObjectRef"]).filter(|bound| !bound.is_null()) else {
        return Ok(None);
    };
    let (kind, name) = (text(bound, &["kind"]), text(bound, &["name"]));
    if kind != "Node" {
        return Err(Failure::bad_request(format!(
            "cannot bind token for serviceaccount {:?} to object: the lab's API binds tokens to Nodes, not to kind {kind:?}",
            call.name
        )));
    }
    match call.api.inner.store.get(&Key::new(&NODE, "", name)).0 {
        Some(_) => Ok(Some(name.to_owned())),
        None => Err(Failure::not_found("", NODE.plural, name)),
    }
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
        "subjectaccessreviews" => (
            "SubjectAccessReview",
            "authorization",
            json!({"allowed": true, "reason": "in a lab, whoever has a token may do everything"}),
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
    let Some(claims) = api.inner.tokens.read(token, moment::now()) else {
        let own = api.inner.config.credentials.as_ref().and_then(|credentials| credentials.identify(token));
        return match own.filter(|_| asked.contains(&API_AUDIENCE)) {
            Some(identity) => json!({"authenticated": true, "audiences": [API_AUDIENCE],
                "user": {"username": identity.to_string(), "groups": ["system:masters", "system:authenticated"]}}),
            None => {
                json!({"authenticated": false, "user": {}, "error": "the token is unknown or has expired"})
            }
        };
    };
    let audiences: Vec<_> = list(&claims, &["aud"]).iter().filter_map(Value::as_str).collect();
    let shared: Vec<_> = audiences.iter().filter(|audience| asked.contains(audience)).collect();
    if shared.is_empty() {
        let error = format!("token audiences {audiences:?} is invalid for the target audiences {asked:?}");
        return json!({"authenticated": false, "user": {}, "error": error});
    }
    let (name, uid) = (text(&claims, &["sub"]), text(&claims, &["uid"]));
    let mut user =
        json!({"username": name, "uid": uid, "groups": ["system:serviceaccounts", "system:authenticated"]});
    let node = text(&claims, &["node"]);
    if !node.is_empty() {
        if api.inner.store.get(&Key::new(&NODE, "", node)).0.is_none() {
            return json!({"authenticated": false, "user": {}, "error": format!("its node {node} is gone")});
        }
        crate::object::root(&mut user).insert("extra".to_owned(), json!({TOKEN_NODE: [node]}));
    }
    json!({"authenticated": true, "audiences": shared, "user": user})
}
