//! What topics say: which instance or relay is meant, and what the message is about. Pure.

use std::fmt::Write as _;

/// Where answers come back to a relay of `code-last` topics: `pointsman/reply/CODE/ID`.
pub(crate) const REPLY: &str = "pointsman/reply/";
/// Where messages go that no instance takes: `pointsman/dead-letter/TOPIC`.
pub(super) const DEAD_LETTER: &str = "pointsman/dead-letter";
/// What begins with this is the relays' own.
pub(crate) const RESERVED: &str = "pointsman/";

/// The topic and the code of `TOPIC/CODE`. The last level is a code when it is a UUID or a code that is known.
pub(super) fn split_code(topic: &str, is_known: impl Fn(&str) -> bool) -> (&str, Option<&str>) {
    match topic.rsplit_once('/') {
        Some((rest, last)) if is_uuid(last) || is_known(last) => (rest, Some(last)),
        None if is_uuid(topic) || is_known(topic) => ("", Some(topic)),
        _ => (topic, None),
    }
}

/// The first level of a topic.
pub(crate) fn first_level(topic: &str) -> &str {
    topic.split('/').next().unwrap_or_default()
}

/// `CODE/TOPIC`, with one slash between them.
pub(crate) fn join_code(code: &str, topic: &str) -> String {
    let mut joined = String::with_capacity(code.len() + 1 + topic.len());
    joined.push_str(code);
    if !topic.starts_with('/') {
        joined.push('/');
    }
    joined.push_str(topic);
    joined
}

/// Whether it has the form of a UUID.
pub(super) fn is_uuid(level: &str) -> bool {
    let bytes = level.as_bytes();
    bytes.len() == 36
        && bytes.iter().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => *byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

/// A request of go-micro-service: `/VERSION/SENDER/ACTION/ID/CODE/TOPIC/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Envelope<'a> {
    pub(super) version: &'a str,
    pub(super) sender: &'a str,
    pub(super) action: &'a str,
    pub(super) id: &'a str,
    pub(super) code: &'a str,
    /// Without slashes around it.
    pub(super) topic: &'a str,
}

/// The name and the version by which go-micro-service's relays send.
pub(crate) const ENVELOPE_SENDER: &str = "/1.0/zk-mqtt-loadblance/";

impl<'a> Envelope<'a> {
    pub(super) fn parse(topic: &'a str) -> Option<Self> {
        let mut parts = topic.strip_prefix('/')?.splitn(6, '/');
        let mut part = || parts.next().filter(|part| !part.is_empty());
        let (version, sender, action, id, code) = (part()?, part()?, part()?, part()?, part()?);
        let topic = parts.next()?;
        let topic = topic.strip_suffix('/').unwrap_or(topic);
        if topic.is_empty() { None } else { Some(Self { version, sender, action, id, code, topic }) }
    }

    /// Whether the sender waits for an answer.
    pub(super) fn waits(&self) -> bool {
        matches!(self.action, "POST" | "PUT" | "GET" | "DELETE")
    }

    /// What routes match.
    pub(super) fn matched(&self) -> String {
        format!("{}/", self.topic)
    }

    /// Where the sender waits for the answer.
    pub(super) fn response_topic(&self) -> String {
        let Self { version, sender, action, id, .. } = self;
        format!("/{version}/{sender}/{action}/{id}")
    }

    /// The topic under which an instance gets it.
    pub(super) fn outgoing(&self, id: &str, code: &str) -> String {
        format!("{ENVELOPE_SENDER}{}/{id}/{}/{code}/", self.action, self.topic)
    }
}

/// An outgoing topic of an envelope with another instance's code.
pub(super) fn with_other_code(outgoing: &str, code: &str) -> String {
    let trimmed = outgoing.strip_suffix('/').unwrap_or(outgoing);
    let topic = trimmed.rsplit_once('/').map_or(trimmed, |(topic, _)| topic);
    format!("{topic}/{code}/")
}

