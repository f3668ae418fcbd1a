//! The current time, where the caller does not pass one.

use std::time::Instant;

/// The time at this moment. With the feature `call`, by tokio's clock, which tests may pause and advance: then ejections and slow starts pass in
/// virtual time as the timeouts of calls do.
pub(crate) fn now() -> Instant {
    #[cfg(feature = "call")]
    return tokio::time::Instant::now().into_std();
    #[cfg(not(feature = "call"))]
    Instant::now()
}
