//! What the broker counts.

/// What the broker is doing now, and what it has done since its start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Figures {
    /// Connections now, those that have not said CONNECT included.
    pub connections: usize,
    /// Sessions now, of clients that are connected or away.
    pub sessions: usize,
    /// Subscriptions now.
    pub subscriptions: usize,
    /// Retained messages now.
    pub retained: usize,
    /// The memory that messages take which wait or are retained, in bytes.
    pub memory: usize,
    /// Messages that clients have published, wills included.
    pub messages_in: u64,
    /// Messages given out to subscribers: written, or waiting.
    pub messages_out: u64,
    /// Connections that were refused.
    pub refused: u64,
    /// Passwords that were wrong.
    pub wrong_passwords: u64,
    /// Messages that their publishers might not publish.
    pub denied_publishes: u64,
    /// Subscriptions that clients might not have.
    pub denied_subscriptions: u64,
    /// Messages of QoS 0 lost to a subscriber that does not read fast enough.
    pub dropped_slow: u64,
    /// Messages of QoS 1 and 2 lost to a subscriber for which too many wait already.
    pub dropped_queue_full: u64,
    /// Messages lost to a subscriber that takes no packets of that size.
    pub dropped_too_large: u64,
    /// Messages lost to a subscriber because their time was over before they could be sent.
    pub dropped_expired: u64,
    /// Messages that were not retained because too many are.
    pub dropped_retained: u64,
    /// How often a connection was not read for a while because a client in this process had to catch up.
    pub paused: u64,
}
