//! Copies of requests, for a service whose answers nobody waits for.
//!
//! A copy is sent once the whole request has been: it takes what has been kept of the body in case of a retry. It is a task of its own
//! that owns all it needs, so that nothing it runs into can reach the request itself.

use std::borrow::Cow;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use pointsman_balance::Outcome;
use tokio::time::{Instant, timeout};

use crate::client::Client;
use crate::flow::{Broken, Flow, Source};
use crate::forward::{Hop, Ids, Peer};
use crate::gate::Permit;
use crate::head::{Fields, Framing, RequestHead, ResponseHead};
use crate::instance::dial::NoConnection;
use crate::instance::{Connection, Failure, Sending};
use crate::metrics::{RouteMetrics, RouteShard, count};
use crate::settings::Timeouts;
use crate::table::{Endpoint, Passing, Service, Table};
use crate::worker::Worker;

use super::Exchange;

/// So many copies may be under way, by route and worker: a mirror that is too slow gets fewer.
const MOST: u64 = 64;
/// No copy takes longer, whatever the route's requests may.
const LONGEST: Duration = Duration::from_secs(60);
/// So much of an answer is read, so that the connection can serve another; what is longer is not worth it.
const MOST_READ: u64 = 1 << 20;
/// More interim answers than this are none.
const INTERIM: u32 = 32;

impl<C: Client> Exchange<'_, C> {
    /// Decides whether there is to be a copy. Before any of the body has been sent.
    pub(super) fn begin_mirroring(&mut self, passing: &Passing) {
        let Some((_, percent)) = &passing.mirror else { return };
        if fastrand::u8(..100) >= *percent {
            return;
        }
        self.owes_copy = true;
        self.replay.keep();
    }

    /// Sends the copy, if there is to be one and the request has been sent to its end.
    pub(super) fn mirror(&mut self, passing: &Passing) {
        if self.flow.is_done() {
            self.end_mirroring(passing);
        }
    }

    /// The same when nothing more will be sent: what has not come to its end by now never will.
    pub(super) fn end_mirroring(&mut self, passing: &Passing) {
        if std::mem::take(&mut self.owes_copy) && self.send_copy(passing).is_none() {
            count(&self.shard().mirror_dropped);
        }
    }

    fn shard(&self) -> &RouteShard {
        self.record.metrics.of(self.worker.number)
    }

    /// `None`: it cannot be sent.
    fn send_copy(&mut self, passing: &Passing) -> Option<()> {
        let (target, _) = passing.mirror.as_ref()?;
        // Somebody would have to speak the other protocol.
        if self.request.upgrade.is_some() {
            return None;
        }
        // One that nobody has been asked for may not even have been looked at.
        let body = if self.request.framing == Framing::Empty { Vec::new() } else { self.replay.whole()? };
        let place = Place::take(&self.record.metrics, self.worker.number)?;
        let endpoint = target.choose(self.key(passing).as_deref(), &[], &[]).ok()?;
        let permits = &target.service.permits;
        let permit = if permits.are_limited() { Some(permits.take(endpoint.instance())?) } else { None };
        let mut head = self.request.clone();
        // The body is there already.
        head.expects_continue = false;
        let framing = if head.framing == Framing::Empty { Framing::Empty } else { Framing::Length(body.len() as u64) };
        let copy = Copy {
            worker: self.worker.clone(),
            table: self.table.clone(),
            service: target.service.clone(),
            endpoint,
            head,
            path: self.path(passing),
            framing,
            body,
            peer: self.peer.clone(),
            trusted: self.hop().trusted,
            ids: self.ids.clone(),
            timeouts: passing.pass.timeouts,
        };
        count(&self.shard().mirrored);
        tokio::spawn(copy.run(place, permit));
        Some(())
    }
}

/// One of the copies that may be under way at a time.
struct Place {
    metrics: Arc<RouteMetrics>,
    worker: usize,
}

