//! Wakes the task of one connection from wherever something was put out for it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;

/// One task waits, any number wake it.
#[derive(Debug, Default)]
pub(super) struct Wake {
    waker: AtomicWaker,
    set: AtomicBool,
}

impl Wake {
    pub(super) fn wake(&self) {
        self.set.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// Ready once for any number of wakings.
    pub(super) fn poll(&self, context: &Context<'_>) -> Poll<()> {
        if self.set.swap(false, Ordering::AcqRel) {
            return Poll::Ready(());
        }
        self.waker.register(context.waker());
        // It may have been set before the waker was there.
        if self.set.swap(false, Ordering::AcqRel) { Poll::Ready(()) } else { Poll::Pending }
    }
}
