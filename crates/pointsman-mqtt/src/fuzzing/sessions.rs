//! Two sessions, joined by a connection that breaks, as a script says.
//!
//! What holds all the time: a side never takes what the other sends for a breach of the protocol; no packet identifier is used
//! twice at a time; a new message never exceeds the receive maximum; first deliveries are in the order of publishing, for each
//! quality; with QoS 2 there is no second delivery, unless a session was lost; nothing is delivered after its acknowledgement,
//! and nothing acknowledged before its delivery. What holds in the end, once the connection stays: every message of QoS 1 and 2
//! has been acknowledged, unless its sender has forgotten it, or it has expired; and neither session remembers anything.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::Dice;
use crate::packet::{Ack, AckKind, Decoder, Packet, Publish, Qos, Version};
use crate::reason::Reason;
use crate::session::{Event, Peer, Session};

const QUALITIES: [Qos; 3] = [Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce];

/// Plays the script, then lets all come to rest.
pub fn play(script: &[u8]) {
    let mut dice = Dice::new(script);
    let mut world = World::new(&mut dice);
    while !dice.is_empty() {
        world.step(&mut dice);
    }
    world.rest();
}

struct World {
    sides: [Side; 2],
    up: bool,
    version: Version,
    /// One side has lost the session since the last connection.
    lost: bool,
    /// A side has come back with its journal: of what it has forgotten the other never hears again, and may remember it.
    relapsed: bool,
    now: Instant,
    /// By token.
    messages: Vec<Message>,
}

struct Side {
    session: Session<u32>,
    /// What it announces at most.
    limit: u16,
    /// What has left the session, and has not arrived.
    pipe: BytesMut,
    /// What leaves the session, up to the end of a packet.
    tap: BytesMut,
    /// Identifiers of the messages to the peer that are under way on this connection.
    ids: BTreeSet<u16>,
    /// Messages that were given out, and are not acknowledged: their identifiers, and the tokens of their sender.
    pending: Vec<(u16, u32)>,
    /// The token of the last first delivery, by quality.
    last: [Option<u32>; 3],
    journal: Journal,
    /// Restored, and not given to the session yet.
    restored: Vec<(u16, u32)>,
}

/// What a relay writes down.
#[derive(Default)]
struct Journal {
    /// By identifier: the token, and whether the peer has taken it over.
    sent: BTreeMap<u16, (u32, bool)>,
    received: BTreeSet<u16>,
}

struct Message {
    publish: Publish,
    given: usize,
    /// Its token has come back.
    done: bool,
    /// Its sender has forgotten it.
    orphan: bool,
    /// It may be given out twice.
    twice: bool,
    /// It has been restored, so that its order is lost.
    late: bool,
}

impl World {
    fn new(dice: &mut Dice<'_>) -> Self {
        let mut side = || {
            let limit = 1 + u16::from(dice.byte() % 8);
            let hold = dice.flip();
            Side::new(limit, hold)
        };
        let sides = [side(), side()];
        let (up, lost, version) = (false, true, Version::V5);
        Self { sides, up, version, lost, relapsed: false, now: Instant::now(), messages: Vec::new() }
    }

    fn step(&mut self, dice: &mut Dice<'_>) {
        let op = dice.byte();
        let side = usize::from(op >> 7);
        match op & 0x0f {
            0..=3 => self.publish(side, dice),
            4 | 5 => self.flush(side, usize::from(dice.byte())),
            6..=8 => self.deliver(side, dice.below(8)),
            9 | 10 => self.acknowledge(side, dice),
            11 if self.up => self.cut(dice),
            11..=13 if !self.up => self.connect(dice),
            14 => self.now += Duration::from_secs(u64::from(dice.byte() % 4)),
            15 if !self.up => self.forget(side, dice),
            _ => self.publish_restored(side),
        }
        self.settle();
    }

    fn publish(&mut self, side: usize, dice: &mut Dice<'_>) {
        let token = u32::try_from(self.messages.len()).expect("a script is short");
        let payload = Bytes::copy_from_slice(&[&[side as u8][..], &token.to_be_bytes()].concat());
        let mut publish = Publish { topic: "t".into(), qos: QUALITIES[dice.below(3)], payload, ..Publish::default() };
        publish.properties.utf8 = dice.maybe(Dice::flip);
        publish.properties.expiry = dice.maybe(|dice| u32::from(dice.byte() % 8)).filter(|_| dice.flip());
        let message = Message { publish, given: 0, done: false, orphan: false, twice: false, late: false };
        let returned = self.sides[side].session.publish(&message.publish, token, self.now);
        self.messages.push(message);
        if let Some(token) = returned.expect("any peer takes it") {
            self.done(token);
        }
    }

