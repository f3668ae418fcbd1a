//! A message to the peer in its encoded form, in memory of its own: what it was read from can be let go. Its payload may be shared with
//! other sessions.

use std::time::Instant;

use bytes::{BufMut, Bytes, BytesMut};

use super::{Event, Peer, Refusal};
use crate::packet::{
    Decoder, MAX_REMAINING, Packet, Publish, Qos, Version, encode_publish_head, put_varint, varint_len,
};
use crate::reason::Reason;

/// The longest packet that MQTT can express, in bytes, with its fixed header.
const MAX_PACKET: usize = MAX_REMAINING + 5;
/// Payloads up to this size, in bytes, are not shared: to share one takes as much.
const SMALL: usize = 64;

#[derive(Debug)]
pub(super) struct Stored<T> {
    pub(super) token: T,
    pub(super) qos: Qos,
    /// Without the payload, if that is shared.
    packet: Box<[u8]>,
    /// The shared payload; empty if it stands in the packet.
    payload: Bytes,
    /// Where the packet identifier stands, or with QoS 0 would stand.
    id_at: u32,
    /// Few have one, and thousands of messages may wait.
    expiry: Option<Box<Expiry>>,
}

/// When a message is worth nothing any more.
#[derive(Debug, Clone, Copy)]
struct Expiry {
    since: Instant,
    seconds: u32,
    /// Where in `packet` the seconds stand, counted from its end: what comes after them is never changed. A packet of 3.1.1
    /// does not say them.
    from_end: Option<usize>,
}

impl<T> Stored<T> {
    /// `shares`: whether the payload has memory of its own, which may be kept for as long as the message is.
    pub(super) fn new(
        publish: &Publish,
        qos: Qos,
        token: T,
        peer: &Peer,
        shares: bool,
        now: Instant,
    ) -> Result<Self, Refusal> {
        let payload = Some(&publish.payload).filter(|payload| shares && payload.len() > SMALL);
        let payload = payload.cloned().unwrap_or_default();
        let mut packet = BytesMut::new();
        let (version, properties) = (peer.version, &publish.properties);
        // The identifier is put in when there is one.
        let id_at = if publish.qos == qos && !publish.dup {
            encode_publish_head(publish, version, &mut packet)?
        } else {
            encode_publish_head(&Publish { qos, dup: false, ..publish.clone() }, version, &mut packet)?
        };
        check_size(packet.len() + publish.payload.len(), peer)?;
        if payload.is_empty() {
            packet.extend_from_slice(&publish.payload);
        }
        let expiry = properties.expiry.map(|seconds| {
            let id = if qos == Qos::AtMostOnce { 0 } else { 2 };
            let before = varint_len(properties.len()) + if properties.utf8.is_some() { 2 } else { 0 };
            let from_end = packet.len().checked_sub(id_at + id + before + 1);
            Box::new(Expiry { since: now, seconds, from_end: from_end.filter(|_| version == Version::V5) })
        });
        // Behind the fixed header and the topic: far below 2^32.
        let id_at = u32::try_from(id_at).unwrap_or(u32::MAX);
        Ok(Self { token, qos, packet: Vec::from(packet).into(), payload, id_at, expiry })
    }

    pub(super) fn put(&self, out: &mut BytesMut) {
        out.reserve(self.len());
        out.extend_from_slice(&self.packet);
        out.extend_from_slice(&self.payload);
    }

    fn len(&self) -> usize {
        self.packet.len() + self.payload.len()
    }

    pub(super) fn set_id(&mut self, id: u16) {
        let at = self.id_at();
        self.packet[at..at + 2].copy_from_slice(&id.to_be_bytes());
    }

    fn id_at(&self) -> usize {
        self.id_at as usize
    }

    /// Whether it says that it may have been sent before.
    pub(super) fn set_dup(&mut self, dup: bool) {
        self.packet[0] = self.packet[0] & !8 | u8::from(dup) << 3;
    }

    pub(super) fn fits(&self, peer: &Peer) -> bool {
        check_size(self.len(), peer).is_ok() && self.len() <= MAX_PACKET
    }

