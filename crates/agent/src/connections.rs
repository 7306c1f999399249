//! What conntrack counts on this node: asked for when somebody asks for metrics.

use std::sync::{Arc, Mutex, PoisonError};

use kernel::conntrack::Conntrack;
use netlink::conntrack::{Counted, Usage};

/// Clones are of one.
#[derive(Clone, Debug, Default)]
pub struct Connections(Arc<Mutex<Option<Conntrack>>>);

impl Connections {
    /// From now on the kernel is asked, in the network namespace of the calling thread.
    pub fn open(&self) -> Result<(), kernel::Error> {
        let conntrack = Conntrack::open()?;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(conntrack);
        Ok(())
    }

    /// Nothing but zeros where nothing can be read.
    pub fn look(&self) -> (Usage, Counted) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(conntrack) = state.as_mut() else { return Default::default() };
        let asked = conntrack.usage().and_then(|usage| Ok((usage, conntrack.counted()?)));
        asked.unwrap_or_else(|error| {
            tracing::debug!(%error, "what conntrack counts cannot be read");
            Default::default()
        })
    }
}
