use std::sync::atomic::{AtomicUsize, Ordering};

use http::{Request, Response};
use kube::client::Body;
use tower::service_fn;
use types::ObjectName;

use super::*;

#[test]
fn an_event_names_object_reason_and_source() {
    let saying = Saying {
        object: Key::new(Kind::Policy, ObjectName::new("shop", "p")),
        uid: String::new(),
        normal: false,
        reason: "Unsupported",
        message: "spec.x".into(),
    };
    let event = event("node1", &saying, SystemTime::UNIX_EPOCH);
    assert_eq!(event["involvedObject"]["apiVersion"], "networking.k8s.io/v1");
    assert_eq!(event["metadata"]["namespace"], "shop");
    assert_eq!(event["firstTimestamp"], "1970-01-01T00:00:00Z");
    assert_eq!(event["type"], "Warning");
}

#[test]
fn events_about_nodes_live_in_default() {
    let object = Key::new(Kind::Node, ObjectName::cluster("node1"));
    let (uid, message) = (String::new(), String::new());
    let saying = Saying { object, uid, normal: true, reason: "DriftMended", message };
    let event = event("node1", &saying, SystemTime::now());
    assert_eq!(event["metadata"]["namespace"], "default");
    assert_eq!(event["involvedObject"]["uid"], "node1", "as kubectl describe asks for it");
}

fn saying(message: &str) -> Saying {
    let object = Key::new(Kind::Node, ObjectName::cluster("node1"));
    let (uid, message) = (String::new(), message.to_owned());
    Saying { object, uid, normal: false, reason: "NetworkDegraded", message }
}

/// An API that is away for the first tries, in a way, and then takes what it is told.
fn api(away: usize, how: Option<u16>) -> (Client, mpsc::UnboundedReceiver<String>) {
    let (took, taken) = mpsc::unbounded_channel();
    let asked = Arc::new(AtomicUsize::new(0));
    let service = service_fn(move |request: Request<Body>| {
        let (took, is_away) = (took.clone(), asked.fetch_add(1, Ordering::Relaxed) < away);
        async move {
            let bytes = request.into_body().collect_bytes().await.unwrap();
            let code = match (is_away, how) {
                (true, None) => return Err(std::io::Error::from(std::io::ErrorKind::ConnectionRefused)),
                (true, Some(code)) => code,
                (false, _) => 201,
            };
            if code == 201 {
                let event: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
                took.send(event["message"].as_str().unwrap_or_default().to_owned()).unwrap();
            }
            let refusal = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "no",
                "reason": "x", "code": code });
            let answer = if code == 201 { bytes.to_vec() } else { refusal.to_string().into_bytes() };
            Ok(Response::builder().status(code).body(Body::from(answer)).unwrap())
        }
    });
    (Client::new(service, "default"), taken)
}

fn start(client: Client, silence: Duration) -> (Tell, Arc<Metrics>) {
    let (queue, items) = mpsc::channel(WAITING);
    let metrics = Arc::new(Metrics::default());
    let writer = Writer::new(client, "node1".into(), metrics.clone(), (Duration::from_millis(5), silence));
    tokio::spawn(writer.run(items));
    (Tell { queue, metrics: metrics.clone() }, metrics)
}

async fn next(taken: &mut mpsc::UnboundedReceiver<String>) -> Option<String> {
    tokio::time::timeout(Duration::from_secs(30), taken.recv()).await.expect("in time")
}

#[tokio::test]
async fn what_an_absent_api_did_not_take_is_said_once_it_is_back_if_it_still_holds() {
    for how in [None, Some(500), Some(503), Some(429)] {
        let (client, mut taken) = api(3, how);
        let (tell, metrics) = start(client, SILENCE);
        for message in ["stands", "passes", "stands", "stands too"] {
            tell.holds(saying(message));
        }
        tell.no_longer(saying("passes"));
        assert_eq!(next(&mut taken).await.as_deref(), Some("stands"), "{how:?}");
        assert_eq!(next(&mut taken).await.as_deref(), Some("stands too"), "{how:?}");
        tell.holds(saying("stands"));
        tell.holds(saying("new"));
        assert_eq!(next(&mut taken).await.as_deref(), Some("new"), "said twice: {how:?}");
        assert!(metrics.render().contains("plumb_events_dropped_total 0"));
    }
}

#[tokio::test]
async fn what_the_api_refuses_for_good_is_counted_and_holds_up_nothing() {
    let (client, mut taken) = api(1, Some(403));
    let (tell, metrics) = start(client, SILENCE);
    tell.say(saying("forbidden"));
    tell.say(saying("allowed"));
    assert_eq!(next(&mut taken).await.as_deref(), Some("allowed"));
    assert!(metrics.render().contains("plumb_events_dropped_total 1"));
}

/// Comes, goes, comes back and stays, and goes: each is heard of, the return when the quiet time is over.
#[tokio::test]
async fn what_returns_soon_is_said_later_and_its_end_after_it() {
    let (client, mut taken) = api(0, None);
    let (tell, _) = start(client, Duration::from_millis(300));
    let began = Instant::now();
    let end = || tell.over(vec![saying("no route")], Saying { normal: true, ..saying("a route again") });
    tell.holds(saying("no route"));
    end();
    tell.holds(saying("no route"));
    for words in ["no route", "a route again", "no route"] {
        assert_eq!(next(&mut taken).await.as_deref(), Some(words));
    }
    assert!(began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());
    end();
    // Twice more within the quiet time, and over by its end.
    tell.holds(saying("no route"));
    end();
    tell.holds(saying("other"));
    for words in ["a route again", "other"] {
        assert_eq!(next(&mut taken).await.as_deref(), Some(words));
    }
    tokio::time::sleep(Duration::from_millis(900)).await;
    assert!(taken.try_recv().is_err());
}
