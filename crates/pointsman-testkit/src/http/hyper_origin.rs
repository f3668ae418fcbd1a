//! An origin of hyper: HTTP/1.1, and HTTP/2 with prior knowledge.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;

use super::{PATIENCE, listen};

mod paths;

/// What an origin answers.
pub type Answer = hyper::Response<SeenBody>;
/// The body of an answer.
pub type SeenBody = BoxBody<Bytes, io::Error>;

type Script = dyn Fn(&Seen) -> Option<Answer> + Send + Sync;

/// An HTTP server whose paths do what tests need; see [`start`](HyperOrigin::start). Each answer names it in `x-origin`.
#[derive(Debug)]
pub struct HyperOrigin {
    address: SocketAddr,
    state: Arc<State>,
    server: Option<JoinHandle<()>>,
}

/// A request that has come, without its body.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Seen {
    /// The method.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// `HTTP/1.1` or `HTTP/2.0`.
    pub version: String,
    /// The fields, names in lower case.
    pub headers: Vec<(String, String)>,
}

impl Seen {
    /// The first value of a field.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    fn of(request: &Request<Incoming>) -> Seen {
        let field = |(name, value): (&hyper::header::HeaderName, &hyper::header::HeaderValue)| {
            (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        Seen {
            method: request.method().to_string(),
            target: request.uri().path_and_query().map_or_else(|| request.uri().to_string(), ToString::to_string),
            version: format!("{:?}", request.version()),
            headers: request.headers().iter().map(field).collect(),
        }
    }
}

struct State {
    id: String,
    script: Option<Box<Script>>,
    seen: Mutex<Vec<Seen>>,
    requests: AtomicU64,
    connections: AtomicU64,
    /// How many are open, and requests under way, with the most there ever were.
    open: AtomicU64,
    under_way: AtomicU64,
    most_under_way: AtomicU64,
    /// Bytes of bodies that have been handed to connections, and read from them.
    given: AtomicU64,
    taken: AtomicU64,
    /// Bodies whose sender has found out that nobody reads them any longer.
    given_up: AtomicU64,
    gate: Semaphore,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("id", &self.id).field("requests", &self.requests).finish_non_exhaustive()
    }
}

impl HyperOrigin {
    /// An origin that answers by path:
    ///
    /// - `/bytes/N`, `/chunked/N`: so many bytes, with a length or without
    /// - `/status/N`
    /// - `/slow/MS`: an answer after so long
    /// - `/hold`: an answer when [`release`](HyperOrigin::release) lets it go
    /// - `/sse/N`: so many events, the first at once, each other when `release` lets it go
    /// - `/trailers`: chunked, with the trailer `x-check: done`
    /// - `/cookies`: two fields `set-cookie`
    /// - `/ignore`: an answer at once, the body unread
    /// - `/sink`: how many bytes the body has; `/gated-sink` reads a piece of it each time `release` lets it
    /// - `/drop`: the connection ends without an answer; `/half`: in the middle of one
    /// - `/upgrade`: bytes are echoed, after 101, where `Upgrade: echo` asks for it
    /// - any other: the request as JSON (`origin`, `method`, `target`, `version`, `headers`, `body`, `trailers`)
    pub async fn start(id: &str) -> HyperOrigin {
        HyperOrigin::launch(id, None).await
    }

    /// The same, where `script` comes first: what it has no answer for is answered by path.
    pub async fn scripted(id: &str, script: impl Fn(&Seen) -> Option<Answer> + Send + Sync + 'static) -> HyperOrigin {
        HyperOrigin::launch(id, Some(Box::new(script))).await
    }

