//! What a snapshot says of an instance.

use std::ops::Deref;
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
#[non_exhaustive]
pub enum Status {
    /// Nothing: it may be given work.
    #[default]
    Passing,
    /// An operator has drained it: it gets no new claims until undrained.
    Drained,
}

impl Status {
    /// `passing` or `drained`: the word that JSON and tables use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Status::Passing => "passing",
            Status::Drained => "drained",
        }
    }
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
