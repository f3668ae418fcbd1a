//! Logs that are kept in the registry, so that whoever shares it reads the same.

use std::sync::Arc;

/// A log in the registry. Its entries are in the order of their keys; of too many the oldest are forgotten.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Log {
    /// What operators have done.
    Audit,
    /// Who was master of this service.
    Masters(Arc<str>),
}

/// The largest entry, in bytes.
pub(crate) const MAX_BYTES: usize = 16 * 1024;

impl Log {
    /// Number of entries that are kept.
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_registry::Log;
    /// assert_eq!((Log::Audit.limit(), Log::Masters("ress".into()).limit()), (500, 128));
    /// ```
    #[must_use]
    pub fn limit(&self) -> usize {
        match self {
            Log::Audit => 500,
            Log::Masters(_) => 128,
        }
    }
}

impl std::fmt::Display for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Log::Audit => f.write_str("the log of what operators have done"),
            Log::Masters(service) => write!(f, "the log of the masters of {service}"),
        }
    }
}
