//! From changed keys to the kernel.

use std::time::Instant;

use anyhow::{Context, Result};
use compile::{Compiled, Compiler, NetChange};
use ipam::Pool;
use model::{Key, Kind};

use super::Node;
use crate::conflist;
use crate::datapath::{Guarded, Subsystem};
use crate::executables;
use crate::fault::Fault;

/// In place of an error: a comparison as a whole makes it right.
const NOT_LOOKED_AT: &str = "not looked at yet";

impl Node {
    pub(super) fn has_begun(&self) -> bool {
        self.compiler.as_ref().is_some_and(Compiler::has_begun)
    }

    /// Compiles what changed and applies what of it pods wait for: links and routes as soon as Nodes are listed, tables when
    /// everything is. The rest is for [`Node::advance`].
    pub(super) fn settle(&mut self) {
        if self.compiler.is_none() && !self.begin() {
            return;
        }
        if self.cluster.synced().is_none() {
            return self.settle_net();
        }
        let first = !self.has_begun();
        if self.changed.is_empty() && !first {
            return;
        }
        self.grant_sources();
        let (Some(synced), Some(compiler)) = (self.cluster.synced(), self.compiler.as_mut()) else { return };
        let keys = Vec::from_iter(std::mem::take(&mut self.changed));
        self.loose.add(keys.len());
        let compiled = compiler.take(synced, &keys);
        self.following.add(compiler.round(), keys);
        if first {
            self.placed.clear();
            self.base.metrics.synced(true);
            tracing::info!("everything is listed; rules follow");
        }
        self.carry(compiled);
        self.follow_own_node();
        if let Err(error) = self.look_for_former() {
            tracing::warn!(%error, "flows of addresses that no pod has are not forgotten; ADD tries again");
        }
        self.count_objects();
        self.publish();
    }

    /// The part of it that needs Nodes and attachments alone.
    fn settle_net(&mut self) {
        let keys = Vec::from_iter(std::mem::take(&mut self.placed));
        let looks = self.stale.failed.contains_key(&Subsystem::Net);
        let (Some(placed), Some(compiler)) = (self.cluster.placed(), self.compiler.as_mut()) else { return };
        if keys.is_empty() && !looks {
            return;
        }
        let compiled = compiler.update_net(placed, &keys);
        self.carry(compiled);
    }

    pub(super) fn answer_checks(&mut self, keys: &[Key], first: bool) {
        let Some(compiler) = &self.compiler else { return };
        let own = |key: &Key| key.kind == Kind::Node && *key.name.name == *self.base.settings.node;
        let all = first || keys.iter().any(own);
        self.base.checks.update(&self.cluster, compiler.settings(), keys, all);
    }

    fn count_objects(&self) {
        let cluster = &self.cluster;
        for (kind, count) in [
            ("Node", cluster.nodes.len()),
            ("Namespace", cluster.namespaces.len()),
            ("Pod", cluster.pods.len()),
            ("Service", cluster.services.len()),
            ("EndpointSlice", cluster.slices.len()),
            ("NetworkPolicy", cluster.policies.len()),
        ] {
            self.base.metrics.objects(kind, count);
        }
        // A pod takes one of each family: the smallest pool is what counts.
        if let Some(size) = self.pools().iter().map(Pool::size).min() {
            self.base.metrics.pod_addresses(size);
        }
    }

