//! Requests that wait for their answer.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use super::engine::{Origin, Received, Reply};
use super::routes::{Endpoint, Route, Routes};
use crate::packet::Publish;

/// All of them, by their numbers.
#[derive(Debug, Default)]
pub(super) struct Requests {
    by_number: HashMap<u64, Request>,
    deadlines: BTreeSet<(Instant, u64)>,
    last: u64,
    bytes: usize,
}

#[derive(Debug)]
pub(super) struct Request {
    pub(super) reply: Reply,
    pub(super) route: Arc<Route>,
    /// Who has it. In flight there until it is answered.
    pub(super) endpoint: Endpoint,
    pub(super) tried: Vec<Arc<str>>,
    pub(super) received: Received,
    deadline: Instant,
    /// What is sent again if the instance dies, where the route allows that; with the sender's topic.
    pub(super) copy: Option<(Arc<str>, Box<Publish>)>,
    /// Whether the service's broker has taken it over: until then it is a flight, which is looked after by itself.
    pub(super) delivered: bool,
    /// While the service's broker has not taken it over: which flight it is.
    pub(super) flight: Option<u32>,
    /// Where its message is to be acknowledged, while it is with no instance and no flight.
    pub(super) origin: Option<Origin>,
    /// How much memory it stands for, at the broker or in its copy.
    pub(super) bytes: usize,
    /// What an answer has to know besides the number: nobody can guess it.
    pub(super) nonce: u64,
}

impl Request {
    /// Whether no answer is to be waited for from its instance: that is not registered any more; or it is guarded, another instance is registered,
    /// and the request may be sent again. An instance that does live after all may still answer first.
    pub(super) fn is_orphaned(&self, routes: &Routes) -> bool {
        self.delivered && self.has_lost_its_instance(routes)
    }

    /// The same, whether or not the service's broker has acknowledged it.
    pub(super) fn has_lost_its_instance(&self, routes: &Routes) -> bool {
        let code = self.endpoint.code();
        let is_gone = || !routes.has(&self.route, code);
        is_gone() || (self.copy.is_some() && routes.is_replaced(&self.route, code, &self.tried))
    }

    pub(super) fn new(
        reply: Reply,
        route: Arc<Route>,
        endpoint: Endpoint,
        nonce: u64,
        (received, deadline): (Received, Instant),
    ) -> Self {
        Self {
            reply,
            route,
            endpoint,
            tried: Vec::new(),
            received,
            deadline,
            copy: None,
            delivered: false,
            flight: None,
            origin: None,
            bytes: 0,
            nonce,
        }
    }
}

impl Requests {
    pub(super) fn len(&self) -> usize {
        self.by_number.len()
    }

    /// What all of them stand for, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// A number that no request has had.
    pub(super) fn next_number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    pub(super) fn insert(&mut self, number: u64, request: Request) {
        self.last = self.last.max(number);
        self.deadlines.insert((request.deadline, number));
        self.bytes += request.bytes;
        self.by_number.insert(number, request);
    }

    pub(super) fn get(&self, number: u64) -> Option<&Request> {
        self.by_number.get(&number)
    }

    pub(super) fn get_mut(&mut self, number: u64) -> Option<&mut Request> {
        self.by_number.get_mut(&number)
    }

    /// The number and the nonce of the request that awaits its answer just there. O(n).
    pub(super) fn find(&self, reply: &Reply) -> Option<(u64, u64)> {
        let mut all = self.by_number.iter();
        all.find(|(_, request)| request.reply == *reply).map(|(&number, request)| (number, request.nonce))
    }

    /// Takes it out, if the nonce is right.
    pub(super) fn answer(&mut self, number: u64, nonce: u64) -> Option<Request> {
        if self.by_number.get(&number)?.nonce != nonce {
            return None;
        }
        self.remove(number)
    }

    pub(super) fn remove(&mut self, number: u64) -> Option<Request> {
        let request = self.by_number.remove(&number)?;
        self.deadlines.remove(&(request.deadline, number));
        self.bytes -= request.bytes;
        Some(request)
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|&(deadline, _)| deadline)
    }

    /// One whose time is over.
    pub(super) fn overdue(&self, now: Instant) -> Option<u64> {
        self.deadlines.first().filter(|&&(deadline, _)| deadline <= now).map(|&(_, number)| number)
    }

    /// Those that are [orphaned](Request::is_orphaned), in the order in which they came.
    pub(super) fn orphans(&self, routes: &Routes) -> Vec<u64> {
        let orphaned = self.by_number.iter().filter(|(_, request)| request.is_orphaned(routes));
        let mut numbers: Vec<u64> = orphaned.map(|(&number, _)| number).collect();
        numbers.sort_unstable();
        numbers
    }
}
