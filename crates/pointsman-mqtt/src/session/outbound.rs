//! Messages to the peer, until it has taken them over.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::BytesMut;

use super::{Event, Peer, Refusal, put_ack};
use crate::packet::{Ack, AckKind, Decoder, Malformed, Packet, Publish, Qos, Version, encode_publish};
use crate::reason::Reason;

/// So many messages are under way at most, whatever the peer takes: the identifiers above are left for SUBSCRIBE and
/// UNSUBSCRIBE.
const MAX_IN_FLIGHT: u16 = u16::MAX - 15;

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
    pub(super) queue: VecDeque<Waiting<T>>,
    pub(super) expired: Vec<T>,
    pub(super) assigned: Vec<(T, u16)>,
    pub(super) report: bool,
    /// Messages of QoS 0 in the output since it was last written to the end.
    pub(super) unwritten: usize,
    pub(super) hold: bool,
    pub(super) sent: VecDeque<T>,
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
}

/// A message in its encoded form, in memory of its own: what it was read from can be let go.
#[derive(Debug)]
struct Stored<T> {
    token: T,
    qos: Qos,
    packet: BytesMut,
    /// Where the packet identifier stands.
    id_at: usize,
}

#[derive(Debug)]
pub(super) struct Waiting<T> {
    stored: Stored<T>,
    expiry: Option<Expiry>,
}

/// When a message is worth nothing any more, and where in the packet its seconds stand.
#[derive(Debug, Clone, Copy)]
struct Expiry {
    since: Instant,
    seconds: u32,
    at: usize,
}

