//! All instances of one service at one moment.

use std::cmp::Ordering;
use std::sync::Arc;

use crate::observed::ObservedInstance;
use crate::role::Term;

/// An immutable view of one service: its instances, its master, its revision.
///
/// A service that nobody has registered under is an empty snapshot. Instances are in the order of their codes, so that
/// every process that sees the same registry sees the same order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    service: Arc<str>,
    revision: u64,
    /// Shared by the snapshots that tell the same of the instances: to tell it at another revision costs nothing.
    instances: Arc<[Arc<ObservedInstance>]>,
    master: Option<usize>,
    problems: Vec<Problem>,
    guarded: bool,
}

impl Snapshot {
    /// The snapshot of a service without instances, at revision 0.
    #[must_use]
    pub fn empty(service: impl Into<Arc<str>>) -> Self {
        Self::new(service, 0, Vec::new())
    }

    /// A snapshot of `instances`, each with its role and with a code of its own. Of several masters the one with the
    /// highest term counts; of several instances with one code, the first.
    #[must_use]
    pub fn new(service: impl Into<Arc<str>>, revision: u64, mut instances: Vec<Arc<ObservedInstance>>) -> Self {
        if !instances.is_sorted_by(|a, b| a.code < b.code) {
            instances.sort_by(|a, b| a.code.cmp(&b.code));
            instances.dedup_by(|later, first| later.code == first.code);
        }
        let (mut master, mut highest, mut guarded) = (None, Term(0), false);
        for (index, instance) in instances.iter().enumerate() {
            guarded |= instance.is_guarded();
            if let Some(term) = instance.role.term().filter(|term| *term >= highest) {
                (master, highest) = (Some(index), term);
            }
        }
        let instances = instances.into();
        Self { service: service.into(), revision, instances, master, problems: Vec::new(), guarded }
    }

    /// The same at another revision. Copies nothing but the problems.
    #[must_use]
    pub fn at_revision(&self, revision: u64) -> Self {
        Self { revision, ..self.clone() }
    }

    /// Adds what was found in the registry but could not be taken as it is.
    #[must_use]
    pub fn with_problems(mut self, problems: Vec<Problem>) -> Self {
        self.problems = problems;
        self
    }

    /// The service's name.
    #[must_use]
    pub fn service(&self) -> &Arc<str> {
        &self.service
    }

    /// Rises with every change of this service, and only then. Comparable only among snapshots of one directory.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// All instances, in the order of their codes.
    #[must_use]
    pub fn instances(&self) -> &[Arc<ObservedInstance>] {
        &self.instances
    }

    /// The master, if there is one now.
    #[must_use]
    pub fn master(&self) -> Option<&Arc<ObservedInstance>> {
        self.master.map(|index| &self.instances[index])
    }

    /// All instances but the master, in the order of their codes.
    pub fn normals(&self) -> impl Iterator<Item = &Arc<ObservedInstance>> {
        let master = self.master;
        self.instances.iter().enumerate().filter(move |(index, _)| Some(*index) != master).map(|(_, instance)| instance)
    }

    /// The instance with that code.
    #[must_use]
    pub fn find(&self, code: &str) -> Option<&Arc<ObservedInstance>> {
        let index = self.instances.binary_search_by(|instance| (*instance.code).cmp(code)).ok()?;
        Some(&self.instances[index])
    }

    /// What was found in the registry under this service but skipped, or taken only in part.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Why it is not known which instances there are, where the registry does not let the service's folder be read: what is listed was
    /// known before. A service that cannot be read is not one without instances.
    #[must_use]
    pub fn unreadable(&self) -> Option<&Problem> {
        self.problems.iter().find(|problem| problem.skipped && problem.is_of_folder())
    }

    /// Whether it holds [guarded](ObservedInstance::guarded_since) instances: those that were lost in a sudden mass loss.
    #[must_use]
    pub fn is_guarded(&self) -> bool {
        self.guarded
    }

    /// Whether there is no instance and no problem either: nothing that an operator would list.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.instances.is_empty() && self.problems.is_empty()
    }

    /// Whether `other` tells the same, whatever its revision.
    #[must_use]
    pub fn same_content(&self, other: &Self) -> bool {
        let same_list = Arc::ptr_eq(&self.instances, &other.instances);
        (same_list || self.instances == other.instances) && self.problems == other.problems
    }

    /// What differs between this snapshot and a newer one, in the order of the codes. One walk over both; instances that are the
    /// same in memory, as those that have not changed are, are passed over without a look at them.
    pub fn differences<'a>(&'a self, newer: &'a Self) -> impl Iterator<Item = Difference<'a>> {
        let (mut old, mut new) = (&*self.instances, &*newer.instances);
        if Arc::ptr_eq(&self.instances, &newer.instances) {
            (old, new) = (&[], &[]);
        }
        std::iter::from_fn(move || {
            loop {
                let order = match (old.first(), new.first()) {
                    (Some(was), Some(is)) if Arc::ptr_eq(was, is) => {
                        (old, new) = (&old[1..], &new[1..]);
                        continue;
                    }
                    (Some(was), Some(is)) => was.code.cmp(&is.code),
                    (Some(_), None) => Ordering::Less,
                    (None, Some(_)) => Ordering::Greater,
                    (None, None) => return None,
                };
                return Some(match order {
                    Ordering::Less => Difference::Left(next(&mut old)?),
                    Ordering::Greater => Difference::Joined(next(&mut new)?),
                    Ordering::Equal => Difference::Stayed { old: next(&mut old)?, new: next(&mut new)? },
                });
            }
        })
    }
}

