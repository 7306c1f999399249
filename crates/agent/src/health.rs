//! Health checks of load balancers on `healthCheckNodePort` (L-05): HTTP, any path, what kube-proxy documents.
//!
//! ```text
//!   load balancer ── GET http://node:31000/ ──> 200 {"service":{…},"localEndpoints":2,"serviceProxyHealthy":true}
//!                                               503 when there is none here, or the datapath is not as it should be
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use model::{Cluster, Key, Kind};
use semantics::service::health;
use serde_json::json;
use tokio::sync::watch;
use types::{Family, ObjectName};

use crate::follow::{Site, follow};
use crate::inbox::Outbox;
use crate::serve::Door;
use crate::snapshot::{Endpoints, Question};

/// Who is asked for at which address.
pub type Checks = BTreeMap<SocketAddr, ObjectName>;

/// A loop that does not answer for so long is not healthy.
const PATIENCE: Duration = Duration::from_secs(2);

/// The loop's side: which Services have health checks.
pub struct Wanted {
    by_service: BTreeMap<ObjectName, BTreeSet<SocketAddr>>,
    publish: watch::Sender<Checks>,
}

impl Wanted {
    pub fn new(publish: watch::Sender<Checks>) -> Self {
        Self { by_service: BTreeMap::new(), publish }
    }

    /// `all`: every Service, since nobody knows what was before, or the node has another address.
    pub fn update(&mut self, cluster: &Cluster, settings: &semantics::Settings, keys: &[Key], all: bool) {
        let named = keys.iter().filter(|key| key.kind == Kind::Service).map(|key| &key.name);
        let changed: BTreeSet<ObjectName> = match all {
            true => cluster.services.keys().chain(self.by_service.keys()).cloned().collect(),
            false => named.cloned().collect(),
        };
        let mut differs = false;
        for name in changed {
            let now = health::fronts(cluster, settings, &name);
            let before = match now.is_empty() {
                true => self.by_service.remove(&name),
                false => self.by_service.insert(name, now.clone()),
            };
            differs |= before.unwrap_or_default() != now;
        }
        if differs {
            let mut checks = Checks::new();
            for (name, fronts) in &self.by_service {
                for front in fronts {
                    checks.entry(*front).or_insert_with(|| name.clone());
                }
            }
            self.publish.send_replace(checks);
        }
    }
}

/// Serves what is wanted until nobody can want anything any more.
pub async fn keep(wanted: watch::Receiver<Checks>, outbox: Outbox, door: Door) {
    let site = |address: SocketAddr, service: &ObjectName| {
        let family = Family::of(address.ip());
        let check = Check { service: service.clone(), family, outbox: outbox.clone() };
        let router = Router::new().fallback(answer).with_state(check);
        Site {
            purpose: format!("health checks of Service {service}"),
            speaker: router.into(),
            door: door.clone(),
        }
    };
    follow(wanted, Checks::clone, site).await;
}

#[derive(Clone)]
struct Check {
    service: ObjectName,
    family: Family,
    outbox: Outbox,
}

type Answer = (StatusCode, [(HeaderName, HeaderValue); 4], String);

async fn answer(State(check): State<Check>) -> Answer {
    let Check { service, family, outbox } = check;
    let name = service.clone();
    let question = |answer| Question::Endpoints { service: name, family, answer };
    let Endpoints { count, served } = outbox.ask(PATIENCE, question).await.unwrap_or_default();
    say(&service, count, served)
}

fn say(service: &ObjectName, count: usize, healthy: bool) -> Answer {
    let status = if count > 0 && healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = json!({
        "service": { "namespace": service.namespace, "name": service.name },
        "localEndpoints": count,
        "serviceProxyHealthy": healthy,
    });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (HeaderName::from_static("x-load-balancing-endpoint-weight"), HeaderValue::from(count)),
        // The next check asks whoever has the port then.
        (header::CONNECTION, HeaderValue::from_static("close")),
    ];
    (status, headers, body.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_what_load_balancers_read() {
        let service = ObjectName::new("shop", "web");
        let (status, headers, body) = say(&service, 2, true);
        assert_eq!(status, StatusCode::OK);
        let expected =
            r#"{"localEndpoints":2,"service":{"name":"web","namespace":"shop"},"serviceProxyHealthy":true}"#;
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&body).unwrap(),
            serde_json::from_str::<serde_json::Value>(expected).unwrap()
        );
        assert!(
            headers.iter().any(|(name, value)| name == "X-Load-Balancing-Endpoint-Weight" && value == "2")
        );
        assert_eq!(say(&service, 0, true).0, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(say(&service, 2, false).0, StatusCode::SERVICE_UNAVAILABLE);
    }
}
