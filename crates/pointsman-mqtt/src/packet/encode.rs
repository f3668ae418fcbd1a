//! From packets to bytes.

use bytes::{BufMut, BytesMut};

use super::{Ack, Connack, Connect, MAX_REMAINING, Packet, Properties, Publish, Qos, Suback, Version};
use crate::topic::MAX_TEXT_BYTES;

/// A packet that MQTT cannot express.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unencodable {
    /// A string, or binary data with a length of two bytes, is longer than that.
    #[error("a string of more than 65,535 bytes")]
    Text,
    /// The whole is longer than 268,435,455 bytes.
    #[error("a packet of more than 268,435,455 bytes")]
    Packet,
    /// A subscription identifier is larger than that.
    #[error("a subscription identifier of more than 268,435,455")]
    Number,
}

/// Appends a packet to `out`. Properties are left out where the version has none.
///
/// # Errors
///
/// [`Unencodable`]; `out` is as it was then.
pub fn encode(packet: &Packet, version: Version, out: &mut BytesMut) -> Result<(), Unencodable> {
    let v5 = version == Version::V5;
    check_packet(packet, v5)?;
    let mut body = BytesMut::new();
    let first = match packet {
        Packet::Publish(publish) => return encode_publish(publish, version, out).map(drop),
        Packet::Ack(ack) => {
            put_ack(ack, v5, out);
            return Ok(());
        }
        Packet::Pingreq => 0xc0,
        Packet::Pingresp => 0xd0,
        Packet::Connect(connect) => {
            put_connect(connect, &mut body);
            0x10
        }
        Packet::Connack(connack) => {
            put_connack(connack, v5, &mut body);
            0x20
        }
        Packet::Subscribe(subscribe) => {
            body.put_u16(subscribe.id);
            put_properties(&subscribe.properties, v5, &mut body);
            for (filter, options) in &subscribe.filters {
                put_text(&mut body, filter);
                let flags = u8::from(options.no_local) << 2 | u8::from(options.retain_as_published) << 3;
                let bits = if v5 { flags | options.retain_handling << 4 } else { 0 };
                body.put_u8(options.qos.number() | bits);
            }
            0x82
        }
        Packet::Suback(suback) => {
            put_suback(suback, v5, &mut body);
            0x90
        }
        Packet::Unsuback(suback) => {
            if v5 {
                put_suback(suback, v5, &mut body);
            } else {
                body.put_u16(suback.id);
            }
            0xb0
        }
        Packet::Unsubscribe(unsubscribe) => {
            body.put_u16(unsubscribe.id);
            put_properties(&unsubscribe.properties, v5, &mut body);
            for filter in &unsubscribe.filters {
                put_text(&mut body, filter);
            }
            0xa2
        }
        Packet::Disconnect(end) | Packet::Auth(end) => {
            if v5 && (end.reason.0 != 0 || end.properties != Properties::default()) {
                body.put_u8(end.reason.0);
                put_properties(&end.properties, v5, &mut body);
            }
            if matches!(packet, Packet::Auth(_)) { 0xf0 } else { 0xe0 }
        }
    };
    if body.len() > MAX_REMAINING {
        return Err(Unencodable::Packet);
    }
    out.reserve(5 + body.len());
    out.put_u8(first);
    put_varint(out, body.len());
    out.extend_from_slice(&body);
    Ok(())
}

/// Appends a PUBLISH to `out`, and says where in it, counted from its first byte, the packet identifier stands, or with QoS 0
/// would stand.
///
/// # Errors
///
/// [`Unencodable`]; `out` is as it was then.
pub fn encode_publish(publish: &Publish, version: Version, out: &mut BytesMut) -> Result<usize, Unencodable> {
    let id_at = encode_publish_head(publish, version, out)?;
    out.extend_from_slice(&publish.payload);
    Ok(id_at)
}

/// The same without the payload, which is to follow.
pub(crate) fn encode_publish_head(
    publish: &Publish,
    version: Version,
    out: &mut BytesMut,
) -> Result<usize, Unencodable> {
    let v5 = version == Version::V5;
    let Publish { topic, properties, payload, .. } = publish;
    check(topic.len())?;
    let properties_len = if v5 {
        properties.check()?;
        properties.len()
    } else {
        0
    };
    let with_id = publish.qos != Qos::AtMostOnce;
    let mut remaining = 2 + topic.len() + payload.len();
    if with_id {
        remaining += 2;
    }
    if v5 {
        remaining += varint_len(properties_len) + properties_len;
    }
    if remaining > MAX_REMAINING {
        return Err(Unencodable::Packet);
    }
    out.reserve(5 + remaining - payload.len());
    // With QoS 0 nothing is sent twice.
    let dup = publish.dup && with_id;
    out.put_u8(0x30 | u8::from(dup) << 3 | publish.qos.number() << 1 | u8::from(publish.retain));
    put_varint(out, remaining);
    put_text(out, topic);
    if with_id {
        out.put_u16(publish.id);
    }
    if v5 {
        put_varint(out, properties_len);
        properties.put(out);
    }
    Ok(1 + varint_len(remaining) + 2 + topic.len())
}

pub(crate) fn check(length: usize) -> Result<(), Unencodable> {
    if length > MAX_TEXT_BYTES { Err(Unencodable::Text) } else { Ok(()) }
}

/// The specification's limit for what is written as a variable number of bytes.
pub(crate) fn check_number(number: u32) -> Result<(), Unencodable> {
    if number as usize > MAX_REMAINING { Err(Unencodable::Number) } else { Ok(()) }
}

