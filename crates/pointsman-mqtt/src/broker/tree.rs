//! Who has subscribed to what: a tree of the levels of the filters.

use std::collections::HashMap;
use std::str::Split;
use std::sync::Arc;

use super::slots::Key;
use crate::packet::Options;
use crate::topic;

/// The most levels that a filter may have: the tree is walked by recursion.
pub(super) const MAX_LEVELS: usize = 128;

/// All subscriptions.
#[derive(Debug, Default)]
pub(super) struct Tree {
    root: Node,
}

/// One client's subscription to one filter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Subscription {
    pub(super) client: Key,
    pub(super) options: Options,
    /// The subscription identifier.
    pub(super) id: Option<u32>,
}

/// Clients that share the messages of one filter.
#[derive(Debug)]
pub(super) struct Group {
    /// With `$share` and the group's name.
    pub(super) filter: Arc<str>,
    members: Vec<Subscription>,
    next: usize,
}

/// The subscriptions to one filter.
#[derive(Debug, Default)]
pub(super) struct Leaf {
    pub(super) plain: Vec<Subscription>,
    pub(super) groups: Vec<Group>,
}

#[derive(Debug, Default)]
struct Node {
    children: HashMap<Box<str>, Node>,
    /// The child named `+`.
    one: Option<Box<Node>>,
    /// Filters that end here.
    exact: Leaf,
    /// Filters that end with `#` below here.
    rest: Leaf,
}

impl Tree {
    /// Subscribes, or changes the options of a subscription. The filter is a valid one.
    pub(super) fn insert(&mut self, filter: &str, subscription: Subscription) {
        let Some((_, inner)) = topic::split_share(filter) else {
            return put(&mut self.root.leaf(filter).plain, subscription);
        };
        let groups = &mut self.root.leaf(inner).groups;
        match groups.iter_mut().find(|group| *group.filter == *filter) {
            Some(group) => put(&mut group.members, subscription),
            None => groups.push(Group { filter: filter.into(), members: vec![subscription], next: 0 }),
        }
    }

    pub(super) fn remove(&mut self, filter: &str, client: Key) {
        let shared = topic::split_share(filter);
        let inner = shared.map_or(filter, |(_, inner)| inner);
        self.root.prune(inner.split('/'), &mut |leaf| match shared {
            None => leaf.plain.retain(|subscription| subscription.client != client),
            Some(_) => leaf.groups.retain_mut(|group| {
                if *group.filter == *filter {
                    group.members.retain(|subscription| subscription.client != client);
                }
                !group.members.is_empty()
            }),
        });
    }

    /// Calls `found` with the subscriptions to each filter that matches the topic.
    pub(super) fn matching(&mut self, topic: &str, found: &mut impl FnMut(&mut Leaf)) {
        self.root.matching(topic.split('/'), !topic.starts_with('$'), found);
    }

    /// The group of that whole filter.
    pub(super) fn group(&mut self, filter: &str) -> Option<&mut Group> {
        let (_, inner) = topic::split_share(filter)?;
        let leaf = self.root.find(inner)?;
        leaf.groups.iter_mut().find(|group| *group.filter == *filter)
    }
}

impl Group {
    /// The next member in turn that is as good as any: `rank` says how good each is, the lowest being the best; `None` for one
    /// that cannot take the message.
    pub(super) fn pick(&mut self, mut rank: impl FnMut(&Subscription) -> Option<u8>) -> Option<Subscription> {
        let count = self.members.len();
        let mut best: Option<(u8, usize)> = None;
        for step in 0..count {
            let place = (self.next + step) % count;
            let Some(rank) = rank(&self.members[place]) else { continue };
            if best.is_none_or(|(least, _)| rank < least) {
                best = Some((rank, place));
            }
            if rank == 0 {
                break;
            }
        }
        let (_, place) = best?;
        self.next = (place + 1) % count;
        Some(self.members[place])
    }
}

impl Leaf {
    fn is_empty(&self) -> bool {
        self.plain.is_empty() && self.groups.is_empty()
    }
}

impl Node {
    /// The place of a filter, made where there is none.
    fn leaf(&mut self, filter: &str) -> &mut Leaf {
        let mut node = self;
        for level in filter.split('/') {
            node = match level {
                "#" => return &mut node.rest,
                "+" => node.one.get_or_insert_default(),
                level => {
                    if !node.children.contains_key(level) {
                        node.children.insert(level.into(), Node::default());
                    }
                    match node.children.get_mut(level) {
                        Some(child) => child,
                        None => unreachable!("it was put there"),
                    }
                }
            };
        }
        &mut node.exact
    }

    fn find(&mut self, filter: &str) -> Option<&mut Leaf> {
        let mut node = self;
        for level in filter.split('/') {
            node = match level {
                "#" => return Some(&mut node.rest),
                "+" => node.one.as_deref_mut()?,
                level => node.children.get_mut(level)?,
            };
        }
        Some(&mut node.exact)
    }

    /// Lets `change` take something out of a filter's place, and removes what is empty then. Whether this node is.
    fn prune(&mut self, mut levels: Split<'_, char>, change: &mut impl FnMut(&mut Leaf)) -> bool {
        match levels.next() {
            None => change(&mut self.exact),
            Some("#") => change(&mut self.rest),
            Some("+") => {
                if self.one.as_mut().is_some_and(|one| one.prune(levels, change)) {
                    self.one = None;
                }
            }
            Some(level) => {
                if self.children.get_mut(level).is_some_and(|child| child.prune(levels, change)) {
                    self.children.remove(level);
                }
            }
        }
        self.children.is_empty() && self.one.is_none() && self.exact.is_empty() && self.rest.is_empty()
    }

    fn matching(&mut self, mut levels: Split<'_, char>, wild: bool, found: &mut impl FnMut(&mut Leaf)) {
        if wild && !self.rest.is_empty() {
            found(&mut self.rest);
        }
        let Some(level) = levels.next() else {
            if !self.exact.is_empty() {
                found(&mut self.exact);
            }
            return;
        };
        if wild && let Some(one) = &mut self.one {
            one.matching(levels.clone(), true, found);
        }
        if let Some(child) = self.children.get_mut(level) {
            child.matching(levels, true, found);
        }
    }
}

fn put(all: &mut Vec<Subscription>, new: Subscription) {
    match all.iter_mut().find(|old| old.client == new.client) {
        Some(old) => *old = new,
        None => all.push(new),
    }
}
