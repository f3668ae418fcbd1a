//! All instances of one service at one moment.

use std::sync::Arc;

use crate::instance::Instance;
use crate::role::Term;

/// An immutable view of one service: its instances, its master, its revision.
///
/// A service that nobody has registered under is an empty snapshot. Instances are in the order of their codes, so that
/// every process that sees the same registry sees the same order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    service: Arc<str>,
    revision: u64,
    instances: Vec<Arc<Instance>>,
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
    pub fn new(service: impl Into<Arc<str>>, revision: u64, mut instances: Vec<Arc<Instance>>) -> Self {
        instances.sort_by(|a, b| a.code.cmp(&b.code));
        instances.dedup_by(|later, first| later.code == first.code);
        let term_of = |index: &usize| instances[*index].role.term().unwrap_or(Term(0));
        let master = (0..instances.len()).filter(|&i| instances[i].role.is_master()).max_by_key(term_of);
        let guarded = instances.iter().any(|instance| instance.is_guarded());
        Self { service: service.into(), revision, instances, master, problems: Vec::new(), guarded }
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
    pub fn instances(&self) -> &[Arc<Instance>] {
        &self.instances
    }

    /// The master, if there is one now.
    #[must_use]
    pub fn master(&self) -> Option<&Arc<Instance>> {
        self.master.map(|index| &self.instances[index])
    }

    /// All instances but the master, in the order of their codes.
    pub fn normals(&self) -> impl Iterator<Item = &Arc<Instance>> {
        let master = self.master;
        self.instances.iter().enumerate().filter(move |(index, _)| Some(*index) != master).map(|(_, instance)| instance)
    }

    /// The instance with that code.
    #[must_use]
    pub fn find(&self, code: &str) -> Option<&Arc<Instance>> {
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

    /// Whether it holds [guarded](Instance::guarded_since) instances: those that were lost in a sudden mass loss.
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
        self.instances == other.instances && self.problems == other.problems
    }
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
    use crate::role::Role;

    fn instance(code: &str, role: Role) -> Arc<Instance> {
        let mut instance = Instance::new("s").code(code);
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
