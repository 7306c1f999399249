//! What others may know of the DNS server: whether it serves, where, and its totals. The server itself comes and
//! goes; this stays.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::counters::{Count, Counters};

/// Why DNS does not serve on a node whose agent was told not to.
pub const PAUSED: &str = "it is paused";

#[derive(Clone, Debug, Default)]
pub struct DnsFace(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    addresses: Vec<SocketAddr>,
    /// Why it does not serve.
    error: Option<String>,
    now: Option<Arc<Counters>>,
    /// Of servers before this one.
    before: Vec<Arc<Counters>>,
}

impl DnsFace {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn serves(&self, addresses: &[SocketAddr], counters: Arc<Counters>) {
        let mut state = self.lock();
        state.addresses = addresses.to_vec();
        state.error = None;
        state.now = Some(counters);
    }

    /// It ended, or could not begin.
    pub fn is_away(&self, why: impl Into<String>) {
        let mut state = self.lock();
        state.addresses.clear();
        state.error = Some(why.into());
        let former = state.now.take();
        state.before.extend(former);
    }

    /// Where it serves, or why it does not.
    pub fn serving(&self) -> Result<Vec<SocketAddr>, String> {
        let state = self.lock();
        match (&state.error, state.now.is_some()) {
            (None, true) => Ok(state.addresses.clone()),
            (Some(error), _) => Err(error.clone()),
            (None, false) => Err("it has not started yet".to_owned()),
        }
    }

    pub fn total(&self, what: Count) -> u64 {
        let state = self.lock();
        state.before.iter().chain(&state.now).map(|counters| counters.get(what)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_outlive_the_server() {
        let face = DnsFace::default();
        assert!(face.serving().is_err());
        for queries in [1, 2] {
            let counters = Arc::new(Counters::default());
            face.serves(&["10.96.0.10:53".parse().unwrap()], Arc::clone(&counters));
            (0..queries).for_each(|_| counters.add(Count::UdpQueries));
            assert!(face.serving().is_ok());
            face.is_away(PAUSED);
        }
        assert_eq!(face.total(Count::UdpQueries), 3);
        assert_eq!(face.serving(), Err(PAUSED.to_owned()));
    }
}
