//! From changed keys to the kernel.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use compile::{Compiled, Compiler, fabric};
use ipam::Pool;
use model::{Event, Key, Kind, Placed, Row};
use types::Family;

use super::Node;
use crate::conflist;
use crate::datapath::{Guarded, Subsystem};
use crate::executables;
use crate::fault::Fault;

/// In place of an error: a comparison as a whole makes it right.
const NOT_LOOKED_AT: &str = "not looked at yet";

impl Node {
    /// Our own Node outlives the object: `kubectl delete node`, or a kubelet that registers anew without pod
    /// CIDR, must not take the network from pods that run.
    pub(super) fn apply(&mut self, event: Event) {
        let name = &self.base.settings.node;
        let event = match event {
            Event::Delete(key) if key.kind == Kind::Node && *key.name.name == **name => return,
            Event::Upsert(Row::Node(mut row)) if row.name == *name => {
                if let Some(known) = self.cluster.nodes.get(name) {
                    keep(&mut row.pod_cidrs, &known.pod_cidrs);
                    if row.addresses.is_empty() {
                        keep(&mut row.others, &known.others);
                    }
                    keep(&mut row.addresses, &known.addresses);
                }
                self.base.presence.send_if_modified(|here| here.move_to(&row.addresses));
                Event::Upsert(Row::Node(row))
            }
            event => event,
        };
        let relist = event == Event::Start(Kind::Node);
        let own = self.cluster.nodes.get(name).filter(|_| relist).cloned();
        let changed = Arc::make_mut(&mut self.cluster).apply(event);
        if self.whole().is_none() {
            self.placed.extend(changed.iter().filter(|key| Placed::KINDS.contains(&key.kind)).cloned());
        }
        self.changed.extend(changed);
        if let Some(own) = own {
            Arc::make_mut(&mut self.cluster).apply(Event::Upsert(Row::Node(own)));
        }
    }

    /// Compiles what changed and applies it: links and routes as soon as Nodes are listed, tables when everything is.
    pub(super) fn settle(&mut self) {
        if self.compiler.is_none() && !self.begin() {
            return;
        }
        if self.cluster.synced().is_none() {
            return self.settle_net();
        }
        let first = self.whole().is_none();
        if self.changed.is_empty() && !first {
            return;
        }
        self.grant_sources();
        let (Some(synced), Some(compiler)) = (self.cluster.synced(), self.compiler.as_mut()) else { return };
        let keys = Vec::from_iter(std::mem::take(&mut self.changed));
        self.loose.add(keys.len());
        let compiled = compiler.update(synced, &keys);
        if first {
            self.placed.clear();
            self.base.metrics.synced(true);
            tracing::info!("everything is listed; rules follow");
            self.stale.failed.insert(Subsystem::Nft, NOT_LOOKED_AT.into());
        }
        self.apply_compiled(&compiled);
        self.repair();
        self.forget_stale_flows(&keys);
        self.lose_sources();
        self.answer_checks(&keys, first);
        self.base.zone.update(&self.cluster, &keys);
        self.compiled_diagnostics(&compiled);
        self.own_node();
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
        if self.may_make_links() {
            self.apply_compiled(&compiled);
            self.repair();
        }
        self.compiled_diagnostics(&compiled);
    }

    fn answer_checks(&mut self, keys: &[Key], first: bool) {
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
        if self.whole().is_some() || self.is_guarded(&settings) {
            return true;
        }
        self.stale.failed.insert(Subsystem::Net, "there is no guard: somebody has taken it away".into());
        false
    }

    /// Nothing comes by a tunnel before the guard is there: that of the process before, or that of a node without pods.
    fn is_guarded(&mut self, settings: &semantics::Settings) -> bool {
        let Some(placed) = self.cluster.placed() else { return false };
        let datapath = &mut self.base.datapath;
        let guarded = datapath.tables.guarded().and_then(|guarded| match guarded {
            Guarded::Nothing if placed.attachments.is_empty() => {
                datapath.tables.begin(&compile::guard_alone(placed, settings)).map(|()| true)
            }
            guarded => Ok(guarded == Guarded::Whole),
        });
        guarded.unwrap_or_else(|error| {
            let error = format!("{error:#}");
            tracing::warn!(error, "links and routes wait for everything to be listed: there is no guard yet");
            false
        })
    }

    /// The incremental way. What the kernel refuses is compared as a whole by [`Node::repair`].
    fn apply_compiled(&mut self, compiled: &Compiled) {
        for subsystem in Subsystem::ALL {
            let Some(compiler) = &self.compiler else { return };
            if self.stale.failed.contains_key(&subsystem) {
                continue;
            }
            let began = Instant::now();
            if let Some(done) = self.base.datapath.part(subsystem).update(compiled, compiler) {
                self.base.metrics.applied(subsystem.name(), began.elapsed());
                self.note(subsystem, done);
            }
        }
    }

    /// What the Node object means for this node itself: its pool, and whether the others know how to reach it.
    pub(super) fn own_node(&mut self) {
        let Some(own) = self.cluster.nodes.get(&self.base.settings.node) else { return };
        let announced = fabric::of(self.base.settings.fabric).announces(&self.base.settings.node);
        if own.announced != announced {
            self.base.tell.announce(announced);
        }
        let rest = std::time::Duration::from_secs(self.base.settings.args.cool_down);
        let mut changed = false;
        for subnet in semantics::node::pod_subnets(own) {
            match self.attachments.records_mut().pool_mut(Family::of_net(&subnet.net)) {
                Some(pool) => {
                    changed |= pool.cidr() != subnet.net;
                    pool.move_to(subnet.net);
                }
                None => {
                    self.attachments.records_mut().pools_mut().push(Pool::new(subnet.net, rest));
                    changed = true;
                }
            }
        }
        if changed {
            // The family of the node's first pod CIDR is that of a pod's first address.
            let order: Vec<Family> = own.pod_cidrs.iter().map(Family::of_net).collect();
            let place = |pool: &Pool| order.iter().position(|f| *f == Family::of_net(&pool.cidr()));
            self.attachments.records_mut().pools_mut().sort_by_key(place);
            self.former.look_again();
        }
        if changed && let Err(error) = self.save() {
            tracing::error!(error = format!("{error:#}"), "the address pool cannot be saved");
        }
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

fn keep<T: Clone>(new: &mut Vec<T>, known: &[T]) {
    if new.is_empty() {
        new.extend_from_slice(known);
    }
}

#[cfg(test)]
mod tests;
