//! A load whose every answer is checked.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use h2::client::SendRequest;
use hyper::header::HeaderValue;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::echo_origin::{ID, pattern};
use super::message::Response;
use super::{PATIENCE, RawClient};

/// How a client of a [`Load`] sends its requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Way {
    /// HTTP/1.1, a connection for each.
    NewConnection,
    /// HTTP/1.1, all on one connection.
    KeepAlive,
    /// HTTP/2 with prior knowledge, several at a time on one connection.
    Http2,
}

/// What the requests of a [`Load`] are, and what may become of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// So many of 100 are POST, with the answer being the same body; the others are GET.
    pub posts: u8,
    /// How many requests there are; otherwise it goes on until it is [ended](Load::end).
    pub requests: Option<u64>,
    /// Whether origins fail while it runs: then a POST may be answered with 502, 503 or 504, and an answer that has begun may be cut.
    pub origins_fail: bool,
}

/// Clients that send requests to one address, for [`EchoOrigin`](super::EchoOrigin)s to answer. A client that finds its connection
/// ended, with nothing of an answer on it, sends the request again on another, as every client does; that is counted.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    clients: JoinSet<()>,
}

/// What has become of a load.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tally {
    /// Requests that were answered as they should be.
    pub answered: u64,
    /// Bytes of bodies, in both directions, that were checked.
    pub bytes: u64,
    /// Connections that had ended when a request came, which went over another then.
    pub reopened: u64,
    /// POSTs that were answered with a problem, where origins fail.
    pub refused: u64,
    /// Answers that were cut, where origins fail.
    pub cut: u64,
    /// What should not have happened, of which the first are described.
    pub failed: u64,
    /// Descriptions.
    pub failures: Vec<String>,
    /// The ids of the POSTs that were answered as they should be.
    pub posted: HashSet<String>,
}

#[derive(Debug)]
struct Shared {
    address: SocketAddr,
    plan: Plan,
    next: AtomicU64,
    left: AtomicI64,
    is_ending: AtomicBool,
    tally: Mutex<Tally>,
    /// Requests that are over, however.
    done: AtomicU64,
    progress: Notify,
}

/// One request, and its answer as it should be.
struct Asked {
    id: String,
    target: String,
    /// Of a POST.
    body: Option<Vec<u8>>,
    /// Whether the body goes without its length.
    chunked: bool,
    wanted: Vec<u8>,
}

/// How a request went.
enum Went {
    /// With status, id and body.
    Answered(u16, Option<String>, Vec<u8>),
    Cut(String),
}

impl Load {
    /// Starts a client for each of `ways`.
    #[must_use]
    pub fn start(address: SocketAddr, ways: &[Way], plan: Plan) -> Load {
        let shared = Arc::new(Shared {
            address,
            plan,
            next: AtomicU64::new(0),
            left: AtomicI64::new(plan.requests.map_or(i64::MAX, |count| i64::try_from(count).unwrap())),
            is_ending: AtomicBool::new(false),
            tally: Mutex::default(),
            done: AtomicU64::new(0),
            progress: Notify::new(),
        });
        let mut clients = JoinSet::new();
        for way in ways {
            match way {
                Way::NewConnection => drop(clients.spawn(http1(shared.clone(), false))),
                Way::KeepAlive => drop(clients.spawn(http1(shared.clone(), true))),
                Way::Http2 => drop(clients.spawn(http2(shared.clone()))),
            }
        }
        Load { shared, clients }
    }

    /// How many requests are over.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.shared.done.load(Ordering::SeqCst)
    }

    /// Whether no more requests will begin.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.shared.left.load(Ordering::SeqCst) <= 0
    }

    /// Waits until so many more requests are over, or all are.
    ///
    /// # Panics
    /// When none ends for 20 seconds.
    pub async fn more(&self, count: u64) {
        let wanted = self.done() + count;
        loop {
            let progress = self.shared.progress.notified();
            if self.done() >= wanted || self.is_over() {
                return;
            }
            timeout(PATIENCE, progress).await.expect("a request that ends within 20 s");
        }
    }

    /// Lets what is under way come to its end; what has become of all. A load with a number of requests ends when they are over.
    pub async fn end(mut self) -> Tally {
        if self.shared.plan.requests.is_none() {
            self.shared.is_ending.store(true, Ordering::SeqCst);
        }
        while let Some(ended) = self.clients.join_next().await {
            if let Err(panicked) = ended {
                self.shared.fail(format!("a client: {panicked}"));
            }
        }
        std::mem::take(&mut *self.shared.tally.lock().unwrap())
    }
}

