//! Who may publish and subscribe what, where there are users.
//!
//! What no rule allows is refused. Some rules go without saying: an instance subscribes to its own code and answers what it is asked,
//! a sender publishes what the relay routes and waits for its own answers.

use super::users::Users;
use crate::relay::Topics;
use crate::relay::address::{ENVELOPE_SENDER, REPLY, RESERVED};
use crate::topic;

/// A rule: what a user may do besides what goes without saying.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AccessRule {
    /// The user; `None`: every one.
    pub user: Option<String>,
    /// Filters of the topics to which the user may publish. `{user}` and `{client_id}` as levels stand for the client's own.
    pub publish: Vec<String>,
    /// Filters to which the user may subscribe, and to whatever they cover.
    pub subscribe: Vec<String>,
}

/// All rules.
#[derive(Debug, Default)]
pub(super) struct Access {
    /// Whether there are users; without them everybody may do everything.
    pub(super) is_on: bool,
    /// `None` where users are known by their certificates alone.
    pub(super) users: Option<Users>,
    pub(super) rules: Vec<AccessRule>,
    pub(super) routed: Routed,
}

/// What a relay takes from senders.
#[derive(Debug, Clone, Default)]
pub(crate) struct Routed {
    pub(crate) topics: Topics,
    /// What it has subscribed to.
    pub(crate) filters: Vec<String>,
}

/// A client of a user.
#[derive(Debug, Clone, Copy)]
pub(super) struct Who<'a> {
    pub(super) user: &'a str,
    pub(super) client_id: &'a str,
}

/// What the client id of an instance begins with, if it does not consist of the code alone.
const SERVICE: &str = "pointsman-service-";
/// Where senders wait for answers, each under its client id.
const INBOX: &str = "pointsman/inbox/";

impl AccessRule {
    /// What is wrong with the rule: the field, and why.
    #[must_use]
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        for (field, filters) in [("publish", &self.publish), ("subscribe", &self.subscribe)] {
            for filter in filters {
                if let Err(reason) = topic::check_filter(filter) {
                    problems.push((field, format!("has {filter:?}, which {reason}")));
                } else if filter.starts_with(topic::SHARE) {
                    problems.push((field, format!("has {filter:?}: name the filter alone, it may be shared then")));
                } else if field == "publish" && (filter.starts_with('$') || filter.starts_with(RESERVED)) {
                    problems.push((field, format!("has {filter:?}: nobody publishes there but the relay")));
                }
            }
        }
        if self.publish.is_empty() && self.subscribe.is_empty() {
            problems.push(("publish", "is missing, and so is subscribe: the rule allows nothing".to_owned()));
        }
        problems
    }
}

impl Access {
    /// Whether it may publish there. `serves`: whether it is subscribed to its own code.
    pub(super) fn may_publish(&self, who: Who<'_>, topic: &str, serves: impl FnOnce() -> bool) -> bool {
        if self.is_answer(topic) {
            // Who does not know the number in it answers nothing.
            return serves();
        }
        if topic.starts_with('$') || topic.starts_with(RESERVED) {
            return false;
        }
        let is_routed = self.routed.filters.iter().any(|filter| topic::matches(filter, topic));
        let is_sender = || match self.routed.topics {
            Topics::CodeLast => true,
            // The answer goes to a topic with the name of the sender.
            Topics::GoEnvelope => topic.split('/').nth(2) == Some(who.user),
        };
        (is_routed && is_sender())
            || self.filters(who, |rule| &rule.publish).any(|filter| topic::matches(&filter, topic))
    }

    /// Whether it may subscribe to that.
    pub(super) fn may_subscribe(&self, who: Who<'_>, filter: &str) -> bool {
        let filter = topic::split_share(filter).map_or(filter, |(_, filter)| filter);
        self.is_own(who, filter)
            || self.is_inbox(who, filter)
            || self.filters(who, |rule| &rule.subscribe).any(|allowed| topic::covers(&allowed, filter))
    }

