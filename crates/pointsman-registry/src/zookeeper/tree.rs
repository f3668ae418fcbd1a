//! What a directory knows of the registry's nodes, and what it makes of them: without any I/O.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use pointsman_core::{ObservedInstance, Problem, Role, check_name, shown};
use zookeeper_client::{Error as ZkError, Stat};

use super::layout::{Layout, MASTER, is_in_the_way, is_of_observer, removal};
use super::term_base::TermBases;
use super::wire;
use crate::backend::ServiceState;
use crate::overrides::Overrides;

/// Nodes read in one request. Bounds what the server must put together for one reply, were every node of the greatest
/// size that ZooKeeper allows.
pub(super) const BATCH: usize = 128;

/// All nodes of the services that are followed.
#[derive(Debug, Default)]
pub(super) struct Tree {
    layout: Layout,
    services: HashMap<Arc<str>, Service>,
    /// The number of services of whose instances anything is set.
    overridden: usize,
    unread: Unread,
    /// The term bases, as they count for nodes up to that of the transaction `bases_until`.
    bases: TermBases,
    bases_until: i64,
}

#[derive(Debug, Default)]
struct Service {
    nodes: BTreeMap<Box<str>, Node>,
    overrides: Overrides,
    /// What is wrong with other things of the service than its nodes.
    flaws: BTreeMap<Item, String>,
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
    /// The session that keeps it.
    owner: i64,
    /// It was not Pointsman that has written it.
    is_foreign: bool,
    /// The instance with its role, and what had to be clamped; or why it is none.
    content: Result<(Arc<ObservedInstance>, Option<String>), String>,
}

/// What there is of a service besides its nodes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Item {
    Folder(Kind),
    /// What an operator has set for a code.
    Override(Box<str>),
}

/// What a folder of a service holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Kind {
    /// A node for each instance.
    Nodes,
    /// What operators have set, for each code.
    Overrides,
}

/// What exists and may not be read. No event tells when it may: it is to be read again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Unread {
    /// It cannot be listed for which services something is set.
    pub(super) overridden: bool,
    /// The services whose folders cannot be listed.
    pub(super) folders: HashSet<(Kind, Arc<str>)>,
    pub(super) nodes: Dirty,
    pub(super) overrides: Dirty,
}

impl Unread {
    pub(super) fn is_empty(&self) -> bool {
        !self.overridden && self.folders.is_empty() && self.nodes.is_empty() && self.overrides.is_empty()
    }

    /// The services whose folders of one kind cannot be listed.
    pub(super) fn folders_of(&self, kind: Kind) -> Vec<Arc<str>> {
        self.folders.iter().filter(|(of, _)| *of == kind).map(|(_, service)| service.clone()).collect()
    }

    /// The services that it concerns.
    pub(super) fn services(&self) -> HashSet<Box<str>> {
        let items = self.nodes.iter().chain(&self.overrides).map(|(service, _)| service.clone());
        self.folders.iter().map(|(_, service)| Box::from(&**service)).chain(items).collect()
    }
}

impl Tree {
    pub(super) fn new(layout: &Layout) -> Self {
        Self { layout: layout.clone(), ..Self::default() }
    }

    /// Whether the term bases are known that count for a master whose node was created by the transaction `czxid`.
    pub(super) fn knows_bases_of(&self, czxid: i64) -> bool {
        czxid <= self.bases_until
    }

    /// Takes in the term bases, which have been read after a node that was created by the transaction `until`.
    pub(super) fn put_bases(&mut self, bases: TermBases, until: i64) {
        (self.bases, self.bases_until) = (bases, until);
    }

    /// The service's name, shared with all its instances.
    fn name(&self, service: &str) -> Arc<str> {
        self.services.get_key_value(service).map_or_else(|| service.into(), |(name, _)| name.clone())
    }

