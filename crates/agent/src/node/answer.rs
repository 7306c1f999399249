//! Answers who asks what the loop knows.

use std::sync::Arc;
use std::time::Duration;

use semantics::service::health;

use super::Node;
use crate::report;
use crate::snapshot::{Desired, Endpoints, Health, Question, Snapshot};

impl Node {
    /// Whoever waits no more has nobody to be told.
    pub(super) fn answer(&self, question: Question) {
        match question {
            Question::Health(answer) => _ = answer.send(self.health()),
            Question::Status(answer) => _ = answer.send(report::of_node(self)),
            Question::Snapshot(answer) => _ = answer.send(self.snapshot()),
            Question::Endpoints { service, family, answer } => {
                let count =
                    health::local_endpoints(&self.cluster, &self.base.settings.node, &service, family);
                let _ = answer.send(Endpoints { count, served: self.lacking().is_none() });
            }
        }
    }

    fn health(&self) -> Health {
        let whole = self.whole();
        Health {
            trouble: self.trouble(),
            paused: self.paused,
            families: whole.map(|it| it.settings().families().collect()).unwrap_or_default(),
            since_right: self.since_right().filter(|_| whole.is_some()),
            refresh: Duration::from_secs(self.base.settings.args.refresh),
            eligible: self.cluster.nodes.get(&self.base.settings.node).is_some_and(|own| !own.leaving),
        }
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot {
            settings: Arc::clone(&self.base.settings),
            cluster: Arc::clone(&self.cluster),
            desired: self.whole().map(|compiler| Desired { nft: self.tables(), net: compiler.shared_net() }),
            records: self.records().cloned().collect(),
            paused: self.paused,
            api: self.base.api.sockets.clone(),
            ground: self.underlay.ground().clone(),
            findings: self.findings(),
            recording: self.recording(),
            refused: self.refused_now().collect(),
        }
    }
}
