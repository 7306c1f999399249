//! Owns: list and watch of the six kinds through kube-rs, cut to rows at the border.
//! Never: whole objects in memory, a decision, or a deletion because the API went away.
//! In → Out: a `kube::Client` → [`Message`]s: model events and what is wrong with objects.
//! Read first: [`run`], then `follow`.
//!
//! ```text
//!   watcher::Event   Init    InitApply…   InitDone   Apply    Delete   (error)
//!   model::Event     Start   Upsert…      Done       Upsert   Delete   nothing: rows stay
//! ```

mod kubeconfig;
mod misused;
mod row_of;
mod slim;
mod told;

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::pin::Pin;
use std::time::Duration;

use futures::{Stream, StreamExt};
use http::Request;
use kube::client::Body;
use kube::runtime::watcher::{self, InitialListStrategy};
use kube::{Api, Client};
use model::{Diagnostic, Event, Key, Kind};
use tokio::sync::{mpsc, watch};
use tower::service_fn;
use types::ObjectName;

pub use kubeconfig::{BadKubeconfig, kubeconfig};
pub use misused::Misused;
pub use slim::Slim;
pub use told::{told, yaml};

use row_of::{RowOf, diagnostics_of};

/// What the watches say, in the order in which they see it.
#[derive(Debug)]
pub enum Message {
    Event(Event),
    /// All that is wrong with one object now; empty when it was mended or deleted.
    Diagnosed(Key, Vec<Diagnostic>),
    /// A watch broke and will be tried again. Nothing is withdrawn.
    Trouble(Kind, WatchError),
    /// The server answers a watch again that broke, whether anything has changed meanwhile or not.
    Answered(Kind),
}

#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    #[error("watch of {kind:?}: {}; trying again in {retry:?}, the datapath stays as it is", causes(source))]
    Broken { kind: Kind, source: Box<watcher::Error>, retry: Duration },
    #[error("get of {kind:?} {name}: {}", told(source.as_ref()))]
    Get { kind: Kind, name: ObjectName, source: Box<kube::Error> },
}

impl WatchError {
    /// Why, without which watch it was: the same for all that break for one reason.
    pub fn cause(&self) -> String {
        match self {
            Self::Broken { source, .. } => causes(source),
            Self::Get { source, .. } => told(source.as_ref()),
        }
    }

    /// What a person does about it; `host`: the API server's.
    pub fn next_step(&self, host: &str) -> String {
        let refusal = match self {
            Self::Broken { source, .. } => refusal(source),
            Self::Get { source, .. } => status_of(source),
        };
        match refusal.map(|status| status.code) {
            Some(401) => "its token has expired or belongs to another cluster: compare the clocks of this machine and \
                          of the API server (date), start the agent's pod again, or give it a kubeconfig that `kubectl \
                          auth whoami` works with"
                .into(),
            Some(403) => "give it the rights of the ClusterRole plumb (deploy/plumb.yaml)".into(),
            Some(410) => "nothing: the revision to go on from is gone, as after a compaction or a restored backup, and the \
                          agent lists everything anew by itself"
                .into(),
            // It answers, so the way to it is right.
            Some(code) => format!(
                "the API server itself answers {code}: `kubectl get --raw '/readyz?verbose'` and its log say why"
            ),
            _ if is_of_another_time(&self.to_string()) => {
                "the clocks of this machine and of the certificate's maker differ: compare `date` with another machine's \
                 and set it right (timedatectl, chronyc makestep), and the agent goes on by itself; if it is right, renew \
                 the API server's certificate (kubeadm certs renew apiserver)"
                    .into()
            }
            _ if self.to_string().contains("certificate") => {
                "another server answers there, or the agent knows another authority: check --api-servers and the \
                 kubeconfig's certificate-authority"
                    .into()
            }
            _ => format!("see that it runs, and that this machine has a route to it: `ip route get {host}`"),
        }
    }
}

/// Whether an error says, in rustls' words (CertificateError), that now is before a certificate's notBefore or after its
/// notAfter: a clock may be wrong.
pub fn is_of_another_time(words: &str) -> bool {
    ["certificate not valid yet", "certificate expired"].iter().any(|said| words.contains(said))
}

