//! A machine's MTU that changes at run time, as far as it concerns pods that are there: their own ends lie in their
//! namespaces, where no comparison of the node's links looks.

use kernel::{Netns, veth};
use node::Record;

use super::Node;
use crate::store::namespace_lives;

impl Node {
    /// Has pods' ends follow those on the node; what was done. One that a pod has made smaller stays so.
    pub(super) fn fit_pods(&mut self) -> Vec<String> {
        let Some(mtu) = self.compiler.as_ref().map(|compiler| compiler.settings().mtu) else {
            return Vec::new();
        };
        let before = self.fitted.replace(mtu);
        if before == Some(mtu) {
            return Vec::new();
        }
        let records = self.records().filter(|record| namespace_lives(record));
        records.filter_map(|record| self.fit_pod(record, mtu, before)).collect()
    }

    /// What was done to one pod's end, if anything.
    pub(super) fn fit_pod(&self, record: &Record, mtu: u32, before: Option<u32>) -> Option<String> {
        let netns = Netns::open(&record.netns);
        match netns.and_then(|netns| veth::fit(&netns, &record.ifname, mtu, before)) {
            Ok(true) => Some(format!("{} of pod {} should have an MTU of {mtu}", record.ifname, record.pod)),
            Ok(false) => None,
            // It ended meanwhile, or is not seen from here.
            Err(error) => {
                tracing::warn!(pod = %record.pod, %error, "the pod keeps its MTU: larger packets than {mtu} may be lost");
                None
            }
        }
    }
}
