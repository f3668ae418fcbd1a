//! Tiny origins and clients of HTTP/1.1, and services whose instances come and go as a test says.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub, reason = "not every test uses all of it")]

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pointsman_core::{Instance, ObservedInstance, Role, Snapshot, Term, ViewWriter};
use pointsman_http::{Action, Options, Pass, Proxy, Route, Settings, Views};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// What should happen happens within this.
pub const SOON: Duration = Duration::from_secs(20);

/// A request as an origin has seen it.
#[derive(Debug, Clone)]
pub struct Seen {
    pub head: String,
    pub body: String,
}

impl Seen {
    pub fn line(&self) -> &str {
        self.head.lines().next().unwrap()
    }

    pub fn field(&self, name: &str) -> Option<&str> {
        let is_it = |line: &&str| line.split(':').next().unwrap().eq_ignore_ascii_case(name);
        Some(self.head.lines().find(is_it)?.split_once(':').unwrap().1.trim())
    }
}

/// What an origin does about a request.
#[derive(Debug, Clone)]
pub enum Play {
    Answer(String),
    /// The same, once [`Origin::release`] lets it.
    Held(String),
    /// The same, and the connection ends.
    Cut(String),
    /// The connection ends.
    Drop,
}

pub fn ok(body: &str) -> Play {
    status(200, body)
}

pub fn status(status: u16, body: &str) -> Play {
    Play::Answer(format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{body}", body.len()))
}

/// An origin. It ends with this.
pub struct Origin {
    pub address: SocketAddr,
    seen: mpsc::UnboundedReceiver<Seen>,
    gate: Arc<Semaphore>,
    server: JoinHandle<()>,
}

impl Origin {
    pub async fn start(script: impl Fn(&Seen) -> Play + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (tell, seen) = mpsc::unbounded_channel();
        let (gate, script) = (Arc::new(Semaphore::new(0)), Arc::new(script));
        let waits = gate.clone();
        let server = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(serve(stream, script.clone(), tell.clone(), waits.clone()));
            }
        });
        Self { address, seen, gate, server }
    }

    /// The next request that comes.
    pub async fn next(&mut self) -> Seen {
        timeout(SOON, self.seen.recv()).await.expect("a request comes soon").unwrap()
    }

    /// The next one with this in its first line.
    pub async fn next_like(&mut self, what: &str) -> Seen {
        loop {
            let seen = self.next().await;
            if seen.line().contains(what) {
                return seen;
            }
        }
    }

    /// What has come and nobody has asked for.
    pub fn others(&mut self) -> Vec<Seen> {
        std::iter::from_fn(|| self.seen.try_recv().ok()).collect()
    }

    pub fn release(&self, count: usize) {
        self.gate.add_permits(count);
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(
    mut stream: TcpStream,
    script: Arc<impl Fn(&Seen) -> Play>,
    tell: mpsc::UnboundedSender<Seen>,
    gate: Arc<Semaphore>,
) {
    let mut buffer = Vec::new();
    loop {
        let end = loop {
            if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            if !matches!(stream.read_buf(&mut buffer).await, Ok(1..)) {
                return;
            }
        };
        let head = String::from_utf8_lossy(&buffer.drain(..end).collect::<Vec<u8>>()).into_owned();
        let mut seen = Seen { head, body: String::new() };
        let length = seen.field("content-length").map_or(0, |length| length.parse().unwrap());
        while buffer.len() < length {
            if !matches!(stream.read_buf(&mut buffer).await, Ok(1..)) {
                return;
            }
        }
        seen.body = String::from_utf8_lossy(&buffer.drain(..length).collect::<Vec<u8>>()).into_owned();
        let play = script(&seen);
        let _ = tell.send(seen);
        let answer = match play {
            Play::Answer(answer) => answer,
            Play::Held(answer) => {
                gate.acquire().await.unwrap().forget();
                answer
            }
            Play::Cut(answer) => {
                let _ = stream.write_all(answer.as_bytes()).await;
                return;
            }
            Play::Drop => return,
        };
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// Sends this, and returns all that comes until the connection ends.
pub async fn exchange(address: SocketAddr, request: &str) -> String {
    let talk = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    };
    timeout(SOON, talk).await.expect("an answer comes soon")
}

/// The status and the body of an answer.
pub async fn get(address: SocketAddr, target: &str) -> (u16, String) {
    let answer = exchange(address, &format!("GET {target} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// An instance; the code `m` is the master's.
pub fn instance(service: &str, code: &str, address: SocketAddr) -> ObservedInstance {
    let mut instance = ObservedInstance::from(Instance::new(service).code(code).address(address.to_string()));
    instance.role = if code == "m" { Role::Master(Term(1)) } else { Role::Normal };
    instance
}

/// The instances of services, as a registry would show them.
pub struct Fleet(Mutex<HashMap<Arc<str>, ViewWriter>>);

impl Fleet {
    pub fn new(services: &[&str]) -> Self {
        let writer = |service: &&str| (Arc::from(*service), ViewWriter::new(Snapshot::empty(*service)));
        Self(Mutex::new(services.iter().map(writer).collect()))
    }

    /// Who is there from now on; the code `m` is the master's.
    pub fn set(&self, service: &str, instances: &[(&str, SocketAddr)]) {
        self.put(service, instances.iter().map(|(code, address)| instance(service, code, *address)));
    }

    /// The same, as they are.
    pub fn put(&self, service: &str, instances: impl IntoIterator<Item = ObservedInstance>) {
        let mut writers = self.0.lock().unwrap();
        let writer = writers.get_mut(service).unwrap();
        let revision = writer.load().revision() + 1;
        writer.store(Arc::new(Snapshot::new(service, revision, instances.into_iter().map(Arc::new).collect())));
    }

    pub fn views(&self) -> Views {
        self.0.lock().unwrap().iter().map(|(service, writer)| (service.clone().into(), writer.view())).collect()
    }

    pub fn proxy(&self, settings: Settings, options: Options) -> Proxy {
        Proxy::start(settings, &self.views(), options).unwrap()
    }
}

/// Everything goes to `ress` in this way; on a port that is free, with one worker.
pub fn settings(change: impl FnOnce(&mut Pass)) -> Settings {
    let mut route = Route::new("^/", "ress");
    let Action::Pass(pass) = &mut route.action else { unreachable!() };
    change(pass);
    let mut settings = Settings::new();
    settings.listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    settings.workers = 1;
    settings.routes = vec![route];
    settings
}

/// The value of a metric, by its whole name with labels; 0 if it is not there.
pub fn metric(proxy: &Proxy, name: &str) -> u64 {
    let text = proxy.metrics();
    let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok();
    text.lines().find_map(value).unwrap_or(0)
}

/// Waits until it is so.
pub async fn until(what: &str, is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(SOON, waiting).await.unwrap_or_else(|_| panic!("not {what} within {SOON:?}"));
}
