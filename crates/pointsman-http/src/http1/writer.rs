//! What is written: small pieces together, large ones without copying them.

use std::io::{self, IoSlice};
use std::task::{Context, Poll, ready};

use crate::head::Fields;
use crate::io::Io;
use crate::spare;

/// What is smaller is copied together with what else is to be written.
const SMALL: usize = 4 << 10;

/// What waits to be written, and how a body is framed.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    out: Vec<u8>,
    written: usize,
    chunked: bool,
    /// So many bytes are missing of the chunk whose size has been told.
    chunk_left: usize,
    /// How many bytes have been written to the connection in all.
    pub(crate) total: u64,
}

impl Writer {
    /// Where a head is put. The body after it is in chunks or not.
    pub(crate) fn head(&mut self, chunked: bool) -> &mut Vec<u8> {
        if self.out.capacity() == 0 {
            self.out = spare::text();
        }
        (self.chunked, self.chunk_left) = (chunked, 0);
        &mut self.out
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.written == self.out.len()
    }

    /// Takes some of a body. Small pieces are only written by [`Writer::poll_flush`].
    pub(crate) fn poll_push(&mut self, io: &mut Io, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if self.chunk_left == 0 && data.len() + self.out.len() - self.written <= SMALL {
            if self.chunked {
                self.begin_chunk(data.len());
                self.chunk_left = 0;
            }
            self.text().extend_from_slice(data);
            if self.chunked {
                self.out.extend_from_slice(b"\r\n");
            }
            return Poll::Ready(Ok(data.len()));
        }
        if self.chunked && self.chunk_left == 0 {
            self.begin_chunk(data.len());
        }
        let most = if self.chunked { self.chunk_left.min(data.len()) } else { data.len() };
        loop {
            let waiting = &self.out[self.written..];
            let waiting_len = waiting.len();
            let written = if waiting.is_empty() {
                ready!(io.poll_write(cx, &[IoSlice::new(&data[..most])]))
            } else {
                ready!(io.poll_write(cx, &[IoSlice::new(waiting), IoSlice::new(&data[..most])]))
            };
            let count = self.count(io, written)?;
            if count < waiting_len {
                self.written += count;
                continue;
            }
            self.clear();
            let taken = count - waiting_len;
            if taken == 0 {
                continue;
            }
            if self.chunked {
                self.chunk_left -= taken;
                if self.chunk_left == 0 {
                    self.text().extend_from_slice(b"\r\n");
                }
            }
            return Poll::Ready(Ok(taken));
        }
    }

    /// The body is at its end.
    pub(crate) fn finish(&mut self, trailers: Option<&Fields>) {
        if !self.chunked {
            return;
        }
        let out = self.text();
        out.extend_from_slice(b"0\r\n");
        for (_, name, value) in trailers.into_iter().flat_map(Fields::iter) {
            field(out, name, value);
        }
        out.extend_from_slice(b"\r\n");
        self.chunked = false;
    }

    /// Writes all that waits.
    pub(crate) fn poll_flush(&mut self, io: &mut Io, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.is_idle() {
            let written = ready!(io.poll_write(cx, &[IoSlice::new(&self.out[self.written..])]));
            self.written += self.count(io, written)?;
        }
        self.clear();
        io.poll_flush(cx)
    }

    /// Counts what has been written. Within TLS some may have been before it failed, and nobody says how much.
    fn count(&mut self, io: &Io, written: io::Result<usize>) -> io::Result<usize> {
        self.total += match &written {
            Ok(count) => *count as u64,
            Err(_) => u64::from(io.is_secret()),
        };
        written
    }

    fn text(&mut self) -> &mut Vec<u8> {
        if self.out.capacity() == 0 {
            self.out = spare::text();
        }
        &mut self.out
    }

    fn begin_chunk(&mut self, len: usize) {
        self.chunk_left = len;
        let out = self.text();
        let digits = (usize::BITS - len.leading_zeros()).div_ceil(4).max(1);
        for digit in (0..digits).rev() {
            out.push(b"0123456789abcdef"[len >> (digit * 4) & 15]);
        }
        out.extend_from_slice(b"\r\n");
    }

    fn clear(&mut self) {
        self.written = 0;
        spare::return_text(std::mem::take(&mut self.out));
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Writes a field.
pub(crate) fn field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Writes a number.
pub(crate) fn number(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        // Less than 10.
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_they_are_read() {
        for value in [0, 1, 9, 10, 255, 4096, 65_535, u64::MAX] {
            let mut out = Vec::new();
            number(&mut out, value);
            assert_eq!(out, value.to_string().into_bytes());
        }
        for value in [1, 9, 10, 15, 16, 255, 256, 4096, 65_535, 1 << 20] {
            let mut writer = Writer::default();
            writer.begin_chunk(value);
            assert_eq!(writer.out, format!("{value:x}\r\n").into_bytes());
        }
    }
}
