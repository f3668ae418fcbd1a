//! How whoever waits for an answer is told that there will be none. The relay says it, and services say it.

use bytes::Bytes;
use bytestring::ByteString;

use crate::packet::{MessageProperties, Publish};

/// The user property with the reason in one word. What carries it is an error, not an answer.
pub const REASON: &str = "pointsman-reason";
/// The user property with the reason in a sentence.
pub const DETAIL: &str = "pointsman-detail";

/// So many characters of a detail are told.
const DETAIL_CHARS: usize = 500;

/// An error in place of an answer, with QoS 0: user properties for who reads them, and for everybody else a payload in the form
/// of RFC 9457. The reason is a word that needs no escaping.
#[must_use]
pub fn message(topic: ByteString, correlation: Option<Bytes>, reason: &'static str, detail: &str) -> Publish {
    let properties = MessageProperties {
        utf8: Some(true),
        content_type: Some(ByteString::from_static("application/problem+json")),
        correlation,
        user: properties(reason, detail).to_vec(),
        ..MessageProperties::default()
    };
    Publish { topic, properties, payload: json(reason, detail).into(), ..Publish::default() }
}

/// Reason and detail as user properties.
pub(crate) fn properties(reason: &'static str, detail: &str) -> [(ByteString, ByteString); 2] {
    // MQTT's strings may hold no NUL, and should hold no other control character.
    let detail: String = detail.chars().take(DETAIL_CHARS).map(|c| if c.is_control() { ' ' } else { c }).collect();
    [
        (ByteString::from_static(REASON), ByteString::from_static(reason)),
        (ByteString::from_static(DETAIL), ByteString::from(detail)),
    ]
}

/// What a message says, if it is an error: the reason and the detail.
#[must_use]
pub fn read(message: &Publish) -> Option<(&str, &str)> {
    let property = |wanted: &str| message.properties.user.iter().find(|(name, _)| *name == wanted);
    let (_, reason) = property(REASON)?;
    Some((reason, property(DETAIL).map_or("", |(_, detail)| detail)))
}

fn json(reason: &str, detail: &str) -> String {
    let mut text = format!("{{\"type\":\"about:blank\",\"title\":\"{reason}\",\"detail\":\"");
    for c in detail.chars().take(DETAIL_CHARS) {
        match c {
            '"' | '\\' => {
                text.push('\\');
                text.push(c);
            }
            c if c.is_control() => text.push(' '),
            c => text.push(c),
        }
    }
    text.push_str("\"}");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_read_back_and_its_payload_is_json() {
        let message = message("inbox".into(), None, "handler", "no \"such\"\nuser\\\0");
        assert_eq!(read(&message), Some(("handler", "no \"such\" user\\ ")));
        let json = r#"{"type":"about:blank","title":"handler","detail":"no \"such\" user\\ "}"#;
        assert_eq!(message.payload, json.as_bytes());
        assert_eq!(read(&Publish::default()), None);
    }
}
