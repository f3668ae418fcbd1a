//! Messages for instances that are registered, but to whose code nobody subscribes at their broker.
//!
//! Such an instance is mostly back in a moment: it connects anew, or its broker has lost its session. A message that no other instance takes
//! is held for no longer than `away_timeout`, and sent again after growing pauses: not acknowledged, and counted like everything that is under
//! way. Its order with messages that come later is not kept. The sender of a request is told at once instead: it may be that the instance
//! is there, and has nothing subscribed for the topic.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::Engine;
use super::forward::Refused;
use super::waiting::{Deadline, size};
use crate::reason::Reason;
use crate::relay::routes::Route;

/// The pause before a message is sent again for the first time; doubled with each time.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Messages that are held, by when they are sent again, and in the order in which they have begun to wait for that.
#[derive(Debug, Default)]
pub(super) struct Away {
    held: BTreeMap<(Instant, u64), Refused>,
    next: u64,
}

/// How long a message is held, and the pause before it is sent again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Held {
    deadline: Deadline,
    pause: Duration,
}

impl Away {
    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.held.first_key_value().map(|(&(at, _), _)| at)
    }
}

impl Engine {
    /// Whether one of the instances that were tried is registered, and may be back before the time is over.
    pub(super) fn may_be_back(&self, route: &Route, refused: &Refused, now: Instant) -> bool {
        let Refused { forward, reason, .. } = refused;
        let is_over = forward.held.is_some_and(|held| held.deadline.is_over(now));
        let is_nobody = *reason == Reason::NO_MATCHING_SUBSCRIBERS && forward.request.is_none();
        let may_wait = is_nobody && !self.limits.away_timeout.is_zero() && !is_over;
        may_wait && forward.tried.iter().any(|code| self.routes.has(route, code))
    }

    /// Holds a message for an instance that is away.
    pub(super) fn hold_away(&mut self, mut refused: Refused, now: Instant) {
        let held = match refused.forward.held {
            None => Held { deadline: Deadline::after(self.limits.away_timeout, now), pause: FIRST_PAUSE },
            Some(held) => Held { pause: (2 * held.pause).min(LONGEST_PAUSE), ..held },
        };
        refused.forward.held = Some(held);
        self.forwards += 1;
        self.forward_bytes += size(&refused.message);
        self.away.next += 1;
        self.away.held.insert((held.deadline.no_later_than(now + held.pause), self.away.next), refused);
    }

    /// Sends again, to any instance, what has been held for its pause.
    pub(super) fn release_away(&mut self, now: Instant) {
        while let Some(entry) = self.away.held.first_entry().filter(|entry| entry.key().0 <= now) {
            let mut refused = entry.remove();
            self.forwards -= 1;
            self.forward_bytes -= size(&refused.message);
            let is_alive = match &mut refused.forward.held {
                Some(held) => held.deadline.age(&mut refused.message, now),
                None => true,
            };
            if !is_alive {
                self.give_up_expired(&refused, now);
                continue;
            }
            refused.forward.tried.clear();
            self.send_to_another(refused, None, now);
        }
    }
}
