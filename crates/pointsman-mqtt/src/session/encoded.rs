//! A message in its encoded form, in memory of its own: what it was read from can be let go. Sessions to which it goes alike share it.

use std::sync::Arc;
use std::time::Instant;

use bytes::{BufMut, Bytes, BytesMut};

use crate::packet::{MAX_REMAINING, Publish, Qos, Unencodable, Version, encode_publish_head, put_varint, varint_len};

/// The longest packet that MQTT can express, in bytes, with its fixed header.
const MAX_PACKET: usize = MAX_REMAINING + 5;
/// Payloads up to this size, in bytes, stand in the packet: to keep one beside it takes as much.
const SMALL: usize = 64;

/// The encoded forms of one message, which differ by version, quality and retain flag. Each is made once, for all sessions to which it
/// is given with these.
#[derive(Debug, Default)]
pub struct Encodings(Vec<(Form, Arc<Encoded>)>);

type Form = (Version, Qos, bool);

/// A PUBLISH without what differs from one session to the other: its identifier, the flag of a duplicate, and the seconds that it is still
/// worth something.
#[derive(Debug)]
pub(super) struct Encoded {
    /// Without the payload, if that is kept beside it.
    packet: Box<[u8]>,
    /// Empty if it stands in the packet.
    payload: Bytes,
    /// Where the packet identifier stands, or with QoS 0 would stand.
    id_at: usize,
    expiry: Option<Expiry>,
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

impl Encodings {
    /// Forgets the message: the next one may be another.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn of(
        &mut self,
        publish: &Publish,
        (qos, version): (Qos, Version),
        shares: bool,
        now: Instant,
    ) -> Result<Arc<Encoded>, Unencodable> {
        let form = (version, qos, publish.retain);
        if let Some((_, encoded)) = self.0.iter().find(|(known, _)| *known == form) {
            return Ok(Arc::clone(encoded));
        }
        let encoded = Arc::new(Encoded::new(publish, (qos, version), shares, now)?);
        if shares {
            self.0.push((form, Arc::clone(&encoded)));
        }
        Ok(encoded)
    }
}

impl Encoded {
    fn new(publish: &Publish, (qos, version): (Qos, Version), shares: bool, now: Instant) -> Result<Self, Unencodable> {
        let payload = Some(&publish.payload).filter(|payload| shares && payload.len() > SMALL);
        let payload = payload.cloned().unwrap_or_default();
        let mut packet = BytesMut::new();
        let properties = &publish.properties;
        let id_at = if publish.qos == qos && !publish.dup {
            encode_publish_head(publish, version, &mut packet)?
        } else {
            encode_publish_head(&Publish { qos, dup: false, ..publish.clone() }, version, &mut packet)?
        };
        if payload.is_empty() {
            packet.extend_from_slice(&publish.payload);
        }
        let expiry = properties.expiry.map(|seconds| {
            let id = if qos == Qos::AtMostOnce { 0 } else { 2 };
            let before = varint_len(properties.len()) + if properties.utf8.is_some() { 2 } else { 0 };
            let from_end = packet.len().checked_sub(id_at + id + before + 1);
            Expiry { since: now, seconds, from_end: from_end.filter(|_| version == Version::V5) }
        });
        Ok(Self { packet: Vec::from(packet).into(), payload, id_at, expiry })
    }

    /// In bytes.
    pub(super) fn len(&self) -> usize {
        self.packet.len() + self.payload.len()
    }

    pub(super) fn is_expressible(&self) -> bool {
        self.len() <= MAX_PACKET
    }

    /// The seconds that it was worth something at first, if that has an end.
    pub(super) fn seconds(&self) -> Option<u32> {
        self.expiry.map(|expiry| expiry.seconds)
    }

    /// The seconds since then.
    pub(super) fn waited(&self, now: Instant) -> Option<u32> {
        let since = self.expiry?.since;
        Some(u32::try_from(now.saturating_duration_since(since).as_secs()).unwrap_or(u32::MAX))
    }

    /// Appends the packet with what is a session's own.
    pub(super) fn put(&self, id: u16, dup: bool, left: u32, out: &mut BytesMut) {
        out.reserve(self.len());
        let start = out.len();
        out.extend_from_slice(&self.packet);
        let packet = &mut out[start..];
        packet[0] |= u8::from(dup) << 3;
        if packet[0] & 6 != 0 {
            packet[self.id_at..self.id_at + 2].copy_from_slice(&id.to_be_bytes());
        }
        let seconds_at = self.expiry.and_then(|expiry| self.packet.len().checked_sub(expiry.from_end?));
        if let Some(at) = seconds_at {
            packet[at..at + 4].copy_from_slice(&left.to_be_bytes());
        }
        out.extend_from_slice(&self.payload);
    }

    /// The same with another quality.
    pub(super) fn with_qos(&self, qos: Qos, wanted: Qos) -> Self {
        self.rebuilt(wanted, self.body(qos), false, self.expiry)
    }

    /// The same in another version. Properties are lost in 3.1.1, and do not come back.
    pub(super) fn translated(&self, qos: Qos, to: Version) -> Self {
        let mut payload = self.body(qos);
        if to == Version::V311 {
            payload += self.properties_len(qos);
        }
        let expiry = self.expiry.map(|expiry| Expiry { from_end: None, ..expiry });
        self.rebuilt(qos, payload, to == Version::V5, expiry)
    }

    /// Where the topic, and the packet identifier if there is one, are at an end.
    fn body(&self, qos: Qos) -> usize {
        self.id_at + if qos == Qos::AtMostOnce { 0 } else { 2 }
    }

    /// How many bytes the properties take, with their length.
    fn properties_len(&self, qos: Qos) -> usize {
        let (mut length, mut width) = (0, 0);
        for byte in &self.packet[self.body(qos)..] {
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
    fn rebuilt(&self, qos: Qos, rest: usize, no_properties: bool, expiry: Option<Expiry>) -> Self {
        let header = 1 + self.packet[1..].iter().position(|byte| byte & 0x80 == 0).map_or(1, |place| place + 1);
        let id = if qos == Qos::AtMostOnce { 0 } else { 2 };
        let remaining = self.id_at - header + id + usize::from(no_properties) + self.len() - rest;
        let mut packet = BytesMut::with_capacity(remaining - self.payload.len() + 6);
        packet.put_u8(self.packet[0] & !6 | qos.number() << 1);
        put_varint(&mut packet, remaining);
        let id_at = packet.len() + self.id_at - header;
        packet.extend_from_slice(&self.packet[header..self.id_at + id]);
        if no_properties {
            packet.put_u8(0);
        }
        packet.extend_from_slice(&self.packet[rest..]);
        Self { packet: Vec::from(packet).into(), payload: self.payload.clone(), id_at, expiry }
    }
}
