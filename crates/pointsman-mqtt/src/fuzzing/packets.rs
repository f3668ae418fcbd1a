//! Packets: any that is valid, and what may be asked of any bytes.

use bytes::{Bytes, BytesMut};
use bytestring::ByteString;

use super::Dice;
use crate::packet::{
    Ack, AckKind, Connack, Connect, Decoder, Disconnect, Malformed, MessageProperties, Options, Packet, Properties,
    Publish, Qos, Suback, Subscribe, Unsubscribe, Version, Will, encode,
};
use crate::reason::Reason;

/// Bytes, cut into pieces, are read; what is read is written, and read again as the same.
///
/// The first byte says the version, the second how long the pieces are.
pub fn read_write_read(bytes: &[u8]) {
    let mut dice = Dice::new(bytes);
    let version = version(&mut dice);
    let piece = 1 + usize::from(dice.byte());
    let bytes = dice.rest();
    let whole = read(bytes, bytes.len().max(1), version);
    assert_eq!(whole, read(bytes, piece, version), "in pieces of {piece}");
    for (packet, version) in whole.0 {
        let mut out = BytesMut::new();
        encode(&packet, version, &mut out).expect("what was read can be written");
        let written = out.clone();
        let again = Decoder::new(version, usize::MAX).decode(&mut out).expect("what was written can be read");
        assert!(out.is_empty(), "bytes are left of {packet:?}");
        let again = again.expect("all of it was written");
        assert_eq!(again, normal(packet, version));
        encode(&again, version, &mut out).expect("it could be written before");
        assert_eq!(out, written);
    }
}

/// What is in the bytes, each with the version that holds after it, and what is wrong after that.
#[must_use]
pub fn read(bytes: &[u8], piece: usize, version: Version) -> (Vec<(Packet, Version)>, Option<Malformed>) {
    let mut decoder = Decoder::new(version, bytes.len());
    let (mut buffer, mut packets) = (BytesMut::new(), Vec::new());
    for piece in bytes.chunks(piece) {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut buffer) {
                Ok(Some(packet)) => packets.push((packet, decoder.version())),
                Ok(None) => break,
                Err(malformed) => return (packets, Some(malformed)),
            }
        }
    }
    (packets, None)
}

/// As a receiver sees it: without what the version has no place for, and what is not worth sending.
#[must_use]
pub fn normal(mut packet: Packet, version: Version) -> Packet {
    let short = |text: &ByteString| text.len() < 1024;
    let v5 = version == Version::V5;
    match &mut packet {
        Packet::Ack(ack) if v5 => ack.reason_string = ack.reason_string.take().filter(short),
        Packet::Ack(ack) => (ack.reason, ack.reason_string) = (Reason::SUCCESS, None),
        Packet::Connect(connect) if connect.version == Version::V311 => {
            connect.properties = Properties::default();
            if let Some(will) = &mut connect.will {
                (will.delay, will.properties) = (0, MessageProperties::default());
            }
        }
        Packet::Connack(connack) if !v5 => {
            connack.reason = Reason::of_return_code(connack.reason.return_code());
            connack.properties = Properties::default();
        }
        Packet::Publish(publish) if !v5 => publish.properties = MessageProperties::default(),
        Packet::Subscribe(subscribe) if !v5 => {
            subscribe.filters.iter_mut().for_each(|(_, options)| *options = Options::up_to(options.qos));
            subscribe.properties = Properties::default();
        }
        Packet::Suback(suback) if !v5 => {
            let errors = suback.reasons.iter_mut().filter(|reason| reason.is_error());
            errors.for_each(|reason| *reason = Reason::UNSPECIFIED_ERROR);
            suback.properties = Properties::default();
        }
        Packet::Unsuback(suback) if !v5 => **suback = Suback { id: suback.id, ..Suback::default() },
        Packet::Unsubscribe(unsubscribe) if !v5 => unsubscribe.properties = Properties::default(),
        Packet::Disconnect(end) if !v5 => **end = Disconnect::default(),
        _ => {}
    }
    packet
}

/// Either version.
pub fn version(dice: &mut Dice<'_>) -> Version {
    if dice.flip() { Version::V311 } else { Version::V5 }
}

