//! The broker without its sockets: packets go in, bytes come out. Synchronous; the time is an argument.
//!
//! Its parts: `connection.rs`, `greet.rs` (CONNECT, and how sessions begin and end), `takeover.rs` (a client with two connections),
//! `subscribe.rs`, `replay.rs` (retained messages for a new subscriber), `route.rs` (from a publisher to the subscribers, who are in `target.rs`),
//! `settle.rs` (what comes back), `pressure.rs` (who has to wait), and what they share here. Whatever follows from a step and could
//! lead to the next (a will, a message for another member of a group) is put into `work`, so that no step calls itself.
//!
//! Nothing that clients ask for holds the lock for long: what is much is done in slices ([`SLICE`]), with the lock let go in between.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use bytestring::ByteString;

use super::access::Access;
use super::client::{Client, Shared};
use super::connection::Connection;
use super::duty::{Answer, Duty};
use super::figures::Figures;
use super::limits::{Limits, RECEIVE_LIMIT, RECEIVE_MAXIMUM};
use super::retained::Retained;
use super::slots::{Key, Slots};
use super::target::Target;
use super::timers::{Timer, Timers};
use super::tree::Tree;
use super::wake::Wake;
use crate::packet::{Malformed, Packet, Publish, Version};
use crate::reason::Reason;
use crate::session::{Encodings, Event};

/// How much is done before the lock is let go and others have their turn: messages given to clients, retained messages looked at, filters, and
/// what else takes about a microsecond. Only what belongs to one packet is not divided any further.
pub(super) const SLICE: usize = 1000;

#[derive(Debug)]
pub(super) struct Core {
    pub(super) limits: Limits,
    pub(super) access: Access,
    pub(super) connections: Slots<Connection>,
    pub(super) clients: Slots<Client>,
    pub(super) by_id: HashMap<ByteString, Key>,
    pub(super) tree: Tree,
    pub(super) retained: Retained,
    pub(super) duties: Slots<Duty>,
    pub(super) timers: Timers,
    pub(super) work: VecDeque<Work>,
    /// How much has been done since the lock was taken: see [`SLICE`].
    pub(super) spent: usize,
    /// Whose tasks are to look again.
    pub(super) woken: Vec<Arc<Wake>>,
    /// Kept for its memory.
    pub(super) targets: Vec<Target>,
    /// Of the message that is being given to clients.
    pub(super) encodings: Encodings,
    /// Counts the messages that were distributed.
    pub(super) distributed: u64,
    pub(super) figures: Figures,
    pub(super) closed: bool,
}

/// What follows from a step.
#[derive(Debug)]
pub(super) enum Work {
    /// A will.
    Publish { from: ByteString, publish: Box<Publish> },
    /// A message that a member of a group has not acknowledged before its session ended.
    Again { shared: Arc<Shared>, duty: Option<Key>, owed: bool },
    /// An acknowledgement that somebody may wait for.
    Answer { duty: Key, answer: Answer },
    /// The session that a connection has waited for is free.
    Enter(Key),
}

