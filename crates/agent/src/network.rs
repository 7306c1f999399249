//! What the node serves at its own addresses, wherever they are by now.
//!
//! ```text
//!   the API tells our Node's addresses ─> :9475 health, metrics, and with a token traces and reports
//!   everything is in place, once ───────> DNS at the cluster's addresses, and at :9476 for other nodes' pods
//! ```
//! Until then health says what is lacking, and the agents of other nodes answer pods' queries.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use axum::{Router, middleware};
use tokio::sync::watch;
use types::wire::{AGENT_PORT, DNS_PEER_PORT};

use crate::Names;
use crate::dns::{self, DnsConfig, DnsFace, SharedZone};
use crate::follow::{Site, follow};
use crate::http;
use crate::report::Reports;
use crate::scrape::Readers;
use crate::serve::{Door, Speaker, Tls};
use crate::server::Served;
use crate::settings::Args;
use crate::trace::{self, Tokens, Traces, Views};

/// Where the node is, and whether it can serve.
#[derive(Clone, Debug, Default)]
pub struct Presence {
    pub addresses: BTreeSet<IpAddr>,
    /// Everything was there once.
    pub in_place: bool,
}

impl Presence {
    /// Whether that changes anything.
    pub fn move_to(&mut self, addresses: &[IpAddr]) -> bool {
        let addresses = addresses.iter().copied().collect();
        let before = std::mem::replace(&mut self.addresses, addresses);
        before != self.addresses
    }

    fn at(&self, port: u16) -> impl Iterator<Item = SocketAddr> {
        self.addresses.iter().map(move |ip| SocketAddr::new(*ip, port))
    }
}

/// Ends when the node's loop does.
pub async fn serve(
    presence: watch::Receiver<Presence>,
    args: Args,
    zone: SharedZone,
    served: Served,
) -> Result<()> {
    let resolvers: Vec<SocketAddr> = args.dns_ips.iter().map(|ip| SocketAddr::new(*ip, 53)).collect();
    let views = Views::new(&args.node, served.outbox.clone(), zone.clone(), resolvers.clone());
    let tokens = Tokens::new(served.client.clone(), &args.node, served.metrics.tokens_refused());
    let reports = Reports::new(views.clone(), served.outbox.clone(), Arc::clone(&served.metrics));
    let guarded = Router::new()
        .nest("/v1/trace", Traces::new(&args.node, views).router())
        .nest("/v1/node", reports.router())
        .layer(middleware::from_fn(move |request, next| trace::check(tokens.clone(), request, next)));
    let secure = args.secure_metrics;
    let readers = secure.then(|| Readers::new(served.client.clone(), served.metrics.tokens_refused()));
    let tls = secure.then(|| Tls::new(&args.metrics_cert_dir, &args.node)).transpose()?;
    let speaker = Speaker { router: http::router(served.clone(), guarded, readers), tls };
    let door = Door::new(served.metrics.refused());
    let at = |here: &Presence| here.at(AGENT_PORT).map(|address| (address, ())).collect::<BTreeMap<_, _>>();
    let site = |_: SocketAddr, (): &()| Site {
        purpose: "health and metrics".to_owned(),
        speaker: speaker.clone(),
        door: door.clone(),
    };
    let mut once = presence.clone();
    let names = async {
        once.wait_for(|here| here.in_place).await.context("the node's loop ended")?;
        let wanted = served.dns.subscribe();
        keep_dns(DnsConfig::new(resolvers), zone, (once, wanted), served.metrics.dns.clone()).await;
        bail!("the agent's socket ended")
    };
    tokio::select! {
        () = follow(presence, at, site) => bail!("the node's loop ended"),
        ended = names => ended,
    }
}

const RETRY: Duration = Duration::from_secs(2);

