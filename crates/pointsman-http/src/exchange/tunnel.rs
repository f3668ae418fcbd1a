//! What follows an upgrade: bytes, both ways, until both ends have said their last word.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::task::{Context, Poll, ready};

use crate::client::Client;
use crate::instance::Connection;
use crate::io::{Buffer, Io};

use super::{Ended, Exchange};

impl<C: Client> Exchange<'_, C> {
    /// Passes on what comes from either side.
    pub(super) async fn tunnel(&mut self, connection: &mut Connection) -> Result<(), Ended> {
        // The head that says that the protocol is another now.
        if poll_fn(|cx| self.client.poll_flush(cx)).await.is_err() {
            return Err(Ended::Gone);
        }
        let (Connection::Http1(instance), Some((io, buffer))) = (connection, self.client.raw()) else {
            return Err(Ended::Gone);
        };
        let (mut there, mut back) = (Lane::default(), Lane::default());
        let record = &mut self.record;
        let ended = poll_fn(|cx| {
            let one = there.poll(io, buffer, &mut instance.io, &mut record.received, cx);
            let other = back.poll(&mut instance.io, &mut instance.reader.buffer, io, &mut record.sent, cx);
            match (one, other) {
                (Poll::Ready(Err(error)), _) | (_, Poll::Ready(Err(error))) => Poll::Ready(Err(error)),
                (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(Ok(())),
                _ => Poll::Pending,
            }
        });
        if let Err(error) = ended.await {
            tracing::debug!(%error, "upgraded connection");
            self.client.fail();
        }
        Ok(())
    }
}

/// One direction.
#[derive(Debug, Default)]
struct Lane {
    /// The source has said its last word.
    ended: bool,
    /// The sink has been told.
    told: bool,
}

impl Lane {
    fn poll(
        &mut self,
        from: &mut Io,
        buffer: &mut Buffer,
        to: &mut Io,
        moved: &mut u64,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            while !buffer.is_empty() {
                let count = ready!(to.poll_write(cx, &[IoSlice::new(buffer.bytes())]))?;
                buffer.consume(count);
                *moved += count as u64;
            }
            if self.told {
                return Poll::Ready(Ok(()));
            }
            if self.ended {
                ready!(to.poll_shutdown(cx))?;
                self.told = true;
                continue;
            }
            match from.poll_fill(cx, buffer) {
                Poll::Ready(Ok(0)) => self.ended = true,
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    ready!(to.poll_flush(cx))?;
                    return Poll::Pending;
                }
            }
        }
    }
}
