//! Connections to agents: short calls over a few that stay open, and streams over one each.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

use super::sse::{Event, Parser};
use crate::url::AgentUrl;
use crate::{Error, Result};

/// The agents of a URL, and the connections to them.
pub(super) struct Agents {
    servers: Vec<Server>,
    /// The one that has answered last.
    current: AtomicUsize,
    tls: Option<TlsConnector>,
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
    /// Ends with this value, and with it the connection.
    _driving: JoinSet<()>,
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
pub(super) struct Fault(String);

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Fault {
    /// Nothing has been said within `limit`.
    pub(super) fn late(address: &str, limit: Duration) -> Self {
        Fault(format!("{address}: no answer within {limit:?}"))
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
        let tls = if url.https { Some(connector(&url)?) } else { None };
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
        let mut fault = Fault("no agent".to_owned());
        for _ in 0..self.servers.len() {
            match self.call_at(place, method.clone(), path, body.clone()).await {
                // Another one may be there for longer.
                Ok(answer) if answer.status == StatusCode::SERVICE_UNAVAILABLE && self.len() > 1 => {
                    fault = Fault(format!("{}: {}", self.address(place), answer.status));
                }
                Ok(answer) => {
                    self.current.store(place, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(error) => fault = error,
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
        let fail = |error: &dyn fmt::Display| Fault(format!("{}: {error}", server.address));
        let asking = async {
            let idle = lock(&server.idle).pop().filter(|connection| !connection.sender.is_closed());
            let request = || self.request(place, &method, path, body.clone());
            if let Some(connection) = idle
                && let Ok(answer) = ask(connection, request(), server).await
            {
                return Ok(answer);
            }
            // The agent may have closed it just now: what is asked here may be asked twice.
            let connection = self.connect(place).await.map_err(|error| fail(&error))?;
            ask(connection, request(), server).await.map_err(|error| fail(&error))
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
        let fail = |error: &dyn fmt::Display| Fault(format!("{}: {error}", self.servers[place].address));
        let mut connection = self.connect(place).await.map_err(|error| fail(&error))?;
        let mut request = self.request(place, &method, path, body);
        if let Some(id) = last_id.and_then(|id| HeaderValue::try_from(id).ok()) {
            request.headers_mut().insert("last-event-id", id);
        }
        let asking = connection.sender.send_request(request);
        let response = tokio::time::timeout(SILENCE, asking).await.map_err(|_| fail(&"no answer"))?;
        let response = response.map_err(|error| fail(&error))?;
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
                Some(tls) => {
                    let host = address.rsplit_once(':').map_or(&**address, |(host, _)| host).trim_matches(['[', ']']);
                    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
                    handshake(TokioIo::new(tls.connect(name, stream).await?)).await
                }
            }
        };
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, format!("not connected within {CONNECT:?}"));
        tokio::time::timeout(CONNECT, connecting).await.map_err(late)?
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
    driving.spawn(async move {
        // Whoever asks gets the error.
        let _ = connection.await;
    });
    Ok(Connection { sender, _driving: driving })
}

async fn ask(mut connection: Connection, request: Request<Full<Bytes>>, server: &Server) -> Result<Answer, String> {
    let response = connection.sender.send_request(request).await.map_err(|error| error.to_string())?;
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

fn connector(url: &AgentUrl) -> Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    if let Some(ca) = &url.tls.ca {
        for certificate in certificates(ca)? {
            roots.add(certificate).map_err(|error| file(ca, &error))?;
        }
    }
    let provider = Arc::new(crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::Refused { step: "set up tls".to_owned(), reason: error.to_string() })?
        .with_root_certificates(roots);
    let config = match (&url.tls.cert, &url.tls.key) {
        (Some(cert), Some(key)) => {
            let private = PrivateKeyDer::from_pem_file(key).map_err(|error| file(key, &error))?;
            builder.with_client_auth_cert(certificates(cert)?, private).map_err(|error| file(cert, &error))?
        }
        _ => builder.with_no_client_auth(),
    };
    Ok(TlsConnector::from(Arc::new(config)))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    read.map_err(|error| file(path, &error))
}

fn file(path: &Path, reason: &dyn fmt::Display) -> Error {
    Error::File { path: path.to_owned(), reason: reason.to_string() }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while it was held cannot have left the list half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