impl Place {
    fn take(metrics: &Arc<RouteMetrics>, worker: usize) -> Option<Self> {
        let place = Self { metrics: metrics.clone(), worker };
        (place.metrics.of(worker).copies.fetch_add(1, Ordering::Relaxed) < MOST).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.metrics.of(self.worker).copies.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A copy under way.
struct Copy {
    worker: Arc<Worker>,
    table: Arc<Table>,
    service: Arc<Service>,
    endpoint: Endpoint,
    head: RequestHead,
    /// The target as the instance is to see it, if it is another.
    path: Cow<'static, [u8]>,
    framing: Framing,
    body: Vec<u8>,
    peer: Peer,
    trusted: bool,
    ids: Ids,
    timeouts: Timeouts,
}

/// Why a copy has had no answer.
enum Lost {
    Unreachable,
    TimedOut,
    /// A connection that has served others has ended just now.
    Stale,
    Broken,
    /// It has no form in what the instance speaks.
    Unsendable,
}

impl Copy {
    async fn run(self, _place: Place, _permit: Option<Permit>) {
        let longest = self.timeouts.whole.map_or(LONGEST, |whole| whole.min(LONGEST));
        let sent = async {
            match self.send(false).await {
                Err(Lost::Stale) => self.send(true).await,
                other => other,
            }
        };
        let sent = timeout(longest, sent).await.unwrap_or(Err(Lost::TimedOut));
        let metrics = self.service.metrics.of(self.worker.number);
        let (counter, outcome) = match sent {
            Ok(status) if status >= 500 => (&metrics.answered, Outcome::Failure),
            Ok(_) => (&metrics.answered, Outcome::Success),
            Err(Lost::Unreachable) => (&metrics.unreachable, Outcome::Failure),
            Err(Lost::TimedOut) => (&metrics.timeouts, Outcome::Failure),
            Err(Lost::Stale | Lost::Broken) => (&metrics.broken, Outcome::Failure),
            Err(Lost::Unsendable) => return,
        };
        count(counter);
        self.endpoint.report(outcome);
    }

    /// Sends it, and reads what is answered: the status.
    async fn send(&self, fresh: bool) -> Result<u16, Lost> {
        let mut connection = self.connect(fresh).await?;
        let hop = Hop { peer: &self.peer, trusted: self.trusted, forwarded: self.table.forwarded, ids: &self.ids };
        connection.send(&Sending {
            head: &self.head,
            target: if self.path.is_empty() { self.head.target() } else { &self.path },
            framing: self.framing,
            secure: self.service.settings.tls.is_some(),
            hop,
        });
        let mut flow = Flow::default();
        let head = timeout(self.timeouts.first_byte, self.answer(&mut connection, &mut flow));
        let head = head.await.map_err(|_| Lost::TimedOut)??;
        let mut read = 0;
        poll_fn(|cx| poll_through(&mut connection, &mut read, cx)).await?;
        if flow.is_done() {
            self.service.give_back(self.worker.number, &self.endpoint.address, connection, Instant::now());
            self.worker.waiting.notify_one();
        }
        Ok(head.status)
    }

    async fn connect(&self, fresh: bool) -> Result<Connection, Lost> {
        let (service, worker) = (&self.service, self.worker.number);
        if !fresh && let Some(connection) = service.waiting(worker, &self.endpoint.address) {
            return Ok(connection);
        }
        if self.endpoint.address.is_empty() {
            return Err(Lost::Unreachable);
        }
        count(&service.metrics.of(worker).connects);
        let connecting = service.connect(worker, &self.endpoint.address, &self.table.allow_addresses);
        let refused = match timeout(self.timeouts.connect, Box::pin(connecting)).await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(NoConnection::Refused(reason))) => reason,
            Ok(Err(NoConnection::Failed(error))) => error.to_string(),
            Ok(Err(NoConnection::Tls(error))) => format!("TLS handshake: {error}"),
            Err(_) => "it did not accept in time".to_owned(),
        };
        tracing::debug!(service = %service.id, code = %self.endpoint.code(), reason = refused, "mirror");
        Err(Lost::Unreachable)
    }

    /// Sends the body, and waits for the head of the answer.
    async fn answer(&self, connection: &mut Connection, flow: &mut Flow) -> Result<ResponseHead, Lost> {
        let bounds = self.table.limits.bounds();
        let (mut body, mut moved, mut head, mut interims) = (Kept(&self.body), 0, ResponseHead::default(), 0);
        poll_fn(|cx| {
            if !flow.is_done() {
                // If it takes no more, the answer will tell.
                let _ = flow.poll(&mut body, connection, &mut moved, cx);
            }
            loop {
                match ready!(connection.poll_head(cx, &mut head, bounds)) {
                    Ok(()) if head.is_interim() && interims < INTERIM => interims += 1,
                    Ok(()) if head.is_interim() || head.status == 101 => return Poll::Ready(Err(Lost::Broken)),
                    Ok(()) => return Poll::Ready(Ok(())),
                    Err(Failure::Unanswered(_)) if connection.is_reused() && self.may_repeat(connection) => {
                        return Poll::Ready(Err(Lost::Stale));
                    }
                    Err(Failure::Unsendable(_)) => return Poll::Ready(Err(Lost::Unsendable)),
                    Err(_) => return Poll::Ready(Err(Lost::Broken)),
                }
            }
        })
        .await?;
        Ok(head)
    }

    fn may_repeat(&self, connection: &Connection) -> bool {
        self.head.verb.is_idempotent() || !connection.has_sent()
    }
}

/// Reads a body, and throws it away.
fn poll_through(connection: &mut Connection, read: &mut u64, cx: &mut Context<'_>) -> Poll<Result<(), Lost>> {
    loop {
        match ready!(connection.poll_body(cx)) {
            Ok(true) if *read < MOST_READ => {
                let count = connection.body().len();
                *read += count as u64;
                connection.consume(count);
            }
            Ok(_) => return Poll::Ready(Ok(())),
            Err(_) => return Poll::Ready(Err(Lost::Broken)),
        }
    }
}

/// The body of a copy.
struct Kept<'a>(&'a [u8]);

impl Source for Kept<'_> {
    fn poll_body(&mut self, _: &mut Context<'_>) -> Poll<Result<bool, Broken>> {
        Poll::Ready(Ok(!self.0.is_empty()))
    }

    fn body(&self) -> &[u8] {
        self.0
    }

    fn consume(&mut self, count: usize) {
        self.0 = &self.0[count..];
    }

    fn trailers(&self) -> Option<&Fields> {
        None
    }
}
