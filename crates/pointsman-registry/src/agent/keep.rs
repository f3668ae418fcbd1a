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
use tokio::time::Instant;

use super::connect::{Agents, Answer, Fault, Stream};
use super::wire::{EndJson, RoleJson};
use super::{instance_path, segment, sse};
use crate::Error;
use crate::keep::{Control, Order, Registrar, Said};
use crate::lease::Lease;
use crate::registration::{Departure, End, Reply, Task};

/// Keeps the task's instance registered until its commands end.
pub(super) async fn keep(agents: Arc<Agents>, ttl: Duration, task: Box<Task>) -> End {
    let (instance, holder) = (&task.instance, &task.holder);
    let holder = holder.as_ref().map_or_else(|| format!("{:032x}", fastrand::u128(..)), ToString::to_string);
    let mut registrar = AgentRegistrar {
        path: instance_path(&instance.service, &instance.code),
        holder,
        observer: task.observer,
        place: agents.current(),
        agents,
        ttl,
        lease: Lease::new(),
        role: Role::Detached,
        left: None,
        heard: Instant::now(),
        is_unknown: false,
        failures: 0,
        was_opened: false,
    };
    crate::keep::keep(&mut registrar, super::LONGEST_PAUSE, task).await
}

struct AgentRegistrar {
    agents: Arc<Agents>,
    ttl: Duration,
    path: String,
    /// Who we are, whichever agent we come by.
    holder: String,
    /// Whether it is never to be master.
    observer: bool,
    /// The agent that is used.
    place: usize,
    lease: Lease,
    /// What the agent has said last.
    role: Role,
    /// Of an agent that does not answer: were it closed before there is another, the agent might learn of that, if of nothing
    /// else, and deregister. And at the end, until the agent has been asked to deregister.
    left: Option<Stream>,
    /// When the role was heard of by an event, or given up: what was asked before may be answered with an older one.
    heard: Instant,
    /// Whether the last renewal was answered 404, and the stream has not said why.
    is_unknown: bool,
    /// Number of agents in a row that could not be used.
    failures: usize,
    /// Whether an agent has ever taken the registration.
    was_opened: bool,
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
    /// The registration is to be something else.
    Stopped,
}

/// Whether an update has been written.
#[derive(Debug, PartialEq, Eq)]
enum Written {
    Yes,
    No,
}

const FORGOTTEN: &str = "the agent has forgotten it: its lease has run out";

/// A call that is under way while events are read.
type Asking<T> = Option<Pin<Box<dyn Future<Output = T> + Send>>>;
/// When it was asked, and the answer.
type Renewal = (Instant, Result<Answer, Fault>);
/// The revision that was written, and the answer.
type Update = (u64, Result<Answer, Fault>);

impl Registrar for AgentRegistrar {
    async fn hold(&mut self, control: &mut Control) -> Option<Said> {
        control.say(Said::Connected);
        let Err(out) = self.try_hold(control).await;
        self.lease.end();
        Some(match out {
            Out::Stopped => return None,
            Out::Replaced => Said::Replaced,
            Out::Gone(reason) => Said::Gone(reason),
            Out::Refused(error) if !error.is_retryable() => {
                self.place = self.agents.after(self.place);
                Said::Failed(error)
            }
            Out::Refused(error) => self.lost(error.to_string(), error),
            Out::Lost(reason) => {
                let step = control.name("register");
                self.lost(reason.clone(), Error::unavailable(step, reason))
            }
        })
    }

    /// Deregisters. The connection is closed only after that: it would end the registration as well, and the call would come
    /// when there is none any more, or one that is not ours.
    ///
    /// What is lost is not deregistered: it ends with the connection, from which the agent sees that it is.
    async fn remove(&mut self, control: &mut Control, departure: Departure) -> Option<Said> {
        control.step_down("deregistering");
        let result = match departure {
            Departure::Left if self.was_opened => self.deregister(control).await,
            Departure::Left | Departure::Lost => Ok(()),
        };
        self.left = None;
        Some(Said::Removed(result))
    }
}

impl AgentRegistrar {
    /// Goes on to the next agent; at once, until all of them have been tried.
    fn lost(&mut self, reason: String, error: Error) -> Said {
        self.place = self.agents.after(self.place);
        self.failures += 1;
        if self.failures <= self.agents.len() { Said::Unreachable(reason) } else { Said::Failed(error) }
    }

