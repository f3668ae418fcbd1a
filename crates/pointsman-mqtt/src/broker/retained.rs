//! Messages that are kept for later subscribers, one a topic.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Instant;

use bytestring::ByteString;

use super::message::{detached, expired, size};
use crate::packet::Publish;
use crate::topic;

/// The last message of each topic that was published to be kept.
#[derive(Debug)]
pub(super) struct Retained {
    /// In the order of their topics: what a filter can match lies together, behind the levels before its first wildcard.
    messages: BTreeMap<ByteString, Kept>,
    bytes: usize,
    max_messages: usize,
    max_bytes: usize,
}

#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub(super) publish: Publish,
    /// The client that has published it.
    pub(super) from: ByteString,
    since: Instant,
}

/// There is no room for another message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

impl Retained {
    pub(super) fn new(max_messages: usize, max_bytes: usize) -> Self {
        Self { messages: BTreeMap::new(), bytes: 0, max_messages, max_bytes }
    }

    /// Keeps a message in place of the one that its topic has; one without a payload only removes that.
    pub(super) fn keep(&mut self, publish: &Publish, from: &ByteString, now: Instant) -> Result<(), Full> {
        if let Some(old) = self.messages.remove(&publish.topic) {
            self.bytes -= size(&old.publish);
        }
        if publish.payload.is_empty() {
            return Ok(());
        }
        let bytes = size(publish);
        if self.messages.len() >= self.max_messages || self.bytes + bytes > self.max_bytes {
            self.sweep(now);
        }
        if self.messages.len() >= self.max_messages || self.bytes + bytes > self.max_bytes {
            return Err(Full);
        }
        self.bytes += bytes;
        let publish = Publish { retain: true, dup: false, id: 0, ..detached(publish) };
        let from = ByteString::from(from.to_string());
        self.messages.insert(publish.topic.clone(), Kept { publish, from, since: now });
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    /// What matches a filter (without `$share`), with the time that is left to each.
    pub(super) fn matching(&self, filter: &str, now: Instant) -> Vec<Kept> {
        let wild = filter.find(['+', '#']);
        let prefix = match wild {
            // `a/#` matches `a` too.
            Some(place) => filter[..place].trim_end_matches('/'),
            None => filter,
        };
        let range = self.messages.range::<str, _>((Bound::Included(prefix), Bound::Unbounded));
        let near = range.take_while(|(topic, _)| topic.starts_with(prefix) && (wild.is_some() || ***topic == *filter));
        near.filter(|(topic, _)| topic::matches(filter, topic)).filter_map(|(_, kept)| kept.at(now)).collect()
    }

    /// Forgets what has expired.
    fn sweep(&mut self, now: Instant) {
        let bytes = &mut self.bytes;
        self.messages.retain(|_, kept| {
            let alive = kept.at(now).is_some();
            if !alive {
                *bytes -= size(&kept.publish);
            }
            alive
        });
    }
}

impl Kept {
    /// As it is now; `None` once its time is over.
    fn at(&self, now: Instant) -> Option<Kept> {
        let mut kept = self.clone();
        if expired(&mut kept.publish, now.saturating_duration_since(self.since)) { None } else { Some(kept) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Beside all of them, tried one by one.
        #[test]
        fn a_filter_finds_what_it_matches(
            topics in vec("[ab/$]{1,4}", 0..20),
            filter in prop_oneof!["[ab/$]{1,4}", "([ab$]?/){0,3}#", "([ab$]?/){0,2}[+](/[ab]?){0,2}"],
        ) {
            let now = Instant::now();
            let mut retained = Retained::new(100, 1 << 20);
            for topic in &topics {
                let publish = Publish { topic: topic.clone().into(), payload: "x".into(), ..Publish::default() };
                retained.keep(&publish, &ByteString::new(), now).unwrap();
            }
            let found: Vec<_> = retained.matching(&filter, now).into_iter().map(|kept| kept.publish.topic).collect();
            let mut expected: Vec<ByteString> =
                topics.into_iter().filter(|topic| topic::matches(&filter, topic)).map(Into::into).collect();
            expected.sort();
            expected.dedup();
            prop_assert_eq!(found, expected);
        }
    }
}
