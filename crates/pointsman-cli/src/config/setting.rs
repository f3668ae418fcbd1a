//! A setting, said once: its key, the type and the bounds of its value, its default, its meaning, what a change of it takes, and where the
//! value goes.
//!
//! Each section of the file is a list of [`Setting`]s (`agent.rs`, `http.rs`, `mqtt.rs`). The reader, the check, the plan of a reload
//! (`reload.rs`), `pointsman config` and the tables of the documents (`reference.rs`) all come from these lists.

use super::context::Context;
use super::section::Section;

/// Description of a setting, without its value.
#[derive(Debug, Clone)]
pub(crate) struct About {
    pub(crate) key: &'static str,
    pub(crate) value: Value,
    /// In TOML, or in words; empty where there is none.
    pub(crate) default: &'static str,
    /// A value in TOML, for messages and the sample.
    pub(crate) example: &'static str,
    /// A sentence or more, in Markdown.
    pub(crate) help: &'static str,
    pub(crate) change: Change,
    pub(crate) is_required: bool,
    /// Whether the value may hold a secret, and is therefore never shown.
    pub(crate) is_secret: bool,
    /// Whether the value names a file whose changes are applied.
    pub(crate) is_followed: bool,
}

/// When a changed value takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// As soon as the file has been read again.
    AtOnce,
    /// After a restart.
    Restart,
    /// After a restart where the key is added or removed; otherwise at once.
    RestartIfAdded,
    /// After a restart. Where the key is absent the value comes from other keys, so that it is compared once these are known.
    RestartOfInherited,
    /// Together with another key of the same table.
    With(&'static str),
}

/// The type of a value, with its bounds.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    /// An IP address with a port.
    Address,
    /// A length of time, from so many nanoseconds to so many.
    Duration(u128, u128),
    /// A whole number, from the first to the second.
    Count(u128, u128),
    /// A size in bytes, from the first to the second.
    Size(u128, u128),
    /// `true` or `false`.
    Flag,
    /// One of some words.
    Word(&'static [&'static str]),
    /// A string, and what it is.
    Text(&'static str),
    /// The path of a file that is read, and what is in it.
    File(&'static str),
    /// The path of something that is made if it is not there: a file, a folder, a socket.
    Path(&'static str),
    /// One value, or a list of such.
    List(Box<Value>),
    /// A table whose keys are names that the file chooses, each with such a value.
    Map(Box<Value>),
    /// A table with these settings.
    Table(Vec<About>),
    /// A table of tables with these settings, whose keys are names that the file chooses.
    Named(Vec<About>),
    /// A list of tables with these settings.
    Tables(Vec<About>),
    /// Such a value, or a table with these settings.
    Or(Box<Value>, Vec<About>),
}

/// A setting of the section that is read into an `S`.
pub(super) struct Setting<S> {
    pub(super) about: About,
    read: Box<Read<S>>,
}

type Read<S> = dyn for<'d> Fn(&mut Section<'d>, &mut Context<'_>, &About, &mut S);

/// A setting of which it is not said yet where its value goes.
pub(super) struct Draft<T> {
    about: About,
    read: Box<ReadValue<T>>,
}

type ReadValue<T> = dyn for<'d> Fn(&mut Section<'d>, &mut Context<'_>, &About) -> Option<T>;

impl<T: 'static> Draft<T> {
    /// A setting whose value is read by `read`; `None` where the key is absent, or its value is wrong, which has been noted.
    pub(super) fn new(
        key: &'static str,
        value: Value,
        read: impl for<'d> Fn(&mut Section<'d>, &mut Context<'_>, &About) -> Option<T> + 'static,
    ) -> Self {
        let about = About {
            key,
            value,
            default: "",
            example: "",
            help: "",
            change: Change::AtOnce,
            is_required: false,
            is_secret: false,
            is_followed: false,
        };
        Self { about, read: Box::new(read) }
    }

    /// The value where the key is absent: in TOML, which is an example too, or in words.
    pub(super) fn default(mut self, default: &'static str) -> Self {
        self.about.default = default;
        self
    }

    pub(super) fn example(mut self, example: &'static str) -> Self {
        self.about.example = example;
        self
    }

    pub(super) fn help(mut self, help: &'static str) -> Self {
        self.about.help = help;
        self
    }

    pub(super) fn changes(mut self, change: Change) -> Self {
        self.about.change = change;
        self
    }

    /// A change takes a restart.
    pub(super) fn restart(self) -> Self {
        self.changes(Change::Restart)
    }

    /// The key must be there.
    pub(super) fn required(mut self) -> Self {
        self.about.is_required = true;
        self
    }

    pub(super) fn secret(mut self) -> Self {
        self.about.is_secret = true;
        self
    }

    pub(super) fn followed(mut self) -> Self {
        self.about.is_followed = true;
        self
    }

    pub(super) fn about(&self) -> &About {
        &self.about
    }

    pub(super) fn read(&self, section: &mut Section<'_>, context: &mut Context<'_>) -> Option<T> {
        (self.read)(section, context, &self.about)
    }

    /// Turns the value into another.
    pub(super) fn map<U: 'static>(self, turn: impl Fn(T) -> U + 'static) -> Draft<U> {
        let Self { about, read } = self;
        Draft { about, read: Box::new(move |section, context, about| read(section, context, about).map(&turn)) }
    }

    /// Says where the value goes; what is absent or wrong goes nowhere.
    pub(super) fn to<S: 'static>(self, put: impl Fn(&mut S, T) + 'static) -> Setting<S> {
        let Self { about, read } = self;
        let read = move |section: &mut Section<'_>, context: &mut Context<'_>, about: &About, into: &mut S| {
            if let Some(value) = read(section, context, about) {
                put(into, value);
            }
        };
        Setting { about, read: Box::new(read) }
    }
}

