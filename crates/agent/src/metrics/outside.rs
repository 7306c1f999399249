//! What is not counted here but read when somebody asks: the DNS server's own counters, the kernel's, and the process.

use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use crate::connections::Connections;
use crate::dns::{Count, DnsFace};
use crate::drops::Drops;

/// `plumb_dns_…`: totals since the agent's start, also over restarts of the server.
#[derive(Debug)]
pub struct Dns(pub DnsFace);

/// Answers by their code, as labels.
const CODES: [(Count, &str); 6] = [
    (Count::NoError, "NOERROR"),
    (Count::FormErr, "FORMERR"),
    (Count::ServFail, "SERVFAIL"),
    (Count::NxDomain, "NXDOMAIN"),
    (Count::Refused, "REFUSED"),
    (Count::OtherCode, "other"),
];
const PROTOCOLS: [(Count, &str); 2] = [(Count::UdpQueries, "udp"), (Count::TcpQueries, "tcp")];
const UPSTREAM: [(Count, &str); 2] =
    [(Count::UpstreamTimeouts, "timeout"), (Count::UpstreamFailures, "failure")];
const PLAIN: [(Count, &str, &str); 9] = [
    (Count::Truncated, "dns_truncated", "Answers that did not fit and were cut"),
    (Count::Dropped, "dns_dropped", "Messages that were no queries"),
    (Count::Overload, "dns_overload", "Queries refused because too many waited for upstreams"),
    (
        Count::Strangers,
        "dns_strangers",
        "Queries and connections of others than nodes and pods, not answered",
    ),
    (Count::Crowded, "dns_crowded", "TCP connections closed because a client, or all together, had too many"),
    (Count::Forwarded, "dns_forwarded", "Queries for names outside of the cluster"),
    (Count::CacheHits, "dns_cache_hits", "Of those, answered from the cache"),
    (Count::UpstreamQueries, "dns_upstream_queries", "Queries sent to upstreams"),
    (Count::UpstreamTcp, "dns_upstream_tcp", "Of those, asked again over TCP"),
];

impl Collector for Dns {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let total = |count| ConstCounter::new(self.0.total(count));
        let serving = ConstGauge::new(i64::from(self.0.serving().is_ok()));
        let help = "1 while this node's DNS server serves; else other nodes answer its pods";
        serving.encode(to.encode_descriptor("dns_serving", help, None, MetricType::Gauge)?)?;
        by(&mut to, ("dns_queries", "Queries, by protocol", "protocol"), &PROTOCOLS, total)?;
        by(&mut to, ("dns_answers", "Answers, by code", "code"), &CODES, total)?;
        let failed = ("dns_upstream_failures", "Queries that upstreams did not answer, by reason", "reason");
        by(&mut to, failed, &UPSTREAM, total)?;
        for (count, name, help) in PLAIN {
            total(count).encode(to.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        }
        Ok(())
    }
}

/// One counter with one label.
fn by(
    to: &mut DescriptorEncoder<'_>,
    (name, help, label): (&str, &str, &str),
    rows: &[(Count, &str)],
    total: impl Fn(Count) -> ConstCounter<u64>,
) -> std::fmt::Result {
    let mut family = to.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (count, value) in rows {
        total(*count).encode(family.encode_family(&[(label, *value)])?)?;
    }
    Ok(())
}

/// `plumb_guard_…` and `plumb_dropped_…`: of every cause from the beginning, so that the first drop is an increase.
#[derive(Debug)]
pub struct Guards(pub Drops);

impl Collector for Guards {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let help = "Packets that the guards dropped, by cause, since the guards were made";
        let name = "guard_dropped_packets";
        let mut family = to.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (cause, packets) in self.0.totals() {
            ConstCounter::new(packets).encode(family.encode_family(&[("cause", cause.word())])?)?;
        }
        let help = "Packets that policies, Services and what is not the guard's in the tables ip plumb and ip6 plumb refused, by cause";
        let mut family = to.encode_descriptor("dropped_packets", help, None, MetricType::Counter)?;
        for (refusal, packets) in self.0.refusals.totals() {
            ConstCounter::new(packets).encode(family.encode_family(&[("cause", refusal.word())])?)?;
        }
        Ok(())
    }
}

/// `plumb_conntrack_…`: of the node's network namespace, whoever's connections they are.
#[derive(Debug)]
pub struct Conntrack(pub Connections);

impl Collector for Conntrack {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let (usage, counted) = self.0.look();
        for (name, help, value) in [
            ("conntrack_entries", "Connections that the kernel knows on this node", usage.entries),
            ("conntrack_entries_limit", "Connections that it may know", usage.limit),
        ] {
            let gauge = ConstGauge::new(i64::from(value));
            gauge.encode(to.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        let help =
            "What became of packets and entries that conntrack had no place for, by the kernel's words";
        let mut family = to.encode_descriptor("conntrack_events", help, None, MetricType::Counter)?;
        for (event, count) in [
            ("drop", counted.drop),
            ("early_drop", counted.early_drop),
            ("insert_failed", counted.insert_failed),
            ("invalid", counted.invalid),
        ] {
            ConstCounter::new(count).encode(family.encode_family(&[("event", event)])?)?;
        }
        Ok(())
    }
}

/// `plumb_process_…`: memory and processor time of the agent.
#[derive(Debug)]
pub struct Process;

impl Collector for Process {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let help = "Memory of the agent that is in use";
        let resident = ConstGauge::new(resident().unwrap_or_default());
        let to_bytes =
            to.encode_descriptor("process_resident_memory", help, Some(&Unit::Bytes), MetricType::Gauge)?;
        resident.encode(to_bytes)?;
        let help = "Processor time of the agent";
        let spent = ConstCounter::new(processor_seconds().unwrap_or_default());
        spent.encode(to.encode_descriptor(
            "process_cpu",
            help,
            Some(&Unit::Seconds),
            MetricType::Counter,
        )?)?;
        let help = "1, with the agent's version";
        let mut build = to.encode_descriptor("build_info", help, None, MetricType::Gauge)?;
        ConstGauge::new(1_i64).encode(build.encode_family(&[("version", env!("CARGO_PKG_VERSION"))])?)
    }
}

/// Resident bytes, of /proc/self/statm (pages).
fn resident() -> Option<i64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: i64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * i64::try_from(rustix::param::page_size()).ok()?)
}

/// User and system time: fields 14 and 15 of /proc/self/stat, counted after the name, which may hold spaces.
fn processor_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: f64 = fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?;
    Some(ticks / rustix::param::clock_ticks_per_second() as f64)
}
