//! What kube-proxy answers, at its ports, since nothing else does where Plumb takes its place: health checks of clouds'
//! load balancers, and what asks which proxy a node has.
//!
//! ```text
//!   :10256 /healthz         200, or 503 when the node is about to go or the datapath is stale
//!   :10256 /livez           the same, whatever becomes of the node
//!   127.0.0.1:10249 /proxyMode   nftables
//! ```
//!
//! Bodies, headers and codes are those of kube-proxy 1.36 (pkg/proxy/healthcheck/proxy_health.go; serveMetrics in
//! cmd/kube-proxy/app/server.go), but for an agent that never had the datapath right: kube-proxy says 200 until its first
//! pass over the rules, and an agent 503, since nothing may lead to a node that leads nowhere.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::routing::any;
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;
use tokio::sync::watch;
use types::Family;
use types::wire::{PROXY_HEALTH_PORT as HEALTH, PROXY_MODE_PORT as MODE};

use crate::follow::{Site, follow};
use crate::inbox::Outbox;
use crate::serve::Door;
use crate::snapshot::{self, Question};

/// A datapath that has not been right for this long is stale, as kube-proxy says it; at least four comparisons.
const STALE: Duration = Duration::from_secs(120);
/// A loop that does not answer for so long is not healthy.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Health,
    Mode,
}

/// Serves until the agent ends. A port that is taken, by a kube-proxy perhaps, is told once and tried on.
pub async fn keep(outbox: Outbox, door: Door) {
    let (_want, wanted) = watch::channel(addresses());
    let site = |_: SocketAddr, what: &What| {
        let (purpose, router) = match what {
            What::Health => {
                // Whatever the method, as kube-proxy answers.
                let router = Router::new().route("/healthz", any(healthz)).route("/livez", any(livez));
                ("kube-proxy's health checks (--proxy-health)", router.with_state(outbox.clone()))
            }
            What::Mode => {
                let router = Router::new().route("/proxyMode", any(async || mode()));
                ("kube-proxy's mode (--proxy-health)", router)
            }
        };
        Site { purpose: purpose.to_owned(), speaker: router.into(), door: door.clone() }
    };
    follow(wanted, BTreeMap::clone, site).await;
}

/// All addresses of both families where the kernel has IPv6.
fn addresses() -> BTreeMap<SocketAddr, What> {
    let all: IpAddr = match std::path::Path::new("/proc/net/if_inet6").exists() {
        true => Ipv6Addr::UNSPECIFIED.into(),
        false => Ipv4Addr::UNSPECIFIED.into(),
    };
    let here = IpAddr::from(Ipv4Addr::LOCALHOST);
    [(SocketAddr::new(all, HEALTH), What::Health), (SocketAddr::new(here, MODE), What::Mode)].into()
}

/// What the answers are made of.
#[derive(Clone, Debug)]
struct Seen {
    /// Of which families there are Services here.
    families: Vec<Family>,
    /// How long ago the kernel was what it should be; `None`: never.
    since_right: Option<Duration>,
    stale_after: Duration,
    /// The node is to stay: new connections may come here.
    eligible: bool,
}

impl Seen {
    async fn ask(outbox: &Outbox) -> Option<Self> {
        let snapshot::Health { families, since_right, refresh, eligible, .. } =
            outbox.ask(PATIENCE, Question::Health).await?;
        Some(Self { families, since_right, stale_after: STALE.max(refresh * 4), eligible })
    }

    fn is_fresh(&self) -> bool {
        self.since_right.is_some_and(|age| age < self.stale_after)
    }
}

type Headers = [(HeaderName, HeaderValue); 2];
type Answer = (StatusCode, Headers, String);

/// `ProxyHealth`, in its order. Go leaves out what is absent (`omitempty`).
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Health {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    status: BTreeMap<String, OfFamily>,
}

/// `ProxierHealth`: kube-proxy has a proxier for each family, an agent one datapath.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct OfFamily {
    last_updated: String,
    healthy: bool,
}

async fn healthz(State(outbox): State<Outbox>) -> Answer {
    let seen = Seen::ask(&outbox).await;
    let eligible = seen.as_ref().is_some_and(|seen| seen.eligible);
    say(seen, Some(eligible), SystemTime::now())
}

async fn livez(State(outbox): State<Outbox>) -> Answer {
    say(Seen::ask(&outbox).await, None, SystemTime::now())
}

