//! How processes ask each other through ZooKeeper. All nodes are ephemeral, so that nothing is left of who has died:
//!
//! | node under `/pointsman/<prefix>/peers` | of | says |
//! |---|---|---|
//! | `members/<id>` | each | who takes part |
//! | `questions/<id>-<number>` | who asks | questions, as many as have gathered while the last ones were written |
//! | `answers/<id>-<number>-<other>` | who answers | the answers to them, in their order |
//!
//! Everybody watches the folder. Who asks deletes the question once it has what it wants, or has waited for long enough; what is not there any
//! more is not answered, and who has answered deletes the answer then.

mod asked;

use std::collections::{HashMap, HashSet, VecDeque};
use std::pin::Pin;
use std::sync::Arc;

use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use zookeeper_client::{AddWatchMode, CreateMode, Error as ZkError, EventType, MultiWriteError, WatchedEvent};

use self::asked::{Asked, Item};
use super::fault::Fault;
use super::layout::Layout;
use super::options;
use super::reads::events_of;
use super::session::{Link, Session, left, up};
use crate::peers::{Answer, PATIENCE, Part, Question};
use crate::url::Acl;

/// Lets a process ask and be asked, until it is to take part no more, or the registry is closed.
pub(super) async fn exchange(layout: &Layout, acl: Acl, mut link: watch::Receiver<Link>, part: Part) {
    let Part { id, answer, mut questions } = part;
    loop {
        let connecting = up(&mut link);
        let Some(Some(session)) = unasked(&mut questions, connecting).await else { return };
        let exchange = Exchange { id: id.clone(), answer: &*answer, folder: &layout.peers, acl, session: &session };
        let outcome = tokio::select! {
            outcome = exchange.run(&mut questions) => outcome,
            () = left(&mut link, &session) => continue,
        };
        let Err(fault) = outcome else { return };
        tracing::warn!(%fault, "this process and others cannot ask each other through the registry");
        let pause = async {
            tokio::select! {
                () = tokio::time::sleep(if fault.is_refusal() { session.timeout() * 8 } else { session.timeout() / 4 }) => {}
                () = left(&mut link, &session) => {}
            }
        };
        if unasked(&mut questions, pause).await.is_none() {
            return;
        }
    }
}

/// Leaves unanswered whatever is asked while something else is waited for. `None` when nobody asks any more.
async fn unasked<T>(questions: &mut mpsc::UnboundedReceiver<Question>, wait: impl Future<Output = T>) -> Option<T> {
    tokio::pin!(wait);
    loop {
        tokio::select! {
            done = &mut wait => return Some(done),
            question = questions.recv() => drop(question?),
        }
    }
}

/// One connection.
struct Exchange<'a> {
    id: Arc<str>,
    answer: &'a dyn Answer,
    folder: &'a str,
    acl: Acl,
    session: &'a Session,
}

/// What is under way, and what it came to.
enum Done {
    /// A batch of questions is written, or not.
    Asked(u64, Result<(), Fault>),
    /// What a peer has said to a batch.
    Heard(u64, Arc<str>, Vec<Option<String>>),
    /// A question of another, by its name; whether the answer is written.
    Answered(Arc<str>, bool),
    Nothing,
}

type Work<'a> = FuturesUnordered<Pin<Box<dyn Future<Output = Done> + Send + 'a>>>;

/// A question of another.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Theirs {
    /// It is being answered.
    Open,
    Answered,
    /// It was withdrawn while it was being answered.
    Withdrawn,
}

