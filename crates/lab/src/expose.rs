//! `plumb lab expose`: a port of the machine's loopback leads to a Service of the lab, for a browser, a test or curl.
//!
//! ```text
//! 127.0.0.1:PORT ── this process ── a socket in the network namespace of the pod's node ── a ready pod of the Service
//! ```
//! Each connection goes to the next ready endpoint, from its own node, as the kubelet reaches it: no policy is met, as with
//! kubectl port-forward.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use apiserver::kind::{DEPLOYMENT, Kind, POD, REPLICA_SET, SERVICE};
use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kernel::Netns;
use kernel::process::Namespaces;
use kube::api::ListParams;
use kube::{Api, Client};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use watch::Misused;

use crate::inside::Inside;
use crate::rundir::RunDir;
use crate::serving::{ANSWER, soon};
use crate::{Name, client};

/// `plumb lab expose`
#[derive(clap::Args, Debug)]
pub struct Options {
    #[command(flatten)]
    pub name: Name,
    /// The Service's namespace
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// The port on 127.0.0.1 [default: any that is free]
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    port: u16,
    /// SERVICE, svc/SERVICE (as kubectl port-forward has it) or NAMESPACE/SERVICE, each with :PORT where it has several: a
    /// number or a name
    service: String,
}

/// Between two looks whether the lab is still there.
const GLANCE: Duration = Duration::from_millis(250);

/// A pod that does not take a connection for so long is said not to.
const PATIENCE: Duration = Duration::from_secs(10);

/// Says the address, and serves until this process or the lab is ended.
pub fn run(options: &Options) -> Result<ExitCode> {
    let name = options.name.get()?;
    // What names no Service needs no lab to be refused.
    asked(&options.service, &options.namespace, &RunDir::of(&name)?.kubectl()).map_err(Misused::of)?;
    let inside = Inside::find(&name)?;
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, options.port))
        .map_err(|error| anyhow!("listen on 127.0.0.1:{}: {error}; --port chooses another", options.port))?;
    listener.set_nonblocking(true).context("listen")?;
    // An ordinary user's lab is a user namespace, which is entered before there are threads.
    if !kernel::own::is_root() {
        inside.anchor.enter_for_good(Namespaces::USER)?;
    }
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start a runtime")?
        .block_on(serve(inside, listener, options))
}

async fn serve(inside: Inside, listener: std::net::TcpListener, options: &Options) -> Result<ExitCode> {
    let client = client::admin(&inside.run).await?;
    let to = To::find(&client, &inside, options).await?;
    let listener = TcpListener::from_std(listener).context("listen")?;
    let at = listener.local_addr().context("listen")?;
    println!(
        "http://{at} leads to Service {}/{} port {}, until this command is ended",
        to.namespace, to.service, to.shown
    );
    // Nobody would know the port.
    if kernel::out::finish().is_err() {
        return Ok(ExitCode::FAILURE);
    }
    let places = Rc::new((inside, client, to));
    let tasks = tokio::task::LocalSet::new();
    tasks
        .run_until(async {
            let mut numbers = 0usize..;
            while !places.0.has_ended() {
                // The client gave up first, or files ran out: neither is a reason to end.
                let Ok(accepted) = tokio::time::timeout(GLANCE, listener.accept()).await else { continue };
                let (Ok((mut stream, _)), Some(number)) = (accepted, numbers.next()) else {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                };
                let places = Rc::clone(&places);
                tokio::task::spawn_local(async move {
                    let (inside, client, to) = &*places;
                    match to.connect(inside, client, number).await {
                        Ok(mut pod) => drop(tokio::io::copy_bidirectional(&mut stream, &mut pod).await),
                        Err(error) => eprintln!("plumb: {}", watch::told(error.as_ref())),
                    }
                });
            }
        })
        .await;
    Err(places.0.ended())
}

/// A browser's many connections at once are one question to the API.
const LATELY: Duration = Duration::from_secs(1);

/// A ready endpoint, and on which node it is.
type Endpoint = (SocketAddr, Option<String>);

