//! How much of the machine the tests have.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// Processor time for which the machine is measured.
const WORK: Duration = Duration::from_millis(40);
/// Maximum result: more load than that is a machine on which nothing can be tested.
const MOST: f64 = 20.0;

/// Returns how many times as long as alone a thread takes for its work now, at least 1. Times that a test sets for servers and sessions, which
/// have to do their work within them, are multiplied by it.
///
/// # Panics
/// Never, where the system can tell the time.
#[must_use]
pub fn slowdown() -> f64 {
    let (started, before) = (Instant::now(), used());
    while used() - before < WORK {
        std::hint::spin_loop();
    }
    (started.elapsed().as_secs_f64() / WORK.as_secs_f64()).clamp(1.0, MOST)
}

/// Processor time that this thread has used.
fn used() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap()
}