    /// Lets so many bytes leave the session.
    fn flush(&mut self, side: usize, bytes: usize) {
        let side = &mut self.sides[side];
        let output = side.session.output();
        let bytes = output.split_to(bytes.min(output.len()));
        side.pipe.extend_from_slice(&bytes);
        side.tap.extend_from_slice(&bytes);
        let maximum = usize::from(side.session.peer().receive_maximum);
        while let Some(packet) = Decoder::new(self.version, usize::MAX).decode(&mut side.tap).expect("valid output") {
            match packet {
                Packet::Publish(publish) if publish.qos > Qos::AtMostOnce => {
                    assert!(side.ids.insert(publish.id), "an identifier is used twice");
                    assert!(publish.dup || side.ids.len() <= maximum, "more than the receive maximum");
                }
                Packet::Ack(Ack { kind: AckKind::Pubrel, id, .. }) => drop(side.ids.insert(id)),
                _ => {}
            }
        }
    }

    /// Lets so many packets arrive at this side.
    fn deliver(&mut self, side: usize, packets: usize) {
        for _ in 0..packets {
            let decoded = Decoder::new(self.version, usize::MAX).decode(&mut self.sides[1 - side].pipe);
            let Some(packet) = decoded.expect("valid output") else { return };
            self.arrive(side, packet);
        }
    }

    fn arrive(&mut self, side: usize, packet: Packet) {
        if let Packet::Ack(Ack { kind, id, reason, .. }) = &packet
            && (matches!(kind, AckKind::Puback | AckKind::Pubcomp) || (*kind == AckKind::Pubrec && reason.is_error()))
        {
            self.sides[side].ids.remove(id);
        }
        let shown = format!("{packet:?}");
        match self.sides[side].session.receive(packet, self.now) {
            Ok(Event::Message(publish)) => self.given(side, &publish),
            Ok(Event::Acknowledged { token, reason, .. }) => {
                assert!(self.messages[token as usize].given > 0, "acknowledged before it was given out");
                let sent = &mut self.sides[side].journal.sent;
                sent.retain(|_, (sent, _)| *sent != token || !reason.is_error());
                sent.values_mut().filter(|(sent, _)| *sent == token).for_each(|(_, taken)| *taken = true);
                self.done(token);
            }
            Ok(Event::Released(id)) => drop(self.sides[side].journal.received.remove(&id)),
            Ok(Event::Completed(id)) => drop(self.sides[side].journal.sent.remove(&id)),
            Ok(Event::Nothing) => {}
            Ok(Event::Other(packet)) => panic!("nobody has sent {packet:?}"),
            Err(malformed) => panic!("{malformed}: {shown}"),
        }
    }

    fn given(&mut self, side: usize, publish: &Publish) {
        let token = u32::from_be_bytes(publish.payload[1..].try_into().expect("five bytes"));
        let message = &mut self.messages[token as usize];
        assert_eq!(publish.payload, message.publish.payload);
        assert_eq!(publish.qos, message.publish.qos);
        assert!(!message.done || publish.qos == Qos::AtMostOnce, "given out after it was acknowledged");
        let may = message.given == 0 || publish.qos == Qos::AtLeastOnce || message.twice;
        assert!(may, "{:?} given out twice", publish.qos);
        let last = &mut self.sides[side].last[usize::from(publish.qos.number())];
        if message.given == 0 && !message.late {
            assert!(last.is_none_or(|last| last < token), "{:?} out of order: {last:?}, {token}", publish.qos);
            *last = Some(token);
        }
        message.given += 1;
        if publish.qos > Qos::AtMostOnce {
            self.sides[side].pending.push((publish.id, token));
        }
    }

    fn acknowledge(&mut self, side: usize, dice: &mut Dice<'_>) {
        let place = dice.byte();
        let pending = &mut self.sides[side].pending;
        if !pending.is_empty() {
            let one = pending.remove(usize::from(place) % pending.len());
            let reason = if place == 255 { Reason::UNSPECIFIED_ERROR } else { Reason::SUCCESS };
            self.answer(side, one, reason);
        }
    }

    fn answer(&mut self, side: usize, (id, token): (u16, u32), reason: Reason) {
        let message = &mut self.messages[token as usize];
        let side = &mut self.sides[side];
        if reason.is_error() {
            // Until the sender knows, it sends again what was not taken.
            message.twice = true;
        } else if message.publish.qos == Qos::ExactlyOnce {
            side.journal.received.insert(id);
        }
        side.session.acknowledge(id, reason);
    }

    fn done(&mut self, token: u32) {
        let message = &mut self.messages[token as usize];
        assert!(!message.done, "a token comes back twice");
        message.done = true;
    }

