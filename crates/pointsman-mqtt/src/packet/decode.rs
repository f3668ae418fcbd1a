//! From bytes to packets.

use bytes::{Buf, Bytes, BytesMut};
use bytestring::ByteString;

use super::properties::{MessageProperties, Of, Properties};
use super::{
    Ack, AckKind, Connack, Connect, Disconnect, Options, Packet, Publish, Qos, Suback, Subscribe, Unsubscribe, Version,
    Will,
};
use crate::reason::Reason;
use crate::topic;

/// Bytes that are no packet of MQTT. The connection they came on is of no use any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {what}")]
pub struct Malformed {
    /// What is wrong.
    pub what: &'static str,
    /// What a DISCONNECT would say.
    pub reason: Reason,
}

impl Malformed {
    pub(crate) const fn new(what: &'static str) -> Self {
        Self { what, reason: Reason::MALFORMED_PACKET }
    }

    pub(crate) const fn protocol(what: &'static str) -> Self {
        Self { what, reason: Reason::PROTOCOL_ERROR }
    }
}

/// Cuts packets out of a stream of bytes and reads them.
#[derive(Debug, Clone)]
pub struct Decoder {
    version: Version,
    /// The longest packet that is read, fixed header included, in bytes.
    max_packet: usize,
    /// Whether a message that is too large is read without its payload.
    cuts: bool,
    /// Whether the last packet was such a message.
    cut: bool,
    /// How much of its payload is yet to come.
    skip: usize,
}

impl Decoder {
    /// For a connection that speaks `version`; a CONNECT sets the version itself.
    #[must_use]
    pub fn new(version: Version, max_packet: usize) -> Self {
        Self { version, max_packet, cuts: false, cut: false, skip: 0 }
    }

    /// Reads messages that are too large without their payload, and without their properties where these alone are too large, instead of
    /// failing: the peer would send the same message again.
    #[must_use]
    pub fn cutting(self) -> Self {
        Self { cuts: true, ..self }
    }

    /// Whether the packet that was read last is a message without the payload that it has.
    pub fn take_cut(&mut self) -> bool {
        std::mem::take(&mut self.cut)
    }

    /// The version that packets are read in.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// Takes the next packet off `bytes`; `None` while it is not all there.
    ///
    /// # Errors
    ///
    /// [`Malformed`], also for a packet that is too large, before it has been read into memory.
    pub fn decode(&mut self, bytes: &mut BytesMut) -> Result<Option<Packet>, Malformed> {
        let skipped = self.skip.min(bytes.len());
        bytes.advance(skipped);
        self.skip -= skipped;
        let Some((header, length)) = frame(bytes)? else { return Ok(None) };
        if header + length > self.max_packet {
            if self.cuts && bytes[0] >> 4 == 3 {
                return self.decode_cut(header, length, bytes);
            }
            return Err(Malformed { what: "the packet is larger than allowed", reason: Reason::PACKET_TOO_LARGE });
        }
        if bytes.len() < header + length {
            return Ok(None);
        }
        let first = bytes[0];
        let mut packet = bytes.split_to(header + length).freeze();
        packet.advance(header);
        self.packet(first, Reader::new(packet)).map(Some)
    }

    /// A message, as far as its payload.
    fn decode_cut(&mut self, header: usize, length: usize, bytes: &mut BytesMut) -> Result<Option<Packet>, Malformed> {
        let flags = bytes[0] & 0x0f;
        let Some(&[high, low]) = bytes.get(header..header + 2) else { return Ok(None) };
        let with_id = flags & 0b110 != 0;
        let topic = 2 + usize::from(u16::from_be_bytes([high, low])) + if with_id { 2 } else { 0 };
        let is_v5 = self.version == Version::V5;
        let mut head = topic;
        let mut has_properties = false;
        if is_v5 {
            // The length of the properties has the form of a packet's.
            let Some(from) = bytes.get(header + topic - 1..) else { return Ok(None) };
            let Some((width, properties)) = frame(from)? else { return Ok(None) };
            has_properties = header + topic + width - 1 + properties <= self.max_packet;
            head += if has_properties { width - 1 + properties } else { 0 };
        }
        if head > length {
            return Err(SHORT);
        }
        if bytes.len() < header + head {
            return Ok(None);
        }
        let mut packet = bytes.split_to(header + head);
        packet.advance(header);
        if is_v5 && !has_properties {
            packet.extend_from_slice(&[0]);
        }
        (self.cut, self.skip) = (true, length - head);
        publish(flags, Reader::new(packet.freeze()), is_v5).map(|publish| Some(Packet::Publish(publish)))
    }

