//! A client that says what a test tells it to, byte by byte.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::PATIENCE;
use super::message::{Chunks, Framing, Response};

/// A connection of a client. Closed on drop.
#[derive(Debug)]
pub struct RawClient {
    read: OwnedReadHalf,
    write: Option<OwnedWriteHalf>,
    /// What has come and belongs to no answer yet.
    received: Vec<u8>,
    ended: bool,
    /// What [`send_on`](RawClient::send_on) is still sending.
    sending: Option<JoinHandle<OwnedWriteHalf>>,
}

impl RawClient {
    /// Connects and says nothing.
    ///
    /// # Panics
    /// When that is refused, or takes longer than 20 seconds.
    pub async fn connect(address: SocketAddr) -> RawClient {
        let stream = timeout(PATIENCE, TcpStream::connect(address)).await.expect("a connection within 20 s");
        let stream = stream.unwrap_or_else(|error| panic!("connect to {address}: {error}"));
        let _ = stream.set_nodelay(true);
        let (read, write) = stream.into_split();
        RawClient { read, write: Some(write), received: Vec::new(), ended: false, sending: None }
    }

    /// Sends these bytes. Whether the peer is still there is for a read to find out.
    ///
    /// # Panics
    /// When it does not take them within 20 seconds.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        if let Some(sending) = self.sending.take() {
            self.write = Some(timeout(PATIENCE, sending).await.expect("bytes taken within 20 s").unwrap());
        }
        let write = self.write.as_mut().expect("a side that is not closed");
        let sent = timeout(PATIENCE, write.write_all(bytes.as_ref())).await;
        drop(sent.expect("bytes taken within 20 s"));
    }

    /// Sends these bytes while the test goes on.
    pub fn send_on(&mut self, bytes: Vec<u8>) {
        let mut write = self.write.take().expect("a side that is not closed");
        self.sending = Some(tokio::spawn(async move {
            let _ = write.write_all(&bytes).await;
            write
        }));
    }

    /// Ends the own side with a FIN: the answers can still be read.
    pub async fn half_close(&mut self) {
        self.send([]).await;
        drop(self.write.as_mut().expect("a side that is not closed").shutdown().await);
    }

    /// Ends it with a RST.
    pub fn reset(self) {
        drop(self.read.as_ref().set_zero_linger());
    }

    /// Sends a request and reads the answer.
    pub async fn request(&mut self, bytes: impl AsRef<[u8]>) -> Response {
        let bytes = bytes.as_ref();
        self.send(bytes).await;
        let method = bytes.split(|byte| *byte == b' ').next().unwrap_or_default();
        self.response_to(&String::from_utf8_lossy(method)).await
    }

    /// The next answer, of a request that was no HEAD.
    ///
    /// # Panics
    /// When none comes within 20 seconds, or the end comes before.
    pub async fn response(&mut self) -> Response {
        self.response_to("GET").await
    }

    /// The next answer, of a request with this method.
    ///
    /// # Panics
    /// When none comes within 20 seconds, or the end comes before.
    pub async fn response_to(&mut self, method: &str) -> Response {
        self.try_response(method).await.expect("an answer, not the end of the connection")
    }

    /// The next answer; `None` when the connection ends before its head is whole. Where the body does not come to its end, the
    /// answer says that it is not complete.
    ///
    /// # Panics
    /// When neither comes within 20 seconds, or what comes is no HTTP.
    pub async fn try_response(&mut self, method: &str) -> Option<Response> {
        let mut response = Response::default();
        loop {
            while response.take_head(&mut self.received).is_none() {
                if !self.more().await {
                    return None;
                }
            }
            if response.status >= 200 || response.status == 101 {
                break;
            }
            response.informational.push(response.status);
        }
        self.body(&mut response, method).await;
        Some(response)
    }

    /// The next head alone, be it of an informational answer.
    ///
    /// # Panics
    /// When it does not come.
    pub async fn head(&mut self) -> Response {
        let mut response = Response::default();
        while response.take_head(&mut self.received).is_none() {
            assert!(self.more().await, "a head, not the end after {:?}", self.received);
        }
        response
    }

    /// What has come next, as much as there is; empty at the end.
    ///
    /// # Panics
    /// When nothing happens within 20 seconds.
    pub async fn read_some(&mut self) -> Vec<u8> {
        if self.received.is_empty() {
            self.more().await;
        }
        std::mem::take(&mut self.received)
    }

    /// Everything that comes until `part` does, with it.
    ///
    /// # Panics
    /// When it does not.
    pub async fn read_until(&mut self, part: &str) -> String {
        loop {
            let at = self.received.windows(part.len()).position(|window| window == part.as_bytes());
            if let Some(at) = at {
                let taken: Vec<u8> = self.received.drain(..at + part.len()).collect();
                return String::from_utf8_lossy(&taken).into_owned();
            }
            assert!(self.more().await, "{part:?}, not the end after {:?}", String::from_utf8_lossy(&self.received));
        }
    }

    /// Everything that comes until the peer closes or resets the connection.
    ///
    /// # Panics
    /// When it does neither within 20 seconds.
    pub async fn rest(&mut self) -> Vec<u8> {
        timeout(PATIENCE, async { while self.more().await {} }).await.expect("the end of the connection within 20 s");
        std::mem::take(&mut self.received)
    }

    /// Reads on to the end; whether that is a reset.
    ///
    /// # Panics
    /// When there is none within 20 seconds.
    pub async fn is_reset(&mut self) -> bool {
        self.rest().await;
        !self.ended
    }

    /// Whether the connection ends within this, with nothing more said.
    pub async fn ends_within(&mut self, within: Duration) -> bool {
        self.received.is_empty() && timeout(within, self.more()).await.is_ok_and(|more| !more)
    }

    /// Its own address.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn local_address(&self) -> SocketAddr {
        self.read.local_addr().unwrap()
    }

    async fn body(&mut self, response: &mut Response, method: &str) {
        let framing = response.framing(method);
        let mut chunks = Chunks::default();
        loop {
            let done = match framing {
                Framing::Length(length) => self.received.len() >= length,
                Framing::Chunked => {
                    let done = chunks.take(&mut self.received);
                    done.unwrap_or_else(|error| panic!("{error}: {response:?}"))
                }
                Framing::UntilClosed => false,
            };
            if done || !self.more().await {
                response.complete = done || (framing == Framing::UntilClosed && self.ended);
                break;
            }
        }
        match framing {
            Framing::Chunked => (response.body, response.trailers) = (chunks.body, chunks.trailers),
            Framing::Length(length) => {
                let length = length.min(self.received.len());
                response.body = self.received.drain(..length).collect();
            }
            Framing::UntilClosed => response.body = std::mem::take(&mut self.received),
        }
    }

    /// Waits for bytes; `false` at the end.
    async fn more(&mut self) -> bool {
        let read = timeout(PATIENCE, self.read.read_buf(&mut self.received)).await;
        let read = read.unwrap_or_else(|_| {
            panic!("bytes, or the end, within 20 s; there is {:?}", String::from_utf8_lossy(&self.received))
        });
        // A reset is an end of its own kind: what is delimited by the end is not complete then.
        self.ended |= matches!(read, Ok(0));
        read.is_ok_and(|count| count > 0)
    }
}

/// A GET on a connection of its own.
pub async fn get(address: SocketAddr, target: &str) -> Response {
    request(address, "GET", target, &[], "").await
}

/// A request on a connection of its own, with `Host: test.example` where the fields have none.
pub async fn request(
    address: SocketAddr,
    method: &str,
    target: &str,
    fields: &[(&str, &str)],
    body: impl AsRef<[u8]>,
) -> Response {
    let mut client = RawClient::connect(address).await;
    let body = body.as_ref();
    let mut text = format!("{method} {target} HTTP/1.1\r\n");
    if !fields.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        text += "Host: test.example\r\n";
    }
    for (name, value) in fields {
        text += &format!("{name}: {value}\r\n");
    }
    if !body.is_empty() {
        text += &format!("Content-Length: {}\r\n", body.len());
    }
    client.request([text.as_bytes(), b"\r\n", body].concat()).await
}