/// Any valid packet, with what only MQTT 5 has in either version.
pub fn packet(dice: &mut Dice<'_>, version: Version) -> Packet {
    let kinds = if version == Version::V5 { 15 } else { 14 };
    match 1 + dice.below(kinds) {
        1 => Packet::Connect(Box::new(connect(dice, version))),
        2 => Packet::Connack(Box::new(connack(dice))),
        3 => Packet::Publish(publish(dice, version)),
        4 => Packet::Ack(ack(dice, AckKind::Puback)),
        5 => Packet::Ack(ack(dice, AckKind::Pubrec)),
        6 => Packet::Ack(ack(dice, AckKind::Pubrel)),
        7 => Packet::Ack(ack(dice, AckKind::Pubcomp)),
        8 => Packet::Subscribe(Box::new(subscribe(dice))),
        9 => Packet::Suback(Box::new(suback(dice))),
        10 => Packet::Unsubscribe(Box::new(unsubscribe(dice))),
        11 => Packet::Unsuback(Box::new(suback(dice))),
        12 => Packet::Pingreq,
        13 => Packet::Pingresp,
        14 => Packet::Disconnect(Box::new(disconnect(dice))),
        _ => Packet::Auth(Box::new(auth(dice))),
    }
}

fn id(dice: &mut Dice<'_>) -> u16 {
    dice.u16().max(1)
}

fn qos(dice: &mut Dice<'_>) -> Qos {
    [Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce][dice.below(3)]
}

fn reason(dice: &mut Dice<'_>) -> Reason {
    Reason(dice.byte())
}

/// Strings of all lengths that differ in how they are written: none, few, more than fit into a small packet, and the most.
fn text(dice: &mut Dice<'_>) -> ByteString {
    const LETTERS: [char; 8] = ['a', '/', ' ', '\u{1}', 'é', '用', '\u{10ffff}', '\u{feff}'];
    match dice.byte() {
        255 => "x".repeat(65_535).into(),
        254 => "y".repeat(200).into(),
        length => {
            let letters = (0..length % 6).map(|_| LETTERS[dice.below(8)]);
            letters.collect::<String>().into()
        }
    }
}

fn filter(dice: &mut Dice<'_>) -> ByteString {
    format!("{}/+/#", text(dice).chars().take(9).collect::<String>()).into()
}

fn topic(dice: &mut Dice<'_>) -> ByteString {
    let text = text(dice);
    if text.is_empty() { "t".into() } else { text }
}

fn bytes(dice: &mut Dice<'_>) -> Bytes {
    match dice.byte() {
        255 => Bytes::from(vec![0xff; 65_535]),
        length => (0..length % 6).map(|_| dice.byte()).collect(),
    }
}

fn user(dice: &mut Dice<'_>) -> Vec<(ByteString, ByteString)> {
    dice.few(|dice| (text(dice), text(dice)))
}

/// Any valid CONNECT.
pub fn connect(dice: &mut Dice<'_>, version: Version) -> Connect {
    let user_name = dice.maybe(text);
    let alone = version == Version::V5 || user_name.is_some();
    Connect {
        version,
        clean_start: dice.flip(),
        keep_alive: dice.u16(),
        client_id: text(dice),
        will: dice.maybe(|dice| Will {
            topic: topic(dice),
            payload: bytes(dice),
            qos: qos(dice),
            retain: dice.flip(),
            delay: dice.maybe(Dice::u32).unwrap_or(0),
            properties: MessageProperties { topic_alias: None, subscription_ids: Vec::new(), ..message(dice) },
        }),
        user: user_name,
        password: dice.maybe(bytes).filter(|_| alone),
        properties: Properties {
            session_expiry: dice.maybe(Dice::u32),
            request_problem_information: dice.maybe(Dice::flip),
            request_response_information: dice.maybe(Dice::flip),
            ..limits(dice)
        },
    }
}

/// What both CONNECT and CONNACK may have.
fn limits(dice: &mut Dice<'_>) -> Properties {
    Properties {
        receive_maximum: dice.maybe(id),
        topic_alias_maximum: dice.maybe(Dice::u16),
        maximum_packet: dice.maybe(|dice| dice.u32().max(1)),
        ..authentication(dice)
    }
}