fn next<'a>(rest: &mut &'a [Arc<ObservedInstance>]) -> Option<&'a Arc<ObservedInstance>> {
    let (first, others) = rest.split_first()?;
    *rest = others;
    Some(first)
}

/// One difference between two snapshots, from [`Snapshot::differences`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Difference<'a> {
    /// The newer one has an instance with this code, the older one has none.
    Joined(&'a Arc<ObservedInstance>),
    /// The older one has an instance with this code, the newer one has none.
    Left(&'a Arc<ObservedInstance>),
    /// Both have an instance with this code, but not the same in memory. They may still be equal.
    Stayed {
        /// As it was.
        old: &'a Arc<ObservedInstance>,
        /// As it is.
        new: &'a Arc<ObservedInstance>,
    },
}

/// Something in the registry that is not, or not quite, an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The name of the node it was found in; the path, beginning with a slash, of what is not a node of the service: its folder, or what
    /// operators have set for an instance.
    pub node: String,
    /// What is wrong with it.
    pub reason: String,
    /// Whether it was left out altogether; otherwise a value was clamped, and the instance is listed.
    pub skipped: bool,
}

impl Problem {
    /// Whether it was found in a folder, not in the node of an instance.
    #[must_use]
    pub fn is_of_folder(&self) -> bool {
        self.node.starts_with('/')
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::Instance;
    use crate::role::Role;

    fn instance(code: &str, role: Role) -> Arc<ObservedInstance> {
        let mut instance = ObservedInstance::from(Instance::new("s").code(code));
        instance.role = role;
        Arc::new(instance)
    }

    #[test]
    fn order_and_lookup_do_not_depend_on_how_it_was_read() {
        let snapshot = Snapshot::new(
            "s",
            7,
            vec![instance("c", Role::Normal), instance("a", Role::Master(Term(3))), instance("b", Role::Normal)],
        );
        let codes: Vec<_> = snapshot.instances().iter().map(|i| &*i.code).collect();
        assert_eq!(codes, ["a", "b", "c"]);
        assert_eq!(&*snapshot.master().unwrap().code, "a");
        assert_eq!(snapshot.normals().map(|i| &*i.code).collect::<Vec<_>>(), ["b", "c"]);
        assert_eq!(&*snapshot.find("b").unwrap().code, "b");
        assert!(snapshot.find("x").is_none());
    }

    #[test]
    fn the_highest_term_is_master_and_a_code_is_listed_once() {
        let snapshot = Snapshot::new(
            "s",
            1,
            vec![
                instance("a", Role::Master(Term(3))),
                instance("b", Role::Master(Term(5))),
                instance("b", Role::Normal),
            ],
        );
        assert_eq!(snapshot.instances().len(), 2);
        assert_eq!(&*snapshot.master().unwrap().code, "b");
    }

    #[test]
    fn a_walk_finds_every_difference_and_passes_over_what_is_the_same() {
        let all: Vec<_> = ["a", "b", "c", "d", "e"].map(|code| instance(code, Role::Normal)).to_vec();
        let of = |indices: &[usize]| Snapshot::new("s", 1, indices.iter().map(|i| all[*i].clone()).collect());
        let words = |old: &Snapshot, new: &Snapshot| {
            let word = |difference| match difference {
                Difference::Joined(instance) => format!("+{}", instance.code),
                Difference::Left(instance) => format!("-{}", instance.code),
                Difference::Stayed { new, .. } => format!("={}", new.code),
            };
            old.differences(new).map(word).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(words(&of(&[0, 1, 3]), &of(&[1, 2, 3, 4])), "-a +c +e");
        assert_eq!(words(&of(&[]), &of(&[2, 4])), "+c +e");
        assert_eq!(words(&of(&[2, 4]), &of(&[])), "-c -e");
        let mut other = all.clone();
        other[1] = instance("b", Role::Normal);
        assert_eq!(words(&of(&[0, 1, 2]), &Snapshot::new("s", 2, other[..3].to_vec())), "=b");
        let all = of(&[0, 1, 2, 3, 4]);
        assert_eq!(words(&all, &all.at_revision(9)), "");
        assert!(all.same_content(&all.at_revision(9)) && all.at_revision(9).revision() == 9);
    }

    #[test]
    fn a_folder_that_cannot_be_read_is_told_from_one_that_is_empty() {
        let problem = |node: &str, skipped| Problem { node: node.to_owned(), reason: "x".to_owned(), skipped };
        let with = |problems| Snapshot::empty("s").with_problems(problems);
        assert_eq!(with(vec![problem("normal1", true), problem("/o/s/a", false)]).unreadable(), None);
        let unreadable = with(vec![problem("master", true), problem("/p/s", true)]);
        assert_eq!(unreadable.unreadable().unwrap().node, "/p/s");
        assert!(!unreadable.is_empty());
    }

    #[test]
    fn nothing_there_is_an_empty_snapshot() {
        let snapshot = Snapshot::empty("s");
        assert!(snapshot.is_empty() && snapshot.master().is_none());
        assert_eq!(snapshot.normals().count(), 0);
    }
}
