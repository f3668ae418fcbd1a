//! What a relay is to do, as a configuration says it, and the check of it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use pointsman_balance::{Algorithm, Candidates};
use pointsman_core::{ServiceId, check_address, check_name};
use regex::{RegexSet, RegexSetBuilder};

use super::prefix;
use crate::packet::LARGEST_PACKET;
use crate::topic;
use crate::url::BrokerUrl;

/// What a relay is to do. The fields are those of the section `[mqtt]` of a configuration file.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Settings {
    /// The broker where senders publish; `None`: the embedded one.
    pub ingress: Option<BrokerUrl>,
    /// The brokers where services subscribe; empty: the ingress broker.
    pub egress: Vec<BrokerUrl>,
    /// How topics name services and instances.
    pub topics: Topics,
    /// The relay's own code; `None`: one that is derived, see [`Settings::code`]. It names the sessions at the brokers, so a relay that is started
    /// again with the same code finds what has waited for it.
    pub code: Option<Arc<str>>,
    /// `host:port` at which senders reach the ingress broker, as the relay registers it; `None`: as the relay reaches it.
    pub advertise: Option<String>,
    /// Relays of one group share the messages of one broker. Default `pointsman`.
    pub group: String,
    /// Whether it subscribes as a member of its group (`$share/…`) at the start; see [`Relay::share`](super::Relay::share). Default: yes.
    pub shared: bool,
    /// The topic filters that are subscribed to on the ingress broker; empty: what the routes can match.
    pub filters: Vec<String>,
    /// Filters of the topics to which answers may go; empty: any that is not reserved, not routed, and no instance's.
    pub response_topics: Vec<String>,
    /// First match wins.
    pub routes: Vec<Route>,
    /// How many messages may be under way: not acknowledged by the service's broker yet, or not answered. Beyond that
    /// none is taken from the ingress broker. Default 10,000.
    pub max_in_flight: usize,
    /// The largest packet that is taken from a broker, in bytes; of a larger message the payload is not read, and it becomes a dead letter
    /// without it. Default 256 MiB.
    pub max_packet: usize,
    /// How long a request may take; then its sender is told so. Default 30 s.
    pub response_timeout: Duration,
    /// How long a message for a master waits for the next one where there was one a moment ago; zero: not at all. Default 1 s.
    pub queue_timeout: Duration,
    /// How long a message waits for an instance that is registered while nobody subscribes under its code, and no other takes it; zero: not at
    /// all. Default 5 s.
    pub away_timeout: Duration,
    /// How long messages under way may take when the relay leaves. Default 10 s.
    pub drain_timeout: Duration,
    /// How long the brokers keep the relay's sessions while it is away. Default 1 h.
    pub session_expiry: Duration,
    /// A folder for what must survive the process: messages of QoS 2, and requests under way. `None`: nothing survives but what the brokers keep.
    pub state: Option<PathBuf>,
}

/// How topics name services and instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Topics {
    /// `TOPIC/CODE` comes in, `CODE/TOPIC` goes out.
    #[default]
    CodeLast,
    /// go-micro-service's: `/VERSION/SENDER/ACTION/ID/CODE/TOPIC/` comes in, `/VERSION/SENDER/ACTION/ID/TOPIC/CODE/` goes out.
    GoEnvelope,
}

/// A rule: which messages go to which service, and how its instance is chosen.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Route {
    /// A regular expression over the topic.
    pub pattern: String,
    /// The service that matching messages are for.
    pub service: Arc<str>,
    /// Name of the registry in which the service is found; `None`: the relay's own. Whoever starts the relay says what the name stands for.
    /// Default: `None`.
    pub registry: Option<Arc<str>>,
    /// How an instance is chosen. Default: round robin.
    pub algorithm: Algorithm,
    /// Which instances may be chosen. Default: the normal ones.
    pub role: RouteRole,
    /// Whether a request that an instance has taken with it into the grave may be sent to another one: only if doing it twice
    /// does no harm. Default: no.
    pub redispatch: bool,
    /// Whether the code at the end of a topic, if it is that of a living instance of the service, chooses that instance.
    /// Default: no.
    pub sticky: bool,
    /// The level of the topic (from 0) that is the key of `ip-hash` where the sender's client id is not known. Default: none, the topic is the key.
    pub key_level: Option<usize>,
    /// How long a request may take, if not as long as the settings say.
    pub response_timeout: Option<Duration>,
}

