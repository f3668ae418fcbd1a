//! `--set KEY=VALUE`: settings on the command line, which beat those of the file.
//!
//! A key is written as in TOML, with the index of a list as a part of it: `http.route.0.service=ress`. A value is TOML, or else a string:
//! `http.listen=0.0.0.0:80`.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeArray, DeString, DeTable, DeValue};

use super::problem::Fault;

/// A setting of the command line.
#[derive(Debug)]
pub(super) struct Override {
    key: String,
    /// Byte at which it begins in the text of the document.
    from: usize,
    /// The value with `it=` before it, where it is in the text of the document, so that spans are those of the document.
    padded: String,
}

const BEFORE: &str = "it=";

impl Override {
    /// `KEY=VALUE`, which begins at `from` in the text of the document.
    pub(super) fn new(set: &str, from: usize) -> Result<Self, Fault> {
        let Some((key, value)) = set.split_once('=').filter(|(key, _)| path(key).is_some()) else {
            // The text is not repeated: it may be a value, with a secret in it.
            let message = "it is not KEY=VALUE; write for example http.listen=127.0.0.1:7481".to_owned();
            return Err(Fault::error("", from..from + set.len(), message));
        };
        let before = (from + key.len() + 1).saturating_sub(BEFORE.len());
        Ok(Self { key: key.to_owned(), from, padded: format!("{}{BEFORE}{value}", " ".repeat(before)) })
    }

    /// Puts its value into the table of the whole file.
    pub(super) fn put<'d>(&'d self, root: &mut DeTable<'d>) -> Result<(), Fault> {
        let Self { key, from, .. } = self;
        let span = *from..from + key.len();
        let path = path(key).unwrap_or_default();
        let mut place = Place::Table(root);
        for (index, part) in path.iter().enumerate() {
            place = place.enter(part, path.get(index + 1), &span).map_err(|reason| {
                let path = path[..=index].join(".");
                Fault::error(&*path, span.clone(), format!("{path} {reason}"))
            })?;
        }
        if let Place::Value(slot) = place {
            *slot = self.value();
        }
        Ok(())
    }

    /// The value as TOML; what is not TOML is a string.
    fn value(&self) -> Spanned<DeValue<'_>> {
        let parsed = DeTable::parse(&self.padded).ok().map(Spanned::into_inner).filter(|table| table.len() == 1);
        parsed.and_then(|mut table| table.remove("it")).unwrap_or_else(|| {
            let from = self.from + self.key.len() + 1;
            let text = &self.padded[from..];
            Spanned::new(from..from + text.len(), DeValue::String(DeString::Borrowed(text)))
        })
    }
}

/// Place to which a part of a key leads.
enum Place<'t, 'd> {
    Table(&'t mut DeTable<'d>),
    Array(&'t mut DeArray<'d>),
    Value(&'t mut Spanned<DeValue<'d>>),
}

impl<'t, 'd> Place<'t, 'd> {
    /// Goes one part further, and makes what is not there: a table or a list, as the next part wants it.
    fn enter(self, part: &str, next: Option<&String>, span: &Range<usize>) -> Result<Self, String> {
        let slot = match self {
            Place::Table(table) => {
                let key = Spanned::new(span.clone(), DeString::Owned(part.to_owned()));
                table.entry(key).or_insert_with(|| Spanned::new(span.clone(), empty(next)))
            }
            Place::Array(array) => {
                let count = array.len();
                let index = part.parse().ok().filter(|index| *index <= count);
                let index: usize = index
                    .ok_or_else(|| format!("is not in the list, which has {count} items; items are counted from 0"))?;
                if index == count {
                    array.push(Spanned::new(span.clone(), empty(next)));
                }
                array.get_mut(index).ok_or("is not in the list")?
            }
            Place::Value(_) => return Err("is not a table".to_owned()),
        };
        if next.is_none() {
            return Ok(Place::Value(slot));
        }
        match slot.get_mut() {
            DeValue::Table(table) => Ok(Place::Table(table)),
            DeValue::Array(array) => Ok(Place::Array(array)),
            _ => Err("is not a table, in which the rest of the key could be".to_owned()),
        }
    }
}

fn empty<'d>(next: Option<&String>) -> DeValue<'d> {
    match next {
        Some(part) if part.bytes().all(|byte| byte.is_ascii_digit()) => DeValue::Array(DeArray::new()),
        _ => DeValue::Table(DeTable::new()),
    }
}

/// Returns the part of a setting that messages may show: the characters of a key at its beginning. The rest may hold a secret.
pub(super) fn name(set: &str) -> &str {
    let end = set.find(|c: char| !c.is_alphanumeric() && !"._-".contains(c)).unwrap_or(set.len());
    &set[..end]
}

/// The parts of a key.
fn path(key: &str) -> Option<Vec<String>> {
    let text = format!("{key}=0");
    let mut table = DeTable::parse(&text).ok()?.into_inner();
    let mut parts = Vec::new();
    loop {
        let mut entries = table.into_iter();
        let (part, value) = entries.next()?;
        if entries.next().is_some() {
            return None;
        }
        parts.push(part.into_inner().into_owned());
        match value.into_inner() {
            DeValue::Table(inner) => table = inner,
            _ => return Some(parts),
        }
    }
}
