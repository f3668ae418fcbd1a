//! A decaying, peak-sensitive average of latencies.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How fast an old latency is forgotten: after this time it counts 1/e. Finagle's and tower's default is 10 s.
pub(crate) const DECAY: Duration = Duration::from_secs(10);

/// What an instance that has work in flight but has never answered is taken for: tower's default of 1 s. One that has
/// neither is taken for 0, so that it is tried once (Finagle's rule for hosts without history).
const UNKNOWN: f64 = 1e9;

/// The peak-EWMA estimate of one instance's latency.
///
/// From Finagle's `PeakEwma` (and tower's, derived from it): a latency above the estimate replaces it at once; one below
/// pulls it down by `1 - exp(-elapsed / DECAY)`. When it is read, it has decayed towards 0 for the time since, so that an
/// instance that was slow once is tried again.
///
/// Both numbers lie in one atomic word, so that a pick reads them without a lock: the estimate as an `f32` in
/// nanoseconds, and the tick (2^20 ns, about 1 ms) at which it was made. Ticks wrap after 52 days, which only makes an
/// estimate that nobody has touched for so long look fresh.
#[derive(Debug, Default)]
pub(crate) struct Ewma {
    word: AtomicU64,
}

impl Ewma {
    /// Takes in a latency that was measured to its end.
    pub(crate) fn observe(&self, latency: Duration, now: Ticks) {
        self.update(
            |estimate, elapsed| {
                let latency = nanos(latency);
                if latency >= estimate {
                    latency
                } else {
                    let keep = decay(elapsed);
                    estimate * keep + latency * (1.0 - keep)
                }
            },
            now,
        );
    }

    /// Takes in a latency of which only a lower bound is known, from a call that was given up or that failed: it can
    /// raise the estimate, and never lower it, so that failing fast does not attract more calls.
    pub(crate) fn observe_at_least(&self, latency: Duration, now: Ticks) {
        if nanos(latency) > self.read(now).unwrap_or(0.0) {
            self.update(|estimate, elapsed| (estimate * decay(elapsed)).max(nanos(latency)), now);
        }
    }

    /// Forgets everything.
    pub(crate) fn reset(&self) {
        self.word.store(0, Ordering::Relaxed);
    }

    /// The estimate in nanoseconds; `None` before the first latency.
    pub(crate) fn read(&self, now: Ticks) -> Option<f64> {
        let word = self.word.load(Ordering::Relaxed);
        (word != 0).then(|| estimate_of(word) * decay(now.since(word)))
    }

    /// What a further call would cost: the estimate times what would then be in flight.
    pub(crate) fn cost(&self, in_flight: usize, now: Ticks) -> f64 {
        let estimate = self.read(now).unwrap_or(if in_flight == 0 { 0.0 } else { UNKNOWN });
        estimate * (in_flight + 1) as f64
    }

    fn update(&self, next: impl Fn(f64, u32) -> f64, now: Ticks) {
        let step = |word: u64| {
            let (estimate, elapsed) = if word == 0 { (0.0, 0) } else { (estimate_of(word), now.since(word)) };
            // Never the word 0, which means that nothing is known.
            let estimate = (next(estimate, elapsed) as f32).max(1.0);
            Some(u64::from(estimate.to_bits()) << 32 | u64::from(now.0))
        };
        // Cannot fail: `step` always has a next value.
        let _ = self.word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step);
    }
}

/// A moment in units of 2^20 ns since some base.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ticks(u32);

impl Ticks {
    pub(crate) fn at(base: Instant, now: Instant) -> Self {
        Self((now.saturating_duration_since(base).as_nanos() >> 20) as u32)
    }

    /// Ticks since the word was written; 0 if another thread has meanwhile written a newer one.
    fn since(self, word: u64) -> u32 {
        let elapsed = self.0.wrapping_sub(word as u32);
        if elapsed > u32::MAX / 2 { 0 } else { elapsed }
    }
}

fn estimate_of(word: u64) -> f64 {
    f64::from(f32::from_bits((word >> 32) as u32))
}

fn decay(elapsed: u32) -> f64 {
    if elapsed == 0 { 1.0 } else { (-f64::from(elapsed) * f64::from(1 << 20) / nanos(DECAY)).exp() }
}

fn nanos(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn at(seconds: u64) -> Ticks {
        let base = Instant::now();
        Ticks::at(base, base + Duration::from_secs(seconds))
    }

    fn close(value: Option<f64>, milliseconds: f64) -> bool {
        value.is_some_and(|nanos| (nanos / 1e6 - milliseconds).abs() < milliseconds * 0.01)
    }

    #[test]
    fn peaks_count_at_once_and_are_forgotten_slowly() {
        let ewma = Ewma::default();
        assert_eq!(ewma.read(at(0)), None);
        ewma.observe(10 * MS, at(0));
        ewma.observe(500 * MS, at(0));
        assert!(close(ewma.read(at(0)), 500.0));
        ewma.observe(10 * MS, at(0));
        assert!(close(ewma.read(at(0)), 500.0));
        ewma.observe(10 * MS, at(10));
        assert!(close(ewma.read(at(10)), 500.0 / 1f64.exp() + 10.0 * (1.0 - 1.0 / 1f64.exp())));
        assert!(close(ewma.read(at(20)), 190.26 / 1f64.exp()));
    }

    #[test]
    fn a_lower_bound_never_lowers() {
        let ewma = Ewma::default();
        ewma.observe(100 * MS, at(0));
        ewma.observe_at_least(MS, at(0));
        assert!(close(ewma.read(at(0)), 100.0));
        ewma.observe_at_least(200 * MS, at(0));
        assert!(close(ewma.read(at(0)), 200.0));
    }

    #[test]
    fn what_is_unknown_is_tried_once() {
        let ewma = Ewma::default();
        assert_eq!(ewma.cost(0, at(0)), 0.0);
        assert_eq!(ewma.cost(1, at(0)), 2e9);
        ewma.observe(Duration::ZERO, at(0));
        assert!(ewma.read(at(0)).is_some());
    }
}
