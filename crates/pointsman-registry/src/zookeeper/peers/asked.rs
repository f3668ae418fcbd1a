//! What this process has asked, and who has not answered yet: without any I/O.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::peers::{MAX_BYTES, Question};

/// A question as it stands in a node.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Item {
    /// Whom it is for; `None`: for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) to: Option<Arc<str>>,
    pub(super) text: String,
}

/// Questions that have been asked by one node.
#[derive(Debug)]
struct Batch {
    open: Vec<Open>,
    /// Who has still to answer.
    peers: HashSet<Arc<str>>,
    until: Instant,
}

/// A question that may still be answered. Dropped, it is unanswered.
#[derive(Debug)]
struct Open {
    /// Which of the batch it is.
    index: usize,
    to: Option<Arc<str>>,
    reply: oneshot::Sender<Option<String>>,
}

/// Who takes part besides this process, and what it has asked them.
#[derive(Debug, Default)]
pub(super) struct Asked {
    members: HashSet<Arc<str>>,
    batches: BTreeMap<u64, Batch>,
    count: u64,
}

/// Questions that one node may hold.
const ITEMS: usize = 256;

impl Asked {
    pub(super) fn new(members: HashSet<Arc<str>>) -> Self {
        Self { members, ..Self::default() }
    }

    pub(super) fn join(&mut self, member: &str) {
        self.members.insert(member.into());
    }

    /// Nobody waits any more for the answers of one who is gone; the batches that are over by that.
    pub(super) fn leave(&mut self, member: &str) -> Vec<u64> {
        self.members.remove(member);
        let numbers: Vec<u64> = self.batches.keys().copied().collect();
        numbers.into_iter().filter(|number| self.answer(*number, member, Vec::new())).collect()
    }

    /// Takes from what waits as much as one node may hold, and returns the number of the batch and what the node is to say. `None` if there is
    /// nobody to ask.
    pub(super) fn begin(&mut self, waiting: &mut VecDeque<Question>) -> Option<(u64, Vec<u8>)> {
        let (mut items, mut open, mut bytes) = (Vec::new(), Vec::new(), 0);
        let mut until = None;
        while items.len() < ITEMS && bytes < MAX_BYTES {
            let Some(Question { to, text, until: end, reply }) = waiting.pop_front() else { break };
            let is_there = to.as_ref().map_or(!self.members.is_empty(), |to| self.members.contains(to));
            // Who has given up, or whom nobody can answer, is not to be asked for.
            if !is_there || reply.is_closed() {
                let _ = reply.send(None);
                continue;
            }
            until = until.max(Some(end));
            bytes += text.len();
            open.push(Open { index: items.len(), to: to.clone(), reply });
            items.push(Item { to, text });
        }
        let until = until?;
        self.count += 1;
        self.batches.insert(self.count, Batch { open, peers: self.members.clone(), until });
        // Strings under string keys: there is nothing in it that JSON cannot say.
        Some((self.count, serde_json::to_vec(&items).unwrap_or_default()))
    }

    /// Takes in what a peer has answered to a batch, in the order of its questions; what is missing is none. Whether the batch is over.
    pub(super) fn answer(&mut self, number: u64, peer: &str, mut answers: Vec<Option<String>>) -> bool {
        let Some(batch) = self.batches.get_mut(&number) else { return false };
        if !batch.peers.remove(peer) {
            return false;
        }
        let is_last = batch.peers.is_empty();
        batch.open = std::mem::take(&mut batch.open)
            .into_iter()
            .filter_map(|open| {
                let answer = answers.get_mut(open.index).and_then(Option::take);
                let is_over = answer.is_some() || is_last || open.to.as_deref() == Some(peer);
                if !is_over {
                    return Some(open);
                }
                // Who has asked may have given up.
                let _ = open.reply.send(answer);
                None
            })
            .collect();
        let is_over = batch.open.is_empty();
        if is_over {
            self.batches.remove(&number);
        }
        is_over
    }

    /// A batch could not be asked.
    pub(super) fn fail(&mut self, number: u64) {
        self.batches.remove(&number);
    }

