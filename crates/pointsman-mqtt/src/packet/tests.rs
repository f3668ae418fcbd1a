use bytes::BytesMut;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::fuzzing::Dice;
use crate::fuzzing::packets::{normal, packet, read, read_write_read, version};

fn decoded(version: Version, bytes: &[u8]) -> Result<Option<Packet>, Malformed> {
    Decoder::new(version, usize::MAX).decode(&mut BytesMut::from(bytes))
}

/// The fixed header, and what follows it.
fn framed(first: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    put_varint(&mut bytes, body.len());
    bytes.extend_from_slice(body);
    bytes
}

fn refusal(version: Version, first: u8, body: &[u8]) -> Reason {
    match decoded(version, &framed(first, body)) {
        Err(malformed) => malformed.reason,
        Ok(packet) => panic!("{first:#x} {body:x?} is read as {packet:?}"),
    }
}

fn joined(pieces: &[&[u8]]) -> Vec<u8> {
    pieces.concat()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn what_is_written_is_read_however_it_is_cut(bytes in vec(any::<u8>(), 0..200)) {
        let mut dice = Dice::new(&bytes);
        let spoken = version(&mut dice);
        let packet = packet(&mut dice, spoken);
        let mut out = BytesMut::from(&b"before"[..]);
        encode(&packet, spoken, &mut out).unwrap();
        let written = out.split_off(6).freeze();
        prop_assert_eq!(&out[..], b"before");
        let expected = (vec![(normal(packet, spoken), spoken)], None);
        prop_assert_eq!(read(&written, written.len(), spoken), expected.clone());
        prop_assert_eq!(read(&written, 1, spoken), expected.clone());
        // All two-part splits, of long packets the first and the last ones.
        let places = (0..written.len()).filter(|place| place.min(&(written.len() - place)) < &300);
        for place in places {
            let mut decoder = Decoder::new(spoken, written.len());
            let mut buffer = BytesMut::from(&written[..place]);
            prop_assert_eq!(decoder.decode(&mut buffer).unwrap(), None);
            buffer.extend_from_slice(&written[place..]);
            let packet = decoder.decode(&mut buffer).unwrap();
            prop_assert_eq!(packet.as_ref(), Some(&expected.0[0].0));
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in vec(any::<u8>(), 0..80)) {
        read_write_read(&bytes);
    }

    /// Valid packets with a few bytes changed get further than noise does.
    #[test]
    fn damaged_packets_are_read_or_refused(
        bytes in vec(any::<u8>(), 0..200),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        piece in any::<u8>(),
    ) {
        let mut dice = Dice::new(&bytes);
        let spoken = version(&mut dice);
        let mut out = BytesMut::from(&[u8::from(spoken == Version::V311), piece][..]);
        encode(&packet(&mut dice, spoken), spoken, &mut out).unwrap();
        for (place, byte) in damage {
            let place = place.index(out.len());
            out[place] = byte;
        }
        read_write_read(&out);
    }
}

#[test]
fn nothing_is_reserved_for_what_is_only_announced() {
    let announced = [0x30, 0xff, 0xff, 0xff, 0x7f];
    let mut buffer = BytesMut::from(&announced[..]);
    let before = buffer.capacity();
    assert_eq!(Decoder::new(Version::V5, usize::MAX).decode(&mut buffer), Ok(None));
    assert_eq!((buffer.capacity(), buffer.len()), (before, announced.len()));
}

#[test]
fn what_is_too_large_is_refused_with_its_header() {
    for (header, size) in [(&[0x30, 0xff, 0xff, 0xff, 0x7f][..], MAX_REMAINING + 5), (&[0x30, 0x80, 0x01], 131)] {
        let refused = Decoder::new(Version::V5, size - 1).decode(&mut BytesMut::from(header));
        assert_eq!(refused.unwrap_err().reason, Reason::PACKET_TOO_LARGE);
        assert_eq!(Decoder::new(Version::V5, size).decode(&mut BytesMut::from(header)), Ok(None));
        let cut = &header[..header.len() - 1];
        assert_eq!(Decoder::new(Version::V5, 2).decode(&mut BytesMut::from(cut)), Ok(None));
    }
}

#[test]
fn a_length_has_four_bytes_at_most() {
    for version in [Version::V311, Version::V5] {
        for bytes in [&[0x30, 0x80, 0x80, 0x80, 0x80][..], &[0x30, 0xff, 0xff, 0xff, 0xff, 0x7f]] {
            assert_eq!(decoded(version, bytes).unwrap_err().reason, Reason::MALFORMED_PACKET);
        }
    }
    // So has the length of properties, and a subscription identifier.
    let publish = b"\0\x01t";
    assert_eq!(refusal(Version::V5, 0x30, &joined(&[publish, &[0x80; 4]])), Reason::MALFORMED_PACKET);
    let id = [6, 11, 0xff, 0xff, 0xff, 0xff, 0x7f];
    assert_eq!(refusal(Version::V5, 0x30, &joined(&[publish, &id])), Reason::MALFORMED_PACKET);
}

#[test]
fn reserved_flags_and_types() {
    for version in [Version::V311, Version::V5] {
        for kind in (0..16_u8).filter(|kind| *kind != 3) {
            let right = if matches!(kind, 6 | 8 | 10) { 2 } else { 0 };
            for flags in (0..16).filter(|flags| *flags != right || kind == 0) {
                assert_eq!(refusal(version, kind << 4 | flags, &[0, 1]), Reason::MALFORMED_PACKET, "{kind} {flags}");
            }
        }
    }
    assert_eq!(refusal(Version::V311, 0xf0, &[]), Reason::MALFORMED_PACKET);
}

#[test]
fn publish_flags_and_identifiers() {
    for version in [Version::V311, Version::V5] {
        let none: &[u8] = if version == Version::V5 { &[0] } else { &[] };
        let body = joined(&[b"\0\x01t\0\x01", none]);
        assert_eq!(refusal(version, 0x36, &body), Reason::MALFORMED_PACKET, "QoS 3");
        assert_eq!(refusal(version, 0x3e, &body), Reason::MALFORMED_PACKET, "QoS 3, a duplicate");
        assert_eq!(refusal(version, 0x38, &body), Reason::MALFORMED_PACKET, "a duplicate with QoS 0");
        let body = joined(&[b"\0\x01t\0\0", none]);
        assert_eq!(refusal(version, 0x32, &body), Reason::PROTOCOL_ERROR, "identifier 0");
        assert_eq!(refusal(version, 0x34, &body), Reason::PROTOCOL_ERROR, "identifier 0");
        for first in [0x40, 0x50, 0x62, 0x70, 0x82, 0x90, 0xa2, 0xb0] {
            assert_eq!(refusal(version, first, &[0, 0, 0, 0]), Reason::PROTOCOL_ERROR, "{first:#x} of 0");
        }
    }
}

#[test]
fn topics_are_checked() {
    for version in [Version::V311, Version::V5] {
        let none: &[u8] = if version == Version::V5 { &[0] } else { &[] };
        for topic in [&b"\0\x03a/+"[..], b"\0\x01#", b"\0\x02a#", b"\0\0"] {
            assert_eq!(refusal(version, 0x30, &joined(&[topic, none])), Reason::TOPIC_NAME_INVALID);
        }
        for text in [&b"\0\x01\0"[..], b"\0\x01\xff", b"\0\x03\xed\xa0\x80", b"\0\x02\xc0\x80", b"\0\x05a", b"\0"] {
            let reason = refusal(version, 0x30, &joined(&[text, none]));
            assert_eq!(reason, Reason::MALFORMED_PACKET, "{text:x?}");
        }
    }
    // With an alias it may be empty. A response topic is the receiver's to judge: who closed the connection for it would get
    // the message again.
    assert!(decoded(Version::V5, &framed(0x30, b"\0\0\x03\x23\0\x01")).is_ok());
    assert_eq!(refusal(Version::V5, 0x30, b"\0\0\x03\x23\0\0"), Reason::PROTOCOL_ERROR);
    assert!(decoded(Version::V5, &framed(0x30, b"\0\x01t\x04\x08\0\x01+")).is_ok());
}

/// A packet's first byte, what is before its properties and after them, and which it may have.
type Form<'a> = (u8, &'a [u8], &'a [u8], &'a [u8]);