    async fn launch(id: &str, script: Option<Box<Script>>) -> HyperOrigin {
        let state = Arc::new(State {
            id: id.to_owned(),
            script,
            seen: Mutex::default(),
            requests: AtomicU64::default(),
            connections: AtomicU64::default(),
            open: AtomicU64::default(),
            under_way: AtomicU64::default(),
            most_under_way: AtomicU64::default(),
            given: AtomicU64::default(),
            taken: AtomicU64::default(),
            given_up: AtomicU64::default(),
            gate: Semaphore::new(0),
        });
        let mut origin = HyperOrigin { address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), state, server: None };
        // Not from the kernel: those it would give to others while this one is down.
        origin.address.set_port(crate::zookeeper::free_port());
        origin.restart().await;
        origin
    }

    /// Where it listens; the same after a restart.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.state.id
    }

    /// How many requests have come.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.state.requests.load(Ordering::SeqCst)
    }

    /// How many connections there have been.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// How many connections are open.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.state.open.load(Ordering::SeqCst)
    }

    /// How many requests have no answer yet.
    #[must_use]
    pub fn under_way(&self) -> u64 {
        self.state.under_way.load(Ordering::SeqCst)
    }

    /// The most requests that were without an answer at a time.
    #[must_use]
    pub fn most_under_way(&self) -> u64 {
        self.state.most_under_way.load(Ordering::SeqCst)
    }

    /// Bytes of answers' bodies that its connections have taken over.
    #[must_use]
    pub fn given(&self) -> u64 {
        self.state.given.load(Ordering::SeqCst)
    }

    /// Bytes of requests' bodies that it has read.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.state.taken.load(Ordering::SeqCst)
    }

    /// Answers that nobody wanted to the end.
    #[must_use]
    pub fn given_up(&self) -> u64 {
        self.state.given_up.load(Ordering::SeqCst)
    }

    /// The requests that have come, the last 100,000.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().unwrap().clone()
    }

    /// Lets so many of those that wait go on.
    pub fn release(&self, count: usize) {
        self.state.gate.add_permits(count);
    }

    /// It listens no longer, and its connections end, from one moment to the next.
    pub async fn kill(&mut self) {
        if let Some(server) = self.server.take() {
            server.abort();
            let _ = server.await;
        }
    }

    /// It serves again, at the same address.
    ///
    /// # Panics
    /// When somebody else has taken the address.
    pub async fn restart(&mut self) {
        self.kill().await;
        let start = Instant::now();
        let listener = loop {
            match listen(self.address).await {
                Ok(listener) => break listener,
                Err(error) => assert!(start.elapsed() < PATIENCE, "listen on {}: {error}", self.address),
            }
            sleep(Duration::from_millis(5)).await;
        };
        self.server = Some(tokio::spawn(serve(listener, self.state.clone())));
    }
}

impl Drop for HyperOrigin {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.abort();
        }
    }
}

/// A plain answer.
///
/// # Panics
/// When the status is none.
#[must_use]
pub fn answer(status: u16, body: impl Into<Bytes>) -> Answer {
    let body = Full::new(body.into()).map_err(never).boxed();
    let mut answer = hyper::Response::new(body);
    *answer.status_mut() = StatusCode::from_u16(status).unwrap();
    answer
}

fn never(never: Infallible) -> io::Error {
    match never {}
}

fn empty() -> SeenBody {
    Empty::new().map_err(never).boxed()
}

/// Connections end with the task that this runs on.
async fn serve(listener: TcpListener, state: Arc<State>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        while connections.try_join_next().is_some() {}
        let _ = stream.set_nodelay(true);
        state.connections.fetch_add(1, Ordering::SeqCst);
        let open = Counted::new(&state, |state| &state.open);
        let state = state.clone();
        connections.spawn(async move {
            let _open = open;
            let service = service_fn(|request| respond(request, state.clone()));
            let builder = auto::Builder::new(TokioExecutor::new());
            let _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
        });
    }
}

async fn respond(request: Request<Incoming>, state: Arc<State>) -> io::Result<Answer> {
    state.requests.fetch_add(1, Ordering::SeqCst);
    let _under_way = Counted::new(&state, |state| &state.under_way);
    state.most_under_way.fetch_max(state.under_way.load(Ordering::SeqCst), Ordering::SeqCst);
    let seen = Seen::of(&request);
    {
        let mut all = state.seen.lock().unwrap();
        if all.len() == 100_000 {
            all.clear();
        }
        all.push(seen.clone());
    }
    let scripted = state.script.as_ref().and_then(|script| script(&seen));
    let mut answer = match scripted {
        Some(answer) => answer,
        None => paths::by_path(request, seen, &state).await?,
    };
    answer.headers_mut().insert("x-origin", state.id.parse().expect("an id that can be a field's value"));
    Ok(answer)
}

/// One more, for as long as it lives.
struct Counted {
    state: Arc<State>,
    which: fn(&State) -> &AtomicU64,
}

impl Counted {
    fn new(state: &Arc<State>, which: fn(&State) -> &AtomicU64) -> Counted {
        which(state).fetch_add(1, Ordering::SeqCst);
        Counted { state: state.clone(), which }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.which)(&self.state).fetch_sub(1, Ordering::SeqCst);
    }
}
