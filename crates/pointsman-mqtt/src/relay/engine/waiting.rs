//! Messages for a master that is about to be elected.
//!
//! Between two masters of a service there is a moment without one. A message whose route wants the master waits for the next one, for no
//! longer than `queue_timeout`: not acknowledged, counted like everything that is under way, and in the order in which it came, also
//! where the master that there was has refused it only after later messages have begun to wait.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pointsman_balance::PickError;

use super::forward::{Arrival, Refused, detached};
use super::{Engine, Received};
use crate::packet::Publish;
use crate::relay::routes::Route;

/// Messages that wait, in the order in which they came from their senders, which is that of their deadlines as well.
#[derive(Debug, Default)]
pub(super) struct Waiting(VecDeque<Held>);

/// How long a message waits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    until: Instant,
    /// Since when its own expiry has not been counted down.
    aged: Instant,
}

impl Deadline {
    pub(super) fn after(timeout: Duration, now: Instant) -> Self {
        Self { until: now + timeout, aged: now }
    }

    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.until <= now
    }

    /// That moment, or the end of the wait where it comes first.
    pub(super) fn no_later_than(&self, at: Instant) -> Instant {
        at.min(self.until)
    }

    /// Counts a message's expiry down by the time that it has waited; whether it is still worth something.
    pub(super) fn age(&mut self, publish: &mut Publish, now: Instant) -> bool {
        let waited = now.saturating_duration_since(self.aged).as_secs();
        self.aged += Duration::from_secs(waited);
        let Some(seconds) = &mut publish.properties.expiry else { return true };
        let waited = u32::try_from(waited).unwrap_or(u32::MAX);
        // A message may live for 0 seconds: then it goes out within the first.
        let is_alive = *seconds > waited || (*seconds == 0 && waited == 0);
        *seconds = seconds.saturating_sub(waited);
        is_alive
    }
}

#[derive(Debug)]
struct Held {
    received: Received,
    route: Arc<Route>,
    deadline: Deadline,
    bytes: usize,
    what: What,
}

#[derive(Debug)]
enum What {
    /// From a sender, with the code at the end of its topic, if there was one.
    Arrival(Arrival, Option<Box<str>>),
    /// The master that there was has not taken it.
    Refused(Refused),
    /// The request with this number, whose instance is gone.
    Request(u64),
}

impl Held {
    /// Whether it counts against what may be taken from senders. A request that has a number counts by itself.
    fn counts(&self) -> bool {
        match &self.what {
            What::Arrival(..) => true,
            What::Refused(refused) => refused.forward.request.is_none(),
            What::Request(_) => false,
        }
    }
}

impl Waiting {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.0.front().map(|held| held.deadline.until)
    }

    /// Puts a message before those that came after it. It is waited for no longer than they are.
    fn insert(&mut self, mut held: Held) {
        let is_before = |other: &Held| other.received.number <= held.received.number;
        if self.0.back().is_none_or(is_before) {
            return self.0.push_back(held);
        }
        let at = self.0.partition_point(is_before);
        if let Some(next) = self.0.get(at) {
            held.deadline.until = held.deadline.until.min(next.deadline.until);
        }
        self.0.insert(at, held);
    }
}

impl Engine {
    /// How long a message waits for an instance, if it may. One that waits already does so until its time is over, whatever happens
    /// meanwhile.
    pub(super) fn may_wait(
        &self,
        route: &Route,
        error: &PickError,
        waits: Option<Deadline>,
        now: Instant,
    ) -> Option<Deadline> {
        let timeout = self.limits.queue_timeout;
        let first = || route.awaits_master(error, timeout, now).then(|| Deadline::after(timeout, now));
        waits.or_else(first).filter(|deadline| !deadline.is_over(now))
    }

    pub(super) fn hold_arrival(
        &mut self,
        mut arrival: Arrival,
        code: Option<&str>,
        route: Arc<Route>,
        deadline: Deadline,
    ) {
        arrival.publish = detached(&arrival.publish);
        let bytes = size(&arrival.publish);
        let received = arrival.received;
        let what = What::Arrival(arrival, code.map(Box::from));
        self.hold(Held { received, route, deadline, bytes, what });
    }

