//! The access log: a line for each request, when its answer has come to its end.
//!
//! As text, a line begins as in the combined format that web servers write, so that what reads that reads this too; the time is that of
//! RFC 3339, and what a proxy knows besides follows:
//!
//! ```text
//! 203.0.113.7 - - [2026-01-02T03:04:05.678Z] "GET /a?b=1 HTTP/1.1" 200 512 "https://example.org/" "curl/8.5.0" host="example.org"
//! received=0 ms=3.214 route="^/a" service="ress" code="c1" address="127.0.0.1:8000" retries=0 id="3f…" problem=-
//! ```
//!
//! (all in one line). `-` stands for what there is not. Of what a client has sent, `"` and `\` have a `\` before them, and all that is
//! not printable ASCII is written as `\xHH`, byte by byte: nobody can forge a line. As JSON, each line is an object with
//!
//! | field | what |
//! |---|---|
//! | `time` | when the request's head was there: RFC 3339, UTC, milliseconds |
//! | `client` | the client's address, as the trusted hops tell it |
//! | `method`, `target`, `version` | the request's first line; the target has its query |
//! | `host` | what the client calls the host, with its port |
//! | `status` | of the answer; null: the client had gone before there was one |
//! | `sent`, `received` | bytes of the bodies, to the client and from it |
//! | `ms` | milliseconds from the request's head to the end of the answer |
//! | `route` | the name of the route; null: none is for this request |
//! | `service` | whose instance was asked; the route's, if none was |
//! | `code`, `address` | of the instance, the last one if it was tried again; null: the proxy itself has answered |
//! | `retries` | how often it was sent again, to another instance |
//! | `id` | the request's id, which the instance has been told too |
//! | `problem` | the type of the problem that the proxy has told the client; `cut-off`: the answer did not come to its end |
//! | `user_agent`, `referer` | what the client says of itself |
//!
//! What is not there is null. No other field of a request is ever in a log: cookies and credentials are nobody's business there.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use pointsman_core::ObservedInstance;
use serde::Serialize;

use crate::head::RequestHead;
use crate::settings::AccessLog;
use crate::spare;

/// So many bytes may wait to be written: what comes on top of them is dropped, rather than that a request waits for a disk.
const MOST: usize = 1 << 20;

/// Where the lines go.
#[derive(Debug)]
pub(crate) struct Log {
    queue: Arc<Queue>,
    dropped: Arc<AtomicU64>,
}

/// A request that has come to its end.
#[derive(Debug)]
pub(crate) struct Entry<'a> {
    pub(crate) head: &'a RequestHead,
    pub(crate) client: IpAddr,
    pub(crate) started: SystemTime,
    pub(crate) time: Duration,
    /// `None`: the client had gone.
    pub(crate) status: Option<u16>,
    pub(crate) sent: u64,
    pub(crate) received: u64,
    pub(crate) route: &'a str,
    pub(crate) service: &'a str,
    pub(crate) instance: Option<&'a ObservedInstance>,
    pub(crate) retries: u32,
    pub(crate) id: &'a [u8],
    pub(crate) problem: Option<&'static str>,
}

/// What waits to be written. The thread that writes takes all of it at once, so that many lines cost one call.
#[derive(Debug, Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    text: Vec<u8>,
    lines: u64,
    /// The writer waits to be told that there is something.
    waits: bool,
    /// Nothing more will come.
    ended: bool,
    /// The writer has written all that it can.
    finished: bool,
}

impl Log {
    /// Starts to write. `dropped` counts the lines that could not be written.
    pub(crate) fn start(to: Box<dyn Write + Send>, dropped: Arc<AtomicU64>) -> io::Result<Self> {
        let queue = Arc::new(Queue::default());
        let log = Self { queue: queue.clone(), dropped: dropped.clone() };
        std::thread::Builder::new().name("proxy-log".to_owned()).spawn(move || {
            let _finished = Finished(&queue);
            write(&queue, to, &dropped);
        })?;
        Ok(log)
    }