/// What the API server itself said.
fn refusal(error: &watcher::Error) -> Option<&kube::core::Status> {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => status_of(error),
        watcher::Error::WatchError(status) => Some(status),
        watcher::Error::NoResourceVersion => None,
    }
}

fn status_of(error: &kube::Error) -> Option<&kube::core::Status> {
    match error {
        kube::Error::Api(status) => Some(status),
        _ => None,
    }
}

/// The innermost cause names what a person can mend ("Network is unreachable"), and the outermost hides it. Of a
/// refusal, its own words.
fn causes(error: &watcher::Error) -> String {
    if let Some(status) = refusal(error) {
        return format!("{} {}: {}", status.code, status.reason, status.message);
    }
    told(error)
}

/// Follows every kind until the receiver is dropped. What else goes the same way is `T`'s business: each message wakes
/// its reader, and a list has tens of thousands.
pub async fn run<T: From<Message>>(client: Client, out: mpsc::Sender<T>) {
    let any = watch::Sender::new(());
    futures::join!(
        follow::<k8s::Node, T>(&client, &out, &any),
        follow::<k8s::Namespace, T>(&client, &out, &any),
        follow::<k8s::Pod, T>(&client, &out, &any),
        follow::<k8s::Service, T>(&client, &out, &any),
        follow::<k8s::EndpointSlice, T>(&client, &out, &any),
        follow::<k8s::NetworkPolicy, T>(&client, &out, &any),
    );
}

/// The same client, that says each of these when the server has answered: a watch that goes on yields nothing until
/// something changes.
fn telling(client: &Client, answered: [watch::Sender<()>; 2]) -> Client {
    let (client, namespace) = (client.clone(), client.default_namespace().to_owned());
    let service = service_fn(move |request: Request<Body>| {
        let (client, answered) = (client.clone(), answered.clone());
        async move {
            let answer = client.send(request).await;
            if answer.as_ref().is_ok_and(|answer| answer.status().is_success()) {
                answered.iter().for_each(|told| told.send_replace(()));
            }
            answer
        }
    });
    Client::new(service, namespace)
}

/// One pod now, for a sandbox that is wired before the watch has seen its pod.
pub async fn get_pod(client: &Client, name: &ObjectName) -> Result<Option<model::Pod>, WatchError> {
    let api: Api<Slim<k8s::Pod>> = Api::namespaced(client.clone(), &name.namespace);
    match api.get_opt(&name.name).await {
        Ok(pod) => Ok(pod.map(|pod| model::from_k8s::pod(&pod.object).row)),
        Err(source) => Err(WatchError::Get { kind: Kind::Pod, name: name.clone(), source: Box::new(source) }),
    }
}

type Events<T> = Pin<Box<dyn Stream<Item = Result<watcher::Event<Slim<T>>, watcher::Error>> + Send>>;

fn stream_of<T: RowOf>(client: &Client, strategy: InitialListStrategy) -> Events<T> {
    let config = watcher::Config { initial_list_strategy: strategy, ..watcher::Config::default() };
    Box::pin(watcher::watcher(Api::all(client.clone()), config))
}

