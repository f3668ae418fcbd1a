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

    #[cfg(test)]
    pub(super) fn is_empty(&mut self) -> bool {
        self.root.prune("".split('/'), &mut |_| {})
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

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::broker::slots::Slots;
    use crate::packet::Qos;

    fn level() -> impl Strategy<Value = &'static str> {
        prop_oneof![Just("a"), Just("b"), Just(""), Just("$x"), Just("用")]
    }

    fn topic() -> impl Strategy<Value = String> {
        vec(level(), 1..5).prop_map(|levels| levels.join("/")).prop_filter("empty", |topic| !topic.is_empty())
    }

    fn filter() -> impl Strategy<Value = String> {
        let one = prop_oneof![3 => level(), 2 => Just("+")];
        let share = prop_oneof![2 => Just(""), 1 => Just("$share/g/"), 1 => Just("$share/h/")];
        (share, vec(one, 0..4), any::<bool>())
            .prop_map(|(share, mut levels, all)| {
                if all || levels.is_empty() {
                    levels.push("#");
                }
                (share, levels.join("/"))
            })
            .prop_filter("empty", |(_, filter)| !filter.is_empty())
            .prop_map(|(share, filter)| format!("{share}{filter}"))
    }

    fn found(tree: &mut Tree, topic: &str) -> Vec<(String, Key)> {
        let mut found = Vec::new();
        tree.matching(topic, &mut |leaf| {
            found.extend(leaf.plain.iter().map(|subscription| (String::new(), subscription.client)));
            for group in &leaf.groups {
                found.extend(group.members.iter().map(|member| (group.filter.to_string(), member.client)));
            }
        });
        found.sort();
        found
    }

    proptest! {
        /// Beside a list that is searched from its beginning to its end.
        #[test]
        fn it_finds_what_matches(steps in vec((filter(), 0..4_usize, any::<bool>()), 0..40), topics in vec(topic(), 1..8)) {
            let mut slots = Slots::default();
            let clients: Vec<Key> = (0..4).map(|_| slots.insert(())).collect();
            let mut tree = Tree::default();
            let mut list: Vec<(String, Key)> = Vec::new();
            for (filter, client, subscribe) in steps {
                let client = clients[client];
                list.retain(|known| *known != (filter.clone(), client));
                if subscribe {
                    tree.insert(&filter, Subscription { client, options: Options::up_to(Qos::AtMostOnce), id: None });
                    list.push((filter, client));
                } else {
                    tree.remove(&filter, client);
                }
                for topic in &topics {
                    let mut expected: Vec<(String, Key)> = list.iter().filter_map(|(filter, client)| {
                        let shared = topic::split_share(filter);
                        let inner = shared.map_or(filter.as_str(), |(_, inner)| inner);
                        let group = if shared.is_some() { filter.clone() } else { String::new() };
                        topic::matches(inner, topic).then_some((group, *client))
                    }).collect();
                    expected.sort();
                    prop_assert_eq!(found(&mut tree, topic), expected);
                }
            }
            for (filter, client) in list {
                tree.remove(&filter, client);
            }
            prop_assert!(tree.is_empty(), "something is left");
        }
    }

    #[test]
    fn the_best_in_turn() {
        let mut slots = Slots::default();
        let mut tree = Tree::default();
        let keys: Vec<Key> = (0..3).map(|_| slots.insert(())).collect();
        for &client in &keys {
            tree.insert("$share/g/t", Subscription { client, options: Options::default(), id: None });
        }
        let group = tree.group("$share/g/t").unwrap();
        let mut pick = |ranks: [Option<u8>; 3]| {
            let rank = |member: &Subscription| ranks[keys.iter().position(|key| *key == member.client).unwrap()];
            group.pick(rank).map(|member| keys.iter().position(|key| *key == member.client).unwrap())
        };
        let all = [Some(0); 3];
        assert_eq!([pick(all), pick(all), pick(all), pick(all)], [Some(0), Some(1), Some(2), Some(0)]);
        assert_eq!(pick([Some(0), Some(1), Some(1)]), Some(0));
        assert_eq!(pick([None, Some(1), Some(1)]), Some(1));
        assert_eq!(pick([None; 3]), None);
    }
}
