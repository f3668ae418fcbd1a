//! Connections to agents: short calls over a few that stay open, and streams over one each.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::sse::{Event, Parser};
use crate::Result;
use crate::tls::Connector;
use crate::url::AgentUrl;
use crate::wait::{Obstacle, Outlook, outlook};

/// The agents of a URL, and the connections to them.
pub(super) struct Agents {
    servers: Vec<Server>,
    /// The one that has answered last.
    current: AtomicUsize,
    tls: Option<Connector>,
    authorization: Option<HeaderValue>,
}

struct Server {
    /// `host:port`.
    address: String,
    idle: Mutex<Vec<Connection>>,
}

/// One that can be asked again.
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    /// Ends with this value, and with it the connection. Gives the error of which the connection has ended.
    driving: JoinSet<Option<hyper::Error>>,
}

/// What an agent answers.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
}

/// A stream of events. Dropped, its connection is closed.
pub(super) struct Stream {
    body: Incoming,
    parser: Parser,
    ready: std::collections::VecDeque<Event>,
    _connection: Connection,
}

/// Why there is no answer.
#[derive(Debug, Clone)]
pub(super) struct Fault(pub(super) Obstacle);

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Fault {
    /// Another agent has failed as well, which says more of what is now. As long as one of them may come, an answer may.
    fn then(self, outlook: Outlook, reason: impl Into<Arc<str>>) -> Self {
        Fault(Obstacle::new(outlook.min(self.0.outlook), reason))
    }

    /// Nothing has been said within `limit`.
    pub(super) fn late(address: &str, limit: Duration) -> Self {
        Fault(Obstacle::new(Outlook::MayPass, format!("{address}: no answer within {limit:?}")))
    }
}

/// To connect takes at most this long: then the next agent is tried.
const CONNECT: Duration = Duration::from_secs(2);
/// An answer takes at most this long. A registration may have to wait for that of a dead process to end.
pub(super) const ANSWER: Duration = Duration::from_secs(12);
/// The agent says something every 10 s.
const SILENCE: Duration = Duration::from_secs(30);
/// So many connections to an agent stay open.
const IDLE: usize = 4;
/// The largest answer.
const LARGEST: usize = 16 << 20;

impl Agents {
    pub(super) fn new(url: AgentUrl) -> Result<Self> {
        let tls = url.tls.as_ref().map(Connector::new).transpose()?;
        let server = |address| Server { address, idle: Mutex::default() };
        let servers: Vec<Server> = url.servers.into_iter().map(server).collect();
        let authorization = url.token.and_then(|token| HeaderValue::try_from(format!("Bearer {token}")).ok());
        // Not all clients at the first.
        let current = AtomicUsize::new(fastrand::usize(..servers.len().max(1)));
        let mut authorization = authorization;
        if let Some(authorization) = &mut authorization {
            authorization.set_sensitive(true);
        }
        Ok(Self { servers, current, tls, authorization })
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.servers.len()
    }

    /// The one that has answered last.
    pub(super) fn current(&self) -> usize {
        self.current.load(Ordering::Relaxed)
    }

    /// The one after it.
    pub(super) fn after(&self, place: usize) -> usize {
        (place + 1) % self.servers.len()
    }

    /// Its address.
    pub(super) fn address(&self, place: usize) -> &str {
        &self.servers[place].address
    }

    /// Asks any of them: each at most once, the one that has answered last first.
    pub(super) async fn call(&self, method: Method, path: &str, body: Option<String>) -> Result<Answer, Fault> {
        let mut place = self.current();
        let mut fault = Fault(Obstacle::new(Outlook::Refused, "no agent"));
        for _ in 0..self.servers.len() {
            match self.call_at(place, method.clone(), path, body.clone()).await {
                // Another one may be there for longer.
                Ok(answer) if answer.status == StatusCode::SERVICE_UNAVAILABLE && self.len() > 1 => {
                    fault = fault.then(Outlook::MayPass, format!("{}: {}", self.address(place), answer.status));
                }
                Ok(answer) => {
                    self.current.store(place, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(Fault(Obstacle { reason, outlook })) => fault = fault.then(outlook, reason),
            }
            place = self.after(place);
        }
        Err(fault)
    }

    /// Asks one of them.
    pub(super) async fn call_at(
        &self,
        place: usize,
        method: Method,
        path: &str,
        body: Option<String>,
    ) -> Result<Answer, Fault> {
        let server = &self.servers[place];
        let asking = async {
            let idle = lock(&server.idle).pop().filter(|connection| !connection.sender.is_closed());
            let request = || self.request(place, &method, path, body.clone());
            if let Some(connection) = idle
                && let Ok(answer) = ask(connection, request(), server).await
            {
                return Ok(answer);
            }
            // The agent may have closed it just now: what is asked here may be asked twice.
            let connection = self.connect(place).await.map_err(|error| self.fault(place, &error))?;
            ask(connection, request(), server).await.map_err(|error| self.fault(place, &*error))
        };
        tokio::time::timeout(ANSWER, asking).await.unwrap_or_else(|_| Err(Fault::late(&server.address, ANSWER)))
    }

    /// Asks one of them for a stream. The head may take long, where it stands for a registration.
    pub(super) async fn stream(
        &self,
        place: usize,
        method: Method,
        path: &str,
        body: Option<String>,
        last_id: Option<&str>,
    ) -> Result<std::result::Result<Stream, Answer>, Fault> {
        let fail = |error: &dyn fmt::Display| {
            Fault(Obstacle::new(Outlook::MayPass, format!("{}: {error}", self.servers[place].address)))
        };
        let mut connection = self.connect(place).await.map_err(|error| self.fault(place, &error))?;
        let mut request = self.request(place, &method, path, body);
        if let Some(id) = last_id.and_then(|id| HeaderValue::try_from(id).ok()) {
            request.headers_mut().insert("last-event-id", id);
        }
        let asking = connection.sender.send_request(request);
        let response = tokio::time::timeout(SILENCE, asking).await.map_err(|_| fail(&"no answer"))?;
        let response = match response {
            Ok(response) => response,
            Err(error) => return Err(self.fault(place, &*connection.ended(error).await)),
        };
        if response.status() != StatusCode::OK {
            return Ok(Err(collect(response).await.map_err(|error| fail(&error))?));
        }
        self.current.store(place, Ordering::Relaxed);
        let (parser, ready) = (Parser::default(), std::collections::VecDeque::new());
        Ok(Ok(Stream { body: response.into_body(), parser, ready, _connection: connection }))
    }

    fn request(&self, place: usize, method: &Method, path: &str, body: Option<String>) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::from(body.unwrap_or_default()));
        *request.method_mut() = method.clone();
        // Paths are made here, of escaped names.
        *request.uri_mut() = path.parse().unwrap_or_default();
        let headers = request.headers_mut();
        if let Ok(host) = HeaderValue::try_from(&self.servers[place].address) {
            headers.insert(HOST, host);
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(authorization) = &self.authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        request
    }

    async fn connect(&self, place: usize) -> io::Result<Connection> {
        let address = &self.servers[place].address;
        let connecting = async {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            match &self.tls {
                None => handshake(TokioIo::new(stream)).await,
                Some(tls) => handshake(TokioIo::new(tls.connect(address, stream).await?)).await,
            }
        };
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, format!("not connected within {CONNECT:?}"));
        tokio::time::timeout(CONNECT, connecting).await.map_err(late)?
    }

