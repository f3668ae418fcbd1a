//! One thread of the proxy: it accepts connections, and serves them to their end.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use pin_project_lite::pin_project;
use pointsman_net::accept::AcceptPause;
use pointsman_net::tls;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore, futures::Notified};
use tokio::task::coop::has_budget_remaining;
use tokio_rustls::TlsAcceptor;

use crate::access_log::Log;
use crate::client;
use crate::forward::Peer;
use crate::health::Checker;
use crate::io::{self, Buffer, Io};
use crate::metrics::Metrics;
use crate::table::Table;

/// Between two looks at the connections that wait.
const SWEEP: Duration = Duration::from_secs(1);
/// How long somebody who has connected, and said nothing yet, is waited for when the proxy leaves.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// So many who have connected by the time that the proxy leaves are still accepted.
const LAST_ONES: usize = 4096;

/// What all workers share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) table: ArcSwap<Table>,
    pub(crate) acceptor: ArcSwapOption<Acceptor>,
    pub(crate) metrics: Metrics,
    /// If there is somewhere to write it to.
    pub(crate) log: Option<Log>,
    pub(crate) checker: Checker,
    /// So many more connections can be accepted.
    pub(crate) places: Semaphore,
    pub(crate) is_leaving: AtomicBool,
}

/// TLS towards clients.
pub(crate) struct Acceptor(pub(crate) TlsAcceptor);

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Acceptor")
    }
}

/// What one worker has of its own.
#[derive(Debug)]
pub(crate) struct Worker {
    /// From 0.
    pub(crate) number: usize,
    pub(crate) shared: Arc<Shared>,
    /// Told when the proxy leaves.
    left: Notify,
    /// Told when a connection has ended.
    pub(crate) ended: Notify,
    pub(crate) open: AtomicUsize,
    /// Told when a connection waits for the next request.
    pub(crate) waiting: Notify,
}

impl Worker {
    pub(crate) fn new(number: usize, shared: Arc<Shared>) -> Arc<Self> {
        Arc::new(Self {
            number,
            shared,
            left: Notify::new(),
            ended: Notify::new(),
            open: AtomicUsize::new(0),
            waiting: Notify::new(),
        })
    }

    pub(crate) fn table(&self) -> Arc<Table> {
        self.shared.table.load_full()
    }

    /// Whether the proxy leaves.
    pub(crate) fn leaving(&self) -> Leaving<'_> {
        Leaving { shared: &self.shared, left: self.left.notified(), is_waiting: false }
    }

    /// Returns once no connection is open any more.
    pub(crate) async fn all_ended(&self) {
        loop {
            let ended = self.ended.notified();
            if self.open.load(Ordering::Acquire) == 0 {
                return;
            }
            ended.await;
        }
    }

    /// To be called once the shared sign is set.
    pub(crate) fn leave(&self) {
        self.left.notify_waiters();
    }
}

pin_project! {
    /// Tells a connection when the proxy leaves; costs nothing as long as it does not.
    pub(crate) struct Leaving<'a> {
        shared: &'a Shared,
        #[pin]
        left: Notified<'a>,
        is_waiting: bool,
    }
}

impl Leaving<'_> {
    /// To be polled by one task only: it is woken once, whichever poll was the first.
    pub(crate) fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        if !std::mem::replace(this.is_waiting, true) && this.left.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if this.shared.is_leaving.load(Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// A listener; counts as something open, as there may be somebody to be accepted.
pub(crate) struct Listening(Arc<Worker>);

impl Listening {
    pub(crate) fn new(worker: Arc<Worker>) -> Self {
        worker.open.fetch_add(1, Ordering::Relaxed);
        Self(worker)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Release);
        self.0.ended.notify_one();
    }
}

/// Accepts until the proxy leaves, and then those who have connected by then.
pub(crate) async fn accept(listening: Listening, listener: TcpListener) {
    let worker = &listening.0;
    let mut leaving = pin!(worker.leaving());
    let mut pause = AcceptPause::new("proxy");
    let mut last_ones = 0;
    loop {
        let accepting = async {
            // Who is not accepted waits in the system's queue.
            let place = worker.shared.places.acquire().await.ok()?;
            place.forget();
            Some(listener.accept().await)
        };
        let mut accepting = pin!(accepting);
        let accepted = std::future::poll_fn(|cx| {
            let is_leaving = leaving.as_mut().poll(cx).is_ready();
            // Who waits to be accepted has been told that the connection stands.
            if is_leaving && last_ones == LAST_ONES {
                return Poll::Ready(None);
            }
            last_ones += usize::from(is_leaving);
            match accepting.as_mut().poll(cx) {
                // Unless it is only that this task has done enough for now: then somebody may still be there.
                Poll::Pending if is_leaving && has_budget_remaining() => Poll::Ready(None),
                accepted => accepted,
            }
        });
        let Some(accepted) = accepted.await else { return };
        if accepted.is_err() {
            worker.shared.places.add_permits(1);
        }
        if let Some((stream, peer)) =
            pause.take(accepted, || worker.shared.metrics.accept_failures.add(worker.number, 1)).await
        {
            let place = Place::new(worker.clone());
            tokio::spawn(talk(place, stream, peer));
        }
    }
}

