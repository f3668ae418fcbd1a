//! What an operator asks of a registry about a service: who was its master, and that a registration ends.

use pointsman_core::check_name;

use super::Registry;
use crate::Result;
use crate::masters::Mastership;

impl Registry {
    /// Returns who was master of a service, the newest first, as agents have written it down: at most 64 masterships. Empty where no agent
    /// has followed the registry.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`](crate::Error::Invalid), [`Error::Unavailable`](crate::Error::Unavailable),
    /// [`Error::Refused`](crate::Error::Refused), [`Error::Closed`](crate::Error::Closed).
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_registry::Registry;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let registry = Registry::connect("memory://no-agent").await?;
    /// assert_eq!(registry.masters("ress").await?, []);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn masters(&self, service: &str) -> Result<Vec<Mastership>> {
        check_name("service", service)?;
        self.check_open()?;
        self.inner.backend.masters(service).await
    }

    /// Lets a master that is registered through an agent hand the mastership over to another instance.
    ///
    /// # Errors
    ///
    /// As [`Registry::masters`]; [`Error::Refused`](crate::Error::Refused) also where no agent keeps the registration, where the instance
    /// is not master, and on every registry but agents: there only the process that has registered an instance can do that, by
    /// [`Registration::resign`](crate::Registration::resign).
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_registry::{Error, Registry};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let registry = Registry::connect("memory://no-agent").await?;
    /// assert!(matches!(registry.resign("ress", "ress-1").await, Err(Error::Refused { .. })));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn resign(&self, service: &str, code: &str) -> Result<()> {
        check_name("service", service)?;
        check_name("code", code)?;
        self.check_open()?;
        self.inner.backend.resign(service, code).await
    }

    /// Ends a registration that is kept by an agent, such as one by a lease whose process is gone. A process that holds its registration,
    /// as those do that register with this crate, registers again at once.
    ///
    /// # Errors
    ///
    /// As [`Registry::resign`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_registry::{Error, Registry};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let registry = Registry::connect("memory://no-agent").await?;
    /// assert!(matches!(registry.deregister("ress", "ress-1").await, Err(Error::Refused { .. })));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn deregister(&self, service: &str, code: &str) -> Result<()> {
        check_name("service", service)?;
        check_name("code", code)?;
        self.check_open()?;
        self.inner.backend.deregister(service, code).await
    }
}
