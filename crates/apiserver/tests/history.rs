//! What a watch tells and what a list shows are the same story, whatever happens; and it survives a restart.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use apiserver::{Api, Body, Config, NoNodes, Store};
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use proptest::prelude::*;
use serde_json::{Value, json};
use tower::Service;

fn api(store: Store) -> Api {
    let config = Config {
        advertised: ([192, 168, 1, 2], 6443).into(),
        nodes: Arc::new(NoNodes),
        credentials: None,
        families: types::Families::Dual,
    };
    Api::new(store, config).expect("seeds")
}

async fn send(api: &Api, method: Method, path: &str, body: Value) -> Response<Body> {
    let content = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
    let request = Request::builder().method(method).uri(path).header("content-type", content);
    let body = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
    api.clone().call(request.body(Full::new(body)).expect("a request")).await.expect("it always answers")
}

async fn ask(api: &Api, method: Method, path: &str, body: Value) -> (u16, Value) {
    let response = send(api, method, path, body).await;
    let code = response.status().as_u16();
    let bytes = response.into_body().collect().await.expect("a body").to_bytes();
    (code, serde_json::from_slice(&bytes).expect("JSON"))
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[derive(Clone, Debug)]
enum Step {
    Create(u8, bool),
    Change(u8, u8),
    Label(u8, bool),
    Delete(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let name = || 0..6u8;
    let step = prop_oneof![
        (name(), any::<bool>()).prop_map(|(n, l)| Step::Create(n, l)),
        (name(), 0..3u8).prop_map(|(n, v)| Step::Change(n, v)),
        (name(), any::<bool>()).prop_map(|(n, l)| Step::Label(n, l)),
        name().prop_map(Step::Delete),
    ];
    proptest::collection::vec(step, 0..60)
}

async fn perform(api: &Api, step: &Step) {
    let label = |on: bool| if on { json!({"chosen": "yes"}) } else { json!({"chosen": null}) };
    match step {
        Step::Create(n, on) => {
            let labels = if *on { json!({"chosen": "yes"}) } else { json!({}) };
            let object = json!({"metadata": {"name": format!("m{n}"), "labels": labels}});
            ask(api, Method::POST, MAPS, object).await
        }
        Step::Change(n, v) => {
            ask(api, Method::PATCH, &format!("{MAPS}/m{n}"), json!({"data": {"v": v.to_string()}})).await
        }
        Step::Label(n, on) => {
            ask(api, Method::PATCH, &format!("{MAPS}/m{n}"), json!({"metadata": {"labels": label(*on)}}))
                .await
        }
        Step::Delete(n) => ask(api, Method::DELETE, &format!("{MAPS}/m{n}"), Value::Null).await,
    };
}

fn by_name(list: &Value) -> BTreeMap<String, Value> {
    let items = list["items"].as_array().expect("items");
    items.iter().map(|o| (o["metadata"]["name"].as_str().expect("a name").to_owned(), o.clone())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_watch_from_any_point_ends_in_what_a_list_shows(before in steps(), after in steps(), chosen in any::<bool>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let api = api(Store::in_memory());
            for step in &before {
                perform(&api, step).await;
            }
            let selector = if chosen { "labelSelector=chosen%3Dyes" } else { "" };
            let (_, start) = ask(&api, Method::GET, &format!("{MAPS}?{selector}"), Value::Null).await;
            let revision = start["metadata"]["resourceVersion"].as_str().expect("a revision").to_owned();
            let (_, paged) = ask(&api, Method::GET, &format!("{MAPS}?limit=2&{selector}"), Value::Null).await;
            for step in &after {
                perform(&api, step).await;
            }
            // The pages of a list are of one moment, whatever happened since.
            let mut pages = by_name(&paged);
            let mut token = paged["metadata"]["continue"].as_str().map(str::to_owned);
            while let Some(next) = token {
                let path = format!("{MAPS}?limit=2&continue={next}&{selector}");
                let (code, page) = ask(&api, Method::GET, &path, Value::Null).await;
                assert_eq!(code, 200, "{page}");
                pages.extend(by_name(&page));
                token = page["metadata"]["continue"].as_str().map(str::to_owned);
            }
            assert_eq!(pages, by_name(&start));
            // Replayed from then, and from nothing, the watch ends where the list is.
            let (_, end) = ask(&api, Method::GET, &format!("{MAPS}?{selector}"), Value::Null).await;
            let watch = format!("{MAPS}?watch=true&{selector}");
            let since = format!("{watch}&resourceVersion={revision}");
            assert_eq!(catch_up(&api, &since, by_name(&start), &end).await, by_name(&end));
            assert_eq!(catch_up(&api, &watch, BTreeMap::new(), &end).await, by_name(&end));
        });
    }
}

/// Applies the events of a watch to what it began with, until it is as it should end.
async fn catch_up(
    api: &Api,
    path: &str,
    start: BTreeMap<String, Value>,
    end: &Value,
) -> BTreeMap<String, Value> {
    let response = send(api, Method::GET, path, Value::Null).await;
    assert_eq!(response.status(), 200);
    let mut body = response.into_body();
    let mut objects = start;
    let wanted = by_name(end);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while objects != wanted {
        let frame = tokio::time::timeout_at(deadline, body.frame()).await.expect("the watch catches up");
        let data = frame.expect("a frame").expect("no error").into_data().expect("data");
        for line in data.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
            let event: Value = serde_json::from_slice(line).expect("an event");
            let object = event["object"].clone();
            let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            match event["type"].as_str() {
                Some("DELETED") => assert!(objects.remove(&name).is_some(), "{event}"),
                Some("ADDED") => assert!(objects.insert(name, object).is_none(), "{event}"),
                Some("MODIFIED") => assert!(objects.insert(name, object).is_some(), "{event}"),
                other => panic!("{other:?}"),
            }
        }
    }
    objects
}

struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn scratch(name: &str) -> Scratch {
    let dir = std::env::temp_dir().join(format!("plumb-history-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a scratch directory");
    Scratch(dir)
}

#[tokio::test]
async fn a_restart_keeps_objects_and_revisions_and_sends_old_watchers_to_list_again() {
    let scratch = scratch("restart");
    let path = scratch.0.join("state.db");
    let first = api(Store::open(&path).expect("a store"));
    for n in 0..10 {
        ask(&first, Method::POST, MAPS, json!({"metadata": {"name": format!("m{n}")}})).await;
    }
    ask(&first, Method::DELETE, &format!("{MAPS}/m3"), Value::Null).await;
    let (_, before) = ask(&first, Method::GET, MAPS, Value::Null).await;
    drop(first);

    let second = api(Store::open(&path).expect("the store again"));
    let (_, after) = ask(&second, Method::GET, MAPS, Value::Null).await;
    assert_eq!(before, after);
    let revision =
        |list: &Value| list["metadata"]["resourceVersion"].as_str().expect("a revision").parse::<u64>();
    let last = revision(&after).expect("a number");
    // Too old, and one of a state that is lost: an event, since kube-rs goes on for ever after a status of 410.
    for revision in [last - 1, last + 50] {
        let watch = format!("{MAPS}?watch=true&resourceVersion={revision}");
        let (code, event) = ask(&second, Method::GET, &watch, Value::Null).await;
        assert_eq!((code, event["type"].as_str()), (200, Some("ERROR")), "{event}");
        assert_eq!(
            (event["object"]["code"].as_u64(), event["object"]["reason"].as_str()),
            (Some(410), Some("Expired"))
        );
    }
    let (_, made) = ask(&second, Method::POST, MAPS, json!({"metadata": {"name": "new"}})).await;
    let made: u64 =
        made["metadata"]["resourceVersion"].as_str().expect("a revision").parse().expect("a number");
    assert!(made > last);
}

#[tokio::test]
async fn initial_events_end_with_an_annotated_bookmark() {
    let api = api(Store::in_memory());
    ask(&api, Method::POST, MAPS, json!({"metadata": {"name": "a"}})).await;
    let path = format!(
        "{MAPS}?watch=true&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan\
         &fieldSelector=metadata.name%3Da&timeoutSeconds=1"
    );
    let mut body = send(&api, Method::GET, &path, Value::Null).await.into_body();
    let data = body.frame().await.expect("a frame").expect("no error").into_data().expect("data");
    let events: Vec<Value> = data
        .split(|b| *b == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).expect("an event"))
        .collect();
    let types: Vec<_> = events.iter().map(|e| e["type"].as_str().unwrap_or_default()).collect();
    assert_eq!(types, ["ADDED", "BOOKMARK"]);
    assert_eq!(events[1]["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    let (code, _) =
        ask(&api, Method::GET, &format!("{MAPS}?watch=true&sendInitialEvents=true"), Value::Null).await;
    assert_eq!(code, 422, "kubectl falls back to list and watch");
}

#[tokio::test]
async fn tokens_are_for_their_audience_and_service_account() {
    let directory = std::env::temp_dir().join(format!("plumb-tokens-{}", std::process::id()));
    let credentials = apiserver::Credentials::open(&directory).expect("credentials");
    let start = || {
        let (nodes, credentials) = (Arc::new(NoNodes), Some(credentials.clone()));
        let config = Config {
            advertised: ([192, 168, 1, 2], 6443).into(),
            families: Default::default(),
            nodes,
            credentials,
        };
        Api::new(Store::in_memory(), config).expect("seeds")
    };
    let api = start();
    let path = "/api/v1/namespaces/kube-system/serviceaccounts/plumb/token";
    let (code, request) = ask(&api, Method::POST, path, json!({"spec": {"audiences": ["plumb"]}})).await;
    assert_eq!(code, 201);
    let token = request["status"]["token"].as_str().expect("a token");
    assert_eq!(credentials.identify(token), None, "it opens nothing of the API itself");
    // Its successor after a crash.
    let api = start();
    std::fs::remove_dir_all(&directory).expect("remove the credentials");
    let reviews = "/apis/authentication.k8s.io/v1/tokenreviews";
    let (said, signature) = token.rsplit_once('.').expect("a signature");
    let forged = format!("{said}x.{signature}");
    for (token, audience, authenticated) in [
        (token, "plumb", true),
        (token, "other", false),
        ("wrong", "plumb", false),
        (&forged, "plumb", false),
    ] {
        let spec = json!({"spec": {"token": token, "audiences": [audience]}});
        let (_, review) = ask(&api, Method::POST, reviews, spec).await;
        assert_eq!(review["status"]["authenticated"], authenticated, "{review}");
    }
    let (_, review) =
        ask(&api, Method::POST, reviews, json!({"spec": {"token": token, "audiences": ["plumb"]}})).await;
    assert_eq!(review["status"]["user"]["username"], "system:serviceaccount:kube-system:plumb");
}

#[tokio::test]
async fn finalizers_foreground_and_preconditions_hold_a_deletion() {
    let api = api(Store::in_memory());
    let (_, made) =
        ask(&api, Method::POST, MAPS, json!({"metadata": {"name": "f", "finalizers": ["a.b/c"]}})).await;
    let wrong = json!({"preconditions": {"uid": "another"}});
    assert_eq!(ask(&api, Method::DELETE, &format!("{MAPS}/f"), wrong).await.0, 409);
    let right = json!({"preconditions": {"uid": made["metadata"]["uid"]}});
    let (code, marked) = ask(&api, Method::DELETE, &format!("{MAPS}/f"), right).await;
    assert_eq!(code, 200);
    assert!(marked["metadata"]["deletionTimestamp"].is_string(), "{marked}");
    let patch = json!({"metadata": {"finalizers": null}});
    ask(&api, Method::PATCH, &format!("{MAPS}/f"), patch).await;
    assert_eq!(ask(&api, Method::GET, &format!("{MAPS}/f"), Value::Null).await.0, 404);
}

/// The whole process, tests and all, with a hundred pods of a common size and ten watchers.
#[tokio::test]
async fn a_hundred_pods_fit_in_sixty_megabytes() {
    let scratch = scratch("memory");
    let api = api(Store::open(&scratch.0.join("state.db")).expect("a store"));
    let pods = "/api/v1/namespaces/default/pods";
    let mut watches = Vec::new();
    for _ in 0..10 {
        watches.push(send(&api, Method::GET, &format!("{pods}?watch=true"), Value::Null).await.into_body());
    }
    for n in 0..100 {
        let pod = json!({"metadata": {"name": format!("p{n}"), "labels": {"app": "web"}}, "spec": {"nodeName": "node1",
            "containers": [{"name": "main", "image": "plumb.local/demo", "args": ["http", "x".repeat(1500)]}]}});
        assert_eq!(ask(&api, Method::POST, pods, pod).await.0, 201);
        for phase in ["Pending", "Running"] {
            let status = json!({"status": {"phase": phase, "podIP": "10.244.1.2"}});
            assert_eq!(ask(&api, Method::PATCH, &format!("{pods}/p{n}/status"), status).await.0, 200);
        }
    }
    for watch in &mut watches {
        watch.frame().await.expect("events").expect("no error");
    }
    let status = std::fs::read_to_string("/proc/self/status").expect("the process's status");
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    let kilobytes: u64 = resident.trim().trim_end_matches(" kB").parse().expect("a number");
    assert!(kilobytes < 60_000, "{kilobytes} kB");
}

/// What a version without a default has stored, this one reads with it: else no change of such a pod would be allowed.
#[tokio::test]
async fn what_an_earlier_version_stored_has_this_ones_defaults() {
    let scratch = scratch("earlier");
    let path = scratch.0.join("state.db");
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "old", "namespace": "default",
        "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z", "generation": 1},
        "spec": {"nodeName": "node1", "containers": [{"name": "main", "image": "host"}]},
        "status": {"phase": "Pending"}});
    {
        let store = Store::open(&path).expect("a store");
        let key = apiserver::store::Key::new(&apiserver::kind::POD, "default", "old");
        let ((), revision) = store.write(|tx| tx.put(key, pod).map(drop)).expect("written");
        store.settled(revision).await.expect("on disk");
    }
    let api = api(Store::open(&path).expect("opened again"));
    let pods = "/api/v1/namespaces/default/pods/old";
    let (_, read) = ask(&api, Method::GET, pods, Value::Null).await;
    assert_eq!((&read["spec"]["securityContext"], &read["metadata"]["generation"]), (&json!({}), &json!(1)));
    let status = json!({"status": {"phase": "Running"}});
    let (code, said) = ask(&api, Method::PATCH, &format!("{pods}/status"), status).await;
    assert_eq!(
        (code, &said["status"]["phase"], &said["metadata"]["generation"]),
        (200, &json!("Running"), &json!(1))
    );
}
