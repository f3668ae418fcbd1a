//! A request sent to one instance, until the head of its answer is there.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::Instant;

use crate::alarm::{Alarm, earlier};
use crate::client::Client;
use crate::flow::{Broken, Flow, Side, Sink as _, Source};
use crate::head::{Fields, Framing};
use crate::instance::dial::NoConnection;
use crate::instance::{Connection, Failure, Sending};
use crate::metrics::count;
use crate::problem::{Kind, Problem};
use crate::settings::Timeouts;
use crate::table::{Endpoint, Passing, Target};

use super::{Ended, Exchange};

/// So much of a body is kept, in case that it has to be sent again.
const KEPT: usize = 64 << 10;
/// A client that waits to be told to send its body is told so after this time, whatever the instance says.
const CONTINUE: Duration = Duration::from_secs(1);
/// More interim answers than this are none.
const INTERIM: u32 = 32;

/// What an answer is waited for with.
struct Waiting {
    /// The body waits until it is wanted.
    holds_back: bool,
    /// How many bytes had been sent when the alarm was set.
    moved: u64,
    /// All has been sent when it was set.
    is_sent: bool,
    interims: u32,
    timeouts: Timeouts,
    whole: Option<Instant>,
}

impl Waiting {
    /// Sets the alarm, if something has happened since.
    fn set(&mut self, alarm: &mut Alarm, flow: Flow, moved: u64) {
        let is_sent = flow.is_done();
        if self.is_sent == is_sent && self.moved == moved {
            return;
        }
        (self.is_sent, self.moved) = (is_sent, moved);
        let time = match (is_sent, self.holds_back) {
            (true, _) => self.timeouts.first_byte,
            (false, true) => CONTINUE,
            (false, false) => self.timeouts.idle,
        };
        alarm.set(Some(earlier(Instant::now() + time, self.whole)));
    }

    /// Lets the client send its body.
    fn go_on(&mut self, client: &mut impl Client, cx: &mut Context<'_>) {
        (self.holds_back, self.moved) = (false, u64::MAX);
        client.interim(None);
        let _ = client.poll_flush(cx);
        cx.waker().wake_by_ref();
    }
}

/// Whether a request may be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    Never,
    /// An instance may have had its work with it: it is one of those that the budget allows.
    InBudget,
    /// Nothing of it has been sent, but time has passed: as often as it may be sent again.
    Counted,
    /// Nothing of it has been sent: to try the next instance costs nobody anything.
    Free,
}

/// Why an instance has not answered.
pub(super) enum Unfit {
    /// A connection that has served others has ended just now.
    Stale {
        problem: Problem,
        again: Again,
    },
    Failed {
        problem: Problem,
        again: Again,
    },
    /// It was the client who failed: it has gone,
    Gone,
    /// or does not send its body,
    Slow,
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
    /// All of it has come.
    ended: bool,
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

