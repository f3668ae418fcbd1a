//! A client made of the codec alone: what it sends and expects is written in the test.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use pointsman_mqtt::packet::{
    Ack, AckKind, Connack, Connect, Decoder, Options, Packet, Properties, Publish, Qos, Subscribe, Version, encode,
};
use pointsman_mqtt::reason::Reason;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Longer than anything may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

pub(crate) struct Client {
    pub(crate) stream: Box<dyn Io>,
    pub(crate) version: Version,
    decoder: Decoder,
    input: BytesMut,
}

impl Client {
    pub(crate) fn over(stream: impl Io + 'static, version: Version) -> Self {
        Self { stream: Box::new(stream), version, decoder: Decoder::new(version, usize::MAX), input: BytesMut::new() }
    }

    pub(crate) async fn tcp(address: SocketAddr, version: Version) -> Self {
        let socket = TcpStream::connect(address).await.unwrap();
        socket.set_nodelay(true).unwrap();
        Self::over(socket, version)
    }

    /// Connects, and is admitted.
    pub(crate) async fn connect(address: SocketAddr, connect: Connect) -> (Self, Connack) {
        let mut client = Self::tcp(address, connect.version).await;
        let connack = client.greet(connect).await;
        assert_eq!(connack.reason, Reason::SUCCESS);
        (client, connack)
    }

    /// A client of version 5 with a clean start.
    pub(crate) async fn new(address: SocketAddr, id: &str) -> Self {
        Self::connect(address, hello(id)).await.0
    }

    pub(crate) async fn local(stream: DuplexStream, id: &str) -> Self {
        let mut client = Self::over(stream, Version::V5);
        assert_eq!(client.greet(hello(id)).await.reason, Reason::SUCCESS);
        client
    }

    pub(crate) async fn greet(&mut self, connect: Connect) -> Connack {
        self.send(&Packet::Connect(Box::new(connect))).await;
        match self.packet().await {
            Packet::Connack(connack) => *connack,
            other => panic!("{other:?} instead of CONNACK"),
        }
    }

    pub(crate) async fn send(&mut self, packet: &Packet) {
        let mut out = BytesMut::new();
        encode(packet, self.version, &mut out).unwrap();
        self.write(&out).await;
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        timeout(PATIENCE, self.stream.write_all(bytes)).await.expect("written in time").unwrap();
    }

    /// The next packet; `None` when the broker has closed the connection.
    pub(crate) async fn next(&mut self) -> Option<Packet> {
        loop {
            if let Some(packet) = self.decoder.decode(&mut self.input).unwrap() {
                return Some(packet);
            }
            let read = timeout(PATIENCE, self.stream.read_buf(&mut self.input)).await.expect("a packet in time");
            if read.unwrap_or(0) == 0 {
                assert!(self.input.is_empty(), "half a packet");
                return None;
            }
        }
    }

    pub(crate) async fn packet(&mut self) -> Packet {
        self.next().await.expect("a packet, not the end")
    }

    pub(crate) async fn message(&mut self) -> Publish {
        match self.packet().await {
            Packet::Publish(publish) => publish,
            other => panic!("{other:?} instead of PUBLISH"),
        }
    }

    pub(crate) async fn ack(&mut self) -> (AckKind, u16, Reason) {
        match self.packet().await {
            Packet::Ack(ack) => (ack.kind, ack.id, ack.reason),
            other => panic!("{other:?} instead of an acknowledgement"),
        }
    }

    /// Why the broker ends the connection; `None` if it does not say.
    pub(crate) async fn farewell(&mut self) -> Option<Reason> {
        let mut reason = None;
        while let Some(packet) = self.next().await {
            if let Packet::Disconnect(end) = packet {
                reason = Some(end.reason);
            }
        }
        reason
    }

    pub(crate) async fn subscribe(&mut self, filter: &str, qos: Qos) {
        self.subscribe_with(filter, Options::up_to(qos)).await;
    }

    pub(crate) async fn subscribe_with(&mut self, filter: &str, options: Options) {
        let filters = vec![(filter.to_owned().into(), options)];
        let subscribe = Subscribe { id: 1000, filters, properties: Properties::default() };
        self.send(&Packet::Subscribe(Box::new(subscribe))).await;
        let Packet::Suback(suback) = self.packet().await else { panic!("no SUBACK") };
        assert_eq!(suback.reasons, [Reason(options.qos.number())]);
    }

    pub(crate) async fn publish(&mut self, topic: &str, payload: &str, qos: Qos, id: u16) {
        self.send(&Packet::Publish(message(topic, payload, qos, id))).await;
    }

    pub(crate) async fn acknowledge(&mut self, kind: AckKind, id: u16) {
        self.send(&Packet::Ack(Ack { kind, id, reason: Reason::SUCCESS, reason_string: None })).await;
    }

    /// As [`Client::settle`], but messages may have come.
    pub(crate) async fn settle_after_messages(&mut self) {
        self.send(&Packet::Pingreq).await;
        while self.packet().await != Packet::Pingresp {}
    }

    /// Everything that was sent before has been taken in when this returns; nothing else has come.
    pub(crate) async fn settle(&mut self) {
        self.send(&Packet::Pingreq).await;
        assert_eq!(self.packet().await, Packet::Pingresp);
    }
}

/// Waits until it is so.
pub(crate) async fn until(mut so: impl FnMut() -> bool) {
    let wait = async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, wait).await.expect("it came to be in time");
}

pub(crate) fn hello(id: &str) -> Connect {
    Connect { clean_start: true, client_id: id.to_owned().into(), ..Connect::default() }
}

/// Keeps its session for an hour.
pub(crate) fn staying(id: &str, version: Version) -> Connect {
    let properties = Properties { session_expiry: Some(3600), ..Properties::default() };
    Connect { version, clean_start: false, properties, ..hello(id) }
}

pub(crate) fn message(topic: &str, payload: &str, qos: Qos, id: u16) -> Publish {
    let payload = Bytes::copy_from_slice(payload.as_bytes());
    Publish { topic: topic.to_owned().into(), payload, qos, id, ..Publish::default() }
}