    /// Registers at an agent, and stays so until something ends that.
    async fn try_hold(&mut self, control: &mut Control) -> Result<std::convert::Infallible, Out> {
        let (mut stream, sent, written) = self.open(control).await?;
        self.was_opened = true;
        self.left = None;
        (self.lease, self.role, self.is_unknown) = (Lease::new(), Role::Detached, false);
        control.say(Said::Written(written));
        // The first word counts from when it was asked for, the others from renewals.
        let mut counts_from = Some(sent);
        let (mut renewing, mut updating): (Asking<Renewal>, Asking<Update>) = (None, None);
        let (mut renew_at, mut renewed_at) = (sent, Instant::now());
        let mut said_last = written;
        loop {
            if updating.is_none() && control.wanted().1 != said_last {
                said_last = control.wanted().1;
                updating = self.write(control);
            }
            let (lease, is_held) = (self.lease.clone(), self.role != Role::Detached);
            tokio::select! {
                // A renewal may come through yet; but nobody may count on it.
                () = lease.ended(), if is_held => {
                    self.role = Role::Detached;
                    control.say(Said::Lapsed("the agent does not answer: the lease has run out here".to_owned()));
                }
                event = stream.next() => {
                    let event = event.map_err(|reason| Out::Lost(format!("the agent is lost: {reason}")))?;
                    if let Some(said) = read(&event)? {
                        self.heard = Instant::now();
                        if counts_from.is_none() && said.role().is_master() {
                            // It may have lain in a buffer for long: a renewal says whether it is true now.
                            renew_at = self.heard;
                        } else {
                            let every = self.said(control, &said, counts_from.take());
                            renew_at = renew_at.min(sent + every);
                        }
                    }
                }
                (asked, answer) = finished(&mut renewing) => {
                    let answered = answer.is_ok();
                    renew_at = asked + self.renewed(control, asked, answer)?;
                    if answered {
                        renewed_at = asked;
                        self.failures = 0;
                    }
                }
                update = finished(&mut updating) => {
                    if self.updated(control, update)? == Written::No {
                        // What was accepted before is written already.
                        said_last = control.wanted().1;
                    }
                }
                () = tokio::time::sleep_until(renew_at), if renewing.is_none() => renewing = self.renew(),
                () = tokio::time::sleep_until(renewed_at + self.silence()) => {
                    self.left = Some(stream);
                    return Err(Out::Lost("the agent does not answer".to_owned()));
                }
                order = control.order() => match order {
                    Order::Write => {}
                    Order::Resign(reply) => self.resign(control, reply).await,
                    Order::Stop => {
                        self.left = Some(stream);
                        return Err(Out::Stopped);
                    }
                }
            }
        }
    }

    /// How long an agent may leave renewals unanswered. Where there is another one, that is tried while this one still keeps
    /// the registration: then nobody sees a gap.
    fn silence(&self) -> Duration {
        if self.agents.len() > 1 { self.ttl * 2 / 3 } else { self.ttl }
    }

    /// Asks for the registration; with the newest that is wanted, or not at all. Returns when it was asked for as well, and with which revision.
    async fn open(&mut self, control: &mut Control) -> Result<(Stream, Instant, u64), Out> {
        loop {
            let (agents, path, place) = (self.agents.clone(), format!("{}/hold", self.path), self.place);
            let (body, revision, sent) = (self.body(control), control.wanted().1, Instant::now());
            control.say(Said::Requested);
            let opening = async move { agents.stream(place, Method::POST, &path, Some(body), None).await };
            tokio::select! {
                opened = opening => return match opened {
                    Ok(Ok(stream)) => Ok((stream, sent, revision)),
                    Ok(Err(answer)) => {
                        control.say(Said::Removed(Ok(())));
                        Err(Out::Refused(refusal(control, "register", &answer)))
                    }
                    Err(fault) => Err(Out::Lost(fault.to_string())),
                },
                order = control.order() => match order {
                    Order::Write => {}
                    Order::Resign(reply) => drop(reply.send(Err(control.not_master()))),
                    Order::Stop => return Err(Out::Stopped),
                }
            }
        }
    }

    fn body(&self, control: &Control) -> String {
        let Instance { address, weight, tags, .. } = control.wanted().0;
        let ttl = format!("{}ms", self.ttl.as_millis());
        let mut body =
            json!({ "address": address.as_deref(), "weight": weight, "tags": tags, "ttl": ttl, "holder": self.holder });
        if self.observer {
            // An agent of an earlier version does not know the field, and refuses it, rather than to make it master.
            body["observer"] = true.into();
        }
        body.to_string()
    }

