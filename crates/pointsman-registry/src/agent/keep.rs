//! Keeps one instance registered, by a request to an agent that stays open, and a lease that is renewed.
//!
//! The answer to a renewal says how long it holds, counted from when it was asked for: that is how long a role lasts here,
//! whatever happens. The agent gives the role away later than that, because it counts from when it was asked.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::{Method, StatusCode};
use pointsman_core::{Instance, Role};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::connect::{Agents, Answer, Fault, Stream};
use super::wire::{EndJson, RoleJson};
use super::{Backoff, instance_path, segment, sse};
use crate::Error;
use crate::lease::Lease;
use crate::registration::{Command, Departure, End, Reply, Report, Task};

/// Keeps the task's instance registered until its commands end.
pub(super) async fn keep(agents: Arc<Agents>, ttl: Duration, patience: Duration, task: Task) -> End {
    let Task { instance, holder, commands, report } = task;
    let holder = holder.map_or_else(|| format!("{:032x}", fastrand::u128(..)), |holder| holder.to_string());
    let keeper = Keeper {
        path: instance_path(&instance.service, &instance.code),
        holder,
        place: agents.current(),
        agents,
        ttl,
        accepted: instance.clone(),
        instance,
        commands,
        report,
        updates: Vec::new(),
        lease: Lease::new(),
        role: Role::Detached,
        left: None,
        heard: Instant::now(),
    };
    keeper.run(patience).await
}

struct Keeper {
    agents: Arc<Agents>,
    ttl: Duration,
    path: String,
    /// Who we are, whichever agent we come by.
    holder: String,
    /// The agent that is used.
    place: usize,
    /// What is to be registered.
    instance: Instance,
    /// What the agent has taken last.
    accepted: Instance,
    commands: mpsc::UnboundedReceiver<Command>,
    report: Report,
    /// Who waits for an update to be written, the oldest first.
    updates: Vec<Reply>,
    lease: Lease,
    /// What the agent has said last.
    role: Role,
    /// Of an agent that does not answer: were it closed before there is another, the agent might learn of that, if of nothing
    /// else, and deregister. And at the end, until the agent has been asked to deregister.
    left: Option<Stream>,
    /// When the role was heard of by an event, or given up: what was asked before may be answered with an older one.
    heard: Instant,
}

/// Why a stream has come to its end.
enum Out {
    /// Try again, at another agent first.
    Lost(String),
    /// The agent has given it up: register again.
    Gone(String),
    /// The agent says no.
    Refused(Error),
    /// The same holder is registered elsewhere: that is for good.
    Replaced,
    /// The registration is to end.
    Ending(Ending),
}

/// How a registration is to end; with the reply if somebody waits for it.
type Ending = (Departure, Option<Reply>);

/// A call that is under way while events are read.
type Asking<T> = Option<Pin<Box<dyn Future<Output = T> + Send>>>;
/// When it was asked, and the answer.
type Renewal = (Instant, Result<Answer, Fault>);
/// How many of those who wait it is for, what was written, and the answer.
type Update = (usize, Instance, Result<Answer, Fault>);

impl Keeper {
    async fn run(mut self, patience: Duration) -> End {
        let deadline = Instant::now() + patience;
        let mut backoff = Backoff::default();
        loop {
            let Err(out) = self.hold(&mut backoff).await;
            let too_late = self.report.is_first() && deadline <= Instant::now();
            self.lease.end();
            match out {
                Out::Ending(ending) => return self.end(ending).await,
                Out::Replaced => return End::replaced(self.report),
                Out::Refused(error) if too_late || self.report.is_first() && !error.is_retryable() => {
                    return End::Failed(self.report, error);
                }
                Out::Lost(reason) | Out::Gone(reason) if too_late => {
                    let step = self.step("register");
                    return End::Failed(self.report, Error::Unavailable { step, reason });
                }
                Out::Gone(reason) => self.report.detached(&reason),
                Out::Refused(error) => {
                    self.report.detached(&error.to_string());
                    if !error.is_retryable() {
                        self.refuse_updates(self.updates.len(), &error);
                    }
                    self.place = self.agents.after(self.place);
                }
                Out::Lost(reason) => {
                    self.report.detached(&reason);
                    self.place = self.agents.after(self.place);
                }
            }
            let pause = if (backoff.attempts as usize) < self.agents.len() { Duration::ZERO } else { backoff.pause() };
            backoff.attempts += 1;
            if let Some(ending) = self.pause(pause).await {
                return self.end(ending).await;
            }
        }
    }

