//! The types of values that settings have: how each is read.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use pointsman::{Algorithm, Registry, UnknownAlgorithm};
use toml::de::DeValue;

use super::context::Context;
use super::paths::{Folder, NamedFile};
use super::section::{Section, fitting};
use super::setting::{self, About, Change, Draft, Setting, Value, abouts};

/// Maximum of a length of time that no other bound holds for, in nanoseconds: 365 days. What is longer is a slip.
pub(super) const LONGEST: u128 = 365 * 24 * 3600 * 1_000_000_000;
/// Maximum of a number that no other bound holds for: more than any machine has connections or memory for.
pub(super) const MOST: u128 = 10_000_000;

/// An IP address with a port.
pub(super) fn address(key: &'static str) -> Draft<SocketAddr> {
    Draft::new(key, Value::Address, |section, _, about| section.address(about))
}

/// A length of time of any length.
pub(super) fn duration(key: &'static str) -> Draft<Duration> {
    duration_within(key, 0, LONGEST)
}

/// A length of time above zero.
pub(super) fn positive_duration(key: &'static str) -> Draft<Duration> {
    duration_within(key, 1, LONGEST)
}

/// A length of time within bounds in nanoseconds, which whatever uses it checks.
pub(super) fn duration_within(key: &'static str, least: u128, most: u128) -> Draft<Duration> {
    Draft::new(key, Value::Duration(least, most), |section, _, about| section.duration(about))
}

/// A whole number within bounds, which whatever uses it checks.
pub(super) fn count<T: TryFrom<usize> + 'static>(key: &'static str, least: u128, most: u128) -> Draft<T> {
    Draft::new(key, Value::Count(least, most), |section, _, about| section.number(about))
}

/// A size in bytes within bounds, which whatever uses it checks.
pub(super) fn size(key: &'static str, least: u128, most: u128) -> Draft<usize> {
    Draft::new(key, Value::Size(least, most), |section, _, about| section.size(about))
}

/// `true` or `false`.
pub(super) fn flag(key: &'static str) -> Draft<bool> {
    Draft::new(key, Value::Flag, |section, _, about| section.flag(about))
}

/// One of these words.
pub(super) fn word<T>(key: &'static str, words: &'static [&'static str]) -> Draft<T>
where
    T: std::str::FromStr<Err = String> + 'static,
{
    Draft::new(key, Value::Word(words), |section, _, about| section.text(about, str::parse))
}

/// The names of all algorithms.
const ALGORITHMS: &[&str] = &[
    "round-robin",
    "weighted-round-robin",
    "random",
    "weighted-random",
    "ip-hash",
    "url-hash",
    "least-connections",
    "peak-ewma",
];

/// The name of an algorithm, `algorithm`.
pub(super) fn algorithm() -> Draft<Algorithm> {
    let read = |text: &str| text.parse().map_err(|error: UnknownAlgorithm| error.to_string());
    Draft::new("algorithm", Value::Word(ALGORITHMS), move |section, _, about| section.text(about, read))
        .default("\"round-robin\"")
        .help("How an instance is chosen.")
}

/// A string, which whatever uses it checks. `what` says what it is.
pub(super) fn text(key: &'static str, what: &'static str) -> Draft<String> {
    parsed(key, what, |text| Ok(text.to_owned()))
}

/// A value parsed from a string.
pub(super) fn parsed<T: 'static>(
    key: &'static str,
    what: &'static str,
    parse: impl Fn(&str) -> Result<T, String> + 'static,
) -> Draft<T> {
    Draft::new(key, Value::Text(what), move |section, _, about| section.text(about, &parse))
}

/// A value parsed from a string in which paths are relative to the file's folder.
pub(super) fn located<T: 'static>(
    key: &'static str,
    value: Value,
    parse: impl Fn(&Folder, &str) -> Result<T, String> + 'static,
) -> Draft<T> {
    Draft::new(key, value, move |section, context, about| section.text(about, |text| parse(context.folder, text)))
}

/// A list of strings, or one. An item that cannot be read has been noted, and is `None`, so that the others keep their places.
pub(super) fn list<T: 'static>(
    key: &'static str,
    what: &'static str,
    parse: impl Fn(&Folder, &str) -> Result<T, String> + 'static,
) -> Draft<Vec<Option<T>>> {
    let value = Value::List(Box::new(Value::Text(what)));
    Draft::new(key, value, move |section, context, about| section.texts(about, |text| parse(context.folder, text)))
}

/// The path of a file that is read, and is read again when it changes. A path that cannot be read has been noted, and is replaced by
/// one that has no problem, so that everything else is checked too.
pub(super) fn file(key: &'static str, what: &'static str) -> Draft<PathBuf> {
    let read = |section: &mut Section<'_>, context: &mut Context<'_>, about: &About| {
        let folder = context.folder;
        let path = section.text(about, |text| {
            context.files.push(NamedFile::new(folder.path(text)));
            folder.readable(text)
        });
        path.or_else(|| section.has(about.key).then(|| folder.path("unreadable")))
    };
    Draft::new(key, Value::File(what), read).followed()
}

