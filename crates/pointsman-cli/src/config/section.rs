//! Reads a table key by key: what is of the wrong type, wrong in itself, missing or unknown is noted, and reading goes on.

use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::{Fault, Severity};
use super::reference::sections_with;
use super::setting::About;

/// A table of the file, while it is read.
#[derive(Debug)]
pub(super) struct Section<'d> {
    /// `mqtt.route.0`; empty for the whole file.
    path: String,
    table: &'d DeTable<'d>,
    span: Range<usize>,
    /// What the file could say here.
    known: Vec<&'d str>,
    missing: Vec<(&'static str, String)>,
    faults: Vec<Fault>,
}

/// What comes of a value: `None` if it is of another type.
type Reading<T> = Option<Result<T, String>>;

impl<'d> Section<'d> {
    pub(super) fn new(path: impl Into<String>, table: &'d DeTable<'d>, span: Range<usize>) -> Self {
        Self { path: path.into(), table, span, known: Vec::new(), missing: Vec::new(), faults: Vec::new() }
    }

    /// Whether the file has the key.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Notes that the file could say a key here.
    pub(super) fn known(&mut self, key: &'static str) {
        self.known.push(key);
    }

    /// The value of a key, read by `of`. `expected` completes "must be".
    pub(super) fn read<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        of: impl FnOnce(&'d DeValue<'d>) -> Reading<T>,
    ) -> Option<T> {
        self.known.push(key);
        let value = self.table.get(key)?;
        self.reading(key, value, expected, of)
    }

    fn reading<T>(
        &mut self,
        key: &str,
        value: &'d Spanned<DeValue<'d>>,
        expected: &str,
        of: impl FnOnce(&'d DeValue<'d>) -> Reading<T>,
    ) -> Option<T> {
        let path = self.path_of(key);
        let message = match of(value.get_ref()) {
            Some(Ok(value)) => return Some(value),
            Some(Err(reason)) => format!("{path}: {reason}"),
            None => format!("{path} must be {expected}; it is {}", type_of(value.get_ref())),
        };
        self.faults.push(Fault::error(path, value.span(), message));
        None
    }

    fn read_about<T>(&mut self, about: &About, of: impl FnOnce(&'d DeValue<'d>) -> Reading<T>) -> Option<T> {
        self.read(about.key, &about.expected(), of)
    }

    /// A string, and what it means.
    pub(super) fn text<T>(&mut self, about: &About, of: impl FnOnce(&'d str) -> Result<T, String>) -> Option<T> {
        self.read_about(about, |value| value.as_str().map(of))
    }

    /// A list of strings, or one string. What cannot be read stays in the list, so that the others keep their places.
    pub(super) fn texts<T>(
        &mut self,
        about: &About,
        of: impl Fn(&'d str) -> Result<T, String>,
    ) -> Option<Vec<Option<T>>> {
        let (key, expected) = (about.key, about.expected());
        self.known.push(key);
        let value = self.table.get(key)?;
        let Some(items) = value.get_ref().as_array() else {
            let expected = format!("{expected}, or a list of such");
            return Some(vec![self.reading(key, value, &expected, |value| value.as_str().map(&of))]);
        };
        let read = |(index, item)| {
            self.reading(&format!("{key}.{index}"), item, &expected, |value: &'d DeValue<'d>| value.as_str().map(&of))
        };
        Some(items.iter().enumerate().map(read).collect())
    }

    /// A length of time.
    pub(super) fn duration(&mut self, about: &About) -> Option<Duration> {
        self.text(about, |text| pointsman::parse_duration(text).map_err(|error| error.to_string()))
    }

    /// A whole number that fits into what it is for.
    pub(super) fn number<T: TryFrom<usize>>(&mut self, about: &About) -> Option<T> {
        self.read_about(about, |value| value.as_integer().map(|number| fitting(number.as_str(), number.radix())))
    }

    /// A size, as people write it or in bytes.
    pub(super) fn size(&mut self, about: &About) -> Option<usize> {
        self.read_about(about, |value| match (value.as_str(), value.as_integer()) {
            (Some(text), _) => Some(bytes(text)),
            (_, Some(number)) => Some(whole(number.as_str(), number.radix())),
            _ => None,
        })
    }

    /// `true` or `false`.
    pub(super) fn flag(&mut self, about: &About) -> Option<bool> {
        self.read_about(about, |value| value.as_bool().map(Ok))
    }

    /// Where to listen.
    pub(super) fn address(&mut self, about: &About) -> Option<SocketAddr> {
        let example = about.example();
        self.text(about, |text| {
            text.parse().map_err(|_| format!("{text:?} is not an IP address with a port; write for example {example}"))
        })
    }

    /// A table within this one.
    pub(super) fn section(&mut self, about: &About) -> Option<Section<'d>> {
        let table = self.read_about(about, |value| value.as_table().map(Ok))?;
        Some(Section::new(self.path_of(about.key), table, self.span_of(about.key)))
    }

    /// Whether the value of a key is a table.
    pub(super) fn has_table(&self, key: &str) -> bool {
        self.table.get(key).is_some_and(|value| value.get_ref().is_table())
    }

    /// Everything in this table, whose keys are names that the file has chosen. What cannot be read is left out.
    pub(super) fn named<T>(&mut self, expected: &str, of: impl Fn(&'d DeValue<'d>) -> Reading<T>) -> Vec<(&'d str, T)> {
        let mut read = Vec::new();
        for (key, value) in self.table {
            let name: &'d str = key.get_ref();
            self.known.push(name);
            read.extend(self.reading(name, value, expected, &of).map(|value| (name, value)));
        }
        read
    }

    /// The tables in this one, whose keys are names that the file has chosen.
    pub(super) fn named_sections(&mut self) -> Vec<(&'d str, Section<'d>)> {
        let tables = self.named("a table", |value| value.as_table().map(Ok));
        let section = |(name, table)| (name, Section::new(self.path_of(name), table, self.span_of(name)));
        tables.into_iter().map(section).collect()
    }

    /// The tables of a list; `None` for what is no table.
    pub(super) fn sections(&mut self, about: &About) -> Vec<Option<Section<'d>>> {
        let items = self.read_about(about, |value| value.as_array().map(Ok)).map_or(&[][..], |items| items);
        let read = |(index, item): (usize, &'d Spanned<DeValue<'d>>)| {
            let key = format!("{}.{index}", about.key);
            let table = self.reading(&key, item, "a table", |value| value.as_table().map(Ok))?;
            Some(Section::new(self.path_of(&key), table, item.span()))
        };
        items.iter().enumerate().map(read).collect()
    }

    /// Notes that a key must be given, where it is not. `example` completes "such as".
    pub(super) fn require(&mut self, key: &'static str, example: impl Into<String>) {
        if !self.has(key) {
            self.missing.push((key, example.into()));
        }
    }

    /// Notes that the value of a key, or what would have it, is wrong. `reason` goes on after the key.
    pub(super) fn wrong(&mut self, key: &str, reason: impl AsRef<str>) {
        let (path, span) = (self.path_of(key), self.span_of(key));
        let message = format!("{path} {}", reason.as_ref());
        self.faults.push(Fault::error(path, span, message));
    }

    /// Notes something that is hardly meant.
    pub(super) fn warn(&mut self, key: &str, reason: impl AsRef<str>) {
        let (path, span) = (self.path_of(key), self.span_of(key));
        let message = format!("{path} {}", reason.as_ref());
        self.faults.push(Fault::warning(path, span, message));
    }

    /// Whether an error of a key has been noted.
    pub(super) fn is_wrong(&self, key: &str) -> bool {
        let path = self.path_of(key);
        self.faults.iter().any(|fault| fault.key == path && fault.severity == Severity::Error)
    }

    /// Hides the lines of the faults of a key, whose value may be a secret.
    pub(super) fn hide(&mut self, key: &str) {
        let path = self.path_of(key);
        self.faults.iter_mut().filter(|fault| fault.key == path).for_each(|fault| fault.is_hidden = true);
    }

    /// Takes over what a section within this one has found.
    pub(super) fn absorb(&mut self, faults: Vec<Fault>) {
        self.faults.extend(faults);
    }

    /// Whether no error has been noted so far, here or in what has been taken over.
    pub(super) fn is_sound(&self) -> bool {
        self.faults.iter().all(|fault| fault.severity == Severity::Warning)
            && self.missing.is_empty()
            && self.unknown().next().is_none()
    }

    /// The key that an unknown one of this table is taken for.
    pub(super) fn is_misspelt(&self, key: &str) -> bool {
        self.unknown().any(|(unknown, _)| nearest(unknown, &self.known) == Some(key))
    }

    /// Everything that was found, with the keys that nobody has asked for.
    pub(super) fn finish(mut self) -> Vec<Fault> {
        for (key, example) in std::mem::take(&mut self.missing) {
            // Who has misspelt it is told so, and once is enough.
            if !self.is_misspelt(key) {
                let name = if self.path.is_empty() { "the file".to_owned() } else { format!("[{}]", self.path) };
                let message = format!("{name} has no {key}, such as {example}");
                self.faults.push(Fault::error(self.path_of(key), self.span.clone(), message));
            }
        }
        let name = if self.path.is_empty() { "the file".to_owned() } else { format!("[{}]", self.path) };
        let mut known = self.known.clone();
        known.sort_unstable();
        let unknown: Vec<Fault> = self
            .unknown()
            .map(|(key, span)| {
                let advice = match nearest(key, &known) {
                    Some(near) => format!("did you mean {near}?"),
                    None => match sections_with(key) {
                        sections if sections.is_empty() => format!("known are {}", known.join(", ")),
                        sections => format!("it is a key of {}", sections.join(", ")),
                    },
                };
                Fault::error(self.path_of(key), span, format!("{name} has no key {key:?}; {advice}"))
            })
            .collect();
        self.faults.extend(unknown);
        self.faults
    }

    fn unknown(&self) -> impl Iterator<Item = (&'d str, Range<usize>)> {
        let keys = self.table.iter().map(|(key, _)| (&**key.get_ref(), key.span()));
        keys.filter(|(key, _)| !self.known.contains(key))
    }

    fn span_of(&self, key: &str) -> Range<usize> {
        self.table.get(key).map_or_else(|| self.span.clone(), Spanned::span)
    }

    /// The path of a key from the top of the file.
    pub(super) fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}

