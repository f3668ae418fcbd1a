//! Reading from a connection: in chunks that grow with what comes, and to its end where another one waits for the session.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::super::pressure::Gate;
use super::{Happening, Link};
use crate::packet::Malformed;

/// How much is read at once, in bytes: at most, and from a connection that has little to say.
const CHUNK: usize = 64 << 10;
pub(super) const LITTLE: usize = 4 << 10;
/// How often something is read where only a little may be ([`Gate::Trickle`]), and how much, in bytes.
pub(super) const TRICKLE: Duration = Duration::from_millis(10);
const DRAUGHT: usize = 16 << 10;
/// What a connection begins with.
const CONNECT: u8 = 0x10;
/// How long a connection is read while another waits for its session, and how much of it, in bytes: more than the system's buffers
/// hold for a socket. It is over earlier when nothing has come for a while: what is in the buffers of both ends arrives in less.
const LAST_READS: Duration = Duration::from_millis(500);
const LAST_BYTES: usize = 8 << 20;
pub(super) const QUIET: Duration = Duration::from_millis(20);

/// What may still be read from a connection whose session another one waits for.
#[derive(Debug, Clone, Copy)]
pub(super) struct LastReads {
    pub(super) until: Instant,
    bytes: usize,
}

impl LastReads {
    pub(super) fn begin() -> Self {
        Self { until: Instant::now() + LAST_READS, bytes: LAST_BYTES }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Link<S> {
    /// Reads what the client had sent when it connected anew. Whether its own end reads does not matter any more; but where a local
    /// client has to catch up, that is waited for.
    pub(super) fn poll_last(&mut self, last: LastReads, context: &mut Context<'_>) -> Poll<Happening> {
        if last.bytes == 0 || Instant::now() >= last.until {
            return Poll::Ready(Happening::Dry);
        }
        if self.status.gate != Gate::Shut {
            match self.poll_read(context) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Happening::End("closed by the client")),
                Poll::Ready(Ok(count)) => {
                    self.last_reads = Some(LastReads { bytes: last.bytes.saturating_sub(count), ..last });
                    return Poll::Ready(Happening::Read);
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Happening::Broken(error)),
                Poll::Pending => {}
            }
        }
        if self.wake.poll(context).is_ready() {
            return Poll::Ready(Happening::Woken);
        }
        self.timer.as_mut().poll(context).map(|()| Happening::Dry)
    }

    /// The future of `read_buf` keeps no state, so that a new one each time does no harm.
    pub(super) fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.input.is_empty() && self.chunk == LITTLE {
            return self.poll_read_little(context);
        }
        let chunk = if self.status.gate == Gate::Trickle { DRAUGHT } else { self.chunk };
        self.input.reserve(chunk);
        let room = self.input.capacity() - self.input.len();
        let read = std::pin::pin!(self.stream.read_buf(&mut self.input)).poll(context);
        if let Poll::Ready(Ok(count)) = read {
            self.chunk = match count {
                all if all == room => (self.chunk * 4).min(CHUNK),
                few if few < self.chunk / 16 => (self.chunk / 2).max(LITTLE),
                _ => self.chunk,
            };
        }
        read
    }

    /// Reads from a connection that has little to say: it has no buffer while it waits.
    fn poll_read_little(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut room = [const { MaybeUninit::uninit() }; LITTLE];
        let mut read = ReadBuf::uninit(&mut room);
        ready!(Pin::new(&mut self.stream).poll_read(context, &mut read))?;
        self.input = BytesMut::from(read.filled());
        if read.remaining() == 0 {
            self.chunk = LITTLE * 4;
        }
        Poll::Ready(Ok(read.filled().len()))
    }

    /// Reads the packets out of what has come, up to what makes no sense.
    pub(super) fn decode(&mut self) -> Option<Malformed> {
        self.heard = Instant::now();
        if self.last_reads.is_some() {
            self.set_timer();
        }
        // Who speaks another protocol is told so by its first byte, not by the connect timeout.
        let stranger = !self.status.greeted && self.input.first().is_some_and(|&first| first != CONNECT);
        let mut malformed = stranger.then_some(Malformed::protocol("the first packet is not CONNECT"));
        while malformed.is_none() {
            match self.decoder.decode(&mut self.input) {
                Ok(Some(packet)) => self.packets.push_back(packet),
                Ok(None) => break,
                Err(error) => {
                    malformed = Some(error);
                    break;
                }
            }
        }
        malformed
    }

    pub(super) fn take_in(&mut self, malformed: Option<Malformed>) {
        match malformed {
            Some(malformed) => self.fail(malformed),
            None if self.packets.is_empty() => {}
            None => self.exchange(|_, _, _| ()),
        }
    }
}
