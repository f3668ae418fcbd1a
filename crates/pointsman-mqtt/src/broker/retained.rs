//! Messages that are kept for later subscribers, one a topic.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytestring::ByteString;

use super::levels::{Step, levels, step};
use super::message::{expired, size};
use crate::packet::Publish;

/// Number of expired messages that are forgotten with each one that is kept, at most: more than one, so that they become fewer.
const SWEEP: usize = 16;

/// The last message of each topic that was published to be kept. Nothing here takes longer because the table is full.
#[derive(Debug)]
pub(super) struct Retained {
    /// In the order of their levels: a tree that is walked from any place.
    messages: BTreeMap<Arc<str>, Kept>,
    /// When those with an expiry are worth nothing any more.
    expiring: BTreeSet<(Instant, Arc<str>)>,
    /// Counts the messages that were kept.
    serial: u64,
    bytes: usize,
    max_messages: usize,
    max_bytes: usize,
}

#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub(super) publish: Publish,
    /// The client that has published it.
    pub(super) from: ByteString,
    /// Higher than of all that were kept before.
    pub(super) serial: u64,
    since: Instant,
    expires: Option<Instant>,
}

/// There is no room for another message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

/// Where a walk goes on: a bound of the topics that it has not visited, in the order of their levels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place(Bound<Arc<str>>);

/// What a walk has come to.
#[derive(Debug)]
pub(super) enum Found {
    /// The next message.
    Message(Box<Kept>),
    /// As many topics were visited as was allowed.
    Paused,
    /// There is no other message.
    End,
}

impl Place {
    /// Before all topics.
    pub(super) const START: Place = Place(Bound::Unbounded);

    /// Whether a topic lies behind, where the walk has been.
    pub(super) fn has_passed(&self, topic: &str) -> bool {
        match &self.0 {
            Bound::Unbounded => false,
            Bound::Included(next) => *levels(topic) < **next,
            Bound::Excluded(last) => *levels(topic) <= **last,
        }
    }
}

impl Retained {
    pub(super) fn new(max_messages: usize, max_bytes: usize) -> Self {
        Self { messages: BTreeMap::new(), expiring: BTreeSet::new(), serial: 0, bytes: 0, max_messages, max_bytes }
    }

