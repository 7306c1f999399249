//! Connections that the rules of before leave behind: `compile` says which, we have the kernel forget them.

use model::Key;

use super::Node;

impl Node {
    /// After the rules lead elsewhere.
    pub(super) fn forget_stale_flows(&mut self, keys: &[Key]) {
        let Some(compiler) = &self.compiler else { return };
        let turned = self.frontends.update(&self.cluster, compiler.settings(), keys);
        if turned.is_empty() {
            return;
        }
        match self.base.datapath.forget_udp(|from, to| turned.is_stale(to, from)) {
            Ok(0) => {}
            Ok(count) => {
                self.base.metrics.flows_forgotten(count);
                tracing::info!(count, "UDP flows to endpoints that are gone were forgotten");
            }
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "UDP flows may lead to endpoints that are gone")
            }
        }
    }
}
