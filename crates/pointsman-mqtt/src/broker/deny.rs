//! What clients are refused, by the rules of `access.rs`.

use std::time::Instant;

use super::Options;
use super::access::Who;
use super::client::Client;
use super::core::Core;
use super::greet::Refused;
use super::slots::Key;
use crate::packet::{Connect, Publish, Qos};
use crate::reason::Reason;

impl Core {
    /// Goes on with other users and rules. Whoever could not connect as it did, or not subscribe as it has, is disconnected.
    pub(super) fn set_access(&mut self, options: &Options, now: Instant) {
        let before = self.access.users.take();
        self.access.users.clone_from(&options.users);
        self.access.rules.clone_from(&options.rules);
        self.access.is_on = options.has_users();
        if !self.access.is_on {
            return;
        }
        for key in self.clients.keys() {
            let Some(client) = self.clients.get(key).filter(|client| !client.local) else { continue };
            let connection = client.connection;
            let is_known = client.user.as_ref().is_some_and(|user| match (&before, &self.access.users) {
                (Some(before), Some(users)) if before.contains(user) => before.agree(users, user),
                // One that a certificate names.
                _ => true,
            });
            let is_allowed = self.has_allowed_subscriptions(client);
            if is_known && is_allowed {
                continue;
            }
            let is_gone = client
                .user
                .as_ref()
                .is_none_or(|user| !self.access.users.as_ref().is_some_and(|users| users.contains(user)));
            tracing::info!(client = %client.id, "MQTT client is not allowed any more what it was");
            if let Some(connection) = connection {
                self.close(connection, Some(Reason::NOT_AUTHORIZED));
                self.detach(key, true, now);
            }
            if !is_allowed || is_gone {
                self.end(key);
            }
        }
        self.work(now);
    }

    fn has_allowed_subscriptions(&self, client: &Client) -> bool {
        let allowed = |who| client.subscriptions.keys().all(|filter| self.access.may_subscribe(who, filter));
        who(client).is_some_and(allowed)
    }

    /// Refuses a will that the client may not publish.
    pub(super) fn check_will(&self, connect: &Connect, user: &str) -> Result<(), Refused> {
        let who = Who { user, client_id: &connect.client_id };
        match &connect.will {
            Some(will) if self.access.is_on && !self.access.may_publish(who, &will.topic, || false) => {
                Err(Refused { reason: Reason::NOT_AUTHORIZED, why: "the user may not publish the will" })
            }
            _ => Ok(()),
        }
    }

    /// A client id belongs to the user that has it, as long as its session lasts.
    pub(super) fn check_owner(&self, connection: Key, client_id: &str) -> Result<(), Refused> {
        let Some(state) = self.connections.get(connection).filter(|state| !state.local) else { return Ok(()) };
        let known = self.by_id.get(client_id).and_then(|&client| self.clients.get(client));
        match known {
            Some(client) if self.access.is_on && client.user.as_ref() != state.login.user() => {
                Err(Refused { reason: Reason::NOT_AUTHORIZED, why: "this client id belongs to another user" })
            }
            _ => Ok(()),
        }
    }

    /// Whether a client may not publish a message. A response topic has to be one on which it may wait for answers itself: whoever
    /// answers may have more rights.
    pub(super) fn denies_publish(&mut self, key: Key, publish: &Publish) -> bool {
        let Some(client) = self.clients.get(key).filter(|client| !client.local) else { return false };
        if !self.access.is_on {
            return false;
        }
        let is_allowed = |who| {
            let serves = || client.subscriptions.keys().any(|filter| self.access.is_own(who, filter));
            let response_topic = publish.properties.response_topic.as_ref();
            self.access.may_publish(who, &publish.topic, serves)
                && response_topic.is_none_or(|topic| self.access.may_subscribe(who, topic))
        };
        if who(client).is_some_and(is_allowed) {
            return false;
        }
        self.figures.denied_publishes += 1;
        self.tell_denied(key, "publish", &publish.topic);
        true
    }

    /// Whether a client may not subscribe to a filter.
    pub(super) fn denies_subscription(&mut self, key: Key, filter: &str) -> bool {
        let Some(client) = self.clients.get(key).filter(|client| !client.local) else { return false };
        if !self.access.is_on || who(client).is_some_and(|who| self.access.may_subscribe(who, filter)) {
            return false;
        }
        self.figures.denied_subscriptions += 1;
        self.tell_denied(key, "subscribe", filter);
        true
    }

    /// Says what a client was refused: loudly once in a session, so that none fills the log.
    fn tell_denied(&mut self, key: Key, what: &str, topic: &str) {
        let Some(client) = self.clients.get_mut(key) else { return };
        let (id, user) = (&client.id, client.user.as_deref().unwrap_or_default());
        if std::mem::replace(&mut client.is_denied, true) {
            tracing::debug!(client = %id, user, topic, "MQTT client may not {what}");
        } else {
            tracing::warn!(client = %id, user, topic, "MQTT client may not {what}; more of this client is logged as debug");
        }
    }

    /// Answers a message that goes nowhere. In MQTT 3.1.1 it can only be said that it has come.
    pub(super) fn acknowledge_to(&mut self, key: Key, publish: &Publish, reason: Reason) {
        if let Some(client) = self.clients.get_mut(key).filter(|_| publish.qos > Qos::AtMostOnce) {
            client.session.acknowledge(publish.id, reason);
            self.touch(key);
        }
    }
}

fn who(client: &Client) -> Option<Who<'_>> {
    Some(Who { user: client.user.as_deref()?, client_id: &client.id })
}
