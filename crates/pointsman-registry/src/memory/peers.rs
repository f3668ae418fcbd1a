//! How those who share a registry in memory ask each other.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;

use super::lock;
use crate::peers::{Answer, Part, Question};

/// Who takes part.
#[derive(Default)]
pub(super) struct Members {
    by_id: Mutex<HashMap<Arc<str>, Arc<dyn Answer>>>,
}

/// One of them, until it is dropped.
struct Member<'a> {
    members: &'a Members,
    id: Arc<str>,
}

impl Drop for Member<'_> {
    fn drop(&mut self) {
        lock(&self.members.by_id).remove(&self.id);
    }
}

impl Members {
    /// Lets a process ask and be asked, until it is to take part no more.
    pub(super) async fn exchange(&self, part: Part) {
        let Part { id, answer, mut questions } = part;
        lock(&self.by_id).insert(id.clone(), answer);
        let member = Member { members: self, id };
        let mut asking = FuturesUnordered::new();
        loop {
            tokio::select! {
                question = questions.recv() => match question {
                    Some(question) => asking.push(self.ask(question, &member.id)),
                    None => return,
                },
                Some(()) = asking.next() => {}
            }
        }
    }

    async fn ask(&self, question: Question, by: &Arc<str>) {
        let Question { to, text, until, mut reply } = question;
        let is_asked = |id: &Arc<str>| id != by && to.as_ref().is_none_or(|to| to == id);
        let asked: Vec<_> =
            lock(&self.by_id).iter().filter(|(id, _)| is_asked(id)).map(|(_, answer)| answer.clone()).collect();
        let mut answers: FuturesUnordered<_> = asked.iter().map(|peer| peer.answer(&text)).collect();
        let first = async {
            while let Some(answer) = answers.next().await {
                if answer.is_some() {
                    return answer;
                }
            }
            None
        };
        tokio::select! {
            answer = tokio::time::timeout_at(until, first) => if let Ok(answer) = answer {
                // Whoever has asked may have gone.
                let _ = reply.send(answer);
            },
            () = reply.closed() => {}
        }
    }
}
