//! What an operation on ZooKeeper failed of.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use zookeeper_client::Error as ZkError;

use crate::Error;
use crate::error::Cause;

/// A failed operation: what it was, and what the client says.
#[derive(Debug)]
pub(super) struct Fault {
    step: String,
    pub(super) error: ZkError,
}

impl Fault {
    pub(super) fn new(step: impl Into<String>, error: ZkError) -> Self {
        Self { step: step.into(), error }
    }

    /// Whether the registry has answered, and refuses: trying again will not help unless somebody changes something.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(
            self.error,
            ZkError::NoAuth
                | ZkError::AuthFailed
                | ZkError::InvalidAcl
                | ZkError::QuotaExceeded
                | ZkError::BadArguments(_)
                | ZkError::Unimplemented
                | ZkError::NoChildrenForEphemerals
        )
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.step, self.error)
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        let (reason, is_refusal) = (fault.error.to_string(), fault.is_refusal());
        let (step, source) = (fault.step, Some(Arc::new(fault.error) as Cause));
        if is_refusal { Error::Refused { step, reason, source } } else { Error::Unavailable { step, reason, source } }
    }
}

/// Waits for an operation, at most `limit`: the client queues operations without bound while it is disconnected.
pub(super) async fn within<T>(
    limit: Duration,
    step: impl FnOnce() -> String,
    operation: impl Future<Output = Result<T, impl Into<ZkError>>>,
) -> Result<T, Fault> {
    match tokio::time::timeout(limit, operation).await {
        Ok(result) => result.map_err(|error| Fault::new(step(), error.into())),
        Err(_) => Err(Fault::new(step(), ZkError::Timeout)),
    }
}
