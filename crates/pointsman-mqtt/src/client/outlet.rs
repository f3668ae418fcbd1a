//! Where messages are handed out: there is room for a few, and room is made sure of before a message is read.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::SendError;

use super::Incoming;

type Room = mpsc::OwnedPermit<Incoming>;
type Waiting = Pin<Box<dyn Future<Output = Result<Room, SendError<()>>> + Send>>;

pub(super) struct Outlet {
    /// `None` when nobody takes them any more.
    sender: Option<mpsc::Sender<Incoming>>,
    room: Option<Room>,
    waiting: Option<Waiting>,
}

impl Outlet {
    pub(super) fn new(sender: mpsc::Sender<Incoming>) -> Self {
        Self { sender: Some(sender), room: None, waiting: None }
    }

    /// Ready when a message can be put.
    pub(super) fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<()> {
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

    /// Hands a message out; `false` when nobody takes it.
    pub(super) fn put(&mut self, incoming: Incoming) -> bool {
        let taken = self.sender.as_ref().is_some_and(|sender| !sender.is_closed());
        match self.room.take() {
            Some(room) if taken => {
                room.send(incoming);
                true
            }
            _ => false,
        }
    }
}
