//! Tokens that the API server is asked about: what it said is remembered for a short time, and who guesses is heard seldom.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use prometheus_client::metrics::counter::Counter;
use types::shares::Shares;

use crate::serve::Caller;

/// A wrong one is not asked about again for this long.
const REFUSED: Duration = Duration::from_secs(10);
/// Wrong ones that are remembered.
const MOST: usize = 1024;
/// Reviews under way, and of one caller.
pub const UNDER_WAY: (usize, usize) = (16, 4);
/// So long a caller's place is taken by a wrong token: who guesses, guesses slowly, and the API server hears little of it.
const PENANCE: Duration = Duration::from_secs(1);

/// What is known of tokens for one purpose.
#[derive(Clone)]
pub struct Reviews {
    /// How long a token that was confirmed is good.
    remember: Duration,
    known: Arc<Mutex<Known>>,
    places: Shares<Caller>,
    /// How often there was no place left.
    refused: Counter,
    /// Of wrong tokens only a number is kept, which nobody can foretell.
    salt: RandomState,
}

#[derive(Default)]
struct Known {
    good: BTreeMap<String, Instant>,
    wrong: BTreeMap<u64, Instant>,
}

impl Reviews {
    /// `refused` counts the tokens that the API server was not asked about.
    pub fn new(remember: Duration, refused: Counter) -> Self {
        let (all, each) = UNDER_WAY;
        Self {
            remember,
            known: Arc::default(),
            places: Shares::new(all, each),
            refused,
            salt: RandomState::new(),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.good.retain(|_, since| since.elapsed() < self.remember);
        known.wrong.retain(|_, since| since.elapsed() < REFUSED);
        known
    }

    /// `review` asks the API server; it is polled only where nothing is known of the token.
    pub async fn check(
        &self,
        token: &str,
        caller: Caller,
        review: impl Future<Output = Result<()>>,
    ) -> Result<()> {
        let number = self.salt.hash_one(token);
        {
            let known = self.known();
            if known.good.contains_key(token) {
                return Ok(());
            }
            if known.wrong.contains_key(&number) {
                bail!(
                    "the API server did not confirm the token a moment ago; make a new one, or ask again in {REFUSED:?}"
                );
            }
        }
        let Some(_place) = self.places.take(caller) else {
            self.refused.inc();
            bail!("too many tokens are being checked with the API server; try again in {PENANCE:?}");
        };
        let confirmed = review.await;
        match &confirmed {
            Ok(()) => drop(self.known().good.insert(token.to_owned(), Instant::now())),
            Err(error) => {
                // An API server that cannot be asked says nothing about the token.
                if error.downcast_ref::<kube::Error>().is_none() {
                    let mut known = self.known();
                    if known.wrong.len() < MOST {
                        known.wrong.insert(number, Instant::now());
                    }
                }
                tokio::time::sleep(PENANCE).await;
            }
        }
        confirmed
    }
}

impl std::fmt::Debug for Reviews {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reviews")
    }
}