/// An identifier as go-micro-service makes them, `<unix ns>_<32 characters 0-9a-z>_sessionid`; the 32 characters carry the
/// number of a request and a number that nobody can guess.
pub(crate) fn envelope_id(number: u64, nonce: u64, unix_nanoseconds: u128) -> String {
    let mut id = String::with_capacity(62);
    // Writing to a string cannot fail.
    let _ = write!(id, "{unix_nanoseconds}_");
    push_base36(&mut id, number, 13);
    push_base36(&mut id, nonce, 13);
    push_base36(&mut id, nonce ^ number, 6);
    id.push_str("_sessionid");
    id
}

/// The numbers in such an identifier.
pub(crate) fn read_envelope_id(id: &str) -> Option<(u64, u64)> {
    let middle = id.split('_').nth(1).filter(|middle| middle.len() == 32)?;
    let number = u64::from_str_radix(middle.get(..13)?, 36).ok()?;
    let nonce = u64::from_str_radix(middle.get(13..26)?, 36).ok()?;
    Some((number, nonce))
}

fn push_base36(out: &mut String, mut value: u64, width: usize) {
    let mut digits = vec![b'0'; width];
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789abcdefghijklmnopqrstuvwxyz"[(value % 36) as usize];
        value /= 36;
    }
    out.extend(digits.into_iter().map(char::from));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_last_level_is_a_code_if_it_looks_like_one_or_is_known() {
        let uuid = "efda4376-529c-4752-a264-553aa0c7f989";
        let known = |code: &str| code == "cfgs-1";
        let whole = format!("/login/user/{uuid}");
        assert_eq!(split_code(&whole, known), ("/login/user", Some(uuid)));
        assert_eq!(split_code("/login/user/cfgs-1", known), ("/login/user", Some("cfgs-1")));
        assert_eq!(split_code("/login/user", known), ("/login/user", None));
        assert_eq!(split_code(uuid, known), ("", Some(uuid)));
        assert_eq!(split_code("/login/", known), ("/login/", None));
        assert!(!is_uuid("efda4376-529c-4752-a264-553aa0c7f98") && !is_uuid("efda4376x529c-4752-a264-553aa0c7f989"));
    }

    #[test]
    fn codes_are_joined_with_one_slash() {
        assert_eq!(join_code("c", "/login/user"), "c/login/user");
        assert_eq!(join_code("c", "m/nos"), "c/m/nos");
    }

    #[test]
    fn an_envelope_to_the_letter() {
        let topic = "/1.0/cgws/POST/1795418027019215241_26upaoh6tgcinx3o8gjrkz2x4xtmpjin_sessionid/\
                     fcae5124-f37e-4987-a6d7-3782f90c6288/configs/serverinfo/";
        let envelope = Envelope::parse(topic).unwrap();
        assert_eq!((envelope.topic, envelope.matched()), ("configs/serverinfo", "configs/serverinfo/".to_owned()));
        assert_eq!(
            envelope.response_topic(),
            "/1.0/cgws/POST/1795418027019215241_26upaoh6tgcinx3o8gjrkz2x4xtmpjin_sessionid"
        );
        let outgoing = envelope.outgoing("ID", "svc-c");
        assert_eq!(outgoing, "/1.0/zk-mqtt-loadblance/POST/ID/configs/serverinfo/svc-c/");
        assert_eq!(with_other_code(&outgoing, "b"), "/1.0/zk-mqtt-loadblance/POST/ID/configs/serverinfo/b/");
        assert!(envelope.waits() && !Envelope { action: "UPDATED", ..envelope }.waits());
        for bad in ["", "/", "1.0/a/POST/id/c/t/", "/1.0/a/POST/id/c/", "/1.0/a/POST/id/c", "/1.0//POST/id/c/t/"] {
            assert_eq!(Envelope::parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn an_identifier_carries_its_numbers(number: u64, nonce: u64) {
            let id = envelope_id(number, nonce, 1_795_418_027_019_215_241);
            let parts: Vec<&str> = id.split('_').collect();
            prop_assert_eq!((parts.len(), parts[1].len(), parts[2]), (3, 32, "sessionid"));
            prop_assert_eq!(read_envelope_id(&id), Some((number, nonce)));
        }
    }
}
