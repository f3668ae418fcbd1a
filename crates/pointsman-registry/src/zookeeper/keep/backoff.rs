//! How long to wait after a failure.

use std::time::Duration;

use tokio::time::Instant;

/// The first delay.
pub(super) const RETRY_DELAY: Duration = Duration::from_millis(100);
const LONGEST_RETRY_DELAY: Duration = Duration::from_secs(5);

/// Delays that grow with failures in a row, spread so that a fleet does not try all at once.
#[derive(Default)]
pub(super) struct Backoff {
    last: Option<(Instant, Duration)>,
}

impl Backoff {
    /// The delay after one more failure.
    pub(super) fn next(&mut self) -> Duration {
        let delay = match self.last {
            // The last failure is long past: this is another trouble.
            Some((at, delay)) if at.elapsed() <= delay + LONGEST_RETRY_DELAY => (delay * 2).min(LONGEST_RETRY_DELAY),
            _ => RETRY_DELAY,
        };
        self.last = Some((Instant::now(), delay));
        delay.mul_f64(fastrand::f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn delays_grow_with_failures_in_a_row_and_are_forgotten_after_a_good_time() {
        let mut backoff = Backoff::default();
        for _ in 0..20 {
            assert!(backoff.next() <= LONGEST_RETRY_DELAY);
        }
        assert_eq!(backoff.last.unwrap().1, LONGEST_RETRY_DELAY);
        tokio::time::advance(LONGEST_RETRY_DELAY * 3).await;
        assert!(backoff.next() <= RETRY_DELAY);
    }
}