    /// Why one of them cannot be asked.
    fn fault(&self, place: usize, error: &(dyn std::error::Error + 'static)) -> Fault {
        let address = self.address(place);
        let (outlook, reason) = match self.tls.as_ref().and_then(|tls| tls.explain(error, address)) {
            Some(refusal) => (Outlook::Refused, refusal),
            None => match (error.downcast_ref::<io::Error>(), error.downcast_ref::<hyper::Error>()) {
                (Some(io), _) => (outlook(io, address), error.to_string()),
                // One that speaks before it is asked is seen one way or the other; hyper has no other sign of that.
                (_, Some(http)) if http.is_parse() || http.to_string().contains("unexpected message") => (
                    Outlook::NoServer,
                    "another kind of server is there: it does not speak HTTP; if it is an agent with TLS, its url begins with https://".to_owned(),
                ),
                // An agent that is about to end, or short of something, closes connections as well.
                (_, Some(http)) if http.is_incomplete_message() || http.is_canceled() => {
                    (Outlook::MayPass, "closes the connection without an answer (is it an agent?)".to_owned())
                }
                _ => (Outlook::MayPass, error.to_string()),
            },
        };
        Fault(Obstacle::new(outlook, format!("{address}: {reason}")))
    }

    /// Lets go of what is idle.
    pub(super) fn close(&self) {
        for server in &self.servers {
            lock(&server.idle).clear();
        }
    }
}

impl fmt::Display for Agents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, server) in self.servers.iter().enumerate() {
            write!(f, "{}{}", if index > 0 { "," } else { "" }, server.address)?;
        }
        Ok(())
    }
}

async fn handshake<S>(stream: TokioIo<S>) -> io::Result<Connection>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) = http1::handshake(stream).await.map_err(io::Error::other)?;
    let mut driving = JoinSet::new();
    driving.spawn(async move { connection.await.err() });
    Ok(Connection { sender, driving })
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

impl Connection {
    /// Why a request has failed. Where the connection had ended before it was sent, its own error says more.
    async fn ended(&mut self, error: hyper::Error) -> AnyError {
        // One that is only not ready for another request does not end.
        let has_ended = error.is_canceled() && self.sender.is_closed();
        let ended = async { if has_ended { self.driving.join_next().await } else { None } };
        let ended = tokio::time::timeout(CONNECT, ended).await.ok().flatten();
        Box::new(ended.and_then(Result::ok).flatten().unwrap_or(error))
    }
}

async fn ask(mut connection: Connection, request: Request<Full<Bytes>>, server: &Server) -> Result<Answer, AnyError> {
    let response = match connection.sender.send_request(request).await {
        Ok(response) => response,
        Err(error) => return Err(connection.ended(error).await),
    };
    let answer = collect(response).await?;
    let mut idle = lock(&server.idle);
    if idle.len() < IDLE && !connection.sender.is_closed() {
        idle.push(connection);
    }
    Ok(answer)
}

async fn collect(response: Response<Incoming>) -> Result<Answer, String> {
    let status = response.status();
    let body = Limited::new(response.into_body(), LARGEST).collect().await.map_err(|error| error.to_string())?;
    Ok(Answer { status, body: body.to_bytes() })
}

impl Stream {
    /// The next event. `Err` says why there will be none. Cancellation loses nothing.
    pub(super) async fn next(&mut self) -> Result<Event, String> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            let frame = tokio::time::timeout(SILENCE, self.body.frame()).await;
            let frame = frame.map_err(|_| format!("the agent has said nothing for {SILENCE:?}"))?;
            let frame = frame.ok_or("the agent has closed the stream")?.map_err(|error| error.to_string())?;
            if let Some(bytes) = frame.data_ref() {
                self.ready.extend(self.parser.push(bytes)?);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while it was held cannot have left the list half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
