//! Whether a pod that the watch no longer shows is really gone: a watch may be served from a cache that is behind, or by
//! an API server that came back without what it knew. A GET without a resourceVersion is answered by what etcd's majority
//! holds (Kubernetes API concepts, "Resource versions").

use std::time::Duration;

use node::{Answer, Doubt};
use tokio::sync::mpsc;

use crate::inbox::{Input, Outbox};

/// So many wait at most; who finds no room asks again later.
const WAITING: usize = 256;
/// Between two questions: a node that lost hundreds of pods at once is no burden for its API server.
const PAUSE: Duration = Duration::from_millis(300);
/// An API server that does not answer by then cannot be asked.
const PATIENCE: Duration = Duration::from_secs(10);

/// The questions' writing end, for the node's loop.
#[derive(Clone, Debug)]
pub struct Confirm(mpsc::Sender<Doubt>);

impl Confirm {
    /// Starts who asks, one question after the other.
    pub fn start(client: kube::Client, outbox: Outbox) -> Self {
        let (sender, mut doubts) = mpsc::channel::<Doubt>(WAITING);
        tokio::spawn(async move {
            while let Some(doubt) = doubts.recv().await {
                let answer = ask(&client, &doubt).await;
                if !outbox.send(Input::Confirmed(doubt, answer)).await {
                    return;
                }
                tokio::time::sleep(PAUSE).await;
            }
        });
        Self(sender)
    }

    /// [`Input::Confirmed`] brings the answer. `false`: it was not asked.
    pub fn ask(&self, doubt: Doubt) -> bool {
        self.0.try_send(doubt).is_ok()
    }
}

async fn ask(client: &kube::Client, doubt: &Doubt) -> Answer {
    match tokio::time::timeout(PATIENCE, watch::get_pod(client, &doubt.pod)).await {
        Ok(Ok(Some(pod))) if doubt.uid.is_empty() || pod.uid == doubt.uid => Answer::There,
        // Or another one of the name is there.
        Ok(Ok(_)) => Answer::Gone,
        Ok(Err(error)) => Answer::Unheard(error.to_string()),
        Err(_) => Answer::Unheard(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use types::ObjectName;

    use super::*;

    /// An API server that answers every request alike, and notes whether it was asked for what it knows for certain.
    fn client(code: u16, body: &'static str) -> (kube::Client, Arc<AtomicBool>) {
        let quorum = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&quorum);
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let uri = request.uri();
            let whole = uri.path() == "/api/v1/namespaces/shop/pods/web"
                && !uri.to_string().contains("resourceVersion");
            asked.store(whole, Ordering::Relaxed);
            let answer = http::Response::builder()
                .status(code)
                .body(kube::client::Body::from(body.as_bytes().to_vec()));
            std::future::ready(answer)
        });
        (kube::Client::new(service, "default"), quorum)
    }

    #[tokio::test]
    async fn only_the_api_itself_says_that_a_pod_is_gone() {
        let doubt = Doubt { handle: "c/eth0".into(), pod: ObjectName::new("shop", "web"), uid: "u".into() };
        let pod = r#"{"metadata":{"name":"web","namespace":"shop","uid":"u","resourceVersion":"7"}}"#;
        let missing = r#"{"kind":"Status","status":"Failure","code":404,"reason":"NotFound","message":"pods \"web\" not found"}"#;
        let refused =
            r#"{"kind":"Status","status":"Failure","code":403,"reason":"Forbidden","message":"no"}"#;
        let of_uid = |uid: &str| Doubt { uid: uid.into(), ..doubt.clone() };
        for (code, body, doubt, expected) in [
            (200, pod, of_uid("u"), Some(Answer::There)),
            (200, pod, of_uid(""), Some(Answer::There)),
            (200, pod, of_uid("before"), Some(Answer::Gone)),
            (404, missing, of_uid("u"), Some(Answer::Gone)),
            (403, refused, of_uid("u"), None),
            (503, "<html>no backend</html>", of_uid("u"), None),
            (404, "<html>no such page of this proxy</html>", of_uid("u"), None),
        ] {
            let (client, quorum) = client(code, body);
            let answer = ask(&client, &doubt).await;
            match expected {
                Some(expected) => assert_eq!(answer, expected, "{code} {body}"),
                None => assert!(matches!(answer, Answer::Unheard(_)), "{code} {body}: {answer:?}"),
            }
            assert!(quorum.load(Ordering::Relaxed), "a question for the very pod, answered by no cache");
        }
    }
}
