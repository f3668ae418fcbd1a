//! Who is to get a message.

use std::sync::Arc;

use super::client::Client;
use super::core::Core;
use super::limits::Limits;
use super::message::{SMALL, size};
use super::route::Source;
use super::slots::{Key, Slots};
use super::tree::Subscription;
use crate::packet::{Publish, Qos};

/// A client that is to get a message, and how.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) client: Key,
    pub(super) local: bool,
    /// At most.
    pub(super) qos: Qos,
    pub(super) retain_as_published: bool,
    /// The identifiers of the subscriptions by which it comes.
    pub(super) ids: Vec<u32>,
    /// The shared subscription by which it comes.
    pub(super) group: Option<Arc<str>>,
}

impl Core {
    /// Finds out who is to get a message: each client once for all its own subscriptions, and once for each group in which it
    /// is its turn.
    pub(super) fn collect(&mut self, source: &Source, publish: &Publish) {
        self.distributed += 1;
        let Self { tree, clients, targets, limits, distributed, .. } = self;
        targets.clear();
        tree.matching(&publish.topic, &mut |leaf| {
            for subscription in leaf.plain() {
                if subscription.options.no_local && source.client == Some(subscription.client) {
                    continue;
                }
                if let Some(client) = clients.get_mut(subscription.client) {
                    add(targets, client, subscription, *distributed);
                }
            }
            for group in leaf.groups() {
                let takes = |member: &Subscription, up| takes(clients, limits, member, up, publish, !source.local);
                if let Some(member) = group.pick(takes) {
                    let local = clients.get(member.client).is_some_and(|client| client.local);
                    targets.push(Target { group: Some(Arc::clone(&group.filter)), ..Target::new(&member, local) });
                }
            }
        });
    }
}

impl Target {
    /// Whether its session will keep the payload of a message of QoS 1 or 2 as it is.
    pub(super) fn keeps(&self, publish: &Publish) -> bool {
        self.qos > Qos::AtMostOnce && (publish.payload.len() > SMALL || self.group.is_some())
    }

    pub(super) fn new(subscription: &Subscription, local: bool) -> Self {
        let Subscription { client, options, id } = *subscription;
        let ids = id.into_iter().collect();
        Self { client, local, qos: options.qos, retain_as_published: options.retain_as_published, ids, group: None }
    }
}

/// Adds a subscription to the targets; a client that is among them already gets no second copy.
fn add(targets: &mut Vec<Target>, client: &mut Client, subscription: &Subscription, message: u64) {
    let Subscription { options, id, .. } = *subscription;
    if client.mark.0 == message
        && let Some(target) = targets.get_mut(client.mark.1)
    {
        target.qos = target.qos.max(options.qos);
        target.retain_as_published |= options.retain_as_published;
        target.ids.extend(id);
        return;
    }
    client.mark = (message, targets.len());
    targets.push(Target::new(subscription, client.local));
}

/// Whether a member of a group can take a message.
pub(super) fn takes(
    clients: &Slots<Client>,
    limits: &Limits,
    member: &Subscription,
    is_up: bool,
    publish: &Publish,
    pressed: bool,
) -> bool {
    let Some(client) = clients.get(member.client) else { return false };
    if publish.qos.min(member.options.qos) == Qos::AtMostOnce {
        return is_up;
    }
    !client.is_full(2 * size(publish), limits, pressed)
}