/// A port of a Service.
struct To {
    namespace: String,
    service: String,
    /// As EndpointSlices name it.
    port: String,
    /// Its `targetPort`, where that is a name, and its number.
    target: Option<(String, i32)>,
    shown: String,
    /// Since when they are known.
    known: RefCell<Option<(Instant, Rc<[Endpoint]>)>>,
    /// kubectl of this lab, for messages.
    kubectl: String,
    lab: String,
}

impl To {
    /// Everything that can be wrong with what was asked for, before anybody connects.
    async fn find(client: &Client, inside: &Inside, options: &Options) -> Result<Self> {
        let kubectl = inside.run.kubectl();
        let Asked { namespace, name, port } =
            asked(&options.service, &options.namespace, &kubectl).map_err(Misused::of)?;
        let services: Api<Service> = Api::namespaced(client.clone(), namespace);
        let service = soon(ANSWER, services.get_opt(name)).await?.with_context(|| {
            format!("there is no Service {namespace}/{name}; {kubectl} get services -A shows those that are")
        })?;
        let spec = service.spec.unwrap_or_default();
        if spec.type_.as_deref() == Some("ExternalName") {
            let leads = spec.external_name.unwrap_or_default();
            bail!(
                "Service {namespace}/{name} is another name for {leads} and has no pods of its own: where that is a Service of \
                 the lab, expose that one"
            );
        }
        let row = choose(&spec.ports.unwrap_or_default(), port)
            .map_err(|why| anyhow!("Service {namespace}/{name} {why}"))?;
        let to = Self {
            namespace: namespace.to_owned(),
            service: name.to_owned(),
            shown: shown(&row),
            target: target(&row),
            port: row.name.unwrap_or_default(),
            known: RefCell::default(),
            kubectl,
            lab: inside.plan.name.clone(),
        };
        to.endpoints(client).await?;
        Ok(to)
    }

    async fn endpoints(&self, client: &Client) -> Result<Vec<Endpoint>> {
        let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), &self.namespace);
        let of = ListParams::default().labels(&format!("kubernetes.io/service-name={}", self.service));
        let slices = soon(ANSWER, slices.list(&of)).await?.items;
        let mut all = Vec::new();
        for slice in &slices {
            let named = |row: &&k8s_openapi::api::discovery::v1::EndpointPort| {
                row.name.clone().unwrap_or_default() == self.port
            };
            let port = slice.ports.iter().flatten().find(named).and_then(|row| row.port);
            let Some(port) = port.and_then(|port| u16::try_from(port).ok()) else { continue };
            for endpoint in ready(slice) {
                let address = endpoint.addresses.first().and_then(|text| text.parse::<IpAddr>().ok());
                all.extend(address.map(|ip| (SocketAddr::new(ip, port), endpoint.node_name.clone())));
            }
        }
        match all.is_empty() {
            true => Err(self.vacant(slices.iter().any(|slice| ready(slice).next().is_some()))),
            false => Ok(all),
        }
    }

    /// Why nobody is there. Pods that are ready and do not know the port by its name will not know it later either.
    fn vacant(&self, ready: bool) -> anyhow::Error {
        let Self { namespace, service, kubectl, lab, .. } = self;
        match self.target.as_ref().filter(|_| ready) {
            Some((target, port)) => anyhow!(
                "Service {namespace}/{service}: no ready pod has a port named {target} (targetPort of {port}); give a container \
                 of its pods a port of that name, or the Service another targetPort ({kubectl} -n {namespace} edit service \
                 {service})"
            ),
            None => anyhow!(
                "Service {namespace}/{service} has no ready endpoint; {kubectl} -n {namespace} get endpointslices -l \
                 kubernetes.io/service-name={service} shows what it has, and plumb lab wait --name {lab} waits for pods"
            ),
        }
    }

    /// The ready endpoints, and whether they are those of a moment ago.
    async fn lately(&self, client: &Client) -> Result<(Rc<[Endpoint]>, bool)> {
        let known = self.known.borrow().clone();
        if let Some((_, all)) = known.filter(|(since, _)| since.elapsed() < LATELY) {
            return Ok((all, true));
        }
        let all: Rc<[Endpoint]> = self.endpoints(client).await?.into();
        self.known.replace(Some((Instant::now(), Rc::clone(&all))));
        Ok((all, false))
    }

    /// To the next endpoint. One of a moment ago that takes no connection may have gone since: then the API is asked.
    async fn connect(&self, inside: &Inside, client: &Client, number: usize) -> Result<TcpStream> {
        let (all, former) = self.lately(client).await?;
        match Self::dial(inside, &all, number).await {
            Err(_) if former => {
                self.known.take();
                Self::dial(inside, &self.lately(client).await?.0, number).await
            }
            done => done,
        }
    }

    async fn dial(inside: &Inside, all: &[Endpoint], number: usize) -> Result<TcpStream> {
        let (address, node) = all.get(number % all.len().max(1)).context("no endpoint")?;
        let node = node.clone().unwrap_or_else(|| crate::plan::node_name(1));
        let at = || format!("connect to {address} from {node}");
        let holder = inside.living(&format!("hold-{node}")).with_context(at)?;
        let netns = Netns::open(inside.proc(holder).join("ns/net")).with_context(at)?;
        let new = if address.is_ipv4() { TcpSocket::new_v4 } else { TcpSocket::new_v6 };
        let socket = netns.run(new).with_context(at)?.with_context(at)?;
        let connected = tokio::time::timeout(PATIENCE, socket.connect(*address)).await;
        connected
            .map_err(|_| anyhow!("no answer within {} s", PATIENCE.as_secs()))
            .with_context(at)?
            .with_context(at)
    }
}

