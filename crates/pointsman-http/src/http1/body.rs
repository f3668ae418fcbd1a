//! Where a body ends, and what of the bytes is the body.

use crate::head::{Fields, Framing, Name};
use crate::io::Buffer;

use super::parse::MOST_FIELDS;

/// The longest line of a chunk: its size with what extensions it has.
const CHUNK_LINE: usize = 256;
/// The largest trailers.
const TRAILERS: usize = 8 << 10;
/// The most digits of a chunk's size.
const SIZE_DIGITS: usize = 15;

/// Takes a body out of what surrounds it.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    state: State,
    /// What followed the last chunk.
    pub(crate) trailers: Fields,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    End,
    /// So many bytes are left of all.
    Length(u64),
    /// A chunk's size is next.
    Size,
    /// So many bytes are left of a chunk.
    Chunk(u64),
    /// The end of a chunk's last line is next.
    ChunkEnd,
    Trailers,
    UntilClose,
}

/// What is at the beginning of the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// So many bytes of the body.
    Data(usize),
    /// More must be read first.
    More,
    /// The body's end is behind.
    End,
}

impl Decoder {
    pub(crate) fn start(&mut self, framing: Framing) {
        self.trailers.clear();
        self.state = match framing {
            Framing::Empty => State::End,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Size,
            Framing::UntilClose => State::UntilClose,
        };
    }

    pub(crate) fn is_at_end(&self) -> bool {
        self.state == State::End
    }

    /// What is next. Takes what is not the body out of the buffer.
    pub(crate) fn next(&mut self, buffer: &mut Buffer) -> Result<Next, &'static str> {
        loop {
            let there = buffer.bytes();
            let data = |left: u64| usize::try_from(left).unwrap_or(usize::MAX).min(there.len());
            return Ok(match self.state {
                State::End => Next::End,
                _ if there.is_empty() => Next::More,
                State::Length(left) | State::Chunk(left) => Next::Data(data(left)),
                State::UntilClose => Next::Data(there.len()),
                State::Size => {
                    let Some((size, used)) = chunk_size(there)? else { return Ok(Next::More) };
                    self.state = if size == 0 { State::Trailers } else { State::Chunk(size) };
                    buffer.consume(used);
                    continue;
                }
                State::ChunkEnd => {
                    if !b"\r\n".starts_with(&there[..there.len().min(2)]) {
                        return Err("a chunk is longer than its size says");
                    }
                    if there.len() < 2 {
                        return Ok(Next::More);
                    }
                    self.state = State::Size;
                    buffer.consume(2);
                    continue;
                }
                State::Trailers => {
                    let Some(used) = trailers(there, &mut self.trailers)? else { return Ok(Next::More) };
                    self.state = State::End;
                    buffer.consume(used);
                    continue;
                }
            });
        }
    }

    /// So many bytes of the body have been taken out of the buffer.
    pub(crate) fn took(&mut self, count: usize) {
        let count = count as u64;
        self.state = match self.state {
            State::Length(left) if left == count => State::End,
            State::Length(left) => State::Length(left - count),
            State::Chunk(left) if left == count => State::ChunkEnd,
            State::Chunk(left) => State::Chunk(left - count),
            state => state,
        };
    }

    /// The other end has said its last word: whether the body is whole.
    pub(crate) fn end_of_stream(&mut self) -> bool {
        if self.state == State::UntilClose {
            self.state = State::End;
        }
        self.state == State::End
    }
}

/// A chunk's size, and the length of its line.
fn chunk_size(bytes: &[u8]) -> Result<Option<(u64, usize)>, &'static str> {
    let digits = bytes.iter().take(SIZE_DIGITS + 1).take_while(|byte| byte.is_ascii_hexdigit()).count();
    if digits > SIZE_DIGITS {
        return Err("a chunk's size is too large");
    }
    if digits == 0 && !bytes.is_empty() {
        return Err("a chunk has no size");
    }
    let line = &bytes[digits..bytes.len().min(digits + CHUNK_LINE)];
    let Some(end) = memchr::memchr(b'\n', line) else {
        // What is there must be the beginning of a good line, however long the rest takes.
        check_extension(line.strip_suffix(b"\r").unwrap_or(line))?;
        return if line.len() == CHUNK_LINE { Err("a chunk's line is too long") } else { Ok(None) };
    };
    let Some(extension) = line[..end].strip_suffix(b"\r") else {
        return Err("a chunk's line ends with LF alone");
    };
    check_extension(extension)?;
    let size = bytes[..digits].iter().fold(0, |size: u64, digit| {
        let digit = char::from(*digit).to_digit(16).unwrap_or_default();
        size << 4 | u64::from(digit)
    });
    Ok(Some((size, digits + end + 1)))
}

/// Extensions say nothing that a proxy would have to know, and are not passed on.
fn check_extension(extension: &[u8]) -> Result<(), &'static str> {
    if !extension.is_empty() && extension[0] != b';' {
        return Err("a chunk's size is not a number");
    }
    if extension.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t') {
        return Err("a chunk's extension has control characters");
    }
    Ok(())
}

