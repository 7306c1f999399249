//! A real agent in network namespaces, against the embedded API over TLS.
//!
//! ```text
//!   underlay netns: br0 192.168.1.2, API :6443 and :6444
//!     ├─ node1 netns: eth0 192.168.1.10, `plumb agent`, pods
//!     └─ node2 netns: eth0 192.168.1.11, `plumb agent`, pods
//! ```

mod cleanup;
mod clock;
mod docker;
mod drift;
mod flood;
mod former;
mod further;
mod gone;
mod host_ports;
mod locked;
mod metrics;
mod orphans;
mod policy;
#[allow(dead_code, reason = "shared by the tiers, each of which uses its part")]
#[path = "../lab/said.rs"]
mod said;
mod sctp;
mod services;
mod stage;
mod tunnel;
mod upgrade;
mod uplink;
mod vm;
mod ways;
mod wiring;