    /// Once Nodes are listed and ours has an address: the settings of all that is compiled.
    fn begin(&mut self) -> bool {
        if self.underlay.in_the_way().is_some() {
            return false;
        }
        let own = self.cluster.nodes.get(&self.base.settings.node);
        let underlay = own.and_then(semantics::node::underlay_ip);
        let Some(underlay) = underlay.filter(|_| self.cluster.placed().is_some()) else { return false };
        // Without the address nothing is made; `look_for_ways` says so.
        let Some(mtu) = self.mtu_on(underlay) else { return false };
        self.learn_uplinks();
        let args = &self.base.settings.args;
        let settings = semantics::Settings {
            node: self.base.settings.node.clone(),
            pod_pools: args.cluster_cidrs.clone(),
            unmasqueraded: args.cluster_cidrs.clone(),
            service_cidrs: args.service_cidrs.clone(),
            dns_ips: args.dns_ips.clone(),
            allow_sources: self.base.settings.allow_sources.clone(),
            api: self.base.api.sockets.clone(),
            backend: self.base.settings.backend,
            fabric: self.base.settings.fabric,
            wiring: self.base.settings.wiring,
            mtu,
            uplinks: self.underlay.ground().uplinks(),
        };
        if self.cluster.synced().is_none() && !self.is_guarded(&settings) {
            return false;
        }
        self.compiler = Some(Compiler::new(settings));
        self.stale.failed.insert(Subsystem::Net, NOT_LOOKED_AT.into());
        let node = &self.base.settings.node;
        tracing::info!(node, %underlay, mtu, "Nodes are listed; links and routes follow");
        true
    }

    /// Whether the guard is still there, as long as it is not put back like everything else.
    pub(super) fn may_make_links(&mut self) -> bool {
        let Some(settings) = self.compiler.as_ref().map(|compiler| compiler.settings().clone()) else {
            return false;
        };
        let backend = &self.base.datapath.backend;
        if backend.has_followed() || !backend.is_beginning() && self.is_guarded(&settings) {
            return true;
        }
        self.stale
            .failed
            .insert(Subsystem::Net, "there is no guard yet, or somebody has taken it away".into());
        false
    }

    /// Nothing comes by a tunnel before the guard is there: that of the process before, or that of a node without pods.
    fn is_guarded(&mut self, settings: &semantics::Settings) -> bool {
        let Some(placed) = self.cluster.placed() else { return false };
        let backend = &self.base.datapath.backend;
        let guarded = backend.guarded().and_then(|guarded| match guarded {
            Guarded::Nothing if placed.attachments.is_empty() => {
                backend.begin(compile::guard_alone(placed, settings)).map(|()| true)
            }
            guarded => Ok(guarded == Guarded::Whole),
        });
        guarded.unwrap_or_else(|error| {
            let error = format!("{error:#}");
            tracing::warn!(error, "links and routes wait for everything to be listed: there is no guard yet");
            false
        })
    }

    /// The incremental way, of links and routes. What the kernel refuses is compared as a whole by [`Node::repair`].
    pub(super) fn apply_compiled(&mut self, compiled: &Compiled) {
        let Some(compiler) = &self.compiler else { return };
        if compiled.net == NetChange::Nothing || self.stale.failed.contains_key(&Subsystem::Net) {
            return;
        }
        let began = Instant::now();
        let done = self.base.datapath.links.follow(&compiled.net, compiler.net());
        self.base.metrics.applied(Subsystem::Net.name(), began.elapsed());
        self.note(Subsystem::Net, done);
    }

    /// Says that the node serves: last, when pods can be wired.
    pub(super) fn publish(&mut self) {
        if self.lacking().is_some() {
            return;
        }
        if let Err(error) = self.invite_runtime() {
            let next = "give the agent room and the right to write there; until then pods stay pending";
            let fault = Fault::new(format!("{error:#}"), next);
            if self.uncalled.as_ref() != Some(&fault) {
                tracing::error!("{fault}");
            }
            self.uncalled = Some(fault);
            return;
        }
        self.uncalled = None;
        let own = self.cluster.nodes.get(&self.base.settings.node);
        if own.is_some_and(|node| node.network_unavailable) {
            self.base.tell.network_available();
        }
        self.base.presence.send_if_modified(|here| !std::mem::replace(&mut here.in_place, true));
    }

    /// The executables first, then the configuration that names them.
    fn invite_runtime(&self) -> Result<()> {
        let args = &self.base.settings.args;
        if let Some(directory) = &args.cni_bin_dir
            && !directory.join(executables::PLUGIN).exists()
        {
            let ours = executables::beside_agent()?;
            executables::publish(&ours, directory).context("the runtime has no CNI executables")?;
        }
        let written = conflist::publish(&args.cni_conf_dir, &args.socket);
        if written.context("the runtime has no CNI configuration")? {
            tracing::info!(directory = %args.cni_conf_dir.display(), "CNI configuration written");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
