//! What kube-proxy answers, at its ports, since nothing else does where Plumb takes its place: health checks of clouds'
//! load balancers, and what asks which proxy a node has.
//!
//! ```text
//!   :10256 /healthz         200, or 503 when the node is about to go or the datapath is stale
//!   :10256 /livez           the same, whatever becomes of the node
//!   127.0.0.1:10249 /proxyMode   nftables
//! ```

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::routing::get;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use tokio::sync::watch;
use types::wire::PROXY_HEALTH_PORT as HEALTH;

use crate::follow::{Site, follow};
use crate::inbox::Outbox;
use crate::node::Node;
use crate::serve::Door;

/// Of kube-proxy's `--metrics-bind-address`.
const MODE: u16 = 10249;
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
                let router = Router::new().route("/healthz", get(healthz)).route("/livez", get(livez));
                ("kube-proxy's health checks (--proxy-health)", router.with_state(outbox.clone()))
            }
            What::Mode => {
                let router = Router::new().route("/proxyMode", get(async || "nftables"));
                ("kube-proxy's mode (--proxy-health)", router)
            }
        };
        Site { purpose: purpose.to_owned(), router, door: door.clone() }
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
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// How long ago the kernel was what it should be; `None`: never.
    since_right: Option<Duration>,
    stale_after: Duration,
    /// The node is to stay: new connections may come here.
    eligible: bool,
}

impl Seen {
    fn of(node: &Node) -> Self {
        let settings = node.settings();
        let refresh = Duration::from_secs(settings.args.refresh);
        Self {
            since_right: node.standing().since_right().filter(|_| node.compiler().is_some()),
            stale_after: STALE.max(refresh * 4),
            eligible: node.cluster().nodes.get(&settings.node).is_some_and(|own| !own.leaving),
        }
    }

    fn is_fresh(&self) -> bool {
        self.since_right.is_some_and(|age| age < self.stale_after)
    }
}

type Answer = (StatusCode, [(HeaderName, HeaderValue); 2], String);

async fn healthz(State(outbox): State<Outbox>) -> Answer {
    let seen = outbox.inspect(PATIENCE, Seen::of).await;
    let eligible = seen.is_some_and(|seen| seen.eligible);
    say(seen, Some(eligible), SystemTime::now())
}

async fn livez(State(outbox): State<Outbox>) -> Answer {
    say(outbox.inspect(PATIENCE, Seen::of).await, None, SystemTime::now())
}

/// `eligible`: whether that is asked, too. `lastUpdated` is the current time while the datapath is fresh, as in
/// kube-proxy since 1.28: whoever computes with it sees no age.
fn say(seen: Option<Seen>, eligible: Option<bool>, now: SystemTime) -> Answer {
    let fresh = seen.is_some_and(|seen| seen.is_fresh());
    let age = match fresh {
        true => Some(Duration::ZERO),
        false => seen.and_then(|seen| seen.since_right),
    };
    let updated = age.and_then(|age| now.checked_sub(age)).map(go_time);
    // Go's zero time.
    let updated = updated.unwrap_or_else(|| "0001-01-01 00:00:00 +0000 UTC".to_owned());
    let mut body = json!({ "lastUpdated": updated, "currentTime": go_time(now) });
    if let Some(eligible) = eligible {
        body["nodeEligible"] = eligible.into();
    }
    let status = match fresh && eligible.unwrap_or(true) {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    (status, headers, body.to_string())
}

/// As Go prints a time.
fn go_time(at: SystemTime) -> String {
    let time = Timestamp::try_from(at);
    time.map(|time| time.strftime("%Y-%m-%d %H:%M:%S.%9f +0000 UTC").to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(age: Option<u64>) -> Option<Seen> {
        Some(Seen { since_right: age.map(Duration::from_secs), stale_after: STALE, eligible: true })
    }

    fn said(seen: Option<Seen>, eligible: Option<bool>) -> (StatusCode, serde_json::Value) {
        let (status, _, body) = say(seen, eligible, SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000));
        (status, serde_json::from_str(&body).unwrap())
    }

    #[test]
    fn a_node_that_stays_with_a_fresh_datapath_is_healthy_and_live() {
        let now = "1970-01-12 13:46:40.000000000 +0000 UTC";
        let both = json!({ "lastUpdated": now, "currentTime": now });
        let mut with_node = both.clone();
        with_node["nodeEligible"] = true.into();
        assert_eq!(said(seen(Some(20)), Some(true)), (StatusCode::OK, with_node));
        assert_eq!(said(seen(Some(20)), None), (StatusCode::OK, both));
    }

    #[test]
    fn a_node_that_goes_gets_no_new_connections_and_still_lives() {
        let (status, body) = said(seen(Some(20)), Some(false));
        assert_eq!((status, &body["nodeEligible"]), (StatusCode::SERVICE_UNAVAILABLE, &json!(false)));
    }

    #[test]
    fn a_stale_datapath_is_neither() {
        for (seen, updated) in [
            (seen(Some(120)), "1970-01-12 13:44:40.000000000 +0000 UTC"),
            (seen(None), "0001-01-01 00:00:00 +0000 UTC"),
            (None, "0001-01-01 00:00:00 +0000 UTC"),
        ] {
            for eligible in [Some(true), None] {
                let (status, body) = said(seen, eligible);
                assert_eq!(
                    (status, &body["lastUpdated"]),
                    (StatusCode::SERVICE_UNAVAILABLE, &json!(updated))
                );
            }
        }
    }
}
