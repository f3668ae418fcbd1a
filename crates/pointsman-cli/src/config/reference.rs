//! The settings in words: `pointsman config`, and the tables of `docs/configuration.md`.

use std::fmt::Write as _;

use serde::Serialize;

use super::setting::{About, Change, Value};
use super::settings_of_file;

/// A setting as `config explain` shows it.
#[derive(Debug, Serialize)]
pub(crate) struct Entry {
    /// `http.route.algorithm`; names that the file chooses are in capitals.
    pub(crate) key: String,
    /// The type of its value, and that of each item of a list or a map.
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    items: Option<&'static str>,
    /// Bounds of a number, of a size in bytes, of a duration in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    minimum: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    maximum: Option<f64>,
    /// The words that the value can be.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    choices: &'static [&'static str],
    /// The type with the bounds, in words.
    pub(crate) value: String,
    pub(crate) default: Option<&'static str>,
    pub(crate) required: bool,
    pub(crate) help: String,
    /// Whether a change takes effect after a restart only.
    pub(crate) restart: bool,
    /// Whether the value may hold a secret.
    pub(crate) secret: bool,
}

/// Stands for a name that the file chooses.
pub(crate) const NAME: &str = "NAME";

/// All settings, each before those in it.
pub(crate) fn entries() -> Vec<Entry> {
    let mut entries = Vec::new();
    walk(&settings_of_file(), "", &mut |path, about| entries.push(Entry::new(path, about)));
    entries
}

fn walk<'a>(settings: &'a [About], under: &str, each: &mut impl FnMut(&str, &'a About)) {
    for about in settings {
        let path = format!("{under}{}", about.key);
        each(&path, about);
        let name = if matches!(about.value, Value::Named(_)) { format!(".{NAME}.") } else { ".".to_owned() };
        walk(about.inner(), &format!("{path}{name}"), each);
    }
}

/// The sections of which something is a key: `[http]`, `[[http.route]]`.
pub(super) fn sections_with(key: &str) -> Vec<String> {
    let mut sections = Vec::new();
    walk(&settings_of_file(), "", &mut |path, about| {
        if about.inner().iter().any(|inner| inner.key == key) {
            sections.push(match about.value {
                Value::Tables(_) => format!("[[{path}]]"),
                Value::Named(_) => format!("[{path}.{NAME}]"),
                _ => format!("[{path}]"),
            });
        }
    });
    sections
}

impl Entry {
    fn new(path: &str, about: &About) -> Self {
        let (minimum, maximum) = about.value.bounds().unzip();
        Self {
            key: path.to_owned(),
            kind: about.value.kind(),
            items: match &about.value {
                Value::List(item) | Value::Map(item) => Some(item.kind()),
                _ => None,
            },
            minimum,
            maximum,
            choices: match &about.value {
                Value::Word(words) => words,
                _ => &[],
            },
            value: about.value.words(),
            default: Some(about.default).filter(|default| !default.is_empty()),
            required: about.is_required,
            help: plain(about.help),
            restart: about.takes_restart(),
            secret: about.is_secret,
        }
    }
}

impl About {
    fn takes_restart(&self) -> bool {
        !matches!(self.change, Change::AtOnce | Change::With(_))
    }
}

impl Value {
    const fn kind(&self) -> &'static str {
        match self {
            Value::Address => "address",
            Value::Duration(..) => "duration",
            Value::Count(..) => "number",
            Value::Size(..) => "size",
            Value::Flag => "boolean",
            Value::Word(_) => "word",
            Value::Text(_) => "text",
            Value::File(_) => "file",
            Value::Path(_) => "path",
            Value::List(_) => "list",
            Value::Map(_) => "map",
            Value::Table(_) | Value::Named(_) => "table",
            Value::Tables(_) => "tables",
            Value::Or(..) => "word-or-table",
        }
    }

    /// The bounds of a number, of a size in bytes, or of a duration in seconds.
    #[allow(clippy::cast_precision_loss, reason = "for people, and for bounds that are far below 2^53")]
    fn bounds(&self) -> Option<(f64, f64)> {
        match *self {
            Value::Duration(least, most) => Some((least as f64 / 1e9, most as f64 / 1e9)),
            Value::Count(least, most) | Value::Size(least, most) => Some((least as f64, most as f64)),
            _ => None,
        }
    }

    /// The type in words, with the bounds.
    fn words(&self) -> String {
        match self {
            Value::Address => "IP:PORT".to_owned(),
            Value::Duration(0, most) => format!("duration, up to {}", time(*most)),
            Value::Duration(1, most) => format!("duration, above 0s, up to {}", time(*most)),
            Value::Duration(least, most) => format!("duration, {} to {}", time(*least), time(*most)),
            Value::Count(least, most) => format!("number, {least} to {most}"),
            Value::Size(least, most) => format!("size, {} to {}", bytes(*least), bytes(*most)),
            Value::Flag => "true or false".to_owned(),
            Value::Word(words) => words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", "),
            Value::Text(what) | Value::File(what) | Value::Path(what) => (*what).to_owned(),
            Value::List(item) => format!("{}, or a list of such", item.words()),
            Value::Map(item) => format!("table of names, each with: {}", item.words()),
            Value::Table(_) => "table".to_owned(),
            Value::Named(_) => "table of tables".to_owned(),
            Value::Tables(_) => "list of tables".to_owned(),
            Value::Or(one, _) => format!("{}, or a table", one.words()),
        }
    }
}

