//! Why something is not done yet, or stays: what a person asks who sees that nothing happens.

use std::collections::BTreeSet;
use std::time::Duration;

use types::ObjectName;

use crate::add::Stage;
use crate::attachments::Attachments;

/// Of a pod, or of nobody's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pending {
    pub pod: Option<ObjectName>,
    pub why: String,
}

impl Attachments {
    /// The same words as long as the reason is the same.
    pub fn pending(&self, patience: Duration) -> BTreeSet<Pending> {
        let mut all = BTreeSet::new();
        for waiting in &self.waiting {
            let (id, attach) = (waiting.asked.id, &waiting.attach);
            let pod = attach.pod.as_ref().map(|pod| pod.name.clone());
            let why = format!(
                "ADD {} (#{id}) waits until everything is listed and the node has a pod CIDR",
                attach.id
            );
            all.insert(Pending { pod, why });
        }
        for add in &self.adds {
            let what = match add.stage {
                Stage::Recording => "its record to be on disk",
                Stage::Recorded(_) => "its policies to be in the kernel, and former flows to be forgotten",
                Stage::Wiring(_) => "its interface to be made",
            };
            let why = format!("ADD {} (#{}) waits for {what}", add.record.handle(), add.id);
            all.insert(Pending { pod: Some(add.record.pod.clone()), why });
        }
        for (handle, record) in self.records.all() {
            let pod = Some(record.pod.clone());
            if self.leaving.has(handle) {
                all.insert(Pending {
                    pod: pod.clone(),
                    why: format!("{handle} is kept until its veth is deleted"),
                });
            }
            let why = self.why_kept(handle, record, patience);
            all.extend(why.map(|why| Pending { pod, why }));
        }
        all.extend(self.unsure.iter().map(|ip| Pending {
            pod: None,
            why: format!("{ip} is nobody's before the kernel has forgotten its flows"),
        }));
        all
    }
}