/// The URL of a registry.
pub(super) fn registry(key: &'static str) -> Draft<String> {
    let read = |section: &mut Section<'_>, context: &mut Context<'_>, about: &About| {
        let url = section.text(about, |text| {
            let url = context.folder.url(text, &["auth_file", "ca", "cert", "key", "snapshots", "token_file"]);
            Registry::builder(&url).check().map_err(|error| error.to_string()).map(|()| url)
        });
        context.urls.extend(url.clone().map(|url| (section.path_of(about.key), url)));
        url
    };
    let what = "a registry's url";
    Draft::new(key, Value::Text(what), read).example("\"zookeeper://127.0.0.1:2181/micro-service\"").secret()
}

/// A share in percent.
pub(super) fn percent(key: &'static str) -> Draft<u8> {
    Draft::new(key, Value::Count(0, 100), |section, _, about| {
        section.read(about.key, "a share in percent, such as 5", share)
    })
}

fn share(value: &DeValue<'_>) -> Option<Result<u8, String>> {
    let number = value.as_integer()?;
    let share = fitting(number.as_str(), number.radix());
    Some(share.map_err(|reason| format!("{reason}; a share is 0 to 100 percent")))
}

/// A table of shares in percent, by names that the file chooses.
pub(super) fn shares(key: &'static str) -> Draft<Vec<(String, u8)>> {
    map(key, Value::Count(0, 100), "a share in percent, such as 10", share)
}

/// A table of strings, by names that the file chooses.
pub(super) fn texts_by_name(key: &'static str, what: &'static str) -> Draft<Vec<(String, String)>> {
    map(key, Value::Text(what), what, |value| value.as_str().map(|text| Ok(text.to_owned())))
}

fn map<T: 'static>(
    key: &'static str,
    value: Value,
    expected: &'static str,
    of: fn(&DeValue<'_>) -> Option<Result<T, String>>,
) -> Draft<Vec<(String, T)>> {
    Draft::new(key, Value::Map(Box::new(value)), move |section, _, about| {
        let mut table = section.section(about)?;
        let read = table.named(expected, of).into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        section.absorb(table.finish());
        Some(read)
    })
}

/// A table with settings, each read into what `new` makes.
pub(super) fn table<U: 'static>(key: &'static str, settings: Vec<Setting<U>>, new: fn() -> U) -> Draft<U> {
    section(key, settings, new, |_, into, _| into).changes(Change::AtOnce)
}

/// A section of the file. `finish` looks at the whole of it, and makes of it what it means.
pub(super) fn section<U: 'static, T: 'static>(
    key: &'static str,
    settings: Vec<Setting<U>>,
    new: fn() -> U,
    finish: impl Fn(&mut Section<'_>, U, &Context<'_>) -> T + 'static,
) -> Draft<T> {
    let value = Value::Table(abouts(&settings));
    let read = move |section: &mut Section<'_>, context: &mut Context<'_>, about: &About| {
        let mut table = section.section(about)?;
        let mut into = new();
        setting::read(&settings, &mut table, context, &mut into);
        let finished = finish(&mut table, into, context);
        section.absorb(table.finish());
        Some(finished)
    };
    Draft::new(key, value, read).changes(Change::RestartIfAdded)
}

/// A string of type `value`, which `parse` reads, or a table.
pub(super) fn text_or_table<U: 'static>(
    value: Value,
    parse: fn(&str) -> Result<U, String>,
    table: Draft<U>,
) -> Draft<U> {
    let value = Value::Or(Box::new(value), table.about().inner().to_vec());
    Draft::new(table.about().key, value, move |section, context, about| {
        if section.has_table(about.key) { table.read(section, context) } else { section.text(about, parse) }
    })
}

/// A list of tables with settings, each read into what `new` makes. `after` looks at the whole of a table, with the earlier ones;
/// `stopgap` makes what takes the place of an item that is not a table, so that the others keep their places.
pub(super) fn tables<U: 'static>(
    key: &'static str,
    settings: Vec<Setting<U>>,
    new: fn() -> U,
    stopgap: fn(usize) -> U,
    after: impl Fn(&mut Section<'_>, &mut U, &[U]) + 'static,
) -> Draft<Vec<U>> {
    Draft::new(key, Value::Tables(abouts(&settings)), move |section, context, about| {
        let mut read: Vec<U> = Vec::new();
        for (index, table) in section.sections(about).into_iter().enumerate() {
            let Some(mut table) = table else {
                read.push(stopgap(index));
                continue;
            };
            let mut into = new();
            setting::read(&settings, &mut table, context, &mut into);
            after(&mut table, &mut into, &read);
            section.absorb(table.finish());
            read.push(into);
        }
        Some(read)
    })
}

/// A table of tables with settings, by names that the file chooses. `after` looks at the whole of a table.
pub(super) fn named_tables<U: 'static>(
    key: &'static str,
    settings: Vec<Setting<U>>,
    new: fn() -> U,
    after: impl Fn(&mut Section<'_>, &mut U) + 'static,
) -> Draft<Vec<(String, U)>> {
    Draft::new(key, Value::Named(abouts(&settings)), move |section, context, about| {
        let mut tables = section.section(about)?;
        let mut read = Vec::new();
        for (name, mut table) in tables.named_sections() {
            let mut into = new();
            setting::read(&settings, &mut table, context, &mut into);
            after(&mut table, &mut into);
            tables.absorb(table.finish());
            read.push((name.to_owned(), into));
        }
        section.absorb(tables.finish());
        Some(read)
    })
}