fn authentication(dice: &mut Dice<'_>) -> Properties {
    let authentication_method = dice.maybe(text);
    let authentication_data = authentication_method.as_ref().and_then(|_| dice.maybe(bytes));
    Properties { authentication_method, authentication_data, user: user(dice), ..Properties::default() }
}

fn connack(dice: &mut Dice<'_>) -> Connack {
    Connack {
        session_present: dice.flip(),
        reason: reason(dice),
        properties: Properties {
            session_expiry: dice.maybe(Dice::u32),
            assigned_client_id: dice.maybe(text),
            server_keep_alive: dice.maybe(Dice::u16),
            response_information: dice.maybe(text),
            server_reference: dice.maybe(text),
            reason_string: dice.maybe(text),
            maximum_qos: dice.maybe(Dice::flip),
            retain_available: dice.maybe(Dice::flip),
            wildcards_available: dice.maybe(Dice::flip),
            subscription_ids_available: dice.maybe(Dice::flip),
            shared_available: dice.maybe(Dice::flip),
            ..limits(dice)
        },
    }
}

/// Any properties of a message.
fn message(dice: &mut Dice<'_>) -> MessageProperties {
    MessageProperties {
        utf8: dice.maybe(Dice::flip),
        expiry: dice.maybe(Dice::u32),
        content_type: dice.maybe(text),
        response_topic: dice.maybe(topic),
        correlation: dice.maybe(bytes),
        topic_alias: dice.maybe(id),
        subscription_ids: dice.few(subscription_id),
        user: user(dice),
    }
}

fn subscription_id(dice: &mut Dice<'_>) -> u32 {
    (dice.u32() >> dice.below(32)).clamp(1, 268_435_455)
}

/// Any valid PUBLISH.
pub fn publish(dice: &mut Dice<'_>, version: Version) -> Publish {
    let (qos, properties) = (qos(dice), message(dice));
    let (sent, by_alias) = (qos != Qos::AtMostOnce, version == Version::V5 && properties.topic_alias.is_some());
    Publish {
        dup: dice.flip() && sent,
        qos,
        retain: dice.flip(),
        topic: if by_alias && dice.flip() { ByteString::new() } else { topic(dice) },
        id: if sent { id(dice) } else { 0 },
        properties,
        payload: bytes(dice),
    }
}

fn ack(dice: &mut Dice<'_>, kind: AckKind) -> Ack {
    Ack { kind, id: id(dice), reason: reason(dice), reason_string: dice.maybe(text) }
}

fn subscribe(dice: &mut Dice<'_>) -> Subscribe {
    let one = |dice: &mut Dice<'_>| {
        let options = Options {
            qos: qos(dice),
            no_local: dice.flip(),
            retain_as_published: dice.flip(),
            retain_handling: [0, 1, 2][dice.below(3)],
        };
        (filter(dice), options)
    };
    let properties =
        Properties { subscription_id: dice.maybe(subscription_id), user: user(dice), ..Properties::default() };
    let mut filters = vec![one(dice)];
    filters.extend(dice.few(one));
    Subscribe { id: id(dice), filters, properties }
}

fn suback(dice: &mut Dice<'_>) -> Suback {
    let properties = Properties { reason_string: dice.maybe(text), user: user(dice), ..Properties::default() };
    Suback { id: id(dice), reasons: dice.few(reason), properties }
}

fn unsubscribe(dice: &mut Dice<'_>) -> Unsubscribe {
    let mut filters = vec![filter(dice)];
    filters.extend(dice.few(filter));
    Unsubscribe { id: id(dice), filters, properties: Properties { user: user(dice), ..Properties::default() } }
}

fn disconnect(dice: &mut Dice<'_>) -> Disconnect {
    let properties = Properties {
        session_expiry: dice.maybe(Dice::u32),
        server_reference: dice.maybe(text),
        reason_string: dice.maybe(text),
        user: user(dice),
        ..Properties::default()
    };
    Disconnect { reason: reason(dice), properties }
}

fn auth(dice: &mut Dice<'_>) -> Disconnect {
    let properties = Properties { reason_string: dice.maybe(text), ..authentication(dice) };
    Disconnect { reason: reason(dice), properties }
}
