//! Requests that wait for their answer. Dropped, they are forgotten.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{BufMut as _, Bytes, BytesMut};
use pointsman_mqtt::client::Inbox;
use pointsman_mqtt::envelope;
use pointsman_mqtt::packet::Publish;
use tokio::sync::oneshot;

/// All of them, by their numbers. A std mutex: it is held for one look into the map, never across an await.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    last: AtomicU64,
    by_number: Mutex<HashMap<u64, (u64, oneshot::Sender<Publish>)>>,
}

/// One request.
#[derive(Debug)]
pub(super) struct Asked {
    /// Its number, and a number that nobody can guess.
    pub(super) id: (u64, u64),
    pub(super) answer: oneshot::Receiver<Publish>,
    waiting: Arc<Waiting>,
}

impl Waiting {
    /// A number that nothing has had, and one that nobody can guess.
    pub(super) fn next_id(&self) -> (u64, u64) {
        (self.last.fetch_add(1, Ordering::Relaxed) + 1, fastrand::u64(..))
    }

    pub(super) fn ask(self: &Arc<Self>) -> Asked {
        let (number, nonce) = self.next_id();
        let (sender, answer) = oneshot::channel();
        self.lock().insert(number, (nonce, sender));
        Asked { id: (number, nonce), answer, waiting: self.clone() }
    }

    /// Hands answers to who waits for them, until the client behind the inbox ends.
    pub(super) async fn take_from(self: Arc<Self>, mut inbox: Inbox) {
        while let Some(incoming) = inbox.next().await {
            let publish = &incoming.publish;
            let id = match &publish.properties.correlation {
                Some(correlation) => read_correlation(correlation),
                None => envelope::read_id(&publish.topic),
            };
            match id.and_then(|id| self.take(id)) {
                // Who has asked may have given up in this moment.
                Some(asked) => drop(asked.send(publish.clone())),
                None => tracing::debug!(topic = &*publish.topic, "an answer that nobody waits for"),
            }
            incoming.acknowledge();
        }
    }

    fn take(&self, (number, nonce): (u64, u64)) -> Option<oneshot::Sender<Publish>> {
        let mut waiting = self.lock();
        if waiting.get(&number)?.0 != nonce {
            return None;
        }
        waiting.remove(&number).map(|(_, sender)| sender)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, (u64, oneshot::Sender<Publish>)>> {
        self.by_number.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Asked {
    pub(super) fn correlation(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(16);
        bytes.put_u64(self.id.0);
        bytes.put_u64(self.id.1);
        bytes.freeze()
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.waiting.lock().remove(&self.id.0);
    }
}

fn read_correlation(bytes: &[u8]) -> Option<(u64, u64)> {
    let (number, nonce) = bytes.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*number), u64::from_be_bytes(nonce.try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_finds_its_request_and_who_gives_up_is_forgotten() {
        let waiting = Arc::<Waiting>::default();
        let (mut first, second) = (waiting.ask(), waiting.ask());
        let id = read_correlation(&first.correlation()).unwrap();
        assert_eq!((id, read_correlation(b"short")), (first.id, None));
        assert!(waiting.take((id.0, id.1 ^ 1)).is_none());
        waiting.take(id).unwrap().send(Publish::default()).unwrap();
        assert_eq!((&mut first.answer).await.unwrap(), Publish::default());
        drop((first, second));
        assert!(waiting.lock().is_empty());
    }
}