/// What was asked for, in its parts.
#[derive(Debug, PartialEq, Eq)]
struct Asked<'a> {
    namespace: &'a str,
    name: &'a str,
    port: Option<&'a str>,
}

/// Before the slash stands a kind, as kubectl has it, or else a namespace.
fn asked<'a>(text: &'a str, namespace: &'a str, kubectl: &str) -> Result<Asked<'a>> {
    let (before, rest) = text.split_once('/').map_or((None, text), |(before, rest)| (Some(before), rest));
    let (name, port) = rest.split_once(':').map_or((rest, None), |(name, port)| (name, Some(port)));
    let kind = before.and_then(kind);
    let namespace = match before {
        Some(before) if kind.is_none() => before,
        _ => namespace,
    };
    if let Some(kind) = kind.filter(|kind| kind.plural != SERVICE.plural) {
        let (word, port) = (kind.kind.to_lowercase(), port.unwrap_or("PORT"));
        bail!(
            "{text} is a {}, and what is exposed is a Service: name one that selects it ({kubectl} get services -A), or \
             reach it by {kubectl} -n {namespace} port-forward {word}/{name} {port}",
            kind.kind
        );
    }
    if name.is_empty() || name.contains('/') || namespace.is_empty() || namespace.contains(':') {
        bail!(
            "{text} names no Service: give SERVICE, svc/SERVICE or NAMESPACE/SERVICE, each with :PORT or without"
        );
    }
    if let Some(port) = port.filter(|port| !is_port(port)) {
        bail!("{text}: the port {port:?} is neither a number from 1 to 65535 nor the name of one");
    }
    Ok(Asked { namespace, name, port })
}

/// A number, or a name as the API has it (RFC 6335 §5.1), which is not all digits.
fn is_port(text: &str) -> bool {
    match text.bytes().all(|byte| byte.is_ascii_digit()) {
        true => text.parse::<u16>().is_ok_and(|port| port > 0),
        false => text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'),
    }
}

/// Of those that kubectl port-forward takes. As with kubectl, case does not matter, and a group may follow.
fn kind(word: &str) -> Option<&'static Kind> {
    let word = word.to_lowercase();
    let alone = word.split('.').next().unwrap_or_default();
    let means = |kind: &&&Kind| [kind.singular, kind.plural].contains(&alone) || kind.short.contains(&alone);
    [&SERVICE, &POD, &DEPLOYMENT, &REPLICA_SET].iter().find(means).copied()
}

fn ready(slice: &EndpointSlice) -> impl Iterator<Item = &k8s_openapi::api::discovery::v1::Endpoint> {
    let all = slice.endpoints.iter().flatten();
    all.filter(|e| e.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true))
}