    /// Whether it is a subscription to what is sent to its own code.
    pub(super) fn is_own(&self, who: Who<'_>, filter: &str) -> bool {
        let filter = topic::split_share(filter).map_or(filter, |(_, filter)| filter);
        let mut codes = self.codes(who);
        match self.routed.topics {
            Topics::CodeLast => codes.any(|code| {
                let own = format!("{code}/#");
                // A name that is the beginning of what is routed is no code.
                topic::covers(&own, filter) && !self.routed.filters.iter().any(|routed| topic::intersect(routed, &own))
            }),
            // `/VERSION/SENDER/ACTION/ID/TOPIC/CODE/`.
            Topics::GoEnvelope => {
                let levels: Vec<&str> = filter.split('/').collect();
                let [first, _, _, _, _, _, .., code, last] = levels[..] else { return false };
                first.is_empty() && last.is_empty() && codes.any(|own| own == code)
            }
        }
    }

    /// The codes that a client may have: its user's name, and what its client id says, unless that is another user's name.
    fn codes<'a>(&self, Who { user, client_id }: Who<'a>) -> impl Iterator<Item = &'a str> {
        let code = client_id.strip_prefix(SERVICE).unwrap_or(client_id);
        let is_others = code != user && self.users.as_ref().is_some_and(|users| users.contains(code));
        let is_code = |code: &&str| is_level(code) && *code != RESERVED.trim_end_matches('/') && !code.starts_with('$');
        [Some(user), Some(code).filter(|_| !is_others)].into_iter().flatten().filter(is_code)
    }

    /// Whether answers to this client, and to no other, come there.
    fn is_inbox(&self, who: Who<'_>, filter: &str) -> bool {
        match self.routed.topics {
            Topics::CodeLast => {
                is_level(who.client_id) && topic::covers(&format!("{INBOX}{}/#", who.client_id), filter)
            }
            // `/VERSION/SENDER/ACTION/ID`.
            Topics::GoEnvelope => {
                let levels: Vec<&str> = filter.split('/').collect();
                matches!(levels[..], ["", _, name, _, id] if name == who.user && is_level(name) && id != "#")
            }
        }
    }

    /// Whether relays await answers of instances there.
    fn is_answer(&self, topic: &str) -> bool {
        let prefix = match self.routed.topics {
            Topics::CodeLast => REPLY,
            Topics::GoEnvelope => ENVELOPE_SENDER,
        };
        topic.strip_prefix(prefix).is_some_and(|rest| rest.split('/').count() == 2)
    }

    /// The filters of the rules for a client.
    fn filters<'a>(
        &'a self,
        who: Who<'a>,
        of: impl Fn(&'a AccessRule) -> &'a Vec<String> + 'a,
    ) -> impl Iterator<Item = String> + 'a {
        let rules = self.rules.iter().filter(move |rule| rule.user.as_deref().is_none_or(|user| user == who.user));
        rules.flat_map(of).filter_map(move |filter| filled(filter, who))
    }
}

/// A filter with the client's own names; `None` where one of them cannot stand there.
fn filled(filter: &str, who: Who<'_>) -> Option<String> {
    let level = |level| match level {
        "{user}" => Some(who.user).filter(|name| is_level(name)),
        "{client_id}" => Some(who.client_id).filter(|name| is_level(name)),
        level => Some(level),
    };
    let levels: Option<Vec<&str>> = filter.split('/').map(level).collect();
    levels.map(|levels| levels.join("/"))
}