impl Tally {
    /// # Panics
    /// When anything has failed.
    pub fn assert_none_failed(&self) {
        assert_eq!(self.failed, 0, "of {} requests: {:#?}", self.answered, self.failures);
    }
}

impl Shared {
    /// The next request, if there is one.
    fn ask(&self) -> Option<Asked> {
        if self.is_ending.load(Ordering::SeqCst) || self.left.fetch_sub(1, Ordering::SeqCst) <= 0 {
            return None;
        }
        let number = self.next.fetch_add(1, Ordering::SeqCst);
        let len = match fastrand::u8(..) {
            0 => fastrand::usize(64 << 10..300 << 10),
            1..16 => fastrand::usize(1 << 10..32 << 10),
            16..32 => 0,
            _ => fastrand::usize(1..512),
        };
        let content = pattern(number, len);
        let is_post = fastrand::u8(..100) < self.plan.posts;
        let chunked = fastrand::bool();
        let target = match (is_post, chunked) {
            (true, true) => "/echo?stream".to_owned(),
            (true, false) => "/echo".to_owned(),
            _ => format!("/bytes/{len}/{number}"),
        };
        let body = is_post.then(|| content.clone());
        Some(Asked { id: format!("{:016x}-{number}", self.address.port()), target, body, chunked, wanted: content })
    }

    fn took(&self, asked: Asked, went: Went) {
        let is_post = asked.body.is_some();
        let faults = self.plan.origins_fail;
        match went {
            Went::Answered(200, Some(id), body) if id == asked.id && body == asked.wanted => {
                let mut tally = self.tally.lock().unwrap();
                tally.answered += 1;
                tally.bytes += (body.len() + asked.body.map_or(0, |body| body.len())) as u64;
                if is_post && faults {
                    tally.posted.insert(asked.id);
                }
            }
            Went::Answered(502..=504, _, _) if is_post && faults => self.tally.lock().unwrap().refused += 1,
            Went::Answered(status, id, body) => {
                let body = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
                self.fail(format!("{} (POST: {is_post}, {}): {status}, {id:?}, {body:?}", asked.target, asked.id));
            }
            Went::Cut(_) if faults => self.tally.lock().unwrap().cut += 1,
            Went::Cut(how) => self.fail(format!("{} (POST: {is_post}): {how}", asked.target)),
        }
        self.over();
    }

    fn over(&self) {
        self.done.fetch_add(1, Ordering::SeqCst);
        self.progress.notify_waiters();
    }

    fn reopen(&self) {
        self.tally.lock().unwrap().reopened += 1;
    }

    fn fail(&self, how: String) {
        let mut tally = self.tally.lock().unwrap();
        tally.failed += 1;
        if tally.failures.len() < 20 {
            tally.failures.push(how);
        }
    }
}

async fn http1(shared: Arc<Shared>, keeps: bool) {
    let mut kept = None;
    while let Some(asked) = shared.ask() {
        let went = loop {
            let (mut client, is_fresh) = match kept.take() {
                Some(client) => (client, false),
                None => (RawClient::connect(shared.address).await, true),
            };
            match exchange(&mut client, &asked, keeps).await {
                // Where origins fail, the proxy may have meant it.
                None if is_fresh || (shared.plan.origins_fail && asked.body.is_some()) => {
                    break Went::Cut(format!("the connection (a new one: {is_fresh}) ended without an answer"));
                }
                None => shared.reopen(),
                Some(response) if !response.complete => break Went::Cut(format!("cut: {}", response.head)),
                Some(response) => {
                    if keeps && response.header("connection") != Some("close") {
                        kept = Some(client);
                    }
                    break Went::Answered(response.status, response.header(ID).map(str::to_owned), response.body);
                }
            }
        };
        shared.took(asked, went);
    }
}

async fn exchange(client: &mut RawClient, asked: &Asked, keeps: bool) -> Option<Response> {
    let method = if asked.body.is_some() { "POST" } else { "GET" };
    let mut text = format!("{method} {} HTTP/1.1\r\nHost: load.example\r\n{ID}: {}\r\n", asked.target, asked.id);
    if !keeps {
        text += "Connection: close\r\n";
    }
    let mut bytes = match &asked.body {
        Some(_) if asked.chunked => format!("{text}Transfer-Encoding: chunked\r\n\r\n"),
        Some(body) => format!("{text}Content-Length: {}\r\n\r\n", body.len()),
        None => format!("{text}\r\n"),
    }
    .into_bytes();
    match &asked.body {
        Some(body) if asked.chunked => {
            for chunk in body.chunks(10_000) {
                bytes.extend(format!("{:x}\r\n", chunk.len()).as_bytes());
                bytes.extend(chunk);
                bytes.extend(b"\r\n");
            }
            bytes.extend(b"0\r\n\r\n");
        }
        Some(body) => bytes.extend(body),
        None => {}
    }
    if bytes.len() > 16 << 10 {
        // The answer may begin before all is sent.
        client.send([]).await;
        client.send_on(bytes);
    } else {
        client.send(bytes).await;
    }
    client.try_response(method).await
}

