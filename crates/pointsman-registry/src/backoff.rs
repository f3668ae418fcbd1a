//! How long to wait after a failure.

use std::time::Duration;

use tokio::time::Instant;

/// The first delay.
const FIRST: Duration = Duration::from_millis(100);

/// Delays that double with failures in a row, spread so that a fleet does not try all at once.
#[derive(Debug)]
pub(crate) struct Backoff {
    longest: Duration,
    last: Option<(Instant, Duration)>,
}

impl Backoff {
    /// Delays of at most `longest`.
    pub(crate) fn new(longest: Duration) -> Self {
        Self { longest, last: None }
    }

    /// Returns the delay after one more failure: half of it is certain, the other half is drawn. A failure long after the last one is
    /// the first of a new row.
    pub(crate) fn next(&mut self, now: Instant) -> Duration {
        let delay = match self.last {
            Some((at, delay)) if now.saturating_duration_since(at) <= delay + self.longest => {
                (delay * 2).min(self.longest)
            }
            _ => FIRST,
        };
        self.last = Some((now, delay));
        delay.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_with_failures_in_a_row_and_are_forgotten_after_a_good_time() {
        let longest = Duration::from_secs(5);
        let (mut backoff, mut now) = (Backoff::new(longest), Instant::now());
        for attempt in 0..20 {
            let most = (FIRST * (1 << attempt.min(10))).min(longest);
            let delay = backoff.next(now);
            assert!(most / 2 <= delay && delay <= most, "{delay:?}");
            now += delay;
        }
        assert!(backoff.next(now + longest * 3) <= FIRST);
    }
}
