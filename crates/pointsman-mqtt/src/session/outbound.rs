//! Messages to the peer, until it has taken them over.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::BytesMut;

use super::encoded::Encodings;
use super::stored::{Stored, check_size};
use super::{Event, Peer, Refusal, put_ack};
use crate::packet::{Ack, AckKind, Malformed, Publish, Qos, Version, encode_publish};
use crate::reason::Reason;

/// So many messages are under way at most, whatever the peer takes: the identifiers above are left for SUBSCRIBE and
/// UNSUBSCRIBE.
const MAX_IN_FLIGHT: u16 = u16::MAX - 15;

/// A queue that has become empty keeps room for that many messages.
const SPARE: usize = 64;

/// How many messages may be under way to a peer; no identifier is higher.
pub(super) fn window(peer: &Peer) -> u16 {
    peer.receive_maximum.min(MAX_IN_FLIGHT)
}

#[derive(Debug)]
pub(super) struct Outbound<T> {
    /// By packet identifier - 1.
    flights: Vec<Option<Flight<T>>>,
    /// Identifiers below `flights.len()` that are not in use.
    free: Vec<u16>,
    /// Counts what was sent: the order in which it is sent again.
    sequence: u64,
    pub(super) queue: VecDeque<Stored<T>>,
    pub(super) expired: VecDeque<T>,
    /// Too large for the peer that has come back.
    pub(super) refused: VecDeque<(T, Option<Box<Publish>>)>,
    pub(super) assigned: Vec<(T, u16)>,
    pub(super) report: bool,
    /// Messages of QoS 0 in the output since it was last written to the end.
    pub(super) unwritten: usize,
    pub(super) hold: bool,
    pub(super) sent: VecDeque<T>,
    /// Whether payloads have memory of their own, and are kept as they are.
    pub(super) shares: bool,
    /// How much may be in the output, in bytes, before messages with an acknowledgement wait for it to be written.
    pub(super) output: usize,
}

#[derive(Debug)]
struct Flight<T> {
    sequence: u64,
    stage: Stage<T>,
}

#[derive(Debug)]
enum Stage<T> {
    Sent(Stored<T>),
    /// QoS 2: PUBREC has come, PUBREL is sent.
    Released,
    /// From an earlier life: its message is yet to be given.
    Restored,
    /// QoS 1, taken out of the session while the peer had yet to acknowledge it: then the identifier is free.
    Drained,
}

impl<T> Default for Outbound<T> {
    fn default() -> Self {
        Self {
            flights: Vec::new(),
            free: Vec::new(),
            sequence: 0,
            queue: VecDeque::new(),
            expired: VecDeque::new(),
            refused: VecDeque::new(),
            assigned: Vec::new(),
            report: false,
            unwritten: 0,
            hold: false,
            sent: VecDeque::new(),
            shares: false,
            output: usize::MAX,
        }
    }
}

impl<T: Clone> Outbound<T> {
    pub(super) fn in_flight(&self) -> usize {
        self.flights.len() - self.free.len()
    }

    pub(super) fn publish(
        &mut self,
        publish: &Publish,
        token: T,
        (peer, up): (&Peer, bool),
        encodings: &mut Encodings,
        now: Instant,
        out: &mut BytesMut,
    ) -> Result<Option<T>, Refusal> {
        let qos = publish.qos.min(peer.max_qos);
        if qos == Qos::AtMostOnce && (up || !self.hold) {
            if up {
                put_at_most_once(publish, peer, out)?;
                self.unwritten += 1;
            }
            return Ok(Some(token));
        }
        let stored = Stored::new((publish, qos), token, peer, (self.shares, encodings), now)?;
        if up && self.queue.is_empty() && self.has_room(peer) && out.len() < self.output {
            self.launch(stored, out);
        } else {
            self.queue.push_back(stored);
        }
        Ok(None)
    }

    fn has_room(&self, peer: &Peer) -> bool {
        self.in_flight() < usize::from(window(peer))
    }

    /// Sends what waits, as far as the receive maximum allows.
    pub(super) fn pump(&mut self, peer: &Peer, now: Instant, out: &mut BytesMut) {
        while let Some(next) = self.queue.front() {
            if next.qos.min(peer.max_qos) > Qos::AtMostOnce && (!self.has_room(peer) || out.len() >= self.output) {
                return;
            }
            let Some(next) = self.queue.pop_front() else { return };
            self.launch_waiting(next, peer, now, out);
        }
        if self.queue.capacity() > SPARE {
            self.queue.shrink_to(SPARE);
        }
    }

