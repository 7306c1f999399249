//! Connections that the rules of before leave behind: `compile` says which, we have the kernel forget them.

use cni::{Code, Error};
use model::Key;

use super::Node;
use crate::store::Record;

impl Node {
    /// Before a pod is wired: flows that the former owner of its address began, which their other ends keep alive for as
    /// long as they send. A flow is judged by who began it, so what they send would pass as answers, to a pod that asked
    /// for nothing and may let nobody in. From now on they begin flows of their own, which meet its policies.
    pub(super) fn forget_former(&mut self, record: &Record) -> Result<(), Error> {
        let count = record.ips.iter().try_fold(0, |count, ip| {
            self.base.datapath.forget_begun_by(*ip).map(|forgotten| count + forgotten)
        });
        match count {
            Ok(0) => {}
            Ok(count) => {
                self.base.metrics.flows_forgotten(count);
                tracing::info!(count, pod = %record.pod, "flows of who had the pod's address before were forgotten");
            }
            Err(error) => {
                let msg = format!(
                    "flows of who had the addresses of pod {} before are not forgotten: {error:#}",
                    record.pod
                );
                return Err(Error::new(Code::Kernel, msg, "the runtime will try again"));
            }
        }
        Ok(())
    }

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
