//! Connections that wait for the next request: of one worker, to the instances of one service.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Context;
use std::time::Duration;

use tokio::time::Instant;

use super::Http1;

/// How long a connection waits for the next request, unless the instance says that it keeps it for less: below what servers commonly
/// do (Node.js: 5 s).
const IDLE: Duration = Duration::from_secs(4);
/// So much earlier than the instance says.
const MARGIN: Duration = Duration::from_secs(1);
/// How many wait at one instance.
const MOST: usize = 1024;

/// The connections, by address. What an instance closes is noticed by [`Pool::sweep`].
#[derive(Debug, Default)]
pub(crate) struct Pool {
    idle: Mutex<HashMap<Arc<str>, VecDeque<Idle>>>,
}

#[derive(Debug)]
struct Idle {
    connection: Box<Http1>,
    until: Instant,
}

impl Pool {
    /// One that waits, the one that has waited least.
    pub(crate) fn take(&self, address: &str) -> Option<Box<Http1>> {
        let mut idle = self.lock();
        let waiting = idle.get_mut(address)?;
        while let Some(one) = waiting.pop_back() {
            if !has_said_something(&one.connection) {
                return Some(one.connection);
            }
        }
        None
    }

    /// Takes one back after a request, if it can serve another.
    pub(crate) fn give_back(&self, address: &Arc<str>, mut connection: Box<Http1>, now: Instant) {
        if !connection.can_serve_again() {
            return;
        }
        let said = connection.kept_for.map(|seconds| Duration::from_secs(seconds.into()).saturating_sub(MARGIN));
        let kept = said.map_or(IDLE, |said| said.min(10 * IDLE));
        if kept.is_zero() {
            return;
        }
        let one = Idle { connection, until: now + kept };
        let mut idle = self.lock();
        if let Some(waiting) = idle.get_mut(address) {
            if waiting.len() < MOST {
                waiting.push_back(one);
            }
        } else {
            idle.insert(address.clone(), VecDeque::from([one]));
        }
    }

    /// Closes what has waited too long, and what its instance has closed; whoever is woken by `cx` shall do it again. How many still wait.
    pub(crate) fn sweep(&self, cx: &mut Context<'_>, now: Instant) -> usize {
        let mut left = 0;
        self.lock().retain(|_, waiting| {
            waiting.retain_mut(|one| now < one.until && !says_something(&mut one.connection, cx));
            left += waiting.len();
            !waiting.is_empty()
        });
        left
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, VecDeque<Idle>>> {
        // Nothing in here can panic half-way.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The same, and whoever waits is woken when it does.
fn says_something(connection: &mut Http1, cx: &mut Context<'_>) -> bool {
    // The event may be an old one.
    connection.io.poll_readable(cx).is_ready() && has_said_something(connection)
}

/// Who has not been asked anything and says something is about to close, or worse. Costs no system call where the event loop has seen
/// nothing; and does not ask whether this task has done enough for now, which would be taken for silence.
fn has_said_something(connection: &Http1) -> bool {
    let mut nothing = [0; 1];
    let read = connection.io.tcp().try_read(&mut nothing);
    !matches!(read, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
}
