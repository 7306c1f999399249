//! What the agent counts. Names begin with `plumb_` and are listed in docs/metrics.md, which a test keeps true.

#[cfg(test)]
mod listed;
mod outside;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::connections::Connections;
use crate::dns::DnsFace;
use crate::drops::Drops;

type Labels = Vec<(&'static str, String)>;
type Counters = Family<Labels, Counter>;
type Gauges = Family<Labels, Gauge>;
type Histograms = Family<Labels, Histogram>;

/// 50 µs to 1.6 s.
fn durations() -> Histogram {
    Histogram::new(exponential_buckets(50e-6, 2.0, 16))
}

/// One line a metric: its name, how it begins, what it tells.
macro_rules! metrics {
    ($($name:ident: $kind:ty = $new:expr, $help:literal;)*) => {
        /// All metrics of one agent.
        pub struct Metrics {
            registry: Registry,
            /// What the DNS server does; it comes and goes.
            pub dns: DnsFace,
            /// What the guards dropped, which the kernel counts.
            pub drops: Drops,
            /// What conntrack counts.
            pub connections: Connections,
            $($name: $kind,)*
        }

        impl Default for Metrics {
            fn default() -> Self {
                let mut registry = Registry::with_prefix("plumb");
                $(
                    let $name: $kind = $new;
                    registry.register(stringify!($name), $help, $name.clone());
                )*
                let dns = DnsFace::default();
                registry.register_collector(Box::new(outside::Process));
                registry.register_collector(Box::new(outside::Dns(dns.clone())));
                let drops = Drops::default();
                registry.register_collector(Box::new(outside::Guards(drops.clone())));
                let connections = Connections::default();
                registry.register_collector(Box::new(outside::Conntrack(connections.clone())));
                Self { registry, dns, drops, connections, $($name,)* }
            }
        }
    };
}

metrics! {
    synced: Gauge = Gauge::default(), "1 when every kind has been listed";
    paused: Gauge = Gauge::default(), "1 while drift is reported and not mended";
    attachments: Gauge = Gauge::default(), "Interfaces wired on this node";
    watch_troubles: Counters = Family::default(), "Watches that broke and were tried again, by kind";
    diagnostics: Gauges = Family::default(), "What is wrong with objects now, by kind";
    drift: Gauges = Family::default(),
        "Steps by which the kernel differs now and nobody mends it, by subsystem";
    last_sync_timestamp_seconds: Gauge = Gauge::default(),
        "When the kernel was last made, or found, what it should be, in Unix time";
    objects: Gauges = Family::default(), "Objects of the API that the node knows, by kind";
    pod_addresses: Gauge = Gauge::default(), "Pod addresses that this node can give out";
    looks: Counters = Family::default(),
        "Times that the kernel was read as a whole and compared, by subsystem";
    drift_seen: Counters = Family::default(),
        "Steps by which the kernel was found to differ from what it should be, by subsystem";
    drift_mended: Counters = Family::default(), "Steps that put back what others changed, by subsystem";
    apply_failures: Counters = Family::default(), "Plans that the kernel refused, by subsystem";
    apply_seconds: Histograms = Family::new_with_constructor(durations),
        "From a batch of events to the kernel, by subsystem";
    cni_seconds: Histograms = Family::new_with_constructor(durations),
        "CNI requests as the agent sees them, by command";
    cni_errors: Counters = Family::default(),
        "CNI requests that were answered with an error, by command and code";
    events_dropped: Counter = Counter::default(),
        "Kubernetes Events that were given up: too many waited, the API refused them, or was away for an hour";
    connections_refused: Counter = Counter::default(),
        "HTTP connections closed at once because their address, or all together, had too many";
    token_checks_refused: Counter = Counter::default(),
        "Tokens that the API server was not asked about because too many were being checked";
    flows_forgotten: Counter = Counter::default(), "Connections forgotten: of UDP to endpoints that are gone, and those of pods that are gone and of further sources that pods no longer have";
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

fn one(name: &'static str, value: impl Into<String>) -> Labels {
    vec![(name, value.into())]
}

impl Metrics {
    /// The text that Prometheus reads (OpenMetrics).
    pub fn render(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }

    pub fn synced(&self, yes: bool) {
        self.synced.set(i64::from(yes));
    }

    pub fn paused(&self, yes: bool) {
        self.paused.set(i64::from(yes));
    }

    pub fn attachments(&self, count: usize) {
        self.attachments.set(count as i64);
    }

    pub fn watch_trouble(&self, kind: &str) {
        self.watch_troubles.get_or_create(&one("kind", kind)).inc();
    }

    pub fn diagnostics(&self, kind: &str, by: i64) {
        self.diagnostics.get_or_create(&one("kind", kind)).inc_by(by);
    }

    pub fn drift(&self, subsystem: &str, steps: usize, mended: bool) {
        let family = if mended { &self.drift_mended } else { &self.drift_seen };
        family.get_or_create(&one("subsystem", subsystem)).inc_by(steps as u64);
    }

    pub fn looked(&self, subsystem: &str) {
        self.looks.get_or_create(&one("subsystem", subsystem)).inc();
    }

    pub fn drift_stands(&self, subsystem: &str, steps: usize) {
        self.drift.get_or_create(&one("subsystem", subsystem)).set(steps as i64);
    }

    pub fn right_now(&self, unix: std::time::Duration) {
        self.last_sync_timestamp_seconds.set(unix.as_secs() as i64);
    }

    pub fn objects(&self, kind: &str, count: usize) {
        self.objects.get_or_create(&one("kind", kind)).set(count as i64);
    }

    pub fn pod_addresses(&self, count: u128) {
        self.pod_addresses.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub fn apply_failed(&self, subsystem: &str) {
        self.apply_failures.get_or_create(&one("subsystem", subsystem)).inc();
    }

    pub fn applied(&self, subsystem: &str, took: std::time::Duration) {
        self.apply_seconds.get_or_create(&one("subsystem", subsystem)).observe(took.as_secs_f64());
    }

    pub fn cni(&self, command: &str, took: std::time::Duration, error: Option<cni::Code>) {
        self.cni_seconds.get_or_create(&one("command", command)).observe(took.as_secs_f64());
        if let Some(code) = error {
            let labels = vec![("command", command.to_owned()), ("code", (code as u32).to_string())];
            self.cni_errors.get_or_create(&labels).inc();
        }
    }

    pub fn flows_forgotten(&self, count: usize) {
        self.flows_forgotten.inc_by(count as u64);
    }

    /// To be counted up by whoever refuses one.
    pub fn refused(&self) -> Counter {
        self.connections_refused.clone()
    }

    /// The same, of tokens.
    pub fn tokens_refused(&self) -> Counter {
        self.token_checks_refused.clone()
    }

    pub fn event_dropped(&self) {
        self.events_dropped.inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_names_what_was_counted() {
        let metrics = Metrics::default();
        metrics.drift("nft", 3, true);
        metrics.cni("ADD", std::time::Duration::from_millis(1), Some(cni::Code::TryAgainLater));
        let text = metrics.render();
        assert!(text.contains("plumb_drift_mended_total{subsystem=\"nft\"} 3"), "{text}");
        assert!(text.contains("plumb_cni_errors_total{command=\"ADD\",code=\"11\"} 1"), "{text}");
    }
}