/// Whether a name can be one level of a topic.
fn is_level(name: &str) -> bool {
    !name.is_empty() && !name.contains(['/', '+', '#', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(topics: Topics, filters: &[&str], rules: Vec<AccessRule>) -> Access {
        let filters = filters.iter().map(|&filter| filter.to_owned()).collect();
        Access {
            is_on: true,
            users: Some(Users::default().with("svc-b", "x")),
            rules,
            routed: Routed { topics, filters },
        }
    }

    const BULB: Who<'static> = Who { user: "bulb", client_id: "pointsman-client-x-1" };
    const SERVICE_A: Who<'static> = Who { user: "cfgs", client_id: "pointsman-service-svc-a" };

    #[test]
    fn what_goes_without_saying() {
        let access = access(Topics::CodeLast, &["/login/#", "m/#"], Vec::new());
        for (who, topic, serves) in
            [(BULB, "/login/user/relay", false), (BULB, "m/x", false), (SERVICE_A, "pointsman/reply/relay/1-2", true)]
        {
            assert!(access.may_publish(who, topic, || serves), "{topic}");
        }
        for topic in [
            "svc-a/cmd/off",
            "bulb/x",
            "pointsman/reply/relay/1-2",
            "pointsman/inbox/pointsman-client-x-1",
            "pointsman/dead-letter/x",
            "$SYS/x",
            "/other",
        ] {
            assert!(!access.may_publish(BULB, topic, || false), "{topic}");
        }
        assert!(!access.may_publish(SERVICE_A, "pointsman/reply/relay/1/2", || true));
        for (who, filter) in [
            (BULB, "pointsman/inbox/pointsman-client-x-1"),
            (BULB, "bulb/#"),
            (SERVICE_A, "svc-a/login/#"),
            (SERVICE_A, "$share/g/svc-a/#"),
        ] {
            assert!(access.may_subscribe(who, filter), "{filter}");
        }
        for filter in [
            "#",
            "+/#",
            "/login/#",
            "svc-a/#",
            "$share/g/svc-a/#",
            "$share/g/#",
            "$SYS/#",
            "pointsman/#",
            "pointsman/inbox/+",
            "pointsman/inbox/other",
            "pointsman/reply/#",
        ] {
            assert!(!access.may_subscribe(BULB, filter), "{filter}");
        }
        // Names that are somebody else's, or no codes.
        for client_id in ["svc-b", "pointsman-service-svc-b", "m", "pointsman", "$SYS", "+", "a/b", ""] {
            let who = Who { client_id, ..BULB };
            let code = client_id.trim_start_matches("pointsman-service-");
            assert!(!access.may_subscribe(who, &format!("{code}/#")), "{client_id}");
        }
    }

    #[test]
    fn what_goes_without_saying_in_envelopes() {
        let access = access(Topics::GoEnvelope, &["/+/+/+/+/relay/#"], Vec::new());
        let cgws = Who { user: "cgws", client_id: "anything" };
        assert!(access.may_publish(cgws, "/1.0/cgws/POST/id/relay/configs/", || false));
        assert!(!access.may_publish(BULB, "/1.0/cgws/POST/id/relay/configs/", || false));
        assert!(access.may_subscribe(cgws, "/1.0/cgws/+/+") && !access.may_subscribe(BULB, "/1.0/cgws/+/+"));
        assert!(!access.may_subscribe(cgws, "/+/+/+/+") && !access.may_subscribe(cgws, "/1.0/cgws/+/#"));
        assert!(access.may_subscribe(SERVICE_A, "/+/+/POST/+/configs/serverinfo/svc-a/"));
        for filter in ["/+/+/POST/+/configs/serverinfo/svc-c/", "/+/+/POST/+/configs/#", "/+/+/+/+/+/+/"] {
            assert!(!access.may_subscribe(SERVICE_A, filter), "{filter}");
        }
        let answer = "/1.0/zk-mqtt-loadblance/POST/1_2_3";
        assert!(access.may_publish(SERVICE_A, answer, || true) && !access.may_publish(BULB, answer, || false));
    }

    #[test]
    fn rules_allow_more() {
        let rule = |user: Option<&str>, publish: &[&str], subscribe: &[&str]| AccessRule {
            user: user.map(str::to_owned),
            publish: publish.iter().map(|&filter| filter.to_owned()).collect(),
            subscribe: subscribe.iter().map(|&filter| filter.to_owned()).collect(),
        };
        let rules = vec![
            rule(Some("bulb"), &["lamp/{user}/+", "#"], &["reply/{client_id}/#"]),
            rule(Some("admin"), &[], &["pointsman/dead-letter/#", "$SYS/#"]),
            rule(None, &["public/#"], &[]),
        ];
        let access = access(Topics::CodeLast, &["/login/#"], rules);
        assert!(
            access.may_publish(BULB, "lamp/bulb/on", || false) && access.may_publish(SERVICE_A, "public/x", || false)
        );
        assert!(!access.may_publish(SERVICE_A, "lamp/bulb/on", || false));
        assert!(!access.may_publish(BULB, "pointsman/x", || false) && !access.may_publish(BULB, "$SYS/x", || false));
        assert!(access.may_subscribe(BULB, "reply/pointsman-client-x-1/+"));
        let admin = Who { user: "admin", client_id: "a" };
        assert!(access.may_subscribe(admin, "pointsman/dead-letter/#") && access.may_subscribe(admin, "$SYS/broker"));
        assert!(!access.may_subscribe(admin, "pointsman/#"));
        // A name with wildcards in it does not widen a rule.
        for client_id in ["#", "+", "x/#", ""] {
            assert!(!access.may_subscribe(Who { client_id, ..BULB }, &format!("reply/{client_id}/#")), "{client_id}");
        }
    }
}
