//! A whole call: a pick, a deadline, and another instance where one has failed.

use std::sync::Arc;
use std::time::Duration;

use pointsman_core::ObservedInstance;
use tokio::time::timeout;

use crate::balancer::Balancer;
use crate::claim::Claim;
use crate::clock;
use crate::ejection::Outcome;
use crate::error::PickError;

/// How [`Balancer::call`] makes a call. What is not said has the default, with which no call arrives twice.
///
/// ```
/// use std::time::Duration;
/// use pointsman_balance::CallPolicy;
///
/// // A call that may arrive twice: tried on up to three instances, for 200 ms each.
/// let policy = CallPolicy::new().key("/data/video").timeout(Duration::from_millis(200)).retries(2);
/// ```
#[derive(Debug, Clone, Copy)]
#[must_use]
pub struct CallPolicy<'a> {
    key: Option<&'a [u8]>,
    timeout: Duration,
    retries: u32,
    counts_cancelled: bool,
}

const TIMEOUT: Duration = Duration::from_secs(5);

/// How many instances a call tries that cannot be reached.
const MOST_UNREACHED: usize = 100;

impl Default for CallPolicy<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'a> CallPolicy<'a> {
    /// The defaults.
    pub const fn new() -> Self {
        Self { key: None, timeout: TIMEOUT, retries: 0, counts_cancelled: true }
    }

    /// The key for the hashes. Default: none; the hashes then choose at random.
    pub fn key(self, key: &'a (impl AsRef<[u8]> + ?Sized)) -> Self {
        Self { key: Some(key.as_ref()), ..self }
    }

    /// How long to wait for one instance; after that its attempt is dropped, and counts as a failure. Default: 5 s.
    pub const fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// How often to try another instance where one has failed or has not answered in time, within the balancer's
    /// [`RetryBudget`](crate::RetryBudget). The call may arrive at several instances then, so only for calls that may. Default: 0.
    ///
    /// An attempt that is reported as [`Outcome::Unreached`] was not sent, and is retried on another instance whatever this limit is.
    pub const fn retries(self, retries: u32) -> Self {
        Self { retries, ..self }
    }