    fn packet(&mut self, first: u8, mut reader: Reader) -> Result<Packet, Malformed> {
        let flags = first & 0x0f;
        let expected = if matches!(first >> 4, 6 | 8 | 10) { 2 } else { 0 };
        if first >> 4 != 3 && flags != expected {
            return Err(Malformed::new("reserved flags are set"));
        }
        let v5 = self.version == Version::V5;
        let packet = match first >> 4 {
            1 => {
                let connect = connect(&mut reader)?;
                self.version = connect.version;
                Packet::Connect(Box::new(connect))
            }
            2 => Packet::Connack(Box::new(connack(&mut reader, v5)?)),
            3 => return publish(flags, reader, v5).map(Packet::Publish),
            4 => Packet::Ack(ack(AckKind::Puback, &mut reader, v5)?),
            5 => Packet::Ack(ack(AckKind::Pubrec, &mut reader, v5)?),
            6 => Packet::Ack(ack(AckKind::Pubrel, &mut reader, v5)?),
            7 => Packet::Ack(ack(AckKind::Pubcomp, &mut reader, v5)?),
            8 => Packet::Subscribe(Box::new(subscribe(&mut reader, v5)?)),
            9 => Packet::Suback(Box::new(suback(&mut reader, v5)?)),
            10 => Packet::Unsubscribe(Box::new(unsubscribe(&mut reader, v5)?)),
            11 => Packet::Unsuback(Box::new(unsuback(&mut reader, v5)?)),
            12 => Packet::Pingreq,
            13 => Packet::Pingresp,
            14 => Packet::Disconnect(Box::new(disconnect(&mut reader, v5, Of::Disconnect)?)),
            15 if v5 => Packet::Auth(Box::new(disconnect(&mut reader, v5, Of::Auth)?)),
            _ => return Err(Malformed::new("there is no packet of this type")),
        };
        if reader.has_remaining() { Err(Malformed::new("bytes are left after the packet")) } else { Ok(packet) }
    }
}

/// The length of the fixed header, and of what follows it; `None` while it is not all there.
fn frame(bytes: &[u8]) -> Result<Option<(usize, usize)>, Malformed> {
    let mut length = 0;
    for place in 0..4 {
        let Some(&byte) = bytes.get(1 + place) else { return Ok(None) };
        length |= usize::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Ok(Some((2 + place, length)));
        }
    }
    Err(Malformed::new("the remaining length has more than four bytes"))
}

/// Reads values off a packet.
#[derive(Debug)]
pub(crate) struct Reader(Bytes);

const SHORT: Malformed = Malformed::new("the packet ends too early");

impl Reader {
    pub(crate) fn new(bytes: Bytes) -> Self {
        Self(bytes)
    }

    pub(crate) fn has_remaining(&self) -> bool {
        !self.0.is_empty()
    }