    /// Waits before the next attempt; what is asked for meanwhile is taken in. `Some` if the registration is to end.
    async fn pause(&mut self, time: Duration) -> Option<Ending> {
        let until = Instant::now() + time;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => return None,
                command = self.commands.recv() => if let Some(ending) = self.take_unregistered(command) {
                    return Some(ending);
                },
            }
        }
    }

    /// Takes a command in while there is no registration.
    fn take_unregistered(&mut self, command: Option<Command>) -> Option<Ending> {
        match command {
            None => return Some((Departure::Left, None)),
            Some(Command::Close(departure, reply)) => return Some((departure, Some(reply))),
            Some(Command::Update(instance, reply)) => {
                self.instance = *instance;
                self.updates.push(reply);
            }
            Some(Command::Resign(reply)) => {
                let _ = reply.send(Err(self.not_master()));
            }
        }
        None
    }

    /// Registers at an agent, and stays so until something ends that.
    async fn hold(&mut self, backoff: &mut Backoff) -> Result<std::convert::Infallible, Out> {
        let sent = Instant::now();
        let mut stream = self.open().await?;
        self.left = None;
        (self.lease, self.role) = (Lease::new(), Role::Detached);
        // It was registered with the newest.
        self.written(self.updates.len(), self.instance.clone());
        // The first word counts from when it was asked for, the others from renewals.
        let mut counts_from = Some(sent);
        let (mut renewing, mut updating): (Asking<Renewal>, Asking<Update>) = (None, None);
        let (mut renew_at, mut renewed_at) = (sent, Instant::now());
        loop {
            if updating.is_none() && !self.updates.is_empty() {
                updating = self.write();
            }
            let (lease, is_held) = (self.lease.clone(), self.role != Role::Detached);
            tokio::select! {
                // A renewal may come through yet; but nobody may count on it.
                () = lease.ended(), if is_held => {
                    self.role = Role::Detached;
                    self.report.detached("the agent does not answer: the lease has run out here");
                }
                event = stream.next() => {
                    let event = event.map_err(|reason| Out::Lost(format!("the agent is lost: {reason}")))?;
                    if let Some(said) = self.read(&event)? {
                        self.heard = Instant::now();
                        if counts_from.is_none() && said.role().is_master() {
                            // It may have lain in a buffer for long: a renewal says whether it is true now.
                            renew_at = self.heard;
                        } else {
                            let every = self.said(&said, counts_from.take());
                            renew_at = renew_at.min(sent + every);
                        }
                    }
                }
                (asked, answer) = finished(&mut renewing) => {
                    let answered = answer.is_ok();
                    renew_at = asked + self.renewed(asked, answer)?;
                    if answered {
                        renewed_at = asked;
                        backoff.reset();
                    }
                }
                update = finished(&mut updating) => self.updated(update)?,
                () = tokio::time::sleep_until(renew_at), if renewing.is_none() => renewing = self.renew(),
                () = tokio::time::sleep_until(renewed_at + self.silence()) => {
                    self.left = Some(stream);
                    return Err(Out::Lost("the agent does not answer".to_owned()));
                }
                command = self.commands.recv() => if let Err(out) = self.take(command).await {
                    self.left = Some(stream);
                    return Err(out);
                }
            }
        }
    }

    /// How long an agent may leave renewals unanswered. Where there is another one, that is tried while this one still keeps
    /// the registration: then nobody sees a gap.
    fn silence(&self) -> Duration {
        if self.agents.len() > 1 { self.ttl * 2 / 3 } else { self.ttl }
    }

    /// Asks for the registration.
    async fn open(&mut self) -> Result<Stream, Out> {
        let (agents, path, place) = (self.agents.clone(), format!("{}/hold", self.path), self.place);
        let body = self.body();
        let opening = async move { agents.stream(place, Method::POST, &path, Some(body), None).await };
        tokio::pin!(opening);
        let opened = loop {
            tokio::select! {
                opened = &mut opening => break opened,
                command = self.commands.recv() => {
                    if let Some(ending) = self.take_unregistered(command) {
                        return Err(Out::Ending(ending));
                    }
                    if !self.updates.is_empty() {
                        // It is registered with the newest, or not at all.
                        return Err(Out::Gone("updated while it was being registered".to_owned()));
                    }
                }
            }
        };
        match opened {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(answer)) => Err(Out::Refused(self.refusal("register", &answer))),
            Err(fault) => Err(Out::Lost(fault.to_string())),
        }
    }

    fn body(&self) -> String {
        let Instance { address, weight, tags, .. } = &self.instance;
        let ttl = format!("{}ms", self.ttl.as_millis());
        json!({ "address": address.as_deref(), "weight": weight, "tags": tags, "ttl": ttl, "holder": self.holder })
            .to_string()
    }

    fn read(&self, event: &sse::Event) -> Result<Option<RoleJson>, Out> {
        let odd = |error| Out::Lost(format!("the agent says something that cannot be read: {error}"));
        match event.name.as_str() {
            "role" => serde_json::from_str(&event.data).map(Some).map_err(odd),
            "end" => {
                let EndJson { reason, detail } = serde_json::from_str(&event.data).map_err(odd)?;
                Err(match reason.as_str() {
                    "replaced" => Out::Replaced,
                    "closing" => Out::Lost("the agent is about to end".to_owned()),
                    _ => Out::Gone(format!(
                        "the agent has {reason} it{}",
                        detail.map_or_else(String::new, |d| format!(": {d}"))
                    )),
                })
            }
            _ => Ok(None),
        }
    }

    /// Takes in what the agent says; when to renew, from when it was asked.
    fn said(&mut self, said: &RoleJson, asked: Option<Instant>) -> Duration {
        let expires_in = said.expires_in().unwrap_or(self.ttl);
        let before = std::mem::replace(&mut self.role, said.role());
        if let Some(asked) = asked {
            if before != self.role {
                // Another lease: the old one must not last for a role that is not held any more.
                self.lease = Lease::new();
            }
            self.lease.extend(asked + expires_in);
        }
        if self.role == Role::Detached {
            self.report.detached(said.reason.as_deref().unwrap_or("the agent's registry is away"));
        } else {
            self.report.registered(self.role, Some(self.lease.clone()));
        }
        expires_in.min(self.ttl) / 3
    }

    /// Where this registration is; not another holder's of the same code.
    fn own_path(&self, what: &str) -> String {
        format!("{}{what}?holder={}", self.path, segment(&self.holder))
    }

    fn renew(&self) -> Asking<Renewal> {
        let (agents, place, path, limit) = (self.agents.clone(), self.place, self.own_path(""), self.ttl / 3);
        Some(Box::pin(async move {
            let asked = Instant::now();
            // No longer: a connection that has died in silence must not cost more than one renewal.
            let answer = tokio::time::timeout(limit, agents.call_at(place, Method::PUT, &path, None)).await;
            (asked, answer.unwrap_or_else(|_| Err(Fault::late(agents.address(place), limit))))
        }))
    }

    /// When to renew again, from when this was asked.
    fn renewed(&mut self, asked: Instant, answer: Result<Answer, Fault>) -> Result<Duration, Out> {
        match answer {
            Ok(answer) if answer.status == StatusCode::OK => match serde_json::from_slice::<RoleJson>(&answer.body) {
                Ok(said) if asked < self.heard && (said.role() != self.role || said.role().is_master()) => {
                    Ok(Duration::ZERO)
                }
                Ok(said) => Ok(self.said(&said, Some(asked))),
                Err(error) => Err(Out::Lost(format!("the agent says something that cannot be read: {error}"))),
            },
            Ok(answer) if answer.status == StatusCode::NOT_FOUND => {
                Err(Out::Gone("the agent has forgotten it: its lease has run out".to_owned()))
            }
            Ok(answer) => Err(Out::Lost(self.refusal("renew", &answer).to_string())),
            // The lease runs on; if the connection is broken, the stream is as well.
            Err(fault) => {
                tracing::debug!(%fault, "renew");
                Ok(asked.elapsed() + self.ttl / 10)
            }
        }
    }

    async fn take(&mut self, command: Option<Command>) -> Result<(), Out> {
        match command {
            None => Err(Out::Ending((Departure::Left, None))),
            Some(Command::Close(departure, reply)) => Err(Out::Ending((departure, Some(reply)))),
            Some(Command::Update(instance, reply)) => {
                self.instance = *instance;
                self.updates.push(reply);
                Ok(())
            }
            Some(Command::Resign(reply)) => {
                self.resign(reply).await;
                Ok(())
            }
        }
    }

    /// Writes what has been updated. Apart from renewals: while the agent's registry is away it waits.
    fn write(&self) -> Asking<Update> {
        let (agents, place, path, body) = (self.agents.clone(), self.place, self.path.clone(), self.body());
        let (count, instance) = (self.updates.len(), self.instance.clone());
        Some(Box::pin(async move { (count, instance, agents.call_at(place, Method::PUT, &path, Some(body)).await) }))
    }

    /// Takes in what has become of the oldest updates.
    fn updated(&mut self, (count, instance, answer): Update) -> Result<(), Out> {
        match answer {
            Ok(answer) if answer.status.is_success() => self.written(count, instance),
            Ok(answer) if answer.status == StatusCode::NOT_FOUND || answer.status.is_server_error() => {
                // Written with the next registration.
                return Err(Out::Lost(self.refusal("update", &answer).to_string()));
            }
            Ok(answer) => self.refuse_updates(count, &self.refusal("update", &answer)),
            Err(fault) => return Err(Out::Lost(fault.to_string())),
        }
        Ok(())
    }

    /// The agent has what is to be registered.
    fn written(&mut self, count: usize, instance: Instance) {
        self.accepted = instance;
        for reply in self.updates.drain(..count) {
            let _ = reply.send(Ok(()));
        }
    }

    async fn resign(&mut self, reply: Reply) {
        if !self.role.is_master() {
            let _ = reply.send(Err(self.not_master()));
            return;
        }
        // Before it is asked for: the next one may be master before we have the answer.
        self.report.step_down("resigning");
        self.role = Role::Detached;
        let path = self.own_path("/resign");
        let result = match self.agents.call_at(self.place, Method::POST, &path, None).await {
            Ok(answer) if answer.status.is_success() => Ok(()),
            Ok(answer) if answer.status == StatusCode::CONFLICT => Err(self.not_master()),
            Ok(answer) => Err(self.refusal("resign", &answer)),
            Err(fault) => Err(fault.unavailable(|| self.step("resign"))),
        };
        // What has become of the role is what the agent says next.
        self.heard = Instant::now();
        let _ = reply.send(result);
    }

    /// Deregisters. The connection is closed only after that: it would end the registration as well, and the call would come
    /// when there is none any more, or one that is not ours.
    ///
    /// What is lost is not deregistered: it ends with the connection, from which the agent sees that it is.
    async fn end(self, (departure, reply): Ending) -> End {
        self.report.step_down("deregistering");
        let result = match departure {
            Departure::Left => self.deregister().await,
            Departure::Lost => Ok(()),
        };
        match reply {
            Some(reply) => End::Closed(reply, result),
            None => End::Dropped,
        }
    }

    async fn deregister(&self) -> Result<(), Error> {
        let path = self.own_path("");
        match self.agents.call_at(self.place, Method::DELETE, &path, None).await {
            Ok(answer) if answer.status.is_success() || answer.status == StatusCode::NOT_FOUND => Ok(()),
            Ok(answer) => Err(self.refusal("deregister", &answer)),
            Err(fault) => Err(fault.unavailable(|| self.step("deregister"))),
        }
    }

    /// Answers the oldest updates, which the agent refuses, and goes back to what it has taken, unless there are newer ones.
    fn refuse_updates(&mut self, count: usize, error: &Error) {
        for reply in self.updates.drain(..count) {
            let _ = reply.send(Err(error.clone()));
        }
        if self.updates.is_empty() {
            self.instance = self.accepted.clone();
        }
    }

    fn refusal(&self, what: &str, answer: &Answer) -> Error {
        let (service, code) = (self.instance.service.clone(), self.instance.code.clone());
        if answer.status == StatusCode::CONFLICT && what == "register" {
            let holder = super::wire::detail(&answer.body).unwrap_or_else(|| "another".to_owned());
            // What the agent says begins as our own error does.
            let holder = holder.rsplit_once("already registered, by ").map_or(holder.clone(), |(_, by)| by.to_owned());
            return Error::DuplicateCode { service, code, holder };
        }
        answer.refusal(|| self.step(what))
    }

    fn step(&self, what: &str) -> String {
        format!("{what} {}/{}", self.instance.service, self.instance.code)
    }

    fn not_master(&self) -> Error {
        Error::NotMaster { service: self.instance.service.clone(), code: self.instance.code.clone() }
    }
}

impl Backoff {
    /// As long as the next pause, without counting it.
    fn pause(&self) -> Duration {
        Backoff { attempts: self.attempts }.next()
    }
}

/// Returns what the call has come to, and forgets it; without a call never.
async fn finished<T>(asking: &mut Asking<T>) -> T {
    let Some(call) = asking else { return std::future::pending().await };
    let done = call.await;
    *asking = None;
    done
}
