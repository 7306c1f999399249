//! A request's way: path → route → verb.
//!
//! ```text
//! /api/v1/namespaces/NS/pods/NAME/log        /apis/apps/v1/deployments
//!         └── namespace ┘ │    │   └ sub            └ group     └ kind
//!                        kind name
//! ```

use bytes::Bytes;
use http::request::Parts;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Limited};
use serde_json::{Value, json};

use crate::api::{Api, Body, BodyError};
use crate::form::Form;
use crate::kind::{Kind, NAMESPACE, NODE, POD, SERVICE, SERVICE_ACCOUNT};
use crate::patch::Format;
use crate::query::{Query, decode};
use crate::status::Failure;
use crate::{Identity, delete, discovery, node, openapi, read, response, review, subresource, watch, write};

/// The limit of kube-apiserver's request bodies (3 MiB).
const MAX_BODY: usize = 3 << 20;

/// One request for a resource.
pub(crate) struct Call {
    pub api: Api,
    pub kind: &'static Kind,
    pub namespace: String,
    pub name: String,
    pub sub: String,
    /// What follows the subresource: the path of a proxy request.
    pub rest: String,
    pub query: Query,
    pub form: Form,
}

impl Call {
    /// The same request once more, for what outlives it or repeats it.
    pub(crate) fn again(&self) -> Self {
        Self {
            api: self.api.clone(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            sub: self.sub.clone(),
            rest: self.rest.clone(),
            query: self.query.clone(),
            ..*self
        }
    }
}

/// Answers; every failure is a Status object.
pub(crate) async fn answer<B>(api: &Api, request: Request<B>) -> Response<Body>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BodyError>,
{
    let (parts, body) = request.into_parts();
    let answered = route(api, parts, body).await;
    answered.unwrap_or_else(|failure| response::failure(&failure))
}

async fn route<B>(api: &Api, parts: Parts, body: B) -> Result<Response<Body>, Failure>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BodyError>,
{
    let path = parts.uri.path().to_owned();
    let steps: Vec<&str> = path.trim_matches('/').split('/').collect();
    if let (&Method::GET, Some(found)) = (&parts.method, discovery::answer(&steps, &parts.headers)) {
        return Ok(found);
    }
    let (group, version, rest) = match (&parts.method, steps.as_slice()) {
        (&Method::GET, ["healthz" | "readyz" | "livez", ..]) => {
            return Ok(response::whole(200, "text/plain; charset=utf-8", "ok"));
        }
        (&Method::GET, ["version"]) => return Ok(response::json(200, &version())),
        (&Method::GET, ["openapi", ..]) => {
            return openapi::answer(&steps).ok_or_else(Failure::no_such_path);
        }
        (_, ["api", version, rest @ ..]) => ("", *version, rest),
        (_, ["apis", group, version, rest @ ..]) => (*group, *version, rest),
        _ => return Err(Failure::no_such_path()),
    };
    if let (&Method::POST, [plural]) = (&parts.method, rest)
        && matches!(group, "authentication.k8s.io" | "authorization.k8s.io")
    {
        let plural = (*plural).to_owned();
        let identity = parts.extensions.get::<Identity>().cloned().unwrap_or(Identity::Admin);
        let incoming = Incoming { parts, body };
        if incoming.content_type().contains("protobuf") {
            return Err(Failure::new(
                415,
                "UnsupportedMediaType",
                "the lab's API reads JSON only, so kubectl cannot ask this here; whoever has a token may do everything",
            ));
        }
        let (_, request) = incoming.json().await?;
        return review::answer(api, &identity, &plural, &request).ok_or_else(Failure::no_such_path);
    }
    let target = Target::find(group, version, rest).ok_or_else(Failure::no_such_path)?;
    let query = Query::parse(parts.uri.query().unwrap_or_default());
    let call = Call {
        api: api.clone(),
        kind: target.kind,
        namespace: target.namespace,
        name: target.name,
        sub: target.sub,
        rest: target.rest,
        form: Form::of(&parts.headers, &query)?,
        query,
    };
    dispatch(call, parts, body).await
}

async fn dispatch<B>(call: Call, parts: Parts, body: B) -> Result<Response<Body>, Failure>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BodyError>,
{
    let body = Incoming { parts, body };
    let method = body.parts.method.clone();
    match (&method, call.name.is_empty(), call.sub.as_str()) {
        (&Method::GET, true, _) if call.query.is_true("watch") => watch::start(&call).await,
        (&Method::GET, true, _) => read::list(&call).await,
        (&Method::GET, false, "" | "status") => read::get(&call).await,
        (&Method::POST, true, _) => write::create(&call, body.json().await?.1).await,
        (_, false, "scale") if call.kind.subresources.contains(&"scale") => match method {
            Method::GET => subresource::scale(&call).await,
            Method::PUT => subresource::rescale(&call, None, body.json().await?.1).await,
            Method::PATCH => {
                let (content_type, patch) = body.any_json().await?;
                subresource::rescale(&call, Some(Format::of(&content_type)?), patch).await
            }
            _ => Err(method_not_allowed()),
        },
        (&Method::POST, false, "binding") if *call.kind == POD => {
            subresource::bind(&call, &body.json().await?.1).await
        }
        (&Method::PUT, false, "finalize") if *call.kind == NAMESPACE => {
            subresource::finalize(&call, &body.json().await?.1).await
        }
        (&Method::POST, false, "token") if *call.kind == SERVICE_ACCOUNT => {
            review::token(&call, body.json().await?.1).await
        }
        (&Method::GET, false, "log") if *call.kind == POD => node::log(&call).await,
        (_, false, "exec") if *call.kind == POD => node::exec(&call, body).await,
        (_, false, "portforward") if *call.kind == POD => node::port_forward(&call, body).await,
        (_, false, "proxy") if [NODE, POD, SERVICE].contains(call.kind) => node::proxy(&call, body).await,
        (_, false, "attach" | "eviction" | "ephemeralcontainers" | "resize") if *call.kind == POD => {
            Err(Failure::unsupported(&format!("pods/{}", call.sub), instead_of(&call.sub)))
        }
        (&Method::PUT, false, "" | "status") => write::put(&call, body.json().await?.1).await,
        (&Method::PATCH, false, "" | "status") => {
            let (content_type, patch) = body.any_json().await?;
            write::patch(&call, &content_type, patch).await
        }
        (&Method::DELETE, true, _) => delete::collection(&call, &body.optional_json().await?).await,
        (&Method::DELETE, false, "") => delete::one(&call, &body.optional_json().await?).await,
        (_, _, sub) if !sub.is_empty() && !call.kind.subresources.contains(&sub) => {
            Err(Failure::no_such_path())
        }
        _ => Err(method_not_allowed()),
    }
}

fn method_not_allowed() -> Failure {
    Failure::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
}

/// What does the work of a subresource that is not had here.
fn instead_of(sub: &str) -> &'static str {
    match sub {
        "attach" => "use `kubectl logs -f` to read its output, or `kubectl exec -i` to run a command in it",
        "eviction" => "use `kubectl delete pod`",
        "ephemeralcontainers" => {
            "no container is added to a pod that runs. Use `kubectl exec POD -- COMMAND`; for the machine's own programs \
             beside another image, create the pod with a second container of `image: host`"
        }
        _ => "delete the pod and create it as it should be",
    }
}