    pub(crate) fn take(&mut self, length: usize) -> Result<Bytes, Malformed> {
        if self.0.len() < length { Err(SHORT) } else { Ok(self.0.split_to(length)) }
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        self.0.try_get_u8().map_err(|_| SHORT)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Malformed> {
        self.0.try_get_u16().map_err(|_| SHORT)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        self.0.try_get_u32().map_err(|_| SHORT)
    }

    pub(crate) fn bool(&mut self) -> Result<bool, Malformed> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed::protocol("a flag is neither 0 nor 1")),
        }
    }

    pub(crate) fn nonzero_u16(&mut self, what: &'static str) -> Result<u16, Malformed> {
        match self.u16()? {
            0 => Err(Malformed::protocol(what)),
            number => Ok(number),
        }
    }

    pub(crate) fn varint(&mut self) -> Result<u32, Malformed> {
        let mut value = 0;
        for place in 0..4 {
            let byte = self.u8()?;
            value |= u32::from(byte & 0x7f) << (7 * place);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed::new("a number has more than four bytes"))
    }

    pub(crate) fn nonzero_varint(&mut self) -> Result<u32, Malformed> {
        match self.varint()? {
            0 => Err(Malformed::protocol("a subscription identifier is 0")),
            number => Ok(number),
        }
    }

    pub(crate) fn bytes(&mut self) -> Result<Bytes, Malformed> {
        let length = self.u16()?;
        self.take(usize::from(length))
    }

    pub(crate) fn text(&mut self) -> Result<ByteString, Malformed> {
        let text = ByteString::try_from(self.bytes()?).map_err(|_| Malformed::new("a string is not UTF-8"))?;
        if text.as_bytes().contains(&0) { Err(Malformed::new("a string has a NUL in it")) } else { Ok(text) }
    }

    pub(crate) fn topic(&mut self) -> Result<ByteString, Malformed> {
        let text = self.text()?;
        if topic::is_topic(&text) { Ok(text) } else { Err(TOPIC) }
    }

    fn id(&mut self) -> Result<u16, Malformed> {
        self.nonzero_u16("a packet identifier is 0")
    }

    fn rest(&mut self) -> Bytes {
        std::mem::take(&mut self.0)
    }
}

const TOPIC: Malformed = Malformed { what: "a topic is empty or has wildcards", reason: Reason::TOPIC_NAME_INVALID };

fn connect(reader: &mut Reader) -> Result<Connect, Malformed> {
    let (name, level) = (reader.bytes()?, reader.u8()?);
    let version = match (&name[..], level) {
        (b"MQTT", 4) => Version::V311,
        (b"MQTT", 5) => Version::V5,
        (b"MQTT" | b"MQIsdp", _) => {
            let what = "the version is neither 3.1.1 nor 5";
            return Err(Malformed { what, reason: Reason::UNSUPPORTED_VERSION });
        }
        _ => return Err(Malformed::protocol("it does not speak MQTT")),
    };
    let flags = reader.u8()?;
    let (has_user, has_password, has_will) = (flags & 0x80 != 0, flags & 0x40 != 0, flags & 4 != 0);
    if flags & 1 != 0 || (!has_will && flags & 0x38 != 0) {
        return Err(Malformed::new("flags of CONNECT contradict each other"));
    }
    if version == Version::V311 && has_password && !has_user {
        return Err(Malformed::new("a password without a user name"));
    }
    let keep_alive = reader.u16()?;
    let properties =
        if version == Version::V5 { Properties::read(reader, Of::Connect)? } else { Properties::default() };
    let client_id = reader.text()?;
    let will = if has_will { Some(will(reader, flags, version)?) } else { None };
    let user = if has_user { Some(reader.text()?) } else { None };
    let password = if has_password { Some(reader.bytes()?) } else { None };
    Ok(Connect { version, clean_start: flags & 2 != 0, keep_alive, client_id, will, user, password, properties })
}

fn will(reader: &mut Reader, flags: u8, version: Version) -> Result<Will, Malformed> {
    let qos = Qos::of((flags >> 3) & 3).ok_or(Malformed::new("the QoS of the will is 3"))?;
    let mut delay = 0;
    let properties = if version == Version::V5 {
        MessageProperties::read(reader, Some(&mut delay))?
    } else {
        MessageProperties::default()
    };
    Ok(Will { topic: reader.topic()?, payload: reader.bytes()?, qos, retain: flags & 0x20 != 0, delay, properties })
}

fn connack(reader: &mut Reader, v5: bool) -> Result<Connack, Malformed> {
    let (session_present, code) = (reader.bool()?, reader.u8()?);
    let reason = if v5 { Reason(code) } else { Reason::of_return_code(code) };
    // A broker that does not know version 5 answers as one of 3.1.1 does.
    let properties =
        if v5 && reader.has_remaining() { Properties::read(reader, Of::Connack)? } else { Properties::default() };
    Ok(Connack { session_present, reason, properties })
}