    /// Takes in what a node of a service says now. What is older than what is known already is refused: it was read from
    /// a server that lags behind. Whether another instance was there before.
    pub(super) fn put(&mut self, service: &str, node: &str, data: &[u8], stat: &Stat) -> bool {
        let (name, path) = (self.name(service), format!("{}/{node}", self.layout.service(service)));
        self.is_read(|unread| &mut unread.nodes, service, node);
        let bases = &self.bases;
        let nodes = &mut self.services.entry(name.clone()).or_default().nodes;
        if nodes.get(node).is_some_and(|known| known.czxid == stat.czxid && known.mzxid > stat.mzxid) {
            return false;
        }
        let mut is_foreign = false;
        let content = match wire::decode(&name, data) {
            Ok(_) if is_in_the_way(node, stat) => Err(removal(&path, stat)),
            Err(reason) if is_in_the_way(node, stat) => Err(format!("{reason}; and {}", removal(&path, stat))),
            decoded => decoded,
        };
        let content = content.map(|parsed| {
            let own = bases.term(stat.czxid);
            let role = if node == MASTER { Role::Master(parsed.term(own)) } else { Role::Normal };
            is_foreign = parsed.session_timeout.is_none();
            let mut instance = ObservedInstance::new(parsed.instance, role);
            instance.observer = is_of_observer(node);
            (Arc::new(instance), parsed.clamped)
        });
        let new = Node { czxid: stat.czxid, mzxid: stat.mzxid, owner: stat.ephemeral_owner, is_foreign, content };
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
        for (name, Service { nodes, gone, left, overrides, .. }) in before.services {
            let service = self.services.entry(name.clone()).or_default();
            (service.gone, service.left) = (gone, left);
            // What cannot be read now is as it was.
            let is_unread = |code: &Arc<str>| service.flaws.contains_key(&Item::Override((&**code).into()));
            let unread: Overrides = overrides.into_iter().filter(|(code, _)| is_unread(code)).collect();
            let was_empty = service.overrides.is_empty();
            service.overrides.extend(unread);
            self.overridden += usize::from(was_empty && !service.overrides.is_empty());
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
        // Of a large service each look at all its nodes counts.
        if known.gone.is_empty() {
            known.left.iter_mut().for_each(|marker| marker.is_new = false);
            self.forget_empty(service);
            return Vec::new();
        }
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
    pub(super) fn put_unreadable(&mut self, service: &str, node: &str, error: &ZkError) {
        let (name, path) = (self.name(service), format!("{}/{node}", self.layout.service(service)));
        self.unread.nodes.insert((service.into(), node.into()));
        let nodes = &mut self.services.entry(name).or_default().nodes;
        let content = Err(unreadable(&path, error));
        nodes.insert(node.into(), Node { czxid: 0, mzxid: 0, owner: 0, is_foreign: false, content });
    }

    /// Takes in that there is an override that cannot be read, and why. What was known of it before stays in force.
    pub(super) fn put_unreadable_override(&mut self, service: &str, code: &str, error: &ZkError) {
        self.unread.overrides.insert((service.into(), code.into()));
        let flaw = unreadable(&format!("{}/{code}", self.layout.overrides_of(service)), error);
        self.set_flaw(service, Item::Override(code.into()), flaw);
    }

    /// Takes in why a folder of a service cannot be listed; `None`: it can, or does not exist.
    pub(super) fn put_folder(&mut self, service: &str, kind: Kind, error: Option<&ZkError>) {
        let (name, item) = (self.name(service), Item::Folder(kind));
        match error {
            Some(error) => {
                self.unread.folders.insert((kind, name));
                self.set_flaw(service, item, unreadable(&self.layout.folder(service, kind), error));
            }
            None => {
                if !self.unread.folders.is_empty() {
                    self.unread.folders.remove(&(kind, name));
                }
                self.clear_flaw(service, &item);
            }
        }
    }

    /// Takes in whether it can be listed for which services something is set.
    pub(super) fn put_overridden(&mut self, is_read: bool) {
        self.unread.overridden = !is_read;
    }

    /// The names of all services.
    pub(super) fn services(&self) -> Vec<Arc<str>> {
        self.services.keys().cloned().collect()
    }

    /// Takes in that an item has been read, or does not exist.
    fn is_read(&mut self, of: impl FnOnce(&mut Unread) -> &mut Dirty, service: &str, item: &str) {
        let unread = of(&mut self.unread);
        if !unread.is_empty() {
            unread.remove(&(service.into(), item.into()));
        }
    }

    fn set_flaw(&mut self, service: &str, item: Item, flaw: String) {
        let name = self.name(service);
        let flaws = &mut self.services.entry(name).or_default().flaws;
        if flaws.get(&item) != Some(&flaw) {
            tracing::warn!(service = shown(service), flaw = shown(&flaw), "something in the registry cannot be used");
            flaws.insert(item, flaw);
        }
    }

    fn clear_flaw(&mut self, service: &str, item: &Item) {
        if let Some(known) = self.services.get_mut(service) {
            known.flaws.remove(item);
            self.forget_empty(service);
        }
    }

    /// What is known of services: the names of their nodes, or the codes of which something is set.
    pub(super) fn names(&self, services: &[Arc<str>], kind: Kind) -> Dirty {
        let mut names = Dirty::new();
        for (service, known) in services.iter().filter_map(|service| self.services.get_key_value(service)) {
            let of = |name: &str| (Box::from(&**service), Box::from(name));
            match kind {
                Kind::Nodes => names.extend(known.nodes.keys().map(|name| of(name))),
                Kind::Overrides => names.extend(known.overrides.keys().map(|code| of(code))),
            }
        }
        names
    }

    /// What exists and could not be read.
    pub(super) fn unread(&self) -> &Unread {
        &self.unread
    }

    /// Takes in that a node of a service is gone.
    pub(super) fn remove(&mut self, service: &str, node: &str) {
        self.is_read(|unread| &mut unread.nodes, service, node);
        if let Some(known) = self.services.get_mut(service) {
            if let Some(gone) = known.nodes.remove(node) {
                self.goes(service, &gone);
            }
            self.forget_empty(service);
        }
    }

    /// Services may be named anew with each start of something; whoever follows all must not remember all that ever were.
    fn forget_empty(&mut self, service: &str) {
        let is_empty = |known: &Service| {
            let Service { nodes, overrides, flaws, gone, .. } = known;
            nodes.is_empty() && overrides.is_empty() && flaws.is_empty() && gone.is_empty()
        };
        if self.services.get(service).is_some_and(is_empty) {
            self.services.remove(service);
        }
    }

    /// Takes in what an operator has set for an instance; `None`: nothing. Where it cannot be understood, what was known before stays in
    /// force.
    pub(super) fn set_override(&mut self, service: &str, code: &str, data: Option<&[u8]>) {
        self.is_read(|unread| &mut unread.overrides, service, code);
        let (name, item) = (self.name(service), Item::Override(code.into()));
        let known = self.services.entry(name).or_default();
        let was_empty = known.overrides.is_empty();
        match data.map(serde_json::from_slice) {
            Some(Ok(set)) => {
                known.overrides.insert(code.into(), set);
            }
            Some(Err(error)) => {
                let path = format!("{}/{code}", self.layout.overrides_of(service));
                return self.set_flaw(service, item, format!("not understood, ignored: {path}: {error}"));
            }
            None => {
                known.overrides.remove(code);
            }
        }
        match (was_empty, known.overrides.is_empty()) {
            (true, false) => self.overridden += 1,
            (false, true) => self.overridden -= 1,
            _ => {}
        }
        self.clear_flaw(service, &item);
    }

    /// Whether anything is set for any instance.
    pub(super) fn has_overrides(&self) -> bool {
        self.overridden > 0
    }

    /// Every service that has a node, or of which something is set or has gone; with what has left since the last call.
    pub(super) fn take_states(&mut self) -> Vec<ServiceState> {
        let names = self.services();
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
        for (item, flaw) in &service.flaws {
            let node = match item {
                Item::Folder(kind) => self.layout.folder(&name, *kind),
                Item::Override(code) => format!("{}/{code}", self.layout.overrides_of(&name)),
            };
            // Only then are instances missing.
            let skipped = *item == Item::Folder(Kind::Nodes);
            state.problems.push(Problem { node, reason: flaw.clone(), skipped });
        }
        if let Err(error) = check_name("service", &name) {
            // Nobody can ask for it by this name; but it is there, and an operator wants to know.
            state.problems.extend(service.nodes.keys().map(|node| problem(node, error.to_string(), true)));
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

/// A node of an instance: its name, itself, what it says.
type Entry<'s> = (&'s str, &'s Node, &'s Arc<ObservedInstance>);

impl Service {
    fn collect(&self, state: &mut ServiceState) {
        // In the order of the codes, as a snapshot has them.
        let mut by_code: BTreeMap<&str, Entry<'_>> = BTreeMap::new();
        let mut doubles = BTreeSet::new();
        for (name, node) in &self.nodes {
            match &node.content {
                Err(reason) => state.problems.push(problem(name, reason.clone(), true)),
                Ok((instance, clamped)) => {
                    state.problems.extend(clamped.iter().map(|reason| problem(name, reason.clone(), false)));
                    let entry = (&**name, node, instance);
                    // One code, one instance: the newest node is the living one, an older one a ghost.
                    let newest = by_code.entry(&instance.code).or_insert(entry);
                    if newest.0 != entry.0 && are_doubles(newest, &entry) {
                        doubles.insert(&*instance.code);
                    }
                    if newest.1.czxid < node.czxid {
                        *newest = entry;
                    }
                }
            }
        }
        let master = self.nodes.get(MASTER).and_then(|node| node.content.as_ref().ok()).map(|(instance, _)| instance);
        for code in &doubles {
            self.tell_doubles(state, code, by_code.get(code).map_or("", |(newest, ..)| newest));
        }
        for (code, (_, _, instance)) in by_code {
            let mut instance = instance.clone();
            let is_double = doubles.contains(code);
            // Of two instances with one code, only the one that has the node is master.
            let has_node = |master: &&Arc<ObservedInstance>| !is_double || master.address == instance.address;
            if let Some(master) = master.filter(|m| *m.code == *code && !instance.role.is_master()).filter(has_node) {
                Arc::make_mut(&mut instance).role = master.role;
            }
            state.instances.push(instance);
        }
    }

    /// Names the nodes that have one code.
    fn tell_doubles(&self, state: &mut ServiceState, code: &str, newest: &str) {
        let with_code = self.nodes.iter().filter(|(_, node)| node.code().is_some_and(|other| **other == *code));
        let names: Vec<&str> = with_code.map(|(name, _)| &**name).collect();
        for name in &names {
            let others: Vec<&str> = names.iter().copied().filter(|other| other != name).collect();
            let used = if *name == newest { "this one, the newest, is used" } else { "only the newest is used" };
            let reason = format!(
                "has the code {code:?}, as {} has: {used}; each instance needs a code of its own",
                others.join(" and ")
            );
            state.problems.push(problem(name, reason, *name != newest));
        }
    }
}

/// Whether two nodes with one code may be of two instances. Instances of Pointsman see to it themselves that they are not: the second one
/// is refused, and what else has the code is a ghost of its own. go-micro-service looks at nobody else's code; one of its processes has two
/// nodes only while it becomes master.
fn are_doubles((name, node, instance): &Entry<'_>, (other_name, other, other_instance): &Entry<'_>) -> bool {
    let becomes_master = (*name == MASTER) != (*other_name == MASTER)
        && node.owner == other.owner
        && instance.address == other_instance.address;
    (node.is_foreign || other.is_foreign) && !becomes_master
}

fn problem(node: &str, reason: String, skipped: bool) -> Problem {
    Problem { node: node.to_owned(), reason, skipped }
}

fn unreadable(path: &str, error: &ZkError) -> String {
    format!("{error}: {path}")
}

/// Nodes that are to be read, in no order, each once.
pub(super) type Dirty = HashSet<(Box<str>, Box<str>)>;

#[cfg(test)]
mod tests;