/// What a path names.
struct Target {
    kind: &'static Kind,
    namespace: String,
    name: String,
    sub: String,
    rest: String,
}

impl Target {
    fn find(group: &str, version: &str, rest: &[&str]) -> Option<Self> {
        let (namespace, rest) = match rest {
            // namespaces/NS/status is the Namespace's own; namespaces/NS/pods lies in it.
            ["namespaces", namespace, plural, ..] if !NAMESPACE.subresources.contains(plural) => {
                (decode(namespace), rest.get(2..)?)
            }
            rest => (String::new(), rest),
        };
        let (plural, rest) = rest.split_first()?;
        let kind = Kind::find(group, version, plural)?;
        let word = |at: usize| rest.get(at).map(|word| decode(word)).unwrap_or_default();
        let tail = rest.get(2..).map(|tail| tail.join("/")).unwrap_or_default();
        let target = Self { kind, namespace, name: word(0), sub: word(1), rest: tail };
        // A cluster-scoped kind has no namespace, and a namespaced object cannot be named without one.
        let fits = match kind.namespaced {
            true => target.name.is_empty() || !target.namespace.is_empty(),
            false => target.namespace.is_empty(),
        };
        fits.then_some(target)
    }
}

/// A request whose body is still to be read.
pub(crate) struct Incoming<B> {
    pub parts: Parts,
    pub body: B,
}

impl<B> Incoming<B>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BodyError>,
{
    pub(crate) fn content_type(&self) -> String {
        let value = self.parts.headers.get(http::header::CONTENT_TYPE);
        value.and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned()
    }

    /// A JSON body; without a content type it is taken for JSON, as old clients send it.
    pub(crate) async fn json(self) -> Result<(String, Value), Failure> {
        let content_type = self.content_type();
        let essence = content_type.split(';').next().unwrap_or_default().trim();
        if !matches!(essence, "" | "application/json" | "*/*") {
            return Err(Failure::media_type(essence));
        }
        self.any_json().await
    }

    /// JSON under any name, such as a patch's.
    pub(crate) async fn any_json(self) -> Result<(String, Value), Failure> {
        let content_type = self.content_type();
        if content_type.contains("protobuf") {
            return Err(Failure::media_type(&content_type));
        }
        let bytes = self.bytes().await?;
        let value = serde_json::from_slice(&bytes)
            .map_err(|e| Failure::bad_request(format!("couldn't parse the request's body as JSON: {e}")))?;
        Ok((content_type, value))
    }

    /// The options of a DELETE: often no body at all.
    pub(crate) async fn optional_json(self) -> Result<Value, Failure> {
        let content_type = self.content_type();
        let bytes = self.bytes().await?;
        if bytes.is_empty() {
            return Ok(json!({}));
        }
        if content_type.contains("protobuf") {
            return Err(Failure::media_type(&content_type));
        }
        serde_json::from_slice(&bytes)
            .map_err(|e| Failure::bad_request(format!("couldn't parse the request's body as JSON: {e}")))
    }

    async fn bytes(self) -> Result<Bytes, Failure> {
        let limited = Limited::new(self.body, MAX_BODY);
        match limited.collect().await {
            Ok(collected) => Ok(collected.to_bytes()),
            Err(e) if e.is::<http_body_util::LengthLimitError>() => Err(Failure::new(
                413,
                "RequestEntityTooLarge",
                format!("limit is {MAX_BODY}: the request's body is larger"),
            )),
            Err(e) => Err(Failure::bad_request(format!("the request's body ended early: {e}"))),
        }
    }
}

/// `kubectl version`: the level of the API that is imitated, and that it is not the real one.
fn version() -> Value {
    json!({
        "major": "1", "minor": "36",
        "gitVersion": format!("v1.36.0{}{}", types::wire::LAB_VERSION, env!("CARGO_PKG_VERSION")),
        "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none (Rust)", "compiler": "rustc", "platform": "linux/amd64",
    })
}