/// Every property in every packet that has some: exactly those of table 2-4 are taken, and most only once.
#[test]
fn properties_where_they_belong() {
    let value = |id: u8| -> &[u8] {
        match id {
            1 | 23 | 25 | 36 | 37 | 40 | 41 | 42 => b"\x01",
            2 | 17 | 24 | 39 => b"\0\0\0\x01",
            11 => b"\x01",
            19 | 33 | 34 | 35 => b"\0\x01",
            38 => b"\0\x01a\0\x01b",
            _ => b"\0\x01a",
        }
    };
    let connect = b"\0\x04MQTT\x05\x04\0\0";
    let packets: [Form<'_>; 14] = [
        (0x10, connect, b"\0\0\0\0\x01t\0\0", &[17, 21, 23, 25, 33, 34, 38, 39]),
        (0x20, b"\0\0", b"", &[17, 18, 19, 21, 26, 28, 31, 33, 34, 36, 37, 38, 39, 40, 41, 42]),
        (0x30, b"\0\x01t", b"", &[1, 2, 3, 8, 9, 11, 35, 38]),
        (0x40, b"\0\x01\0", b"", &[31, 38]),
        (0x50, b"\0\x01\0", b"", &[31, 38]),
        (0x62, b"\0\x01\0", b"", &[31, 38]),
        (0x70, b"\0\x01\0", b"", &[31, 38]),
        (0x82, b"\0\x01", b"\0\x01f\0", &[11, 38]),
        (0x90, b"\0\x01", b"\0", &[31, 38]),
        (0xa2, b"\0\x01", b"\0\x01f", &[38]),
        (0xb0, b"\0\x01", b"\0", &[31, 38]),
        (0xe0, b"\0", b"", &[17, 28, 31, 38]),
        (0xf0, b"\0", b"", &[21, 31, 38]),
        // Those of a will.
        (0x10, b"\0\x04MQTT\x05\x04\0\0\0\0\0", b"\0\x01t\0\0", &[1, 2, 3, 8, 9, 24, 38]),
    ];
    for (first, before, after, allowed) in packets {
        // Authentication data need a method before they are looked at.
        for id in (0..=43).filter(|id| *id != 22) {
            let one = joined(&[&[id], value(id)]);
            let with = |properties: &[u8]| joined(&[before, &[properties.len() as u8], properties, after]);
            if !allowed.contains(&id) {
                assert_eq!(refusal(Version::V5, first, &with(&one)), Reason::PROTOCOL_ERROR, "{first:#x} {id}");
                continue;
            }
            let read = decoded(Version::V5, &framed(first, &with(&one)));
            assert!(matches!(read, Ok(Some(_))), "{first:#x} {id}: {read:?}");
            let twice = framed(first, &with(&one.repeat(2)));
            let repeatable = id == 38 || (id == 11 && first == 0x30);
            let reason = decoded(Version::V5, &twice).err().map(|malformed| malformed.reason);
            assert_eq!(reason, (!repeatable).then_some(Reason::PROTOCOL_ERROR), "{first:#x} {id}");
        }
    }
}

