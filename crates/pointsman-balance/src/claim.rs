//! A picked instance, counted as in flight until it is dropped.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use pointsman_core::ObservedInstance;

use crate::clock;
use crate::ejection::Outcome;
use crate::endpoint::Endpoint;

/// A picked instance. It counts as in flight there until the claim is dropped, on whatever path; so keep it as long as the
/// call lasts, a streamed body included.
///
/// A claim belongs to the instance's code, not to a place in a list: it stays right when instances come and go, and when the
/// instance itself leaves and returns.
#[must_use = "a claim counts as in flight only while it is held"]
pub struct Claim {
    endpoint: Arc<Endpoint>,
    /// When it was made; only where latencies matter, because asking the clock costs as much as a pick.
    started: Option<Instant>,
    reported: AtomicBool,
    /// Whether it was entered in the ranking.
    ranked: bool,
    /// Whether it has failed if nothing is reported.
    must_report: bool,
}

impl Claim {
    pub(crate) fn new(endpoint: Arc<Endpoint>, started: Option<Instant>, ranked: bool) -> Self {
        Self { endpoint, started, reported: AtomicBool::new(false), ranked, must_report: false }
    }

    /// The instance, as it was when it was picked.
    #[must_use]
    pub fn instance(&self) -> &Arc<ObservedInstance> {
        &self.endpoint.instance
    }

    /// The address to call, `host:port`; `None` for an instance that is reached by its code.
    #[must_use]
    pub fn address(&self) -> Option<&str> {
        self.instance().address.as_deref()
    }

    /// The instance's code.
    #[must_use]
    pub fn code(&self) -> &Arc<str> {
        &self.instance().code
    }

    /// Lets the claim count as failed if it is dropped without a report: so an instance that hangs is ejected also where a timeout
    /// around the call ends it. Without this, such a call says nothing of the instance, but for its latency. [`Balancer::call`](crate::Balancer::call) does
    /// it by default.
    #[must_use = "a claim counts as in flight only while it is held"]
    pub fn fail_unless_reported(mut self) -> Self {
        self.must_report = true;
        self
    }

    /// Ends [`Claim::fail_unless_reported`]: dropped without a report it says nothing. For a call that has been answered, whose
    /// caller may leave the rest of the answer for reasons of its own.
    #[must_use = "a claim counts as in flight only while it is held"]
    pub fn need_not_report(mut self) -> Self {
        self.must_report = false;
        self
    }

    /// Says how the call went: a [`Result`] by reference, or an [`Outcome`]. This is what instances are ejected by, and,
    /// with [`Algorithm::PeakEwma`](crate::Algorithm::PeakEwma), ends the measurement of the latency. Only the first
    /// report counts. The claim stays in flight until it is dropped.
    pub fn report(&self, outcome: impl Into<Outcome>) {
        self.end(outcome.into(), None);
    }

    /// As [`Claim::report`], at a given time.
    pub fn report_at(&self, outcome: impl Into<Outcome>, now: Instant) {
        self.end(outcome.into(), Some(now));
    }

    fn end(&self, outcome: Outcome, now: Option<Instant>) {
        if self.reported.swap(true, Ordering::Relaxed) {
            return;
        }
        let stats = &self.endpoint.stats;
        stats.shared.epoch.note(&stats.failures, outcome, now);
        if let Some(started) = self.started {
            let now = now.unwrap_or_else(clock::now);
            let (latency, ticks) = (now.saturating_duration_since(started), stats.shared.ticks(now));
            match outcome {
                Outcome::Success => stats.ewma.observe(latency, ticks),
                Outcome::Failure | Outcome::Unreached => stats.ewma.observe_at_least(latency, ticks),
            }
        }
    }

    #[cold]
    fn settle(&mut self) {
        if self.must_report {
            // Without effect after a report.
            self.end(Outcome::Failure, None);
        }
        if let Some(started) = self.started.filter(|_| !*self.reported.get_mut()) {
            // Given up: the call would have taken at least this long.
            let (stats, now) = (&self.endpoint.stats, clock::now());
            stats.ewma.observe_at_least(now.saturating_duration_since(started), stats.shared.ticks(now));
        }
        if self.ranked {
            self.endpoint.stats.shared.ranking.leave(&self.endpoint);
        }
    }
}

impl Drop for Claim {
    #[inline]
    fn drop(&mut self) {
        if self.ranked || self.must_report || self.started.is_some() {
            self.settle();
        }
    }
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claim")
            .field("service", &self.instance().service)
            .field("code", self.code())
            .field("address", &self.address())
            .finish_non_exhaustive()
    }
}