impl Core {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            retained: Retained::new(limits.max_retained, limits.max_retained_bytes),
            limits,
            access: Access::default(),
            connections: Slots::default(),
            clients: Slots::default(),
            by_id: HashMap::new(),
            tree: Tree::default(),
            duties: Slots::default(),
            timers: Timers::default(),
            work: VecDeque::new(),
            spent: 0,
            woken: Vec::new(),
            targets: Vec::new(),
            encodings: Encodings::default(),
            distributed: 0,
            figures: Figures::default(),
            closed: false,
        }
    }

    /// Packets have come on a connection. As many are taken as fit into a slice.
    pub(super) fn receive(&mut self, connection: Key, packets: &mut VecDeque<Packet>, now: Instant) {
        self.spent = 0;
        while self.spent < SLICE
            && let Some(packet) = packets.pop_front()
        {
            if let Err(malformed) = self.take(connection, packet, now) {
                self.fail(connection, malformed, now);
            }
            if !self.work.is_empty() {
                self.work(now);
            }
        }
    }

    /// Takes one packet in.
    pub(super) fn take(&mut self, connection: Key, packet: Packet, now: Instant) -> Result<(), Malformed> {
        let Some(state) = self.connections.get_mut(connection).filter(|state| !state.closing) else { return Ok(()) };
        match (&mut state.parked, state.client) {
            (Some(parked), _) => parked.rest.push(packet),
            (None, None) => self.greet(connection, packet, now)?,
            (None, Some(client)) => self.packet(connection, client, packet, now)?,
        }
        Ok(())
    }

    fn packet(&mut self, connection: Key, key: Key, mut packet: Packet, now: Instant) -> Result<(), Malformed> {
        // Also of one that comes again: later ones may name their topic by its alias.
        if let Packet::Publish(publish) = &mut packet
            && let Some(state) = self.connections.get_mut(connection)
        {
            state.aliases.resolve(publish)?;
        }
        let Some(client) = self.clients.get_mut(key) else { return Ok(()) };
        let event = client.session.receive(packet, now)?;
        client.sent();
        match event {
            Event::Message(publish) => {
                let v5 = client.session.peer().version == Version::V5;
                // Of version 3.1.1, which knows no maximum, only what is not acknowledged matters: it takes memory.
                let (open, most) = match v5 {
                    true => (client.session.exchanging(), RECEIVE_MAXIMUM),
                    false => (client.session.unacknowledged(), RECEIVE_LIMIT),
                };
                if !client.local && open > usize::from(most) {
                    let what = "more messages than the receive maximum";
                    return Err(Malformed { what, reason: Reason::RECEIVE_MAXIMUM_EXCEEDED });
                }
                self.published(connection, key, publish, now)?;
            }
            Event::Acknowledged { token, reason, .. } => {
                let answer = if reason.is_error() { Answer::Refused(reason) } else { Answer::Taken };
                self.returned(key, &token, answer);
                self.take_expired(key);
            }
            Event::Other(packet) => self.other(connection, key, packet, now)?,
            Event::Completed(_) => self.take_expired(key),
            Event::Released(_) | Event::Nothing => {}
        }
        Ok(())
    }

    fn other(&mut self, connection: Key, client: Key, packet: Packet, now: Instant) -> Result<(), Malformed> {
        match packet {
            Packet::Pingreq => {
                self.send(client, &Packet::Pingresp);
                Ok(())
            }
            Packet::Subscribe(subscribe) => self.subscribe(client, &subscribe, now),
            Packet::Unsubscribe(unsubscribe) => {
                self.unsubscribe(client, &unsubscribe);
                Ok(())
            }
            Packet::Disconnect(end) => self.leave(connection, client, &end, now),
            Packet::Connect(_) => Err(Malformed::protocol("a second CONNECT")),
            Packet::Auth(_) => Err(Malformed::protocol("AUTH without an authentication method")),
            _ => Err(Malformed::protocol("a packet that only a broker sends")),
        }
    }

    pub(super) fn send(&mut self, client: Key, packet: &Packet) {
        if let Some(client) = self.clients.get_mut(client) {
            // Answers to a client hold nothing that could not be encoded; if they did, none would be the better answer.
            let _ = client.session.send(packet);
        }
        self.touch(client);
    }

    /// What has been read makes no sense, or the client has been silent for too long.
    pub(super) fn fail(&mut self, connection: Key, why: Malformed, now: Instant) {
        self.expel(connection, why, now);
        self.work(now);
    }

    /// The same, with what follows from it left to be done.
    pub(super) fn expel(&mut self, connection: Key, why: Malformed, now: Instant) {
        let Some(state) = self.connections.get(connection) else { return };
        if state.closing {
            return;
        }
        match state.client {
            None => {
                tracing::warn!(peer = %state.name, reason = %why, "MQTT connection refused");
                self.figures.refused += 1;
                if why.reason == Reason::UNSUPPORTED_VERSION {
                    self.refuse(connection, Version::V311, why.reason, None);
                } else {
                    self.close(connection, None);
                }
            }
            Some(client) => {
                let id = self.clients.get(client).map(|client| client.id.clone()).unwrap_or_default();
                tracing::info!(client = %id, peer = %state.name, reason = %why, "MQTT client disconnected by the broker");
                self.close(connection, Some(why.reason));
                self.detach(client, true, now);
            }
        }
    }

    /// Everybody is told, and no-one is let in any more. Wills are not published: their clients are well.
    pub(super) fn shut_down(&mut self, now: Instant) {
        self.closed = true;
        for connection in self.connections.keys() {
            let client = self.connections.get(connection).and_then(|state| state.client);
            self.close(connection, Some(Reason::SERVER_SHUTTING_DOWN));
            if let Some(client) = client {
                self.detach(client, false, now);
            }
        }
        self.work.clear();
    }

    /// Does what is due, and what was left to be done, as much as fits into a slice.
    pub(super) fn tick(&mut self, now: Instant) {
        self.spent = 0;
        self.work(now);
        while self.spent < SLICE
            && let Some(timer) = self.timers.pop(now)
        {
            match timer {
                Timer::SessionEnds(client) => self.end(client),
                Timer::WillIsDue(client) => self.send_will(client),
            }
            self.work(now);
        }
    }

    /// When something is to be done next that nobody asks for.
    pub(super) fn next_due(&self, now: Instant) -> Option<Instant> {
        if self.work.is_empty() { self.timers.next() } else { Some(now) }
    }

    pub(super) fn figures(&self) -> Figures {
        Figures {
            connections: self.connections.len(),
            sessions: self.clients.len(),
            retained: self.retained.len(),
            memory: self.limits.memory.used(),
            ..self.figures.clone()
        }
    }
}