#[test]
fn property_values_are_checked() {
    for (properties, reason) in [
        (&b"\x03\x21\0\0"[..], Reason::PROTOCOL_ERROR),  // Receive maximum 0.
        (b"\x05\x27\0\0\0\0", Reason::PROTOCOL_ERROR),   // Maximum packet size 0.
        (b"\x02\x24\x02", Reason::PROTOCOL_ERROR),       // Maximum QoS 2.
        (b"\x04\x16\0\x01a", Reason::PROTOCOL_ERROR),    // Authentication data without a method.
        (b"\x03\x22\0", Reason::MALFORMED_PACKET),       // Longer than the packet.
        (b"\x02\x22\0", Reason::MALFORMED_PACKET),       // The value longer than the properties.
        (b"\x04\x1f\0\x01\0", Reason::MALFORMED_PACKET), // A NUL.
    ] {
        assert_eq!(refusal(Version::V5, 0x20, &joined(&[b"\0\0", properties])), reason, "{properties:x?}");
    }
    assert_eq!(refusal(Version::V5, 0x82, b"\0\x01\x02\x0b\0\0\x01f\0"), Reason::PROTOCOL_ERROR);
}

#[test]
fn connects_that_contradict_themselves() {
    let start = |name: &[u8], level: u8, flags: u8| {
        let none: &[u8] = if level == 5 { &[0] } else { &[] };
        joined(&[&[0, name.len() as u8], name, &[level, flags, 0, 0], none])
    };
    let id = b"\0\x01c";
    for level in [4, 5] {
        let good = joined(&[&start(b"MQTT", level, 2), id]);
        assert!(matches!(decoded(Version::V5, &framed(0x10, &good)), Ok(Some(Packet::Connect(_)))));
        for (flags, why) in [(3, "reserved"), (8, "will QoS"), (0x10, "will QoS"), (0x20, "will retain")] {
            let body = joined(&[&start(b"MQTT", level, flags), id]);
            assert_eq!(refusal(Version::V5, 0x10, &body), Reason::MALFORMED_PACKET, "{why}");
        }
        let none: &[u8] = if level == 5 { &[0] } else { &[] };
        let will = joined(&[&start(b"MQTT", level, 0x1c), id, none, b"\0\x01t\0\0"]);
        assert_eq!(refusal(Version::V5, 0x10, &will), Reason::MALFORMED_PACKET, "will QoS 3");
        let will = joined(&[&start(b"MQTT", level, 4), id, none, b"\0\x01+\0\0"]);
        assert_eq!(refusal(Version::V5, 0x10, &will), Reason::TOPIC_NAME_INVALID, "will to a filter");
        let left = joined(&[&good, b"\0"]);
        assert_eq!(refusal(Version::V5, 0x10, &left), Reason::MALFORMED_PACKET, "bytes left");
        let early = joined(&[&start(b"MQTT", level, 0x80), id]);
        assert_eq!(refusal(Version::V5, 0x10, &early), Reason::MALFORMED_PACKET, "no user");
    }
    let password = |level| framed(0x10, &joined(&[&start(b"MQTT", level, 0x40), id, b"\0\x01p"]));
    assert_eq!(decoded(Version::V5, &password(4)).unwrap_err().reason, Reason::MALFORMED_PACKET);
    assert!(decoded(Version::V5, &password(5)).is_ok());
    for (name, level) in [(&b"MQIsdp"[..], 3), (b"MQTT", 3), (b"MQTT", 6), (b"MQTT", 0x84)] {
        let body = joined(&[&start(name, level, 2), id]);
        assert_eq!(refusal(Version::V5, 0x10, &body), Reason::UNSUPPORTED_VERSION, "{level}");
    }
    assert_eq!(refusal(Version::V5, 0x10, &start(b"HTTP", 4, 2)), Reason::PROTOCOL_ERROR);
}

