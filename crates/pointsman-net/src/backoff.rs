//! Delays between attempts after a failure.

use std::ops::Range;
use std::time::{Duration, Instant};

/// Delays that double with failures in a row, with jitter, so that a fleet does not try again all at once.
#[derive(Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    jitter: Range<f64>,
    failures: u32,
    last: Option<Instant>,
    rng: fastrand::Rng,
}

impl Backoff {
    /// Delays from `first` to `longest`, of each of which half is certain and half is drawn ("equal jitter": Brooker, "Exponential
    /// Backoff And Jitter", AWS Architecture Blog, 2015).
    #[must_use]
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, jitter: 0.5..1.0, failures: 0, last: None, rng: fastrand::Rng::new() }
    }

    /// Sets the share of each delay that is waited, drawn from `jitter`: `0.0..1.0` is full jitter.
    #[must_use]
    pub fn with_jitter(self, jitter: Range<f64>) -> Self {
        Self { jitter, ..self }
    }

    /// Draws from a seed: the same seed gives the same delays.
    #[must_use]
    pub fn with_seed(self, seed: u64) -> Self {
        Self { rng: fastrand::Rng::with_seed(seed), ..self }
    }

    /// Returns the delay after one more failure.
    pub fn delay(&mut self) -> Duration {
        let delay = self.scaled(self.failures);
        self.failures = self.failures.saturating_add(1);
        let Range { start, end } = self.jitter;
        delay.mul_f64(start + (end - start) * self.rng.f64())
    }

    /// Returns the delay after a failure at `now`. A failure that comes long after the last one (later than its delay and the longest one)
    /// is the first of a new row.
    pub fn delay_at(&mut self, now: Instant) -> Duration {
        let row = self.scaled(self.failures.saturating_sub(1)) + self.longest;
        if self.last.is_some_and(|last| now.saturating_duration_since(last) > row) {
            self.reset();
        }
        self.last = Some(now);
        self.delay()
    }

    /// Begins a new row: something has succeeded, or lasted.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Number of failures in this row.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Returns the delay that follows `failures` others, without jitter.
    fn scaled(&self, failures: u32) -> Duration {
        self.first.saturating_mul(1 << failures.min(20)).min(self.longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(5);

    #[test]
    fn delays_grow_with_failures_in_a_row_and_are_forgotten_after_a_good_time() {
        let (mut backoff, mut now) = (Backoff::new(FIRST, LONGEST).with_seed(1), Instant::now());
        for attempt in 0..20 {
            let most = (FIRST * (1 << attempt.min(10))).min(LONGEST);
            let delay = backoff.delay_at(now);
            assert!(most / 2 <= delay && delay <= most, "{delay:?}");
            now += delay;
        }
        assert!(backoff.delay_at(now + LONGEST * 3) <= FIRST);
        assert_eq!(backoff.failures(), 1);
    }

    #[test]
    fn a_seed_replays_the_delays() {
        let delays = |seed| {
            let mut backoff = Backoff::new(FIRST, LONGEST).with_jitter(0.0..1.0).with_seed(seed);
            [(); 8].map(|()| backoff.delay())
        };
        assert_eq!(delays(7), delays(7));
        assert_ne!(delays(7), delays(8));
    }
}
