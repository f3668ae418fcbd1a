//! How a body flows from one side to the other: no faster than it is taken.

use std::io;
use std::task::{Context, Poll, ready};

use crate::head::Fields;

/// Why no more of a body comes.
#[derive(Debug)]
pub(crate) enum Broken {
    /// The connection is gone before the body's end, or the stream was reset.
    Cut,
    /// What came is not what HTTP says.
    Nonsense(&'static str),
}

/// Where a body comes from.
pub(crate) trait Source {
    /// Waits until there is some of the body: `true`; or until its end: `false`.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Broken>>;
    /// What there is.
    fn body(&self) -> &[u8];
    /// So much of it has been taken.
    fn consume(&mut self, count: usize);
    /// After the end.
    fn trailers(&self) -> Option<&Fields>;
}

/// Where a body goes.
pub(crate) trait Sink {
    /// Takes some; small pieces may be kept until [`Sink::poll_flush`].
    fn poll_push(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>>;
    /// There is no more. Still to be flushed.
    fn finish(&mut self, trailers: Option<&Fields>);
    /// Sends all that has been taken.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

/// How far a body has come, and for whom it waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Flow {
    stage: Stage,
    /// The source is waited for, not the sink.
    is_starved: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Stage {
    #[default]
    Flowing,
    /// All has been taken, not all has been sent.
    Ending,
    Done,
}

/// Which side has failed.
#[derive(Debug)]
pub(crate) enum Side {
    Source(Broken),
    Sink,
}

impl Flow {
    /// All of it has been sent.
    pub(crate) fn is_done(self) -> bool {
        self.stage == Stage::Done
    }

    /// The side that it comes from is waited for.
    pub(crate) fn is_starved(self) -> bool {
        self.is_starved
    }

    /// Moves what can be moved now. `moved` counts bytes.
    pub(crate) fn poll(
        &mut self,
        source: &mut impl Source,
        sink: &mut impl Sink,
        moved: &mut u64,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Side>> {
        loop {
            self.is_starved = false;
            match self.stage {
                Stage::Flowing => match source.poll_body(cx) {
                    Poll::Ready(Ok(true)) => {
                        let taken = ready!(sink.poll_push(cx, source.body())).map_err(|_| Side::Sink)?;
                        source.consume(taken);
                        *moved += taken as u64;
                    }
                    Poll::Ready(Ok(false)) => {
                        sink.finish(source.trailers());
                        self.stage = Stage::Ending;
                    }
                    Poll::Ready(Err(broken)) => return Poll::Ready(Err(Side::Source(broken))),
                    Poll::Pending => {
                        // What there is shall not wait for what is still to come.
                        ready!(sink.poll_flush(cx)).map_err(|_| Side::Sink)?;
                        self.is_starved = true;
                        return Poll::Pending;
                    }
                },
                Stage::Ending => {
                    ready!(sink.poll_flush(cx)).map_err(|_| Side::Sink)?;
                    self.stage = Stage::Done;
                }
                Stage::Done => return Poll::Ready(Ok(())),
            }
        }
    }
}