#[test]
fn bytes_after_the_packet_and_packets_that_end_early() {
    for version in [Version::V311, Version::V5] {
        let v5 = version == Version::V5;
        for (first, body) in [(0xc0, &[0][..]), (0xd0, &[0]), (0x40, &[0, 1, 0, 0, 0]), (0xe0, &[0, 0, 0])] {
            assert_eq!(refusal(version, first, body), Reason::MALFORMED_PACKET, "{first:#x}");
        }
        for first in [0x10, 0x20, 0x30, 0x40, 0x50, 0x62, 0x70, 0x82, 0x90, 0xa2, 0xb0] {
            for body in [&[][..], &[0]] {
                assert_eq!(refusal(version, first, body), Reason::MALFORMED_PACKET, "{first:#x} {body:x?}");
            }
        }
        assert_eq!(refusal(version, 0x20, &[2, 0]), Reason::PROTOCOL_ERROR, "reserved flags of CONNACK");
        let none: &[u8] = if v5 { &[0, 1, 0] } else { &[0, 1] };
        assert_eq!(refusal(version, 0x82, none), Reason::PROTOCOL_ERROR, "SUBSCRIBE of nothing");
        assert_eq!(refusal(version, 0xa2, none), Reason::PROTOCOL_ERROR, "UNSUBSCRIBE of nothing");
        let reserved: &[u8] = if v5 { &[3, 0x30, 0x40, 0x80] } else { &[3, 4, 8, 0x10, 0x20, 0x40, 0x80] };
        for &options in reserved {
            let body = joined(&[none, b"\0\x01f", &[options]]);
            assert_eq!(refusal(version, 0x82, &body), Reason::MALFORMED_PACKET, "options {options:#x}");
        }
        assert_eq!(refusal(version, 0x82, &joined(&[none, b"\0\x01f"])), Reason::MALFORMED_PACKET);
    }
    assert_eq!(refusal(Version::V311, 0xb0, &[0, 1, 0]), Reason::MALFORMED_PACKET, "UNSUBACK of 3.1.1");
    assert_eq!(refusal(Version::V311, 0xe0, &[0]), Reason::MALFORMED_PACKET, "DISCONNECT of 3.1.1");
}