    /// Adds a line.
    pub(crate) fn add(&self, form: AccessLog, entry: &Entry<'_>) {
        let mut line = spare::text();
        entry.write(form, &mut line);
        let mut state = self.queue.lock();
        if state.text.len() + line.len() > MOST || state.finished {
            drop(state);
            self.dropped.fetch_add(1, Ordering::Relaxed);
        } else {
            state.text.extend_from_slice(&line);
            state.lines += 1;
            let waits = std::mem::take(&mut state.waits);
            drop(state);
            // Whoever is at work looks again by itself.
            if waits {
                self.queue.changed.notify_all();
            }
        }
        spare::return_text(line);
    }

    /// Writes what there is, but takes no longer than this: whoever reads the log may have stopped reading.
    pub(crate) fn close(&self, time: Duration) {
        let mut state = self.queue.lock();
        state.ended = true;
        self.queue.changed.notify_all();
        drop(self.queue.changed.wait_timeout_while(state, time, |state| !state.finished));
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.queue.lock().ended = true;
        self.queue.changed.notify_all();
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in here can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there is something, and takes it: how many lines; `None`: nothing more comes.
    fn take(&self, batch: &mut Vec<u8>) -> Option<u64> {
        let mut state = self.lock();
        while state.lines == 0 {
            if state.ended {
                return None;
            }
            state.waits = true;
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        batch.clear();
        std::mem::swap(batch, &mut state.text);
        Some(std::mem::take(&mut state.lines))
    }
}

/// Says that the writer is at its end, even if what it writes to panics.
struct Finished<'a>(&'a Queue);

impl Drop for Finished<'_> {
    fn drop(&mut self) {
        self.0.lock().finished = true;
        self.0.changed.notify_all();
    }
}

fn write(queue: &Queue, mut to: Box<dyn Write + Send>, dropped: &AtomicU64) {
    let (mut batch, mut fails) = (Vec::new(), false);
    while let Some(lines) = queue.take(&mut batch) {
        let written = to.write_all(&batch).and_then(|()| if queue.lock().lines == 0 { to.flush() } else { Ok(()) });
        // Said once, however often it fails.
        match written {
            Ok(()) => {
                if std::mem::take(&mut fails) {
                    tracing::info!("the access log can be written again");
                }
            }
            Err(error) => {
                dropped.fetch_add(lines, Ordering::Relaxed);
                if !std::mem::replace(&mut fails, true) {
                    tracing::error!(%error, "the access log cannot be written");
                }
            }
        }
    }
}

impl Entry<'_> {
    fn write(&self, form: AccessLog, out: &mut Vec<u8>) {
        if form == AccessLog::Json {
            self.json(out);
        } else {
            self.text(out);
        }
        out.push(b'\n');
    }

    fn text(&self, out: &mut Vec<u8>) {
        let mut line = Line(out);
        // Writing to memory cannot fail; so below.
        let _ = write!(line, "{} - - [{}] \"", self.client, Utc(self.started));
        let head = self.head;
        if head.method().is_empty() {
            line.0.push(b'-');
        } else {
            line.sent(head.method());
            line.0.push(b' ');
            line.sent(head.target());
            let _ = write!(line, " {}", head.version.name());
        }
        let _ = match self.status {
            Some(status) => write!(line, "\" {status} {} ", self.sent),
            None => write!(line, "\" - {} ", self.sent),
        };
        line.quoted(self.field("referer"));
        line.0.push(b' ');
        line.quoted(self.field("user-agent"));
        line.0.extend_from_slice(b" host=");
        line.quoted(Some(head.host()));
        let _ = write!(line, " received={} ms={:.3} route=", self.received, milliseconds(self.time));
        line.name(Some(self.route));
        line.0.extend_from_slice(b" service=");
        line.name(Some(self.service));
        line.0.extend_from_slice(b" code=");
        line.name(self.instance.map(|instance| &*instance.code));
        line.0.extend_from_slice(b" address=");
        line.name(self.instance.and_then(|instance| instance.address.as_deref()));
        let _ = write!(line, " retries={} id=", self.retries);
        line.quoted(Some(self.id));
        let _ = write!(line, " problem={}", self.problem.unwrap_or("-"));
    }

    fn json(&self, out: &mut Vec<u8>) {
        let head = self.head;
        let has_head = !head.method().is_empty();
        let some = |text: &str| Some(text).filter(|text| !text.is_empty()).map(str::to_owned);
        let object = Object {
            time: Utc(self.started).to_string(),
            client: self.client,
            method: told(head.method()),
            target: told(head.target()),
            version: has_head.then(|| head.version.name()),
            host: told(head.host()),
            status: self.status,
            sent: self.sent,
            received: self.received,
            ms: milliseconds(self.time),
            route: some(self.route),
            service: some(self.service),
            code: self.instance.map(|instance| &*instance.code),
            address: self.instance.and_then(|instance| instance.address.as_deref()),
            retries: self.retries,
            id: told(self.id),
            problem: self.problem,
            user_agent: self.field("user-agent").and_then(told),
            referer: self.field("referer").and_then(told),
        };
        let _ = object.serialize(&mut serde_json::Serializer::with_formatter(out, Printable));
    }

    fn field(&self, name: &'static str) -> Option<&[u8]> {
        self.head.fields.named(name).next()
    }
}

