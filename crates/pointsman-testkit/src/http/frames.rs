//! A client of HTTP/2 that writes frames as a test tells it to.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::PATIENCE;

/// Types of frames (RFC 9113, section 6).
pub mod kind {
    /// DATA.
    pub const DATA: u8 = 0;
    /// HEADERS.
    pub const HEADERS: u8 = 1;
    /// RST_STREAM.
    pub const RESET: u8 = 3;
    /// SETTINGS.
    pub const SETTINGS: u8 = 4;
    /// PING.
    pub const PING: u8 = 6;
    /// GOAWAY.
    pub const GO_AWAY: u8 = 7;
    /// WINDOW_UPDATE.
    pub const WINDOW: u8 = 8;
    /// CONTINUATION.
    pub const CONTINUATION: u8 = 9;
}

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Frame {
    /// Its type, see [`kind`].
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
    /// The stream, 0 for the connection.
    pub stream: u32,
    /// The rest.
    pub payload: Vec<u8>,
}

/// A connection with prior knowledge. Closed on drop.
#[derive(Debug)]
pub struct FrameClient {
    stream: TcpStream,
}

impl FrameClient {
    /// END_STREAM, and ACK of SETTINGS and PING.
    pub const END_STREAM: u8 = 1;
    /// END_HEADERS.
    pub const END_HEADERS: u8 = 4;

    /// Connects, and sends the preface with empty SETTINGS.
    ///
    /// # Panics
    /// When that takes longer than 20 seconds.
    pub async fn connect(address: SocketAddr) -> FrameClient {
        let stream = timeout(PATIENCE, TcpStream::connect(address)).await.expect("a connection within 20 s");
        let stream = stream.unwrap_or_else(|error| panic!("connect to {address}: {error}"));
        let _ = stream.set_nodelay(true);
        let mut client = FrameClient { stream };
        client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        client.send(&FrameClient::frame(kind::SETTINGS, 0, 0, &[])).await;
        client
    }

    /// A frame, encoded.
    ///
    /// # Panics
    /// When it is 16 MiB or more.
    #[must_use]
    pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        assert_eq!(length[0], 0, "less than 16 MiB");
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    /// Fields as HPACK has them without a table and without Huffman's code.
    ///
    /// # Panics
    /// When a name or a value has 127 bytes or more.
    #[must_use]
    pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
        let mut block = Vec::new();
        for (name, value) in fields {
            block.push(0);
            for text in [name, value] {
                assert!(text.len() < 127, "a length of one byte");
                block.push(u8::try_from(text.len()).unwrap());
                block.extend(text.as_bytes());
            }
        }
        block
    }

    /// The fields of a request without a body.
    #[must_use]
    pub fn get(path: &str) -> Vec<(&str, &str)> {
        vec![(":method", "GET"), (":scheme", "http"), (":authority", "test.example"), (":path", path)]
    }

    /// Sends bytes; whether the peer still takes them, all of them within 20 seconds.
    pub async fn send(&mut self, bytes: &[u8]) -> bool {
        timeout(PATIENCE, self.stream.write_all(bytes)).await.is_ok_and(|sent| sent.is_ok())
    }

    /// Sends a GET as one frame.
    pub async fn send_get(&mut self, stream: u32, path: &str) -> bool {
        let flags = FrameClient::END_STREAM | FrameClient::END_HEADERS;
        let block = FrameClient::block(&FrameClient::get(path));
        self.send(&FrameClient::frame(kind::HEADERS, flags, stream, &block)).await
    }

    /// The next frame; `None` when the connection has ended.
    ///
    /// # Panics
    /// When neither comes within 20 seconds.
    pub async fn next(&mut self) -> Option<Frame> {
        timeout(PATIENCE, self.read()).await.expect("a frame, or the end, within 20 s")
    }

    /// The frames up to the first of this kind, with it; or up to the end.
    ///
    /// # Panics
    /// When neither comes.
    pub async fn until(&mut self, kind: u8) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Some(frame) = self.next().await {
            let last = frame.kind == kind;
            frames.push(frame);
            if last {
                break;
            }
        }
        frames
    }

    /// How a stream ends: the first byte of its head's block (0x88 is the status 200 of the static table) and its body, or the
    /// code of RST_STREAM or GOAWAY; an answer's code is `None`.
    pub async fn outcome(&mut self, stream: u32) -> (Option<u32>, Vec<u8>) {
        let mut body = Vec::new();
        while let Some(frame) = self.next().await {
            let code =
                |at: usize| frame.payload.get(at..at + 4).map(|code| u32::from_be_bytes(code.try_into().unwrap()));
            match frame.kind {
                kind::GO_AWAY => return (code(4), body),
                kind::RESET if frame.stream == stream => return (code(0), body),
                kind::DATA if frame.stream == stream => body.extend(&frame.payload),
                _ => {}
            }
            let whole = matches!(frame.kind, kind::DATA | kind::HEADERS) && frame.flags & FrameClient::END_STREAM != 0;
            if whole && frame.stream == stream {
                return (None, body);
            }
        }
        (Some(u32::MAX), body)
    }

    async fn read(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        self.stream.read_exact(&mut payload).await.ok()?;
        let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
        Some(Frame { kind: head[3], flags: head[4], stream, payload })
    }
}
