//! What a snapshot says of an instance.

use std::fmt;
use std::ops::Deref;
use std::str::FromStr;
use std::time::SystemTime;

use crate::instance::Instance;
use crate::role::Role;

/// An instance as it is in a [`Snapshot`](crate::Snapshot): what it has registered, and what the registry and operators say of it.
///
/// What it has registered can be read directly: `observed.code`, `observed.address`, `observed.tags`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ObservedInstance {
    /// What it has registered; the weight apart, which counts as `registered.weight` only where no operator has set another one.
    pub registered: Instance,
    /// Its share of the calls, relative to the others'. 0 means drained. What an operator has set comes before what the instance has
    /// registered.
    pub weight: u32,
    /// Its role.
    pub role: Role,
    /// Whether it has registered as an observer: it is never master, and is otherwise an instance like any other.
    pub observer: bool,
    /// What an operator has said of it.
    pub status: Status,
    /// When the registry lost it, where that was so sudden that it may still live: it is used only after every instance that
    /// is registered. `None` while it is registered.
    pub guarded_since: Option<SystemTime>,
}

/// What an operator has said of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "lowercase"))]
#[non_exhaustive]
pub enum Status {
    /// Nothing: it may be given work.
    #[default]
    Passing,
    /// An operator has drained it: it gets no new claims until undrained.
    Drained,
}

impl Status {
    /// All of them.
    pub const ALL: [Status; 2] = [Status::Passing, Status::Drained];

    /// `passing` or `drained`: the word that JSON and tables use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Status::Passing => "passing",
            Status::Drained => "drained",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Status {
    type Err = UnknownStatus;

    fn from_str(name: &str) -> Result<Self, UnknownStatus> {
        let known = Status::ALL.into_iter().find(|status| status.name() == name);
        known.ok_or_else(|| UnknownStatus { name: name.chars().take(64).collect() })
    }
}

/// A word that is no [`Status`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown status {name:?}: it may be passing, drained")]
#[non_exhaustive]
pub struct UnknownStatus {
    /// The word as it was given, cut after 64 characters.
    pub name: String,
}

impl ObservedInstance {
    /// An instance that has registered this, in this role, of which no operator has said anything.
    #[must_use]
    pub fn new(registered: Instance, role: Role) -> Self {
        let (weight, status) = (registered.weight, Status::Passing);
        Self { registered, weight, role, observer: false, status, guarded_since: None }
    }

    /// Whether the registry has lost it suddenly, see [`ObservedInstance::guarded_since`].
    #[must_use]
    pub fn is_guarded(&self) -> bool {
        self.guarded_since.is_some()
    }

    /// Whether it may be given work: not drained, and with a weight above 0. A guarded instance may.
    #[must_use]
    pub fn takes_work(&self) -> bool {
        self.status == Status::Passing && self.weight > 0
    }
}

impl Deref for ObservedInstance {
    type Target = Instance;

    fn deref(&self) -> &Instance {
        &self.registered
    }
}

/// In no role.
impl From<Instance> for ObservedInstance {
    fn from(registered: Instance) -> Self {
        Self::new(registered, Role::Detached)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_as_it_is_written() {
        for status in Status::ALL {
            assert_eq!(status.to_string().parse(), Ok(status));
        }
        let error = "Drained".parse::<Status>().unwrap_err();
        assert_eq!(error.to_string(), "unknown status \"Drained\": it may be passing, drained");
    }

    #[cfg(feature = "serde")]
    #[test]
    fn a_status_has_the_same_word_in_json() {
        for status in Status::ALL {
            let json = serde_json::to_string(&status).unwrap();
            assert_eq!(json, format!("\"{status}\""));
            assert_eq!(serde_json::from_str::<Status>(&json).unwrap(), status);
        }
    }
}
