//! An origin that says what a test tells it to, byte by byte, and remembers what it was told.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::message::{Chunks, fields_of, head_end};
use super::{PATIENCE, listen};

/// What an origin does about a request, step by step.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Play {
    /// Waits for the request's body.
    Body,
    /// Sends bytes.
    Send(Vec<u8>),
    /// Waits.
    Wait(Duration),
    /// Waits for [`RawOrigin::release`].
    Gate,
    /// Ends its side with a FIN, and goes on reading.
    HalfClose,
    /// Ends the connection with a FIN.
    Close,
    /// Ends the connection with a RST.
    Reset,
}

/// A request that has come, so far as it is known when its head is whole.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RawRequest {
    /// The head, byte for byte.
    pub head: String,
    /// The how manyth it is of all, from 0.
    pub number: usize,
    /// The how manyth it is on its connection, from 0.
    pub on_connection: usize,
}

/// An origin that plays scripts. It reads requests as the most lenient server would: a length where there is one, chunks where
/// `Transfer-Encoding` says so.
#[derive(Debug)]
pub struct RawOrigin {
    address: SocketAddr,
    state: Arc<State>,
    server: JoinHandle<()>,
}

#[derive(Debug)]
struct State {
    /// Every byte, by connection.
    received: Mutex<Vec<Vec<u8>>>,
    heads: Mutex<Vec<String>>,
    whole: AtomicUsize,
    gate: Semaphore,
}

/// The answer as it is, after the whole request.
#[must_use]
pub fn whole(answer: impl Into<Vec<u8>>) -> Vec<Play> {
    vec![Play::Body, Play::Send(answer.into())]
}

impl RawOrigin {
    /// Starts one that does for each request what the script says. Without an end in its script a connection stays, for the
    /// next request.
    pub async fn start(script: impl Fn(&RawRequest) -> Vec<Play> + Send + Sync + 'static) -> RawOrigin {
        let listener = listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = State {
            received: Mutex::default(),
            heads: Mutex::default(),
            whole: AtomicUsize::new(0),
            gate: Semaphore::new(0),
        };
        let state = Arc::new(state);
        let server = tokio::spawn(serve(listener, state.clone(), Arc::new(script)));
        RawOrigin { address, state, server }
    }

    /// Starts one that answers every request with these bytes.
    pub async fn answering(answer: impl Into<Vec<u8>>) -> RawOrigin {
        let answer = answer.into();
        RawOrigin::start(move |_| whole(answer.clone())).await
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Every byte that has come, by connection.
    #[must_use]
    pub fn received(&self) -> Vec<Vec<u8>> {
        self.state.received.lock().unwrap().clone()
    }

    /// All of it as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.received().concat()).into_owned()
    }

    /// The heads of the requests that have come, in their order.
    #[must_use]
    pub fn heads(&self) -> Vec<String> {
        self.state.heads.lock().unwrap().clone()
    }

    /// How many requests have come to their end.
    #[must_use]
    pub fn whole(&self) -> usize {
        self.state.whole.load(Ordering::SeqCst)
    }

    /// How many connections there have been.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.state.received.lock().unwrap().len()
    }

    /// Waits until so many requests have come.
    ///
    /// # Panics
    /// When they do not within 20 seconds.
    pub async fn until_requests(&self, count: usize) -> Vec<String> {
        let start = Instant::now();
        while self.heads().len() < count {
            assert!(start.elapsed() < PATIENCE, "{count} requests, not {:?}", self.heads());
            sleep(Duration::from_millis(2)).await;
        }
        self.heads()
    }

    /// Lets so many of those that wait at a gate go on.
    pub fn release(&self, count: usize) {
        self.state.gate.add_permits(count);
    }
}

impl Drop for RawOrigin {
    fn drop(&mut self) {
        self.server.abort();
    }
}

type Script = dyn Fn(&RawRequest) -> Vec<Play> + Send + Sync;

async fn serve(listener: TcpListener, state: Arc<State>, script: Arc<Script>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let _ = stream.set_nodelay(true);
        let number = {
            let mut received = state.received.lock().unwrap();
            received.push(Vec::new());
            received.len() - 1
        };
        let connection = Connection { stream, number, state: state.clone(), buffer: Vec::new() };
        connections.spawn(connection.serve(script.clone()));
    }
}

struct Connection {
    stream: TcpStream,
    number: usize,
    state: Arc<State>,
    buffer: Vec<u8>,
}

impl Connection {
    async fn serve(mut self, script: Arc<Script>) {
        for on_connection in 0.. {
            let end = loop {
                match head_end(&self.buffer) {
                    Some(end) => break end,
                    None if self.more().await => {}
                    None => return,
                }
            };
            let head = String::from_utf8_lossy(&self.buffer.drain(..end).collect::<Vec<u8>>()).into_owned();
            let number = {
                let mut heads = self.state.heads.lock().unwrap();
                heads.push(head.clone());
                heads.len() - 1
            };
            let request = RawRequest { head, number, on_connection };
            let mut plays = script(&request);
            if !plays.contains(&Play::Body) {
                // Not to take what is left of the body for the next request.
                plays.push(Play::Body);
            }
            for play in plays {
                if !self.play(play, &request).await {
                    return;
                }
            }
        }
    }

    /// Whether the connection is still there.
    async fn play(&mut self, play: Play, request: &RawRequest) -> bool {
        match play {
            Play::Body => {
                let whole = self.body(&request.head).await;
                self.state.whole.fetch_add(usize::from(whole), Ordering::SeqCst);
                return whole;
            }
            Play::Send(bytes) => return self.stream.write_all(&bytes).await.is_ok(),
            Play::Wait(time) => sleep(time).await,
            Play::Gate => self.gate().await,
            Play::HalfClose => drop(self.stream.shutdown().await),
            Play::Close => {
                drop(self.stream.shutdown().await);
                // To close with bytes unread would be a RST.
                drop(timeout(Duration::from_secs(1), async { while self.more().await {} }).await);
                return false;
            }
            Play::Reset => {
                drop(self.stream.set_zero_linger());
                return false;
            }
        }
        true
    }

    /// Waits to be let go, and reads meanwhile.
    async fn gate(&mut self) {
        let state = self.state.clone();
        let mut open = true;
        loop {
            tokio::select! {
                permit = state.gate.acquire() => return permit.expect("a gate that nobody closes").forget(),
                more = self.more(), if open => open = more,
            }
        }
    }

    async fn body(&mut self, head: &str) -> bool {
        let fields = fields_of(head.split_once("\r\n").map_or("", |(_, fields)| fields));
        let field = |name: &str| fields.iter().find(|(other, _)| other.eq_ignore_ascii_case(name));
        let mut chunks = field("transfer-encoding").map(|_| Chunks::default());
        let length = field("content-length").and_then(|(_, length)| length.parse().ok()).unwrap_or(0);
        loop {
            match &mut chunks {
                Some(chunks) => match chunks.take(&mut self.buffer) {
                    Ok(true) => return true,
                    Ok(false) => {}
                    Err(_) => return false,
                },
                None if self.buffer.len() >= length => {
                    self.buffer.drain(..length);
                    return true;
                }
                None => {}
            }
            if !self.more().await {
                return false;
            }
        }
    }

    async fn more(&mut self) -> bool {
        let from = self.buffer.len();
        let count = self.stream.read_buf(&mut self.buffer).await.unwrap_or(0);
        self.state.received.lock().unwrap()[self.number].extend(&self.buffer[from..]);
        count > 0
    }
}