    pub(super) fn hold_refused(&mut self, refused: Refused, deadline: Deadline) {
        let (route, bytes) = (refused.forward.route.clone(), size(&refused.message));
        let received = refused.forward.received;
        self.hold(Held { received, route, deadline, bytes, what: What::Refused(refused) });
    }

    pub(super) fn hold_request(&mut self, number: u64, received: Received, route: Arc<Route>, deadline: Deadline) {
        self.hold(Held { received, route, deadline, bytes: 0, what: What::Request(number) });
    }

    fn hold(&mut self, held: Held) {
        if held.counts() {
            self.forwards += 1;
            self.forward_bytes += held.bytes;
        }
        self.waiting.insert(held);
    }

    /// A message has come: those that wait are not to be overtaken by it, if a master has come too and nobody has told yet.
    pub(super) fn let_waiting_go_first(&mut self, now: Instant) {
        if self.waiting.len() > 0 {
            self.instances_changed(now);
        }
    }

    /// Sends what waits for a master that is there now.
    pub(super) fn release_waiting(&mut self, now: Instant) {
        // While a sender's message of a route still waits, so do all after it.
        let mut vacant: Vec<Arc<Route>> = Vec::new();
        for held in std::mem::take(&mut self.waiting.0) {
            let is_arrival = matches!(held.what, What::Arrival(..));
            if is_arrival && vacant.iter().any(|route| Arc::ptr_eq(route, &held.route)) {
                self.waiting.0.push_back(held);
                continue;
            }
            let (route, before) = (held.route.clone(), self.waiting.len());
            self.try_again(held, now);
            if is_arrival && self.waiting.len() > before {
                vacant.push(route);
            }
        }
    }

    /// Gives up what has waited too long.
    pub(super) fn give_up_waiting(&mut self, now: Instant) {
        while self.waiting.0.front().is_some_and(|held| held.deadline.is_over(now))
            && let Some(held) = self.waiting.0.pop_front()
        {
            self.try_again(held, now);
        }
    }

    /// A message that an instance did not take has expired.
    pub(super) fn give_up_expired(&mut self, refused: &Refused, now: Instant) {
        if let Some(number) = refused.forward.request {
            self.give_up(number, "expired", EXPIRED, now);
        }
        self.metrics.dropped("expired", 1);
        self.acknowledge(refused.origin);
    }

    /// Sends a message that has waited, holds it again, or, when its time is over, gives it up.
    fn try_again(&mut self, held: Held, now: Instant) {
        if held.counts() {
            self.forwards -= 1;
            self.forward_bytes -= held.bytes;
        }
        let Held { route, mut deadline, what, .. } = held;
        match what {
            What::Request(number) => self.ask_another(number, Some(deadline), now),
            What::Refused(mut refused) => {
                if deadline.age(&mut refused.message, now) {
                    return self.send_to_another(refused, Some(deadline), now);
                }
                self.give_up_expired(&refused, now);
            }
            What::Arrival(mut arrival, code) => {
                let topic = arrival.publish.topic.clone();
                // What was a code when it came still is one.
                let Some(inquiry) = self.inquire(&topic, |level| code.as_deref() == Some(level)) else { return };
                if deadline.age(&mut arrival.publish, now) {
                    let route = self.routes.current(&route);
                    return self.dispatch(arrival, &inquiry, route, Some(deadline), now);
                }
                if let Some(reply) = Self::reply_of(&inquiry, &arrival.publish) {
                    self.tell((None, None), &reply, "expired", EXPIRED, now);
                }
                self.metrics.dropped("expired", 1);
                self.acknowledge(arrival.origin);
            }
        }
    }
}

const EXPIRED: &str = "the message has expired before it could be delivered";

pub(super) fn size(publish: &Publish) -> usize {
    publish.payload.len() + publish.topic.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_grows_older_while_it_waits() {
        let now = Instant::now();
        let after = |millis| now + Duration::from_millis(millis);
        let mut deadline = Deadline { until: after(60_000), aged: now };
        let mut publish = Publish::default();
        assert!(deadline.age(&mut publish, after(1500)));
        publish.properties.expiry = Some(3);
        for (millis, is_alive, left) in [(1900, true, 3), (2100, true, 2), (3900, true, 1), (4100, false, 0)] {
            assert_eq!((deadline.age(&mut publish, after(millis)), publish.properties.expiry), (is_alive, Some(left)));
        }
    }
}
