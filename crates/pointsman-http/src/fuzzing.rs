//! What the property tests and the fuzz targets share: bytes are read as heads and bodies, and what is passed on is read again.
//!
//! Not part of the API: it is there in tests, and for `fuzz/` by the feature `fuzzing`.

#![allow(clippy::missing_panics_doc)] // To panic is what it is for.

use crate::forward::{Hop, Ids, Peer};
use crate::head::{Framing, RequestHead, ResponseHead};
use crate::http1::body::{Decoder, Next};
use crate::http1::parse::{self, Bounds};
use crate::instance::Sending;
use crate::instance::http1::write;
use crate::io::Buffer;
use crate::settings::Forwarded;

const BOUNDS: Bounds = Bounds { bytes: 8 << 10, fields: 64 };

/// Whatever a client sends: if it is taken for a request, then what is passed on is one request and nothing else, with the same method
/// and path, and a body of the same length.
pub fn request(bytes: &[u8]) {
    let mut head = RequestHead::default();
    let Ok(Some(len)) = parse::request(bytes, &mut head, BOUNDS) else { return };
    assert!(len <= bytes.len());
    // Cut anywhere, it is the same, or there is more to come.
    let mut cut = RequestHead::default();
    for end in [len / 2, len - 1] {
        assert!(!matches!(parse::request(&bytes[..end], &mut cut, BOUNDS), Ok(Some(_))), "half a head is none");
    }
    let (peer, ids) = (Peer::new([127, 0, 0, 1].into(), false), Ids::of(&head));
    let hop = Hop { peer: &peer, trusted: true, forwarded: Forwarded::Both, ids: &ids };
    let mut out = Vec::new();
    write(&mut out, &Sending { head: &head, target: head.target(), framing: head.framing, secure: false, hop });
    let mut again = RequestHead::default();
    let loose = Bounds { bytes: 64 << 10, fields: 128 };
    match parse::request(&out, &mut again, loose) {
        Ok(Some(len)) => assert_eq!(len, out.len(), "something follows: {}", out.escape_ascii()),
        other => panic!("{other:?}: {}", out.escape_ascii()),
    }
    assert_eq!((again.method(), again.target(), again.framing), (head.method(), head.target(), head.framing));
    assert!(
        again
            .fields
            .iter()
            .all(|(_, name, value)| !name.is_empty() && !value.iter().any(|byte| b"\r\n\0".contains(byte)))
    );
    body(head.framing, &bytes[len..]);
}

/// Whatever an instance sends.
pub fn answer(bytes: &[u8]) {
    let mut head = ResponseHead::default();
    for to_head in [false, true] {
        if let Ok(Some(len)) = parse::response(bytes, &mut head, BOUNDS, to_head) {
            assert!(!to_head || head.framing == Framing::Empty);
            body(head.framing, &bytes[len..]);
        }
    }
}

/// A body does not depend on the pieces in which it comes.
fn body(framing: Framing, bytes: &[u8]) {
    let decode = |piece: usize| {
        let (mut decoder, mut buffer, mut seen, mut body) = (Decoder::default(), Buffer::default(), 0, Vec::new());
        decoder.start(framing);
        loop {
            match decoder.next(&mut buffer)? {
                Next::Data(count) => {
                    body.extend_from_slice(&buffer.bytes()[..count]);
                    buffer.consume(count);
                    decoder.took(count);
                }
                Next::More if seen == bytes.len() => return Ok((body, None)),
                Next::More => {
                    let end = (seen + piece).min(bytes.len());
                    (buffer, seen) = (Buffer::of(&[buffer.bytes(), &bytes[seen..end]].concat()), end);
                }
                Next::End => return Ok::<_, &str>((body, Some(bytes.len() - seen + buffer.bytes().len()))),
            }
        }
    };
    let whole = decode(bytes.len().max(1));
    for piece in [1, 2, 7] {
        // What is wrong may be told in other words when less of it is there.
        assert_eq!(decode(piece).ok(), whole.clone().ok(), "{piece}");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PIECES: [&str; 40] = [
        "GET ",
        "POST ",
        "HEAD ",
        "OPTIONS ",
        "/a",
        "/a?b",
        "*",
        "http://h",
        "http://h:80/",
        "#",
        " HTTP/1.1",
        " HTTP/1.0",
        "\r\n",
        "\n",
        "\r",
        "Host: h",
        "Host: h:80",
        "Content-Length: 3",
        "Content-Length: 0",
        "Transfer-Encoding: chunked",
        "Transfer-Encoding: x",
        "Connection: close",
        "Connection: upgrade, x-a",
        "Upgrade: websocket",
        "Expect: 100-continue",
        "X-A: b",
        "Via: 1.1 a",
        "X-Forwarded-For: 1.2.3.4",
        "Forwarded: for=a",
        "X_Forwarded_For: a",
        "TE: trailers",
        ": ",
        " ",
        "\t",
        "\0",
        "3\r\nabc\r\n",
        "0\r\n\r\n",
        "HTTP/1.1 200 OK",
        "HTTP/1.1 304 X",
        "\u{e9}",
    ];

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![9 => prop::sample::select(&PIECES[..]).prop_map(|piece| piece.as_bytes().to_vec()), 1 => prop::collection::vec(any::<u8>(), 1..4)];
        prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
    }

    fn likely() -> impl Strategy<Value = Vec<u8>> {
        let line = prop::sample::select(&PIECES[15..31]).prop_map(|line| format!("{line}\r\n"));
        let lines = prop::collection::vec(line, 0..5).prop_map(|lines| lines.concat());
        (lines, bytes()).prop_map(|(lines, rest)| {
            [format!("POST /a?b HTTP/1.1\r\nHost: h\r\n{lines}\r\n").as_bytes(), &rest].concat()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn whatever_clients_send(bytes in prop_oneof![bytes(), likely()]) {
            request(&bytes);
        }

        #[test]
        fn whatever_instances_send(bytes in bytes(), lines in bytes()) {
            answer(&bytes);
            answer(&[b"HTTP/1.1 200 OK\r\n", &lines[..], b"\r\n\r\n", &bytes[..]].concat());
        }
    }
}
