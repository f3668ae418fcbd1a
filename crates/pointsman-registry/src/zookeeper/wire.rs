//! The JSON in a node: go-micro-service's, to which Pointsman adds one field that the Go side ignores.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pointsman_core::{Instance, MAX_WEIGHT, Term, check_address, check_name};
use serde::{Deserialize, Serialize};

/// The most that a node may take: somewhat more than [a registration](crate::registration::MAX_BYTES), as it says more. ZooKeeper itself cuts the
/// connection at 1 MiB (`jute.maxbuffer`); what comes near that makes every reader of the service slow, so the limit is drawn much earlier.
pub(super) const MAX_BYTES: usize = 128 * 1024;

/// Field for field and in the order in which go-micro-service writes them. User name and password are always empty here:
/// every node can be read by everybody.
#[derive(Serialize, Deserialize)]
struct Node<'a> {
    #[serde(borrow, default)]
    serverip: Cow<'a, str>,
    #[serde(default)]
    serverport: i64,
    #[serde(skip_deserializing)]
    username: &'static str,
    #[serde(skip_deserializing)]
    userpwd: &'static str,
    #[serde(borrow, default)]
    serveruniquecode: Cow<'a, str>,
    #[serde(default = "one")]
    weight: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pointsman: Option<Extension>,
}

fn one() -> i64 {
    1
}

/// What Pointsman adds.
#[derive(Serialize, Deserialize, Default)]
struct Extension {
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    tags: BTreeMap<String, String>,
    /// How long the node can outlive its process: who finds the own code taken waits for that long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    session_timeout_ms: Option<u64>,
    /// Who has registered it, where that is said: the same may register it again by another session, and so replace it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    holder: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    registration: Option<String>,
    /// Of a master that has taken its place over from the same holder: the term of that mastership, which goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    term: Option<u64>,
}

/// Who has registered, and by which of its registrations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Holder {
    pub(super) name: Arc<str>,
    /// One holder may register the same instance by two sessions, or twice by one: this tells which node is whose.
    registration: String,
}

impl Holder {
    /// A new registration of a holder.
    pub(super) fn new(name: Arc<str>) -> Self {
        Self { name, registration: format!("{:016x}", fastrand::u64(..)) }
    }
}

/// What a node says.
#[derive(Debug)]
pub(super) struct Parsed {
    pub(super) instance: Instance,
    /// What had to be changed to make sense of it.
    pub(super) clamped: Option<String>,
    pub(super) session_timeout: Option<Duration>,
    pub(super) holder: Option<Holder>,
    /// The term that a master has taken over with its place.
    inherited: Option<Term>,
}

impl Parsed {
    /// The term that a master has taken over with its place. `own` is the one that its node's creation would have begun: a term rises, so
    /// whoever claims a later one has made it up.
    pub(super) fn inherited(&self, own: Term) -> Option<Term> {
        self.inherited.filter(|term| *term < own)
    }

    /// The term of a master whose node's creation would have begun the term `own`.
    pub(super) fn term(&self, own: Term) -> Term {
        self.inherited(own).unwrap_or(own)
    }
}

/// Writes what a node is to say.
#[cfg(test)]
pub(super) fn encode(instance: &Instance, session_timeout: Duration, holder: Option<&Holder>) -> Vec<u8> {
    encode_inherited(instance, session_timeout, holder, None)
}

/// Writes what the node of a master is to say that has taken its place, and with it the term, over from the same holder.
pub(super) fn encode_inherited(
    instance: &Instance,
    session_timeout: Duration,
    holder: Option<&Holder>,
    inherited: Option<Term>,
) -> Vec<u8> {
    let (host, port) = instance.address.as_deref().and_then(|address| address.rsplit_once(':')).unwrap_or(("", "0"));
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let node = Node {
        serverip: host.into(),
        serverport: port.parse().unwrap_or(0),
        username: "",
        userpwd: "",
        serveruniquecode: (&*instance.code).into(),
        weight: instance.weight.into(),
        pointsman: Some(Extension {
            tags: instance.tags.clone(),
            session_timeout_ms: u64::try_from(session_timeout.as_millis()).ok(),
            holder: holder.map(|holder| holder.name.clone()),
            registration: holder.map(|holder| holder.registration.clone()),
            term: inherited.map(|term| term.0),
        }),
    };
    // Strings and numbers under string keys: there is nothing in it that JSON cannot say.
    serde_json::to_vec(&node).unwrap_or_default()
}