fn mode() -> (Headers, &'static str) {
    (headers("text/plain; charset=utf-8"), "nftables")
}

fn headers(content: &'static str) -> Headers {
    [
        (header::CONTENT_TYPE, HeaderValue::from_static(content)),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ]
}

/// `eligible`: whether that is asked, too. With 200 `lastUpdated` is the current time, as it was when kube-proxy still
/// went over its rules every 30 s: whoever computes with it sees no age. That of a family is when it was last right.
fn say(seen: Option<Seen>, eligible: Option<bool>, now: SystemTime) -> Answer {
    let fresh = seen.as_ref().is_some_and(Seen::is_fresh);
    let right = seen.as_ref().and_then(|seen| now.checked_sub(seen.since_right?)).map(go_time);
    let families = seen.map(|seen| seen.families).unwrap_or_default().into_iter();
    let of_family = right.clone().map(|last_updated| OfFamily { last_updated, healthy: fresh });
    let status = match fresh && eligible.unwrap_or(true) {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    let health = Health {
        last_updated: match status {
            StatusCode::OK => go_time(now),
            // Go's zero time.
            _ => right.unwrap_or_else(|| "0001-01-01T00:00:00Z".to_owned()),
        },
        current_time: go_time(now),
        node_eligible: eligible,
        healthy: fresh,
        status: families.filter_map(|family| Some((family.to_string(), of_family.clone()?))).collect(),
    };
    (status, headers("application/json"), serde_json::to_string(&health).unwrap_or_default())
}

/// As Go writes a time in JSON (RFC 3339, no zeros at its end), in UTC.
fn go_time(at: SystemTime) -> String {
    Timestamp::try_from(at).map(|time| time.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "1970-01-12T13:46:40.5Z";
    const RIGHT: &str = "1970-01-12T13:46:20.5Z";

    fn seen(age: Option<u64>) -> Option<Seen> {
        let families = vec![Family::V4, Family::V6];
        let since_right = age.map(Duration::from_secs);
        Some(Seen { families, since_right, stale_after: STALE, eligible: true })
    }

    fn said(seen: Option<Seen>, eligible: Option<bool>) -> (u16, String) {
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(1_000_000_500);
        let (status, _, body) = say(seen, eligible, now);
        (status.as_u16(), body)
    }

    fn families(updated: &str, healthy: bool) -> String {
        let each = format!(r#"{{"lastUpdated":"{updated}","healthy":{healthy}}}"#);
        format!(r#","status":{{"IPv4":{each},"IPv6":{each}}}"#)
    }

    /// The bytes that json.Marshal makes of a ProxyHealth.
    #[test]
    fn a_node_that_stays_with_a_fresh_datapath_is_healthy_and_live() {
        let of = families(RIGHT, true);
        let body = format!(
            r#"{{"lastUpdated":"{NOW}","currentTime":"{NOW}","nodeEligible":true,"healthy":true{of}}}"#
        );
        assert_eq!(said(seen(Some(20)), Some(true)), (200, body));
        let body = format!(r#"{{"lastUpdated":"{NOW}","currentTime":"{NOW}","healthy":true{of}}}"#);
        assert_eq!(said(seen(Some(20)), None), (200, body));
    }

    #[test]
    fn a_node_that_goes_gets_no_new_connections_and_still_lives() {
        let of = families(RIGHT, true);
        let body = format!(
            r#"{{"lastUpdated":"{RIGHT}","currentTime":"{NOW}","nodeEligible":false,"healthy":true{of}}}"#
        );
        assert_eq!(said(seen(Some(20)), Some(false)), (503, body));
    }

    #[test]
    fn a_stale_datapath_is_neither() {
        let stale = "1970-01-12T13:44:40.5Z";
        let never = "0001-01-01T00:00:00Z";
        for (seen, updated, of) in [
            (seen(Some(120)), stale, families(stale, false)),
            (seen(None), never, String::new()),
            (None, never, String::new()),
        ] {
            for (eligible, node) in [(Some(true), r#","nodeEligible":true"#), (None, "")] {
                let body = format!(
                    r#"{{"lastUpdated":"{updated}","currentTime":"{NOW}"{node},"healthy":false{of}}}"#
                );
                assert_eq!(said(seen.clone(), eligible), (503, body));
            }
        }
    }
}