/// Reads all settings of a section.
pub(super) fn read<S>(settings: &[Setting<S>], section: &mut Section<'_>, context: &mut Context<'_>, into: &mut S) {
    for Setting { about, read } in settings {
        if about.is_required {
            section.require(about.key, format!("{} = {}", about.key, about.example));
        }
        read(section, context, about, into);
    }
}

/// Returns the description of each setting of a section.
pub(super) fn abouts<S>(settings: &[Setting<S>]) -> Vec<About> {
    settings.iter().map(|setting| setting.about.clone()).collect()
}

impl About {
    /// A value in TOML that could stand here.
    pub(crate) fn example(&self) -> &'static str {
        if self.example.is_empty() { self.default } else { self.example }
    }

    /// Returns the end of a message about a value of another type, after "must be".
    pub(super) fn expected(&self) -> String {
        self.value.expected(self.example())
    }

    /// The settings of the tables in it.
    pub(crate) fn inner(&self) -> &[About] {
        match &self.value {
            Value::Table(inner) | Value::Named(inner) | Value::Tables(inner) | Value::Or(_, inner) => inner,
            _ => &[],
        }
    }
}

impl Value {
    fn expected(&self, example: &str) -> String {
        match self {
            Value::Address => format!("an IP address with a port, such as {example}"),
            Value::Duration(..) => format!("a length of time in quotes, such as {example}"),
            Value::Count(..) => "a whole number".to_owned(),
            Value::Size(..) => format!("a size, such as {example}, or a number of bytes"),
            Value::Flag => "true or false".to_owned(),
            Value::Word(words) => alternatives(words),
            Value::Text(what) | Value::File(what) | Value::Path(what) => with_example(what, example),
            Value::List(item) => item.expected(example),
            Value::Map(_) | Value::Table(_) | Value::Named(_) => format!("a table, such as {example}"),
            Value::Tables(_) => format!("a list of tables, each {example}"),
            Value::Or(one, _) => format!("{}, or a table such as {example}", one.expected("")),
        }
    }
}

fn with_example(what: &str, example: &str) -> String {
    if example.is_empty() { what.to_owned() } else { format!("{what}, such as {example}") }
}

/// `"a", "b" or "c"`.
fn alternatives(words: &[&str]) -> String {
    let quoted: Vec<_> = words.iter().map(|word| format!("{word:?}")).collect();
    match quoted.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => String::new(),
    }
}
