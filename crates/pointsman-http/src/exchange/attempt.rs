//! A request sent to one instance, until the head of its answer is there.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use crate::alarm::earlier;
use crate::client::Client;
use crate::flow::{Broken, Flow, Sink as _, Source};
use crate::head::{Fields, Framing};
use crate::instance::dial::{NoConnection, dial};
use crate::instance::{Connection, Failure, Http1, Sending};
use crate::metrics::count;
use crate::problem::{Kind, Problem};
use crate::settings::Protocol;
use crate::table::{Chosen, Passing, Target};

use super::{Ended, Exchange};

/// So much of a body is kept, in case that it has to be sent again.
const KEPT: usize = 64 << 10;
/// A client that waits to be told to send its body is told so after this time, whatever the instance says.
const CONTINUE: Duration = Duration::from_secs(1);
/// More interim answers than this are none.
const INTERIM: u32 = 32;

/// Why an instance has not answered.
pub(super) enum Unfit {
    /// A connection that has served others has ended just now.
    Stale {
        problem: Problem,
        may_repeat: bool,
    },
    Failed {
        problem: Problem,
        may_repeat: bool,
    },
    /// It was the client who failed: it has gone,
    Gone,
    /// or its body is none.
    Nonsense(&'static str),
}

/// What of a request's body has been sent.
#[derive(Debug, Default)]
pub(super) struct Replay {
    keeps: bool,
    kept: Vec<u8>,
    /// So much of it has been sent in this attempt.
    sent: usize,
    /// Some of it is gone for good.
    lost: bool,
}

impl Replay {
    pub(super) fn keep(&mut self) {
        self.keeps = true;
    }

    /// From the beginning.
    pub(super) fn rewind(&mut self) {
        self.sent = 0;
    }

    fn take(&mut self, bytes: &[u8]) {
        if self.keeps && self.kept.len() + bytes.len() <= KEPT {
            self.kept.extend_from_slice(bytes);
            self.sent = self.kept.len();
        } else {
            self.lost = true;
            self.keeps = false;
            self.kept = Vec::new();
            self.sent = 0;
        }
    }
}

/// The body, from its beginning.
pub(super) struct Replayed<'a, C> {
    pub(super) client: &'a mut C,
    pub(super) replay: &'a mut Replay,
}

impl<C: Client> Source for Replayed<'_, C> {
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Broken>> {
        if self.replay.sent < self.replay.kept.len() { Poll::Ready(Ok(true)) } else { self.client.poll_body(cx) }
    }

    fn body(&self) -> &[u8] {
        match self.replay.kept.get(self.replay.sent..) {
            Some(kept) if !kept.is_empty() => kept,
            _ => self.client.body(),
        }
    }

    fn consume(&mut self, count: usize) {
        if self.replay.sent < self.replay.kept.len() {
            self.replay.sent += count;
            return;
        }
        self.replay.take(&self.client.body()[..count]);
        self.client.consume(count);
    }

    fn trailers(&self) -> Option<&Fields> {
        self.client.trailers()
    }
}

