//! How much memory the messages take that are kept: one budget for all sessions and the retained messages together.
//!
//! A payload is kept once, however many sessions have it, and counts once, until the last has let it go. What each session keeps
//! beside it is counted with the message's token. Both give back what they have taken when they are dropped, so that no path can
//! forget it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

/// The budget, and what is used of it.
#[derive(Debug)]
pub(super) struct Memory {
    used: AtomicUsize,
    most: usize,
}

/// Memory that is in use for as long as this lives.
#[derive(Debug)]
pub(super) struct Charge {
    memory: Arc<Memory>,
    bytes: usize,
}

/// A payload that is counted.
struct Payload {
    bytes: Box<[u8]>,
    _charge: Charge,
}

impl Memory {
    /// A budget of that many bytes.
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), most })
    }

    /// In bytes.
    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether nothing more is to be kept.
    pub(super) fn is_full(&self) -> bool {
        self.used() >= self.most
    }

    pub(super) fn charge(self: &Arc<Self>, bytes: usize) -> Charge {
        self.used.fetch_add(bytes, Ordering::Relaxed);
        Charge { memory: Arc::clone(self), bytes }
    }

    /// A payload in memory of its own, which is shared by all who keep it.
    pub(super) fn own(self: &Arc<Self>, payload: &[u8]) -> Bytes {
        let _charge = self.charge(payload.len());
        Bytes::from_owner(Payload { bytes: payload.into(), _charge })
    }
}

impl Charge {
    /// More is in use.
    pub(super) fn add(&mut self, bytes: usize) {
        self.memory.used.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
    }

    /// What has been charged so far, from here on by itself.
    pub(super) fn take(&mut self) -> Charge {
        let bytes = std::mem::take(&mut self.bytes);
        Charge { memory: Arc::clone(&self.memory), bytes }
    }
}

impl Clone for Charge {
    fn clone(&self) -> Self {
        self.memory.charge(self.bytes)
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.memory.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shared_counts_once_and_until_the_last_has_let_it_go() {
        let memory = Memory::new(100);
        let payload = memory.own(&[0; 60]);
        let shared = payload.clone();
        let mut charge = memory.charge(30);
        charge.add(9);
        assert!(!memory.is_full());
        let more = charge.take().clone();
        assert_eq!((memory.used(), memory.is_full()), (99, false));
        drop((payload, charge));
        assert_eq!(memory.used(), 99);
        drop((shared, more));
        assert_eq!(memory.used(), 0);
    }
}