impl<T> Default for Outbound<T> {
    fn default() -> Self {
        Self {
            flights: Vec::new(),
            free: Vec::new(),
            sequence: 0,
            queue: VecDeque::new(),
            expired: Vec::new(),
            assigned: Vec::new(),
            report: false,
            unwritten: 0,
            hold: false,
            sent: VecDeque::new(),
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
        let waiting = Waiting::new(publish, qos, token, peer, now)?;
        if up && self.queue.is_empty() && self.has_room(peer) {
            self.launch(waiting.stored, out);
        } else {
            self.queue.push_back(waiting);
        }
        Ok(None)
    }

    fn has_room(&self, peer: &Peer) -> bool {
        self.in_flight() < usize::from(window(peer))
    }

    /// Sends what waits, as far as the receive maximum allows.
    pub(super) fn pump(&mut self, peer: &Peer, now: Instant, out: &mut BytesMut) {
        while self.queue.front().is_some_and(|next| next.stored.qos == Qos::AtMostOnce || self.has_room(peer)) {
            let Some(Waiting { mut stored, expiry }) = self.queue.pop_front() else { return };
            if let Some(Expiry { since, seconds, at }) = expiry {
                let waited = now.saturating_duration_since(since).as_secs();
                match u64::from(seconds).checked_sub(waited) {
                    // A message may live for 0 more seconds: then it goes out at once.
                    Some(left) if left > 0 || seconds == 0 => {
                        let left = u32::try_from(left).unwrap_or(u32::MAX);
                        stored.packet[at..at + 4].copy_from_slice(&left.to_be_bytes());
                    }
                    _ => {
                        self.expired.push(stored.token);
                        continue;
                    }
                }
            }
            self.launch(stored, out);
        }
    }

    fn launch(&mut self, mut stored: Stored<T>, out: &mut BytesMut) {
        if stored.qos == Qos::AtMostOnce {
            out.extend_from_slice(&stored.packet);
            self.unwritten += 1;
            self.sent.push_back(stored.token);
            return;
        }
        let id = self.take_id();
        if self.report && stored.qos == Qos::ExactlyOnce {
            self.assigned.push((stored.token.clone(), id));
        }
        stored.packet[stored.id_at..stored.id_at + 2].copy_from_slice(&id.to_be_bytes());
        self.fly(id, stored, out);
    }

    fn fly(&mut self, id: u16, stored: Stored<T>, out: &mut BytesMut) {
        out.extend_from_slice(&stored.packet);
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
        let index = usize::from(ack.id) - 1;
        let Some(Some(flight)) = self.flights.get_mut(index) else {
            if ack.kind == AckKind::Pubrec {
                put_ack(AckKind::Pubrel, ack.id, Reason::PACKET_IDENTIFIER_NOT_FOUND, version, out);
            }
            return Ok(Event::Nothing);
        };
        let qos = match &flight.stage {
            Stage::Sent(stored) => Some(stored.qos),
            Stage::Released | Stage::Restored => None,
        };
        match (ack.kind, qos) {
            (AckKind::Puback, Some(Qos::AtLeastOnce)) => Ok(self.taken(ack.id, ack.reason, version)),
            (AckKind::Pubrec, Some(Qos::ExactlyOnce)) if ack.reason.is_error() => {
                Ok(self.taken(ack.id, ack.reason, version))
            }
            (AckKind::Pubrec, Some(Qos::ExactlyOnce)) => {
                put_ack(AckKind::Pubrel, ack.id, Reason::SUCCESS, version, out);
                match std::mem::replace(&mut flight.stage, Stage::Released) {
                    Stage::Sent(stored) => Ok(stored.acknowledged(ack.reason, version)),
                    Stage::Released | Stage::Restored => Ok(Event::Nothing),
                }
            }
            (AckKind::Pubrec, None) => {
                put_ack(AckKind::Pubrel, ack.id, Reason::SUCCESS, version, out);
                flight.stage = Stage::Released;
                Ok(Event::Nothing)
            }
            (AckKind::Pubcomp, None) => {
                self.land(ack.id);
                Ok(Event::Completed(ack.id))
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
    pub(super) fn reconnect(&mut self, before: Version, peer: Peer, out: &mut BytesMut) {
        let mut order: Vec<(u64, u16)> =
            (1..).zip(&self.flights).filter_map(|(id, f)| Some((f.as_ref()?.sequence, id))).collect();
        order.sort_unstable();
        if before != peer.version {
            self.translate(before, peer.version);
        }
        if peer.session_present {
            for (_, id) in order {
                let Some(flight) = &mut self.flights[usize::from(id) - 1] else { continue };
                match &mut flight.stage {
                    Stage::Sent(stored) => {
                        stored.packet[0] |= 8;
                        out.extend_from_slice(&stored.packet);
                    }
                    Stage::Released => put_ack(AckKind::Pubrel, id, Reason::SUCCESS, peer.version, out),
                    Stage::Restored => {}
                }
            }
            return;
        }
        for (_, id) in order.into_iter().rev() {
            if let Some(Flight { stage: Stage::Sent(mut stored), .. }) = self.land(id) {
                stored.packet[0] &= !8;
                self.queue.push_front(Waiting { stored, expiry: None });
            }
        }
    }

    /// A client may take a session up with another version.
    fn translate(&mut self, from: Version, to: Version) {
        let flying = self.flights.iter_mut().flatten().filter_map(|flight| match &mut flight.stage {
            Stage::Sent(stored) => Some(stored),
            Stage::Released | Stage::Restored => None,
        });
        for stored in flying {
            stored.translate(from, to);
        }
        for waiting in &mut self.queue {
            // Where the seconds stand is known only in the form that has them.
            waiting.expiry = None;
            waiting.stored.translate(from, to);
        }
    }

    pub(super) fn drain(&mut self) -> Vec<T> {
        let mut flying: Vec<Flight<T>> = std::mem::take(&mut self.flights).into_iter().flatten().collect();
        self.free.clear();
        flying.sort_unstable_by_key(|flight| flight.sequence);
        let flying = flying.into_iter().filter_map(|flight| match flight.stage {
            Stage::Sent(stored) => Some(stored.token),
            Stage::Released | Stage::Restored => None,
        });
        flying.chain(self.queue.drain(..).map(|waiting| waiting.stored.token)).collect()
    }

    pub(super) fn restore(&mut self, id: u16, taken: bool) {
        let index = usize::from(id.max(1)) - 1;
        if index < self.flights.len() {
            if self.flights[index].is_some() {
                return;
            }
            self.free.retain(|&free| free != id);
        }
        while self.flights.len() <= index {
            self.flights.push(None);
            if self.flights.len() <= index {
                self.free.push(u16::try_from(self.flights.len()).unwrap_or(u16::MAX));
            }
        }
        self.sequence += 1;
        let stage = if taken { Stage::Released } else { Stage::Restored };
        self.flights[index] = Some(Flight { sequence: self.sequence, stage });
    }

    pub(super) fn release_restored(&mut self, id: u16, (version, up): (Version, bool), out: &mut BytesMut) {
        let Some(Some(flight)) = self.flights.get_mut(usize::from(id.max(1)) - 1) else { return };
        if matches!(flight.stage, Stage::Restored) {
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
        let index = usize::from(id.max(1)) - 1;
        if !matches!(self.flights.get(index), Some(Some(Flight { stage: Stage::Restored, .. }))) {
            return self.publish(publish, token, to, now, out).map(drop);
        }
        let mut stored = Waiting::new(publish, Qos::ExactlyOnce, token, to.0, now)?.stored;
        stored.packet[stored.id_at..stored.id_at + 2].copy_from_slice(&id.to_be_bytes());
        stored.packet[0] |= 8;
        if to.1 {
            self.fly(id, stored, out);
        } else {
            self.sequence += 1;
            self.flights[index] = Some(Flight { sequence: self.sequence, stage: Stage::Sent(stored) });
        }
        Ok(())
    }
}

impl<T> Waiting<T> {
    fn new(publish: &Publish, qos: Qos, token: T, peer: &Peer, now: Instant) -> Result<Self, Refusal> {
        let mut packet = BytesMut::new();
        let (version, properties) = (peer.version, &publish.properties);
        // The identifier is put in when there is one.
        let id_at = if publish.qos == qos && !publish.dup {
            encode_publish(publish, version, &mut packet)?
        } else {
            encode_publish(&Publish { qos, dup: false, ..publish.clone() }, version, &mut packet)?
        };
        check_size(packet.len(), peer)?;
        let expiry = properties.expiry.filter(|_| version == Version::V5).map(|seconds| {
            let id = if qos == Qos::AtMostOnce { 0 } else { 2 };
            let before = crate::packet::varint_len(properties.len()) + if properties.utf8.is_some() { 2 } else { 0 };
            Expiry { since: now, seconds, at: id_at + id + before + 1 }
        });
        Ok(Self { stored: Stored { token, qos, packet, id_at }, expiry })
    }
}

impl<T> Stored<T> {
    fn acknowledged(self, reason: Reason, version: Version) -> Event<T> {
        let message = if reason == Reason::SUCCESS { None } else { self.decoded(version).map(Box::new) };
        Event::Acknowledged { token: self.token, reason, message }
    }

    /// It was encoded here, so it can be decoded.
    fn decoded(&self, version: Version) -> Option<Publish> {
        let decoded = Decoder::new(version, usize::MAX).decode(&mut self.packet.clone());
        if let Ok(Some(Packet::Publish(publish))) = decoded { Some(publish) } else { None }
    }

    fn translate(&mut self, from: Version, to: Version) {
        let Some(publish) = self.decoded(from) else { return };
        let mut packet = BytesMut::new();
        if let Ok(id_at) = encode_publish(&publish, to, &mut packet) {
            (self.packet, self.id_at) = (packet, id_at);
        }
    }
}

fn check_size(size: usize, peer: &Peer) -> Result<(), Refusal> {
    if size > peer.max_packet { Err(Refusal::TooLarge { size, limit: peer.max_packet }) } else { Ok(()) }
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
