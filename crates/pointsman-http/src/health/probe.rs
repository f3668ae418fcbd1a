//! One check of one instance.

use std::future::poll_fn;
use std::task::{Poll, ready};

use tokio::time::timeout;

use crate::flow::{Sink as _, Source as _};
use crate::forward::{Hop, Ids, Peer};
use crate::head::{RequestHead, ResponseHead};
use crate::http1::parse;
use crate::instance::dial::{NoConnection, Secret, dial};
use crate::instance::http2::Connections;
use crate::instance::{Connection, Failure, Http1, Sending};
use crate::settings::{Check, Forwarded, Limits, Network, Protocol};

/// So much of an answer is read, so that the instance need not take the check for a client that has gone.
const MOST_READ: usize = 64 << 10;

/// How the instances of a service are checked.
#[derive(Debug)]
pub(super) struct Means {
    pub(super) check: Check,
    pub(super) protocol: Protocol,
    pub(super) allowed: Vec<Network>,
    pub(super) secret: Secret,
}

impl Means {
    /// Whether it answers; if not, why not.
    pub(super) async fn probe(&self, address: Option<&str>) -> Result<(), String> {
        let address = address.ok_or("it has no address")?;
        timeout(self.check.timeout, self.ask(address)).await.map_err(|_| "it does not answer in time")?
    }

    async fn ask(&self, address: &str) -> Result<(), String> {
        let io = dial(address, &self.secret, &self.allowed).await.map_err(|failure| match failure {
            NoConnection::Refused(reason) => reason,
            NoConnection::Failed(error) => format!("connect: {error}"),
            NoConnection::Tls(error) => format!("TLS handshake: {error}"),
        })?;
        let Some(path) = &self.check.path else { return Ok(()) };
        // They last as long as the check.
        let connections = Connections::default();
        let mut connection = match self.protocol {
            Protocol::Http1 => Connection::Http1(Box::new(Http1::new(io))),
            Protocol::Http2 => {
                let begun =
                    connections.begin(&address.into(), io).await.map_err(|error| format!("connect: {error}"))?;
                Connection::Http2(Box::new(begun))
            }
        };
        let status = get(&mut connection, address, path, self.secret.connector.is_some()).await?;
        if (200..400).contains(&status) { Ok(()) } else { Err(format!("it answers with {status}")) }
    }
}

/// The status of the answer.
async fn get(connection: &mut Connection, host: &str, path: &str, secure: bool) -> Result<u16, String> {
    let bounds = Limits::default().bounds();
    let mut head = RequestHead::default();
    let version = env!("CARGO_PKG_VERSION");
    let text = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nuser-agent: pointsman/{version} (check)\r\n\r\n");
    parse::request(text.as_bytes(), &mut head, bounds).map_err(|problem| problem.detail.into_owned())?;
    let (peer, ids) = (Peer::new(std::net::Ipv4Addr::LOCALHOST.into(), false), Ids::of(&head));
    let hop = Hop { peer: &peer, trusted: false, forwarded: Forwarded::Off, ids: &ids };
    connection.send(&Sending { head: &head, target: head.target(), framing: head.framing, secure, hop });
    connection.finish(None);
    let mut answer = ResponseHead::default();
    poll_fn(|cx| {
        // If it takes no more, the answer will tell.
        let _ = connection.poll_flush(cx);
        loop {
            match ready!(connection.poll_head(cx, &mut answer, bounds)) {
                Ok(()) if answer.is_interim() => {}
                Ok(()) => return Poll::Ready(Ok(())),
                Err(Failure::Unsendable(reason)) => return Poll::Ready(Err(format!("it cannot be asked: {reason}"))),
                Err(Failure::Nonsense(reason)) => return Poll::Ready(Err(format!("its answer is refused: {reason}"))),
                Err(Failure::Unanswered(error) | Failure::CutOff(error)) => {
                    return Poll::Ready(Err(format!("it ends the connection without an answer: {}", error.kind())));
                }
            }
        }
    })
    .await?;
    let mut read = 0;
    poll_fn(|cx| {
        while let Ok(true) = ready!(connection.poll_body(cx)) {
            let count = connection.body().len();
            connection.consume(count);
            read += count;
            if read > MOST_READ {
                break;
            }
        }
        Poll::Ready(())
    })
    .await;
    Ok(answer.status)
}