    /// When the next batch is to be withdrawn.
    pub(super) fn next_end(&self) -> Option<Instant> {
        self.batches.values().map(|batch| batch.until).min()
    }

    /// Gives up what has not been answered in time.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<u64> {
        let over: Vec<u64> =
            self.batches.iter().filter(|(_, batch)| batch.until <= now).map(|(number, _)| *number).collect();
        for number in &over {
            self.batches.remove(number);
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    type Reply = oneshot::Receiver<Option<String>>;

    fn question(to: Option<&str>, text: &str) -> (Question, Reply) {
        let (reply, answer) = oneshot::channel();
        let until = Instant::now() + Duration::from_secs(1);
        (Question { to: to.map(Into::into), text: text.to_owned(), until, reply }, answer)
    }

    fn asked(members: &[&str]) -> Asked {
        Asked::new(members.iter().map(|member| Arc::from(*member)).collect())
    }

    /// `None`: nothing yet; `Some(Err)`: it is unanswered.
    fn told(reply: &mut Reply) -> Option<Result<Option<String>, ()>> {
        match reply.try_recv() {
            Ok(answer) => Some(Ok(answer)),
            Err(oneshot::error::TryRecvError::Closed) => Some(Err(())),
            Err(oneshot::error::TryRecvError::Empty) => None,
        }
    }

    #[test]
    fn the_first_answer_counts_and_nobody_waits_for_those_who_are_gone() {
        let mut asked = asked(&["a", "b", "c"]);
        let ((to_all, mut all), (to_b, _b), (to_d, mut d)) =
            (question(None, "all"), question(Some("b"), "b"), question(Some("d"), "d"));
        let (number, data) = asked.begin(&mut [to_all, to_d, to_b].into()).unwrap();
        let items: Vec<Item> = serde_json::from_slice(&data).unwrap();
        assert_eq!(items.iter().map(|item| &*item.text).collect::<Vec<_>>(), ["all", "b"]);
        assert_eq!(told(&mut d), Some(Ok(None)), "there is no d");
        assert!(!asked.answer(number, "x", vec![Some("nobody".to_owned())]));
        assert!(!asked.answer(number, "a", vec![None]));
        assert_eq!(told(&mut all), None);
        assert_eq!(asked.leave("c"), [0; 0]);
        assert!(asked.answer(number, "b", vec![Some("yes".to_owned())]));
        assert_eq!(told(&mut all), Some(Ok(Some("yes".to_owned()))));
        assert_eq!(asked.next_end(), None);
    }

    #[test]
    fn a_batch_is_over_when_all_have_nothing_to_say_or_its_time_has_come() {
        let mut asked = asked(&["a", "b"]);
        let ((first, mut reply), (second, mut late)) = (question(None, "1"), question(Some("a"), "2"));
        let (number, _) = asked.begin(&mut [first].into()).unwrap();
        assert!(!asked.answer(number, "a", vec![None]));
        assert_eq!(asked.leave("b"), [number]);
        assert_eq!(told(&mut reply), Some(Ok(None)));
        let (number, _) = asked.begin(&mut [second].into()).unwrap();
        let end = asked.next_end().unwrap();
        assert_eq!(asked.expire(end - Duration::from_millis(1)), [0; 0]);
        assert_eq!(asked.expire(end), [number]);
        assert_eq!(told(&mut late), Some(Err(())));
        assert_eq!(asked.leave("a"), [0; 0]);
        assert!(asked.begin(&mut [question(None, "3").0].into()).is_none(), "there is nobody");
    }

    #[test]
    fn a_node_holds_only_so_much() {
        let mut asked = asked(&["a"]);
        let (mut waiting, _replies): (VecDeque<_>, Vec<_>) =
            (0..3).map(|_| question(None, &"x".repeat(MAX_BYTES / 2))).unzip();
        let sizes = std::iter::from_fn(|| asked.begin(&mut waiting)).map(|(_, data)| data.len() < 2 * MAX_BYTES);
        assert_eq!(sizes.collect::<Vec<_>>(), [true, true]);
    }
}