#[derive(Serialize)]
struct Object<'a> {
    time: String,
    client: IpAddr,
    method: Option<Cow<'a, str>>,
    target: Option<Cow<'a, str>>,
    version: Option<&'a str>,
    host: Option<Cow<'a, str>>,
    status: Option<u16>,
    sent: u64,
    received: u64,
    ms: f64,
    route: Option<String>,
    service: Option<String>,
    code: Option<&'a str>,
    address: Option<&'a str>,
    retries: u32,
    id: Option<Cow<'a, str>>,
    problem: Option<&'static str>,
    user_agent: Option<Cow<'a, str>>,
    referer: Option<Cow<'a, str>>,
}

fn told(bytes: &[u8]) -> Option<Cow<'_, str>> {
    Some(bytes).filter(|bytes| !bytes.is_empty()).map(String::from_utf8_lossy)
}

/// To the microsecond.
fn milliseconds(time: Duration) -> f64 {
    Duration::from_micros(u64::try_from(time.as_micros()).unwrap_or(u64::MAX)).as_secs_f64() * 1e3
}

/// A line of text.
struct Line<'a>(&'a mut Vec<u8>);

impl std::fmt::Write for Line<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

impl Line<'_> {
    /// What a client has sent.
    fn sent(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match byte {
                b'"' | b'\\' => self.0.extend_from_slice(&[b'\\', *byte]),
                b' '..=b'~' => self.0.push(*byte),
                _ => {
                    let _ = write!(self, "\\x{byte:02X}");
                }
            }
        }
    }

    fn quoted(&mut self, bytes: Option<&[u8]>) {
        self.0.push(b'"');
        match bytes {
            Some(bytes) if !bytes.is_empty() => self.sent(bytes),
            _ => self.0.push(b'-'),
        }
        self.0.push(b'"');
    }

    /// What the configuration or the registry calls something, in whatever language.
    fn name(&mut self, name: Option<&str>) {
        let name = name.filter(|name| !name.is_empty()).unwrap_or("-");
        self.0.push(b'"');
        for char in name.chars() {
            if matches!(char, '"' | '\\') || (char.is_ascii() && is_printable(char)) {
                self.sent(&[char as u8]);
            } else if is_printable(char) {
                let _ = self.write_char(char);
            } else {
                let _ = write!(self, "\\u{{{:x}}}", u32::from(char));
            }
        }
        self.0.push(b'"');
    }
}

