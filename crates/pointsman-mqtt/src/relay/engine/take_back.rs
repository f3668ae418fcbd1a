//! Messages that an instance which is gone has not acknowledged.
//!
//! Most brokers acknowledge a message as soon as they have it. The embedded one waits for the instance, so a message for one that is dead
//! and whose session is kept would stay a flight for as long as the session lasts, and its sender would stand still.

use std::time::Instant;

use pointsman_balance::Outcome;

use super::forward::Refused;
use super::{Engine, What};
use crate::packet::{Publish, Qos};
use crate::reason::Reason;

impl Engine {
    /// Deals what instances that are gone or guarded have not acknowledged to the embedded broker to others.
    ///
    /// A message of QoS 1 is taken back if there is another instance for it, and so may come twice. One of QoS 2 waits for its instance.
    /// What becomes of a request is up to its route, as if the broker had acknowledged it.
    pub(super) fn take_back(&mut self, now: Instant) {
        for side in (1..self.brokers.len()).filter(|&side| self.brokers[side].is_empty()).collect::<Vec<_>>() {
            let Self { sessions, flights, requests, routes, .. } = self;
            let taken = sessions[side].take_back(now, |&token, qos| {
                let Some(What::Forward(forward)) = flights.get(token as usize).map(|flight| &flight.what) else {
                    return false;
                };
                match forward.request {
                    None => {
                        qos == Qos::AtLeastOnce && routes.is_replaced(&forward.route, &forward.code, &forward.tried)
                    }
                    Some(number) => requests.get(number).is_some_and(|request| request.has_lost_its_instance(routes)),
                }
            });
            for (token, message) in taken {
                self.deal_again(token, message, now);
            }
        }
    }

    fn deal_again(&mut self, token: u32, message: Publish, now: Instant) {
        let Some(flight) = self.land(token) else { return };
        let What::Forward(mut forward) = flight.what else { return };
        if let Some(place) = flight.place {
            // Nobody will send it there again.
            self.journal.sent(place, None, &forward.code);
        }
        let Some(number) = forward.request else {
            // Of one that is guarded it is not known whether it has failed.
            if let Some(endpoint) =
                forward.endpoint.as_ref().filter(|_| !self.routes.has(&forward.route, &forward.code))
            {
                endpoint.report(Outcome::Failure);
            }
            forward.tried.push(forward.code.clone());
            let reason = Reason::NO_MATCHING_SUBSCRIBERS;
            let refused = Refused { origin: flight.origin, forward: *forward, reason, message };
            return self.send_to_another(refused, None, now);
        };
        if let Some(request) = self.requests.get_mut(number) {
            request.origin = flight.origin;
        }
        self.orphaned(number, now);
    }
}
