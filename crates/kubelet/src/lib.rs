//! Owns: the small kubelet of a lab node: sandboxes, CNI calls, containers, probes, pod status, logs and exec.
//! Never: images, cgroups, volumes: a field it does not carry out is refused by name.
//! In → Out: pods bound to the node → processes in namespaces, and their status in the API.
//! Read first: [`Args`], [`supported`], [`pause`].

pub mod environment;
pub mod pause;
pub mod resolv;
pub mod supported;
