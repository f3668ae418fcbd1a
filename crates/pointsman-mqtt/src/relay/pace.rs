//! How busy a relay is, and how it lets work gather when it is very busy.
//!
//! A broker writes message by message, and each write wakes whoever sleeps on the other end: a cost for both, and with one broker on both
//! sides most of what the broker can do. So above a rate at which messages come faster than one by one could matter to anybody, the relay
//! sleeps for a moment after each pass, and finds several messages when it wakes: what a network card does with its interrupts.

use std::time::Duration;

use tokio::time::Instant;

/// Above so many messages of senders in a millisecond the relay lets them gather.
const HIGH: u64 = 20;
/// A pass that has found so many has let enough gather: where all processors are busy that happens by itself.
const ENOUGH: u32 = 12;
/// How long the rate is measured.
const WINDOW: Duration = Duration::from_millis(1);
/// How long the relay sleeps, at the least: the kernel adds about as much again.
const NAP: Duration = Duration::from_micros(50);

/// The rate of messages.
#[derive(Debug)]
pub(super) struct Pace {
    since: Instant,
    arrivals: u64,
    high: bool,
    /// Whether sleeping saves anything: it would hold up a broker in this process.
    may_sleep: bool,
}

impl Pace {
    /// `may_sleep`: whether all brokers are other processes, which sleeping does not hold up.
    pub(super) fn new(may_sleep: bool) -> Self {
        Self { since: Instant::now(), arrivals: 0, high: false, may_sleep }
    }

    /// Lets others go first after a pass that has handled `signals`, when so many messages have come from senders ever.
    pub(super) fn gather(&mut self, signals: u32, arrivals: u64, now: Instant) {
        let elapsed = now.saturating_duration_since(self.since);
        if elapsed >= WINDOW {
            self.high = u128::from(arrivals - self.arrivals) * 1000 > u128::from(HIGH) * elapsed.as_micros();
            (self.since, self.arrivals) = (now, arrivals);
        }
        if signals == 0 {
            return;
        }
        if self.high && self.may_sleep && signals < ENOUGH {
            std::thread::sleep(NAP);
        } else if signals > 1 {
            // What we had is written already, and a message that comes alone does not wait.
            std::thread::yield_now();
        }
    }
}