impl<C: Client> Exchange<'_, C> {
    /// Sends the request to an instance. Returns with the head of its answer in `response`.
    pub(super) async fn attempt(
        &mut self,
        passing: &Passing,
        target: &Target,
        chosen: &Chosen,
        path: &[u8],
        fresh: bool,
        whole: Option<Instant>,
    ) -> Result<Connection, Unfit> {
        let mut connection = self.connect(passing, target, chosen, fresh, whole).await?;
        let sending = Sending {
            head: self.request,
            target: if path.is_empty() { self.request.target() } else { path },
            framing: self.request.framing,
            secure: target.service.settings.tls.is_some(),
            hop: self.hop(),
        };
        connection.send(&sending);
        match self.head(passing, &mut connection, whole).await {
            Ok(()) => Ok(connection),
            Err(unfit) => {
                let metrics = target.service.metrics.of(self.worker.number);
                match &unfit {
                    Unfit::Failed { problem, .. } if problem.kind == Kind::GatewayTimeout => count(&metrics.timeouts),
                    Unfit::Failed { .. } => count(&metrics.broken),
                    _ => {}
                }
                Err(unfit)
            }
        }
    }

    /// A connection that waits, or a new one.
    async fn connect(
        &mut self,
        passing: &Passing,
        target: &Target,
        chosen: &Chosen,
        fresh: bool,
        whole: Option<Instant>,
    ) -> Result<Connection, Unfit> {
        let service = &target.service;
        let protocol = service.settings.protocol;
        if !fresh && let Some(connection) = service.waiting(self.worker.number, &chosen.address) {
            return Ok(connection);
        }
        let metrics = service.metrics.of(self.worker.number);
        count(&metrics.connects);
        let unreachable = |kind, detail: String| {
            count(&metrics.unreachable);
            Unfit::Failed { problem: Problem::new(kind, detail), may_repeat: true }
        };
        let name = &service.name;
        if chosen.address.is_empty() {
            return Err(unreachable(Kind::Unreachable, format!("an instance of {name} has no address")));
        }
        self.alarm.set(Some(earlier(Instant::now() + passing.pass.timeouts.connect, whole)));
        // Apart: it is large, and seldom needed.
        let connections = &service.connections[self.worker.number];
        let mut dialling = Box::pin(async {
            let io = dial(&chosen.address, &service.secret, &self.table.allow_addresses).await?;
            Ok(match protocol {
                Protocol::Http1 => Connection::Http1(Box::new(Http1::new(io))),
                Protocol::Http2 => {
                    let begun = connections.begin(&chosen.address, io).await.map_err(NoConnection::Failed)?;
                    Connection::Http2(Box::new(begun))
                }
            })
        });
        let (alarm, client) = (&mut *self.alarm, &mut *self.client);
        let is_waiting = self.flow == Flow::Flowing && self.request.framing == Framing::Empty;
        let dialled = poll_fn(|cx| {
            if let Poll::Ready(dialled) = dialling.as_mut().poll(cx) {
                return Poll::Ready(Some(dialled));
            }
            if is_waiting && client.poll_gone(cx).is_ready() {
                return Poll::Ready(None);
            }
            alarm.poll(cx).map(|()| Some(Err(NoConnection::Failed(io::ErrorKind::TimedOut.into()))))
        });
        match dialled.await {
            None => Err(Unfit::Gone),
            Some(Ok(connection)) => Ok(connection),
            Some(Err(NoConnection::Refused(reason))) => {
                tracing::warn!(service = %name, code = %chosen.instance.code, reason, "instance is not called");
                Err(unreachable(Kind::Unreachable, format!("an instance of {name} has an address that is not called")))
            }
            Some(Err(NoConnection::Failed(error))) if error.kind() == io::ErrorKind::TimedOut => {
                Err(unreachable(Kind::GatewayTimeout, format!("an instance of {name} did not accept in time")))
            }
            Some(Err(NoConnection::Failed(error))) => Err(unreachable(
                Kind::Unreachable,
                format!("an instance of {name} cannot be reached: {}", error.kind()),
            )),
        }
    }

    /// Sends the request, and waits for the head of the answer.
    async fn head(
        &mut self,
        passing: &Passing,
        connection: &mut Connection,
        whole: Option<Instant>,
    ) -> Result<(), Unfit> {
        let timeouts = passing.pass.timeouts;
        let bounds = self.table.limits.bounds();
        let mut holds_back = self.request.expects_continue && self.request.framing != Framing::Empty;
        let (mut last_moved, mut waits_for_answer, mut interims) = (u64::MAX, false, 0);
        let Self { client, replay, flow, record, response, alarm, request, .. } = self;
        let outcome = poll_fn(|cx| {
            if holds_back {
                // The head alone. If that cannot be sent, the answer will tell.
                let _ = connection.poll_flush(cx);
            } else if *flow != Flow::Done {
                let mut body = Replayed { client: &mut **client, replay };
                match flow.poll(&mut body, connection, &mut record.received, cx) {
                    Poll::Ready(Ok(())) | Poll::Pending => {}
                    Poll::Ready(Err(crate::flow::Side::Source(Broken::Nonsense(reason)))) => {
                        return Poll::Ready(Some(Err(Unfit::Nonsense(reason))));
                    }
                    Poll::Ready(Err(crate::flow::Side::Source(Broken::Cut))) => {
                        return Poll::Ready(Some(Err(Unfit::Gone)));
                    }
                    // It takes no more, and may have said why.
                    Poll::Ready(Err(crate::flow::Side::Sink)) => {}
                }
            }
            loop {
                match connection.poll_head(cx, response, bounds) {
                    Poll::Ready(Ok(())) if response.is_interim() => {
                        interims += 1;
                        if interims > INTERIM {
                            return Poll::Ready(Some(Err(nonsense("it says for ever that the answer is coming"))));
                        }
                        if response.status == 100 {
                            if holds_back {
                                client.interim(None);
                            }
                            holds_back = false;
                            cx.waker().wake_by_ref();
                        } else {
                            client.interim(Some(response));
                        }
                        let _ = client.poll_flush(cx);
                    }
                    Poll::Ready(Ok(())) if response.status == 101 && request.upgrade.is_none() => {
                        return Poll::Ready(Some(Err(nonsense(
                            "it goes over to a protocol that nobody has asked for",
                        ))));
                    }
                    Poll::Ready(Ok(())) => return Poll::Ready(Some(Ok(()))),
                    Poll::Ready(Err(failure)) => {
                        return Poll::Ready(Some(Err(failed(failure, connection, replay, request))));
                    }
                    Poll::Pending => break,
                }
            }
            let _ = client.poll_flush(cx);
            if *flow == Flow::Done {
                if client.poll_gone(cx).is_ready() {
                    return Poll::Ready(Some(Err(Unfit::Gone)));
                }
                if !waits_for_answer {
                    waits_for_answer = true;
                    alarm.set(Some(earlier(Instant::now() + timeouts.first_byte, whole)));
                }
            } else if last_moved != record.received {
                last_moved = record.received;
                let time = if holds_back { CONTINUE } else { timeouts.idle };
                alarm.set(Some(earlier(Instant::now() + time, whole)));
            }
            if alarm.poll(cx).is_pending() {
                return Poll::Pending;
            }
            if holds_back && whole.is_none_or(|whole| Instant::now() < whole) {
                // An instance that does not know about it would wait for the body for ever, and the client for a word.
                holds_back = false;
                last_moved = u64::MAX;
                client.interim(None);
                let _ = client.poll_flush(cx);
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Poll::Ready(None)
        });
        match outcome.await {
            Some(result) => result,
            None => {
                let detail = "the instance did not answer in time";
                let may_repeat = self.request.verb.is_idempotent()
                    && !self.replay.lost
                    && whole.is_none_or(|whole| Instant::now() < whole);
                Err(Unfit::Failed { problem: Problem::new(Kind::GatewayTimeout, detail), may_repeat })
            }
        }
    }

    /// Passes the rest of the request and the body of the answer on.
    pub(super) async fn flow_back(
        &mut self,
        passing: &Passing,
        connection: &mut Connection,
        whole: Option<Instant>,
    ) -> Result<(), Ended> {
        let idle = passing.pass.timeouts.idle;
        let mut back = Flow::default();
        let mut last_moved = u64::MAX;
        // What has not been asked for by now never will.
        let mut sends = self.flow != Flow::Done && !(self.request.expects_continue && self.record.received == 0);
        let Self { client, replay, flow, record, alarm, .. } = self;
        let outcome = poll_fn(|cx| {
            if sends {
                let mut body = Replayed { client: &mut **client, replay };
                match flow.poll(&mut body, connection, &mut record.received, cx) {
                    Poll::Pending => {}
                    Poll::Ready(Ok(())) => sends = false,
                    // The instance takes no more, but answers; or the client's body is broken, which does not break the answer.
                    Poll::Ready(Err(_)) => sends = false,
                }
            }
            match back.poll(connection, &mut **client, &mut record.sent, cx) {
                Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
                Poll::Ready(Err(crate::flow::Side::Source(_))) => {
                    return Poll::Ready(Err(Problem::new(Kind::BadAnswer, "the answer broke off").into()));
                }
                Poll::Ready(Err(crate::flow::Side::Sink)) => return Poll::Ready(Err(Ended::Gone)),
                Poll::Pending => {}
            }
            if *flow == Flow::Done && client.poll_gone(cx).is_ready() {
                return Poll::Ready(Err(Ended::Gone));
            }
            let moved = record.received.wrapping_add(record.sent);
            if last_moved != moved {
                last_moved = moved;
                alarm.set(Some(earlier(Instant::now() + idle, whole)));
            }
            alarm.poll(cx).map(|()| Err(Problem::new(Kind::GatewayTimeout, "the answer did not go on in time").into()))
        });
        let outcome = pin!(outcome);
        outcome.await
    }
}

fn nonsense(reason: &'static str) -> Unfit {
    let problem = Problem::new(Kind::BadAnswer, format!("the instance's answer is refused: {reason}"));
    Unfit::Failed { problem, may_repeat: false }
}

fn failed(failure: Failure, connection: &Connection, replay: &Replay, request: &crate::head::RequestHead) -> Unfit {
    // What has been sent may have been acted upon.
    let may_repeat = !replay.lost && (request.verb.is_idempotent() || !connection.has_sent());
    match failure {
        Failure::Unanswered(error) => {
            let detail = format!("the instance ended the connection without an answer: {}", error.kind());
            let problem = Problem::new(Kind::BadAnswer, detail);
            if connection.is_reused() {
                Unfit::Stale { problem, may_repeat }
            } else {
                Unfit::Failed { problem, may_repeat }
            }
        }
        Failure::CutOff(error) => {
            let detail = format!("the instance ended the connection within the head of its answer: {}", error.kind());
            Unfit::Failed { problem: Problem::new(Kind::BadAnswer, detail), may_repeat: false }
        }
        Failure::Nonsense(reason) => nonsense(reason),
    }
}