    /// Whether a call that is dropped before its end, by a `timeout` or a `select!` around it, counts as a failure of its instance. Turn
    /// it off where callers give up for reasons of their own. Default: it does, because otherwise an instance that hangs
    /// would never be ejected.
    pub const fn count_cancelled(self, on: bool) -> Self {
        Self { counts_cancelled: on, ..self }
    }
}

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError<E> {
    /// No instance could be picked for the first attempt.
    #[error(transparent)]
    Pick(#[from] PickError),
    /// The last instance that was tried has not answered in time.
    #[error("call {code} of {service}: no answer within {timeout:?}")]
    Timeout {
        /// The service.
        service: Arc<str>,
        /// The instance's code.
        code: Arc<str>,
        /// How long it had.
        timeout: Duration,
    },
    /// The call of the last instance that was tried has failed.
    #[error("call {code} of {service}: {error}")]
    Failed {
        /// The service.
        service: Arc<str>,
        /// The instance's code.
        code: Arc<str>,
        /// How.
        #[source]
        error: E,
    },
}

impl Balancer {
    /// Picks an instance, makes a call with it, and reports how that went: `Ok` as a success, `Err` as a failure. As the policy says, an
    /// attempt has a deadline, and another instance is tried where one has failed.
    ///
    /// The instance counts as in flight until the future that `call` returns has ended; so a body that is streamed belongs into it. It allocates
    /// nothing, unless it tries again.
    ///
    /// ```
    /// use std::io;
    /// use pointsman_balance::{Algorithm, Balancer, CallPolicy};
    /// # use std::sync::Arc;
    /// # use pointsman_core::{Instance, ObservedInstance, Snapshot, View};
    /// # let instance = Arc::new(ObservedInstance::from(Instance::new("s").address("127.0.0.1:50001")));
    /// # let view = View::fixed(Snapshot::new("s", 1, vec![instance]));
    /// # let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    /// # runtime.block_on(async {
    /// let balancer = Balancer::new(view, Algorithm::LeastConnections);
    /// let reply = balancer
    ///     .call(CallPolicy::new().retries(1), async |instance| {
    ///         // Calls instance.address here.
    ///         Ok::<_, io::Error>(instance.address.clone())
    ///     })
    ///     .await?;
    /// assert_eq!(reply.as_deref(), Some("127.0.0.1:50001"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Cancellation
    ///
    /// Dropped, it ends the attempt that is under way, which counts as a failure unless [`CallPolicy::count_cancelled`] says otherwise.
    ///
    /// # Errors
    ///
    /// That of the last attempt; [`CallError::Pick`] where no instance could be picked at all.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with time enabled.
    pub async fn call<T, E>(
        &self,
        policy: CallPolicy<'_>,
        call: impl AsyncFnMut(Arc<ObservedInstance>) -> Result<T, E>,
    ) -> Result<T, CallError<E>> {
        self.call_judged(policy, |result| result.into(), call).await
    }

    /// As [`Balancer::call`], with a judge of what comes back: an answer with a status such as 503 is `Ok`, but no success. The answer of the
    /// last attempt is returned, whatever it is.
    ///
    /// ```
    /// # use pointsman_balance::{Balancer, CallError, CallPolicy, Outcome};
    /// # struct Reply { status: u16 }
    /// # async fn example(balancer: &Balancer) -> Result<Reply, CallError<std::io::Error>> {
    /// let judge = |reply: &Result<Reply, std::io::Error>| match reply {
    ///     Ok(reply) => Outcome::of_http_status(reply.status),
    ///     Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => Outcome::Unreached,
    ///     Err(_) => Outcome::Failure,
    /// };
    /// balancer.call_judged(CallPolicy::new(), judge, async |instance| Ok(Reply { status: 200 })).await
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Balancer::call`].
    ///
    /// # Panics
    ///
    /// As [`Balancer::call`].
    pub async fn call_judged<T, E>(
        &self,
        policy: CallPolicy<'_>,
        judge: impl Fn(&Result<T, E>) -> Outcome,
        mut call: impl AsyncFnMut(Arc<ObservedInstance>) -> Result<T, E>,
    ) -> Result<T, CallError<E>> {
        self.retry_budget().deposit();
        let mut tried = Tried::default();
        let mut last = None;
        loop {
            let claim = match (self.claim_for(policy.key, &tried.codes), last) {
                (Ok(claim), _) if policy.counts_cancelled => claim.fail_unless_reported(),
                (Ok(claim), _) => claim,
                (Err(_), Some(last)) => return last,
                (Err(refusal), None) => return Err(refusal.into()),
            };
            let result = timeout(policy.timeout, call(claim.instance().clone())).await;
            let of = || (claim.instance().service.clone(), claim.code().clone());
            let (outcome, result) = match result {
                Ok(result) => {
                    let failed = |error| {
                        let (service, code) = of();
                        CallError::Failed { service, code, error }
                    };
                    (judge(&result), result.map_err(failed))
                }
                Err(_) => {
                    let (service, code) = of();
                    (Outcome::Failure, Err(CallError::Timeout { service, code, timeout: policy.timeout }))
                }
            };
            claim.report(outcome);
            if !self.may_try_again(outcome, policy, &mut tried) {
                return result;
            }
            tried.codes.push(claim.code().clone());
            last = Some(result);
        }
    }

    fn claim_for(&self, key: Option<&[u8]>, tried: &[Arc<str>]) -> Result<Claim, PickError> {
        match key {
            Some(key) if tried.is_empty() => self.pick(key),
            None if tried.is_empty() => self.pick_any(),
            Some(key) => self.pick_excluding(key, tried),
            // By chance here as well.
            None => self.pick_excluding(self.any_key(), tried),
        }
    }

    fn may_try_again(&self, outcome: Outcome, policy: CallPolicy<'_>, tried: &mut Tried) -> bool {
        match outcome {
            Outcome::Success => false,
            Outcome::Unreached => tried.codes.len() < MOST_UNREACHED,
            Outcome::Failure => {
                tried.retries += 1;
                tried.retries <= policy.retries && self.retry_budget().withdraw(clock::now())
            }
        }
    }
}

#[derive(Default)]
struct Tried {
    codes: Vec<Arc<str>>,
    /// Retries after attempts that may have reached an instance.
    retries: u32,
}