/// Reads the lines after the last chunk, and their end. What is returned is their length.
fn trailers(bytes: &[u8], into: &mut Fields) -> Result<Option<usize>, &'static str> {
    if bytes.starts_with(b"\r\n") {
        return Ok(Some(2));
    }
    let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS / 4];
    let (len, fields) = match httparse::parse_headers(bytes, &mut fields) {
        Ok(httparse::Status::Complete(parsed)) if parsed.0 <= TRAILERS => parsed,
        Ok(httparse::Status::Partial) if bytes.len() < TRAILERS => return Ok(None),
        Ok(_) => return Err("the trailers are too large"),
        Err(_) => return Err("the trailers are no fields"),
    };
    if memchr::memchr_iter(b'\n', &bytes[..len]).any(|at| at == 0 || bytes[at - 1] != b'\r') {
        return Err("a trailer's line ends with LF alone");
    }
    for field in fields {
        // What says where a message ends, or where it goes, cannot come after it (RFC 9110, 6.5.1).
        if Name::of(field.name.as_bytes()) == Name::Other {
            into.push(field.name.as_bytes(), field.value);
        }
    }
    Ok(Some(len))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a body decodes to when its bytes come in pieces of this size, what is left, and its trailers.
    fn decode(framing: Framing, bytes: &[u8], piece: usize) -> Result<(Vec<u8>, Vec<u8>, usize), &'static str> {
        let (mut decoder, mut body) = (Decoder::default(), Vec::new());
        decoder.start(framing);
        let mut seen = 0;
        let mut buffer = Buffer::default();
        loop {
            match decoder.next(&mut buffer)? {
                Next::Data(count) => {
                    body.extend_from_slice(&buffer.bytes()[..count]);
                    buffer.consume(count);
                    decoder.took(count);
                }
                Next::More if seen == bytes.len() => return Err("cut off"),
                Next::More => {
                    let end = (seen + piece).min(bytes.len());
                    let all = [buffer.bytes(), &bytes[seen..end]].concat();
                    (buffer, seen) = (Buffer::of(&all), end);
                }
                Next::End => {
                    let rest = [buffer.bytes(), &bytes[seen..]].concat();
                    return Ok((body, rest, decoder.trailers.len()));
                }
            }
        }
    }

    #[test]
    fn chunks_with_what_they_may_have() {
        for (bytes, body, trailers) in [
            (&b"0\r\n\r\nnext"[..], "", 0),
            (b"5\r\nhello\r\n0\r\n\r\nnext", "hello", 0),
            (b"5;a=b;c=\"d\"\r\nhello\r\n000\r\nX: 1\r\ny: 2\r\nContent-Length: 7\r\n\r\nnext", "hello", 2),
            (b"a\r\n0123456789\r\nA\r\n0123456789\r\n0\r\n\r\nnext", "01234567890123456789", 0),
        ] {
            for piece in 1..bytes.len() {
                let decoded = decode(Framing::Chunked, bytes, piece);
                assert_eq!(decoded, Ok((body.into(), b"next".to_vec(), trailers)), "{piece}: {}", bytes.escape_ascii());
            }
        }
    }

    #[test]
    fn chunks_that_could_be_read_in_two_ways_are_refused() {
        for bytes in [
            &b"5\nhello\r\n0\r\n\r\n"[..],
            b"5\r\nhello\n0\r\n\r\n",
            b"5\r\nhello0\r\n\r\n",
            b" 5\r\nhello\r\n0\r\n\r\n",
            b"5 \r\nhello\r\n0\r\n\r\n",
            b"5 ;a\r\nhello\r\n0\r\n\r\n",
            b"0x5\r\nhello\r\n0\r\n\r\n",
            b"+5\r\nhello\r\n0\r\n\r\n",
            b"-1\r\nhello\r\n0\r\n\r\n",
            b"\r\nhello\r\n0\r\n\r\n",
            b"5;a\nb\r\nhello\r\n0\r\n\r\n",
            b"5;a\rb\r\nhello\r\n0\r\n\r\n",
            b"5\r\r\nhello\r\n0\r\n\r\n",
            b"ffffffffffffffff5\r\nhello\r\n0\r\n\r\n",
            b"0\r\nX: 1\n\r\n",
            b"0\r\nX : 1\r\n\r\n",
            b"0\r\n X: 1\r\n\r\n",
        ] {
            for piece in 1..=bytes.len() {
                let decoded = decode(Framing::Chunked, bytes, piece);
                assert!(
                    matches!(&decoded, Err(reason) if *reason != "cut off"),
                    "{piece} {}: {decoded:?}",
                    bytes.escape_ascii()
                );
            }
        }
    }

    #[test]
    fn lines_and_trailers_have_an_end() {
        let long = [b"5;", "a".repeat(CHUNK_LINE).as_bytes(), b"\r\nhello"].concat();
        assert_eq!(decode(Framing::Chunked, &long, 64), Err("a chunk's line is too long"));
        let long = [b"0\r\nx:", "a".repeat(TRAILERS).as_bytes(), b"\r\n\r\n"].concat();
        assert_eq!(decode(Framing::Chunked, &long, 64), Err("the trailers are too large"));
    }

    proptest! {
        #[test]
        fn whatever_is_chunked_comes_out_again(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..50), 0..9), piece in 1..60_usize) {
            let mut bytes = Vec::new();
            for chunk in &chunks {
                bytes.extend(format!("{:X}\r\n", chunk.len()).into_bytes());
                bytes.extend(chunk);
                bytes.extend(b"\r\n");
            }
            bytes.extend(b"0\r\n\r\nGET");
            prop_assert_eq!(decode(Framing::Chunked, &bytes, piece), Ok((chunks.concat(), b"GET".to_vec(), 0)));
        }

        #[test]
        fn a_length_is_kept_to(body in prop::collection::vec(any::<u8>(), 1..99), piece in 1..60_usize) {
            let bytes = [&body[..], b"GET"].concat();
            prop_assert_eq!(decode(Framing::Length(body.len() as u64), &bytes, piece), Ok((body, b"GET".to_vec(), 0)));
        }

        #[test]
        fn nothing_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), piece in 1..60_usize) {
            let _ = decode(Framing::Chunked, &bytes, piece);
        }
    }
}
