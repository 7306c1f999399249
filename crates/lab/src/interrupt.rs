//! A signal while a command works that has something to take back (`kernel::interrupt`).

use std::time::Duration;

use anyhow::Result;
use kernel::interrupt::{Interrupted, take};

const GLANCE: Duration = Duration::from_millis(10);

/// The next signal, or one that came already. From `kernel::interrupt::is_heard` on none is missed.
pub async fn came() -> Interrupted {
    loop {
        if let Some(signal) = take() {
            return signal;
        }
        tokio::time::sleep(GLANCE).await;
    }
}

/// Does the work, or fails as [`Interrupted`].
pub async fn or<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        biased;
        signal = came() => Err(signal.into()),
        done = work => done,
    }
}
