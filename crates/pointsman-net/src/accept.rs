//! The pause of a listener that cannot accept.

use std::io;
use std::time::Duration;

/// Time until the next attempt after an error that waiting may cure: no file descriptors are left, or no memory.
const PAUSE: Duration = Duration::from_millis(100);

/// Pauses a listener that cannot accept, and logs a row of failures once, and its end.
#[derive(Debug)]
pub struct AcceptPause {
    listener: &'static str,
    is_pausing: bool,
}

impl AcceptPause {
    /// `listener` names it in the log: `agent`, `metrics`.
    #[must_use]
    pub fn new(listener: &'static str) -> Self {
        Self { listener, is_pausing: false }
    }

    /// Takes the result of an `accept`: returns at once what was accepted. After an error calls `count`, waits 100 ms, and returns
    /// `None`: the caller accepts again. A client that has gone before it was accepted is neither counted nor a reason to wait.
    pub async fn take<T>(&mut self, accepted: io::Result<T>, count: impl FnOnce()) -> Option<T> {
        let listener = self.listener;
        match accepted {
            Ok(accepted) => {
                if std::mem::take(&mut self.is_pausing) {
                    tracing::info!(listener, "accepts again");
                }
                return Some(accepted);
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                count();
                if !std::mem::replace(&mut self.is_pausing, true) {
                    tracing::warn!(listener, %error, "accept: pausing");
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
        None
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_a_shortage_of_our_own_is_counted_and_waited_for() {
        let (mut pause, counted) = (AcceptPause::new("test"), Cell::new(0));
        let mut take = async |result: io::Result<u8>| {
            let since = Instant::now();
            let taken = pause.take(result, || counted.set(counted.get() + 1)).await;
            (taken, counted.get(), since.elapsed() >= PAUSE)
        };
        assert_eq!(take(Ok(1)).await, (Some(1), 0, false));
        assert_eq!(take(Err(io::ErrorKind::ConnectionAborted.into())).await, (None, 0, false));
        assert_eq!(take(Err(io::Error::from_raw_os_error(24))).await, (None, 1, true));
    }
}