    /// Sends all messages of QoS 0 that wait: none is to be overtaken by one that comes while there is a connection.
    pub(super) fn pump_at_most_once(&mut self, peer: &Peer, now: Instant, out: &mut BytesMut) {
        if self.queue.iter().any(|waiting| waiting.qos == Qos::AtMostOnce) {
            for waiting in std::mem::take(&mut self.queue) {
                if waiting.qos == Qos::AtMostOnce {
                    self.launch_waiting(waiting, peer, now, out);
                } else {
                    self.queue.push_back(waiting);
                }
            }
        }
    }

    /// What has waited for a connection may have to go to a peer that takes less than was known.
    fn launch_waiting(&mut self, mut stored: Stored<T>, peer: &Peer, now: Instant, out: &mut BytesMut) {
        stored.lower(peer.max_qos);
        if !stored.age(now) {
            self.expired.push_back(stored.token);
        } else if stored.fits(peer) {
            self.launch(stored, out);
        } else {
            self.refuse(stored, peer);
        }
    }

    fn refuse(&mut self, mut stored: Stored<T>, peer: &Peer) {
        if stored.qos > Qos::AtMostOnce {
            // It is read once more, and there is none without an identifier.
            stored.set_id(1);
        }
        let message = stored.decoded(peer.version).map(Box::new);
        self.refused.push_back((stored.token, message));
    }

    fn launch(&mut self, mut stored: Stored<T>, out: &mut BytesMut) {
        if stored.qos == Qos::AtMostOnce {
            stored.put(out);
            self.unwritten += 1;
            self.sent.push_back(stored.token);
            return;
        }
        let id = self.take_id();
        if self.report && stored.qos == Qos::ExactlyOnce {
            self.assigned.push((stored.token.clone(), id));
        }
        stored.set_id(id);
        self.fly(id, stored, out);
    }

    fn fly(&mut self, id: u16, stored: Stored<T>, out: &mut BytesMut) {
        stored.put(out);
        self.sequence += 1;
        self.flights[usize::from(id) - 1] = Some(Flight { sequence: self.sequence, stage: Stage::Sent(stored) });
    }

    /// The caller has made sure that fewer than 65,535 are in use.
    fn take_id(&mut self) -> u16 {
        self.free.pop().unwrap_or_else(|| {
            self.flights.push(None);
            u16::try_from(self.flights.len()).unwrap_or(u16::MAX)
        })
    }

    fn land(&mut self, id: u16) -> Option<Flight<T>> {
        let flight = self.flights.get_mut(usize::from(id).checked_sub(1)?)?.take()?;
        self.free.push(id);
        Some(flight)
    }

    pub(super) fn acknowledged(
        &mut self,
        ack: &Ack,
        version: Version,
        out: &mut BytesMut,
    ) -> Result<Event<T>, Malformed> {
        let index = usize::from(ack.id).checked_sub(1).ok_or(Malformed::protocol("a packet identifier is 0"))?;
        let Some(Some(flight)) = self.flights.get_mut(index) else {
            if ack.kind == AckKind::Pubrec {
                put_ack(AckKind::Pubrel, ack.id, Reason::PACKET_IDENTIFIER_NOT_FOUND, version, out);
            }
            return Ok(Event::Nothing);
        };
        match (ack.kind, &flight.stage) {
            (AckKind::Puback, Stage::Sent(Stored { qos: Qos::AtLeastOnce, .. })) => {
                Ok(self.taken(ack.id, ack.reason, version))
            }
            (AckKind::Pubrec, Stage::Sent(Stored { qos: Qos::ExactlyOnce, .. })) if ack.reason.is_error() => {
                Ok(self.taken(ack.id, ack.reason, version))
            }
            (AckKind::Pubrec, Stage::Sent(Stored { qos: Qos::ExactlyOnce, .. })) => {
                put_ack(AckKind::Pubrel, ack.id, Reason::SUCCESS, version, out);
                match std::mem::replace(&mut flight.stage, Stage::Released) {
                    Stage::Sent(stored) => Ok(stored.acknowledged(ack.reason, version)),
                    _ => Ok(Event::Nothing),
                }
            }
            (AckKind::Pubrec, Stage::Released) if ack.reason.is_error() => {
                self.land(ack.id);
                Ok(Event::Completed(ack.id))
            }
            (AckKind::Pubrec, Stage::Released) => {
                put_ack(AckKind::Pubrel, ack.id, Reason::SUCCESS, version, out);
                Ok(Event::Nothing)
            }
            // It is answered when the message has been sent again: until then the identifier says what message it was.
            (AckKind::Pubrec, Stage::Restored) => Ok(Event::Nothing),
            (AckKind::Pubcomp, Stage::Released) => {
                self.land(ack.id);
                Ok(Event::Completed(ack.id))
            }
            (AckKind::Puback, Stage::Drained) => {
                self.land(ack.id);
                Ok(Event::Nothing)
            }
            _ => Err(Malformed::protocol("an acknowledgement does not fit its message")),
        }
    }