    /// Keeps a message in place of the one that its topic has; one without a payload only removes that.
    /// It has memory of its own.
    pub(super) fn keep(&mut self, publish: Publish, from: &ByteString, now: Instant) -> Result<(), Full> {
        let place = levels(&publish.topic);
        self.remove(&place);
        self.sweep(now);
        if publish.payload.is_empty() {
            return Ok(());
        }
        let bytes = size(&publish);
        if self.messages.len() >= self.max_messages || self.bytes + bytes > self.max_bytes {
            return Err(Full);
        }
        self.bytes += bytes;
        self.serial += 1;
        let place: Arc<str> = place.into();
        let seconds = publish.properties.expiry.map(|seconds| Duration::from_secs(u64::from(seconds)));
        let expires = seconds.and_then(|seconds| now.checked_add(seconds));
        if let Some(expires) = expires {
            self.expiring.insert((expires, Arc::clone(&place)));
        }
        let publish = Publish { retain: true, dup: false, id: 0, ..publish };
        let from = ByteString::from(from.to_string());
        self.messages.insert(place, Kept { publish, from, serial: self.serial, since: now, expires });
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    /// The number of the message that was kept last.
    pub(super) fn serial(&self) -> u64 {
        self.serial
    }

    /// The message of a topic, with the time that is left to it.
    pub(super) fn get(&self, topic: &str, now: Instant) -> Option<Kept> {
        self.messages.get(&*levels(topic))?.at(now)
    }

    /// Goes on with a walk to the next message that matches a filter (without `$share`), with the time that is left to it. Each topic
    /// that is visited is counted in `visited`, up to `most`.
    pub(super) fn next(
        &self,
        filter: &str,
        place: &mut Place,
        now: Instant,
        visited: &mut usize,
        most: usize,
    ) -> Found {
        loop {
            let Some((topic, kept)) = self.messages.range::<str, _>((as_ref(&place.0), Bound::Unbounded)).next() else {
                return Found::End;
            };
            if *visited >= most {
                return Found::Paused;
            }
            *visited += 1;
            match step(filter, topic) {
                Step::End => return Found::End,
                Step::Seek(next) => place.0 = Bound::Included(next.into()),
                Step::Match => {
                    place.0 = Bound::Excluded(Arc::clone(topic));
                    if let Some(kept) = kept.at(now) {
                        return Found::Message(Box::new(kept));
                    }
                }
            }
        }
    }

    /// Forgets some of what has expired.
    fn sweep(&mut self, now: Instant) {
        for _ in 0..SWEEP {
            let Some((_, place)) = self.expiring.first().filter(|(expires, _)| *expires <= now) else { return };
            let place = Arc::clone(place);
            self.remove(&place);
        }
    }

    fn remove(&mut self, place: &str) {
        let Some((place, old)) = self.messages.remove_entry(place) else { return };
        self.bytes -= size(&old.publish);
        if let Some(expires) = old.expires {
            self.expiring.remove(&(expires, place));
        }
    }
}

impl Kept {
    /// As it is now; `None` once its time is over.
    fn at(&self, now: Instant) -> Option<Kept> {
        let mut kept = self.clone();
        if expired(&mut kept.publish, now.saturating_duration_since(self.since)) { None } else { Some(kept) }
    }
}

fn as_ref(bound: &Bound<Arc<str>>) -> Bound<&str> {
    match bound {
        Bound::Unbounded => Bound::Unbounded,
        Bound::Included(place) => Bound::Included(place),
        Bound::Excluded(place) => Bound::Excluded(place),
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::topic;

    fn table(topics: impl IntoIterator<Item = String>) -> Retained {
        let mut retained = Retained::new(100_000, 64 << 20);
        for topic in topics {
            let publish = Publish { topic: topic.into(), payload: "x".into(), ..Publish::default() };
            retained.keep(publish, &ByteString::new(), Instant::now()).unwrap();
        }
        retained
    }

    /// All that a filter matches, in walks of so many visits; and how many visits that took.
    fn walk(retained: &Retained, filter: &str, most: usize) -> (Vec<ByteString>, usize) {
        let (mut place, mut found, mut all) = (Place::START, Vec::new(), 0);
        loop {
            let mut visited = 0;
            let next = retained.next(filter, &mut place, Instant::now(), &mut visited, most);
            assert!(visited <= most);
            all += visited;
            match next {
                Found::Message(kept) => {
                    assert!(place.has_passed(&kept.publish.topic));
                    found.push(kept.publish.topic);
                }
                Found::Paused => {}
                Found::End => return (found, all),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

        /// Beside all of them, tried one by one.
        #[test]
        fn a_filter_finds_what_it_matches(
            topics in vec("[ab/$!]{1,5}", 0..30),
            filter in prop_oneof!["[ab/$!]{1,5}", "([ab$!]?/){0,3}#", "([ab$!]?/){0,2}[+](/[ab]?){0,2}(/[+]){0,2}(/#)?"],
            most in 1..4_usize,
        ) {
            let retained = table(topics.clone());
            let (mut found, _) = walk(&retained, &filter, most);
            let mut expected: Vec<ByteString> =
                topics.into_iter().filter(|topic| topic::matches(&filter, topic)).map(Into::into).collect();
            expected.sort();
            expected.dedup();
            found.sort();
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_filter_visits_what_it_matches() {
        let retained = table((0..100).flat_map(|a| (0..100).map(move |b| format!("{a}/x/{b}/y"))));
        for (filter, matches, most) in [
            ("7/x/8/y", 1, 4),
            ("7/#", 100, 102),
            ("7/x/+/y", 100, 202),
            ("7/x/+/z", 0, 202),
            ("+/x/8/y", 100, 302),
            ("+/zzz", 0, 302),
            ("nothing/#", 0, 1),
            ("#", 10_000, 10_000),
        ] {
            let (found, visited) = walk(&retained, filter, usize::MAX);
            assert_eq!(found.len(), matches, "{filter}");
            assert!(visited <= most, "{filter}: {visited} visits");
        }
    }

    #[test]
    fn a_full_table_lets_go_of_what_has_expired() {
        let now = Instant::now();
        let mut retained = Retained::new(2, 1 << 20);
        let mut keep = |topic: &'static str, expiry, after| {
            let mut publish = Publish { topic: topic.into(), payload: "x".into(), ..Publish::default() };
            publish.properties.expiry = expiry;
            retained.keep(publish, &ByteString::new(), now + Duration::from_secs(after))
        };
        assert_eq!((keep("a", Some(5), 0), keep("b", None, 0)), (Ok(()), Ok(())));
        assert_eq!((keep("c", None, 4), keep("a", Some(5), 4)), (Err(Full), Ok(())));
        assert_eq!((keep("c", None, 8), keep("c", None, 9), keep("d", None, 20)), (Err(Full), Ok(()), Err(Full)));
        assert_eq!((retained.len(), retained.expiring.len()), (2, 0));
    }
}