fn target(port: &ServicePort) -> Option<(String, i32)> {
    match &port.target_port {
        Some(IntOrString::String(name)) => Some((name.clone(), port.port)),
        _ => None,
    }
}

fn shown(port: &ServicePort) -> String {
    match port.name.as_deref().filter(|name| !name.is_empty()) {
        Some(name) => format!("{} ({name})", port.port),
        None => port.port.to_string(),
    }
}

/// The port that is meant, or why none is.
fn choose(ports: &[ServicePort], asked: Option<&str>) -> Result<ServicePort, String> {
    let tcp = |row: &&ServicePort| row.protocol.as_deref().unwrap_or("TCP") == "TCP";
    let list = || {
        let all: Vec<String> = ports.iter().filter(tcp).map(shown).collect();
        if all.is_empty() { "none".to_owned() } else { all.join(", ") }
    };
    let fits = |row: &&ServicePort| match asked {
        None => true,
        Some(asked) => {
            asked.parse() == Ok(row.port)
                || row.name.as_deref() == Some(asked)
                || row.target_port == Some(IntOrString::String(asked.to_owned()))
        }
    };
    let mut fitting = ports.iter().filter(tcp).filter(fits);
    match (fitting.next(), fitting.next(), asked) {
        (Some(row), None, _) => Ok(row.clone()),
        (Some(row), Some(_), Some(_)) => Ok(row.clone()),
        (Some(_), Some(_), None) => {
            Err(format!("has several TCP ports; choose one as SERVICE:PORT: {}", list()))
        }
        (None, _, Some(asked)) => Err(format!("has no TCP port {asked:?}; it has {}", list())),
        (None, _, None) => Err("has no TCP port; only TCP is exposed".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use apiserver::{Config, NoNodes, Store};
    use kube::api::PostParams;
    use serde_json::json;

    use super::*;

    /// An API without nodes, and how often EndpointSlices were asked for.
    fn api() -> (Client, Arc<AtomicUsize>) {
        let config = Config {
            advertised: ([192, 168, 1, 2], 6443).into(),
            families: types::Families::Ipv4,
            nodes: Arc::new(NoNodes),
            credentials: None,
        };
        let api = apiserver::Api::new(Store::in_memory(), config).expect("seeds");
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let counted = tower::util::MapRequest::new(api, move |request: http::Request<kube::client::Body>| {
            if request.method() == http::Method::GET && request.uri().path().ends_with("/endpointslices") {
                count.fetch_add(1, Ordering::Relaxed);
            }
            request
        });
        (Client::new(counted, "default"), asked)
    }

    #[tokio::test]
    async fn many_connections_at_once_are_one_question_to_the_api() {
        let (client, asked) = api();
        let slice = json!({"metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "endpoints": [{"addresses": ["10.244.1.5"], "nodeName": "node1"}],
            "ports": [{"name": "", "port": 8080}]});
        let slices: Api<EndpointSlice> = Api::default_namespaced(client.clone());
        let slice = serde_json::from_value(slice).expect("a slice");
        slices.create(&PostParams::default(), &slice).await.expect("made");
        let to = To {
            namespace: "default".into(),
            service: "web".into(),
            port: String::new(),
            target: None,
            shown: "80".into(),
            known: RefCell::default(),
            kubectl: "kubectl".into(),
            lab: "lab".into(),
        };
        let mut formers = 0;
        for _ in 0..50 {
            let (all, former) = to.lately(&client).await.expect("endpoints");
            assert_eq!(*all, [(([10, 244, 1, 5], 8080).into(), Some("node1".to_owned()))]);
            formers += usize::from(former);
        }
        // A machine that is busy with other things may take longer than a moment for all of them.
        assert!(formers > 0 && asked.load(Ordering::Relaxed) + formers == 50, "{formers}");
        to.known.take();
        assert!(!to.lately(&client).await.expect("endpoints").1, "forgotten is asked anew");
    }

    /// To wait for pods helps only where none is ready.
    #[tokio::test]
    async fn a_named_port_that_no_ready_pod_has_is_named() {
        let row = |target: serde_json::Value| {
            serde_json::from_value(json!({"name": "odd", "port": 99, "targetPort": target})).expect("a port")
        };
        for (target, ready, words) in [
            (
                json!("nosuch"),
                true,
                "no ready pod has a port named nosuch (targetPort of 99); give a container",
            ),
            (json!("nosuch"), false, "default/web has no ready endpoint"),
            (json!(8080), true, "default/web has no ready endpoint"),
        ] {
            let (client, _) = api();
            let slice = json!({"metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
                "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}],
                "endpoints": [{"addresses": ["10.244.1.5"], "conditions": {"ready": ready}}]});
            let slices: Api<EndpointSlice> = Api::default_namespaced(client.clone());
            let slice = serde_json::from_value(slice).expect("a slice");
            slices.create(&PostParams::default(), &slice).await.expect("made");
            let to = To {
                namespace: "default".into(),
                service: "web".into(),
                port: "odd".into(),
                target: super::target(&row(target)),
                shown: "99 (odd)".into(),
                known: RefCell::default(),
                kubectl: "kubectl".into(),
                lab: "lab".into(),
            };
            let told = to.endpoints(&client).await.expect_err("nobody").to_string();
            assert!(told.contains(words), "{told}");
            assert_eq!(told.contains("plumb lab wait"), !words.contains("nosuch"), "{told}");
        }
    }

    #[test]
    fn a_service_is_named_as_kubectl_names_it() {
        let parts = |text| {
            let Asked { namespace, name, port } = asked(text, "mine", "kubectl").expect(text);
            (namespace, name, port)
        };
        assert_eq!(parts("web"), ("mine", "web", None));
        assert_eq!(parts("shop/web:http"), ("shop", "web", Some("http")));
        for kind in ["svc", "service", "services", "Service", "services.v1"] {
            let text = format!("{kind}/web:80");
            let Asked { namespace, name, port } = asked(&text, "mine", "kubectl").expect(kind);
            assert_eq!((namespace, name, port), ("mine", "web", Some("80")), "{kind}");
        }
        let refused = |text| asked(text, "mine", "kubectl").expect_err(text).to_string();
        assert_eq!(
            refused("pod/web:8080"),
            "pod/web:8080 is a Pod, and what is exposed is a Service: name one that selects it (kubectl get services -A), or \
             reach it by kubectl -n mine port-forward pod/web 8080"
        );
        assert!(
            refused("deployments.apps/web").ends_with("kubectl -n mine port-forward deployment/web PORT")
        );
        for wrong in ["shop/api:99999", "web:0", "web:", "web:80:90"] {
            assert!(refused(wrong).contains("neither a number from 1 to 65535 nor"), "{wrong}");
        }
        for nothing in ["svc/", "/web", "", ":80", "shop/svc/web", "web:80/tcp"] {
            assert!(refused(nothing).contains("names no Service"), "{nothing}");
        }
    }

    #[test]
    fn a_port_is_chosen_by_number_or_name_and_needs_no_choice_where_there_is_one() {
        let port = |name: &str, port, protocol: &str| ServicePort {
            name: Some(name.into()),
            port,
            protocol: Some(protocol.into()),
            ..ServicePort::default()
        };
        let ports = [port("http", 80, "TCP"), port("metrics", 9090, "TCP"), port("dns", 53, "UDP")];
        let chosen = |ports: &[ServicePort], asked| choose(ports, asked).map(|row| row.port);
        assert_eq!(chosen(&ports, Some("metrics")), Ok(9090));
        assert_eq!(chosen(&ports, Some("80")), Ok(80));
        assert_eq!(chosen(&ports[..1], None), Ok(80));
        let refused = |ports, asked| chosen(ports, asked).unwrap_err();
        assert_eq!(
            refused(&ports, None),
            "has several TCP ports; choose one as SERVICE:PORT: 80 (http), 9090 (metrics)"
        );
        assert_eq!(refused(&ports, Some("dns")), "has no TCP port \"dns\"; it has 80 (http), 9090 (metrics)");
        assert_eq!(refused(&ports[2..], None), "has no TCP port; only TCP is exposed");
    }
}