    /// Takes in what the agent says; when to renew, from when it was asked.
    fn said(&mut self, control: &mut Control, said: &RoleJson, asked: Option<Instant>) -> Duration {
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
            let reason = said.reason.as_deref().unwrap_or("the agent's registry is away");
            control.say(Said::Lapsed(reason.to_owned()));
        } else {
            control.registered(self.role, Some(self.lease.clone()));
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
    fn renewed(
        &mut self,
        control: &mut Control,
        asked: Instant,
        answer: Result<Answer, Fault>,
    ) -> Result<Duration, Out> {
        match answer {
            Ok(answer) if answer.status == StatusCode::OK => match serde_json::from_slice::<RoleJson>(&answer.body) {
                Ok(said) if asked < self.heard && (said.role() != self.role || said.role().is_master()) => {
                    Ok(Duration::ZERO)
                }
                Ok(said) => {
                    self.is_unknown = false;
                    Ok(self.said(control, &said, Some(asked)))
                }
                Err(error) => Err(Out::Lost(format!("the agent says something that cannot be read: {error}"))),
            },
            // The stream is about to say how it has ended: one that the same holder has replaced must not be registered again.
            Ok(answer) if answer.status == StatusCode::NOT_FOUND && !self.is_unknown => {
                (self.is_unknown, self.role) = (true, Role::Detached);
                control.say(Said::Lapsed(FORGOTTEN.to_owned()));
                Ok(asked.elapsed() + self.ttl / 10)
            }
            Ok(answer) if answer.status == StatusCode::NOT_FOUND => Err(Out::Gone(FORGOTTEN.to_owned())),
            Ok(answer) => Err(Out::Lost(refusal(control, "renew", &answer).to_string())),
            // The lease runs on; if the connection is broken, the stream is as well.
            Err(fault) => {
                tracing::debug!(%fault, "renew");
                Ok(asked.elapsed() + self.ttl / 10)
            }
        }
    }

    /// Writes what is wanted now. Apart from renewals: while the agent's registry is away it waits.
    fn write(&self, control: &Control) -> Asking<Update> {
        let (agents, place, path, body) = (self.agents.clone(), self.place, self.path.clone(), self.body(control));
        let revision = control.wanted().1;
        Some(Box::pin(async move { (revision, agents.call_at(place, Method::PUT, &path, Some(body)).await) }))
    }

    /// Takes in what has become of what was written.
    fn updated(&mut self, control: &mut Control, (revision, answer): Update) -> Result<Written, Out> {
        match answer {
            Ok(answer) if answer.status.is_success() => {
                control.say(Said::Written(revision));
                Ok(Written::Yes)
            }
            Ok(answer) if answer.status == StatusCode::NOT_FOUND || answer.status.is_server_error() => {
                // Written with the next registration.
                Err(Out::Lost(refusal(control, "update", &answer).to_string()))
            }
            Ok(answer) => {
                let error = refusal(control, "update", &answer);
                control.say(Said::Rejected(revision, error));
                Ok(Written::No)
            }
            Err(fault) => Err(Out::Lost(fault.to_string())),
        }
    }

    async fn resign(&mut self, control: &mut Control, reply: Reply) {
        if !self.role.is_master() {
            let _ = reply.send(Err(control.not_master()));
            return;
        }
        // Before it is asked for: the next one may be master before we have the answer.
        control.step_down("resigning");
        self.role = Role::Detached;
        let path = self.own_path("/resign");
        let result = match self.agents.call_at(self.place, Method::POST, &path, None).await {
            Ok(answer) if answer.status.is_success() => Ok(()),
            Ok(answer) if answer.status == StatusCode::CONFLICT => Err(control.not_master()),
            Ok(answer) => Err(refusal(control, "resign", &answer)),
            Err(fault) => Err(fault.unavailable(|| control.name("resign"))),
        };
        // What has become of the role is what the agent says next.
        self.heard = Instant::now();
        let _ = reply.send(result);
    }

    async fn deregister(&self, control: &mut Control) -> Result<(), Error> {
        let path = self.own_path("");
        match self.agents.call_at(self.place, Method::DELETE, &path, None).await {
            Ok(answer) if answer.status.is_success() || answer.status == StatusCode::NOT_FOUND => Ok(()),
            Ok(answer) => Err(refusal(control, "deregister", &answer)),
            Err(fault) => Err(fault.unavailable(|| control.name("deregister"))),
        }
    }
}

/// What an event says of the role; `None` if it says nothing of it.
fn read(event: &sse::Event) -> Result<Option<RoleJson>, Out> {
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

fn refusal(control: &Control, what: &str, answer: &Answer) -> Error {
    if answer.status == StatusCode::CONFLICT && what == "register" {
        let Instance { service, code, .. } = control.wanted().0;
        let holder = super::wire::detail(&answer.body).unwrap_or_else(|| "another".to_owned());
        // What the agent says begins as our own error does.
        let holder = holder.rsplit_once("already registered, by ").map_or(holder.as_str(), |(_, by)| by);
        let holder = holder.split("; ").next().unwrap_or_default().to_owned();
        return Error::DuplicateCode { service: service.clone(), code: code.clone(), holder };
    }
    answer.refusal(|| control.name(what))
}

/// Returns what the call has come to, and forgets it; without a call never.
async fn finished<T>(asking: &mut Asking<T>) -> T {
    let Some(call) = asking else { return std::future::pending().await };
    let done = call.await;
    *asking = None;
    done
}