/// Whether each string and number in it can be expressed. What the version has no place for need not be.
fn check_packet(packet: &Packet, v5: bool) -> Result<(), Unencodable> {
    let properties = match packet {
        Packet::Connect(connect) => return check_connect(connect),
        Packet::Connack(connack) => &connack.properties,
        Packet::Subscribe(subscribe) => {
            subscribe.filters.iter().try_for_each(|(filter, _)| check(filter.len()))?;
            &subscribe.properties
        }
        Packet::Unsubscribe(unsubscribe) => {
            unsubscribe.filters.iter().try_for_each(|filter| check(filter.len()))?;
            &unsubscribe.properties
        }
        Packet::Suback(suback) | Packet::Unsuback(suback) => &suback.properties,
        Packet::Disconnect(end) | Packet::Auth(end) => &end.properties,
        Packet::Publish(_) | Packet::Ack(_) | Packet::Pingreq | Packet::Pingresp => return Ok(()),
    };
    if v5 { properties.check() } else { Ok(()) }
}

fn check_connect(connect: &Connect) -> Result<(), Unencodable> {
    let v5 = connect.version == Version::V5;
    check(connect.client_id.len())?;
    check(connect.user.as_ref().map_or(0, |user| user.len()))?;
    check(connect.password.as_ref().map_or(0, bytes::Bytes::len))?;
    if v5 {
        connect.properties.check()?;
    }
    let Some(will) = &connect.will else { return Ok(()) };
    check(will.topic.len())?;
    check(will.payload.len())?;
    if v5 { will.properties.check() } else { Ok(()) }
}

/// The reason stays, but a long explanation is left out: an acknowledgement is to fit into every maximum packet size.
fn put_ack(ack: &Ack, v5: bool, out: &mut BytesMut) {
    let first = (ack.kind as u8) << 4 | if ack.kind == super::AckKind::Pubrel { 2 } else { 0 };
    match &ack.reason_string {
        Some(text) if v5 && text.len() < 1024 => {
            let properties = 3 + text.len();
            out.put_u8(first);
            put_varint(out, 3 + varint_len(properties) + properties);
            out.put_u16(ack.id);
            out.put_u8(ack.reason.0);
            put_varint(out, properties);
            out.put_u8(31);
            put_text(out, text);
        }
        _ if v5 && ack.reason.0 != 0 => {
            out.put_slice(&[first, 3]);
            out.put_u16(ack.id);
            out.put_u8(ack.reason.0);
        }
        _ => {
            out.put_slice(&[first, 2]);
            out.put_u16(ack.id);
        }
    }
}

fn put_connect(connect: &Connect, out: &mut BytesMut) {
    let v5 = connect.version == Version::V5;
    put_text(out, "MQTT");
    out.put_u8(if v5 { 5 } else { 4 });
    let mut flags = u8::from(connect.clean_start) << 1;
    if let Some(will) = &connect.will {
        flags |= 4 | will.qos.number() << 3 | u8::from(will.retain) << 5;
    }
    flags |= u8::from(connect.user.is_some()) << 7 | u8::from(connect.password.is_some()) << 6;
    out.put_u8(flags);
    out.put_u16(connect.keep_alive);
    put_properties(&connect.properties, v5, out);
    put_text(out, &connect.client_id);
    if let Some(will) = &connect.will {
        if v5 {
            let delay = if will.delay > 0 { 5 } else { 0 };
            put_varint(out, delay + will.properties.len());
            if will.delay > 0 {
                out.put_u8(24);
                out.put_u32(will.delay);
            }
            will.properties.put(out);
        }
        put_text(out, &will.topic);
        put_bytes(out, &will.payload);
    }
    if let Some(user) = &connect.user {
        put_text(out, user);
    }
    if let Some(password) = &connect.password {
        put_bytes(out, password);
    }
}

fn put_connack(connack: &Connack, v5: bool, out: &mut BytesMut) {
    out.put_u8(u8::from(connack.session_present));
    out.put_u8(if v5 { connack.reason.0 } else { connack.reason.return_code() });
    put_properties(&connack.properties, v5, out);
}

fn put_suback(suback: &Suback, v5: bool, out: &mut BytesMut) {
    out.put_u16(suback.id);
    put_properties(&suback.properties, v5, out);
    // 3.1.1 has one word for every failure.
    out.extend(suback.reasons.iter().map(|reason| if !v5 && reason.is_error() { 0x80 } else { reason.0 }));
}

fn put_properties(properties: &Properties, v5: bool, out: &mut BytesMut) {
    if v5 {
        properties.put(out);
    }
}

pub(crate) fn put_text(out: &mut impl BufMut, text: &str) {
    put_bytes(out, text.as_bytes());
}

/// The length has been checked before, or is known to be small; what is too long would be cut.
pub(crate) fn put_bytes(out: &mut impl BufMut, bytes: &[u8]) {
    let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    out.put_u16(length);
    out.put_slice(&bytes[..usize::from(length)]);
}

pub(crate) fn put_varint(out: &mut impl BufMut, mut value: usize) {
    loop {
        let byte = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            out.put_u8(byte);
            return;
        }
        out.put_u8(byte | 0x80);
    }
}

pub(crate) const fn varint_len(value: usize) -> usize {
    match value {
        0..0x80 => 1,
        0x80..0x4000 => 2,
        0x4000..0x20_0000 => 3,
        _ => 4,
    }
}
