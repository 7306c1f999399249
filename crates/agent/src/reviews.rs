//! Tokens that the API server is asked about: what it said is remembered for a short time, and who guesses is heard seldom.
//! Who shows a token again meanwhile gets the same answer in the same words.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use thiserror::Error;
use types::shares::Shares;

use crate::serve::Caller;

/// A refused one is not asked about again for this long.
const REFUSED: Duration = Duration::from_secs(10);
/// Refused ones that are remembered.
const MOST: usize = 1024;
/// Reviews under way, and of one caller.
pub const UNDER_WAY: (usize, usize) = (16, 4);
/// So long a caller's place is taken by a wrong token: who guesses, guesses slowly, and the API server hears little of it.
const PENANCE: Duration = Duration::from_secs(1);

/// Why a token opens nothing.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Refused {
    /// Nobody's, or not one for this.
    #[error("{0}")]
    Wrong(String),
    /// Somebody's who may not.
    #[error("{0}")]
    Denied(String),
    /// The API server was not asked, or did not answer: nothing is said about the token.
    #[error("{0}")]
    Unknown(String),
}

impl Refused {
    /// As long as it is remembered: whoever mends what is wrong must know when it shows.
    fn held(self) -> Self {
        let until = |why| format!("{why}; this answer holds for {REFUSED:?}");
        match self {
            Self::Wrong(why) => Self::Wrong(until(why)),
            Self::Denied(why) => Self::Denied(until(why)),
            Self::Unknown(why) => Self::Unknown(why),
        }
    }
}

/// What is known of tokens for one purpose.
#[derive(Clone)]
pub struct Reviews {
    /// How long a token that was confirmed is good.
    remember: Duration,
    known: Arc<Mutex<Known>>,
    places: Shares<Caller>,
    /// How often there was no place left.
    refused: Counter,
    /// Of refused tokens only a number is kept, which nobody can foretell.
    salt: RandomState,
}

#[derive(Default)]
struct Known {
    good: BTreeMap<String, Instant>,
    refused: BTreeMap<u64, (Instant, Refused)>,
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
        known.refused.retain(|_, (since, _)| since.elapsed() < REFUSED);
        known
    }

    /// `review` asks the API server; it is polled only where nothing is known of the token.
    pub async fn check(
        &self,
        token: &str,
        caller: Caller,
        review: impl Future<Output = Result<(), Refused>>,
    ) -> Result<(), Refused> {
        let number = self.salt.hash_one(token);
        {
            let known = self.known();
            if known.good.contains_key(token) {
                return Ok(());
            }
            if let Some((_, refused)) = known.refused.get(&number) {
                return Err(refused.clone());
            }
        }
        let Some(_place) = self.places.take(caller) else {
            self.refused.inc();
            let why =
                format!("too many tokens are being checked with the API server; try again in {PENANCE:?}");
            return Err(Refused::Unknown(why));
        };
        let Err(refused) = review.await.map_err(Refused::held) else {
            self.known().good.insert(token.to_owned(), Instant::now());
            return Ok(());
        };
        if !matches!(refused, Refused::Unknown(_)) {
            let mut known = self.known();
            if known.refused.len() < MOST {
                known.refused.insert(number, (Instant::now(), refused.clone()));
            }
        }
        tokio::time::sleep(PENANCE).await;
        Err(refused)
    }
}

impl std::fmt::Debug for Reviews {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reviews")
    }
}
