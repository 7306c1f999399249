//! What a node says of itself to the others, in annotations of its Node: what they need to reach its pods, and no object
//! else says. Each fabric has its own; one that needs none says nothing.

use types::Mac;
use types::wire::VTEP_MAC_ANNOTATION;

/// All that a node has said, whichever fabric this one has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Announced {
    /// The hardware address of the node's VTEP.
    pub vtep_mac: Option<Mac>,
}

impl Announced {
    /// Every annotation that an announcement may have, and its text. `None`: it is to go.
    pub fn annotations(&self) -> [(&'static str, Option<String>); 1] {
        [(VTEP_MAC_ANNOTATION, self.vtep_mac.map(|mac| mac.to_string()))]
    }
}
