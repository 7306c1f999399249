//! The whole program on a real Kubernetes: etcd, kube-apiserver, controllers, scheduler, kubelets and containerd, and
//! Plumb as its only network. `tools/cluster.sh` makes the cluster, `tools/peers.sh` builds what it is made of.
//!
//! # Adding a test
//!
//! In a file of your own (a `mod` line below), a plain test on the cluster that all tests share:
//!
//! ```ignore
//! #[test]
//! fn a_service_reaches_its_pods() {
//!     let ns = cluster::single().namespace("reach");    // or cluster::dual(); deleted with `ns`
//!     ns.apply(&[&server("echo1", "node1"), "…more YAML, without metadata.namespace…"]);
//!     ns.wait_ready();
//!     let said = ns.demo("echo1", &["get", "http://echo:8080"]);       // `plumb demo …` in a pod
//!     assert!(said.ok, "{said:?}");
//! }
//! ```
//!
//! Tests run side by side: stay in your namespace, and use `Cluster::own` for whatever stops a process, changes a
//! node or depends on what the whole cluster holds. Clusters end with this process, however it ends. Wait for
//! conditions with `wait_for`; nothing is asserted about how long something takes.
//!
//! While working: `cargo test -p plumb --test cluster -- --nocapture NAME`; to look around afterwards, keep a cluster
//! with `PLUMB_TEST_CLUSTER=mine` (made when it is not there, used by the next run too, gone with
//! `tools/cluster.sh down mine-single`).
//!
//! `./run reference` runs the tests of Kubernetes' behaviour on the reference plugins, flannel, kube-proxy and CoreDNS,
//! which shows that they ask what Kubernetes promises. What is Plumb's alone, or a NetworkPolicy, which flannel does not
//! enforce, or asks for both families, is skipped there by the name of its module or test; docs/tests.md lists them.

/// Each of these functions of a cluster as tests `single::NAME` and `dual::NAME`. They ask by every address that
/// Services, nodes and pods have. `./run reference` leaves out the latter by that word.
macro_rules! on_each_stack {
    ($($name:ident),+ $(,)?) => {
        mod single {
            $(#[test] fn $name() { super::$name(crate::cluster::single()); })+
        }
        mod dual {
            $(#[test] fn $name() { super::$name(crate::cluster::dual()); })+
        }
    };
}

mod ask;
#[allow(dead_code, reason = "the vocabulary of all tests; not every part of it is in use at every time")]
mod cluster;
mod defaults;
mod endpoints;
mod host_ports;
mod install;
mod lookups;
mod names;
mod obstacles;
mod operate;
mod pods;
mod reach;
mod resilience;
mod rights;
#[allow(dead_code, reason = "shared by the tiers, each of which uses its part")]
#[path = "../lab/said.rs"]
mod said;
mod services;
mod traffic;
mod watchers;
