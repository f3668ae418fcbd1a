//! Which instance takes a request; and waiting, where none can just now but one soon may: all have as much as they may, or the master
//! has gone a moment ago.

use std::pin::pin;
use std::sync::Arc;

use pointsman_balance::PickError;
use tokio::time::Instant;

use crate::gate::{Crowded, Permit, Waiting};
use crate::metrics::{RouteShard, count};
use crate::problem::{Kind, Problem};
use crate::table::{Endpoint, Passing, Target};

use super::crowded;

/// Inputs of the choice for one request.
pub(super) struct Choice<'a> {
    pub(super) passing: &'a Passing,
    pub(super) target: &'a Target,
    pub(super) key: Option<&'a [u8]>,
    /// The code of the instance with which the client stays.
    pub(super) sticky: Option<&'a str>,
    /// The codes of those that have been asked in vain.
    pub(super) tried: &'a [Arc<str>],
    /// When the request has to be answered.
    pub(super) whole: Option<Instant>,
}

/// An instance, and the place at it.
pub(super) struct Chosen {
    pub(super) endpoint: Endpoint,
    pub(super) permit: Option<Permit>,
    /// The client's own instance is busy, or away for now: the client is not told of another.
    pub(super) keeps_cookie: bool,
}

/// Why there is no instance.
pub(super) enum Unavailable {
    /// There is none that could take it.
    Instance(PickError),
    /// There is none for now, and there has been none for as long as may be waited.
    Crowded(Crowded),
}

/// Why no instance takes a request just now.
enum Refused {
    /// All have as much as they may.
    Full,
    /// The master has gone or been drained a moment ago, or cannot be reached: another may be about to be elected.
    Masterless(PickError),
    /// There is nothing to wait for.
    Finally(PickError),
}

impl Choice<'_> {
    /// Chooses an instance, and waits, up to the queue's timeout, where that may help.
    pub(super) async fn choose(&self, shard: &RouteShard) -> Result<Chosen, Unavailable> {
        match self.look() {
            Ok(chosen) => Ok(chosen),
            Err(Refused::Finally(error)) => Err(Unavailable::Instance(error)),
            // Apart, because it is large and seldom needed.
            Err(_) => {
                count(&shard.queued);
                Box::pin(self.wait()).await
            }
        }
    }

    /// Looks once.
    fn look(&self) -> Result<Chosen, Refused> {
        let permits = &self.target.service.permits;
        let (mut full, mut keeps_cookie): (Vec<Arc<str>>, bool) = (Vec::new(), false);
        let sticky = self.sticky.filter(|code| !self.tried.iter().any(|tried| **tried == **code));
        if let Some(code) = sticky {
            keeps_cookie = self.target.may_return(code);
            if let Some(endpoint) = self.target.stay(code) {
                match self.enter(endpoint) {
                    Ok(chosen) => return Ok(chosen),
                    Err(endpoint) => {
                        keeps_cookie = true;
                        full.push(endpoint.code().clone());
                    }
                }
            }
        }
        loop {
            let endpoint = self.target.choose(self.key, self.tried, &full).map_err(|error| self.refused(error))?;
            if !permits.are_limited() {
                return Ok(Chosen { endpoint, permit: None, keeps_cookie });
            }
            match self.enter(endpoint) {
                Ok(chosen) => return Ok(Chosen { keeps_cookie, ..chosen }),
                Err(endpoint) => full.push(endpoint.code().clone()),
            }
        }
    }

    /// Takes a place at an instance; gives it back if there is none.
    fn enter(&self, endpoint: Endpoint) -> Result<Chosen, Endpoint> {
        let permits = &self.target.service.permits;
        if !permits.are_limited() {
            return Ok(Chosen { endpoint, permit: None, keeps_cookie: false });
        }
        match permits.take(endpoint.instance()) {
            Some(permit) => Ok(Chosen { endpoint, permit: Some(permit), keeps_cookie: false }),
            None => Err(endpoint),
        }
    }

    fn refused(&self, error: PickError) -> Refused {
        let timeout = self.passing.pass.queue_timeout;
        match error {
            PickError::NoRoom { .. } => Refused::Full,
            _ if error.awaits_master(timeout, std::time::Instant::now()) => Refused::Masterless(error),
            PickError::AllExcluded { .. } if self.target.wants_master() => Refused::Masterless(error),
            error => Refused::Finally(error),
        }
    }

    /// Looks again whenever a place is free or the service has changed.
    async fn wait(&self) -> Result<Chosen, Unavailable> {
        let timeout = Instant::now() + self.passing.pass.queue_timeout;
        let deadline = self.whole.map_or(timeout, |whole| whole.min(timeout));
        let waiting: &Waiting = &self.passing.waiting;
        let _joined = waiting.join(self.passing.pass.queue).map_err(Unavailable::Crowded)?;
        let service = &self.target.service;
        let (mut passed, mut was_freed) = (None, false);
        loop {
            // From now on: what becomes free between the look below and the wait is not missed, whoever else waits.
            let mut freed = pin!(service.permits.freed());
            freed.as_mut().enable();
            let seen = service.view.generation();
            let refused = match self.look() {
                Ok(chosen) => return Ok(chosen),
                Err(refused) => refused,
            };
            let masterless = match refused {
                Refused::Full => None,
                Refused::Masterless(error) => Some(error),
                Refused::Finally(error) => return Err(Unavailable::Instance(error)),
            };
            if was_freed {
                service.permits.pass_on(&mut passed);
            }
            was_freed = tokio::select! {
                () = freed => true,
                _ = service.view.changed(seen) => false,
                () = tokio::time::sleep_until(deadline) => {
                    return Err(masterless.map_or(Unavailable::Crowded(Crowded::WaitedTooLong), Unavailable::Instance));
                }
            };
        }
    }
}

impl Unavailable {
    /// Returns the answer: the problem of the instance that was asked last, where one was.
    pub(super) fn problem(&self, refused: Option<&Problem>) -> Problem {
        match (self, refused) {
            (Unavailable::Crowded(reason), _) => crowded(*reason),
            (Unavailable::Instance(_), Some(problem)) => problem.clone(),
            (Unavailable::Instance(error), None) => Problem::new(Kind::NoInstance, error.to_string()),
        }
    }

    /// Whether the service has no instance that could be asked, or none any more.
    pub(super) fn is_final(&self) -> bool {
        matches!(self, Unavailable::Instance(_))
    }
}
