//! What a directory knows of the registry's nodes, and what it makes of them: without any I/O.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use pointsman_core::{Instance, Problem, Role, Term, check_name};
use zookeeper_client::Stat;

use super::layout::MASTER;
use super::wire;
use crate::backend::ServiceState;
use crate::overrides::Override;

/// Nodes read in one request. Bounds what the server must put together for one reply, were every node of the greatest
/// size that ZooKeeper allows.
pub(super) const BATCH: usize = 128;

/// All nodes of the services that are followed.
#[derive(Debug, Default)]
pub(super) struct Tree {
    services: HashMap<Arc<str>, Service>,
}

#[derive(Debug, Default)]
struct Service {
    nodes: BTreeMap<Box<str>, Node>,
    overrides: HashMap<Box<str>, Override>,
}

#[derive(Debug)]
struct Node {
    czxid: i64,
    mzxid: i64,
    /// The instance with its role, and what had to be clamped; or why it is none.
    content: Result<(Arc<Instance>, Option<String>), String>,
}

impl Tree {
    /// The service's name, shared with all its instances.
    fn name(&self, service: &str) -> Arc<str> {
        self.services.get_key_value(service).map_or_else(|| service.into(), |(name, _)| name.clone())
    }

    /// Takes in what a node of a service says now. What is older than what is known already is refused: it was read from
    /// a server that lags behind. Whether another instance was there before.
    pub(super) fn put(&mut self, service: &str, node: &str, data: &[u8], stat: &Stat) -> bool {
        let name = self.name(service);
        let nodes = &mut self.services.entry(name.clone()).or_default().nodes;
        if nodes.get(node).is_some_and(|known| known.czxid == stat.czxid && known.mzxid > stat.mzxid) {
            return false;
        }
        let content = wire::decode(&name, data).map(|parsed| {
            let mut instance = parsed.instance;
            instance.role = if node == MASTER { Role::Master(Term(stat.czxid.unsigned_abs())) } else { Role::Normal };
            (Arc::new(instance), parsed.clamped)
        });
        let new = Node { czxid: stat.czxid, mzxid: stat.mzxid, content };
        let is_other = |old: &Node| old.code().is_some() && old.code() != new.code();
        let went = nodes.get(node).is_some_and(is_other);
        nodes.insert(node.into(), new);
        went
    }

    /// Takes in that there is a node of which nothing can be read, and why.
    pub(super) fn put_unreadable(&mut self, service: &str, node: &str, reason: String) {
        let name = self.name(service);
        let nodes = &mut self.services.entry(name).or_default().nodes;
        nodes.insert(node.into(), Node { czxid: 0, mzxid: 0, content: Err(reason) });
    }

    /// Takes in that a node of a service is gone.
    pub(super) fn remove(&mut self, service: &str, node: &str) {
        if let Some(known) = self.services.get_mut(service) {
            known.nodes.remove(node);
            self.forget_empty(service);
        }
    }

    /// Services may be named anew with each start of something; whoever follows all must not remember all that ever were.
    fn forget_empty(&mut self, service: &str) {
        if self.services.get(service).is_some_and(|known| known.nodes.is_empty() && known.overrides.is_empty()) {
            self.services.remove(service);
        }
    }

    /// Takes in what an operator has set for an instance; `None`: nothing.
    pub(super) fn set_override(&mut self, service: &str, code: &str, data: Option<&[u8]>) {
        let name = self.name(service);
        let overrides = &mut self.services.entry(name).or_default().overrides;
        match data.map(serde_json::from_slice) {
            Some(Ok(set)) => {
                overrides.insert(code.into(), set);
            }
            Some(Err(error)) => tracing::warn!(service, code, %error, "override not understood: ignored"),
            None => {
                overrides.remove(code);
                self.forget_empty(service);
            }
        }
    }

    /// Every service that has a node.
    pub(super) fn states(&self) -> Vec<ServiceState> {
        self.services
            .iter()
            .filter(|(_, service)| !service.nodes.is_empty())
            .map(|(name, _)| self.state(name))
            .collect()
    }

    /// One service as it is now.
    pub(super) fn state(&self, service: &str) -> ServiceState {
        let name = self.name(service);
        let mut state = ServiceState { service: name.clone(), revision: 0, instances: vec![], problems: vec![] };
        let Some(service) = self.services.get(&name) else { return state };
        state.revision = service.nodes.values().map(|node| node.mzxid.unsigned_abs()).max().unwrap_or(0);
        if let Err(error) = check_name("service", &name) {
            // Nobody can ask for it by this name; but it is there, and an operator wants to know.
            let problem = |node: &str| Problem { node: node.to_owned(), reason: error.to_string(), skipped: true };
            state.problems = service.nodes.keys().map(|node| problem(node)).collect();
            return state;
        }
        service.collect(&mut state);
        state
    }
}

impl Node {
    /// Of the instance that it is of.
    fn code(&self) -> Option<&str> {
        self.content.as_ref().ok().map(|(instance, _)| &*instance.code)
    }
}

