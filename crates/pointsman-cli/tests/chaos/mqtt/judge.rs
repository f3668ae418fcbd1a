//! Judges messages by what is known for certain. Pure. The rules are those of the table in `mqtt.rs`.

#[cfg(test)]
mod tests;

use std::time::Duration;

use super::broker::HOST;
use super::letters::Letter;
use super::load::{Outcome, Sent};
use super::report::Evidence;
use super::world::Arrival;
use crate::history::Time;
use crate::judge::{is_drained, left_untold, master_is_lost, may_be_master};
use crate::truth::{Life, Origin, SETTLE};

/// Time for which a message could be served, and by the end of which it must have been answered.
pub(super) const WINDOW: Duration = Duration::from_secs(8);

/// Time after which everybody is connected to a broker again that has lost its sessions: the longest pause between two attempts, and a second for
/// the attempt.
pub(super) const RECONNECT: Duration = Duration::from_secs(6);

/// What has become of a message that should have fared otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    /// Without numbers, so that equal ones can be counted.
    pub(super) kind: String,
    pub(super) is_avoidable: bool,
}

fn avoidable(kind: impl Into<String>) -> Option<Fault> {
    Some(Fault { kind: kind.into(), is_avoidable: true })
}

impl Evidence {
    /// Judges a message. `None`: it is as it should be.
    pub(super) fn judge(&self, sent: &Sent) -> Option<Fault> {
        let kind = match (sent.is_for_the_master, sent.is_request) {
            (false, true) => "request",
            (false, false) => "message",
            (true, true) => "request for the master",
            (true, false) => "message for the master",
        };
        match &sent.outcome {
            Outcome::Answered(_)
                if self.could_be_served_for_a_while(sent)
                    && !self.may_wait_for_a_killed_relay(sent)
                    && !self.may_wait_for_one_that_is_gone(sent) =>
            {
                avoidable(format!("a late answer to a {kind}"))
            }
            Outcome::Answered(code) => self.misplaced(sent, code, sent.end, kind),
            Outcome::Wrong(_) => avoidable("an answer to another request"),
            Outcome::Taken => self.judge_taken(sent, kind),
            Outcome::Silence(_) => {
                let is_avoidable = self.could_be_served_for_a_while(sent) && !self.may_be_lost_with_the_broker(sent);
                Some(Fault { kind: format!("no answer to a {kind}"), is_avoidable })
            }
            Outcome::Failed(why) => {
                let why = why.split(':').next().unwrap_or_default();
                let could_be_sent_again = !why.contains("instance-gone") || !self.was_with_a_killed_relay(sent);
                let is_avoidable = could_be_sent_again && self.could_be_served(sent, sent.start, sent.end);
                Some(Fault { kind: format!("error for a {kind}: {why}"), is_avoidable })
            }
        }
    }

    /// Judges a message that was acknowledged.
    fn judge_taken(&self, sent: &Sent, kind: &str) -> Option<Fault> {
        if let Some(arrivals) = self.arrivals.get(&sent.id) {
            return arrivals.iter().find_map(|Arrival { at, code }| self.misplaced(sent, code, *at, kind));
        }
        if let Some(Letter { at, reason }) = self.letters.get(&sent.id) {
            let is_avoidable = self.could_be_served(sent, sent.start, *at);
            return Some(Fault { kind: format!("a {kind} has become a dead letter: {reason}"), is_avoidable });
        }
        let is_avoidable = match (self.has_embedded_broker, self.truth.serves.len()) {
            (false, _) => true,
            (true, 1) => {
                let is_letter = self.logged_letters.contains(&sent.id);
                !is_letter || self.could_be_served(sent, sent.start, sent.end)
            }
            (true, _) => self.could_be_served(sent, sent.start, sent.end + WINDOW),
        };
        Some(Fault { kind: format!("an acknowledged {kind} has not arrived"), is_avoidable })
    }

    /// Judges whether a message that an instance has got by `end` should have gone to another.
    fn misplaced(&self, sent: &Sent, code: &str, end: Time, kind: &str) -> Option<Fault> {
        let (truth, start) = (&self.truth, sent.start);
        let Some(life) = truth.life(code, None, start, end) else {
            return avoidable(format!("a {kind} was served by an unknown instance"));
        };
        if is_drained(truth, code, start, end) && truth.available(start, end).is_some() {
            return avoidable(format!("a {kind} was served by a drained instance although another was available"));
        }
        let is_right =
            !sent.is_for_the_master || may_be_master(truth, life, start, end) || left_untold(truth, life, start, end);
        if is_right { None } else { avoidable(format!("a {kind} was served by an instance that is not master")) }
    }

    /// Whether a message could be served at every time between the two.
    fn could_be_served(&self, sent: &Sent, start: Time, end: Time) -> bool {
        let truth = &self.truth;
        let relay = if self.has_embedded_broker {
            truth.serves[HOST].throughout(start.saturating_sub(RECONNECT), end, |up| up)
        } else {
            truth.serves.iter().any(|up| up.throughout(start.saturating_sub(SETTLE), end, |up| up))
        };
        relay && truth.available(start, end).is_some() && !(sent.is_for_the_master && master_is_lost(truth, start, end))
    }

    /// Whether a relay was killed that may have had the request: the broker keeps it, or the answer to it, until that is back.
    fn may_wait_for_a_killed_relay(&self, sent: &Sent) -> bool {
        let from = sent.start.saturating_sub(SETTLE);
        self.truth.serves.iter().any(|up| up.changes(from, sent.end).any(|(_, up)| !up))
    }

    /// Whether an instance that may have had the request was killed or stopped, and nobody could know that, because the registry was away.
    fn may_wait_for_one_that_is_gone(&self, sent: &Sent) -> bool {
        let from = sent.start.saturating_sub(SETTLE);
        let was_up = |life: &Life| life.states.throughout(from, sent.end, |state| state.origin == Origin::Up);
        let had_it = |life: &&Life| {
            self.arrivals
                .get(&sent.id)
                .is_some_and(|arrivals| arrivals.iter().any(|arrival| *arrival.code == *life.code))
        };
        let registry_was_away = !self.truth.registry.throughout(sent.start, sent.end, |serves| serves);
        registry_was_away && self.truth.lives.iter().filter(had_it).any(|life| !was_up(life))
    }

    /// Whether the embedded broker ended while it may have had a request, or the answer to it, in its memory.
    fn may_be_lost_with_the_broker(&self, sent: &Sent) -> bool {
        self.has_embedded_broker && !self.truth.serves[HOST].throughout(sent.start, sent.start + WINDOW, |up| up)
    }

    /// Whether a relay was killed that may have had the only copy of a request.
    fn was_with_a_killed_relay(&self, sent: &Sent) -> bool {
        !self.truth.serves.iter().all(|up| up.throughout(sent.start, sent.end, |up| up))
    }

    /// Whether a message could be served for a part of its time that is long enough.
    fn could_be_served_for_a_while(&self, sent: &Sent) -> bool {
        let mut from = sent.start;
        while from + WINDOW <= sent.end {
            if self.could_be_served(sent, from, from + WINDOW) {
                return true;
            }
            from += Duration::from_millis(200);
        }
        false
    }
}