/// Reads what a node says.
///
/// `Err` is the reason for which it is not an instance.
pub(super) fn decode(service: &Arc<str>, data: &[u8]) -> Result<Parsed, String> {
    if data.len() > MAX_BYTES {
        return Err(format!("{} bytes are too much for an instance, the limit is {MAX_BYTES}", data.len()));
    }
    if data.is_empty() {
        return Err("is empty".to_owned());
    }
    if !data.trim_ascii_start().starts_with(b"{") {
        // Serde would read an array, too, as the fields in their order.
        return Err("is not an instance's json: not an object".to_owned());
    }
    let node: Node<'_> = serde_json::from_slice(data).map_err(|error| format!("is not an instance's json: {error}"))?;
    let address = address(&node.serverip, node.serverport)?;
    let code: Arc<str> = match (&*node.serveruniquecode, &address) {
        // go-micro-service does not ask services with an address for a code: then the address tells them apart.
        ("", Some(address)) => address.clone(),
        ("", None) => return Err("has neither code nor address".to_owned()),
        (code, _) => code.into(),
    };
    check_name("code", &code).map_err(|error| error.to_string())?;
    let weight = u32::try_from(node.weight.clamp(0, MAX_WEIGHT.into())).unwrap_or(MAX_WEIGHT);
    let clamped = (i64::from(weight) != node.weight).then(|| format!("weight {} was taken as {weight}", node.weight));
    let extension = node.pointsman.unwrap_or_default();
    let mut instance = Instance::with_code(service.clone(), code).weight(weight);
    instance.address = address;
    instance.tags = extension.tags;
    let session_timeout = extension.session_timeout_ms.map(Duration::from_millis);
    let registration = extension.registration.unwrap_or_default();
    let holder = extension.holder.map(|name| Holder { name, registration });
    let inherited = extension.term.map(Term);
    Ok(Parsed { instance, clamped, session_timeout, holder, inherited })
}