/// A connection's place among all.
struct Place(Arc<Worker>);

impl Place {
    fn new(worker: Arc<Worker>) -> Self {
        worker.open.fetch_add(1, Ordering::Relaxed);
        worker.shared.metrics.connections.add(worker.number, 1);
        Self(worker)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
        self.0.shared.metrics.connections.sub(self.0.number, 1);
        self.0.shared.places.add_permits(1);
        self.0.ended.notify_one();
    }
}

async fn talk(place: Place, stream: TcpStream, peer: SocketAddr) {
    let worker = &place.0;
    if let Err(error) = io::prepare(&stream) {
        tracing::debug!(%error, "a connection that is gone already");
        return;
    }
    let acceptor = worker.shared.acceptor.load_full();
    match acceptor {
        None => serve(worker, Io::Plain(stream), Peer::new(peer.ip(), false)).await,
        Some(acceptor) => Box::pin(talk_in_secret(worker, &acceptor, stream, peer)).await,
    }
}

async fn talk_in_secret(worker: &Arc<Worker>, acceptor: &Acceptor, stream: TcpStream, peer: SocketAddr) {
    let time = worker.table().limits.head_time;
    match tokio::time::timeout(time, acceptor.0.accept(stream)).await {
        Ok(Ok(stream)) => serve(worker, Io::Tls(Box::new(stream.into())), Peer::new(peer.ip(), true)).await,
        failed => {
            worker.shared.metrics.tls_failures.add(worker.number, 1);
            let error = failed.map_or_else(
                |late| late.to_string(),
                |failed| failed.err().as_ref().map(tls::describe_io).unwrap_or_default(),
            );
            tracing::debug!(%peer, error, "tls handshake");
        }
    }
}

/// What every client of HTTP/2 begins with (RFC 9113, 3.4). No request of HTTP/1 does.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

async fn serve(worker: &Arc<Worker>, mut io: Io, peer: Peer) {
    let mut buffer = Buffer::default();
    match speaks_http2(worker, &mut io, &mut buffer).await {
        // Apart, because it is large, and the other is what there may be ten thousand of.
        Some(true) => Box::pin(client::http2::serve(worker, io, buffer, peer)).await,
        Some(false) => client::http1::serve(worker, io, buffer, &peer).await,
        None => {}
    }
}

/// Reads until it can be told. `None`: there is nothing to be read.
async fn speaks_http2(worker: &Arc<Worker>, io: &mut Io, buffer: &mut Buffer) -> Option<bool> {
    let time = worker.table().limits.head_time;
    let mut leaving = pin!(worker.leaving());
    let mut last_words = None;
    let begins = std::future::poll_fn(|cx| {
        loop {
            let there = buffer.bytes();
            if there.len() >= PREFACE.len() || (!there.is_empty() && !PREFACE.starts_with(there)) {
                return Poll::Ready(Some(there.starts_with(PREFACE)));
            }
            match io.poll_fill(cx, buffer) {
                Poll::Ready(Ok(count)) if count > 0 => {}
                Poll::Ready(_) => return Poll::Ready(None),
                Poll::Pending => break,
            }
        }
        if buffer.is_empty() && leaving.as_mut().poll(cx).is_ready() {
            // Its first request may be on its way.
            let last_words = last_words.get_or_insert_with(|| Box::pin(tokio::time::sleep(LAST_WORDS)));
            return last_words.as_mut().poll(cx).map(|()| None);
        }
        Poll::Pending
    });
    tokio::time::timeout(time, begins).await.unwrap_or(None)
}

/// Closes connections to instances that have waited too long, or that their instances have closed.
pub(crate) async fn sweep(worker: Arc<Worker>) {
    loop {
        let table = worker.table();
        let mut again = pin!(tokio::time::sleep(SWEEP));
        let (mut is_first, mut left) = (true, 0);
        std::future::poll_fn(|cx| {
            // Woken by the timer, or because an instance has closed one.
            if !std::mem::take(&mut is_first) {
                return Poll::Ready(());
            }
            left = table.sweep(worker.number, cx, tokio::time::Instant::now());
            if left == 0 { Poll::Ready(()) } else { again.as_mut().poll(cx) }
        })
        .await;
        if left == 0 {
            worker.waiting.notified().await;
        }
    }
}