fn type_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(true) => "true",
        DeValue::Boolean(false) => "false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// A size as people write it.
pub(super) fn bytes(text: &str) -> Result<usize, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim_start() {
        "" | "B" => Some(1),
        "KiB" => Some(1 << 10),
        "MiB" => Some(1 << 20),
        "GiB" => Some(1 << 30),
        _ => None,
    };
    let size = number.parse::<usize>().ok().zip(factor).and_then(|(number, factor)| number.checked_mul(factor));
    size.ok_or_else(|| format!("{text:?} is not a size; write for example \"256KiB\" or \"1MiB\""))
}

/// A number as TOML writes it, in a type that may be too small for it.
pub(super) fn fitting<T: TryFrom<usize>>(text: &str, radix: u32) -> Result<T, String> {
    whole(text, radix).and_then(|number| T::try_from(number).map_err(|_| format!("{text} is too much")))
}

/// A number as TOML writes it.
fn whole(text: &str, radix: u32) -> Result<usize, String> {
    usize::from_str_radix(text, radix).map_err(|_| match text.starts_with('-') {
        true => format!("{text} is below zero"),
        false => format!("{text} is too much"),
    })
}

/// The name that was meant, if one is near enough.
fn nearest<'k>(key: &str, known: &[&'k str]) -> Option<&'k str> {
    let distance = |name: &str| strsim::damerau_levenshtein(&key.to_lowercase().replace('-', "_"), name);
    let near = known.iter().map(|name| (distance(name), *name)).min()?;
    // A third of the letters may differ: `lisen` is listen, `port` is not.
    (near.0 <= near.1.len().div_ceil(3).min(3)).then_some(near.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_meant_is_found_if_it_is_near() {
        let known = ["listen", "ingress", "egress", "route", "max_in_flight", "code"];
        for (key, expected) in [
            ("lisen", Some("listen")),
            ("routes", Some("route")),
            ("Code", Some("code")),
            ("max-in-flight", Some("max_in_flight")),
            ("ingres", Some("ingress")),
            ("port", None),
            ("something_else", None),
        ] {
            assert_eq!(nearest(key, &known), expected, "{key}");
        }
        assert_eq!(nearest("x", &[]), None);
    }

    #[test]
    fn numbers_that_cannot_be() {
        assert_eq!(whole("1000", 10), Ok(1000));
        assert_eq!(whole("ff", 16), Ok(255));
        assert_eq!(whole("-1", 10), Err("-1 is below zero".to_owned()));
        assert!(whole("99999999999999999999", 10).unwrap_err().contains("too much"));
        assert_eq!((fitting::<u8>("255", 10), fitting::<u8>("256", 10)), (Ok(255), Err("256 is too much".to_owned())));
    }

    #[test]
    fn sizes_as_people_write_them() {
        for (text, expected) in [("1MiB", 1 << 20), ("256 KiB", 256 << 10), ("1GiB", 1 << 30), ("5", 5), ("7B", 7)] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for text in ["", "MiB", "1MB", "1.5MiB", "-1", "99999999999999GiB"] {
            assert!(bytes(text).unwrap_err().contains("1MiB"), "{text}");
        }
    }
}
