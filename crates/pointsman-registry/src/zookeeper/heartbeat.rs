//! Heartbeats, and until when they make a session safe.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::fault::within;
use super::session::{Links, Session};

/// The moments from which the leader is known to count the session's time.
pub(super) struct Confirmed {
    /// When the heartbeats were sent that it has confirmed, the last few.
    heartbeats: VecDeque<Instant>,
    /// A moment before this connection was made: to make it, the leader was asked about the session, and counts anew.
    connection: Instant,
}

impl Confirmed {
    /// Of a session whose connecting began at `started`.
    pub(super) fn new(started: Instant) -> Self {
        Self { heartbeats: VecDeque::from([started]), connection: started }
    }

    /// Takes in that the heartbeat sent at `sent` was confirmed; returns until when the session is safe.
    ///
    /// The confirmation itself extends nothing: the leader only says that it knows the session. It counts from what its
    /// followers tell it of our traffic, once in half a tick, by the same connection that brings the confirmation. A
    /// session timeout is at least two ticks: so what we sent a quarter of the timeout before this heartbeat has been told.
    fn heartbeat(&mut self, sent: Instant, timeout: Duration) -> Instant {
        let told = |at: &&Instant| **at + timeout / PER_TIMEOUT <= sent;
        let newest = self.heartbeats.iter().rev().find(told).copied();
        self.heartbeats.push_back(sent);
        if self.heartbeats.len() > 8 {
            self.heartbeats.pop_front();
        }
        newest.unwrap_or(self.connection).max(self.connection) + timeout
    }

    /// Another connection within the session: it was made after the last heartbeat that was confirmed.
    fn reconnected(&mut self) {
        self.connection = self.heartbeats.back().copied().unwrap_or(self.connection);
    }
}

/// Renews the session's lease for as long as the leader confirms the session (`sync` goes through it, a read would not),
/// and announces the connection after the first time. Where there are no leases, that is the only time: the client keeps the session alive.
pub(super) async fn heartbeat(session: &Session, confirmed: &mut Confirmed, links: &Links) -> std::convert::Infallible {
    let timeout = session.timeout();
    let mut announced = false;
    confirmed.reconnected();
    loop {
        let sent = Instant::now();
        match within(timeout, || "heartbeat".to_owned(), session.client.sync("/")).await {
            Ok(()) => {
                session.lease.extend(confirmed.heartbeat(sent, timeout));
                if !announced {
                    announced = true;
                    tracing::info!(session = %session.client.session_id(), ?timeout, "connected");
                    links.up(session);
                }
            }
            Err(fault) => tracing::debug!(%fault, "no answer"),
        }
        tokio::time::sleep_until(sent + timeout / PER_TIMEOUT).await;
        if announced {
            links.has_leases().await;
        }
    }
}

/// Heartbeats in one session timeout. So many that each makes the session safe by the one before it, and no more: each goes through the leader.
const PER_TIMEOUT: u32 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_safe_for_a_timeout_from_what_the_leader_has_been_told() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let timeout = 12 * second;
        let mut confirmed = Confirmed::new(start);
        confirmed.reconnected();
        assert_eq!(confirmed.heartbeat(start, timeout), start + timeout);
        // In the steady state, a heartbeat each quarter of the timeout, that is three quarters of it from the last one.
        for number in 1..20 {
            let sent = start + 3 * second * number;
            assert_eq!(confirmed.heartbeat(sent, timeout), sent + timeout * 3 / 4, "{number}");
        }
        // After a pause, a first confirmation says nothing about when the session ends; the next ones do.
        let (before, after) = (start + 57 * second, start + 68 * second);
        assert_eq!(confirmed.heartbeat(after, timeout), before + timeout);
        assert_eq!(confirmed.heartbeat(after + 3 * second, timeout), after + timeout);
        // One that comes too soon after the last is made safe by the one before that.
        assert_eq!(confirmed.heartbeat(after + 5 * second, timeout), after + timeout);
        // A new connection was made after the last heartbeat.
        confirmed.reconnected();
        assert_eq!(confirmed.heartbeat(after + 6 * second, timeout), after + 5 * second + timeout);
    }
}