    fn settle(&mut self) {
        for side in 0..2 {
            let Side { session, journal, .. } = &mut self.sides[side];
            for (token, id) in session.take_assigned() {
                journal.sent.insert(id, (token, false));
            }
            while let Some(token) = self.sides[side].session.take_expired() {
                self.done(token);
            }
            while let Some(token) = self.sides[side].session.take_sent() {
                self.done(token);
            }
        }
    }

    /// What is on its way is lost, or had been read just before.
    fn cut(&mut self, dice: &mut Dice<'_>) {
        self.up = false;
        for side in 0..2 {
            self.sides[side].session.disconnected();
            if dice.flip() {
                self.deliver(side, usize::MAX);
            }
        }
        for side in &mut self.sides {
            side.pipe.clear();
            side.tap.clear();
            side.ids.clear();
            assert!(side.session.output().is_empty(), "answers without a connection");
        }
    }

    fn connect(&mut self, dice: &mut Dice<'_>) {
        let present = !self.lost && dice.below(8) != 7;
        self.version = super::packets::version(dice);
        (self.up, self.lost) = (true, false);
        for message in self.messages.iter_mut().filter(|message| !message.done) {
            message.twice |= !present;
        }
        for side in 0..2 {
            let receive_maximum = 1 + u16::from(dice.byte()) % self.sides[1 - side].limit;
            let peer = Peer { version: self.version, session_present: present, receive_maximum, ..Peer::default() };
            let this = &mut self.sides[side];
            if !present {
                this.pending.clear();
                this.journal = Journal::default();
            }
            this.session.connected(peer, self.now);
        }
    }

    /// A side loses its memory: all of it, or what is not in its journal.
    fn forget(&mut self, side: usize, dice: &mut Dice<'_>) {
        let (journalled, hold) = (!self.lost && dice.flip(), dice.flip());
        self.lost |= !journalled;
        let this = &mut self.sides[side];
        let old = std::mem::replace(this, Side::new(this.limit, hold));
        this.last = old.last;
        // What is given out and not acknowledged comes again.
        old.pending.into_iter().for_each(|(_, token)| self.messages[token as usize].twice = true);
        let mut kept = BTreeSet::new();
        if journalled {
            self.relapsed = true;
            old.journal.received.iter().for_each(|&id| this.session.restore_received(id));
            for (&id, &(token, taken)) in &old.journal.sent {
                this.session.restore_sent(id, taken);
                if !taken {
                    kept.insert(token);
                    this.restored.push((id, token));
                    self.messages[token as usize].late = true;
                }
            }
            this.journal = old.journal;
            // Nothing is known of messages of QoS 1, so their identifiers are used again.
            self.acknowledge_at_least_once(1 - side);
        }
        // What was restored and lost before it was given to the session is not sent any more by this life.
        for (token, message) in self.messages.iter_mut().enumerate() {
            let own = usize::from(message.publish.payload[0]) == side;
            message.orphan |= own && !kept.contains(&(token as u32));
        }
    }

    fn acknowledge_at_least_once(&mut self, side: usize) {
        let pending = std::mem::take(&mut self.sides[side].pending);
        for one in pending {
            if self.messages[one.1 as usize].publish.qos == Qos::AtLeastOnce {
                self.answer(side, one, Reason::SUCCESS);
            } else {
                self.sides[side].pending.push(one);
            }
        }
    }

    fn publish_restored(&mut self, side: usize) {
        let this = &mut self.sides[side];
        let Some((id, token)) = this.restored.pop() else { return };
        let publish = &self.messages[token as usize].publish;
        this.session.publish_restored(id, publish, token, self.now).expect("any peer takes it");
    }

    /// The connection stays, and all is acknowledged.
    fn rest(&mut self) {
        let mut quiet = Dice::new(&[]);
        if !self.up {
            self.connect(&mut quiet);
            self.settle();
        }
        let mut busy = true;
        while busy {
            busy = false;
            for side in 0..2 {
                while !self.sides[side].restored.is_empty() {
                    self.publish_restored(side);
                }
                self.settle();
                busy |= !self.sides[side].session.output().is_empty() || !self.sides[side].pipe.is_empty();
                self.flush(side, usize::MAX);
                self.deliver(1 - side, usize::MAX);
                for one in std::mem::take(&mut self.sides[1 - side].pending) {
                    self.answer(1 - side, one, Reason::SUCCESS);
                    busy = true;
                }
                self.settle();
            }
        }
        for side in &self.sides {
            assert_eq!((side.session.outstanding(), side.session.unacknowledged()), (0, 0));
            assert!(self.relapsed || side.session.is_blank(), "something is remembered: {:?}", side.session);
            assert!(side.journal.sent.is_empty() && side.journal.received.is_empty());
        }
        for (token, message) in self.messages.iter().enumerate() {
            assert!(message.done || message.orphan, "{token} was never acknowledged: {:?}", message.publish);
        }
    }
}

