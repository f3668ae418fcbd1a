//! The core without sockets: packets in, packets out, the time in the test's hand.

mod acknowledgement;
mod chaos;
mod memory;
mod routing;
mod runtime;
mod sessions;
mod slices;

use std::collections::{HashMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use bytestring::ByteString;

use super::core::Core;
use super::limits::Limits;
use super::pressure::Gate;
use super::slots::Key;
use super::wake::Wake;
use super::{CLIENT_ID_PROPERTY, Options};
use crate::packet::{
    Ack, AckKind, Connack, Connect, Decoder, Disconnect, Options as Subscription, Packet, Properties, Publish, Qos,
    Suback, Subscribe, Unsubscribe, Version, Will,
};
use crate::reason::Reason;

/// A broker, and what its clients have read.
struct Bench {
    core: Core,
    now: Instant,
    versions: HashMap<Key, Version>,
}

/// A connection of a client.
type Link = Key;

fn options() -> Options {
    Options::new(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
}

impl Bench {
    fn new() -> Self {
        Self::with(&options())
    }

    fn with(options: &Options) -> Self {
        Self { core: Core::new(Limits::new(options)), now: Instant::now(), versions: HashMap::new() }
    }

    fn open(&mut self, local: bool) -> Link {
        self.core.open("test".into(), local, Arc::new(Wake::default()))
    }

    fn give(&mut self, link: Link, packet: Packet) {
        if let Packet::Connect(connect) = &packet {
            self.versions.insert(link, connect.version);
        }
        let connects = matches!(packet, Packet::Connect(_));
        self.core.receive(link, &mut VecDeque::from([packet]), self.now);
        if connects {
            // What was sent on an earlier connection of the client has been given already.
            self.core.connections.keys().into_iter().for_each(|earlier| self.core.drained(earlier, self.now));
        }
    }

    /// What the broker has written to a connection since.
    fn read(&mut self, link: Link) -> Vec<Packet> {
        let mut out = BytesMut::new();
        loop {
            let mut more = BytesMut::new();
            self.core.take_output(link, &mut more, self.now);
            if more.is_empty() {
                break;
            }
            out.unsplit(more);
        }
        let mut decoder = Decoder::new(self.versions[&link], usize::MAX);
        let mut packets = Vec::new();
        while let Some(packet) = decoder.decode(&mut out).unwrap() {
            packets.push(packet);
        }
        assert!(out.is_empty(), "half a packet");
        packets
    }

    /// The messages that the broker has written to a connection since.
    fn messages(&mut self, link: Link) -> Vec<Publish> {
        let message = |packet| if let Packet::Publish(publish) = packet { Some(publish) } else { None };
        self.read(link).into_iter().filter_map(message).collect()
    }

    /// The payloads of those.
    fn payloads(&mut self, link: Link) -> Vec<String> {
        let text = |publish: Publish| String::from_utf8(publish.payload.to_vec()).unwrap();
        self.messages(link).into_iter().map(text).collect()
    }

    /// The acknowledgements that the broker has written to a connection since.
    fn acks(&mut self, link: Link) -> Vec<(AckKind, u16, Reason)> {
        let ack = |packet| if let Packet::Ack(ack) = packet { Some((ack.kind, ack.id, ack.reason)) } else { None };
        self.read(link).into_iter().filter_map(ack).collect()
    }

    fn connack(&mut self, link: Link) -> Connack {
        let packets = self.read(link);
        let [Packet::Connack(connack), ..] = &packets[..] else { panic!("{packets:?}") };
        (**connack).clone()
    }

    fn connect_as(&mut self, connect: Connect) -> (Link, Connack) {
        let link = self.open(false);
        self.give(link, Packet::Connect(Box::new(connect)));
        let connack = self.connack(link);
        (link, connack)
    }

    /// A client of version 5 with a clean start, whose session ends with its connection.
    fn client(&mut self, id: &'static str) -> Link {
        self.connect_as(hello(id)).0
    }

    fn local(&mut self, id: &'static str) -> Link {
        let link = self.open(true);
        self.give(link, Packet::Connect(Box::new(hello(id))));
        assert_eq!(self.connack(link).reason, Reason::SUCCESS);
        link
    }

    fn subscribe(&mut self, link: Link, filter: &'static str, qos: Qos) {
        self.subscribe_with(link, filter, Subscription::up_to(qos), None);
    }

    fn subscribe_with(&mut self, link: Link, filter: &'static str, options: Subscription, id: Option<u32>) -> Reason {
        let properties = Properties { subscription_id: id, ..Properties::default() };
        let subscribe = Subscribe { id: 77, filters: vec![(filter.into(), options)], properties };
        // What follows the SUBACK is left to be read.
        let mut before = BytesMut::new();
        self.core.take_output(link, &mut before, self.now);
        assert!(before.is_empty(), "unread before SUBSCRIBE");
        self.give(link, Packet::Subscribe(Box::new(subscribe)));
        let mut out = BytesMut::new();
        self.core.take_output(link, &mut out, self.now);
        let packet = Decoder::new(self.versions[&link], usize::MAX).decode(&mut out).unwrap();
        let Some(Packet::Suback(suback)) = packet else { panic!("{packet:?}") };
        let Suback { id: 77, reasons, .. } = &*suback else { panic!("{suback:?}") };
        let client = self.core.connections.get(link).unwrap().client.unwrap();
        self.core.clients.get_mut(client).unwrap().session.output().unsplit(out);
        reasons[0]
    }

    fn publish(&mut self, link: Link, topic: &'static str, payload: &'static str, qos: Qos, id: u16) {
        self.give(link, Packet::Publish(message(topic, payload, qos, id)));
    }

    fn ack(&mut self, link: Link, kind: AckKind, id: u16) {
        self.refuse(link, kind, id, Reason::SUCCESS);
    }

    fn refuse(&mut self, link: Link, kind: AckKind, id: u16, reason: Reason) {
        self.give(link, Packet::Ack(Ack { kind, id, reason, reason_string: None }));
    }

    fn lose(&mut self, link: Link) {
        self.core.lost(link, "test", self.now);
    }

    fn gate(&mut self, link: Link) -> Gate {
        self.core.status(link).gate
    }

    fn is_closing(&mut self, link: Link) -> bool {
        self.core.status(link).closing
    }

    fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        self.core.tick(self.now);
        while self.core.next_due(self.now).is_some_and(|due| due <= self.now) {
            self.core.tick(self.now);
        }
    }
}

fn hello(id: &'static str) -> Connect {
    Connect { clean_start: true, client_id: id.into(), ..Connect::default() }
}

/// Keeps its session for so many seconds.
fn staying(id: &'static str, seconds: u32) -> Connect {
    let properties = Properties { session_expiry: Some(seconds), ..Properties::default() };
    Connect { clean_start: false, properties, ..hello(id) }
}

fn old(id: &'static str, clean_start: bool) -> Connect {
    Connect { version: Version::V311, clean_start, ..hello(id) }
}

fn message(topic: &'static str, payload: &'static str, qos: Qos, id: u16) -> Publish {
    Publish { topic: topic.into(), payload: Bytes::from_static(payload.as_bytes()), qos, id, ..Publish::default() }
}

const QOS0: Qos = Qos::AtMostOnce;
const QOS1: Qos = Qos::AtLeastOnce;
const QOS2: Qos = Qos::ExactlyOnce;
