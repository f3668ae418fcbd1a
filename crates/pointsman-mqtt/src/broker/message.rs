//! What the broker does to a message on its way.

use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;

use crate::packet::{MessageProperties, Publish};

/// The user property by which a message tells a client in this process which client has published it.
pub const CLIENT_ID_PROPERTY: &str = "pointsman-client-id";

/// What a message that waits takes beside its bytes, about.
const OVERHEAD: usize = 256;
/// Payloads up to this size, in bytes, are copied for each session: to share one takes as much.
pub(super) const SMALL: usize = 64;

/// How much memory a message takes where it waits, in bytes.
pub(super) fn size(publish: &Publish) -> usize {
    own_size(publish) + publish.payload.len()
}

/// The same without the payload, which it may share with others.
pub(super) fn own_size(publish: &Publish) -> usize {
    OVERHEAD + publish.topic.len() + publish.properties.len()
}

/// The message in memory of its own, around a payload that has such already: a message that is kept must not keep the whole chunk that it was
/// read with.
pub(super) fn detached_around(publish: &Publish, payload: Bytes) -> Publish {
    let text = |text: &ByteString| ByteString::from(text.to_string());
    let bytes = |bytes: &Bytes| Bytes::copy_from_slice(bytes);
    let properties = &publish.properties;
    Publish {
        topic: text(&publish.topic),
        payload,
        properties: MessageProperties {
            content_type: properties.content_type.as_ref().map(text),
            response_topic: properties.response_topic.as_ref().map(text),
            correlation: properties.correlation.as_ref().map(bytes),
            user: properties.user.iter().map(|(name, value)| (text(name), text(value))).collect(),
            ..properties.clone()
        },
        ..*publish
    }
}

/// Takes the time that a message has waited off the time it has. Whether that is over.
pub(super) fn expired(publish: &mut Publish, waited: Duration) -> bool {
    let Some(seconds) = &mut publish.properties.expiry else { return false };
    match u64::from(*seconds).checked_sub(waited.as_secs()) {
        Some(left) if left > 0 || (*seconds == 0 && waited.is_zero()) => {
            *seconds = u32::try_from(left).unwrap_or(u32::MAX);
            false
        }
        _ => true,
    }
}
