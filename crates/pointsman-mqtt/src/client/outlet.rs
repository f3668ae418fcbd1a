//! Where messages are handed out. There is room for a few, and room is made sure of before a message is read; only while an answer of
//! the broker is awaited, which may come behind messages, some more are held here.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::SendError;

use super::Incoming;

/// How much is held while an answer of the broker is awaited, in bytes.
const AHEAD_BYTES: usize = 16 << 20;

type Room = mpsc::OwnedPermit<Incoming>;
type Waiting = Pin<Box<dyn Future<Output = Result<Room, SendError<()>>> + Send>>;

pub(super) struct Outlet {
    /// `None` when nobody takes them any more.
    sender: Option<mpsc::Sender<Incoming>>,
    room: Option<Room>,
    waiting: Option<Waiting>,
    /// What was read although there was no room.
    ahead: VecDeque<Incoming>,
    ahead_bytes: usize,
}

impl Outlet {
    pub(super) fn new(sender: mpsc::Sender<Incoming>) -> Self {
        Self { sender: Some(sender), room: None, waiting: None, ahead: VecDeque::new(), ahead_bytes: 0 }
    }

    /// Ready when a message can be put and be handed out at once.
    pub(super) fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.poll_permit(context));
            let Some(next) = self.ahead.pop_front() else { return Poll::Ready(()) };
            self.ahead_bytes -= size(&next);
            self.hand_out(next);
        }
    }

    /// Whether a message may be put although there is no room.
    pub(super) fn may_read_ahead(&self) -> bool {
        self.ahead_bytes < AHEAD_BYTES
    }

    fn poll_permit(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.room.is_some() {
            return Poll::Ready(());
        }
        let Some(sender) = &self.sender else { return Poll::Ready(()) };
        if self.waiting.is_none() {
            // The usual case needs no memory for waiting.
            if let Ok(room) = sender.clone().try_reserve_owned() {
                self.room = Some(room);
                return Poll::Ready(());
            }
        }
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(sender.clone().reserve_owned()));
        let room = ready!(waiting.as_mut().poll(context));
        self.waiting = None;
        match room {
            Ok(room) => self.room = Some(room),
            Err(_) => self.sender = None,
        }
        Poll::Ready(())
    }

    /// Hands a message out, or holds it. Where nobody takes messages any more it is acknowledged and thrown away.
    pub(super) fn put(&mut self, incoming: Incoming) {
        if self.is_wanted() && (self.room.is_none() || !self.ahead.is_empty()) {
            self.ahead_bytes += size(&incoming);
            self.ahead.push_back(incoming);
        } else {
            self.hand_out(incoming);
        }
    }

    fn hand_out(&mut self, incoming: Incoming) {
        match self.room.take() {
            Some(room) if self.is_wanted() => drop(room.send(incoming)),
            _ => incoming.acknowledge(),
        }
    }

    fn is_wanted(&self) -> bool {
        self.sender.as_ref().is_some_and(|sender| !sender.is_closed())
    }
}

fn size(incoming: &Incoming) -> usize {
    incoming.publish.payload.len() + incoming.publish.topic.len()
}