fn publish(flags: u8, mut reader: Reader, v5: bool) -> Result<Publish, Malformed> {
    let qos = Qos::of((flags >> 1) & 3).ok_or(Malformed::new("the QoS is 3"))?;
    let dup = flags & 8 != 0;
    if dup && qos == Qos::AtMostOnce {
        return Err(Malformed::new("a duplicate with QoS 0"));
    }
    let topic = reader.text()?;
    let id = if qos == Qos::AtMostOnce { 0 } else { reader.id()? };
    let properties = if v5 { MessageProperties::read(&mut reader, None)? } else { MessageProperties::default() };
    if !(topic::is_topic(&topic) || topic.is_empty() && properties.topic_alias.is_some()) {
        return Err(TOPIC);
    }
    Ok(Publish { dup, qos, retain: flags & 1 != 0, topic, id, properties, payload: reader.rest() })
}

fn ack(kind: AckKind, reader: &mut Reader, v5: bool) -> Result<Ack, Malformed> {
    let id = reader.id()?;
    let reason = if v5 && reader.has_remaining() { Reason(reader.u8()?) } else { Reason::SUCCESS };
    let reason_string =
        if v5 && reader.has_remaining() { Properties::read(reader, Of::Ack)?.reason_string } else { None };
    Ok(Ack { kind, id, reason, reason_string })
}

fn filter(reader: &mut Reader) -> Result<ByteString, Malformed> {
    reader.text()
}

fn subscribe(reader: &mut Reader, v5: bool) -> Result<Subscribe, Malformed> {
    let id = reader.id()?;
    let properties = if v5 { Properties::read(reader, Of::Subscribe)? } else { Properties::default() };
    let mut filters = Vec::new();
    while reader.has_remaining() {
        let (filter, bits) = (filter(reader)?, reader.u8()?);
        let qos = Qos::of(bits & 3).ok_or(Malformed::new("the QoS of a subscription is 3"))?;
        let retain_handling = (bits >> 4) & 3;
        if bits & 0xc0 != 0 || (!v5 && bits & 0x3c != 0) || retain_handling == 3 {
            return Err(Malformed::new("reserved options of a subscription are set"));
        }
        let options = Options { qos, no_local: bits & 4 != 0, retain_as_published: bits & 8 != 0, retain_handling };
        filters.push((filter, options));
    }
    if filters.is_empty() {
        Err(Malformed::protocol("SUBSCRIBE without a filter"))
    } else {
        Ok(Subscribe { id, filters, properties })
    }
}

fn suback(reader: &mut Reader, v5: bool) -> Result<Suback, Malformed> {
    let id = reader.id()?;
    let properties = if v5 { Properties::read(reader, Of::Suback)? } else { Properties::default() };
    let reason = |&code: &u8| {
        // 3.1.1 has one word for every failure.
        if !v5 && Reason(code).is_error() { Reason::UNSPECIFIED_ERROR } else { Reason(code) }
    };
    Ok(Suback { id, reasons: reader.rest().iter().map(reason).collect(), properties })
}

fn unsuback(reader: &mut Reader, v5: bool) -> Result<Suback, Malformed> {
    if v5 { suback(reader, v5) } else { Ok(Suback { id: reader.id()?, ..Suback::default() }) }
}

fn unsubscribe(reader: &mut Reader, v5: bool) -> Result<Unsubscribe, Malformed> {
    let id = reader.id()?;
    let properties = if v5 { Properties::read(reader, Of::Unsubscribe)? } else { Properties::default() };
    let mut filters = Vec::new();
    while reader.has_remaining() {
        filters.push(filter(reader)?);
    }
    if filters.is_empty() {
        return Err(Malformed::protocol("UNSUBSCRIBE without a filter"));
    }
    Ok(Unsubscribe { id, filters, properties })
}

fn disconnect(reader: &mut Reader, v5: bool, of: Of) -> Result<Disconnect, Malformed> {
    let reason = if v5 && reader.has_remaining() { Reason(reader.u8()?) } else { Reason::SUCCESS };
    let properties = if v5 && reader.has_remaining() { Properties::read(reader, of)? } else { Properties::default() };
    Ok(Disconnect { reason, properties })
}
