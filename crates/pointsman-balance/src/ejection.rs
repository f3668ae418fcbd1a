//! Passive ejection: an instance that keeps failing gets no calls for a while.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::clock;

/// When an instance is ejected because of the outcomes reported for it, and for how long.
///
/// The rules and the defaults are those of Envoy's outlier detection (`consecutive_5xx`, `interval`,
/// `base_ejection_time`, `max_ejection_time`, `max_ejection_percent`) and of its panic threshold
/// (`healthy_panic_threshold`). Two differences: an instance is let in again at the very moment its time is over, and not
/// at the next sweep; and no timer runs, because the next pick looks at the clock while somebody is ejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ejection {
    /// Number of failures in a row that eject an instance. Default 5.
    pub consecutive_failures: u32,
    /// The sweep: for each such time that an instance stays in after an ejection, one earlier ejection is forgiven. Default
    /// 10 s.
    pub interval: Duration,
    /// The first ejection lasts so long, the second twice as long, and so on. Default 30 s.
    pub base_time: Duration,
    /// No ejection lasts longer. Default 300 s.
    pub max_time: Duration,
    /// Maximum share of the registered normal instances that is ejected at a time; one always may be. Default 10. The master
    /// does not count, nor do guarded instances and those that fail their active checks.
    pub max_percent: u32,
    /// When fewer than this share of them would remain, ejections are disregarded. Default 50; 0 turns it off. Where none at all
    /// remains, the master comes before those that are ejected.
    pub panic_percent: u32,
}

impl Default for Ejection {
    fn default() -> Self {
        Self {
            consecutive_failures: 5,
            interval: Duration::from_secs(10),
            base_time: Duration::from_secs(30),
            max_time: Duration::from_secs(300),
            max_percent: 10,
            panic_percent: 50,
        }
    }
}

impl Ejection {
    /// How many of `candidates` may be ejected at a time.
    pub(crate) fn limit(&self, candidates: usize) -> usize {
        (candidates * self.max_percent as usize / 100).max(1)
    }

    /// Whether so few are left that ejection is disregarded.
    pub(crate) fn panics(&self, healthy: usize, candidates: usize) -> bool {
        healthy * 100 < candidates * self.panic_percent as usize
    }
}

/// How a call went that was made on a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// The instance answered.
    Success,
    /// It did not, or with an error that is the instance's fault. The client's faults are not failures.
    Failure,
    /// It could not be reached, and nothing was sent. It counts as a failure; whatever the call was, it can be made elsewhere.
    Unreached,
}

