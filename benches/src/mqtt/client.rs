//! One client with a blocking socket. Packets are cut out of what was read, and only looked at as far as the measurement
//! needs it.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use bytes::BytesMut;
use pointsman_mqtt::packet::{Connect, Options, Packet, Properties, Publish, Qos, Subscribe, Version, encode};

/// How long the payload of each message is, in bytes.
pub const PAYLOAD: usize = 128;
const CHUNK: usize = 64 << 10;
/// How long a read may find nothing, so that whoever reads can look whether there is anything to wait for.
const PATIENCE: Duration = Duration::from_millis(20);

/// A connection to a broker, in MQTT 5.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
    filled: usize,
    /// What is to be written.
    pub out: BytesMut,
}

/// A packet as it came.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    /// The whole packet.
    pub bytes: &'a [u8],
    body: usize,
}

impl Client {
    /// Connects, with a session that is forgotten afterwards.
    ///
    /// # Errors
    ///
    /// No connection, or no success.
    pub fn connect(address: SocketAddr, id: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut client = Self { stream, buffer: vec![0; 2 * CHUNK], filled: 0, out: BytesMut::new() };
        let properties = Properties { receive_maximum: Some(u16::MAX), ..Properties::default() };
        let connect = Connect { clean_start: true, client_id: id.into(), properties, ..Connect::default() };
        client.send(&Packet::Connect(Box::new(connect)))?;
        client.wait_for(2)?;
        Ok(client)
    }

    /// Subscribes and waits for the confirmation.
    ///
    /// # Errors
    ///
    /// The connection is gone, or says something else.
    pub fn subscribe(&mut self, filter: &str, qos: Qos) -> io::Result<()> {
        let filters = vec![(filter.into(), Options::up_to(qos))];
        let subscribe = Subscribe { id: 1, filters, properties: Properties::default() };
        self.send(&Packet::Subscribe(Box::new(subscribe)))?;
        self.wait_for(9)
    }

    /// Sends one packet.
    ///
    /// # Errors
    ///
    /// The connection is gone.
    pub fn send(&mut self, packet: &Packet) -> io::Result<()> {
        encode(packet, Version::V5, &mut self.out).map_err(io::Error::other)?;
        self.flush()
    }

    /// Writes what is in `out`.
    ///
    /// # Errors
    ///
    /// The connection is gone.
    pub fn flush(&mut self) -> io::Result<()> {
        if self.out.is_empty() {
            return Ok(());
        }
        self.stream.write_all(&self.out)?;
        self.out.clear();
        Ok(())
    }

    /// Reads once, and hands out the packets that are all there; what `take` puts into the second argument is written
    /// afterwards. How many packets that was: none after a while in which nothing came.
    ///
    /// # Errors
    ///
    /// The connection is gone.
    pub fn read(&mut self, mut take: impl FnMut(Frame<'_>, &mut BytesMut)) -> io::Result<usize> {
        let read = match self.stream.read(&mut self.buffer[self.filled..]) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(read) => read,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Ok(0),
            Err(error) => return Err(error),
        };
        // What the broker sends next must not wait for our acknowledgement: the load generator is to show no stall of its own.
        rustix::net::sockopt::set_tcp_quickack(&self.stream, true)?;
        self.filled += read;
        let (mut start, mut count) = (0, 0);
        while let Some(frame) = Frame::first(&self.buffer[start..self.filled]) {
            start += frame.bytes.len();
            count += 1;
            take(frame, &mut self.out);
        }
        self.buffer.copy_within(start..self.filled, 0);
        self.filled -= start;
        self.flush()?;
        Ok(count)
    }

    fn wait_for(&mut self, kind: u8) -> io::Result<()> {
        let mut good = None;
        for _ in 0..500 {
            self.read(|frame, _| {
                // CONNACK has its reason in the second byte of the body, SUBACK at its end.
                let reason = if kind == 2 { frame.body().get(1) } else { frame.body().last() };
                good = Some(frame.kind() == kind && reason.is_some_and(|&reason| reason < 0x80));
            })?;
            match good {
                None => {}
                Some(true) => return Ok(()),
                Some(false) => return Err(io::Error::other("the broker refuses what the load generator asks for")),
            }
        }
        Err(ErrorKind::TimedOut.into())
    }
}

impl<'a> Frame<'a> {
    fn first(bytes: &'a [u8]) -> Option<Self> {
        let (mut length, mut at) = (0, 1);
        loop {
            let byte = *bytes.get(at)?;
            length |= usize::from(byte & 0x7f) << (7 * (at - 1));
            at += 1;
            if byte & 0x80 == 0 {
                break;
            }
        }
        Some(Self { bytes: bytes.get(..at + length)?, body: at })
    }

    /// The type of the packet: 3 for PUBLISH, 4 for PUBACK.
    #[must_use]
    pub fn kind(&self) -> u8 {
        self.bytes[0] >> 4
    }

    /// What follows the fixed header.
    #[must_use]
    pub fn body(&self) -> &'a [u8] {
        &self.bytes[self.body..]
    }

    /// Of a PUBLISH: acknowledges it, if it is of QoS 1.
    pub fn acknowledge(&self, out: &mut BytesMut) {
        if self.bytes[0] & 6 != 0 {
            let body = self.body();
            let id = 2 + usize::from(u16::from_be_bytes([body[0], body[1]]));
            out.extend_from_slice(&[0x40, 2, body[id], body[id + 1]]);
        }
    }
}

/// A packet that is sent again and again, with another identifier each time.
#[derive(Debug, Clone)]
pub(super) struct Template {
    packet: BytesMut,
    id_at: Option<usize>,
    next_id: u16,
}

impl Template {
    /// Identifiers come round; by then they have long been acknowledged.
    const IDS: u16 = 60_000;

    pub(super) fn new(publish: &Publish) -> Self {
        let mut packet = BytesMut::new();
        let id_at = pointsman_mqtt::packet::encode_publish(publish, Version::V5, &mut packet).unwrap_or_default();
        Self { packet, id_at: (publish.qos != Qos::AtMostOnce).then_some(id_at), next_id: 0 }
    }

    /// Appends it `count` times.
    pub(super) fn put(&mut self, count: usize, out: &mut BytesMut) {
        for _ in 0..count {
            if let Some(at) = self.id_at {
                self.next_id = self.next_id % Self::IDS + 1;
                self.packet[at..at + 2].copy_from_slice(&self.next_id.to_be_bytes());
            }
            out.extend_from_slice(&self.packet);
        }
    }

    /// The payload, which is at the end.
    pub(super) fn payload(&mut self) -> &mut [u8] {
        let start = self.packet.len() - PAYLOAD;
        &mut self.packet[start..]
    }
}