/// Each packet with a string in each place, which is made by `text`.
fn with_strings(text: &ByteString) -> Vec<Packet> {
    let bytes = text.clone().into_bytes();
    let message = [
        MessageProperties { content_type: Some(text.clone()), ..MessageProperties::default() },
        MessageProperties { response_topic: Some(text.clone()), ..MessageProperties::default() },
        MessageProperties { correlation: Some(bytes.clone()), ..MessageProperties::default() },
        MessageProperties { user: vec![(text.clone(), "".into())], ..MessageProperties::default() },
        MessageProperties { user: vec![("".into(), text.clone())], ..MessageProperties::default() },
    ];
    let user = Properties { user: vec![("a".into(), text.clone())], ..Properties::default() };
    let reason = Properties { reason_string: Some(text.clone()), ..Properties::default() };
    let method = Some(text.clone());
    let auth = Properties { authentication_method: method, authentication_data: Some(bytes.clone()), ..user.clone() };
    let id = Properties { assigned_client_id: Some(text.clone()), ..Properties::default() };
    let will = |topic: &ByteString, properties| Will { topic: topic.clone(), properties, ..Will::default() };
    let topic = ByteString::from_static("t");
    let connects = [
        Connect { client_id: text.clone(), ..Connect::default() },
        Connect { user: Some(text.clone()), ..Connect::default() },
        Connect { password: Some(bytes.clone()), ..Connect::default() },
        Connect { properties: auth.clone(), ..Connect::default() },
        Connect { will: Some(will(text, MessageProperties::default())), ..Connect::default() },
        Connect { will: Some(Will { payload: bytes, ..will(&topic, message[0].clone()) }), ..Connect::default() },
        Connect { will: Some(will(&topic, message[3].clone())), ..Connect::default() },
    ];
    let filters = vec![(text.clone(), Options::default())];
    let one = vec![(topic.clone(), Options::default())];
    let mut packets: Vec<_> = connects.into_iter().map(|connect| Packet::Connect(Box::new(connect))).collect();
    let publishes =
        message.into_iter().map(|properties| Publish { topic: topic.clone(), properties, ..Publish::default() });
    packets.extend(publishes.map(Packet::Publish));
    packets.extend([
        Packet::Publish(Publish { topic: text.clone(), ..Publish::default() }),
        Packet::Connack(Box::new(Connack { properties: id, ..Connack::default() })),
        Packet::Connack(Box::new(Connack { properties: reason.clone(), ..Connack::default() })),
        Packet::Subscribe(Box::new(Subscribe { id: 1, filters, properties: Properties::default() })),
        Packet::Subscribe(Box::new(Subscribe { id: 1, filters: one, properties: user.clone() })),
        Packet::Suback(Box::new(Suback { id: 1, properties: reason.clone(), ..Suback::default() })),
        Packet::Unsuback(Box::new(Suback { id: 1, properties: user.clone(), ..Suback::default() })),
        Packet::Unsubscribe(Box::new(Unsubscribe { id: 1, filters: vec![text.clone()], ..Unsubscribe::default() })),
        Packet::Unsubscribe(Box::new(Unsubscribe { id: 1, filters: vec![topic], properties: user })),
        Packet::Disconnect(Box::new(Disconnect { properties: reason, ..Disconnect::default() })),
        Packet::Auth(Box::new(Disconnect { properties: auth, ..Disconnect::default() })),
    ]);
    packets
}

