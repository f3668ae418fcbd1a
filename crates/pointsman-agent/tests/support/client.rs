//! HTTP/1.1 and streams of events over one connection, byte by byte.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{SOON, soon};

pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A connection.
pub(crate) struct Client {
    stream: Box<dyn Stream>,
    /// Bytes that have been read and not yet used.
    buffer: Vec<u8>,
    /// Of a stream of events, without its chunks.
    text: Vec<u8>,
}

/// An answer, whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

/// An event of a stream.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Event {
    pub(crate) name: String,
    pub(crate) data: Value,
    pub(crate) id: Option<String>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other == name).map(|(_, value)| &**value)
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The last part of a problem's type; everything else about it is checked.
    pub(crate) fn problem(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let json = self.json();
        assert_eq!(json["status"], self.status, "{json}");
        assert!(json["title"].as_str().is_some_and(|title| !title.is_empty()), "{json}");
        assert!(json["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{json}");
        assert_eq!(self.header("retry-after").is_some(), self.status == 503, "{self:?}");
        json["type"].as_str().unwrap().strip_prefix("urn:pointsman:problem:").unwrap().to_owned()
    }

    /// Status and type.
    #[track_caller]
    pub(crate) fn is_problem(&self, status: u16, name: &str) -> String {
        assert_eq!((self.status, &*self.problem()), (status, name), "{}", self.text());
        self.json()["detail"].as_str().unwrap().to_owned()
    }
}

/// A request with a `Host`, and a length if there is a body.
pub(crate) fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\n");
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        head.push_str("host: 127.0.0.1\r\n");
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() {
        head.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    [format!("{head}\r\n").as_bytes(), body].concat()
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = soon("connect", TcpStream::connect(address)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self::over(stream)
    }

    pub(crate) fn over(stream: impl Stream + 'static) -> Self {
        Self { stream: Box::new(stream), buffer: Vec::new(), text: Vec::new() }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        soon("send", self.stream.write_all(bytes)).await.unwrap();
        soon("send", self.stream.flush()).await.unwrap();
    }

    /// Sends no more, but reads on.
    pub(crate) async fn finish(&mut self) {
        self.stream.shutdown().await.unwrap();
    }

    pub(crate) async fn ask(&mut self, method: &str, path: &str, body: &str) -> Answer {
        self.ask_with(method, path, &[], body).await
    }

    pub(crate) async fn ask_with(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        self.send(&request(method, path, headers, body.as_bytes())).await;
        self.answer(method).await
    }

    /// Asks for a stream of events, and reads its head.
    pub(crate) async fn open(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) {
        self.send(&request(method, path, headers, body.as_bytes())).await;
        let answer = self.head().await;
        assert_eq!(answer.status, 200, "{method} {path}: {answer:?} {}", String::from_utf8_lossy(&self.buffer));
        assert_eq!(answer.header("content-type"), Some("text/event-stream; charset=utf-8"));
        assert_eq!(answer.header("transfer-encoding"), Some("chunked"));
    }

    /// Reads an answer with its body.
    pub(crate) async fn answer(&mut self, method: &str) -> Answer {
        let mut answer = self.head().await;
        if method == "HEAD" || matches!(answer.status, 204 | 304) {
            return answer;
        }
        if answer.header("transfer-encoding") == Some("chunked") {
            while let Some(chunk) = soon("a chunk", self.chunk()).await {
                answer.body.extend(chunk);
            }
            return answer;
        }
        let length: usize = answer.header("content-length").expect("a length").parse().unwrap();
        while self.buffer.len() < length {
            assert!(soon("the body", self.more()).await, "cut off: {answer:?}");
        }
        answer.body = self.buffer.drain(..length).collect();
        answer
    }

    async fn head(&mut self) -> Answer {
        let end = loop {
            if let Some(end) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break end;
            }
            assert!(soon("an answer", self.more()).await, "closed: {:?}", String::from_utf8_lossy(&self.buffer));
        };
        let head = String::from_utf8(self.buffer.drain(..end + 4).collect()).unwrap();
        let mut lines = head.trim_end().split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let split = |line: &str| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned()));
        Answer { status, headers: lines.filter_map(split).collect(), body: Vec::new() }
    }

    /// Whether there was more to read.
    async fn more(&mut self) -> bool {
        let read = self.stream.read_buf(&mut self.buffer).await;
        matches!(read, Ok(count) if count > 0)
    }

    /// The next chunk; `None` after the last, or when the connection is cut.
    async fn chunk(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|window| window == b"\r\n") {
                let size = usize::from_str_radix(std::str::from_utf8(&self.buffer[..end]).unwrap(), 16).unwrap();
                if self.buffer.len() >= end + 2 + size + 2 {
                    let chunk: Vec<u8> = self.buffer.drain(..end + 2 + size + 2).skip(end + 2).take(size).collect();
                    return (size > 0).then_some(chunk);
                }
            }
            if !self.more().await {
                return None;
            }
        }
    }

    /// The next event; `None` at the stream's end.
    pub(crate) async fn next_event(&mut self) -> Option<Event> {
        soon("an event", self.event_whenever()).await
    }

    pub(crate) async fn event(&mut self) -> Event {
        self.next_event().await.expect("the stream has ended")
    }

    /// The next event, which has this name.
    pub(crate) async fn event_named(&mut self, name: &str) -> Event {
        let event = self.event().await;
        assert_eq!(event.name, name, "{event:?}");
        event
    }

    /// Skips events until one has this name.
    pub(crate) async fn until_event(&mut self, name: &str) -> Event {
        loop {
            let event = self.event().await;
            if event.name == name {
                return event;
            }
        }
    }

    /// Whether nothing comes within a while. Says nothing about later.
    pub(crate) async fn is_silent(&mut self, within: Duration) -> bool {
        tokio::time::timeout(within, self.event_whenever()).await.is_err()
    }

    async fn event_whenever(&mut self) -> Option<Event> {
        loop {
            while let Some(end) = self.text.windows(2).position(|window| window == b"\n\n") {
                let text = String::from_utf8(self.text.drain(..end + 2).collect()).unwrap();
                let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
                if let Some(name) = field("event") {
                    let data = serde_json::from_str(field("data").unwrap()).unwrap();
                    return Some(Event { name: name.to_owned(), data, id: field("id").map(str::to_owned) });
                }
                assert!(text.starts_with(':'), "{text:?}");
            }
            let chunk = self.chunk().await?;
            self.text.extend(chunk);
        }
    }

    /// Everything until the other end closes.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        soon("the end", async { while self.more().await {} }).await;
        std::mem::take(&mut self.buffer)
    }

    /// Everything until the other end closes, or `None` if it has not within this time.
    pub(crate) async fn rest_within(&mut self, time: Duration) -> Option<Vec<u8>> {
        assert!(time < SOON);
        tokio::time::timeout(time, async { while self.more().await {} }).await.ok()?;
        Some(std::mem::take(&mut self.buffer))
    }

    /// Everything until the other end closes, or until it ends with `end`.
    pub(crate) async fn rest_or(&mut self, end: &[u8]) -> Vec<u8> {
        while !self.buffer.ends_with(end) && self.more().await {}
        std::mem::take(&mut self.buffer)
    }
}