/// Nanoseconds as people write them.
fn time(nanoseconds: u128) -> String {
    const SECOND: u128 = 1_000_000_000;
    match nanoseconds / SECOND {
        days if days >= 24 * 3600 && days % (24 * 3600) == 0 => format!("{} days", days / (24 * 3600)),
        hours if hours >= 3600 && hours % 3600 == 0 => format!("{}h", hours / 3600),
        seconds => format!("{seconds}s"),
    }
}

fn bytes(bytes: u128) -> String {
    match bytes {
        mib if mib >= 1 << 20 && mib % (1 << 20) == 0 => format!("{}MiB", mib >> 20),
        kib if kib >= 1 << 10 && kib % (1 << 10) == 0 => format!("{}KiB", kib >> 10),
        bytes => format!("{bytes} bytes"),
    }
}

/// Markdown without its links.
fn plain(markdown: &str) -> String {
    let mut text = String::new();
    let mut rest = markdown;
    while let Some((before, link)) = rest.split_once('[') {
        text.push_str(before);
        match link.split_once("](").and_then(|(name, after)| Some((name, after.split_once(')')?.1))) {
            Some((name, after)) => {
                text.push_str(name);
                rest = after;
            }
            None => {
                text.push('[');
                rest = link;
            }
        }
    }
    text + rest
}

/// A configuration file with every setting. All but an agent with its defaults is commented out.
pub(crate) fn sample() -> String {
    let mut text =
        "# All settings of Pointsman, each with its default, or with an example where it has none.\n".to_owned();
    write_sample(&mut text, &settings_of_file());
    text
}

/// The settings of a table: first those with values, then the tables that have headers of their own.
fn write_sample(text: &mut String, settings: &[About]) {
    let (tables, values): (Vec<_>, Vec<_>) = settings.iter().partition(|about| about.example().starts_with('['));
    for about in values {
        write_comment(text, about);
        // Writing to a string cannot fail.
        let _ = writeln!(text, "#{} = {}", about.key, about.sample());
    }
    for about in tables {
        write_comment(text, about);
        let comment = if about.key == "agent" { "" } else { "#" };
        let _ = writeln!(text, "{comment}{}", about.example());
        write_sample(text, about.inner());
    }
}

fn write_comment(text: &mut String, about: &About) {
    let Entry { value, default, required, help, restart, .. } = Entry::new("", about);
    let required = if required { " Required." } else { "" };
    let restart = if restart { " A change takes a restart." } else { "" };
    let default = default.filter(|default| !is_toml(default)).map(|default| format!(" Default: {default}."));
    let words = format!("{help} Value: {value}.{}{required}{restart}", default.unwrap_or_default());
    text.push('\n');
    for line in wrapped(&words, 110) {
        let _ = writeln!(text, "# {line}");
    }
}

impl About {
    /// A value in TOML: the default, or else an example.
    fn sample(&self) -> &'static str {
        [self.default, self.example].into_iter().find(|value| is_toml(value)).unwrap_or("\"\"")
    }
}

fn is_toml(value: &str) -> bool {
    format!("it = {value}").parse::<toml::Table>().is_ok()
}

/// Breaks a text into lines of at most so many characters, where it has spaces.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// The tables of `docs/configuration.md`.
#[cfg(test)]
fn markdown() -> String {
    let mut text = String::new();
    write_markdown(&mut text, &settings_of_file(), "The file", "");
    text
}