    /// All of it, if it has come and been kept; to be called when nothing of it is to be sent any more.
    pub(super) fn whole(&mut self) -> Option<Vec<u8>> {
        (self.ended && !self.lost).then(|| std::mem::take(&mut self.kept))
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
        if self.replay.sent < self.replay.kept.len() {
            return Poll::Ready(Ok(true));
        }
        let polled = self.client.poll_body(cx);
        self.replay.ended |= matches!(polled, Poll::Ready(Ok(false)));
        polled
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
        endpoint: &Endpoint,
        path: &[u8],
        fresh: bool,
        whole: Option<Instant>,
    ) -> Result<Connection, Unfit> {
        let mut connection = self.connect(passing, target, endpoint, fresh, whole).await?;
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
                    Unfit::Failed { problem, .. } if problem.kind == Kind::GatewayTimeout => {
                        connection.distrust();
                        count(&metrics.timeouts);
                    }
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
        endpoint: &Endpoint,
        fresh: bool,
        whole: Option<Instant>,
    ) -> Result<Connection, Unfit> {
        let service = &target.service;
        if !fresh && let Some(connection) = service.waiting(self.worker.number, &endpoint.address) {
            return Ok(connection);
        }
        let metrics = service.metrics.of(self.worker.number);
        count(&metrics.connects);
        let unreachable = |kind, detail: String| {
            count(&metrics.unreachable);
            // Once the whole time is over, the next instance could only be blamed for it as well.
            let has_time = whole.is_none_or(|whole| Instant::now() < whole);
            let again = match kind {
                _ if !has_time => Again::Never,
                Kind::GatewayTimeout => Again::Counted,
                _ => Again::Free,
            };
            Unfit::Failed { problem: Problem::new(kind, detail), again }
        };
        let name = &service.id.name;
        if endpoint.address.is_empty() {
            return Err(unreachable(Kind::Unreachable, format!("an instance of {name} has no address")));
        }
        self.alarm.set(Some(earlier(Instant::now() + passing.pass.timeouts.connect, whole)));
        // Apart: it is large, and seldom needed.
        let connecting = service.connect(self.worker.number, &endpoint.address, &self.table.allow_addresses);
        let mut dialling = Box::pin(connecting);
        let (alarm, client) = (&mut *self.alarm, &mut *self.client);
        let is_waiting = self.request.framing == Framing::Empty;
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
                tracing::warn!(service = %name, code = %endpoint.code(), reason, "instance is not called");
                Err(unreachable(Kind::Unreachable, format!("an instance of {name} has an address that is not called")))
            }
            // Nothing of an instance's certificate is told to a client.
            Some(Err(NoConnection::Tls(error))) => {
                tracing::warn!(service = %name, code = %endpoint.code(), error, "TLS handshake with an instance failed");
                Err(unreachable(Kind::Unreachable, format!("the TLS handshake with an instance of {name} failed")))
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
        let mut waiting = Waiting {
            // The head alone goes first, and the body once somebody wants it.
            holds_back: self.request.expects_continue && self.request.framing != Framing::Empty,
            moved: u64::MAX,
            is_sent: false,
            interims: 0,
            timeouts: passing.pass.timeouts,
            whole,
        };
        poll_fn(|cx| {
            if let Err(unfit) = self.poll_send(&waiting, connection, cx) {
                return Poll::Ready(Err(unfit));
            }
            if let Poll::Ready(result) = self.poll_answer(&mut waiting, connection, cx) {
                return Poll::Ready(result);
            }
            let _ = self.client.poll_flush(cx);
            if self.flow.is_done() && self.client.poll_gone(cx).is_ready() {
                return Poll::Ready(Err(Unfit::Gone));
            }
            waiting.set(self.alarm, self.flow, self.record.received);
            ready!(self.alarm.poll(cx));
            if waiting.holds_back && whole.is_none_or(|whole| Instant::now() < whole) {
                // An instance that does not know about it would wait for the body for ever, and the client for a word.
                waiting.go_on(self.client, cx);
                return Poll::Pending;
            }
            if self.flow.is_starved() {
                return Poll::Ready(Err(Unfit::Slow));
            }
            let problem = Problem::new(Kind::GatewayTimeout, "the instance did not answer in time");
            let may_repeat = self.request.verb.is_idempotent() && !self.replay.lost;
            let has_time = whole.is_none_or(|whole| Instant::now() < whole);
            let again = if may_repeat && has_time { Again::InBudget } else { Again::Never };
            Poll::Ready(Err(Unfit::Failed { problem, again }))
        })
        .await
    }