/// Requests at a time on a connection of HTTP/2.
const STREAMS: usize = 4;

/// The connection of a client, if there is one, and its number.
type Shelf = tokio::sync::Mutex<(u64, Option<SendRequest<Bytes>>)>;

async fn http2(shared: Arc<Shared>) {
    let shelf = Arc::new(Shelf::default());
    let mut streams = JoinSet::new();
    for _ in 0..STREAMS {
        streams.spawn(stream(shared.clone(), shelf.clone()));
    }
    while let Some(ended) = streams.join_next().await {
        if let Err(panicked) = ended {
            shared.fail(format!("a client: {panicked}"));
        }
    }
}

async fn stream(shared: Arc<Shared>, shelf: Arc<Shelf>) {
    while let Some(asked) = shared.ask() {
        let went = loop {
            let (number, sender) = sender(&shared, &shelf).await;
            let Ok(sender) = sender.ready().await else {
                let mut shelf = shelf.lock().await;
                if shelf.0 == number {
                    shelf.1 = None;
                }
                continue;
            };
            match timeout(PATIENCE, send(sender, &asked)).await {
                Ok(Ok(went)) => break went,
                Ok(Err(())) => shared.reopen(),
                Err(_) => break Went::Cut("no answer within 20 s".to_owned()),
            }
        };
        shared.took(asked, went);
    }
}

/// The connection that is open, or a new one.
async fn sender(shared: &Shared, shelf: &Shelf) -> (u64, SendRequest<Bytes>) {
    let mut shelf = shelf.lock().await;
    if let (number, Some(sender)) = &*shelf {
        return (*number, sender.clone());
    }
    let stream =
        timeout(PATIENCE, TcpStream::connect(shared.address)).await.expect("a connection within 20 s").unwrap();
    let _ = stream.set_nodelay(true);
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(1 << 20).initial_connection_window_size(4 << 20);
    let (sender, connection) = builder.handshake(stream).await.unwrap();
    tokio::spawn(connection);
    *shelf = (shelf.0 + 1, Some(sender.clone()));
    (shelf.0, sender)
}

/// The error: it was not sent at all.
///
/// This is h2 without hyper's client, which (1.12) answers a request with the GOAWAY of its connection that comes just as the request is
/// sent, whether the peer sees to it or not.
async fn send(mut sender: SendRequest<Bytes>, asked: &Asked) -> Result<Went, ()> {
    let method = if asked.body.is_some() { "POST" } else { "GET" };
    let body = Bytes::from(asked.body.clone().unwrap_or_default());
    let mut request = hyper::Request::builder().method(method).uri(format!("http://load.example{}", asked.target));
    if asked.body.is_some() && !asked.chunked {
        request = request.header("content-length", body.len());
    }
    let request = request.header(ID, &asked.id).body(()).unwrap();
    let (response, mut stream) = sender.send_request(request, body.is_empty()).map_err(|_| ())?;
    if !body.is_empty() {
        // What comes of it, the answer says.
        let _ = stream.send_data(body, true);
    }
    let response = match response.await {
        Ok(response) => response,
        Err(error) if is_refused(&error) => return Err(()),
        Err(error) => return Ok(Went::Cut(format!("no answer: {error:?}"))),
    };
    let (status, id) = (response.status().as_u16(), response.headers().get(ID).map(text));
    let (mut incoming, mut body) = (response.into_body(), Vec::new());
    while let Some(part) = incoming.data().await {
        match part {
            Ok(part) => {
                let _ = incoming.flow_control().release_capacity(part.len());
                body.extend(part);
            }
            Err(error) => return Ok(Went::Cut(format!("{status}, and cut: {error:?}"))),
        }
    }
    Ok(Went::Answered(status, id, body))
}

/// Whether the peer has said, as it ends the connection in order, that it has not looked at the request (RFC 9113, 6.8).
fn is_refused(error: &h2::Error) -> bool {
    error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR)
}

fn text(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

/// A little of everything.
pub const MIXED: &[Way] = &[Way::NewConnection, Way::KeepAlive, Way::Http2, Way::NewConnection, Way::KeepAlive];
