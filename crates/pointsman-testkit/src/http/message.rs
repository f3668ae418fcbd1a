//! Answers of HTTP/1.1, as they come on the wire.

use serde_json::Value;

/// An answer, or what has come of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Response {
    /// Of the last head: `HTTP/1.1`.
    pub version: String,
    /// The status.
    pub status: u16,
    /// The fields in their order, names as they were written.
    pub headers: Vec<(String, String)>,
    /// The body, decoded where it was chunked.
    pub body: Vec<u8>,
    /// What came after the last chunk.
    pub trailers: Vec<(String, String)>,
    /// Whether the body came to its end: all of its length, its last chunk, or, where it has neither, the connection's end.
    pub complete: bool,
    /// The statuses of the informational answers before it.
    pub informational: Vec<u16>,
    /// The head, byte for byte.
    pub head: String,
}

impl Response {
    /// The first value of a field.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// All values of a field.
    #[must_use]
    pub fn values(&self, name: &str) -> Vec<&str> {
        let found = self.headers.iter().filter(|(other, _)| other.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str()).collect()
    }

    /// The body as text; what is none is replaced.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The name of the problem that it is about: `no-route` of `urn:pointsman:problem:no-route`.
    ///
    /// # Panics
    /// When it is no problem+json, or its status differs from the answer's.
    #[must_use]
    pub fn problem(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let body = self.json();
        assert_eq!(body["status"], self.status, "{self:?}");
        let kind = body["type"].as_str().unwrap_or_default();
        let name = kind.strip_prefix("urn:pointsman:problem:");
        name.unwrap_or_else(|| panic!("{kind} is no problem of ours")).to_owned()
    }

    /// Takes the next head from the beginning of `bytes`; `None` when it is not whole.
    pub(crate) fn take_head(&mut self, bytes: &mut Vec<u8>) -> Option<()> {
        let end = head_end(bytes)?;
        let head = String::from_utf8_lossy(&bytes.drain(..end).collect::<Vec<u8>>()).into_owned();
        let (first, fields) = head.split_once("\r\n").unwrap_or_else(|| panic!("no head: {head:?}"));
        let mut words = first.splitn(3, ' ');
        self.version = words.next().unwrap_or_default().to_owned();
        let status = words.next().and_then(|status| status.parse().ok());
        self.status = status.unwrap_or_else(|| panic!("no status line: {head:?}"));
        assert!(self.version.starts_with("HTTP/1."), "no status line: {head:?}");
        self.headers = fields_of(fields);
        self.head = head;
        Some(())
    }

    /// What delimits the body of an answer to `method`.
    pub(crate) fn framing(&self, method: &str) -> Framing {
        if method == "HEAD" || self.status < 200 || matches!(self.status, 204 | 304) {
            return Framing::Length(0);
        }
        if self.header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
            return Framing::Chunked;
        }
        match self.header("content-length").map(str::parse) {
            Some(Ok(length)) => Framing::Length(length),
            Some(Err(_)) => panic!("no length: {self:?}"),
            None => Framing::UntilClosed,
        }
    }
}

/// How the end of a body is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    Length(usize),
    Chunked,
    UntilClosed,
}

/// Where the head at the beginning of `bytes` ends, if it does.
#[must_use]
pub fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4)
}

/// The fields in lines like `name: value`.
pub(crate) fn fields_of(lines: &str) -> Vec<(String, String)> {
    let fields = lines.split("\r\n").filter_map(|line| line.split_once(':'));
    fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}

/// A chunked body that comes bit by bit.
#[derive(Debug, Default)]
pub(crate) struct Chunks {
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<(String, String)>,
    last_seen: bool,
}

impl Chunks {
    /// Takes what is whole from the beginning of `bytes`; whether that was all. The error is what is no chunk.
    pub(crate) fn take(&mut self, bytes: &mut Vec<u8>) -> Result<bool, String> {
        loop {
            let Some(line_end) = bytes.windows(2).position(|two| two == b"\r\n") else { return Ok(false) };
            let line = String::from_utf8_lossy(&bytes[..line_end]).into_owned();
            if self.last_seen {
                bytes.drain(..line_end + 2);
                if line.is_empty() {
                    return Ok(true);
                }
                self.trailers.extend(fields_of(&line));
                continue;
            }
            let size = line.split(';').next().unwrap_or_default().trim();
            let size = usize::from_str_radix(size, 16).map_err(|_| format!("no size of a chunk: {line:?}"))?;
            if size == 0 {
                bytes.drain(..line_end + 2);
                self.last_seen = true;
                continue;
            }
            let end = line_end + 2 + size;
            if bytes.len() < end + 2 {
                return Ok(false);
            }
            if bytes[end..end + 2] != *b"\r\n" {
                return Err(format!("no end of a chunk: {:?}", &bytes[end..end + 2]));
            }
            self.body.extend(&bytes[line_end + 2..end]);
            bytes.drain(..end + 2);
        }
    }
}