impl Outcome {
    /// `success`, `failure` or `unreached`: the word for logs and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Outcome::Success => "success",
            Outcome::Failure => "failure",
            Outcome::Unreached => "unreached",
        }
    }

    /// The outcome of a call that was answered with this HTTP status: 500 and above are failures, as with Envoy's `consecutive_5xx`.
    #[must_use]
    pub fn of_http_status(status: u16) -> Self {
        if status >= 500 { Outcome::Failure } else { Outcome::Success }
    }

    /// The outcome of a call that was answered with this gRPC status. Failures are those that Envoy takes for an HTTP status of 500 and
    /// above: `UNKNOWN` (2), `DEADLINE_EXCEEDED` (4), `UNIMPLEMENTED` (12), `INTERNAL` (13), `UNAVAILABLE` (14), `DATA_LOSS` (15), and
    /// numbers that do not exist. The others tell of the call, not of the instance.
    #[must_use]
    pub fn of_grpc_status(status: i32) -> Self {
        if matches!(status, 0 | 1 | 3 | 5..=11 | 16) { Outcome::Success } else { Outcome::Failure }
    }

    /// Whether it speaks against the instance.
    #[must_use]
    pub fn is_failure(self) -> bool {
        self != Outcome::Success
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// By [`Outcome::of_http_status`].
#[cfg(feature = "http")]
impl From<http::StatusCode> for Outcome {
    fn from(status: http::StatusCode) -> Self {
        Self::of_http_status(status.as_u16())
    }
}

/// `Ok` is a success and `Err` a failure, whatever is in them: of an answer with a status, that status is to be reported.
impl<T, E> From<&Result<T, E>> for Outcome {
    fn from(result: &Result<T, E>) -> Self {
        if result.is_ok() { Outcome::Success } else { Outcome::Failure }
    }
}

/// The sign that tables have to be prepared anew, which claims give without any lock.
#[derive(Debug)]
pub(crate) struct Epoch {
    /// Rises when something is known of an instance that may change whether it is used.
    epoch: AtomicU64,
    threshold: AtomicU32,
}

impl Epoch {
    pub(crate) fn new(ejection: Option<Ejection>) -> Self {
        let it = Self { epoch: AtomicU64::new(0), threshold: AtomicU32::new(0) };
        it.judge_by(ejection);
        it
    }

    /// Sets the number of failures in a row that eject, from now on.
    pub(crate) fn judge_by(&self, ejection: Option<Ejection>) {
        let threshold = ejection.map_or(u32::MAX, |ejection| ejection.consecutive_failures.max(1));
        self.threshold.store(threshold, Ordering::Relaxed);
        self.advance();
    }

    /// Lets tables be prepared anew.
    pub(crate) fn advance(&self) {
        self.epoch.fetch_add(1, Ordering::Release);
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Counts an outcome into an instance's failures in a row, and raises the epoch at the threshold.
    pub(crate) fn note(&self, failures: &Failures, outcome: Outcome, now: Option<Instant>) {
        match outcome {
            // The load spares healthy instances, which is nearly all of them, a contended write.
            Outcome::Success if failures.in_a_row.load(Ordering::Relaxed) == 0 => {}
            Outcome::Success => failures.in_a_row.store(0, Ordering::Relaxed),
            Outcome::Failure | Outcome::Unreached => {
                let in_a_row = failures.in_a_row.fetch_add(1, Ordering::Relaxed).saturating_add(1);
                if failures.is_guarded.load(Ordering::Relaxed) {
                    // One is enough for it to be taken for dead.
                    if !failures.while_guarded.swap(true, Ordering::Relaxed) {
                        self.advance();
                    }
                } else if in_a_row == self.threshold.load(Ordering::Relaxed) {
                    failures.set_last(Some(now.unwrap_or_else(clock::now)));
                    self.advance();
                }
            }
        }
    }

    /// Whether the failures in a row have reached the threshold.
    pub(crate) fn is_due(&self, failures: &Failures) -> bool {
        failures.in_a_row.load(Ordering::Relaxed) >= self.threshold.load(Ordering::Relaxed)
    }

    /// When the last failure was that is to be judged. Counts anew.
    pub(crate) fn take(&self, failures: &Failures) -> Option<Instant> {
        failures.in_a_row.store(0, Ordering::Relaxed);
        failures.set_last(None)
    }
}

/// The failures of one instance.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    in_a_row: AtomicU32,
    /// When the threshold was reached: the next pick, which judges it, may be long after.
    last: Mutex<Option<Instant>>,
    /// The registry has lost the instance.
    is_guarded: AtomicBool,
    /// A call has failed since, or the last one before.
    while_guarded: AtomicBool,
}

impl Failures {
    /// Counts anew.
    pub(crate) fn reset(&self) {
        self.in_a_row.store(0, Ordering::Relaxed);
    }

    /// Whether the last call has failed.
    pub(crate) fn is_failing(&self) -> bool {
        self.in_a_row.load(Ordering::Relaxed) > 0
    }

    /// Takes in whether the instance is guarded now.
    pub(crate) fn guard(&self, is_guarded: bool) {
        if self.is_guarded.swap(is_guarded, Ordering::Relaxed) != is_guarded {
            self.while_guarded.store(is_guarded && self.is_failing(), Ordering::Relaxed);
            if !is_guarded {
                self.reset();
            }
        }
    }

    /// Whether a call has failed since the instance is guarded.
    pub(crate) fn have_come_while_guarded(&self) -> bool {
        self.while_guarded.load(Ordering::Relaxed)
    }

    fn set_last(&self, at: Option<Instant>) -> Option<Instant> {
        std::mem::replace(&mut *self.last.lock().unwrap_or_else(PoisonError::into_inner), at)
    }
}

/// The ejections of one instance.
#[derive(Debug, Default)]
pub(crate) struct Ejections {
    until: Option<Instant>,
    times: u32,
}

impl Ejections {
    /// Until when it is ejected, if it is.
    pub(crate) fn ejected_until(&self, now: Instant) -> Option<Instant> {
        self.until.filter(|until| now < *until)
    }

    /// Ejects it, for a multiple of the base time.
    pub(crate) fn eject(&mut self, rule: &Ejection, now: Instant) {
        if let Some(until) = self.until {
            let good = now.saturating_duration_since(until).as_nanos();
            let forgiven = good / rule.interval.as_nanos().max(1);
            self.times = self.times.saturating_sub(u32::try_from(forgiven).unwrap_or(u32::MAX));
        }
        self.times = self.times.saturating_add(1);
        let time = rule.base_time.saturating_mul(self.times).min(rule.max_time.max(rule.base_time));
        self.until = Some(now + time);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn each_ejection_is_longer_and_good_time_is_forgiving() {
        let (rule, start) = (Ejection::default(), Instant::now());
        let mut record = Ejections::default();
        record.eject(&rule, start);
        assert_eq!(record.ejected_until(start), Some(start + 30 * SECOND));
        assert_eq!(record.ejected_until(start + 30 * SECOND), None);
        record.eject(&rule, start + 31 * SECOND);
        assert_eq!(record.ejected_until(start + 31 * SECOND), Some(start + 91 * SECOND));
        // 25 s good: two of two earlier ejections are forgiven.
        record.eject(&rule, start + 116 * SECOND);
        assert_eq!(record.ejected_until(start + 116 * SECOND), Some(start + 146 * SECOND));
        for _ in 0..50 {
            record.eject(&rule, start + 146 * SECOND);
        }
        assert_eq!(record.ejected_until(start + 146 * SECOND), Some(start + 446 * SECOND));
    }

    #[test]
    fn the_limits_of_envoy() {
        let rule = Ejection::default();
        assert_eq!([1, 9, 10, 19, 20, 1000].map(|n| rule.limit(n)), [1, 1, 1, 1, 2, 100]);
        assert!(!rule.panics(1, 2) && rule.panics(1, 3));
    }
}