/// Streaming lists (no page is ever whole in memory) until the server says that it does not know them. `any`: the
/// server has answered some watch, so that another need not wait longer.
async fn follow<K: RowOf, T: From<Message>>(client: &Client, out: &mpsc::Sender<T>, any: &watch::Sender<()>) {
    let (own, mut answered) = watch::channel(());
    let client = &telling(client, [own, any.clone()]);
    let mut stream = stream_of::<K>(client, InitialListStrategy::StreamingList);
    let mut backoff = Backoff::default();
    let mut diagnosed = BTreeSet::new();
    let mut broken = false;
    loop {
        let item = tokio::select! {
            biased;
            Ok(()) = answered.changed(), if broken => None,
            item = stream.next() => match item {
                Some(item) => Some(item),
                None => return,
            },
        };
        // An event shows it, too: not every error ends the connection.
        if broken && item.as_ref().is_none_or(is_heard) {
            broken = false;
            if out.send(Message::Answered(K::ROW).into()).await.is_err() {
                return;
            }
        }
        match item {
            None => {}
            Some(Ok(event)) => {
                if !matches!(event, watcher::Event::Init) {
                    backoff = Backoff::default();
                }
                for message in messages(event, &mut diagnosed) {
                    if out.send(message.into()).await.is_err() {
                        return;
                    }
                }
            }
            Some(Err(error)) if refuses_streaming(&error) => {
                stream = stream_of::<K>(client, InitialListStrategy::ListWatch);
            }
            // No trouble of anybody's: what happened meanwhile is listed. kube-rs would ask for the same revision again,
            // for ever.
            Some(Err(error)) if is_too_old(&error) => {
                stream = stream_of::<K>(client, InitialListStrategy::StreamingList);
                tokio::time::sleep(FIRST).await;
            }
            // Whether the server hangs shows when the watch is begun again, which the next round does.
            Some(Err(error)) if only_was_quiet(&error) => {}
            Some(Err(error)) => {
                let (retry, returned) = (backoff.next(), any.subscribe());
                let source = Box::new(error);
                let trouble = WatchError::Broken { kind: K::ROW, source, retry };
                if out.send(Message::Trouble(K::ROW, trouble).into()).await.is_err() {
                    return;
                }
                // What was answered before it broke tells nothing.
                answered.mark_unchanged();
                broken = true;
                rest(retry, returned).await;
            }
        }
    }
}

/// Whether the watch goes on: `Init` comes before anything is asked.
fn is_heard<T>(item: &Result<watcher::Event<T>, watcher::Error>) -> bool {
    matches!(item, Ok(event) if !matches!(event, watcher::Event::Init))
}

/// Until the time for the next try, or until the server answers another watch.
async fn rest(retry: Duration, mut returned: watch::Receiver<()>) {
    tokio::time::sleep(FIRST).await; // a server that breaks every watch it begins is not asked without end
    tokio::select! {
        () = tokio::time::sleep(retry.saturating_sub(FIRST)) => {}
        _ = returned.changed() => {}
    }
}

/// `sendInitialEvents` is refused as Invalid or BadRequest by a server without KEP-3157.
fn refuses_streaming(error: &watcher::Error) -> bool {
    let watcher::Error::WatchStartFailed(kube::Error::Api(status)) = error else { return false };
    matches!(status.code, 400 | 422) && status.message.contains("sendInitialEvents")
}

/// The revision to go on from is gone: said by the answer's status, or by an event of a watch that was begun.
fn is_too_old(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status.code == 410,
        watcher::Error::WatchError(status) => status.code == 410,
        _ => false,
    }
}

