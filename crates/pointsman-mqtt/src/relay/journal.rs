//! What must survive the process: which messages of QoS 2 are under way, and which requests.
//!
//! Lines of text in one file, appended in the order in which things happen, and always before what they allow is sent. They are
//! handed to the operating system, not forced to the disk: they outlive a `kill -9`, not a power failure, after which QoS 2 is
//! at least once. When nothing is under way any more the file starts anew.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// A message of QoS 2 on one side: the side and its packet identifier there.
pub(super) type Place = (usize, u16);

/// The file, and what it says.
#[derive(Debug, Default)]
pub(super) struct Journal {
    file: Option<(PathBuf, File)>,
    /// What is to be appended.
    pending: String,
    /// How many bytes the file has, and had when it was last written anew.
    written: usize,
    fresh: usize,
    /// Received and acknowledged with PUBREC; PUBREL has not come.
    received: BTreeMap<Place, ()>,
    /// Sent, and not through.
    sent: BTreeMap<Place, Sent>,
    requests: BTreeMap<u64, Kept>,
    /// Where messages had gone, by where they came from: from an earlier life, until they come again.
    restored: HashMap<Place, Place>,
    failed: bool,
    /// Whether there was a file.
    found: bool,
}

/// A message of QoS 2 that was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sent {
    /// Where it came from with QoS 2.
    pub(super) origin: Option<Place>,
    /// The instance it went to; empty where it went to none.
    pub(super) code: String,
    /// Whether the broker has taken it over.
    pub(super) taken: bool,
}

/// A request that waits for its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) nonce: u64,
    pub(super) qos: u8,
    pub(super) service: String,
    pub(super) code: String,
    pub(super) correlation: Option<Vec<u8>>,
    pub(super) reply: String,
}

/// A file that has grown beyond this is written anew, with only what still holds.
const LONGEST: usize = 4 << 20;