/// Which instances of a service a route leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum RouteRole {
    /// The normal ones; the master where none of them can serve.
    #[default]
    Normal,
    /// The master.
    Master,
}

/// Something in the settings that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} {reason}")]
pub struct Invalid {
    /// Where, by the names of the configuration file: `route.0.match`, `filters.1`.
    pub key: String,
    /// What is wrong, and what would be right.
    pub reason: String,
}

/// The namespace of derived codes (RFC 9562, section 5.5), made once at random.
const CODES: uuid::Uuid = uuid::uuid!("6f0d3c1e-8a54-4b0e-9c37-2f5d1be4a9d2");
/// Maximum of `queue_timeout` and `away_timeout`: what waits takes the place of what could be delivered.
const LONGEST_QUEUE_TIMEOUT: Duration = Duration::from_secs(3600);
/// Maximum of any other length of time: what is longer is a slip, and would not fit on every clock.
const LONGEST_TIME: Duration = Duration::from_secs(365 * 24 * 3600);
/// Maximum of `max_in_flight`: more than any machine has memory for.
const MOST_IN_FLIGHT: usize = 10_000_000;
/// Maximum of `key_level`: a topic has at most 65,535 bytes.
const MOST_LEVELS: usize = 65_535;
/// The memory that all expressions together may take when compiled.
const PATTERNS_BYTES: usize = 16 << 20;
/// The longest expression.
const PATTERN_BYTES: usize = 64 << 10;

impl Settings {
    /// The defaults, without routes.
    #[must_use]
    pub fn new() -> Self {
        Self {
            ingress: None,
            egress: Vec::new(),
            topics: Topics::default(),
            code: None,
            advertise: None,
            group: "pointsman".to_owned(),
            shared: true,
            filters: Vec::new(),
            response_topics: Vec::new(),
            routes: Vec::new(),
            max_in_flight: 10_000,
            max_packet: 256 << 20,
            response_timeout: Duration::from_secs(30),
            queue_timeout: Duration::from_secs(1),
            away_timeout: Duration::from_secs(5),
            drain_timeout: Duration::from_secs(10),
            session_expiry: Duration::from_secs(3600),
            state: None,
        }
    }

    /// Returns the relay's code: the one that is set, or one that is the same for each start on this host with this group and ingress broker.
    /// Of two relays that would have one code each needs a code that is set.
    #[must_use]
    pub fn code(&self) -> Arc<str> {
        let of_host = || self.derived_code(&format!("host {}", rustix::system::uname().nodename().to_string_lossy()));
        self.code.clone().unwrap_or_else(of_host)
    }

    /// Returns the code of a slot (from 0) of this group at this ingress broker, for relays that agree on who has which.
    #[must_use]
    pub fn code_of_slot(&self, slot: usize) -> Arc<str> {
        self.derived_code(&format!("slot {slot}"))
    }

    /// A UUID, as clients take it for a code.
    fn derived_code(&self, of: &str) -> Arc<str> {
        let ingress = self.ingress.as_ref().map(BrokerUrl::address).unwrap_or_default();
        let name = format!("{}\n{ingress}\n{of}", self.group);
        uuid::Uuid::new_v5(&CODES, name.as_bytes()).to_string().into()
    }