    fn taken(&mut self, id: u16, reason: Reason, version: Version) -> Event<T> {
        match self.land(id) {
            Some(Flight { stage: Stage::Sent(stored), .. }) => stored.acknowledged(reason, version),
            _ => Event::Nothing,
        }
    }

    /// After a new connection: with the old session, sends again what has not been acknowledged; with a new one, what the peer
    /// has not taken over counts as never sent.
    pub(super) fn reconnect(&mut self, before: Version, peer: &Peer, now: Instant, out: &mut BytesMut) {
        if before != peer.version {
            self.translate(peer.version);
        }
        if peer.session_present {
            for id in self.in_order() {
                self.resend(id, peer, now, out);
            }
            return;
        }
        for id in self.in_order().into_iter().rev() {
            if let Some(Flight { stage: Stage::Sent(mut stored), .. }) = self.land(id) {
                stored.set_dup(false);
                self.queue.push_front(stored);
            }
        }
    }

    /// The identifiers in use, as they were sent.
    fn in_order(&self) -> Vec<u16> {
        let used = (1..).zip(&self.flights).filter_map(|(id, flight)| Some((flight.as_ref()?.sequence, id)));
        let mut order: Vec<(u64, u16)> = used.collect();
        order.sort_unstable();
        order.into_iter().map(|(_, id)| id).collect()
    }

    fn resend(&mut self, id: u16, peer: &Peer, now: Instant, out: &mut BytesMut) {
        let Some(flight) = &mut self.flights[usize::from(id) - 1] else { return };
        match &mut flight.stage {
            Stage::Sent(stored) if stored.fits(peer) => {
                // Its time may be over, but its delivery has begun.
                stored.age(now);
                stored.set_dup(true);
                stored.put(out);
            }
            Stage::Sent(_) => {
                // The specification wants it to be taken for sent. QoS 2: the peer may have it, and has to let it go.
                let token = self.give_up(id);
                self.expired.extend(token);
                self.resend(id, peer, now, out);
            }
            Stage::Released => put_ack(AckKind::Pubrel, id, Reason::SUCCESS, peer.version, out),
            Stage::Restored => {}
            Stage::Drained => drop(self.land(id)),
        }
    }

    /// Takes a message out while its identifier stays in use.
    fn give_up(&mut self, id: u16) -> Option<T> {
        let flight = self.flights[usize::from(id) - 1].as_mut()?;
        let Stage::Sent(stored) = &flight.stage else { return None };
        let left = if stored.qos == Qos::AtLeastOnce { Stage::Drained } else { Stage::Released };
        match std::mem::replace(&mut flight.stage, left) {
            Stage::Sent(stored) => Some(stored.token),
            _ => None,
        }
    }

    fn translate(&mut self, to: Version) {
        for flight in self.flights.iter_mut().flatten() {
            if let Stage::Sent(stored) = &mut flight.stage {
                stored.translate(to);
            }
        }
        self.queue.iter_mut().for_each(|waiting| waiting.translate(to));
    }

    /// The identifiers stay in use until the peer is done with them.
    pub(super) fn drain(&mut self) -> Vec<T> {
        let mut tokens: Vec<T> = self.in_order().into_iter().filter_map(|id| self.give_up(id)).collect();
        tokens.extend(self.queue.drain(..).map(|waiting| waiting.token));
        tokens
    }