impl Side {
    fn new(limit: u16, hold: bool) -> Self {
        let mut session = Session::new(limit);
        session.hold_at_most_once(hold);
        session.report_assigned(true);
        Self {
            session,
            limit,
            pipe: BytesMut::new(),
            tap: BytesMut::new(),
            ids: BTreeSet::new(),
            pending: Vec::new(),
            last: [None; 3],
            journal: Journal::default(),
            restored: Vec::new(),
        }
    }
}

/// One session, and a peer that sends whatever it likes: nothing panics, what goes out can be read, and each token comes back
/// exactly once.
pub fn endure(script: &[u8]) {
    let mut dice = Dice::new(script);
    let mut session = Session::new(u16::from(dice.byte() % 8));
    session.hold_at_most_once(dice.flip());
    session.report_assigned(true);
    let mut now = Instant::now();
    let (mut tokens, mut back) = (0, Vec::new());
    while !dice.is_empty() {
        let spoken = session.peer().version;
        match dice.below(14) {
            0 | 1 => {
                let publish = any_publish(&mut dice);
                if let Ok(returned) = session.publish(&publish, tokens, now) {
                    tokens += 1;
                    back.extend(returned);
                }
            }
            2 => {
                let (id, publish) = (small_id(&mut dice), any_publish(&mut dice));
                tokens += u32::from(session.publish_restored(id, &publish, tokens, now).is_ok());
            }
            3 => session.connected(any_peer(&mut dice), now),
            4 => drop(session.disconnected()),
            5 => session.acknowledge(small_id(&mut dice), Reason(dice.byte())),
            6 => session.restore_sent(small_id(&mut dice), dice.flip()),
            7 => session.restore_received(small_id(&mut dice)),
            8 => now += Duration::from_secs(dice.u32().into()),
            9 => session.release_restored(small_id(&mut dice)),
            10 => session.release_all(&any_peer(&mut dice)),
            11 if dice.below(16) == 0 => back.extend(session.drain()),
            _ => {
                if let Ok(Event::Acknowledged { token, .. }) = session.receive(any_packet(&mut dice, spoken), now) {
                    back.push(token);
                }
            }
        }
        back.extend(std::iter::from_fn(|| session.take_sent().or_else(|| session.take_expired())));
        read_output(&mut session);
    }
    back.extend(session.drain());
    back.sort_unstable();
    assert_eq!(back, Vec::from_iter(0..tokens));
}

fn read_output(session: &mut Session<u32>) {
    let (version, max_packet) = (session.peer().version, session.peer().max_packet);
    let output = session.output();
    while !output.is_empty() {
        let before = output.len();
        let packet = Decoder::new(version, usize::MAX).decode(output).expect("valid output").expect("whole packets");
        let fits = before - output.len() <= max_packet || !matches!(packet, Packet::Publish(_));
        assert!(fits, "larger than the peer allows: {packet:?}");
    }
}

fn small_id(dice: &mut Dice<'_>) -> u16 {
    u16::from(dice.byte() % 8)
}

fn any_publish(dice: &mut Dice<'_>) -> Publish {
    let mut publish = super::packets::publish(dice, Version::V311);
    (publish.id, publish.dup) = (small_id(dice), dice.flip());
    publish
}

fn any_peer(dice: &mut Dice<'_>) -> Peer {
    Peer {
        version: super::packets::version(dice),
        session_present: dice.flip(),
        receive_maximum: u16::from(dice.byte() % 8),
        max_packet: if dice.flip() { usize::MAX } else { usize::from(dice.byte()) },
        max_qos: QUALITIES[2 - dice.below(3)],
        takes_subscription_ids: true,
    }
}

fn any_packet(dice: &mut Dice<'_>, version: Version) -> Packet {
    let mut packet = if dice.below(4) == 0 {
        super::packets::packet(dice, version)
    } else {
        let kind = [AckKind::Puback, AckKind::Pubrec, AckKind::Pubrel, AckKind::Pubcomp][dice.below(4)];
        Packet::Ack(Ack { kind, id: 0, reason: Reason(dice.byte() & 0x90), reason_string: None })
    };
    match &mut packet {
        Packet::Publish(Publish { id, .. }) | Packet::Ack(Ack { id, .. }) => *id = small_id(dice),
        _ => {}
    }
    packet
}