    /// Everything that is wrong with them.
    #[must_use]
    pub fn problems(&self) -> Vec<Invalid> {
        let mut problems = Vec::new();
        let mut wrong = |key: String, reason: String| problems.push(Invalid { key, reason });
        if let Some(Err(error)) = self.code.as_ref().map(|code| check_name("code", code)) {
            wrong("code".to_owned(), error.to_string());
        }
        if let Some(Err(error)) = self.advertise.as_deref().map(check_address) {
            wrong("advertise".to_owned(), error.to_string());
        }
        if let Err(error) = check_name("group", &self.group) {
            wrong("group".to_owned(), error.to_string());
        }
        if self.routes.is_empty() {
            wrong("route".to_owned(), "is missing: without a [[mqtt.route]] there is nothing to do".to_owned());
        }
        for (index, route) in self.routes.iter().enumerate() {
            if let Err(error) = check_name("service", &route.service) {
                wrong(format!("route.{index}.service"), error.to_string());
            }
            if let Err(reason) = check_pattern(&route.pattern) {
                wrong(format!("route.{index}.match"), reason);
            }
        }
        for (index, url) in self.egress.iter().enumerate() {
            if self.egress[..index].iter().any(|other| other.is_same_broker(url)) {
                wrong(format!("egress.{index}"), format!("names the broker {url} a second time"));
            }
        }
        problems.extend(self.limit_problems());
        problems.extend(self.filter_problems());
        if problems.is_empty() {
            problems.extend(compile(&self.routes).err());
        }
        if problems.is_empty() {
            problems.extend(self.loops());
        }
        problems
    }

    /// The numbers and times that are outside their bounds.
    fn limit_problems(&self) -> Vec<Invalid> {
        let mut problems = Vec::new();
        let mut wrong = |key: &str, reason: String| problems.push(Invalid { key: key.to_owned(), reason });
        if !(1..=MOST_IN_FLIGHT).contains(&self.max_in_flight) {
            wrong("max_in_flight", format!("is {}; it can be 1 to {MOST_IN_FLIGHT}", self.max_in_flight));
        }
        if !(1024..=LARGEST_PACKET).contains(&self.max_packet) {
            wrong("max_packet", format!("is {} bytes; it can be 1024 to {LARGEST_PACKET}", self.max_packet));
        }
        for (key, time) in [("queue_timeout", self.queue_timeout), ("away_timeout", self.away_timeout)] {
            if time > LONGEST_QUEUE_TIMEOUT {
                wrong(key, "is longer than an hour".to_owned());
            }
        }
        let of_routes =
            self.routes.iter().enumerate().filter_map(|(index, route)| {
                Some((format!("route.{index}.response_timeout"), route.response_timeout?))
            });
        for (key, time) in std::iter::once(("response_timeout".to_owned(), self.response_timeout)).chain(of_routes) {
            if time.is_zero() {
                wrong(&key, "is 0: no answer is that fast; write for example \"30s\"".to_owned());
            } else if time > LONGEST_TIME {
                wrong(&key, "is longer than 365 days".to_owned());
            }
        }
        for (index, route) in self.routes.iter().enumerate() {
            if route.key_level.is_some_and(|level| level > MOST_LEVELS) {
                wrong(&format!("route.{index}.key_level"), format!("is more than a topic can have, {MOST_LEVELS}"));
            }
        }
        for (key, time) in [("drain_timeout", self.drain_timeout), ("session_expiry", self.session_expiry)] {
            if time > LONGEST_TIME {
                wrong(key, "is longer than 365 days".to_owned());
            }
        }
        problems
    }

