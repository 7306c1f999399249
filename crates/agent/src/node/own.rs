//! Performs what the node's own Node object means for it ([`node::Own`]).

use std::sync::Arc;
use std::time::Duration;

use compile::fabric;
use model::{Event, Placed};
use node::{Outcome, Own};

use super::Node;

impl Node {
    /// What a watch says.
    pub(super) fn apply(&mut self, event: Event) {
        for outcome in self.own().hear(event) {
            self.perform_own(outcome);
        }
    }

    /// What the Node object means for this node itself: its pools, and whether the others know how to reach it.
    pub(super) fn follow_own_node(&mut self) {
        let announced = fabric::of(self.base.settings.fabric).announces(&self.base.settings.node);
        for outcome in self.own().follow(announced) {
            self.perform_own(outcome);
        }
    }

    fn own(&self) -> Own<'_> {
        let name = &self.base.settings.node;
        Own { name, known: self.cluster.nodes.get(name), pools: self.attachments.records().pools() }
    }

    fn perform_own(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Row(event) => {
                let changed = Arc::make_mut(&mut self.cluster).apply(event);
                if !self.has_begun() {
                    let placed = changed.iter().filter(|key| Placed::KINDS.contains(&key.kind));
                    self.placed.extend(placed.cloned());
                }
                self.changed.extend(changed);
            }
            Outcome::Presence(addresses) => {
                self.base.presence.send_if_modified(|here| here.move_to(&addresses));
            }
            Outcome::Announce(announced) => self.base.tell.announce(announced),
            Outcome::Subnets(nets) => {
                let rest = Duration::from_secs(self.base.settings.args.cool_down);
                self.hear(node::Input::Subnets { nets, rest });
            }
        }
    }
}