#[cfg(test)]
fn write_markdown(text: &mut String, settings: &[About], title: &str, under: &str) {
    let _ = write!(text, "\n## {title}\n\n| key | value | default | meaning |\n|---|---|---|---|\n");
    let cell = |text: &str| text.replace('|', "\\|");
    for about in settings {
        let Entry { value, required, restart, .. } = Entry::new("", about);
        let default = match about.default {
            "" if required => "required".to_owned(),
            "" => "none".to_owned(),
            toml if is_toml(toml) => format!("`{toml}`"),
            words => words.to_owned(),
        };
        let restart = if restart { " *Restart.*" } else { "" };
        let _ = writeln!(
            text,
            "| `{}` | {} | {} | {}{restart} |",
            about.key,
            cell(&value),
            cell(&default),
            cell(about.help)
        );
    }
    for about in settings.iter().filter(|about| !about.inner().is_empty()) {
        let name = if matches!(about.value, Value::Named(_)) { ".NAME" } else { "" };
        let path = format!("{under}{}{name}", about.key);
        let title =
            if matches!(about.value, Value::Tables(_)) { format!("`[[{path}]]`") } else { format!("`[{path}]`") };
        write_markdown(text, about.inner(), &title, &format!("{path}."));
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Checked;
    use crate::config::credentials::Tokens;

    fn read(text: &str) -> Checked {
        Checked::read(Some(Path::new("/tmp/p.toml")), text.as_bytes(), &[], &Tokens::default())
    }

    /// `UPDATE_DOCS=1 cargo test -p pointsman-cli the_document` writes it anew.
    #[test]
    fn the_document_has_the_tables() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/configuration.md");
        let document = std::fs::read_to_string(&path).unwrap();
        let (before, _) = document.split_once("\n## The file").unwrap();
        let expected = format!("{before}{}", markdown());
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(&path, expected).unwrap();
        } else {
            assert!(
                document == expected,
                "docs/configuration.md is not what the settings say; run UPDATE_DOCS=1 cargo test"
            );
        }
    }

    #[test]
    fn the_sample_is_in_order_and_names_every_setting() {
        let sample = sample();
        assert_eq!(read(&sample).problems, []);
        let uncommented: String = sample
            .lines()
            .filter(|line| !line.starts_with("# "))
            .map(|line| format!("{}\n", line.trim_start_matches('#')))
            .collect();
        let table: toml::Table = uncommented.parse().unwrap_or_else(|error| panic!("{error}\n{uncommented}"));
        // Each value is of the type that its setting has.
        let wrong = |problem: &&crate::config::Problem| {
            problem.message.contains(" must be ") || problem.message.contains(" has no key ")
        };
        let problems = read(&uncommented).problems;
        assert_eq!(problems.iter().filter(wrong).collect::<Vec<_>>(), [] as [&_; 0]);
        assert_eq!(
            table.keys().map(String::as_str).collect::<Vec<_>>(),
            ["agent", "http", "metrics", "mqtt", "registry"]
        );
    }

    #[test]
    fn every_setting_is_described() {
        for Entry { key, help, .. } in entries() {
            assert!(help.ends_with('.') && !help.contains("]("), "{key}: {help}");
        }
    }

    /// Each documented default is the real one: a file with it means the same as a file without it.
    #[test]
    fn the_defaults_are_what_they_are_said_to_be() {
        let base = "registry = 'zookeeper://h/p'\n[agent]\n[[http.route]]\nservice = 's'\n\
                    [http.services.s]\ncheck = 'tcp'\n[[mqtt.route]]\nmatch = '^/a/'\nservice = 's'\n\
                    [mqtt]\ncode = 'c'\n[http]\ncode = 'c'\nregister_as = 'p'\n";
        let mut count = 0;
        walk(&settings_of_file(), "", &mut |path, about| {
            let key = path.replace(".route.", ".route.0.").replace(".NAME.", ".s.");
            if !is_toml(about.default) || key.contains("answer") {
                return;
            }
            let set = format!("{key}={}", about.default);
            let with = |sets: &[String]| {
                let checked = Checked::read(None, base.as_bytes(), sets, &Tokens::default());
                let config = checked.config.unwrap_or_else(|| panic!("{sets:?}: {:#?}", checked.problems));
                format!("{config:?}")
            };
            let needed: Vec<_> = match key.rsplit_once('.') {
                Some((table, "percent")) if table.ends_with("mirror") => vec![format!("{table}.service=t")],
                _ => Vec::new(),
            };
            assert_eq!(with(&[needed.clone(), vec![set.clone()]].concat()), with(&needed), "{set}");
            count += 1;
        });
        assert!(count > 40, "{count}");
    }
}
