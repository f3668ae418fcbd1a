//! Files of vectors: what is sent, and what must come of it.
//!
//! A vector is a paragraph of lines `key: value`. `name`; `send`, as often as it takes, one after the other, with the escapes `\r`,
//! `\n`, `\t`, `\0`, `\xNN`, `\\`, and `{N*text}` for so many times a text; `must`, see where they are used; `sees` and `unseen`,
//! what the other side sees, and does not; `then`, how a peer ends. `#` begins a comment.

use std::time::Duration;

/// A paragraph.
#[derive(Debug, Default, Clone)]
pub(crate) struct Vector {
    pub(crate) name: String,
    pub(crate) send: Vec<u8>,
    pub(crate) must: Vec<String>,
    /// With whether it must be seen.
    pub(crate) sees: Vec<(String, bool)>,
    pub(crate) then: Option<String>,
}

impl Vector {
    /// As far as it matters for the answer.
    pub(crate) fn method(&self) -> &'static str {
        if self.send.starts_with(b"HEAD ") { "HEAD" } else { "GET" }
    }
}

pub(crate) fn read(text: &str) -> Vec<Vector> {
    let mut vectors = Vec::new();
    for paragraph in text.split("\n\n") {
        let mut vector = Vector::default();
        for line in paragraph.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
            let (key, value) = line.split_once(": ").unwrap_or_else(|| panic!("no `key: value`: {line}"));
            match key {
                "name" => value.clone_into(&mut vector.name),
                "send" => vector.send.extend(unescape(value)),
                "must" => vector.must = value.split(" or ").map(str::to_owned).collect(),
                "sees" => vector.sees.push((string(value), true)),
                "unseen" => vector.sees.push((string(value), false)),
                "then" => vector.then = Some(value.to_owned()),
                _ => panic!("no such key: {line}"),
            }
        }
        if !vector.name.is_empty() {
            assert!(!vector.send.is_empty() && !vector.must.is_empty(), "{vector:?}");
            vectors.push(vector);
        }
    }
    vectors
}

/// What is wrong, of all vectors; a few are looked at at a time.
pub(crate) async fn all(vectors: &[Vector], look: impl AsyncFn(&Vector) -> Result<(), String>) -> Vec<String> {
    use futures_util::StreamExt;
    let looks = futures_util::stream::iter(vectors).map(|vector| async {
        let looked = tokio::time::timeout(Duration::from_secs(15), look(vector)).await;
        looked.unwrap_or_else(|_| Err(format!("{}: nothing happens", vector.name))).err()
    });
    looks.buffered(8).filter_map(|failure| async { failure }).collect().await
}

fn string(text: &str) -> String {
    String::from_utf8_lossy(&unescape(text)).into_owned()
}

fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(['\\', '{']) {
        bytes.extend(&rest.as_bytes()[..at]);
        let special = &rest[at..];
        if let Some(repeated) = special.strip_prefix('{') {
            let (inner, after) = repeated.split_once('}').unwrap_or_else(|| panic!("no }}: {text}"));
            let (count, part) = inner.split_once('*').unwrap_or_else(|| panic!("no {{N*text}}: {text}"));
            bytes.extend(unescape(part).repeat(count.parse().unwrap()));
            rest = after;
            continue;
        }
        let (byte, length) = match special.as_bytes()[1] {
            b'r' => (b'\r', 2),
            b'n' => (b'\n', 2),
            b't' => (b'\t', 2),
            b'0' => (0, 2),
            b'\\' => (b'\\', 2),
            b'x' => (u8::from_str_radix(&special[2..4], 16).unwrap(), 4),
            other => panic!("no escape: {} in {text}", char::from(other)),
        };
        bytes.push(byte);
        rest = &special[length..];
    }
    bytes.extend(rest.as_bytes());
    bytes
}
