//! Times as Kubernetes writes them.

use std::time::SystemTime;

use k8s_openapi::jiff::Timestamp;

/// RFC 3339 with seconds.
pub fn now() -> String {
    format!("{:.0}", timestamp())
}

/// RFC 3339 with nanoseconds, for log lines.
pub fn now_nanos() -> String {
    format!("{:.9}", timestamp())
}

/// RFC 3339 with microseconds, for leases.
pub fn now_micros() -> String {
    format!("{:.6}", timestamp())
}

pub fn timestamp() -> Timestamp {
    // Fails only before the year -9999 or after 9999.
    Timestamp::try_from(SystemTime::now()).unwrap_or(Timestamp::UNIX_EPOCH)
}