impl Service {
    fn collect(&self, state: &mut ServiceState) {
        let mut by_code: HashMap<&str, (&Node, &Arc<Instance>)> = HashMap::with_capacity(self.nodes.len());
        for (name, node) in &self.nodes {
            let problem =
                |reason: &String, skipped| Problem { node: name.to_string(), reason: reason.clone(), skipped };
            match &node.content {
                Err(reason) => state.problems.push(problem(reason, true)),
                Ok((instance, clamped)) => {
                    state.problems.extend(clamped.iter().map(|reason| problem(reason, false)));
                    // One code, one instance: the newest node is the living one, an older one a ghost.
                    let newest = by_code.entry(&instance.code).or_insert((node, instance));
                    if newest.0.czxid < node.czxid {
                        *newest = (node, instance);
                    }
                }
            }
        }
        let master = self.nodes.get(MASTER).and_then(|node| node.content.as_ref().ok()).map(|(instance, _)| instance);
        for (code, (_, instance)) in by_code {
            let mut instance = instance.clone();
            if let Some(master) = master.filter(|master| *master.code == *code && !instance.role.is_master()) {
                Arc::make_mut(&mut instance).role = master.role;
            }
            let set = self.overrides.get(code).copied().unwrap_or_default();
            state.instances.push(set.apply(instance));
        }
    }
}

/// Nodes that are to be read, in no order, each once.
pub(super) type Dirty = HashSet<(Box<str>, Box<str>)>;

#[cfg(test)]
mod tests {
    use pointsman_core::Status;

    use super::*;

    fn stat(czxid: i64, mzxid: i64) -> Stat {
        Stat {
            czxid,
            mzxid,
            pzxid: 0,
            ctime: 0,
            mtime: 0,
            version: 0,
            cversion: 0,
            aversion: 0,
            ephemeral_owner: 1,
            data_length: 0,
            num_children: 0,
        }
    }

    fn data(code: &str, weight: u32) -> Vec<u8> {
        wire::encode(&Instance::new("s").code(code).weight(weight), std::time::Duration::from_secs(1), None)
    }

    fn list(tree: &Tree) -> Vec<String> {
        let mut list: Vec<_> =
            tree.state("s").instances.iter().map(|i| format!("{} {} {}", i.code, i.weight, i.role)).collect();
        list.sort();
        list
    }

    #[test]
    fn an_instance_at_two_places_is_listed_once() {
        let mut tree = Tree::default();
        tree.put("s", "normal0000000001", &data("a", 1), &stat(5, 5));
        tree.put("s", "normal0000000002", &data("b", 1), &stat(6, 6));
        assert_eq!(list(&tree), ["a 1 normal", "b 1 normal"]);
        // go-micro-service promotes in two steps.
        tree.put("s", "master", &data("a", 2), &stat(9, 9));
        assert_eq!(list(&tree), ["a 2 master (term 9)", "b 1 normal"]);
        tree.remove("s", "normal0000000001");
        assert_eq!(list(&tree), ["a 2 master (term 9)", "b 1 normal"]);
        // It comes back by a new session while its old one's master node still stands.
        tree.put("s", "normal0000000007", &data("a", 3), &stat(12, 12));
        assert_eq!(list(&tree), ["a 3 master (term 9)", "b 1 normal"]);
        tree.remove("s", "master");
        assert_eq!(list(&tree), ["a 3 normal", "b 1 normal"]);
    }

    #[test]
    fn what_is_older_than_what_is_known_is_refused() {
        let mut tree = Tree::default();
        tree.put("s", "master", &data("a", 2), &stat(5, 9));
        tree.put("s", "master", &data("a", 1), &stat(5, 7));
        assert_eq!(list(&tree), ["a 2 master (term 5)"]);
        tree.put("s", "master", &data("b", 1), &stat(4, 4));
        assert_eq!(list(&tree), ["b 1 master (term 4)"], "another node: a registry that was rebuilt may count anew");
    }

    #[test]
    fn overrides_outlive_registrations() {
        let mut tree = Tree::default();
        tree.set_override("s", "a", Some(br#"{"drained":true,"weight":9}"#));
        tree.put("s", "master", &data("a", 2), &stat(5, 5));
        let state = tree.state("s");
        assert_eq!((state.instances[0].weight, state.instances[0].status), (9, Status::Drained));
        tree.set_override("s", "a", Some(b"nonsense"));
        assert_eq!(tree.state("s").instances[0].status, Status::Drained);
        tree.set_override("s", "a", None);
        assert_eq!(tree.state("s").instances[0].weight, 2);
        tree.remove("s", "master");
        tree.set_override("s", "a", None);
        assert!(tree.services.is_empty(), "nothing is left of a service that is gone");
    }

    #[test]
    fn unreadable_nodes_are_problems_until_they_can_be_read_or_are_gone() {
        let mut tree = Tree::default();
        tree.put("s", "master", &data("a", 1), &stat(5, 5));
        tree.put_unreadable("s", "master", "cannot be read: no auth".to_owned());
        let state = tree.state("s");
        assert!(state.instances.is_empty() && state.problems[0].skipped, "{state:?}");
        tree.put("s", "master", &data("a", 1), &stat(5, 5));
        assert!(tree.state("s").problems.is_empty());
        tree.remove("s", "master");
        assert!(tree.services.is_empty(), "nothing is left of a service that is gone");
    }

    #[test]
    fn broken_nodes_are_counted_and_harm_nobody() {
        let mut tree = Tree::default();
        tree.put("s", "normal0000000001", &data("a", 1), &stat(5, 5));
        tree.put("s", "normal0000000002", b"{", &stat(6, 6));
        tree.put("s", "whatever", br#"{"serverip":"h","serverport":1,"weight":-2}"#, &stat(7, 7));
        assert_eq!(list(&tree), ["a 1 normal", "h:1 0 normal"]);
        let problems = tree.state("s").problems;
        assert_eq!(problems.iter().filter(|problem| problem.skipped).count(), 1);
        assert_eq!(problems.len(), 2);
        tree.put("a#b", "master", &data("a", 1), &stat(5, 5));
        let state = tree.state("a#b");
        assert!(state.instances.is_empty() && state.problems[0].reason.contains('#'));
    }
}
