//! Streams of events, read (WHATWG HTML, 9.2.6). Pure: bytes in, events out.

/// An event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Event {
    pub(super) name: String,
    pub(super) data: String,
    /// The id that it carries itself; the end of what belongs together.
    pub(super) id: Option<String>,
}

/// Puts events together from whatever pieces they arrive in.
#[derive(Debug, Default)]
pub(super) struct Parser {
    /// What has no end yet.
    line: Vec<u8>,
    /// A line may end with both, and the second may come later.
    after_return: bool,
    event: Event,
    has_data: bool,
    size: usize,
}

/// More than this is no event of ours.
const LARGEST: usize = 64 << 20;

impl Parser {
    /// Takes in what has arrived. `Err` says why it cannot go on.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<Vec<Event>, String> {
        let mut events = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            if std::mem::take(&mut self.after_return) && rest[0] == b'\n' {
                rest = &rest[1..];
                continue;
            }
            let Some(end) = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')) else {
                self.grow(rest.len())?;
                self.line.extend_from_slice(rest);
                break;
            };
            self.grow(end)?;
            self.line.extend_from_slice(&rest[..end]);
            self.after_return = rest[end] == b'\r';
            rest = &rest[end + 1..];
            let line = std::mem::take(&mut self.line);
            let text = std::str::from_utf8(&line).map_err(|_| "an event is no UTF-8".to_owned())?;
            events.extend(self.take(text));
        }
        Ok(events)
    }

    fn grow(&mut self, by: usize) -> Result<(), String> {
        self.size += by;
        if self.size > LARGEST { Err(format!("an event has more than {LARGEST} bytes")) } else { Ok(()) }
    }

    fn take(&mut self, line: &str) -> Option<Event> {
        if line.is_empty() {
            self.size = 0;
            let event = std::mem::take(&mut self.event);
            return std::mem::take(&mut self.has_data).then_some(event);
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.event.name),
            "data" => {
                if self.has_data {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(value);
                self.has_data = true;
            }
            "id" if !value.contains('\0') => self.event.id = Some(value.to_owned()),
            // A comment, or something of a later version.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = ":\n\nevent: put\ndata: {\"a\":\ndata:1}\nid: 7\n\r\nevent: x\r\ndata\r\rid: 9\n\nretry: 3\ndata: 名\n\nevent: cut\ndata: 1";

    fn event(name: &str, data: &str, id: Option<&str>) -> Event {
        Event { name: name.to_owned(), data: data.to_owned(), id: id.map(str::to_owned) }
    }

    #[test]
    fn events_are_put_together() {
        let expected = [event("put", "{\"a\":\n1}", Some("7")), event("x", "", None), event("", "名", None)];
        assert_eq!(Parser::default().push(TEXT.as_bytes()).unwrap(), expected);
        assert!(Parser::default().push(b"data: \xff\n\n").is_err());
    }

    #[test]
    fn what_never_ends_is_given_up() {
        let mut parser = Parser::default();
        let piece = vec![b'x'; 1 << 20];
        assert!((0..70).any(|_| parser.push(&piece).is_err()));
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(cuts in proptest::collection::vec(0..TEXT.len(), 0..12)) {
            let mut cuts = cuts;
            cuts.extend([0, TEXT.len()]);
            cuts.sort_unstable();
            let mut parser = Parser::default();
            let mut events = Vec::new();
            for cut in cuts.windows(2) {
                events.extend(parser.push(&TEXT.as_bytes()[cut[0]..cut[1]]).unwrap());
            }
            prop_assert_eq!(events, Parser::default().push(TEXT.as_bytes()).unwrap());
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in any::<Vec<u8>>()) {
            let _ = Parser::default().push(&bytes);
        }
    }
}