    /// The filters given by hand, and whether what the relay sends would come back to it.
    fn filter_problems(&self) -> Vec<Invalid> {
        let mut problems = Vec::new();
        let mut wrong = |key: String, reason: String| problems.push(Invalid { key, reason });
        for (index, filter) in self.filters.iter().enumerate() {
            let key = || format!("filters.{index}");
            if let Err(reason) = topic::check_filter(filter) {
                wrong(key(), format!("{filter:?} {reason}"));
            } else if filter.starts_with('$') {
                wrong(
                    key(),
                    format!(
                        "{filter:?} begins with $: the relay shares it by itself, and system topics are not relayed"
                    ),
                );
            } else if let Some(other) = self.filters[..index].iter().find(|other| topic::intersect(other, filter)) {
                wrong(key(), format!("{filter:?} overlaps with {other:?}: what matches both would be delivered twice"));
            }
        }
        for (index, filter) in self.response_topics.iter().enumerate() {
            let key = || format!("response_topics.{index}");
            if let Err(reason) = topic::check_filter(filter) {
                wrong(key(), format!("{filter:?} {reason}"));
            } else if filter.starts_with('$') {
                wrong(key(), format!("{filter:?} begins with $: no answer goes there"));
            }
        }
        if self.topics == Topics::GoEnvelope && !self.filters.is_empty() {
            wrong(
                "filters".to_owned(),
                "cannot be given with go-envelope, which names the relay in the topic".to_owned(),
            );
        }
        problems
    }

    /// Subscriptions by which the relay would get back what it sends.
    fn loops(&self) -> Vec<Invalid> {
        if self.topics != Topics::CodeLast || !self.shares_a_broker() {
            return Vec::new();
        }
        let catches_all = |filter: &String| filter.starts_with(['+', '#']);
        let why = if self.filters.is_empty() { "the routes can match any topic" } else { "it matches any first level" };
        let problem = |filter: String| Invalid {
            key: "filters".to_owned(),
            reason: format!(
                "{filter:?}: {why}, also what the relay itself sends (CODE/TOPIC) to the same broker, which would come back \
                 to it; let expressions begin with ^ and a literal level, as in ^/login(/|$), or name filters with a \
                 literal first level"
            ),
        };
        self.subscriptions().into_iter().filter(catches_all).map(problem).collect()
    }

    /// Whether what is sent to services goes to the broker it came from.
    fn shares_a_broker(&self) -> bool {
        match &self.ingress {
            None => self.egress.is_empty(),
            Some(ingress) => self.egress.is_empty() || self.egress.iter().any(|egress| egress.is_same_broker(ingress)),
        }
    }

    /// Whether everything happens on one broker.
    pub(crate) fn has_one_broker(&self) -> bool {
        self.egress.len() < 2 && self.shares_a_broker()
    }

    /// The filters that the relay subscribes to on the ingress broker (before sharing): none overlaps with another.
    #[must_use]
    pub fn subscriptions(&self) -> Vec<String> {
        match self.topics {
            Topics::GoEnvelope => vec![format!("/+/+/+/+/{}/#", self.code())],
            Topics::CodeLast if self.filters.is_empty() => {
                prefix::filters(self.routes.iter().map(|route| route.pattern.as_str()))
            }
            Topics::CodeLast => self.filters.clone(),
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self::new()
    }
}

impl Route {
    /// Topics that match go to the normal instances of this service, in turn.
    #[must_use]
    pub fn new(pattern: impl Into<String>, service: impl Into<Arc<str>>) -> Self {
        Self {
            pattern: pattern.into(),
            service: service.into(),
            registry: None,
            algorithm: Algorithm::default(),
            role: RouteRole::default(),
            redispatch: false,
            sticky: false,
            key_level: None,
            response_timeout: None,
        }
    }

    /// The service, and where it is found.
    #[must_use]
    pub fn service_id(&self) -> ServiceId {
        ServiceId::new(self.registry.clone(), self.service.clone())
    }
}

fn check_pattern(pattern: &str) -> Result<(), String> {
    if pattern.len() > PATTERN_BYTES {
        return Err(format!("has {} bytes; an expression may have {PATTERN_BYTES}", pattern.len()));
    }
    let built = regex::RegexBuilder::new(pattern).size_limit(PATTERNS_BYTES).build();
    built.map(drop).map_err(|error| match error {
        regex::Error::CompiledTooBig(limit) => format!("takes more than {limit} bytes when compiled; make it simpler"),
        error => {
            let error = error.to_string();
            let reason = error.lines().last().unwrap_or_default().trim();
            format!("is not a regular expression: {}", reason.strip_prefix("error: ").unwrap_or(reason))
        }
    })
}

/// All expressions in one.
pub(crate) fn compile(routes: &[Route]) -> Result<RegexSet, Invalid> {
    let patterns = routes.iter().map(|route| &route.pattern);
    RegexSetBuilder::new(patterns).size_limit(PATTERNS_BYTES).build().map_err(|_| Invalid {
        key: "route".to_owned(),
        reason: format!("has expressions that together take more than {PATTERNS_BYTES} bytes when compiled"),
    })
}

impl Topics {
    /// The word of configuration files.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Topics::CodeLast => "code-last",
            Topics::GoEnvelope => "go-envelope",
        }
    }
}

