//! What can go wrong, in words for whoever called.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pointsman_core::{InvalidInstance, InvalidName, StaleTerm};

/// Why a call on the registry failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The registry's URL cannot be used.
    #[error("registry url {url:?}: {reason}")]
    Url {
        /// The URL, without its secrets.
        url: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// The instance cannot be registered as it is.
    #[error(transparent)]
    Invalid(#[from] InvalidInstance),
    /// The registration would not fit into the registry.
    #[error("register {service}/{code}: {bytes} bytes are too much, the limit is {limit}; use fewer or smaller tags")]
    TooLarge {
        /// The service.
        service: Arc<str>,
        /// The instance's code.
        code: Arc<str>,
        /// What it would take.
        bytes: usize,
        /// What there is.
        limit: usize,
    },
    /// Another living instance of the service has the code.
    #[error(
        "register {service}/{code}: the code is already registered, by {holder}; choose another code, or end that registration"
    )]
    DuplicateCode {
        /// The service.
        service: Arc<str>,
        /// The code.
        code: Arc<str>,
        /// Who has it: address, process, node.
        holder: String,
    },
    /// No registry answered in time, or there is none at that address.
    #[error("{tried}: {}{reason}", in_vain(*waited))]
    Unreachable {
        /// What was tried.
        tried: String,
        /// For how long. Zero if it was plain at once that there is no such server, as behind a closed port of this machine.
        waited: Duration,
        /// What was seen at the last try.
        reason: String,
    },
    /// The connection to the registry is lost; what was asked for may or may not have been carried out.
    #[error("{step}: {reason}")]
    Unavailable {
        /// What was being done.
        step: String,
        /// What happened.
        reason: String,
        /// The error that says so, where there is one.
        source: Option<Cause>,
    },
    /// The registry answered, and refuses.
    #[error("{step}: {reason}")]
    Refused {
        /// What was being done.
        step: String,
        /// The registry's reason.
        reason: String,
        /// The error that says so, where there is one.
        source: Option<Cause>,
    },
    /// The service has no master now.
    #[error("service {service} has no master now")]
    NoMaster {
        /// The service.
        service: Arc<str>,
    },
    /// No instance could be picked. The functions of this crate do not return it: it is for those who call the registry and a balancer in one
    /// function.
    #[cfg(feature = "balance")]
    #[error(transparent)]
    Pick(#[from] pointsman_balance::PickError),
    /// A higher term of the service has been granted or accepted: whoever offers this one is master no longer.
    #[error("service {service}: {stale}")]
    StaleTerm {
        /// The service.
        service: Arc<str>,
        /// The term that was offered, and the highest.
        stale: StaleTerm,
    },
    /// Only a master can resign.
    #[error("{service}/{code} is not master, so it cannot resign")]
    NotMaster {
        /// The service.
        service: Arc<str>,
        /// The instance's code.
        code: Arc<str>,
    },
    /// An update may change address, weight and tags only.
    #[error("{service}/{code}: service and code of a living registration cannot be changed; register anew")]
    Fixed {
        /// The service.
        service: Arc<str>,
        /// The instance's code.
        code: Arc<str>,
    },
    /// The same holder has registered the instance elsewhere; this registration has ended.
    #[error("{service}/{code} was taken over by the same holder elsewhere")]
    TakenOver {
        /// The service.
        service: Arc<str>,
        /// The instance's code.
        code: Arc<str>,
    },
    /// A file that a setting names cannot be read.
    #[error("read {path}: {reason}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
        /// The error that says so, where there is one.
        source: Option<Cause>,
    },
    /// The registration, or the registry, has been closed.
    #[error("{what} is closed")]
    Closed {
        /// What is closed.
        what: String,
    },
}

/// The error that another one comes from. Its text is part of the other's, too.
pub type Cause = Arc<dyn std::error::Error + Send + Sync>;

impl Error {
    /// [`Error::Unavailable`] without another error behind it.
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_registry::Error;
    /// let error = Error::unavailable("register ress/a", "connection lost");
    /// assert_eq!(error.to_string(), "register ress/a: connection lost");
    /// assert!(error.is_retryable());
    /// ```
    pub fn unavailable(step: impl Into<String>, reason: impl Into<String>) -> Self {
        Error::Unavailable { step: step.into(), reason: reason.into(), source: None }
    }

    /// [`Error::Refused`] without another error behind it.
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_registry::Error;
    /// let error = Error::refused("drain ress/a", "not allowed");
    /// assert_eq!(error.to_string(), "drain ress/a: not allowed");
    /// assert!(!error.is_retryable());
    /// ```
    pub fn refused(step: impl Into<String>, reason: impl Into<String>) -> Self {
        Error::Refused { step: step.into(), reason: reason.into(), source: None }
    }

    /// [`Error::File`], because of another error.
    pub(crate) fn file(path: impl Into<PathBuf>, error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Error::File { path: path.into(), reason: error.to_string(), source: Some(Arc::new(error)) }
    }

    /// Whether the same call may succeed later, without anything being changed by the caller.
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_registry::Registry;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = Registry::connect("memory://retryable").await?;
    /// let error = registry.discover("ress").await?.master().unwrap_err();
    /// assert!(error.is_retryable()); // there may be a master later
    /// let error = registry.discover("no/name").await.unwrap_err();
    /// assert!(!error.is_retryable());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        #[cfg(feature = "balance")]
        if let Error::Pick(error) = self {
            return error.is_retryable();
        }
        matches!(self, Error::Unreachable { .. } | Error::Unavailable { .. } | Error::NoMaster { .. })
    }
}

fn in_vain(waited: Duration) -> String {
    if waited.is_zero() { String::new() } else { format!("no answer within {waited:?}: ") }
}

impl From<InvalidName> for Error {
    fn from(error: InvalidName) -> Self {
        Error::Invalid(error.into())
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[test]
    fn what_an_error_comes_from_is_kept() {
        let missing = std::io::Error::new(std::io::ErrorKind::NotFound, "no such file");
        let error = Error::file("/a", missing);
        assert_eq!(error.to_string(), "read /a: no such file");
        assert_eq!(error.source().unwrap().to_string(), "no such file");
        assert!(Error::unavailable("register s/a", "away").source().is_none());
    }

    #[cfg(feature = "balance")]
    #[test]
    fn a_pick_that_fails_is_an_error_of_the_registry_too() {
        fn fails() -> Result<(), Error> {
            Err(pointsman_balance::PickError::NoInstance { service: "s".into() })?
        }
        let error = fails().unwrap_err();
        assert_eq!(error.to_string(), "pick an instance of s: none is registered");
        assert!(error.is_retryable());
    }
}
