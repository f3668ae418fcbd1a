//! The directories of a registry that are in use, by what they follow.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use crate::backend::{Scope, ServiceState};
use crate::directory::{Directory, Inner};

/// Finds a directory by its scope, and those that know a service, without a look at all of them: a process may follow thousands of services,
/// each by a directory of its own.
#[derive(Debug, Default)]
pub(super) struct Directories {
    by_scope: HashMap<Scope, Weak<Inner>>,
    /// The scopes of more than one service.
    wide: Vec<Scope>,
    /// The number of directories at which those that are gone are forgotten.
    forget_at: usize,
}

/// Minimum number of directories at which those that are gone are looked for.
const FORGET_AT: usize = 64;

impl Directories {
    /// The directory of a scope, if it is in use.
    pub(super) fn find(&self, scope: &Scope) -> Option<Directory> {
        self.by_scope.get(scope).and_then(Weak::upgrade).map(Directory::new)
    }

    /// Adds a directory, in the place of one of the same scope that has ended.
    pub(super) fn insert(&mut self, scope: Scope, directory: &Arc<Inner>) {
        if self.by_scope.len() >= self.forget_at {
            self.by_scope.retain(|_, directory| directory.strong_count() > 0);
            self.wide.retain(|scope| self.by_scope.contains_key(scope));
            // As many as are in use may be added before the next look, so that each addition pays for one entry.
            self.forget_at = (self.by_scope.len() * 2).max(FORGET_AT);
        }
        let is_new = self.by_scope.insert(scope.clone(), Arc::downgrade(directory)).is_none();
        if is_new && !is_of_one(&scope) {
            self.wide.push(scope);
        }
    }

    /// Returns what is known of services that are about to be followed: a new directory does not begin with less than the process knows,
    /// however long the registry takes.
    pub(super) fn known(&self, scope: &Scope) -> Vec<ServiceState> {
        let Scope::Services(services) = scope else { return Vec::new() };
        let wide: Vec<Directory> = self.wide.iter().filter_map(|scope| self.find(scope)).collect();
        let newest = |service: &Arc<str>| {
            let own = self.find(&Scope::one(service));
            let snapshots = wide.iter().chain(&own).map(|other| other.snapshot(service));
            let snapshot =
                snapshots.filter(|snapshot| !snapshot.is_empty()).max_by_key(|snapshot| snapshot.revision())?;
            let (instances, problems) = (snapshot.instances().to_vec(), snapshot.problems().to_vec());
            // Older than whatever the registry tells.
            Some(ServiceState { instances, problems, ..ServiceState::empty(service.clone()) })
        };
        services.iter().filter_map(newest).collect()
    }
}

fn is_of_one(scope: &Scope) -> bool {
    matches!(scope, Scope::Services(services) if services.len() == 1)
}
