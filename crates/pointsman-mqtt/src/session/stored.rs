//! A message to the peer until it has taken it over: what is this session's own of it. The rest is encoded, and may be shared.

use std::sync::Arc;
use std::time::Instant;

use bytes::BytesMut;

use super::encoded::{Encoded, Encodings};
use super::{Event, Peer, Refusal};
use crate::packet::{Decoder, Packet, Publish, Qos, Version};
use crate::reason::Reason;

#[derive(Debug)]
pub(super) struct Stored<T> {
    pub(super) token: T,
    message: Arc<Encoded>,
    pub(super) qos: Qos,
    /// Whether it says that it may have been sent before.
    dup: bool,
    /// The packet identifier, once there is one.
    id: u16,
    /// The seconds that it was still worth something when it was last looked at.
    left: u32,
}

impl<T> Stored<T> {
    /// `shares`: whether the payload has memory of its own, which may be kept for as long as the message is.
    pub(super) fn new(
        (publish, qos): (&Publish, Qos),
        token: T,
        peer: &Peer,
        (shares, encodings): (bool, &mut Encodings),
        now: Instant,
    ) -> Result<Self, Refusal> {
        let message = encodings.of(publish, (qos, peer.version), shares, now)?;
        check_size(message.len(), peer)?;
        let left = message.seconds().unwrap_or_default();
        Ok(Self { token, message, qos, dup: false, id: 0, left })
    }

    /// Appends the packet.
    pub(super) fn put(&self, out: &mut BytesMut) {
        self.message.put(self.id, self.dup, self.left, out);
    }

    pub(super) fn set_id(&mut self, id: u16) {
        self.id = id;
    }

    pub(super) fn set_dup(&mut self, dup: bool) {
        self.dup = dup;
    }

    pub(super) fn fits(&self, peer: &Peer) -> bool {
        check_size(self.message.len(), peer).is_ok() && self.message.is_expressible()
    }

    /// Lets the packet say how many seconds it is still worth something, at least one; says whether any are left.
    pub(super) fn age(&mut self, now: Instant) -> bool {
        let Some((seconds, waited)) = self.message.seconds().zip(self.message.waited(now)) else { return true };
        let left = seconds.saturating_sub(waited);
        self.left = left.max(seconds.min(1));
        // A message may live for 0 seconds: then it goes out at once.
        left > 0 || (seconds == 0 && waited == 0)
    }

    /// Lowers the quality to what the peer takes.
    pub(super) fn lower(&mut self, highest: Qos) {
        if self.qos > highest {
            self.message = self.message.with_qos(self.qos, highest).into();
            self.qos = highest;
        }
    }

    /// A client may take a session up with another version. Properties are lost in 3.1.1, and do not come back.
    pub(super) fn translate(&mut self, to: Version) {
        self.message = self.message.translated(self.qos, to).into();
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
