//! What has come back from subscribers, and what follows from it.

use std::time::Instant;

use super::client::Token;
use super::core::{Core, SLICE, Work};
use super::duty::{Answer, Verdict};
use super::slots::Key;
use crate::packet::Version;
use crate::reason::Reason;

impl Core {
    /// A message's token has come back.
    pub(super) fn returned(&mut self, key: Key, token: &Token, answer: Answer) {
        if let Some(client) = self.clients.get_mut(key) {
            client.returned(token);
        }
        self.relieve(key);
        if let Some(duty) = token.duty {
            self.work.push_back(Work::Answer { duty, answer });
        }
    }

    /// Messages whose time was over before they could be sent.
    pub(super) fn take_expired(&mut self, key: Key) {
        while let Some(token) = self.clients.get_mut(key).and_then(|client| client.session.take_expired()) {
            self.figures.dropped_expired += 1;
            self.returned(key, &token, Answer::Expired);
        }
    }

    /// Does what follows from what has been done. What does not fit into the slice is left to the clock, and to whoever comes first.
    pub(super) fn work(&mut self, now: Instant) {
        while self.spent < SLICE
            && let Some(work) = self.work.pop_front()
        {
            self.spent += 1;
            match work {
                Work::Publish { from, publish } => self.publish_will(from, *publish, now),
                Work::Again { shared, duty, owed } => self.again(&shared, duty, owed, now),
                Work::Answer { duty, answer } => self.answer(duty, answer, now),
                Work::Enter(connection) => self.enter(connection, now),
            }
        }
    }

    pub(super) fn answer(&mut self, key: Key, answer: Answer, now: Instant) {
        let Some(duty) = self.duties.get_mut(key) else { return };
        let (publisher, id) = (duty.publisher, duty.id);
        let Some(verdict) = duty.answered(answer) else { return };
        self.duties.remove(key);
        let Some(client) = self.clients.get_mut(publisher) else { return };
        let reason = match verdict {
            Verdict::Acknowledge(reason) => reason,
            Verdict::Lost => {
                // MQTT 3.1.1 cannot say it: to close the connection is the only answer that is no acknowledgement.
                if client.session.peer().version == Version::V311
                    && let Some(connection) = client.connection
                {
                    tracing::info!(client = %client.id, "MQTT client disconnected: nobody has taken its message, let it send again");
                    self.close(connection, None);
                    self.detach(publisher, true, now);
                }
                Reason::IMPLEMENTATION_ERROR
            }
        };
        // Without a connection an error lets the session forget the message, so that it is taken for new when it comes again.
        if let Some(client) = self.clients.get_mut(publisher) {
            client.session.acknowledge(id, reason);
        }
        self.touch(publisher);
    }
}