    /// The identifiers of what was sent stay in use until the peer is done with them.
    pub(super) fn take_back(
        &mut self,
        version: Version,
        now: Instant,
        mut wanted: impl FnMut(&T, Qos) -> bool,
    ) -> Vec<(T, Publish)> {
        let mut taken = Vec::new();
        for id in self.in_order() {
            let Some(Some(flight)) = self.flights.get_mut(usize::from(id) - 1) else { continue };
            let Stage::Sent(stored) = &mut flight.stage else { continue };
            if wanted(&stored.token, stored.qos) {
                let message = if stored.age(now) { stored.decoded(version) } else { None };
                let token = self.give_up(id);
                self.taken_back(token, message, &mut taken);
            }
        }
        for mut waiting in std::mem::take(&mut self.queue) {
            if waiting.qos == Qos::AtMostOnce || !wanted(&waiting.token, waiting.qos) {
                self.queue.push_back(waiting);
                continue;
            }
            // It is read once more, and there is none without an identifier.
            waiting.set_id(1);
            let message = if waiting.age(now) { waiting.decoded(version) } else { None };
            self.taken_back(Some(waiting.token), message, &mut taken);
        }
        taken
    }

    fn taken_back(&mut self, token: Option<T>, message: Option<Publish>, taken: &mut Vec<(T, Publish)>) {
        match (token, message) {
            (Some(token), Some(message)) => taken.push((token, message)),
            (token, _) => self.expired.extend(token),
        }
    }

    pub(super) fn restore(&mut self, id: u16, taken: bool) {
        let Some(index) = usize::from(id).checked_sub(1) else { return };
        while self.flights.len() < index {
            self.flights.push(None);
            self.free.push(u16::try_from(self.flights.len()).unwrap_or(u16::MAX));
        }
        match self.flights.get(index) {
            None => self.flights.push(None),
            Some(None) => self.free.retain(|&free| free != id),
            Some(Some(Flight { stage: Stage::Sent(_), .. })) => return,
            Some(Some(_)) => {}
        }
        self.sequence += 1;
        let stage = if taken { Stage::Released } else { Stage::Restored };
        self.flights[index] = Some(Flight { sequence: self.sequence, stage });
    }

    pub(super) fn release_restored(&mut self, id: u16, (version, up): (Version, bool), out: &mut BytesMut) {
        let flight = usize::from(id).checked_sub(1).and_then(|index| self.flights.get_mut(index)?.as_mut());
        if let Some(flight) = flight.filter(|flight| matches!(flight.stage, Stage::Restored)) {
            flight.stage = Stage::Released;
            if up {
                put_ack(AckKind::Pubrel, id, Reason::SUCCESS, version, out);
            }
        }
    }

    pub(super) fn publish_restored(
        &mut self,
        id: u16,
        publish: &Publish,
        token: T,
        to: (&Peer, bool),
        now: Instant,
        out: &mut BytesMut,
    ) -> Result<(), Refusal> {
        let flight = usize::from(id).checked_sub(1).and_then(|index| self.flights.get_mut(index)?.as_mut());
        let Some(flight) = flight.filter(|flight| matches!(flight.stage, Stage::Restored)) else {
            let sent = self.publish(publish, token, to, &mut Encodings::default(), now, out)?;
            self.sent.extend(sent);
            return Ok(());
        };
        let mut stored =
            Stored::new((publish, Qos::ExactlyOnce), token, to.0, (self.shares, &mut Encodings::default()), now)?;
        stored.set_id(id);
        stored.set_dup(true);
        if to.1 {
            stored.put(out);
        }
        self.sequence += 1;
        *flight = Flight { sequence: self.sequence, stage: Stage::Sent(stored) };
        Ok(())
    }
}

/// The fast path: straight into the output.
fn put_at_most_once(publish: &Publish, peer: &Peer, out: &mut BytesMut) -> Result<(), Refusal> {
    let before = out.len();
    if publish.qos == Qos::AtMostOnce && !publish.dup {
        encode_publish(publish, peer.version, out)?;
    } else {
        encode_publish(&Publish { qos: Qos::AtMostOnce, dup: false, id: 0, ..publish.clone() }, peer.version, out)?;
    }
    check_size(out.len() - before, peer).inspect_err(|_| out.truncate(before))
}