impl Journal {
    /// Opens the journal of the relay with this code in a folder, which is made if it is missing, and reads what is there.
    pub(super) fn open(folder: &Path, code: &str) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let path = folder.join(format!("{code}.journal"));
        let mut it = Self::default();
        match fs::read(&path) {
            Ok(bytes) => {
                it.found = true;
                // What has no line break at its end was cut off by the end of the process: what it allows had not been sent.
                let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
                String::from_utf8_lossy(&bytes[..whole]).lines().for_each(|line| it.replay(line));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        it.restored =
            it.sent.iter().filter(|(_, sent)| !sent.taken).filter_map(|(&to, sent)| Some((sent.origin?, to))).collect();
        it.start_anew(path)?;
        Ok(it)
    }

    /// Whether anything is kept at all.
    pub(super) fn is_on(&self) -> bool {
        self.file.is_some()
    }

    /// Whether it is known what an earlier life has left at the brokers.
    pub(super) fn knows_the_past(&self) -> bool {
        self.found
    }

    /// Messages that were acknowledged with PUBREC.
    pub(super) fn received_before(&self) -> Vec<Place> {
        self.received.keys().copied().collect()
    }

    /// Messages that were sent, and whether that is over: the broker had taken them over, or nobody will send them again.
    pub(super) fn sent_before(&self) -> Vec<(Place, bool)> {
        self.sent.iter().map(|(&place, sent)| (place, sent.taken || sent.origin.is_none())).collect()
    }

    /// Requests that were waiting.
    pub(super) fn requests_before(&self) -> Vec<(u64, Kept)> {
        self.requests.iter().map(|(&number, kept)| (number, kept.clone())).collect()
    }

    /// Where a message that comes again had gone, and to which instance.
    pub(super) fn restored(&mut self, origin: Place) -> Option<(Place, String)> {
        let to = self.restored.remove(&origin)?;
        self.sent.get(&to).map(|sent| (to, sent.code.clone()))
    }

    /// A broker has lost its session: identifiers on this side mean nothing any more. Gives those messages on other sides that
    /// will never come again.
    pub(super) fn lost(&mut self, side: usize) -> Vec<Place> {
        if !self.is_on() {
            return Vec::new();
        }
        for place in self.received.keys().filter(|place| place.0 == side).copied().collect::<Vec<_>>() {
            self.released(place);
        }
        for place in self.sent.keys().filter(|place| place.0 == side).copied().collect::<Vec<_>>() {
            self.through(place);
        }
        for place in self.sent.keys().copied().collect::<Vec<_>>() {
            let Some(sent) = self.sent.get(&place).filter(|sent| sent.origin.is_some_and(|origin| origin.0 == side))
            else {
                continue;
            };
            // Its origin may come to mean another message.
            let Sent { code, taken, .. } = sent.clone();
            self.sent(place, None, &code);
            if taken {
                self.taken(place);
            }
        }
        self.restored.retain(|_, to| to.0 != side);
        let orphans: Vec<Place> =
            self.restored.iter().filter(|(origin, _)| origin.0 == side).map(|(_, &to)| to).collect();
        self.restored.retain(|origin, _| origin.0 != side);
        orphans
    }

    pub(super) fn received(&mut self, place: Place) {
        self.note(format_args!("received {} {}", place.0, place.1));
        self.received.insert(place, ());
    }

    pub(super) fn released(&mut self, place: Place) {
        if self.received.remove(&place).is_some() {
            self.note(format_args!("released {} {}", place.0, place.1));
        }
    }

    pub(super) fn sent(&mut self, place: Place, origin: Option<Place>, code: &str) {
        match origin {
            Some((side, id)) => self.note(format_args!("sent {} {} {side} {id} {code}", place.0, place.1)),
            None => self.note(format_args!("sent {} {} - - {code}", place.0, place.1)),
        }
        self.sent.insert(place, Sent { origin, code: code.to_owned(), taken: false });
    }

    pub(super) fn taken(&mut self, place: Place) {
        if let Some(sent) = self.sent.get_mut(&place) {
            sent.taken = true;
            self.note(format_args!("taken {} {}", place.0, place.1));
        }
    }

    pub(super) fn through(&mut self, place: Place) {
        if self.sent.remove(&place).is_some() {
            self.note(format_args!("through {} {}", place.0, place.1));
        }
    }

    pub(super) fn request(&mut self, number: u64, kept: Kept) {
        if self.is_on() && self.requests.get(&number) != Some(&kept) {
            let line = kept.line(number);
            self.note(format_args!("{line}"));
            self.requests.insert(number, kept);
        }
    }

    pub(super) fn answered(&mut self, number: u64) {
        if self.requests.remove(&number).is_some() {
            self.note(format_args!("answered {number}"));
        }
    }

    fn note(&mut self, line: std::fmt::Arguments<'_>) {
        if self.is_on() {
            // Writing to a string cannot fail.
            let _ = writeln!(self.pending, "{line}");
        }
    }

    /// Hands everything noted to the operating system. A disk that fails is told once, and again when it works.
    pub(super) fn write(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let Some((path, file)) = &mut self.file else { return self.pending.clear() };
        let path = path.clone();
        let empty = self.received.is_empty() && self.sent.is_empty() && self.requests.is_empty();
        let result = if self.failed || self.written > LONGEST.max(2 * self.fresh) || (empty && self.written > 0) {
            // What is pending is in what still holds.
            self.pending.clear();
            self.start_anew(path.clone())
        } else {
            let result = file.write_all(self.pending.as_bytes());
            self.written += self.pending.len();
            self.pending.clear();
            result
        };
        match (&result, self.failed) {
            (Err(error), false) => {
                tracing::error!(path = %path.display(), %error, "the journal cannot be written: QoS 2 is at least once");
            }
            (Ok(()), true) => tracing::info!(path = %path.display(), "the journal is written again"),
            _ => {}
        }
        self.failed = result.is_err();
    }

    /// Writes what holds to a file aside, which then takes the place of the other.
    fn start_anew(&mut self, path: PathBuf) -> io::Result<()> {
        let mut text = String::new();
        for (side, id) in self.received.keys() {
            let _ = writeln!(text, "received {side} {id}");
        }
        for (&(side, id), sent) in &self.sent {
            let origin = sent.origin.map_or_else(|| "- -".to_owned(), |(side, id)| format!("{side} {id}"));
            let _ = writeln!(text, "sent {side} {id} {origin} {}", sent.code);
            if sent.taken {
                let _ = writeln!(text, "taken {side} {id}");
            }
        }
        for (&number, kept) in &self.requests {
            let _ = writeln!(text, "{}", kept.line(number));
        }
        if text.is_empty()
            && let Some((_, file)) = &mut self.file
        {
            // The common case: nothing is under way.
            file.set_len(0)?;
            (self.written, self.fresh) = (0, 0);
            return Ok(());
        }
        let aside = path.with_extension("journal.new");
        fs::write(&aside, &text)?;
        fs::rename(&aside, &path)?;
        let file = OpenOptions::new().append(true).open(&path)?;
        (self.written, self.fresh) = (text.len(), text.len());
        self.file = Some((path, file));
        Ok(())
    }

    /// A line that cannot be read is passed over.
    fn replay(&mut self, line: &str) {
        let _ = self.read(line);
    }

    fn read(&mut self, line: &str) -> Option<()> {
        let (verb, rest) = line.split_once(' ')?;
        let mut words = rest.splitn(5, ' ');
        let mut place = || Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?));
        match verb {
            "received" => drop(self.received.insert(place()?, ())),
            "released" => drop(self.received.remove(&place()?)),
            "taken" => self.sent.get_mut(&place()?)?.taken = true,
            "through" => drop(self.sent.remove(&place()?)),
            "sent" => {
                let to = place()?;
                let (side, id) = (words.next()?, words.next()?);
                let origin = if side == "-" { None } else { Some((side.parse().ok()?, id.parse().ok()?)) };
                let code = words.next()?.to_owned();
                self.sent.insert(to, Sent { origin, code, taken: false });
            }
            "request" => {
                let (number, kept) = Kept::read(rest)?;
                self.requests.insert(number, kept);
            }
            "answered" => drop(self.requests.remove(&rest.parse().ok()?)),
            _ => return None,
        }
        Some(())
    }
}