fn address(host: &str, port: i64) -> Result<Option<Arc<str>>, String> {
    if host.is_empty() && port == 0 {
        return Ok(None);
    }
    let address = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    check_address(&address).map_err(|error| error.to_string())?;
    Ok(Some(address.into()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FOREIGN: &str = r#"{"serverip":"127.0.0.1","serverport":50001,"username":"","userpwd":"","serveruniquecode":"code-a","weight":1}"#;

    fn decoded(text: &str) -> Result<Parsed, String> {
        decode(&"s".into(), text.as_bytes())
    }

    #[test]
    fn what_go_writes_is_read() {
        let parsed = decoded(FOREIGN).unwrap();
        assert_eq!(FOREIGN.len(), 109);
        assert_eq!(parsed.instance.address.as_deref(), Some("127.0.0.1:50001"));
        assert_eq!((&*parsed.instance.code, parsed.instance.weight), ("code-a", 1));
        assert!(parsed.clamped.is_none() && parsed.session_timeout.is_none());
    }

    #[test]
    fn the_largest_registration_fits_into_a_node() {
        let mut instance = Instance::new("s").code("\"".repeat(pointsman_core::MAX_NAME_BYTES)).address("h:1");
        let tag = crate::registration::MAX_BYTES - 2 * instance.code.len() - 64;
        instance = instance.tag("x", "y".repeat(tag));
        crate::registration::registrable(&instance).unwrap();
        let holder = Holder::new("\"".repeat(128).into());
        let node = encode_inherited(&instance, Duration::MAX, Some(&holder), Some(Term(u64::MAX)));
        decode(&"s".into(), &node).unwrap();
        assert!(node.len() > crate::registration::MAX_BYTES, "it is tested at the edge: {}", node.len());
    }

    #[test]
    fn what_go_reads_is_written_in_its_order_and_without_secrets() {
        let instance = Instance::new("s").address("127.0.0.1:50001").code("code-a");
        let text = String::from_utf8(encode(&instance, Duration::from_secs(10), None)).unwrap();
        assert!(text.starts_with(FOREIGN.trim_end_matches('}')), "{text}");
    }

    #[test]
    fn nodes_without_a_code_go_by_their_address() {
        let parsed = decoded(r#"{"serverip":"h","serverport":1}"#).unwrap();
        assert_eq!((&*parsed.instance.code, parsed.instance.weight), ("h:1", 1));
    }

    #[test]
    fn odd_values_are_clamped_or_skipped_with_a_reason() {
        for (weight, taken) in [("-3", 0), ("99999999999", MAX_WEIGHT)] {
            let parsed = decoded(&FOREIGN.replace("\"weight\":1", &format!("\"weight\":{weight}"))).unwrap();
            assert_eq!(parsed.instance.weight, taken);
            assert!(parsed.clamped.unwrap().contains(weight));
        }
        for (node, word) in [
            (FOREIGN.replace("50001", "70000"), "65535"),
            (FOREIGN.replace("50001", "-1"), "65535"),
            (FOREIGN.replace("code-a", "a/b"), "'/'"),
            (FOREIGN.replace("code-a", ".."), "relative"),
            (FOREIGN.replace("127.0.0.1", "a b"), "host"),
            (FOREIGN.replace("127.0.0.1", "a..b"), "a..b:50001"),
            (FOREIGN.replace("127.0.0.1", "0.0.0.0"), "listens"),
            (FOREIGN.replace("127.0.0.1", "::"), "[::]:50001"),
            (FOREIGN.replace("code-a", "a\u{202e}b"), "\\u{202e}"),
            (FOREIGN.replace("\"weight\":1", "\"weight\":\"1\""), "json"),
            ("{".to_owned(), "json"),
            ("[]".to_owned(), "json"),
            ("{}".to_owned(), "neither code nor address"),
            (String::new(), "empty"),
            (format!("{{\"x\":\"{}\"}}", "x".repeat(MAX_BYTES)), "too much"),
        ] {
            let reason = decoded(&node).unwrap_err();
            assert!(reason.contains(word), "{reason}");
        }
        assert!(decode(&"s".into(), b"{\"serveruniquecode\":\"\xff\"}").unwrap_err().contains("json"));
    }

    #[test]
    fn a_term_that_is_taken_over_is_older_than_the_node() {
        let instance = Instance::new("s").code("a");
        let data = encode_inherited(&instance, Duration::from_secs(4), None, Some(Term(7)));
        let parsed = decode(&"s".into(), &data).unwrap();
        assert_eq!([6, 7, 8].map(|own| parsed.term(Term(own))), [Term(6), Term(7), Term(7)]);
        assert_eq!(decoded(FOREIGN).unwrap().term(Term(9)), Term(9));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(code in "[a-z0-9-]{1,40}", port in 1..=u16::MAX, weight in 0..=MAX_WEIGHT,
                                   host in "[a-z0-9-]{1,9}(\\.[a-z0-9-]{1,9})?[g-wyz-]|\\[::1\\]", tags in any::<BTreeMap<String, String>>(),
                                   holder in proptest::option::of(".{1,20}")) {
            let holder = holder.map(|name| Holder::new(name.into()));
            let mut instance = Instance::new("s").code(code).address(format!("{host}:{port}")).weight(weight);
            instance.tags = tags;
            let parsed = decode(&"s".into(), &encode(&instance, Duration::from_secs(4), holder.as_ref())).unwrap();
            prop_assert_eq!(parsed.holder, holder);
            prop_assert_eq!(parsed.instance, instance);
            prop_assert_eq!(parsed.session_timeout, Some(Duration::from_secs(4)));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in any::<Vec<u8>>()) {
            let _ = decode(&"s".into(), &bytes);
        }
    }
}