/// A port that is taken may become free: said once, tried on. Ends when the agent does.
async fn keep_dns(
    mut config: DnsConfig,
    zone: SharedZone,
    (mut presence, mut wanted): (watch::Receiver<Presence>, watch::Receiver<Names>),
    face: DnsFace,
) {
    let mut said = String::new();
    loop {
        match wanted.wait_for(|wanted| *wanted != Names::Paused).await.map(|wanted| *wanted) {
            Ok(Names::Served) => {}
            Ok(_) | Err(_) => return,
        }
        config.peers = presence.borrow_and_update().at(DNS_PEER_PORT).collect();
        match dns::serve(config.clone(), zone.clone()) {
            Ok(server) => {
                tracing::info!(addresses = ?server.addresses(), "DNS serves");
                face.serves(server.addresses(), Arc::clone(&server.counters));
                said.clear();
                let moved = |here: &Presence| !here.at(DNS_PEER_PORT).eq(config.peers.iter().copied());
                let why = tokio::select! {
                    // An error: nobody can want it any more, and the next round ends.
                    now = wanted.wait_for(|wanted| *wanted != Names::Served) => match now.map(|now| *now) {
                        Ok(Names::Paused) => {
                            tracing::warn!("DNS is paused: other nodes answer this node's pods");
                            dns::PAUSED
                        }
                        _ => "it ends",
                    },
                    Ok(_) = presence.wait_for(moved) => "the node has other addresses",
                };
                server.leave().await;
                face.is_away(why);
            }
            Err(error) => {
                let error = error.to_string();
                face.is_away(&error);
                if error != said {
                    tracing::error!("{error}");
                    said = error;
                }
                tokio::select! {
                    () = tokio::time::sleep(RETRY) => {}
                    _ = wanted.changed() => {}
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;
    use crate::dns::tests::inside;
    use crate::follow::tests::{ask, until};
    use crate::inbox;
    use crate::metrics::Metrics;

    const DNS: &str = "10.96.0.10:53";

    fn served() -> Served {
        let nowhere = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        Served {
            outbox: inbox::new().0,
            client: kube::Client::try_from(nowhere).unwrap(),
            metrics: Arc::new(Metrics::default()),
            dns: watch::Sender::new(Names::Served),
        }
    }

    async fn health(ip: &str) -> Option<String> {
        ask(SocketAddr::new(ip.parse().unwrap(), AGENT_PORT), "/healthz").await.ok()
    }

    #[test]
    fn health_is_served_before_names_and_both_move_with_the_node() {
        inside(async || {
            let args = Args::of_flags(["--node", "node1"]).unwrap();
            let zone = SharedZone::new(::dns::Settings::new("cluster.local").unwrap());
            let served = served();
            let face = served.metrics.dns.clone();
            let (here, presence) = watch::channel(Presence::default());
            let network = tokio::spawn(serve(presence, args, zone, served));

            assert!(here.send_if_modified(|here| here.move_to(&["192.168.1.10".parse().unwrap()])));
            // Nobody runs the node's loop.
            let said = until("health", async || health("192.168.1.10").await).await;
            assert!(said.starts_with("HTTP/1.0 503") && said.contains("loop"), "{said}");
            assert_eq!(face.serving(), Err("it has not started yet".to_owned()));
            assert!(TcpStream::connect(("192.168.1.10", DNS_PEER_PORT)).is_err());

            let at = |ip: &str| -> Result<Vec<SocketAddr>, String> {
                let all = [DNS.to_owned(), format!("{ip}:{DNS_PEER_PORT}")];
                Ok(all.iter().map(|address| address.parse().unwrap()).collect())
            };
            here.send_modify(|here| here.in_place = true);
            until("DNS", async || (face.serving() == at("192.168.1.10")).then_some(())).await;
            assert!(TcpStream::connect(("192.168.1.10", DNS_PEER_PORT)).is_ok());

            assert!(here.send_if_modified(|here| here.move_to(&["192.168.1.11".parse().unwrap()])));
            assert!(!here.send_if_modified(|here| here.move_to(&["192.168.1.11".parse().unwrap()])));
            until("DNS there", async || (face.serving() == at("192.168.1.11")).then_some(())).await;
            until("health there", async || health("192.168.1.11").await).await;
            until("no health here", async || health("192.168.1.10").await.is_none().then_some(())).await;
            assert!(TcpStream::connect(("192.168.1.10", DNS_PEER_PORT)).is_err());
            assert!(TcpStream::connect(DNS).is_ok());

            drop(here);
            assert!(network.await.unwrap().is_err(), "without the node's loop it ends");
        });
    }
}
