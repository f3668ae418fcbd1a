//! Which service is meant, where services of several registries are used side by side.

use std::fmt;
use std::sync::Arc;

/// Identifies a service: by its name, and by the registry that it is found in.
///
/// A proxy or a relay finds most services in one registry, its own. Two services of one name in two registries are two services.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub struct ServiceId {
    /// Name that stands for the registry; `None` for the own registry of whoever uses the service. It is shown in logs and metrics, and
    /// has no secret in it.
    pub registry: Option<Arc<str>>,
    /// Name of the service.
    pub name: Arc<str>,
}

impl ServiceId {
    /// A service of this registry.
    #[must_use]
    pub fn new(registry: Option<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { registry, name: name.into() }
    }
}

/// A service of the own registry.
impl<N: Into<Arc<str>>> From<N> for ServiceId {
    fn from(name: N) -> Self {
        Self::new(None, name)
    }
}

impl fmt::Display for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.registry {
            None => f.write_str(&self.name),
            Some(registry) => write!(f, "{} in {registry}", self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_alone_is_a_service_of_the_own_registry() {
        let (own, other) = (ServiceId::from("ress"), ServiceId::new(Some("zookeeper://h/p".into()), "ress"));
        assert_ne!(own, other);
        assert_eq!((own.to_string(), other.to_string()), ("ress".to_owned(), "ress in zookeeper://h/p".to_owned()));
    }
}
