//! Topic aliases of a client: numbers that it sends instead of topics (MQTT 5, section 3.3.2.3.4).

use bytestring::ByteString;

use crate::packet::{Malformed, Publish};
use crate::reason::Reason;

/// Number of aliases that a client may have on a connection. Each keeps a topic.
pub(super) const MAX_ALIASES: u16 = 32;

/// The aliases of one connection.
#[derive(Debug, Default)]
pub(super) struct Aliases {
    /// By their number - 1. An empty one is not in use.
    topics: Vec<ByteString>,
}

impl Aliases {
    /// Gives a message its topic, and takes the alias off: what it stands for is known on this connection only.
    pub(super) fn resolve(&mut self, publish: &mut Publish) -> Result<(), Malformed> {
        let Some(alias) = publish.properties.topic_alias.take() else { return Ok(()) };
        if !(1..=MAX_ALIASES).contains(&alias) {
            let what = "a topic alias above the maximum";
            return Err(Malformed { what, reason: Reason::TOPIC_ALIAS_INVALID });
        }
        let place = usize::from(alias) - 1;
        if publish.topic.is_empty() {
            let known = self.topics.get(place).filter(|topic| !topic.is_empty());
            publish.topic = known.ok_or(Malformed::protocol("a topic alias that stands for nothing"))?.clone();
            return Ok(());
        }
        if self.topics.len() <= place {
            self.topics.resize_with(place + 1, ByteString::new);
        }
        // In memory of its own, as everything that outlives the packet.
        self.topics[place] = ByteString::from(publish.topic.to_string());
        Ok(())
    }
}