    /// Sends what there is of the request.
    fn poll_send(&mut self, waiting: &Waiting, connection: &mut Connection, cx: &mut Context<'_>) -> Result<(), Unfit> {
        if waiting.holds_back {
            // If that cannot be sent, the answer will tell.
            let _ = connection.poll_flush(cx);
            return Ok(());
        }
        if self.flow.is_done() {
            return Ok(());
        }
        let mut body = Replayed { client: &mut *self.client, replay: &mut self.replay };
        match self.flow.poll(&mut body, connection, &mut self.record.received, cx) {
            Poll::Ready(Err(Side::Source(Broken::Nonsense(reason)))) => Err(Unfit::Nonsense(reason)),
            Poll::Ready(Err(Side::Source(Broken::Cut))) => Err(Unfit::Gone),
            // An instance that takes no more may have said why.
            Poll::Ready(Err(Side::Sink)) | Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
        }
    }

    /// Reads the head of the answer; those that only say that it is coming are passed on.
    fn poll_answer(
        &mut self,
        waiting: &mut Waiting,
        connection: &mut Connection,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Unfit>> {
        let bounds = self.table.limits.bounds();
        loop {
            match ready!(connection.poll_head(cx, self.response, bounds)) {
                Ok(()) if self.response.is_interim() => {
                    waiting.interims += 1;
                    if waiting.interims > INTERIM {
                        return Poll::Ready(Err(nonsense("it says for ever that the answer is coming")));
                    }
                    if self.response.status != 100 {
                        self.client.interim(Some(self.response));
                    } else if waiting.holds_back {
                        waiting.go_on(self.client, cx);
                    }
                }
                Ok(()) if self.response.status == 101 && self.request.upgrade.is_none() => {
                    return Poll::Ready(Err(nonsense("it goes over to a protocol that nobody has asked for")));
                }
                Ok(()) => return Poll::Ready(Ok(())),
                Err(failure) => return Poll::Ready(Err(failed(failure, connection, &self.replay, self.request))),
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
        let is_unwanted = self.request.expects_continue && self.record.received == 0;
        let mut sends = !self.flow.is_done() && !is_unwanted;
        let Self { client, replay, flow, record, alarm, .. } = self;
        poll_fn(|cx| {
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
                Poll::Ready(Err(Side::Source(_))) => {
                    return Poll::Ready(Err(Problem::new(Kind::BadAnswer, "the answer broke off").into()));
                }
                Poll::Ready(Err(Side::Sink)) => return Poll::Ready(Err(Ended::Gone)),
                Poll::Pending => {}
            }
            if flow.is_done() && client.poll_gone(cx).is_ready() {
                return Poll::Ready(Err(Ended::Gone));
            }
            let moved = record.received.wrapping_add(record.sent);
            if last_moved != moved {
                last_moved = moved;
                alarm.set(Some(earlier(Instant::now() + idle, whole)));
            }
            alarm.poll(cx).map(|()| Err(Problem::new(Kind::GatewayTimeout, "the answer did not go on in time").into()))
        })
        .await
    }
}

fn nonsense(reason: &'static str) -> Unfit {
    let problem = Problem::new(Kind::BadAnswer, format!("the instance's answer is refused: {reason}"));
    Unfit::Failed { problem, again: Again::Never }
}

fn failed(failure: Failure, connection: &Connection, replay: &Replay, request: &crate::head::RequestHead) -> Unfit {
    // What has been sent may have been acted upon.
    let again = match () {
        () if replay.lost => Again::Never,
        () if !connection.has_sent() => Again::Free,
        () if request.verb.is_idempotent() => Again::InBudget,
        () => Again::Never,
    };
    match failure {
        Failure::Unanswered(error) => {
            let detail = format!("the instance ended the connection without an answer: {}", error.kind());
            let problem = Problem::new(Kind::BadAnswer, detail);
            if connection.is_reused() { Unfit::Stale { problem, again } } else { Unfit::Failed { problem, again } }
        }
        Failure::CutOff(error) => {
            let detail = format!("the instance ended the connection within the head of its answer: {}", error.kind());
            Unfit::Failed { problem: Problem::new(Kind::BadAnswer, detail), again: Again::Never }
        }
        Failure::Nonsense(reason) => nonsense(reason),
        Failure::Unsendable(reason) => Unfit::Nonsense(reason),
    }
}