/// Nothing came in a watch that was begun, for as long as the client waits: its own deadline, and no error number of the
/// kernel's. Not every server has something to say about a kind that nobody changes.
fn only_was_quiet(error: &watcher::Error) -> bool {
    let watcher::Error::WatchFailed(kube::Error::ReadEvents(error)) = error else { return false };
    let mut cause = error.get_ref().map(|inner| inner as &(dyn std::error::Error + 'static));
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>()
            && io.kind() == std::io::ErrorKind::TimedOut
        {
            return io.raw_os_error().is_none();
        }
        cause = error.source();
    }
    false
}

fn messages<T: RowOf>(event: watcher::Event<Slim<T>>, diagnosed: &mut BTreeSet<Key>) -> Vec<Message> {
    match event {
        watcher::Event::Init => vec![Message::Event(Event::Start(T::ROW))],
        watcher::Event::InitDone => vec![Message::Event(Event::Done(T::ROW))],
        watcher::Event::Delete(object) => {
            let key = key_of(&object.object);
            let mut messages = diagnostics_of(&key, Vec::new(), diagnosed);
            messages.push(Message::Event(Event::Delete(key)));
            messages
        }
        watcher::Event::Apply(object) | watcher::Event::InitApply(object) => {
            let key = key_of(&object.object);
            let converted = object.object.row();
            let said = diagnostics_of(&key, converted.diagnostics, diagnosed);
            let event = match converted.row {
                Some(row) => Event::Upsert(row),
                None => Event::Delete(key),
            };
            // The row first: who tells of what is wrong looks there for the uid and the node of a pod.
            [Message::Event(event)].into_iter().chain(said).collect()
        }
    }
}

fn key_of<T: RowOf>(object: &T) -> Key {
    Key::new(T::ROW, object.meta().object_name())
}

const FIRST: Duration = Duration::from_millis(100);

/// 0.1 s, doubled up to 3.2 s, each by up to a quarter longer: a thousand agents must not return as one, and each is
/// right again within 5 s of the API's return. The first of the six watches that succeeds wakes the others, so that a
/// node waits for the shortest of six.
#[derive(Default)]
struct Backoff {
    failures: u32,
}

impl Backoff {
    fn next(&mut self) -> Duration {
        let base = (FIRST.as_millis() as u64) << self.failures.min(5);
        self.failures += 1;
        let spread = RandomState::new().hash_one(self.failures) % (base / 4);
        Duration::from_millis(base + spread)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_grows_to_a_bound() {
        let mut backoff = Backoff::default();
        let waits: Vec<u64> = (0..20).map(|_| backoff.next().as_millis() as u64).collect();
        assert!((100..=125).contains(&waits[0]), "{waits:?}");
        assert!((3_200..=4_000).contains(&waits[19]), "{waits:?}");
    }

    #[test]
    fn what_to_do_depends_on_who_refused() {
        let status = |code: u16| {
            let status = kube::core::Status { code, ..kube::core::Status::default() };
            watcher::Error::WatchError(Box::new(status))
        };
        let step = |source: watcher::Error| {
            let broken = WatchError::Broken { kind: Kind::Pod, source: Box::new(source), retry: FIRST };
            broken.next_step("api.test")
        };
        assert!(is_too_old(&status(410)) && !is_too_old(&status(500)));
        for (code, word) in [(410, "by itself"), (500, "readyz"), (403, "ClusterRole"), (401, "token")] {
            let step = step(status(code));
            assert!(step.contains(word) && !step.contains("ip route get"), "{code}: {step}");
        }
        assert!(step(watcher::Error::NoResourceVersion).contains("ip route get api.test"));
    }

    #[test]
    fn a_list_says_start_upserts_done() {
        let mut diagnosed = BTreeSet::new();
        let pod: Slim<k8s::Pod> =
            serde_json::from_str(r#"{"metadata":{"name":"p","namespace":"n","resourceVersion":"7"}}"#)
                .unwrap();
        assert!(matches!(
            messages::<k8s::Pod>(watcher::Event::Init, &mut diagnosed)[..],
            [Message::Event(Event::Start(Kind::Pod))]
        ));
        assert!(matches!(
            messages(watcher::Event::InitApply(pod), &mut diagnosed)[..],
            [Message::Event(Event::Upsert(_))]
        ));
        assert!(matches!(
            messages::<k8s::Pod>(watcher::Event::InitDone, &mut diagnosed)[..],
            [Message::Event(Event::Done(Kind::Pod))]
        ));
    }

    #[test]
    fn what_was_wrong_is_taken_back_when_it_is_mended() {
        let mut diagnosed = BTreeSet::new();
        let node = |address: &str| -> Slim<k8s::Node> {
            let json = format!(
                r#"{{"metadata":{{"name":"n"}},"status":{{"addresses":[{{"type":"InternalIP","address":"{address}"}}]}}}}"#
            );
            serde_json::from_str(&json).unwrap()
        };
        let bad = messages(watcher::Event::Apply(node("x")), &mut diagnosed);
        assert!(matches!(&bad[..], [Message::Event(_), Message::Diagnosed(_, list)] if list.len() == 1));
        let good = messages(watcher::Event::Apply(node("10.0.0.1")), &mut diagnosed);
        assert!(matches!(&good[..], [Message::Event(_), Message::Diagnosed(_, list)] if list.is_empty()));
        assert_eq!(messages(watcher::Event::Apply(node("10.0.0.1")), &mut diagnosed).len(), 1);
    }

    #[test]
    fn svc_03_a_slice_without_a_row_is_deleted() {
        let slice: Slim<k8s::EndpointSlice> =
            serde_json::from_str(r#"{"metadata":{"name":"s","namespace":"n"},"addressType":"FQDN"}"#)
                .unwrap();
        let got = messages(watcher::Event::Apply(slice), &mut BTreeSet::new());
        assert!(matches!(&got[..], [Message::Event(Event::Delete(key))] if &*key.name.name == "s"));
    }
}