impl Exchange<'_> {
    /// Until nobody here asks any more.
    async fn run(&self, questions: &mut mpsc::UnboundedReceiver<Question>) -> Result<(), Fault> {
        for folder in ["members", "questions", "answers"] {
            let (path, persistent) = (format!("{}/{folder}", self.folder), options(CreateMode::Persistent, self.acl));
            self.session.run(|| format!("create {path}"), self.session.client.mkdir(&path, &persistent)).await?;
        }
        let watching = self.session.client.watch(self.folder, AddWatchMode::PersistentRecursive);
        let watcher = self.session.run(|| format!("watch {}", self.folder), watching).await?;
        let mut events = std::pin::pin!(events_of(watcher));
        self.join().await?;
        let mut members: HashSet<Arc<str>> = self.list("members").await?.into_iter().collect();
        members.remove(&self.id);
        let (mut asked, mut work, mut theirs) = (Asked::new(members), Work::new(), HashMap::new());
        let open = self.list("questions").await?;
        self.clear_answers(&open).await?;
        for question in open {
            self.take_question(question, &mut theirs, &work);
        }
        let (mut waiting, mut is_asking) = (VecDeque::new(), false);
        loop {
            while !is_asking && !waiting.is_empty() {
                if let Some((number, data)) = asked.begin(&mut waiting) {
                    is_asking = true;
                    work.push(self.ask(number, data).boxed());
                }
            }
            let next_end = async {
                match asked.next_end() {
                    Some(end) => tokio::time::sleep_until(end).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                question = questions.recv() => match question {
                    Some(question) => waiting.push_back(question),
                    None => return self.leave().await,
                },
                event = events.next() => {
                    let event = event.ok_or_else(|| Fault::new("watch", ZkError::NoWatcher))?;
                    self.take_event(&event, &mut asked, &mut theirs, &work)?;
                }
                Some(done) = work.next() => match done {
                    Done::Asked(number, result) => {
                        is_asking = false;
                        if let Err(fault) = result {
                            tracing::debug!(%fault, "peers are not asked");
                            asked.fail(number);
                        }
                    }
                    Done::Heard(number, peer, answers) => if asked.answer(number, &peer, answers) {
                        self.withdraw(number, &work);
                    },
                    Done::Answered(question, is_written) => {
                        if is_written && theirs.get(&question) == Some(&Theirs::Open) {
                            theirs.insert(question, Theirs::Answered);
                        } else {
                            theirs.remove(&question);
                            if is_written {
                                self.delete_answer(&question, &work);
                            }
                        }
                    }
                    Done::Nothing => {}
                },
                () = next_end => for number in asked.expire(Instant::now()) {
                    self.withdraw(number, &work);
                },
            }
        }
    }

    fn take_event<'a>(
        &'a self,
        event: &WatchedEvent,
        asked: &mut Asked,
        theirs: &mut HashMap<Arc<str>, Theirs>,
        work: &Work<'a>,
    ) -> Result<(), Fault> {
        let path = event.path.strip_prefix(self.folder).and_then(|path| path.strip_prefix('/'));
        let Some((folder, name)) = path.and_then(|path| path.split_once('/')) else { return Ok(()) };
        match (folder, event.event_type) {
            ("members", EventType::NodeCreated) if *name != *self.id => asked.join(name),
            // Of a session before this one, perhaps.
            ("members", EventType::NodeDeleted) if *name == *self.id => {
                return Err(Fault::new(format!("take part as {name}"), ZkError::NoNode));
            }
            ("members", EventType::NodeDeleted) => {
                for number in asked.leave(name) {
                    self.withdraw(number, work);
                }
            }
            ("questions", EventType::NodeCreated) => self.take_question(name.into(), theirs, work),
            ("questions", EventType::NodeDeleted) => match theirs.get_mut(name) {
                Some(theirs) if *theirs == Theirs::Open => *theirs = Theirs::Withdrawn,
                Some(_) => {
                    theirs.remove(name);
                    self.delete_answer(name, work);
                }
                None => {}
            },
            ("answers", EventType::NodeCreated) => {
                let own = name.strip_prefix(&*self.id).and_then(|rest| rest.strip_prefix('-'));
                let Some((number, peer)) = own.and_then(|own| own.split_once('-')) else { return Ok(()) };
                if let Ok(number) = number.parse() {
                    work.push(self.hear(number, peer.into(), name.into()).boxed());
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Lets others know of this process.
    async fn join(&self) -> Result<(), Fault> {
        let (path, ephemeral) = (self.path("members", &self.id), options(CreateMode::Ephemeral, self.acl));
        let client = &self.session.client;
        match self.session.run(|| format!("create {path}"), client.create(&path, b"", &ephemeral)).await {
            Err(fault) if fault.error == ZkError::NodeExists => {}
            result => return result.map(drop),
        }
        // Of this session, or of one before it, which is about to end.
        let stat = self.session.run(|| format!("look at {path}"), client.check_stat(&path)).await?;
        if stat.is_some_and(|stat| stat.ephemeral_owner == self.session.id()) {
            return Ok(());
        }
        self.delete(&path).await?;
        self.session.run(|| format!("create {path}"), client.create(&path, b"", &ephemeral)).await.map(drop)
    }

    async fn leave(&self) -> Result<(), Fault> {
        self.delete(&self.path("members", &self.id)).await
    }

    /// Deletes the answers to questions that were withdrawn while this process was not connected.
    async fn clear_answers(&self, open: &[Arc<str>]) -> Result<(), Fault> {
        for name in self.list("answers").await? {
            let own = name.strip_suffix(&*self.id).and_then(|rest| rest.strip_suffix('-'));
            if own.is_some_and(|question| !open.iter().any(|open| **open == *question)) {
                self.delete(&self.path("answers", &name)).await?;
            }
        }
        Ok(())
    }

    /// Begins to answer a question, unless it is an own one, or is being answered.
    fn take_question<'a>(&'a self, question: Arc<str>, theirs: &mut HashMap<Arc<str>, Theirs>, work: &Work<'a>) {
        let is_own = question.strip_prefix(&*self.id).is_some_and(|rest| rest.starts_with('-'));
        if !is_own && !theirs.contains_key(&question) {
            theirs.insert(question.clone(), Theirs::Open);
            work.push(self.answer(question).boxed());
        }
    }

    async fn ask(&self, number: u64, data: Vec<u8>) -> Done {
        let (path, ephemeral) = (self.question(number), options(CreateMode::Ephemeral, self.acl));
        let creating = self.session.client.create(&path, &data, &ephemeral);
        Done::Asked(number, self.session.run(|| format!("create {path}"), creating).await.map(drop))
    }

    async fn hear(&self, number: u64, peer: Arc<str>, name: Arc<str>) -> Done {
        let answers = self.read(&self.path("answers", &name)).await.and_then(|data| serde_json::from_slice(&data).ok());
        Done::Heard(number, peer, answers.unwrap_or_default())
    }

    /// Answers what another asks, in the time that it waits.
    async fn answer(&self, question: Arc<str>) -> Done {
        let answering = async {
            let data = self.read(&self.path("questions", &question)).await?;
            let items: Vec<Item> = serde_json::from_slice(&data).ok()?;
            let is_asked = |item: &Item| item.to.as_ref().is_none_or(|to| *to == self.id);
            if !items.iter().any(is_asked) {
                return None;
            }
            let answers =
                join_all(items.iter().map(|item| async move {
                    if is_asked(item) { self.answer.answer(&item.text).await } else { None }
                }));
            self.write_answer(&question, &answers.await).await
        };
        let is_written = tokio::time::timeout(PATIENCE, answering).await.ok().flatten().is_some();
        Done::Answered(question, is_written)
    }

    /// `None`: the question has been withdrawn.
    async fn write_answer(&self, question: &str, answers: &[Option<String>]) -> Option<()> {
        let ephemeral = options(CreateMode::Ephemeral, self.acl);
        // Strings: there is nothing in it that JSON cannot say.
        let data = serde_json::to_vec(answers).unwrap_or_default();
        let mut writer = self.session.client.new_multi_writer();
        writer.add_check_version(&self.path("questions", question), 0).ok()?;
        writer.add_create(&self.answer_to(question), &data, &ephemeral).ok()?;
        match tokio::time::timeout(self.session.timeout(), writer.commit()).await.ok()? {
            Ok(_) => Some(()),
            Err(MultiWriteError::OperationFailed { index: 0, .. }) => None,
            Err(error) => {
                tracing::debug!(%error, question, "a peer is not answered");
                None
            }
        }
    }

    /// Deletes a question of this process, after the last answer or without.
    fn withdraw<'a>(&'a self, number: u64, work: &Work<'a>) {
        work.push(self.try_delete(self.question(number)).boxed());
    }

    fn delete_answer<'a>(&'a self, question: &str, work: &Work<'a>) {
        work.push(self.try_delete(self.answer_to(question)).boxed());
    }

    async fn try_delete(&self, path: String) -> Done {
        if let Err(fault) = self.delete(&path).await {
            // It goes with the session.
            tracing::debug!(%fault, "left behind");
        }
        Done::Nothing
    }

    async fn delete(&self, path: &str) -> Result<(), Fault> {
        match self.session.run(|| format!("delete {path}"), self.session.client.delete(path, None)).await {
            Err(fault) if fault.error != ZkError::NoNode => Err(fault),
            _ => Ok(()),
        }
    }

    async fn list(&self, folder: &str) -> Result<Vec<Arc<str>>, Fault> {
        let path = format!("{}/{folder}", self.folder);
        let names = self.session.run(|| format!("list {path}"), self.session.client.list_children(&path)).await?;
        Ok(names.into_iter().map(Into::into).collect())
    }

    async fn read(&self, path: &str) -> Option<Vec<u8>> {
        let reading = self.session.client.get_data(path);
        // What is gone was withdrawn, or taken for answered.
        Some(self.session.run(|| format!("read {path}"), reading).await.ok()?.0)
    }

    fn path(&self, folder: &str, name: &str) -> String {
        format!("{}/{folder}/{name}", self.folder)
    }

    fn question(&self, number: u64) -> String {
        format!("{}/questions/{}-{number}", self.folder, self.id)
    }

    fn answer_to(&self, question: &str) -> String {
        format!("{}/answers/{question}-{}", self.folder, self.id)
    }
}
