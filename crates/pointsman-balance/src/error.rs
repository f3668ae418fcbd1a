//! Why there is no claim.

use std::sync::Arc;
use std::time::{Duration, Instant};

/// Why no instance could be picked.
///
/// There is no "all ejected" and no "all failing": before nothing is left, both are disregarded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PickError {
    /// No instance is registered under this service.
    #[error("pick an instance of {service}: none is registered")]
    NoInstance {
        /// The service.
        service: Arc<str>,
    },
    /// Only the master is wanted, and there is none now.
    #[error("pick the master of {service}: there is none now")]
    NoMaster {
        /// The service.
        service: Arc<str>,
        /// When the balancer first found that there was no master any more, or only one that is guarded and has failed; `None` if there
        /// has never been one. Where this is a moment ago, another is about to be elected.
        since: Option<Instant>,
    },
    /// Only the master is wanted, and it may not be given work: it is drained, or has the weight 0.
    #[error("pick the master of {service}: it is drained")]
    MasterDrained {
        /// The service.
        service: Arc<str>,
        /// When the balancer first found that; `None` if there has never been a master that takes work. Where this is a moment ago, another is
        /// about to take its place.
        since: Option<Instant>,
    },
    /// Instances are registered, but none may be given work: each is drained, or has the weight 0.
    #[error("pick an instance of {service}: all {instances} are drained")]
    AllDrained {
        /// The service.
        service: Arc<str>,
        /// Number of instances that are registered.
        instances: usize,
    },
    /// Only the master could be given work, and this balancer does not fall back to it.
    #[error("pick an instance of {service}: only its master can take work, and falling back to it is off")]
    OnlyMaster {
        /// The service.
        service: Arc<str>,
    },
    /// Every instance that may be given work was excluded by the caller.
    #[error("pick another instance of {service}: all {candidates} that can take work are excluded")]
    AllExcluded {
        /// The service.
        service: Arc<str>,
        /// Number of instances that can take work.
        candidates: usize,
    },
    /// Every instance that would be picked has as much as it may.
    #[error("pick an instance of {service}: all that would be picked have as much as they may")]
    NoRoom {
        /// The service.
        service: Arc<str>,
    },
}

impl PickError {
    /// Whether the master has gone, or been drained, no longer than `within` ago, so that another is about to take its place: then it is
    /// worth waiting for. Proxy and relay do, for their `queue_timeout`.
    #[must_use]
    pub fn awaits_master(&self, within: Duration, now: Instant) -> bool {
        match self {
            PickError::NoMaster { since: Some(since), .. } | PickError::MasterDrained { since: Some(since), .. } => {
                now.saturating_duration_since(*since) < within
            }
            _ => false,
        }
    }

    /// Whether the same pick may succeed later, without anything being changed by the caller: instances come and go. Only one that excludes
    /// instances must exclude fewer.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        !matches!(self, PickError::AllExcluded { .. })
    }

    /// The service of which an instance was wanted.
    #[must_use]
    pub fn service(&self) -> &Arc<str> {
        match self {
            PickError::NoInstance { service }
            | PickError::NoMaster { service, .. }
            | PickError::MasterDrained { service, .. }
            | PickError::AllDrained { service, .. }
            | PickError::OnlyMaster { service }
            | PickError::NoRoom { service }
            | PickError::AllExcluded { service, .. } => service,
        }
    }
}
