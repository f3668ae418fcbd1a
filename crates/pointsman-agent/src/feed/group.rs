//! What has changed together, as text.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use pointsman_core::{Change, ObservedInstance, Snapshot};
use pointsman_registry::wire::{InstanceJson, ProblemJson};
use serde::Serialize;

/// The events of one revision of a service, encoded once. What reads them never has to know more.
#[derive(Debug)]
pub(crate) struct Group {
    /// `None` for what operators do.
    pub(crate) service: Option<Arc<str>>,
    at_ms: u64,
    events: Box<[Name]>,
    /// What each event says, in JSON, one after the other.
    data: Box<[u8]>,
}

/// The name of an event, and where its data ends.
#[derive(Debug)]
struct Name {
    name: &'static str,
    end: usize,
}

/// Writes an event of a stream (WHATWG HTML, 9.2). `data` must be in one line, as JSON is here.
pub(crate) fn event(text: &mut BytesMut, name: &str, data: &[u8], id: Option<&str>) {
    begin(text, name, data);
    if let Some(id) = id {
        text.put_slice(b"id: ");
        text.put_slice(id.as_bytes());
        text.put_u8(b'\n');
    }
    text.put_u8(b'\n');
}

/// The same in three parts, of which `data` is not copied: many who watch may be shown the same.
pub(crate) fn event_around(name: &str, data: Bytes, id: &str) -> [Bytes; 3] {
    [format!("event: {name}\ndata: ").into(), data, format!("\nid: {id}\n\n").into()]
}

fn begin(text: &mut BytesMut, name: &str, data: &[u8]) {
    for part in [b"event: ", name.as_bytes(), b"\ndata: ", data, b"\n"] {
        text.put_slice(part);
    }
}

#[derive(Serialize)]
struct Data<'a> {
    service: &'a str,
    revision: u64,
    at_ms: u64,
    #[serde(flatten)]
    what: What<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum What<'a> {
    Put { instance: Shown<'a>, before: Option<Shown<'a>> },
    Guarded { instance: Shown<'a> },
    Delete { instance: Shown<'a>, reason: &'static str },
    Master { master: Option<Shown<'a>>, before: Option<Shown<'a>> },
    Service { guarded: bool, problems: Vec<ProblemJson<'a>> },
}

/// An instance with what only this agent knows of it.
#[derive(Serialize)]
pub(crate) struct Shown<'a> {
    #[serde(flatten)]
    instance: InstanceJson<'a>,
    /// When this agent first saw it.
    #[serde(skip_serializing_if = "Option::is_none")]
    since_ms: Option<u64>,
}

impl<'a> Shown<'a> {
    pub(crate) fn new(instance: &'a ObservedInstance, since: &HashMap<Arc<str>, u64>) -> Self {
        Self { instance: InstanceJson::new(instance), since_ms: since.get(&instance.code).copied() }
    }
}

/// Whether an instance is shown whole by this change anyway.
fn is_put_of(change: &Change, code: &str) -> bool {
    match change {
        Change::Joined(instance)
        | Change::Returned(instance)
        | Change::Guarded(instance)
        | Change::Updated { new: instance, .. } => *instance.code == *code,
        _ => false,
    }
}

impl Group {
    /// What has changed between two snapshots of a service; `None` if nothing has. `has_left` tells of a code that is gone whether
    /// it left cleanly.
    pub(crate) fn between(
        old: &Snapshot,
        new: &Snapshot,
        since: &HashMap<Arc<str>, u64>,
        has_left: impl Fn(&str) -> bool,
        at_ms: u64,
    ) -> Option<Self> {
        let mut group = Builder::new(Some(new.service().clone()), at_ms);
        let (service, revision) = (new.service(), new.revision());
        let mut add = |name, what| group.add(name, &Data { service, revision, at_ms, what });
        let changes = Change::between(old, new);
        for change in &changes {
            match change {
                Change::Joined(instance) => {
                    add("put", What::Put { instance: Shown::new(instance, since), before: None });
                }
                Change::Updated { old, new } => {
                    add("put", What::Put { instance: Shown::new(new, since), before: Some(Shown::new(old, since)) });
                }
                Change::Returned(instance) => {
                    let before = old.find(&instance.code).map(|before| Shown::new(before, since));
                    add("put", What::Put { instance: Shown::new(instance, since), before });
                }
                Change::Guarded(instance) => add("guarded", What::Guarded { instance: Shown::new(instance, since) }),
                Change::Left(instance) => {
                    let reason = if has_left(&instance.code) { "left" } else { "lost" };
                    add("delete", What::Delete { instance: Shown::new(instance, since), reason });
                }
                Change::MasterChanged { old: before, new: master, .. } => {
                    // So that a list kept by `put` and `delete` alone has the right roles.
                    let involved = master.iter().chain(before).map(|instance| &*instance.code);
                    for code in involved.collect::<std::collections::BTreeSet<_>>() {
                        if let (Some(was), Some(is)) = (old.find(code), new.find(code))
                            && was.role != is.role
                            && !changes.iter().any(|other| is_put_of(other, code))
                        {
                            let before = Some(Shown::new(was, since));
                            add("put", What::Put { instance: Shown::new(is, since), before });
                        }
                    }
                    // Who was master is shown as what it is now, so that whoever keeps a list can put it there.
                    let before = before.as_ref().map(|old| new.find(&old.code).unwrap_or(old));
                    let before = before.map(|before| Shown::new(before, since));
                    add("master", What::Master { master: master.as_ref().map(|m| Shown::new(m, since)), before });
                }
                _ => {}
            }
        }
        if old.is_guarded() != new.is_guarded() || old.problems() != new.problems() {
            let problems = new.problems().iter().map(ProblemJson::from).collect();
            add("service", What::Service { guarded: new.is_guarded(), problems });
        }
        group.build()
    }

