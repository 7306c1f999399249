//! httpGet and tcpSocket probes, made from the node's network namespace as kubelet makes them.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

/// What a probe tells the pod's worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Ready,
    /// Not ready any more, or still not.
    NotReady(String),
    /// The liveness probe failed as often as it may.
    Dead(String),
}

/// A probe with all defaults filled in (pkg/apis/core/v1/defaults.go, `SetDefaults_Probe`).
#[derive(Clone, Debug)]
pub struct Plan {
    target: Target,
    delay: Duration,
    period: Duration,
    timeout: Duration,
    successes: i32,
    failures: i32,
}

#[derive(Clone, Debug)]
enum Target {
    Http { address: (String, u16), request: String },
    Tcp { address: (String, u16) },
}

/// A container that just started is asked again after this, and then ever more rarely up to the period: a pod is
/// Ready when it is, not when the period ends.
const FIRST_PAUSE: Duration = Duration::from_millis(10);

impl Plan {
    /// `Err` names what is wrong with the probe.
    pub fn new(probe: &Probe, container: &Container, pod_address: &str) -> Result<Self, String> {
        let seconds = |value: Option<i32>, default: u64| {
            Duration::from_secs(
                value.and_then(|value| u64::try_from(value).ok()).filter(|v| *v > 0).unwrap_or(default),
            )
        };
        let target = match (&probe.http_get, &probe.tcp_socket) {
            (Some(http), _) => http_target(http, container, pod_address)?,
            (None, Some(tcp)) => {
                let host = tcp.host.as_deref().unwrap_or(pod_address);
                Target::Tcp { address: (host.to_owned(), port(&tcp.port, container)?) }
            }
            (None, None) => return Err("a probe without httpGet or tcpSocket".into()),
        };
        Ok(Self {
            target,
            delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, 10),
            timeout: seconds(probe.timeout_seconds, 1),
            successes: probe.success_threshold.unwrap_or(1).max(1),
            failures: probe.failure_threshold.unwrap_or(3).max(1),
        })
    }

    /// Reports each change of readiness until the receiver is gone.
    pub async fn watch_readiness(self, verdicts: mpsc::Sender<Verdict>) {
        tokio::time::sleep(self.delay).await;
        let (mut ready, mut good, mut bad) = (false, 0, 0);
        let (mut pause, mut told) = (FIRST_PAUSE, Instant::now());
        loop {
            let verdict = match self.ask().await {
                Ok(()) => {
                    (good, bad) = (good + 1, 0);
                    (!ready && good >= self.successes).then_some(Verdict::Ready)
                }
                Err(why) => {
                    (good, bad) = (0, bad + 1);
                    let lost = ready && bad >= self.failures;
                    let still = !ready && told.elapsed() >= self.period;
                    (lost || still).then_some(Verdict::NotReady(why))
                }
            };
            if let Some(verdict) = verdict {
                (ready, told) = (verdict == Verdict::Ready, Instant::now());
                if verdicts.send(verdict).await.is_err() {
                    return;
                }
            }
            pause = if ready { self.period } else { (pause * 3 / 2).min(self.period) };
            tokio::time::sleep(pause).await;
        }
    }

    /// Reports once, when the container is to be killed.
    pub async fn watch_life(self, verdicts: mpsc::Sender<Verdict>) {
        tokio::time::sleep(self.delay).await;
        let mut bad = 0;
        loop {
            tokio::time::sleep(self.period).await;
            match self.ask().await {
                Ok(()) => bad = 0,
                Err(why) => {
                    bad += 1;
                    if bad >= self.failures {
                        let _ = verdicts.send(Verdict::Dead(why)).await;
                        return;
                    }
                }
            }
        }
    }

    async fn ask(&self) -> Result<(), String> {
        let asked = async {
            match &self.target {
                Target::Tcp { address } => connect(address).await.map(drop),
                Target::Http { address, request } => http(address, request).await,
            }
        };
        match tokio::time::timeout(self.timeout, asked).await {
            Ok(outcome) => outcome,
            Err(_) => Err(format!("no answer within {} s", self.timeout.as_secs())),
        }
    }
}