impl Kept {
    /// The reply's topic comes last, because it may have any character but a line break, which is escaped.
    fn line(&self, number: u64) -> String {
        let Self { nonce, qos, service, code, correlation, reply } = self;
        let mut line = format!("request {number} {nonce} {qos} {service} {code} ");
        match correlation {
            None => line.push('-'),
            Some(bytes) => {
                line.push('x');
                for byte in bytes {
                    let _ = write!(line, "{byte:02x}");
                }
            }
        }
        line.push(' ');
        line.push_str(&reply.replace('\\', "\\\\").replace('\n', "\\n").replace('\r', "\\r"));
        line
    }

    fn read(rest: &str) -> Option<(u64, Self)> {
        let mut words = rest.splitn(7, ' ');
        let mut word = || words.next();
        let (number, nonce, qos) = (word()?.parse().ok()?, word()?.parse().ok()?, word()?.parse().ok()?);
        let (service, code) = (word()?.to_owned(), word()?.to_owned());
        let correlation = match word()? {
            "-" => None,
            text => {
                let text = text.strip_prefix('x')?;
                let byte = |at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok();
                Some((0..text.len()).step_by(2).map(byte).collect::<Option<Vec<u8>>>()?)
            }
        };
        let mut reply = String::new();
        let mut chars = word()?.chars();
        while let Some(c) = chars.next() {
            reply.push(match c {
                '\\' => match chars.next()? {
                    'n' => '\n',
                    'r' => '\r',
                    other => other,
                },
                c => c,
            });
        }
        Some((number, Self { nonce, qos, service, code, correlation, reply }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept() -> Kept {
        Kept {
            nonce: 9,
            qos: 1,
            service: "cfgs".into(),
            code: "a".into(),
            correlation: Some(vec![0, 255]),
            reply: "in box\n\\x".into(),
        }
    }

    #[test]
    fn what_holds_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(folder.path(), "c").unwrap();
        journal.sent((1, 5), Some((0, 7)), "a");
        journal.sent((1, 6), Some((0, 8)), "b");
        journal.taken((1, 6));
        journal.received((0, 8));
        journal.sent((0, 3), None, "");
        journal.through((0, 3));
        journal.request(4, kept());
        journal.request(5, kept());
        journal.answered(5);
        journal.write();
        drop(journal);
        for _ in 0..2 {
            let mut again = Journal::open(folder.path(), "c").unwrap();
            assert_eq!(again.received_before(), [(0, 8)]);
            assert_eq!(again.sent_before(), [((1, 5), false), ((1, 6), true)]);
            assert_eq!(again.requests_before(), [(4, kept())]);
            assert_eq!(again.restored((0, 7)), Some(((1, 5), "a".to_owned())));
            assert_eq!((again.restored((0, 7)), again.restored((0, 8))), (None, None));
        }
    }

    #[test]
    fn a_line_that_was_cut_off_does_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let mut kept = kept();
        kept.reply = "ü".to_owned();
        let whole = format!("received 0 123\n{}\nsent 1 55 0 77 a\n", kept.line(44));
        let lines: Vec<usize> = whole.match_indices('\n').map(|(at, _)| at).collect();
        for cut in 0..=whole.len() {
            fs::write(folder.path().join("c.journal"), &whole.as_bytes()[..cut]).unwrap();
            let journal = Journal::open(folder.path(), "c").unwrap();
            let seen = [journal.received_before().len(), journal.requests_before().len(), journal.sent_before().len()];
            assert_eq!(seen, [0, 1, 2].map(|line| usize::from(cut > lines[line])), "{cut}");
            assert!(journal.received_before().iter().all(|place| *place == (0, 123)));
        }
    }

    #[test]
    fn the_file_starts_anew_when_nothing_is_under_way() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(folder.path(), "c").unwrap();
        for id in 1..1000 {
            journal.sent((1, id), None, "a");
            journal.write();
            journal.through((1, id));
            journal.write();
        }
        assert_eq!(fs::metadata(folder.path().join("c.journal")).unwrap().len(), 0);
    }

    #[test]
    fn a_lost_session_voids_its_side_and_names_what_will_not_come_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(folder.path(), "c").unwrap();
        journal.sent((1, 5), Some((0, 7)), "a");
        journal.received((0, 9));
        journal.write();
        drop(journal);
        let mut journal = Journal::open(folder.path(), "c").unwrap();
        assert_eq!(journal.lost(0), [(1, 5)]);
        // Nobody will send it again.
        assert_eq!((journal.received_before(), journal.sent_before()), (vec![], vec![((1, 5), true)]));
        assert_eq!(journal.lost(1), []);
        assert_eq!(journal.sent_before(), []);
    }
}
