//! Acknowledgements that wait for other acknowledgements.
//!
//! A broker acknowledges a message once it has it. Where a local client (the relay) is involved, that is too early: what it
//! takes is acknowledged to the publisher when it has acknowledged it, and what it publishes is acknowledged to it when a
//! subscriber has. So an acknowledgement goes from the one end to the other, and nothing that was acknowledged can be lost
//! with this process.

use super::slots::Key;
use crate::reason::Reason;

/// An acknowledgement that is owed to a publisher.
#[derive(Debug)]
pub(super) struct Duty {
    /// To whom.
    pub(super) publisher: Key,
    /// The packet identifier of its message.
    pub(super) id: u16,
    rule: Rule,
    /// How many subscribers have not answered.
    waiting: usize,
    /// Whether one has it.
    taken: bool,
    refused: Option<Reason>,
}

/// Whose acknowledgements it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    /// The publisher is local: one of the subscribers.
    Any,
    /// The publisher is not: all local subscribers.
    All,
}

/// What a subscriber has to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// It has it.
    Taken,
    /// It does not want it.
    Refused(Reason),
    /// It will never say anything: its session has ended, or the message's time was over.
    Gone,
    Expired,
}

/// What becomes of the publisher's message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Acknowledge(Reason),
    /// Nobody has it. A publisher that cannot be told so has to send it again.
    Lost,
}

impl Duty {
    pub(super) fn new(publisher: Key, id: u16, rule: Rule) -> Self {
        Self { publisher, id, rule, waiting: 0, taken: false, refused: None }
    }

    /// One more subscriber will answer.
    pub(super) fn wait(&mut self) {
        self.waiting += 1;
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.waiting > 0
    }

    /// A subscriber that will not be waited for has it.
    pub(super) fn taken_elsewhere(&mut self) {
        self.taken |= self.rule == Rule::All;
    }

    /// Takes an answer in; what is to be done if it was the last that was needed.
    pub(super) fn answered(&mut self, answer: Answer) -> Option<Verdict> {
        self.waiting = self.waiting.saturating_sub(1);
        match answer {
            Answer::Taken if self.rule == Rule::Any => return Some(Verdict::Acknowledge(Reason::SUCCESS)),
            Answer::Taken => self.taken = true,
            Answer::Refused(reason) => self.refused = Some(reason),
            Answer::Expired if self.refused.is_none() => self.refused = Some(Reason::NO_MATCHING_SUBSCRIBERS),
            Answer::Gone | Answer::Expired => {}
        }
        if self.waiting > 0 {
            return None;
        }
        Some(match (self.refused, self.rule) {
            (Some(reason), _) if reason.is_error() || !self.taken => Verdict::Acknowledge(reason),
            (_, Rule::Any) => Verdict::Acknowledge(Reason::NO_MATCHING_SUBSCRIBERS),
            (_, Rule::All) if self.taken => Verdict::Acknowledge(Reason::SUCCESS),
            (_, Rule::All) => Verdict::Lost,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::slots::Slots;

    fn verdict(rule: Rule, elsewhere: bool, answers: &[Answer]) -> Option<Verdict> {
        let mut duty = Duty::new(Slots::default().insert(()), 1, rule);
        answers.iter().for_each(|_| duty.wait());
        if elsewhere {
            duty.taken_elsewhere();
        }
        answers.iter().find_map(|&answer| duty.answered(answer))
    }

    #[test]
    fn a_local_publisher_is_content_with_one() {
        use Answer::{Expired, Gone, Refused, Taken};
        let acknowledged = |reason| Some(Verdict::Acknowledge(reason));
        for (answers, expected) in [
            (&[Gone, Taken][..], Reason::SUCCESS),
            (&[Taken, Gone], Reason::SUCCESS),
            (&[Refused(Reason::QUOTA_EXCEEDED), Taken], Reason::SUCCESS),
            (&[Gone, Gone], Reason::NO_MATCHING_SUBSCRIBERS),
            (&[Expired], Reason::NO_MATCHING_SUBSCRIBERS),
            (&[Refused(Reason::QUOTA_EXCEEDED), Gone], Reason::QUOTA_EXCEEDED),
        ] {
            assert_eq!(verdict(Rule::Any, false, answers), acknowledged(expected), "{answers:?}");
        }
    }

    #[test]
    fn all_local_subscribers_are_waited_for() {
        use Answer::{Gone, Refused, Taken};
        let acknowledged = |reason| Some(Verdict::Acknowledge(reason));
        for (elsewhere, answers, expected) in [
            (false, &[Taken, Taken][..], acknowledged(Reason::SUCCESS)),
            (false, &[Taken, Gone], acknowledged(Reason::SUCCESS)),
            (false, &[Taken, Refused(Reason::QUOTA_EXCEEDED)], acknowledged(Reason::QUOTA_EXCEEDED)),
            (true, &[Gone], acknowledged(Reason::SUCCESS)),
            (false, &[Gone, Gone], Some(Verdict::Lost)),
        ] {
            assert_eq!(verdict(Rule::All, elsewhere, answers), expected, "{answers:?}");
        }
        let mut duty = Duty::new(Slots::default().insert(()), 1, Rule::All);
        duty.wait();
        duty.wait();
        assert_eq!((duty.answered(Taken), duty.is_waiting()), (None, true));
    }
}
