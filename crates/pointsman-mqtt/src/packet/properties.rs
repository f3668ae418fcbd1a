//! The properties of MQTT 5 (section 2.2.2.2).

use bytes::{BufMut, Bytes, BytesMut};
use bytestring::ByteString;

use super::decode::{Malformed, Reader};
use super::encode::{Unencodable, check, check_number, put_bytes, put_text, varint_len};

/// The properties that belong to a message, whether published or a will.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MessageProperties {
    /// Whether the payload is said to be UTF-8.
    pub utf8: Option<bool>,
    /// Seconds after which it is worth nothing.
    pub expiry: Option<u32>,
    /// What the payload is.
    pub content_type: Option<ByteString>,
    /// Where an answer is awaited.
    pub response_topic: Option<ByteString>,
    /// What the answer is to repeat.
    pub correlation: Option<Bytes>,
    /// A number that stands for the topic on this connection.
    pub topic_alias: Option<u16>,
    /// The subscriptions by which it has come.
    pub subscription_ids: Vec<u32>,
    /// Names and values that pass through.
    pub user: Vec<(ByteString, ByteString)>,
}

/// The properties of all other packets.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[allow(missing_docs)] // The names are the specification's.
pub struct Properties {
    pub session_expiry: Option<u32>,
    pub assigned_client_id: Option<ByteString>,
    pub server_keep_alive: Option<u16>,
    pub authentication_method: Option<ByteString>,
    pub authentication_data: Option<Bytes>,
    pub request_problem_information: Option<bool>,
    pub request_response_information: Option<bool>,
    pub response_information: Option<ByteString>,
    pub server_reference: Option<ByteString>,
    pub reason_string: Option<ByteString>,
    pub receive_maximum: Option<u16>,
    pub topic_alias_maximum: Option<u16>,
    pub maximum_qos: Option<bool>,
    pub retain_available: Option<bool>,
    pub maximum_packet: Option<u32>,
    pub wildcards_available: Option<bool>,
    pub subscription_ids_available: Option<bool>,
    pub shared_available: Option<bool>,
    pub subscription_id: Option<u32>,
    pub user: Vec<(ByteString, ByteString)>,
}

/// Which packet the properties are of: each allows others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Of {
    Connect,
    Connack,
    Will,
    Publish,
    Ack,
    Subscribe,
    Suback,
    Unsubscribe,
    Disconnect,
    Auth,
}

impl Of {
    /// Table 2-4 of the specification.
    fn allows(self, id: u32) -> bool {
        use Of::{Ack, Auth, Connack, Connect, Disconnect, Publish, Suback, Subscribe, Will};
        match id {
            1 | 2 | 3 | 8 | 9 => matches!(self, Publish | Will),
            11 => matches!(self, Publish | Subscribe),
            17 => matches!(self, Connect | Connack | Disconnect),
            18 | 19 | 26 | 36 | 37 | 40 | 41 | 42 => self == Connack,
            21 | 22 => matches!(self, Connect | Connack | Auth),
            23 | 25 => self == Connect,
            24 => self == Will,
            28 => matches!(self, Connack | Disconnect),
            31 => matches!(self, Connack | Ack | Suback | Disconnect | Auth),
            33 | 34 | 39 => matches!(self, Connect | Connack),
            35 => self == Publish,
            38 => true,
            _ => false,
        }
    }
}

fn once<T>(place: &mut Option<T>, value: T) -> Result<(), Malformed> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(Malformed::protocol("a property is there twice")),
    }
}

/// Reads all properties of a packet and hands each, by its number, to `take`, which reads the value.
pub(crate) fn read(
    reader: &mut Reader,
    of: Of,
    mut take: impl FnMut(u32, &mut Reader) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    let length = reader.varint()? as usize;
    let mut properties = Reader::new(reader.take(length)?);
    while properties.has_remaining() {
        let id = properties.varint()?;
        if !of.allows(id) {
            return Err(Malformed::protocol("a property does not belong into this packet"));
        }
        take(id, &mut properties)?;
    }
    Ok(())
}

