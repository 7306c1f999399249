//! What the DNS server has done, for metrics.

use std::sync::atomic::{AtomicU64, Ordering};

use dns::Rcode;

/// One thing that is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    UdpQueries,
    TcpQueries,
    NoError,
    FormErr,
    ServFail,
    NxDomain,
    Refused,
    OtherCode,
    Truncated,
    Dropped,
    Forwarded,
    CacheHits,
    UpstreamQueries,
    UpstreamTimeouts,
    UpstreamFailures,
    UpstreamTcp,
    Overload,
    /// Asked by somebody who is neither node nor pod.
    Strangers,
    /// Connections closed because their client, or all together, had too many.
    Crowded,
}

const KINDS: usize = 19;

impl Count {
    /// With the name that metrics use.
    pub const ALL: [(Self, &'static str); KINDS] = [
        (Self::UdpQueries, "udp_queries"),
        (Self::TcpQueries, "tcp_queries"),
        (Self::NoError, "noerror"),
        (Self::FormErr, "formerr"),
        (Self::ServFail, "servfail"),
        (Self::NxDomain, "nxdomain"),
        (Self::Refused, "refused"),
        (Self::OtherCode, "other_codes"),
        (Self::Truncated, "truncated"),
        (Self::Dropped, "dropped"),
        (Self::Forwarded, "forwarded"),
        (Self::CacheHits, "cache_hits"),
        (Self::UpstreamQueries, "upstream_queries"),
        (Self::UpstreamTimeouts, "upstream_timeouts"),
        (Self::UpstreamFailures, "upstream_failures"),
        (Self::UpstreamTcp, "upstream_tcp"),
        (Self::Overload, "overload"),
        (Self::Strangers, "strangers"),
        (Self::Crowded, "crowded"),
    ];

    /// The kind of a finished answer.
    pub fn of_code(code: Rcode) -> Self {
        match code {
            Rcode::NOERROR => Self::NoError,
            Rcode::FORMERR => Self::FormErr,
            Rcode::SERVFAIL => Self::ServFail,
            Rcode::NXDOMAIN => Self::NxDomain,
            Rcode::REFUSED => Self::Refused,
            _ => Self::OtherCode,
        }
    }
}

/// Totals since the start.
#[derive(Debug, Default)]
pub struct Counters([AtomicU64; KINDS]);

/// What one thread counted since it last gave it away: plain numbers, for the hot path.
#[derive(Clone, Debug, Default)]
pub struct Tally([u64; KINDS]);

impl Tally {
    #[inline]
    pub fn add(&mut self, what: Count) {
        if let Some(count) = self.0.get_mut(what as usize) {
            *count += 1;
        }
    }

    /// Counts the code and TC of a finished answer.
    #[inline]
    pub fn answer(&mut self, answer: &[u8]) {
        if let Some(&[_, _, high, low, ..]) = answer.first_chunk::<12>() {
            self.add(Count::of_code(Rcode(u16::from(low & 0x0f))));
            if high & 2 != 0 {
                self.add(Count::Truncated);
            }
        }
    }
}

impl Counters {
    pub fn add(&self, what: Count) {
        if let Some(count) = self.0.get(what as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn get(&self, what: Count) -> u64 {
        self.0.get(what as usize).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// Every total with its name.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Count::ALL.into_iter().map(|(what, name)| (name, self.get(what)))
    }

    /// Takes a thread's numbers over.
    pub fn absorb(&self, tally: &mut Tally) {
        for (total, count) in self.0.iter().zip(&mut tally.0) {
            if *count > 0 {
                total.fetch_add(std::mem::take(count), Ordering::Relaxed);
            }
        }
    }
}
