//! What one client may take of the broker.

use std::sync::Arc;
use std::time::Duration;

use super::Options;
use super::memory::Memory;

/// Messages of QoS 1 and 2 that a client may send without an acknowledgement.
pub(super) const RECEIVE_MAXIMUM: u16 = 1024;
/// More than a client of 3.1.1, which knows no maximum, can have sent with one chunk beyond that.
pub(super) const RECEIVE_LIMIT: u16 = 16_384;
/// Messages of QoS 1 and 2 that are sent to a client without an acknowledgement, whatever more it would take.
pub(super) const IN_FLIGHT: u16 = 1024;

/// What is put out for a client before messages of QoS 1 and 2 wait until it has been written, in bytes.
pub(super) const OUTPUT: usize = 128 << 10;

/// The limits that the core keeps.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    pub(super) max_packet: usize,
    pub(super) max_queued: usize,
    pub(super) max_queued_bytes: usize,
    pub(super) max_session_expiry: Duration,
    pub(super) max_sessions: usize,
    pub(super) max_subscriptions: usize,
    pub(super) max_retained: usize,
    pub(super) max_retained_bytes: usize,
    /// What all messages together take.
    pub(super) memory: Arc<Memory>,
    /// What may wait to be written to a client before messages of QoS 0 are dropped, in bytes.
    pub(super) outbox: usize,
    /// What may wait for a local client before those who publish to it are not read any more, in bytes. Half of it, and
    /// they are read again.
    pub(super) high: usize,
}

impl Limits {
    /// What a local client may have and not have acknowledged, and what may be taken for it beside what it has to be given, in
    /// bytes.
    pub(super) const fn most(&self) -> usize {
        self.high * 8
    }

    pub(super) fn new(options: &Options) -> Self {
        Self {
            max_packet: options.max_packet,
            max_queued: options.max_queued,
            max_queued_bytes: options.max_queued_bytes,
            max_session_expiry: options.max_session_expiry,
            max_sessions: options.max_sessions,
            max_subscriptions: options.max_subscriptions,
            max_retained: options.max_retained,
            max_retained_bytes: options.max_retained_bytes,
            memory: Memory::new(options.max_memory),
            outbox: options.outbox,
            high: options.high_watermark,
        }
    }
}