impl FromStr for Topics {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "code-last" => Ok(Topics::CodeLast),
            "go-envelope" => Ok(Topics::GoEnvelope),
            _ => Err(format!("{text:?} is not a form of topics; known are code-last and go-envelope")),
        }
    }
}

impl fmt::Display for Topics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl RouteRole {
    /// Among which instances the route chooses.
    pub(crate) const fn candidates(self) -> Candidates {
        match self {
            RouteRole::Normal => Candidates::Normals,
            RouteRole::Master => Candidates::Master,
        }
    }
}

impl FromStr for RouteRole {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "normal" => Ok(RouteRole::Normal),
            "master" => Ok(RouteRole::Master),
            _ => Err(format!("{text:?} is not a role of a route; known are normal and master")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(patterns: &[&str]) -> Settings {
        let routes = patterns.iter().map(|pattern| Route::new(*pattern, "s")).collect();
        Settings { routes, ..Settings::new() }
    }

    fn keys(settings: &Settings) -> Vec<String> {
        settings.problems().into_iter().map(|problem| problem.key).collect()
    }

    #[test]
    fn good_settings_have_no_problems() {
        assert_eq!(settings(&["^/login(/|$)", "^/picture"]).problems(), []);
        let mut two = settings(&["login"]);
        two.ingress = Some("mqtt://127.0.0.1:1".parse().unwrap());
        two.egress = vec!["mqtt://127.0.0.1:2".parse().unwrap()];
        assert_eq!(two.problems(), []);
    }

    #[test]
    fn each_problem_is_named_by_its_key() {
        assert_eq!(keys(&settings(&[])), ["route"]);
        assert_eq!(keys(&settings(&["^/a", "^/("])), ["route.1.match"]);
        assert_eq!(keys(&settings(&[r"^/(\w{1000}){1000}"])), ["route.0.match"]);
        assert_eq!(keys(&settings(&[&"x".repeat(70_000)])), ["route.0.match"]);
        let mut bad = settings(&["^/a"]);
        bad.routes[0].service = "a/b".into();
        bad.code = Some("x+".into());
        bad.max_in_flight = 0;
        bad.queue_timeout = Duration::from_secs(3601);
        assert_eq!(keys(&bad), ["code", "route.0.service", "max_in_flight", "queue_timeout"]);
        let mut bad = settings(&["^/a"]);
        bad.filters = ["a/#", "a#", "a/b", "$SYS/#"].map(str::to_owned).to_vec();
        bad.response_topics = ["reply/#", "a#", "$share/g/a"].map(str::to_owned).to_vec();
        let expected = ["filters.1", "filters.2", "filters.3", "response_topics.1", "response_topics.2"];
        assert_eq!(keys(&bad), expected);
    }

    #[test]
    fn what_would_come_back_is_refused_on_one_broker() {
        let problems = settings(&["login"]).problems();
        assert!(problems[0].reason.contains("would come back"), "{problems:?}");
        let mut by_hand = settings(&["login"]);
        by_hand.filters = vec!["/login/#".to_owned()];
        assert_eq!(by_hand.problems(), []);
        by_hand.filters = vec!["+/login".to_owned()];
        assert_eq!(keys(&by_hand), ["filters"]);
    }
}
