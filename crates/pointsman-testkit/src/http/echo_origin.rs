//! An origin whose answers can be checked by their content, and which writes down what has come.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};

use super::listen;

/// The field by which [`EchoOrigin`] and [`Load`](super::Load) know a request.
pub(super) const ID: &str = "x-id";

/// So many bytes, which depend on `seed`.
#[must_use]
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

/// When an [`EchoOrigin`] ends the connection with a RST instead of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Trouble {
    /// Never.
    None,
    /// So many of 100 requests; some as soon as their head is there, some once their body is, too.
    Percent(u8),
    /// Each other request.
    EachOther,
    /// Each request.
    Always,
}

/// Answers `…/bytes/LEN/SEED` with the [`pattern`], everything else with the request's own body: as it comes where the query is
/// `stream`, else once it is whole. Each answer has the request's `x-id`, and the origin's own name in `x-origin`.
#[derive(Debug)]
pub struct EchoOrigin {
    address: SocketAddr,
    state: Arc<State>,
    server: JoinHandle<()>,
}

#[derive(Debug)]
struct State {
    id: String,
    journal: Mutex<Journal>,
    requests: AtomicU64,
    trouble: Mutex<Trouble>,
    is_odd: AtomicBool,
}

/// The ids of requests other than GET, as soon as their heads are there.
#[derive(Debug)]
enum Journal {
    Memory(HashMap<String, u32>),
    File(File),
}

type Body = BoxBody<Bytes, hyper::Error>;

impl EchoOrigin {
    /// Starts one, on a port of its own.
    ///
    /// # Panics
    /// When it cannot listen.
    pub async fn start(id: &str) -> EchoOrigin {
        let listener = listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await.unwrap();
        EchoOrigin::launch(listener, id, Journal::Memory(HashMap::new()))
    }

    /// Starts one at this address, which writes a line for each request other than GET into a file, before it does anything else.
    ///
    /// # Panics
    /// When it cannot listen, or write.
    pub async fn with_journal(address: SocketAddr, id: &str, journal: &Path) -> EchoOrigin {
        let file = OpenOptions::new().append(true).create(true).open(journal).unwrap();
        EchoOrigin::launch(listen(address).await.unwrap(), id, Journal::File(file))
    }

    fn launch(listener: TcpListener, id: &str, journal: Journal) -> EchoOrigin {
        let state = Arc::new(State {
            id: id.to_owned(),
            journal: Mutex::new(journal),
            requests: AtomicU64::new(0),
            trouble: Mutex::new(Trouble::None),
            is_odd: AtomicBool::new(false),
        });
        let address = listener.local_addr().unwrap();
        EchoOrigin { address, server: tokio::spawn(serve(listener, state.clone())), state }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many requests have come.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.state.requests.load(Ordering::SeqCst)
    }

    /// From now on.
    pub fn set_trouble(&self, trouble: Trouble) {
        *self.state.trouble.lock().unwrap() = trouble;
    }

    /// How often each request other than GET has come, by its id; of an origin without a file.
    #[must_use]
    pub fn arrived(&self) -> HashMap<String, u32> {
        match &*self.state.journal.lock().unwrap() {
            Journal::Memory(arrived) => arrived.clone(),
            Journal::File(_) => HashMap::new(),
        }
    }

    /// Serves until the process ends.
    pub async fn forever(self) {
        std::future::pending::<()>().await;
    }
}

impl Drop for EchoOrigin {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(listener: TcpListener, state: Arc<State>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        while connections.try_join_next().is_some() {}
        let _ = stream.set_nodelay(true);
        // Whenever it ends a connection, that is by a RST.
        let _ = stream.set_zero_linger();
        let state = state.clone();
        connections.spawn(async move {
            let service = service_fn(|request| respond(request, state.clone()));
            let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

impl State {
    fn note(&self, id: &str) {
        match &mut *self.journal.lock().unwrap() {
            Journal::Memory(arrived) => *arrived.entry(id.to_owned()).or_default() += 1,
            // One call, so that it is written whole or not at all, even by a process that is killed.
            Journal::File(file) => file.write_all(format!("{id}\n").as_bytes()).unwrap(),
        }
    }

    fn is_in_trouble(&self) -> bool {
        match *self.trouble.lock().unwrap() {
            Trouble::None => false,
            Trouble::Percent(percent) => fastrand::u8(..100) < percent,
            Trouble::EachOther => self.is_odd.fetch_xor(true, Ordering::SeqCst),
            Trouble::Always => true,
        }
    }
}

async fn respond(request: Request<Incoming>, state: Arc<State>) -> io::Result<Response<Body>> {
    state.requests.fetch_add(1, Ordering::SeqCst);
    let id = request.headers().get(ID).cloned();
    let is_get = request.method() == Method::GET;
    if let Some(id) = id.as_ref().filter(|_| !is_get) {
        state.note(&String::from_utf8_lossy(id.as_bytes()));
    }
    let trouble = state.is_in_trouble();
    if trouble && fastrand::bool() {
        return Err(io::ErrorKind::ConnectionReset.into());
    }
    let mut answer = if is_get { bytes_of(request.uri().path()) } else { echo(request).await? };
    if trouble {
        return Err(io::ErrorKind::ConnectionReset.into());
    }
    if let Some(id) = id {
        answer.headers_mut().insert(ID, id);
    }
    answer.headers_mut().insert("x-origin", state.id.parse().expect("an id that can be a field's value"));
    Ok(answer)
}

async fn echo(request: Request<Incoming>) -> io::Result<Response<Body>> {
    let streams = request.uri().query() == Some("stream");
    let body = request.into_body();
    if streams {
        return Ok(Response::new(body.boxed()));
    }
    let body = body.collect().await.map_err(io::Error::other)?;
    Ok(Response::new(full(body.to_bytes())))
}

fn bytes_of(path: &str) -> Response<Body> {
    let mut parts = path.rsplit('/').map(str::parse);
    match (parts.next(), parts.next()) {
        (Some(Ok(seed)), Some(Ok(len))) => {
            let len = usize::try_from(len).unwrap();
            Response::new(full(pattern(seed, len).into()))
        }
        _ => Response::new(full(Bytes::new())),
    }
}

fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never: Infallible| match never {}).boxed()
}