impl MessageProperties {
    /// Those of a PUBLISH; of a will with `delay`.
    pub(crate) fn read(reader: &mut Reader, mut delay: Option<&mut u32>) -> Result<Self, Malformed> {
        let mut it = Self::default();
        let of = if delay.is_some() { Of::Will } else { Of::Publish };
        let mut seen_delay = None;
        read(reader, of, |id, reader| match id {
            // A format that there is not is none. Mosquitto passes it on (2.0.11).
            1 => once(&mut it.utf8, reader.u8()? == 1),
            2 => once(&mut it.expiry, reader.u32()?),
            3 => once(&mut it.content_type, reader.text()?),
            // Whether it is a topic is for who answers to see. Mosquitto passes on what is none (up to 2.0.19), and whoever
            // closed the connection for that would get it again and again.
            8 => once(&mut it.response_topic, reader.text()?),
            9 => once(&mut it.correlation, reader.bytes()?),
            11 => {
                it.subscription_ids.push(reader.nonzero_varint()?);
                Ok(())
            }
            24 => once(&mut seen_delay, reader.u32()?),
            35 => once(&mut it.topic_alias, reader.nonzero_u16("a topic alias is 0")?),
            _ => {
                it.user.push((reader.text()?, reader.text()?));
                Ok(())
            }
        })?;
        if let (Some(place), Some(seen)) = (delay.as_mut(), seen_delay) {
            **place = seen;
        }
        Ok(it)
    }

    /// Whether each can be expressed.
    pub(crate) fn check(&self) -> Result<(), Unencodable> {
        let texts = [&self.content_type, &self.response_topic];
        texts.into_iter().flatten().try_for_each(|text| check(text.len()))?;
        check(self.correlation.as_ref().map_or(0, Bytes::len))?;
        self.subscription_ids.iter().try_for_each(|&id| check_number(id))?;
        check_user(&self.user)
    }

    /// How many bytes they take, without their length.
    pub(crate) fn len(&self) -> usize {
        let text = |text: &Option<ByteString>| text.as_ref().map_or(0, |text| 3 + text.len());
        let mut length = self.utf8.map_or(0, |_| 2) + self.expiry.map_or(0, |_| 5) + self.topic_alias.map_or(0, |_| 3);
        length += text(&self.content_type) + text(&self.response_topic);
        length += self.correlation.as_ref().map_or(0, |bytes| 3 + bytes.len());
        length += self.subscription_ids.iter().map(|&id| 1 + varint_len(id as usize)).sum::<usize>();
        length + self.user.iter().map(|(name, value)| 5 + name.len() + value.len()).sum::<usize>()
    }

    pub(crate) fn put(&self, out: &mut impl BufMut) {
        if let Some(utf8) = self.utf8 {
            out.put_slice(&[1, u8::from(utf8)]);
        }
        if let Some(expiry) = self.expiry {
            out.put_u8(2);
            out.put_u32(expiry);
        }
        if let Some(text) = &self.content_type {
            out.put_u8(3);
            put_text(out, text);
        }
        if let Some(text) = &self.response_topic {
            out.put_u8(8);
            put_text(out, text);
        }
        if let Some(bytes) = &self.correlation {
            out.put_u8(9);
            put_bytes(out, bytes);
        }
        for &id in &self.subscription_ids {
            out.put_u8(11);
            super::encode::put_varint(out, id as usize);
        }
        if let Some(alias) = self.topic_alias {
            out.put_u8(35);
            out.put_u16(alias);
        }
        put_user(out, &self.user);
    }
}

impl Properties {
    pub(crate) fn read(reader: &mut Reader, of: Of) -> Result<Self, Malformed> {
        let mut it = Self::default();
        read(reader, of, |id, reader| it.take(id, reader))?;
        if it.authentication_data.is_some() && it.authentication_method.is_none() {
            return Err(Malformed::protocol("authentication data without a method"));
        }
        Ok(it)
    }

