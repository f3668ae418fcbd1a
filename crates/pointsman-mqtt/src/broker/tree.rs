//! Who has subscribed to what: a tree of the levels of the filters.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::str::Split;
use std::sync::Arc;

use super::slots::Key;
use crate::packet::Options;
use crate::topic;

/// The most levels that a filter may have: the tree is walked by recursion.
pub(super) const MAX_LEVELS: usize = 256;
/// Maximum number of members of a group that are asked whether they take a message, of those that are connected and of those that are
/// away: where that many in a row have no room, it is not looked for any further.
const ASKED: usize = 64;

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
    /// Those that are connected, and those that are away: whoever is connected has messages first.
    up: Members,
    away: Members,
}

/// Members of a group that have their turn one after the other.
#[derive(Debug, Default)]
struct Members {
    all: BTreeMap<Key, Subscription>,
    /// Whose turn was last.
    last: Option<Key>,
}

/// The subscriptions to one filter. However many there are, one more or less takes no longer.
#[derive(Debug, Default)]
pub(super) struct Leaf {
    plain: BTreeMap<Key, Subscription>,
    groups: BTreeMap<Arc<str>, Group>,
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
            self.root.leaf(filter).plain.insert(subscription.client, subscription);
            return;
        };
        let groups = &mut self.root.leaf(inner).groups;
        if let Some(group) = groups.get_mut(filter) {
            return group.insert(subscription);
        }
        let filter: Arc<str> = filter.into();
        let mut group = Group { filter: Arc::clone(&filter), up: Members::default(), away: Members::default() };
        group.insert(subscription);
        groups.insert(filter, group);
    }

    pub(super) fn remove(&mut self, filter: &str, client: Key) {
        let shared = topic::split_share(filter);
        let inner = shared.map_or(filter, |(_, inner)| inner);
        self.root.prune(inner.split('/'), &mut |leaf| {
            if shared.is_none() {
                leaf.plain.remove(&client);
            } else if let Some(group) = leaf.groups.get_mut(filter) {
                group.up.all.remove(&client);
                group.away.all.remove(&client);
                if group.up.all.is_empty() && group.away.all.is_empty() {
                    leaf.groups.remove(filter);
                }
            }
        });
    }

    /// A client that has subscribed is connected again, or away.
    pub(super) fn set_up(&mut self, filter: &str, client: Key, is_up: bool) {
        if let Some(group) = self.group(filter) {
            let (from, to) = if is_up { (&mut group.away, &mut group.up) } else { (&mut group.up, &mut group.away) };
            to.all.extend(from.all.remove_entry(&client));
        }
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
        self.root.find(inner)?.groups.get_mut(filter)
    }
}

impl Group {
    /// Only whoever is connected can subscribe.
    fn insert(&mut self, subscription: Subscription) {
        self.up.all.insert(subscription.client, subscription);
    }

    /// The next member in turn that can take a message. `takes` is told whether the member is connected.
    pub(super) fn pick(&mut self, mut takes: impl FnMut(&Subscription, bool) -> bool) -> Option<Subscription> {
        let up = self.up.pick(|member| takes(member, true));
        up.or_else(|| self.away.pick(|member| takes(member, false)))
    }
}

impl Members {
    fn pick(&mut self, mut takes: impl FnMut(&Subscription) -> bool) -> Option<Subscription> {
        let last = self.last.map_or(Bound::Unbounded, Bound::Excluded);
        let behind = self.all.range((last, Bound::Unbounded));
        let before = self.last.into_iter().flat_map(|last| self.all.range(..=last));
        let asked = behind.chain(before).take(ASKED);
        for (&client, member) in asked {
            self.last = Some(client);
            if takes(member) {
                return Some(*member);
            }
        }
        None
    }
}

impl Leaf {
    pub(super) fn plain(&self) -> impl Iterator<Item = &Subscription> {
        self.plain.values()
    }

    pub(super) fn groups(&mut self) -> impl Iterator<Item = &mut Group> {
        self.groups.values_mut()
    }

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
            found.extend(leaf.plain().map(|subscription| (String::new(), subscription.client)));
            for group in leaf.groups() {
                found.extend(group.up.all.keys().map(|client| (group.filter.to_string(), *client)));
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
        let mut pick = |takes: [bool; 3]| {
            let takes = |member: &Subscription, _| takes[keys.iter().position(|key| *key == member.client).unwrap()];
            let picked = tree.group("$share/g/t").unwrap().pick(takes);
            picked.map(|member| keys.iter().position(|key| *key == member.client).unwrap())
        };
        let all = [true; 3];
        assert_eq!([pick(all), pick(all), pick(all), pick(all)], [Some(0), Some(1), Some(2), Some(0)]);
        assert_eq!(pick([true, false, false]), Some(0));
        assert_eq!(pick([false, true, true]), Some(1));
        assert_eq!(pick([false; 3]), None);
        // Those who are away come last.
        tree.set_up("$share/g/t", keys[1], false);
        let mut pick = |takes: [bool; 3]| {
            let takes = |member: &Subscription, _| takes[keys.iter().position(|key| *key == member.client).unwrap()];
            let picked = tree.group("$share/g/t").unwrap().pick(takes);
            picked.map(|member| keys.iter().position(|key| *key == member.client).unwrap())
        };
        assert_eq!([pick(all), pick(all), pick(all)], [Some(2), Some(0), Some(2)]);
        assert_eq!(pick([false, true, false]), Some(1));
    }

    /// However many members there are that take nothing.
    #[test]
    fn a_bounded_number_is_asked() {
        let (mut slots, mut tree) = (Slots::default(), Tree::default());
        for number in 0..10_000 {
            let client = slots.insert(());
            tree.insert("$share/g/t", Subscription { client, options: Options::default(), id: None });
            if number % 2 == 0 {
                tree.set_up("$share/g/t", client, false);
            }
        }
        let mut asked = 0;
        let picked = tree.group("$share/g/t").unwrap().pick(|_, _| {
            asked += 1;
            false
        });
        assert_eq!((picked, asked), (None, 2 * ASKED));
    }
}
