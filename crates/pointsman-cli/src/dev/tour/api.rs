//! Asks an agent as a program in any language would: by plain HTTP.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::dev::tour::{DEADLINE, Mismatch};

/// An agent to ask.
#[derive(Debug, Clone, Copy)]
pub(super) struct Api {
    pub(super) address: SocketAddr,
}

/// What it has answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// Null where there is none.
    pub(super) body: Value,
}

/// A stream of events. Dropped, its connection is cut, as when a process dies.
#[derive(Debug)]
pub(super) struct Events {
    body: Incoming,
    text: String,
    _connection: JoinSet<()>,
}

impl Api {
    /// One request, on a connection of its own.
    pub(super) async fn call(&self, request: &str, body: Option<&Value>) -> Result<Answer, Mismatch> {
        let asking = async {
            let (response, _connection) = self.send(request, body).await?;
            let status = response.status().as_u16();
            let body = response.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
            Ok(Answer { status, body: serde_json::from_slice(&body).unwrap_or_default() })
        };
        in_time(request, asking).await
    }

    /// A request whose answer must have this status.
    pub(super) async fn expect(&self, status: u16, request: &str, body: Option<&Value>) -> Result<Value, Mismatch> {
        match self.call(request, body).await? {
            answer if answer.status == status => Ok(answer.body),
            Answer { status: other, body } => {
                Err(Mismatch::new(format!("{status} for {request}"), format!("{other} {body}")))
            }
        }
    }

    /// A request whose answer goes on.
    pub(super) async fn open(&self, request: &str, body: Option<&Value>) -> Result<Events, Mismatch> {
        let (response, connection) = in_time(request, self.send(request, body)).await?;
        if response.status() != 200 {
            return Err(Mismatch::new(format!("a stream for {request}"), response.status().to_string()));
        }
        Ok(Events { body: response.into_body(), text: String::new(), _connection: connection })
    }

    async fn send(&self, request: &str, body: Option<&Value>) -> Result<(Response<Incoming>, JoinSet<()>), String> {
        let (method, path) = request.split_once(' ').unwrap_or(("GET", request));
        let bytes = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        let mut builder = Request::builder().method(method).uri(path).header(HOST, self.address.to_string());
        if body.is_some() {
            builder = builder.header(CONTENT_TYPE, "application/json");
        }
        let request = builder.body(Full::new(bytes)).map_err(|error| error.to_string())?;
        let stream = TcpStream::connect(self.address).await.map_err(|error| error.to_string())?;
        let (mut sender, talking) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
        let mut connection = JoinSet::new();
        connection.spawn(async move {
            // A connection that breaks shows by its answer.
            let _ = talking.await;
        });
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        Ok((response, connection))
    }
}

impl Events {
    /// Reads on to the next event of this name; its data.
    pub(super) async fn next(&mut self, name: &str) -> Result<Value, Mismatch> {
        let reading = async {
            loop {
                while let Some((event, rest)) = self.text.split_once("\n\n") {
                    let field = |field| event.lines().find_map(|line| line.strip_prefix(field));
                    let data = (field("event: ") == Some(name)).then(|| field("data: ").unwrap_or_default().to_owned());
                    self.text = rest.to_owned();
                    if let Some(data) = data {
                        return serde_json::from_str(&data).map_err(|error| format!("{data}: {error}"));
                    }
                }
                let frame =
                    self.body.frame().await.ok_or("the end of the stream")?.map_err(|error| error.to_string())?;
                self.text.push_str(&String::from_utf8_lossy(frame.data_ref().map_or(&[], |data| data)));
            }
        };
        in_time(&format!("an event {name}"), reading).await
    }
}

/// What must come before long.
async fn in_time<T>(what: &str, work: impl Future<Output = Result<T, String>>) -> Result<T, Mismatch> {
    match tokio::time::timeout(DEADLINE, work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(seen)) => Err(Mismatch::new(format!("an answer to {what}"), seen)),
        Err(_) => Err(Mismatch::new(format!("an answer to {what}"), format!("nothing within {DEADLINE:?}"))),
    }
}