/// Whether it neither commands a terminal nor changes the order in which a line is shown.
fn is_printable(char: char) -> bool {
    !char.is_control()
        && !matches!(char, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// JSON without characters that cannot be seen.
struct Printable;

impl serde_json::ser::Formatter for Printable {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        if fragment.chars().all(is_printable) {
            return writer.write_all(fragment.as_bytes());
        }
        for char in fragment.chars() {
            if is_printable(char) {
                write!(writer, "{char}")?;
            } else {
                for unit in char.encode_utf16(&mut [0; 2]) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }
}

/// A time as RFC 3339 has it, in UTC, with milliseconds.
struct Utc(SystemTime);

impl std::fmt::Display for Utc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let since = self.0.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let (seconds, millis) = (since.as_secs(), since.subsec_millis());
        let (day, of_day) = (seconds / 86_400, seconds % 86_400);
        // Howard Hinnant, "chrono-compatible low-level date algorithms": civil_from_days, for days from 1970 on. Years begin in March.
        let day = day + 719_468;
        let (era, of_era) = (day / 146_097, day % 146_097);
        let of_era_year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * of_era_year + of_era_year / 4 - of_era_year / 100);
        let month = (5 * of_year + 2) / 153;
        let date = of_year - (153 * month + 2) / 5 + 1;
        let month = if month < 10 { month + 3 } else { month - 9 };
        let year = of_era_year + era * 400 + u64::from(month <= 2);
        let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
        write!(f, "{year:04}-{month:02}-{date:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
    }
}

#[cfg(test)]
mod tests {
    use pointsman_core::Instance;

    use super::*;
    use crate::head::Verb;

    fn head(method: &str, target: &[u8], fields: &[(&str, &[u8])]) -> RequestHead {
        let mut head = RequestHead { verb: Verb::Get, ..RequestHead::default() };
        let mut add = |text: &[u8]| crate::head::Span::new(head.fields.add_text(text), text.len());
        (head.method, head.target, head.host) = (add(method.as_bytes()), add(target), add(b"h:80"));
        for (name, value) in fields {
            head.fields.push(name.as_bytes(), value);
        }
        head
    }

    fn entry<'a>(head: &'a RequestHead, instance: Option<&'a ObservedInstance>) -> Entry<'a> {
        Entry {
            head,
            client: "203.0.113.7".parse().unwrap(),
            started: SystemTime::UNIX_EPOCH + Duration::from_millis(1_767_323_045_678),
            time: Duration::from_micros(3_214),
            status: Some(200),
            sent: 512,
            received: 7,
            route: "^/a",
            service: "ress",
            instance,
            retries: 1,
            id: b"r-1",
            problem: None,
        }
    }

    fn line(form: AccessLog, entry: &Entry<'_>) -> String {
        let mut out = Vec::new();
        entry.write(form, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_line_is_the_combined_format_and_what_a_proxy_knows_besides() {
        let fields: [(&str, &[u8]); 4] =
            [("User-Agent", b"curl/8"), ("Referer", b"https://r/"), ("Cookie", b"s=1"), ("Authorization", b"Basic x")];
        let (head, instance) =
            (head("GET", b"/a?b=1", &fields), ObservedInstance::from(Instance::new("ress").code("c1").address("h:1")));
        assert_eq!(
            line(AccessLog::Text, &entry(&head, Some(&instance))),
            "203.0.113.7 - - [2026-01-02T03:04:05.678Z] \"GET /a?b=1 HTTP/1.1\" 200 512 \"https://r/\" \"curl/8\" \
             host=\"h:80\" received=7 ms=3.214 route=\"^/a\" service=\"ress\" code=\"c1\" address=\"h:1\" retries=1 \
             id=\"r-1\" problem=-\n"
        );
        let gone = Entry { status: None, route: "", service: "", problem: Some("loop"), ..entry(&head, None) };
        assert!(line(AccessLog::Text, &gone).ends_with(
            "\" - 512 \"https://r/\" \"curl/8\" host=\"h:80\" received=7 ms=3.214 route=\"-\" service=\"-\" code=\"-\" \
             address=\"-\" retries=1 id=\"r-1\" problem=loop\n"
        ));
    }

    #[test]
    fn an_object_has_the_same() {
        let (head, instance) = (
            head("GET", b"/a?b=1", &[("Referer", b"r")]),
            ObservedInstance::from(Instance::new("ress").code("c1").address("h:1")),
        );
        let object: serde_json::Value =
            serde_json::from_str(&line(AccessLog::Json, &entry(&head, Some(&instance)))).unwrap();
        assert_eq!(
            object,
            serde_json::json!({
                "time": "2026-01-02T03:04:05.678Z", "client": "203.0.113.7",
                "method": "GET", "target": "/a?b=1", "version": "HTTP/1.1", "host": "h:80",
                "status": 200, "sent": 512, "received": 7, "ms": 3.214,
                "route": "^/a", "service": "ress", "code": "c1", "address": "h:1", "retries": 1,
                "id": "r-1", "problem": null, "user_agent": null, "referer": "r",
            })
        );
    }

    #[test]
    fn nobody_forges_a_line() {
        let evil = b"x\" 200 9\n1.2.3.4 - \\\r\x1b[2J\x7f\xc2\x9b\xff\xe2\x80\xae";
        let (head, instance) = (
            head("GET", evil, &[("User-Agent", evil)]),
            ObservedInstance::from(Instance::new("ress").code("a\"\n\u{202e}码")),
        );
        let entry = entry(&head, Some(&instance));
        let text = line(AccessLog::Text, &entry);
        let safe = r#"x\" 200 9\x0A1.2.3.4 - \\\x0D\x1B[2J\x7F\xC2\x9B\xFF\xE2\x80\xAE"#;
        assert!(
            text.contains(&format!("\"GET {safe} HTTP/1.1\"")) && text.contains(&format!("\"{safe}\" host=")),
            "{text}"
        );
        assert!(text.contains(r#"code="a\"\u{a}\u{202e}码""#), "{text}");
        let json = line(AccessLog::Json, &entry);
        for line in [&text, &json] {
            assert!(line.ends_with('\n') && line.trim_end_matches('\n').chars().all(is_printable), "{line}");
        }
        let object: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(object["target"], String::from_utf8_lossy(evil).as_ref());
        assert_eq!(object["code"], "a\"\n\u{202e}码");
    }

    #[test]
    fn what_is_no_request_has_a_line_too() {
        let head = RequestHead::default();
        assert!(line(AccessLog::Text, &entry(&head, None)).contains("\"-\" 200"));
        let object: serde_json::Value = serde_json::from_str(&line(AccessLog::Json, &entry(&head, None))).unwrap();
        assert_eq!([&object["method"], &object["version"]], [&serde_json::Value::Null; 2]);
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399, "2000-02-28T23:59:59.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(Utc(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).to_string(), expected);
        }
    }

    /// Writes one batch each time that it may.
    struct Slow(std::sync::mpsc::Receiver<()>, std::sync::mpsc::Sender<usize>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1.send(bytes.iter().filter(|byte| **byte == b'\n').count()).unwrap();
            self.0.recv().map_err(|_| io::ErrorKind::BrokenPipe)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn who_writes_slowly_loses_lines_and_holds_nobody_up() {
        let (go, may) = std::sync::mpsc::channel();
        let (wrote, written) = std::sync::mpsc::channel();
        let dropped = Arc::new(AtomicU64::new(0));
        let log = Log::start(Box::new(Slow(may, wrote)), dropped.clone()).unwrap();
        let long = vec![b'x'; 10_000];
        let (head, soon) = (head("GET", &long, &[]), Duration::from_secs(20));
        log.add(AccessLog::Text, &entry(&head, None));
        assert_eq!(written.recv_timeout(soon).unwrap(), 1);
        (0..200).for_each(|_| log.add(AccessLog::Text, &entry(&head, None)));
        let lost = dropped.load(Ordering::Relaxed);
        assert!((90..110).contains(&lost), "{lost}");
        // The rest comes in one piece.
        go.send(()).unwrap();
        assert_eq!(written.recv_timeout(soon).unwrap() as u64, 200 - lost);
        // What cannot be written is lost as well.
        drop(go);
        log.close(soon);
        assert_eq!(dropped.load(Ordering::Relaxed), 200);
        log.add(AccessLog::Text, &entry(&head, None));
        assert_eq!(dropped.load(Ordering::Relaxed), 201);
    }
}
