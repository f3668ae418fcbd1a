//! Why there is no claim.

use std::sync::Arc;

/// Why no instance could be picked.
///
/// There is no "all ejected": below the panic threshold, and always before nobody is left, ejection is disregarded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PickError {
    /// Nobody is registered under this service.
    #[error("pick an instance of {service}: none is registered")]
    NoInstance {
        /// The service.
        service: Arc<str>,
    },
    /// Instances are registered, but none may be given work: each is drained, or has the weight 0.
    #[error("pick an instance of {service}: all {instances} are drained")]
    AllDrained {
        /// The service.
        service: Arc<str>,
        /// How many are registered.
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
        /// How many can take work.
        candidates: usize,
    },
}

impl PickError {
    /// The service of which an instance was wanted.
    #[must_use]
    pub fn service(&self) -> &Arc<str> {
        match self {
            PickError::NoInstance { service }
            | PickError::AllDrained { service, .. }
            | PickError::OnlyMaster { service }
            | PickError::AllExcluded { service, .. } => service,
        }
    }
}
