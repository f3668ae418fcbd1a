//! Messages that a master which is gone may or may not have taken.
//!
//! Its broker is yet to say so. If it has not taken them they go to the next master, and what their senders sent after them is not to
//! overtake them: it waits until the broker has spoken, but for no longer than `queue_timeout`.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use pointsman_core::ServiceId;

use super::waiting::Deadline;
use super::{Engine, What};
use crate::relay::routes::Route;
use crate::relay::settings::RouteRole;

/// Flights to masters that are gone.
#[derive(Debug, Default)]
pub(super) struct Unsettled {
    by_service: HashMap<ServiceId, HashSet<u32>>,
    /// Until when they are waited for.
    until: Option<Instant>,
    /// Whether messages wait for them.
    has_followers: bool,
}

impl Unsettled {
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.until
    }

    /// A flight has landed.
    pub(super) fn settle(&mut self, route: &Route, token: u32) {
        let Some(flights) = self.by_service.get_mut(&route.service) else { return };
        flights.remove(&token);
        if flights.is_empty() {
            self.by_service.remove(&route.service);
        }
    }
}

impl Engine {
    /// The instances have changed: notes the flights to masters that have gone.
    pub(super) fn note_unsettled(&mut self, now: Instant) {
        let timeout = self.limits.queue_timeout;
        if timeout.is_zero() {
            return;
        }
        for (key, flight) in &mut self.flights {
            let What::Forward(forward) = &mut flight.what else { continue };
            let route = &forward.route;
            if forward.is_unsettled || route.settings.role != RouteRole::Master || self.routes.has(route, &forward.code)
            {
                continue;
            }
            forward.is_unsettled = true;
            let flights = self.unsettled.by_service.entry(route.service.clone()).or_default();
            flights.insert(u32::try_from(key).unwrap_or(u32::MAX));
            self.unsettled.until = Some(now + timeout);
        }
    }

    /// How long a message for the master waits for earlier ones that the last master may not have taken. `waits` is until when it
    /// waits already.
    pub(super) fn must_follow(&mut self, route: &Route, waits: Option<Deadline>, now: Instant) -> Option<Deadline> {
        let wants_master = route.settings.role == RouteRole::Master;
        if !wants_master || !self.unsettled.by_service.contains_key(&route.service) {
            return None;
        }
        let deadline = waits.unwrap_or_else(|| Deadline::after(self.limits.queue_timeout, now));
        let waits = !deadline.is_over(now);
        self.unsettled.has_followers |= waits;
        waits.then_some(deadline)
    }

    /// Sends what has waited for flights that have landed, or are waited for no longer.
    pub(super) fn release_followers(&mut self, now: Instant) {
        if self.unsettled.until.is_some_and(|until| until <= now) {
            self.unsettled.by_service.clear();
        }
        if self.unsettled.by_service.is_empty() {
            self.unsettled.until = None;
            if std::mem::take(&mut self.unsettled.has_followers) {
                self.release_waiting(now);
            }
        }
    }
}