    /// Lets the packet say how many seconds it is still worth something, at least one; says whether any are left.
    pub(super) fn age(&mut self, now: Instant) -> bool {
        let Some(&Expiry { since, seconds, from_end }) = self.expiry.as_deref() else { return true };
        let waited = u32::try_from(now.saturating_duration_since(since).as_secs()).unwrap_or(u32::MAX);
        let left = seconds.saturating_sub(waited);
        if let Some(at) = from_end.and_then(|from_end| self.packet.len().checked_sub(from_end)) {
            self.packet[at..at + 4].copy_from_slice(&left.max(seconds.min(1)).to_be_bytes());
        }
        // A message may live for 0 seconds: then it goes out at once.
        left > 0 || (seconds == 0 && waited == 0)
    }

    /// Lowers the quality to what the peer takes.
    pub(super) fn lower(&mut self, highest: Qos) {
        if self.qos > highest {
            self.rebuild(highest, self.body(), false);
        }
    }

    /// A client may take a session up with another version. Properties are lost in 3.1.1, and do not come back.
    pub(super) fn translate(&mut self, to: Version) {
        let mut payload = self.body();
        if to == Version::V311 {
            payload += self.properties_len();
        }
        if let Some(expiry) = &mut self.expiry {
            expiry.from_end = None;
        }
        self.rebuild(self.qos, payload, to == Version::V5);
    }

    /// Where the topic, and the packet identifier if there is one, are at an end.
    fn body(&self) -> usize {
        self.id_at() + if self.qos == Qos::AtMostOnce { 0 } else { 2 }
    }

    /// How many bytes the properties take, with their length.
    fn properties_len(&self) -> usize {
        let (mut length, mut width) = (0, 0);
        for byte in &self.packet[self.body()..] {
            length |= usize::from(byte & 0x7f) << (7 * width);
            width += 1;
            if byte & 0x80 == 0 {
                break;
            }
        }
        width + length
    }

    /// The same topic and identifier, then perhaps empty properties, then what stands from `rest` on. It is not read for this:
    /// whatever was encoded, a valid topic or not, must not go out in the wrong version.
    fn rebuild(&mut self, qos: Qos, rest: usize, no_properties: bool) {
        let header = 1 + self.packet[1..].iter().position(|byte| byte & 0x80 == 0).map_or(1, |place| place + 1);
        let id = if qos == Qos::AtMostOnce { 0 } else { 2 };
        let remaining = self.id_at() - header + id + usize::from(no_properties) + self.len() - rest;
        let mut packet = BytesMut::with_capacity(remaining - self.payload.len() + 6);
        packet.put_u8(self.packet[0] & !6 | qos.number() << 1);
        put_varint(&mut packet, remaining);
        let id_at = packet.len() + self.id_at() - header;
        packet.extend_from_slice(&self.packet[header..self.id_at() + id]);
        if no_properties {
            packet.put_u8(0);
        }
        packet.extend_from_slice(&self.packet[rest..]);
        self.id_at = u32::try_from(id_at).unwrap_or(u32::MAX);
        (self.packet, self.qos) = (Vec::from(packet).into(), qos);
    }

    /// What the peer's acknowledgement means; with the message, when it was not simply taken over.
    pub(super) fn acknowledged(self, reason: Reason, version: Version) -> Event<T> {
        let message = if reason == Reason::SUCCESS { None } else { self.decoded(version).map(Box::new) };
        Event::Acknowledged { token: self.token, reason, message }
    }

    /// It was encoded here, so it can be decoded.
    pub(super) fn decoded(&self, version: Version) -> Option<Publish> {
        let mut packet = BytesMut::new();
        self.put(&mut packet);
        let decoded = Decoder::new(version, usize::MAX).decode(&mut packet);
        if let Ok(Some(Packet::Publish(publish))) = decoded { Some(publish) } else { None }
    }
}

pub(super) fn check_size(size: usize, peer: &Peer) -> Result<(), Refusal> {
    if size > peer.max_packet { Err(Refusal::TooLarge { size, limit: peer.max_packet }) } else { Ok(()) }
}