#[test]
fn strings_have_65535_bytes_at_most() {
    for packet in with_strings(&"x".repeat(65_535).into()) {
        let mut out = BytesMut::new();
        encode(&packet, Version::V5, &mut out).unwrap();
        assert_eq!(decoded(Version::V5, &out), Ok(Some(packet)));
    }
    for packet in with_strings(&"x".repeat(65_536).into()) {
        let mut out = BytesMut::from(&b"before"[..]);
        let kind = format!("{packet:.40?}");
        assert_eq!(encode(&packet, Version::V5, &mut out), Err(Unencodable::Text), "{}", &kind[..40]);
        assert_eq!(&out[..], b"before");
    }
}

#[test]
fn what_cannot_be_expressed_leaves_the_output_alone() {
    let mut out = BytesMut::from(&b"before"[..]);
    // Zeroed memory that nobody touches is not there.
    let large = |length: usize| Publish { topic: "t".into(), payload: vec![0; length].into(), ..Publish::default() };
    assert_eq!(encode(&Packet::Publish(large(MAX_REMAINING - 2)), Version::V311, &mut out), Err(Unencodable::Packet));
    assert_eq!(encode(&Packet::Publish(large(MAX_REMAINING - 3)), Version::V5, &mut out), Err(Unencodable::Packet));
    let properties = MessageProperties { subscription_ids: vec![1 << 28], ..MessageProperties::default() };
    let publish = Packet::Publish(Publish { properties, ..large(0) });
    assert_eq!(encode(&publish, Version::V5, &mut out), Err(Unencodable::Number));
    let properties = Properties { subscription_id: Some(1 << 28), ..Properties::default() };
    let subscribe = Subscribe { id: 1, filters: vec![("f".into(), Options::default())], properties };
    assert_eq!(encode(&Packet::Subscribe(Box::new(subscribe)), Version::V5, &mut out), Err(Unencodable::Number));
    assert_eq!(&out[..], b"before");
    assert_eq!(encode(&publish, Version::V311, &mut out), Ok(()));
}

#[test]
fn lengths_of_one_to_four_bytes() {
    for (length, bytes) in [
        (0, &[0][..]),
        (127, &[0x7f]),
        (128, &[0x80, 1]),
        (16_383, &[0xff, 0x7f]),
        (16_384, &[0x80, 0x80, 1]),
        (2_097_151, &[0xff, 0xff, 0x7f]),
        (2_097_152, &[0x80, 0x80, 0x80, 1]),
        (MAX_REMAINING, &[0xff, 0xff, 0xff, 0x7f]),
    ] {
        let mut out = BytesMut::new();
        put_varint(&mut out, length);
        assert_eq!((&out[..], varint_len(length)), (bytes, bytes.len()));
    }
}

#[test]
fn the_place_of_the_identifier_is_told() {
    for (topic, payload) in [(1, 0), (1, 200), (200, 20_000)] {
        for version in [Version::V311, Version::V5] {
            let (topic, payload) = ("t".repeat(topic).into(), vec![7; payload].into());
            let publish = Publish { topic, payload, id: 0xabcd, qos: Qos::AtLeastOnce, ..Publish::default() };
            let mut out = BytesMut::from(&b"before"[..]);
            let place = 6 + encode_publish(&publish, version, &mut out).unwrap();
            assert_eq!(out[place..place + 2], [0xab, 0xcd]);
        }
    }
}

#[test]
fn return_codes_of_3_1_1_mean_the_same_both_ways() {
    for code in 0..=5 {
        assert_eq!(Reason::of_return_code(code).return_code(), code);
    }
}

#[test]
fn a_connect_sets_the_version() {
    let mut decoder = Decoder::new(Version::V5, usize::MAX);
    let connect = Connect { version: Version::V311, ..Connect::default() };
    let mut bytes = BytesMut::new();
    encode(&Packet::Connect(Box::new(connect)), Version::V5, &mut bytes).unwrap();
    assert!(decoder.decode(&mut bytes).unwrap().is_some());
    assert_eq!(decoder.version(), Version::V311);
}
