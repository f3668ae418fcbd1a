//! What a directory knows of the registry's nodes, and what it makes of them: without any I/O.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use pointsman_core::{Instance, Problem, Role, check_name};
use zookeeper_client::Stat;

use super::layout::MASTER;
use super::wire;
use crate::backend::ServiceState;
use crate::overrides::Overrides;

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
    overrides: Overrides,
    /// The codes that went since the last state, and the newest node that each had.
    gone: HashMap<Arc<str>, i64>,
    /// The nodes whose instances left cleanly, as far as that is not told yet; the newest at the end.
    left: VecDeque<Marker>,
}

/// The marker of a clean leave.
#[derive(Debug)]
struct Marker {
    /// The transaction that created the node.
    czxid: i64,
    code: Arc<str>,
    /// No state has been taken since it was found: the instance may have moved to the marked node unseen.
    is_new: bool,
}

/// Maximum number of clean leaves of one service that are remembered until their nodes are seen to be gone.
const LEFT: usize = 4096;

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
            let role = if node == MASTER { Role::Master(parsed.term(stat.czxid)) } else { Role::Normal };
            let mut instance = parsed.instance;
            instance.role = role;
            (Arc::new(instance), parsed.clamped)
        });
        let new = Node { czxid: stat.czxid, mzxid: stat.mzxid, content };
        let (code, czxid) = (new.code().cloned(), new.czxid);
        let Some(old) = nodes.insert(node.into(), new) else { return false };
        let went = old.code().is_some() && old.code() != code.as_ref();
        if old.czxid != czxid {
            self.goes(service, &old);
        }
        went
    }

    /// A node of a service is not there any more.
    fn goes(&mut self, service: &str, node: &Node) {
        if let (Some(known), Some(code)) = (self.services.get_mut(service), node.code()) {
            let newest = known.gone.entry(code.clone()).or_insert(node.czxid);
            *newest = node.czxid.max(*newest);
        }
    }

    /// Takes in that an instance leaves or has left cleanly, with its node, by the transaction that created it. It may have moved to that node
    /// unseen, so until the next state is taken this counts for any older node of the same code as well.
    pub(super) fn leaves(&mut self, service: &str, czxid: i64, code: &str) {
        if let Some(known) = self.services.get_mut(service) {
            known.left.push_back(Marker { czxid, code: code.into(), is_new: true });
            if known.left.len() > LEFT {
                known.left.pop_front();
            }
        }
    }

    /// The oldest node of those that are gone: markers of older ones are of no interest.
    pub(super) fn oldest_gone(&self, service: &str) -> Option<i64> {
        self.services.get(service)?.gone.values().min().copied()
    }

    /// Takes the place of what was known before a reconnection, and returns the services in which a node is gone since.
    pub(super) fn follow_on(&mut self, loaded: Tree) -> Vec<Arc<str>> {
        let before = std::mem::replace(self, loaded);
        let mut concerned = Vec::new();
        for (name, Service { nodes, gone, left, .. }) in before.services {
            let service = self.services.entry(name.clone()).or_default();
            (service.gone, service.left) = (gone, left);
            let there: HashSet<i64> = service.nodes.values().map(|node| node.czxid).collect();
            for node in nodes.values().filter(|node| !there.contains(&node.czxid)) {
                self.goes(&name, node);
            }
            if self.services.get(&name).is_some_and(|service| !service.gone.is_empty()) {
                concerned.push(name);
            } else {
                self.forget_empty(&name);
            }
        }
        concerned
    }

    /// The codes that are gone since the last call, and left cleanly.
    pub(super) fn take_left(&mut self, service: &str) -> Vec<Arc<str>> {
        let Some(known) = self.services.get_mut(service) else { return Vec::new() };
        let there: HashSet<&Arc<str>> = known.nodes.values().filter_map(Node::code).collect();
        let mut gone = std::mem::take(&mut known.gone);
        gone.retain(|code, _| !there.contains(code));
        let mut left = Vec::new();
        for (code, czxid) in gone {
            let is_of = |marker: &Marker| {
                marker.code == code && (marker.czxid == czxid || (marker.is_new && marker.czxid > czxid))
            };
            if let Some(index) = known.left.iter().position(is_of) {
                known.left.remove(index);
                left.push(code);
            }
        }
        // From now on each node is seen: a registry that was rebuilt may count anew, and what was read before says nothing of its nodes.
        known.left.iter_mut().for_each(|marker| marker.is_new = false);
        self.forget_empty(service);
        left
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
            if let Some(gone) = known.nodes.remove(node) {
                self.goes(service, &gone);
            }
            self.forget_empty(service);
        }
    }

    /// Services may be named anew with each start of something; whoever follows all must not remember all that ever were.
    fn forget_empty(&mut self, service: &str) {
        let is_empty = |known: &Service| known.nodes.is_empty() && known.overrides.is_empty() && known.gone.is_empty();
        if self.services.get(service).is_some_and(is_empty) {
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

    /// Whether anything is set for any instance.
    pub(super) fn has_overrides(&self) -> bool {
        self.services.values().any(|service| !service.overrides.is_empty())
    }

    /// Every service that has a node, or of which something is set or has gone; with what has left since the last call.
    pub(super) fn take_states(&mut self) -> Vec<ServiceState> {
        let names: Vec<Arc<str>> = self.services.keys().cloned().collect();
        names.iter().map(|name| self.take_state(name)).collect()
    }

    /// One service as it is now, with what has left since the last call.
    pub(super) fn take_state(&mut self, service: &str) -> ServiceState {
        let state = self.state(service);
        ServiceState { left: self.take_left(service), ..state }
    }

    /// One service as it is now.
    fn state(&self, service: &str) -> ServiceState {
        let name = self.name(service);
        let mut state = ServiceState::empty(name.clone());
        let Some(service) = self.services.get(&name) else { return state };
        state.overrides = service.overrides.clone();
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
    fn code(&self) -> Option<&Arc<str>> {
        self.content.as_ref().ok().map(|(instance, _)| &instance.code)
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
            state.instances.push(instance);
        }
    }
}

/// Nodes that are to be read, in no order, each once.
pub(super) type Dirty = HashSet<(Box<str>, Box<str>)>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overrides::Override;

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

    fn left(tree: &mut Tree) -> Vec<String> {
        tree.take_state("s").left.iter().map(ToString::to_string).collect()
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
        let set = Override { drained: true, weight: Some(9) };
        assert_eq!((tree.state("s").instances[0].weight, tree.state("s").overrides["a"]), (2, set));
        tree.set_override("s", "a", Some(b"nonsense"));
        assert_eq!(tree.state("s").overrides["a"], set);
        tree.set_override("s", "a", None);
        assert!(tree.state("s").overrides.is_empty());
        tree.remove("s", "master");
        tree.set_override("s", "a", None);
        assert_eq!(left(&mut tree), [""; 0]);
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
        assert_eq!(left(&mut tree), [""; 0]);
        assert!(tree.services.is_empty(), "nothing is left of a service that is gone");
    }

    #[test]
    fn who_leaves_is_told_from_who_is_lost() {
        let mut tree = Tree::default();
        tree.leaves("s", 5, "a");
        for (number, code) in ["a", "b", "c", "d"].into_iter().enumerate() {
            let czxid = 5 + i64::try_from(number).unwrap();
            tree.put("s", &format!("normal000000000{number}"), &data(code, 1), &stat(czxid, czxid));
        }
        tree.leaves("s", 6, "b");
        assert_eq!(left(&mut tree), [""; 0], "it is still there");
        // One is lost, one has left, one moves, and one has left and comes back.
        tree.remove("s", "normal0000000000");
        tree.remove("s", "normal0000000001");
        tree.remove("s", "normal0000000002");
        tree.put("s", "master", &data("c", 1), &stat(9, 9));
        tree.leaves("s", 8, "d");
        tree.remove("s", "normal0000000003");
        tree.put("s", "normal0000000004", &data("d", 1), &stat(10, 10));
        assert_eq!(left(&mut tree), ["b"]);
        // And is lost afterwards.
        tree.remove("s", "normal0000000004");
        assert_eq!(left(&mut tree), [""; 0]);
        tree.leaves("s", 9, "c");
        tree.put("s", "master", &data("e", 1), &stat(11, 11));
        assert_eq!(left(&mut tree), ["c"], "another has the same place now");
    }

    #[test]
    fn what_has_gone_while_nobody_watched_is_found_by_comparing() {
        let mut before = Tree::default();
        before.put("s", "master", &data("a", 1), &stat(5, 5));
        before.put("s", "normal0000000001", &data("b", 1), &stat(6, 6));
        before.put("t", "master", &data("a", 1), &stat(7, 7));
        before.put("u", "master", &data("a", 1), &stat(8, 8));
        let mut loaded = Tree::default();
        loaded.put("s", "master", &data("b", 1), &stat(9, 9));
        loaded.put("t", "master", &data("a", 1), &stat(7, 7));
        let mut tree = before;
        let mut concerned = tree.follow_on(loaded);
        concerned.sort();
        assert_eq!(concerned, ["s", "u"].map(Arc::from));
        tree.leaves("s", 5, "a");
        tree.leaves("u", 8, "a");
        let mut states = tree.take_states();
        states.sort_by(|a, b| a.service.cmp(&b.service));
        let told: Vec<_> =
            states.iter().map(|state| (&*state.service, state.instances.len(), state.left.len())).collect();
        assert_eq!(told, [("s", 1, 1), ("t", 1, 0), ("u", 0, 1)]);
    }

    #[test]
    fn of_nodes_that_one_transaction_created_only_the_marked_one_has_left() {
        let mut tree = Tree::default();
        for code in ["a", "b"] {
            tree.put("s", &format!("normal000000000{code}"), &data(code, 1), &stat(5, 5));
        }
        tree.leaves("s", 5, "b");
        tree.remove("s", "normal000000000a");
        tree.remove("s", "normal000000000b");
        assert_eq!(left(&mut tree), ["b"]);
    }

    #[test]
    fn who_moved_and_left_while_nobody_watched_has_left() {
        let mut before = Tree::default();
        for (czxid, code) in [(5, "a"), (6, "b"), (7, "c"), (8, "d")] {
            before.put("s", &format!("normal000000000{czxid}"), &data(code, 1), &stat(czxid, czxid));
        }
        let mut tree = before;
        assert_eq!(tree.follow_on(Tree::default()), [Arc::from("s")]);
        assert_eq!(tree.oldest_gone("s"), Some(5));
        // One has moved and left, one left before and came back, one has left, and one is lost.
        tree.leaves("s", 9, "a");
        tree.leaves("s", 4, "b");
        tree.leaves("s", 7, "c");
        let mut gone = left(&mut tree);
        gone.sort();
        assert_eq!(gone, ["a", "c"]);
        // What was read then says nothing of what is seen to go later.
        tree.leaves("s", 20, "e");
        tree.put("s", "master", &data("e", 1), &stat(11, 11));
        assert_eq!(left(&mut tree), [""; 0]);
        tree.remove("s", "master");
        assert_eq!(left(&mut tree), [""; 0]);
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