    /// One event that is not of a service.
    pub(crate) fn alone(name: &'static str, data: &[u8]) -> Self {
        let events = [Name { name, end: data.len() }].into();
        Self { service: None, at_ms: 0, events, data: data.into() }
    }

    /// Each event's name and data.
    fn events(&self) -> impl Iterator<Item = (&'static str, &[u8])> {
        let mut start = 0;
        self.events.iter().map(move |event| {
            let data = &self.data[start..event.end];
            start = event.end;
            (event.name, data)
        })
    }

    /// The events as a stream; the last one with the id.
    pub(crate) fn write(&self, text: &mut BytesMut, id: &str) {
        text.reserve(self.data.len() + self.events.len() * 32 + id.len());
        for (index, (name, data)) in self.events().enumerate() {
            let is_last = index + 1 == self.events.len();
            event(text, name, data, is_last.then_some(id));
        }
    }

    /// The events as objects in JSON, with commas between them.
    pub(crate) fn write_json(&self, json: &mut BytesMut) {
        json.reserve(self.data.len() + self.events.len() * 64);
        for (index, (name, data)) in self.events().enumerate() {
            if index > 0 {
                json.put_u8(b',');
            }
            json.put_slice(format!("{{\"event\":\"{name}\",\"at_ms\":{},\"data\":", self.at_ms).as_bytes());
            json.put_slice(data);
            json.put_u8(b'}');
        }
    }

    pub(crate) fn size(&self) -> usize {
        self.data.len() + size_of_val(&*self.events) + size_of::<Self>()
    }
}

struct Builder {
    service: Option<Arc<str>>,
    at_ms: u64,
    events: Vec<Name>,
    data: Vec<u8>,
}

impl Builder {
    fn new(service: Option<Arc<str>>, at_ms: u64) -> Self {
        Self { service, at_ms, events: Vec::new(), data: Vec::new() }
    }

    fn add(&mut self, name: &'static str, data: &Data<'_>) {
        // Strings and numbers under string keys: there is nothing in it that JSON cannot say.
        let _ = serde_json::to_writer(&mut self.data, data);
        self.events.push(Name { name, end: self.data.len() });
    }

    fn build(self) -> Option<Group> {
        let Self { service, at_ms, events, data } = self;
        (!events.is_empty()).then(|| Group { service, at_ms, events: events.into(), data: data.into() })
    }
}

#[cfg(test)]
mod tests {
    use pointsman_core::{Role, Term};

    use pointsman_core::Instance;

    use super::*;

    #[test]
    fn an_event_is_the_same_whole_and_in_parts() {
        let mut whole = BytesMut::new();
        event(&mut whole, "x", b"{}", Some("7"));
        assert_eq!(whole, event_around("x", Bytes::from_static(b"{}"), "7").concat());
    }

    #[test]
    fn what_changes_together_has_one_id_at_its_end() {
        let mut instance = ObservedInstance::from(Instance::new("s").code("a"));
        instance.role = Role::Master(Term(7));
        let new = Snapshot::new("s", 9, vec![Arc::new(instance)]);
        let group =
            Group::between(&Snapshot::empty("s"), &new, &HashMap::from([("a".into(), 5)]), |_| false, 77).unwrap();
        let mut text = BytesMut::new();
        group.write(&mut text, "9");
        let instance = r#"{"service":"s","code":"a","address":null,"weight":1,"role":"master","term":7,"tags":{},"status":"passing","since_ms":5}"#;
        let put = format!(r#"{{"service":"s","revision":9,"at_ms":77,"instance":{instance},"before":null}}"#);
        let master = format!(r#"{{"service":"s","revision":9,"at_ms":77,"master":{instance},"before":null}}"#);
        assert_eq!(text, format!("event: put\ndata: {put}\n\nevent: master\ndata: {master}\nid: 9\n\n"));
        let json =
            format!(r#"{{"event":"put","at_ms":77,"data":{put}}},{{"event":"master","at_ms":77,"data":{master}}}"#);
        text.clear();
        group.write_json(&mut text);
        assert_eq!(text, json);
        assert!(group.size() < put.len() + master.len() + 128, "it is in memory once");
        assert!(Group::between(&new, &new, &HashMap::new(), |_| false, 0).is_none());
    }
}