    fn take(&mut self, id: u32, reader: &mut Reader) -> Result<(), Malformed> {
        match id {
            11 => once(&mut self.subscription_id, reader.nonzero_varint()?),
            17 => once(&mut self.session_expiry, reader.u32()?),
            18 => once(&mut self.assigned_client_id, reader.text()?),
            19 => once(&mut self.server_keep_alive, reader.u16()?),
            21 => once(&mut self.authentication_method, reader.text()?),
            22 => once(&mut self.authentication_data, reader.bytes()?),
            23 => once(&mut self.request_problem_information, reader.bool()?),
            25 => once(&mut self.request_response_information, reader.bool()?),
            26 => once(&mut self.response_information, reader.text()?),
            28 => once(&mut self.server_reference, reader.text()?),
            31 => once(&mut self.reason_string, reader.text()?),
            33 => once(&mut self.receive_maximum, reader.nonzero_u16("receive maximum is 0")?),
            34 => once(&mut self.topic_alias_maximum, reader.u16()?),
            36 => once(&mut self.maximum_qos, reader.bool()?),
            37 => once(&mut self.retain_available, reader.bool()?),
            39 => match reader.u32()? {
                0 => Err(Malformed::protocol("maximum packet size is 0")),
                size => once(&mut self.maximum_packet, size),
            },
            40 => once(&mut self.wildcards_available, reader.bool()?),
            41 => once(&mut self.subscription_ids_available, reader.bool()?),
            42 => once(&mut self.shared_available, reader.bool()?),
            _ => {
                self.user.push((reader.text()?, reader.text()?));
                Ok(())
            }
        }
    }

    /// Whether each can be expressed.
    pub(crate) fn check(&self) -> Result<(), Unencodable> {
        self.texts().into_iter().filter_map(|(_, text)| text.as_ref()).try_for_each(|text| check(text.len()))?;
        check(self.authentication_data.as_ref().map_or(0, Bytes::len))?;
        check_number(self.subscription_id.unwrap_or(0))?;
        check_user(&self.user)
    }

    fn texts(&self) -> [(u8, &Option<ByteString>); 5] {
        [
            (18, &self.assigned_client_id),
            (21, &self.authentication_method),
            (26, &self.response_information),
            (28, &self.server_reference),
            (31, &self.reason_string),
        ]
    }

    /// Writes them, with their length before them.
    pub(crate) fn put(&self, out: &mut BytesMut) {
        let mut inner = BytesMut::new();
        self.put_numbers(&mut inner);
        for (id, text) in self.texts() {
            if let Some(text) = text {
                inner.put_u8(id);
                put_text(&mut inner, text);
            }
        }
        if let Some(bytes) = &self.authentication_data {
            inner.put_u8(22);
            put_bytes(&mut inner, bytes);
        }
        put_user(&mut inner, &self.user);
        super::encode::put_varint(out, inner.len());
        out.extend_from_slice(&inner);
    }

    fn put_numbers(&self, out: &mut BytesMut) {
        if let Some(id) = self.subscription_id {
            out.put_u8(11);
            super::encode::put_varint(out, id as usize);
        }
        for (id, number) in [(17, self.session_expiry), (39, self.maximum_packet)] {
            if let Some(number) = number {
                out.put_u8(id);
                out.put_u32(number);
            }
        }
        for (id, number) in [(19, self.server_keep_alive), (33, self.receive_maximum), (34, self.topic_alias_maximum)] {
            if let Some(number) = number {
                out.put_u8(id);
                out.put_u16(number);
            }
        }
        let flags = [
            (23, self.request_problem_information),
            (25, self.request_response_information),
            (36, self.maximum_qos),
            (37, self.retain_available),
            (40, self.wildcards_available),
            (41, self.subscription_ids_available),
            (42, self.shared_available),
        ];
        for (id, flag) in flags {
            if let Some(flag) = flag {
                out.put_slice(&[id, u8::from(flag)]);
            }
        }
    }
}

fn check_user(user: &[(ByteString, ByteString)]) -> Result<(), Unencodable> {
    user.iter().try_for_each(|(name, value)| check(name.len()).and_then(|()| check(value.len())))
}

fn put_user(out: &mut impl BufMut, user: &[(ByteString, ByteString)]) {
    for (name, value) in user {
        out.put_u8(38);
        put_text(out, name);
        put_text(out, value);
    }
}