fn http_target(http: &HTTPGetAction, container: &Container, pod_address: &str) -> Result<Target, String> {
    if http.scheme.as_deref().is_some_and(|scheme| scheme != "HTTP") {
        return Err("httpGet: only scheme HTTP is supported".into());
    }
    let address = (http.host.clone().unwrap_or_else(|| pod_address.to_owned()), port(&http.port, container)?);
    let path = http.path.as_deref().unwrap_or("/");
    let slash = if path.starts_with('/') { "" } else { "/" };
    // An IPv6 address stands in brackets there (RFC 3986 §3.2.2).
    let host = if address.0.contains(':') { format!("[{}]", address.0) } else { address.0.clone() };
    let mut headers = format!("Host: {host}:{}\r\n", address.1);
    for header in http.http_headers.iter().flatten() {
        if header.name.eq_ignore_ascii_case("host") {
            headers = format!("Host: {}\r\n", header.value);
        } else {
            headers += &format!("{}: {}\r\n", header.name, header.value);
        }
    }
    let request = format!(
        "GET {slash}{path} HTTP/1.1\r\n{headers}User-Agent: kube-probe/plumb\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    if request.split("\r\n\r\n").count() > 2 {
        return Err("httpGet: a header or the path contains a line break".into());
    }
    Ok(Target::Http { address, request })
}

fn port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    match port {
        IntOrString::Int(number) => u16::try_from(*number).map_err(|_| format!("probe port {number}")),
        IntOrString::String(name) => container
            .ports
            .iter()
            .flatten()
            .find(|port| port.name.as_deref() == Some(name))
            .and_then(|port| u16::try_from(port.container_port).ok())
            .ok_or_else(|| format!("the container has no port named {name:?}, which its probe asks")),
    }
}

async fn connect(address: &(String, u16)) -> Result<TcpStream, String> {
    TcpStream::connect((address.0.as_str(), address.1))
        .await
        .map_err(|error| format!("connect to {}:{}: {error}", address.0, address.1))
}

/// Success is a status from 200 to 399 (pkg/probe/http).
async fn http(address: &(String, u16), request: &str) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("ask http://{}:{}: {error}", address.0, address.1);
    let mut stream = connect(address).await?;
    stream.write_all(request.as_bytes()).await.map_err(failed)?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).await.map_err(failed)?;
    let status = line.split(' ').nth(1).and_then(|status| status.parse::<u16>().ok());
    match status {
        Some(200..=399) => Ok(()),
        Some(status) => Err(format!("HTTP probe failed with statuscode: {status}")),
        None => Err(format!("the answer is not HTTP: {:?}", line.trim_end())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(probe: serde_json::Value, address: &str) -> Result<Plan, String> {
        let container = serde_json::json!({"name": "c", "ports": [{"name": "web", "containerPort": 8080}]});
        let container: Container = serde_json::from_value(container).expect("a container");
        Plan::new(&serde_json::from_value(probe).expect("a probe"), &container, address)
    }

    #[test]
    fn ports_may_have_names() {
        let plan =
            plan(serde_json::json!({"httpGet": {"port": "web", "path": "x"}}), "10.0.0.1").expect("valid");
        match plan.target {
            Target::Http { address, request } => {
                assert_eq!(address, ("10.0.0.1".to_owned(), 8080));
                assert!(request.starts_with("GET /x HTTP/1.1\r\nHost: 10.0.0.1:8080\r\n"), "{request}");
            }
            Target::Tcp { .. } => panic!("it is HTTP"),
        }
    }

    #[test]
    fn what_cannot_be_asked_is_named() {
        assert!(
            plan(serde_json::json!({"httpGet": {"port": "other"}}), "a")
                .expect_err("no port")
                .contains("other")
        );
        assert!(plan(serde_json::json!({"httpGet": {"port": 1, "scheme": "HTTPS"}}), "a").is_err());
        let smuggled = serde_json::json!({"httpGet": {"port": 1, "path": "/ HTTP/1.1\r\n\r\nGET /"}});
        assert!(plan(smuggled, "a").is_err());
    }

    #[tokio::test]
    async fn readiness_follows_the_server() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let port = listener.local_addr().expect("address").port();
        let server = std::thread::spawn(move || {
            use std::io::{Read, Write};
            for answer in ["HTTP/1.1 500 no\r\n\r\n", "HTTP/1.1 204 yes\r\n\r\n"] {
                let (mut stream, _) = listener.accept().expect("accept");
                let mut buffer = [0; 1024];
                let _ = stream.read(&mut buffer).expect("read");
                stream.write_all(answer.as_bytes()).expect("write");
            }
        });
        let probe = serde_json::json!({"httpGet": {"port": port}, "periodSeconds": 3600});
        let (sender, mut verdicts) = mpsc::channel(1);
        let task = tokio::spawn(plan(probe, "127.0.0.1").expect("valid").watch_readiness(sender));
        assert_eq!(verdicts.recv().await, Some(Verdict::Ready));
        task.abort();
        server.join().expect("server");
    }
}
