//! What differs between two snapshots.

use std::sync::Arc;

use crate::observed::ObservedInstance;
use crate::snapshot::{Difference, Snapshot};

/// One difference between an older and a newer snapshot of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// A service that had no instance has one now.
    ServiceAppeared(Arc<str>),
    /// An instance that was not there before.
    Joined(Arc<ObservedInstance>),
    /// An instance that is there no longer.
    Left(Arc<ObservedInstance>),
    /// An instance that the registry has lost in a sudden mass loss, see [`ObservedInstance::guarded_since`]. Either [`Change::Returned`]
    /// or [`Change::Left`] follows.
    Guarded(Arc<ObservedInstance>),
    /// An instance that was guarded is registered again.
    Returned(Arc<ObservedInstance>),
    /// An instance whose address, weight, tags or status are others now. A change of the role alone is not one.
    Updated {
        /// As it was.
        old: Arc<ObservedInstance>,
        /// As it is.
        new: Arc<ObservedInstance>,
    },
    /// Another instance is master now, or the same one with another term, or none.
    MasterChanged {
        /// The service.
        service: Arc<str>,
        /// The master before.
        old: Option<Arc<ObservedInstance>>,
        /// The master now.
        new: Option<Arc<ObservedInstance>>,
    },
    /// A service whose last instance is gone.
    ServiceDisappeared(Arc<str>),
}

impl Change {
    /// Returns all differences between two snapshots of one service, in this order: the service appears; instances join, leave, and
    /// change; the master changes; the service disappears.
    #[must_use]
    pub fn between(old: &Snapshot, new: &Snapshot) -> Vec<Change> {
        let mut changes = Vec::new();
        if old.instances().is_empty() && !new.instances().is_empty() {
            changes.push(Change::ServiceAppeared(new.service().clone()));
        }
        let (mut left, mut stayed) = (Vec::new(), Vec::new());
        for difference in old.differences(new) {
            match difference {
                Difference::Joined(instance) => changes.push(Change::Joined(instance.clone())),
                Difference::Left(instance) => left.push(Change::Left(instance.clone())),
                Difference::Stayed { old, new } => stayed.extend(Change::of_one(old, new)),
            }
        }
        changes.append(&mut left);
        changes.append(&mut stayed);
        let master_of = |snapshot: &Snapshot| snapshot.master().map(|m| (m.code.clone(), m.role));
        if master_of(old) != master_of(new) {
            changes.push(Change::MasterChanged {
                service: new.service().clone(),
                old: old.master().cloned(),
                new: new.master().cloned(),
            });
        }
        if !old.instances().is_empty() && new.instances().is_empty() {
            changes.push(Change::ServiceDisappeared(new.service().clone()));
        }
        changes
    }

    /// What has become of an instance that is in both.
    fn of_one(old: &Arc<ObservedInstance>, new: &Arc<ObservedInstance>) -> impl Iterator<Item = Change> {
        let guard = match (old.is_guarded(), new.is_guarded()) {
            (false, true) => Some(Change::Guarded(new.clone())),
            (true, false) => Some(Change::Returned(new.clone())),
            _ => None,
        };
        let updated = || Change::Updated { old: old.clone(), new: new.clone() };
        guard.into_iter().chain((!same_but_for_role(old, new)).then(updated))
    }

    /// The service that the change is about.
    #[must_use]
    pub fn service(&self) -> &Arc<str> {
        match self {
            Change::ServiceAppeared(service)
            | Change::ServiceDisappeared(service)
            | Change::MasterChanged { service, .. } => service,
            Change::Joined(instance)
            | Change::Left(instance)
            | Change::Guarded(instance)
            | Change::Returned(instance)
            | Change::Updated { new: instance, .. } => &instance.service,
        }
    }
}

fn same_but_for_role(a: &ObservedInstance, b: &ObservedInstance) -> bool {
    a.address == b.address && a.weight == b.weight && a.tags == b.tags && a.status == b.status
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::Instance;
    use crate::role::{Role, Term};

    fn snapshot(instances: &[(&str, u32, Role)]) -> Snapshot {
        let instances = instances.iter().map(|&(code, weight, role)| {
            let mut instance = ObservedInstance::from(Instance::new("s").code(code).weight(weight));
            instance.role = role;
            Arc::new(instance)
        });
        Snapshot::new("s", 0, instances.collect())
    }

    fn words(old: &Snapshot, new: &Snapshot) -> Vec<String> {
        let word = |change: Change| match change {
            Change::ServiceAppeared(_) => "appeared".to_owned(),
            Change::ServiceDisappeared(_) => "disappeared".to_owned(),
            Change::Joined(i) => format!("joined {}", i.code),
            Change::Left(i) => format!("left {}", i.code),
            Change::Guarded(i) => format!("guarded {}", i.code),
            Change::Returned(i) => format!("returned {}", i.code),
            Change::Updated { old, new } => format!("updated {} {}->{}", new.code, old.weight, new.weight),
            Change::MasterChanged { new, .. } => format!("master {:?}", new.map(|i| i.code.to_string())),
        };
        Change::between(old, new).into_iter().map(word).collect()
    }

    #[test]
    fn a_guarded_instance_neither_leaves_nor_joins() {
        let registered = snapshot(&[("a", 1, Role::Normal), ("b", 1, Role::Normal)]);
        let mut lost = ObservedInstance::clone(&registered.instances()[1]);
        lost.guarded_since = Some(std::time::SystemTime::UNIX_EPOCH);
        let guarded = Snapshot::new("s", 0, vec![registered.instances()[0].clone(), Arc::new(lost)]);
        assert!(guarded.is_guarded() && !registered.is_guarded());
        assert_eq!(words(&registered, &guarded), ["guarded b"]);
        assert_eq!(words(&guarded, &registered), ["returned b"]);
        assert_eq!(words(&guarded, &snapshot(&[("a", 1, Role::Normal)])), ["left b"]);
    }

    #[test]
    fn a_life_in_changes() {
        let none = snapshot(&[]);
        let first = snapshot(&[("a", 1, Role::Master(Term(1)))]);
        let second = snapshot(&[("a", 2, Role::Master(Term(1))), ("b", 1, Role::Normal)]);
        let third = snapshot(&[("b", 1, Role::Master(Term(2)))]);
        assert_eq!(words(&none, &first), ["appeared", "joined a", "master Some(\"a\")"]);
        assert_eq!(words(&first, &second), ["joined b", "updated a 1->2"]);
        assert_eq!(words(&second, &third), ["left a", "master Some(\"b\")"]);
        assert_eq!(words(&third, &none), ["left b", "master None", "disappeared"]);
        assert!(words(&third, &third).is_empty());
    }
}
