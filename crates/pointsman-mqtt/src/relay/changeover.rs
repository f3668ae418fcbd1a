//! The change from one kind of subscription to the other: alone, or as a member of a group.
//!
//! The new subscription is there before the old one ends, so that nothing is missed, and for a moment each message comes by both. They are
//! told apart by the subscription identifier that only the new one has. Mosquitto sends the plain copy first and then the one for the group;
//! that is passed over. It need not be so for no message to be lost: see [`Changeover::is_second`].

use crate::packet::Publish;

/// The last message of each QoS: a broker keeps the order of each.
#[derive(Debug)]
pub(super) struct Changeover {
    /// The identifier of the new subscription.
    id: u32,
    /// Whether the new subscription is the group's.
    is_to_group: bool,
    last: [Option<Last>; 3],
    has_seen_group: bool,
    has_old_ended: bool,
    has_only_new: bool,
}

#[derive(Debug)]
struct Last {
    publish: Publish,
    is_new: bool,
    /// Whether the message before it was another.
    begins: bool,
}

impl Changeover {
    pub(super) fn new(id: u32, is_to_group: bool) -> Self {
        Self {
            id,
            is_to_group,
            last: [None, None, None],
            has_seen_group: false,
            has_old_ended: false,
            has_only_new: false,
        }
    }

    /// Whether this message is the second copy of the one before it: that has come plainly, this one for the group, they are alike, and the
    /// one before both was another.
    ///
    /// A broker that sends the group's copies first has sent the like of each plain copy directly before it, so that there no message is
    /// passed over, but such as comes again at once. Messages that are alike and follow one another may come twice; so may the first one that
    /// comes for the group, if the plain subscription has ended before: it may have come no other way.
    pub(super) fn is_second(&mut self, publish: &Publish) -> bool {
        let is_new = publish.properties.subscription_ids == [self.id];
        let is_of_group = is_new == self.is_to_group;
        let last = &mut self.last[usize::from(publish.qos.number())];
        let is_alike = last.as_ref().is_some_and(|last| are_alike(&last.publish, publish));
        let follows_one_that_begins = last.as_ref().is_some_and(|last| last.begins && last.is_new != is_new);
        self.has_only_new |= is_new && last.as_ref().is_some_and(|last| last.is_new);
        *last = Some(Last { publish: publish.clone(), is_new, begins: !is_alike });
        let may_be_the_only_one = self.is_to_group && self.has_old_ended && !self.has_seen_group;
        self.has_seen_group |= is_of_group;
        is_alike && follows_one_that_begins && is_of_group && !may_be_the_only_one
    }

    /// The broker has confirmed that the old subscription is gone: what comes by the new one alone has not come yet.
    pub(super) fn old_has_ended(&mut self) {
        self.has_old_ended = true;
    }

    /// Whether two messages in a row have come by the new subscription. Once the old one is known to have ended, that is the end of copies.
    pub(super) fn has_only_new(&self) -> bool {
        self.has_only_new
    }
}

fn are_alike(one: &Publish, other: &Publish) -> bool {
    one.topic == other.topic
        && one.payload == other.payload
        && one.properties.correlation == other.properties.correlation
        && one.properties.response_topic == other.properties.response_topic
        && one.properties.user == other.properties.user
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::{MessageProperties, Qos};

    /// Messages that come by the old subscription, then by both, then by the new one. Returns how often each is passed on.
    /// The broker confirms the end of the old one before the `confirmed`-th of the copies that come by both, at the latest after them.
    fn passed_on(
        messages: &[Vec<u8>; 3],
        is_to_group: bool,
        is_group_first: bool,
        confirmed: usize,
    ) -> Vec<(u8, usize)> {
        let mut changeover = Changeover::new(2, is_to_group);
        let publish = |is_new: bool, payload: u8| Publish {
            qos: Qos::AtLeastOnce,
            payload: vec![payload].into(),
            properties: MessageProperties {
                subscription_ids: if is_new { vec![2] } else { Vec::new() },
                ..MessageProperties::default()
            },
            ..Publish::default()
        };
        let is_new_first = is_to_group == is_group_first;
        let both = |&payload: &u8| [publish(is_new_first, payload), publish(!is_new_first, payload)];
        let [before, during, after] = messages;
        let all = before.iter().map(|&payload| publish(false, payload));
        let all = all.chain(during.iter().flat_map(both)).chain(after.iter().map(|&payload| publish(true, payload)));
        let confirmed = before.len() + confirmed.min(2 * during.len());
        let left = all.enumerate().filter(|(index, publish)| {
            if *index == confirmed {
                changeover.old_has_ended();
            }
            !changeover.is_second(publish)
        });
        let left: Vec<u8> = left.map(|(_, publish)| publish.payload[0]).collect();
        let mut counts: Vec<(u8, usize)> = Vec::new();
        for payload in messages.concat() {
            if counts.iter().all(|(other, _)| *other != payload) {
                counts.push((payload, left.iter().filter(|&&other| other == payload).count()));
            }
        }
        counts
    }

    fn sent(messages: &[Vec<u8>; 3], payload: u8) -> usize {
        messages.iter().flatten().filter(|&&other| other == payload).count()
    }

    #[test]
    fn where_the_plain_copy_comes_first_each_message_is_passed_on_once() {
        let messages = [vec![1, 2, 3], vec![4, 5, 6], vec![7, 8]];
        for is_to_group in [true, false] {
            assert!(passed_on(&messages, is_to_group, false, 6).iter().all(|&(_, count)| count == 1));
        }
    }

    proptest! {
        /// In whatever order the copies come, and also where messages are alike.
        #[test]
        fn none_is_lost(
            before in prop::collection::vec(0..3_u8, 0..5),
            during in prop::collection::vec(0..3_u8, 0..6),
            after in prop::collection::vec(0..3_u8, 0..5),
            is_to_group: bool,
            is_group_first: bool,
            confirmed in 0..12_usize,
        ) {
            let messages = [before, during, after];
            for (payload, count) in passed_on(&messages, is_to_group, is_group_first, confirmed) {
                prop_assert!(count >= sent(&messages, payload), "{payload}: {count}");
            }
        }
    }
}
