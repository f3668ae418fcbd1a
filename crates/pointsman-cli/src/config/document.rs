//! A configuration file as text: where its keys and values are, and how a place in it is shown.

use std::ops::Range;

use serde::Deserialize as _;
use toml::Spanned;
use toml::de::{DeTable, DeValue};
use unicode_width::UnicodeWidthStr as _;

use super::overrides::{self, Override};
use super::problem::{Excerpt, Fault, Problem};
use super::syntax;
use crate::output::shown;

/// A file that has been read as TOML, with the settings of the command line.
#[derive(Debug)]
pub(super) struct Document<'d> {
    text: &'d Text,
    root: DeTable<'d>,
}

/// The text of a file, and after it, each in a line of its own, the settings of the command line: so each has a place.
#[derive(Debug)]
pub(super) struct Text {
    text: String,
    /// Byte at which the file's part ends.
    end: usize,
    overrides: Vec<Result<Override, Fault>>,
}

/// The widest excerpt of a line, in characters.
const WIDTH: usize = 120;
/// How much of a long line is shown before the place.
const BEFORE: usize = 40;

impl<'d> Document<'d> {
    /// Reads a text as TOML.
    pub(super) fn parse(text: &'d Text) -> Result<Self, Box<Problem>> {
        let root = DeTable::parse(&text.text[..text.end]).map_err(|error| {
            let span = error.span().unwrap_or(0..0);
            let line = line_at(&text.text, span.start);
            // The suggestion would show the value.
            let line = if has_secret(line) { "" } else { line };
            Box::new(text.place(Fault::error("", span, syntax::explain(line, error.message()))))
        })?;
        let mut root = root.into_inner();
        for one in &text.overrides {
            let put = one.as_ref().map_err(Fault::clone).and_then(|one| one.put(&mut root));
            put.map_err(|fault| Box::new(text.place(fault)))?;
        }
        Ok(Self { text, root })
    }

    /// As plain TOML, without places.
    pub(super) fn table(&self) -> Result<toml::Table, Fault> {
        let root = Spanned::new(0..0, self.root.clone());
        toml::Table::deserialize(toml::de::Deserializer::from(root))
            .map_err(|error| Fault::error("", error.span().unwrap_or(0..0), error.message().to_owned()))
    }

    pub(super) fn root(&self) -> &DeTable<'d> {
        &self.root
    }

    /// Where the value of `mqtt.route.0.match` is; if the file does not have it, what would have it.
    pub(super) fn span(&self, key: &str) -> Range<usize> {
        let (mut span, mut inner, mut rest) = (0..0, None::<&DeValue<'_>>, key);
        while !rest.is_empty() {
            let next = match inner {
                None => entry(&self.root, rest),
                Some(DeValue::Table(table)) => entry(table, rest),
                Some(DeValue::Array(array)) => {
                    let (index, rest) = rest.split_once('.').unwrap_or((rest, ""));
                    index.parse().ok().and_then(|index: usize| array.get(index)).map(|item| (item, rest))
                }
                Some(_) => None,
            };
            let Some((found, after)) = next else { break };
            (span, inner, rest) = (found.span(), Some(found.get_ref()), after);
        }
        span
    }

    /// Says where in the file a fault is.
    pub(super) fn place(&self, fault: Fault) -> Problem {
        self.text.place(fault)
    }
}

impl Text {
    /// The bytes of a file, and the settings of the command line. Fails where the file is not text.
    pub(super) fn new(bytes: &[u8], sets: &[String]) -> Result<Self, Box<Problem>> {
        let file = std::str::from_utf8(bytes).map_err(|error| Box::new(not_text(bytes, error)))?;
        let mut text = file.strip_prefix('\u{feff}').unwrap_or(file).to_owned();
        let (end, mut overrides) = (text.len(), Vec::new());
        for set in sets {
            text.push('\n');
            // A line's end would move what comes after it; a value has none that cannot be written as \n.
            let set = set.replace('\n', " ");
            overrides.push(Override::new(&set, text.len()));
            text.push_str(&set);
        }
        Ok(Self { text, end, overrides })
    }

    fn place(&self, fault: Fault) -> Problem {
        let is_of_file = fault.span.start <= self.end;
        let mut problem = place(&self.text, fault);
        if !is_of_file {
            let line = self.text.lines().nth(problem.line - 1).unwrap_or_default();
            problem.set = Some(overrides::name(line).to_owned());
            problem.line = 1;
        }
        problem
    }
}

/// What a table has under the name that a path begins with, and the rest of the path. The name may have dots in it; it may be written in
/// other letters, as names of headers may.
fn entry<'t, 'd, 'p>(table: &'t DeTable<'d>, path: &'p str) -> Option<(&'t Spanned<DeValue<'d>>, &'p str)> {
    let dots = path.match_indices('.').map(|(dot, _)| (&path[..dot], &path[dot + 1..]));
    let mut names = dots.chain(std::iter::once((path, "")));
    let in_other_letters = |name: &str| {
        let mut entries = table.iter();
        entries.find(|(key, _)| key.get_ref().eq_ignore_ascii_case(name)).map(|(_, value)| value)
    };
    names.find_map(|(name, rest)| Some((table.get(name).or_else(|| in_other_letters(name))?, rest)))
}

/// A file that is not even text.
fn not_text(bytes: &[u8], error: std::str::Utf8Error) -> Problem {
    let good = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
    place(&good, Fault::error("", good.len()..good.len(), "this is not UTF-8".to_owned()))
}

/// Lines and columns count from 1, columns in characters.
fn place(text: &str, fault: Fault) -> Problem {
    let Fault { severity, key, span, message, is_hidden } = fault;
    let start = text.floor_char_boundary(span.start);
    let line_start = text[..start].rfind('\n').map_or(0, |newline| newline + 1);
    let line = line_at(text, start);
    let before = text[line_start..start].chars().count();
    let marked = text[start..text.floor_char_boundary(span.end.max(start))].lines().next().unwrap_or_default();
    Problem {
        severity,
        line: text[..line_start].matches('\n').count() + 1,
        column: before + 1,
        key,
        message,
        set: None,
        excerpt: if is_hidden { None } else { excerpt(line, before, marked.chars().count()) },
    }
}

/// The line in which a byte is.
fn line_at(text: &str, at: usize) -> &str {
    let start = text[..text.floor_char_boundary(at)].rfind('\n').map_or(0, |newline| newline + 1);
    text[start..].lines().next().unwrap_or_default()
}

/// What of a line can be shown. A line that may hold a password is not.
fn excerpt(line: &str, before: usize, marked: usize) -> Option<Excerpt> {
    if has_secret(line) {
        return None;
    }
    let from = if line.chars().count() > WIDTH { before.saturating_sub(BEFORE) } else { 0 };
    let visible: String = line.chars().skip(from).take(WIDTH).map(|c| if c == '\t' { ' ' } else { c }).collect();
    let part = |skip: usize, take: usize| shown(&visible.chars().skip(skip).take(take).collect::<String>());
    Some(Excerpt {
        indent: part(0, before - from).width(),
        carets: part(before - from, marked).width().max(1),
        text: shown(&visible),
    })
}

/// Whether a line looks as if it held user information of a URL, a password as an option of one, or a token instead of the name
/// of its file.
fn has_secret(line: &str) -> bool {
    let words = ["@", "auth=", "password", "secret"];
    words.into_iter().any(|word| line.contains(word)) || (line.contains("token") && !line.contains("token_file"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str, key: &str) -> (usize, usize) {
        let text = Text::new(text.as_bytes(), &[]).unwrap();
        let document = Document::parse(&text).unwrap();
        let problem = document.place(Fault::error(key, document.span(key), String::new()));
        (problem.line, problem.column)
    }

    #[test]
    fn a_key_is_found_however_it_is_written() {
        for (text, key, expected) in [
            ("a = 1\nb = 2\n", "b", (2, 5)),
            ("a = 1\r\n\r\nb = 2\r\n", "b", (3, 5)),
            ("[mqtt]\n  listen = 'x'\n", "mqtt.listen", (2, 12)),
            ("mqtt.listen = 'x'", "mqtt.listen", (1, 15)),
            ("[[mqtt.route]]\nmatch='a'\n[[mqtt.route]]\nmatch = 'b'", "mqtt.route.1.match", (4, 9)),
            ("[mqtt]\nroute = [{match='a'}, {match = 'b'}]", "mqtt.route.1.match", (2, 32)),
            ("[mqtt]\nfilters = [\n  'a',\n  'b',\n]", "mqtt.filters.1", (4, 3)),
            ("'名前' = 1\nmqtt = {code = '名', listen = 3}", "mqtt.listen", (2, 30)),
            ("x = '''\na\nb'''\n[mqtt]\ny = \"\"\"\nq\"\"\"", "mqtt.y", (5, 5)),
            ("[http.services.'a.b']\ncheck = 'x'", "http.services.a.b.check", (2, 9)),
            ("[h]\nX-A = 'x'", "h.x-a", (2, 7)),
            // What is not there is at what would have it.
            ("x = 1\n[mqtt]\n", "mqtt.route", (2, 1)),
            ("[mqtt]\nroute = [{match='a'}]", "mqtt.route.0.service", (2, 10)),
            ("[mqtt]\negress = 'a'", "mqtt.egress.0", (2, 10)),
            ("x = 1\n", "mqtt", (1, 1)),
        ] {
            assert_eq!(at(text, key), expected, "{text:?} {key}");
        }
    }

    #[test]
    fn what_is_no_toml_is_told_with_its_place() {
        for (text, expected) in [
            ("a = 1\nb = \n", (2, 5)),
            ("a = 1\na = 2", (2, 1)),
            ("x = 1\n'名' = \"é\n", (2, 9)),
            ("[mqtt\nx = 1", (1, 6)),
        ] {
            let problem = Document::parse(&Text::new(text.as_bytes(), &[]).unwrap()).unwrap_err();
            assert_eq!((problem.line, problem.column), expected, "{text:?} {problem:?}");
            assert!(problem.message.starts_with("this is not TOML: "), "{problem:?}");
        }
        let bytes = [b"a = 1\nb = '", &[0xff][..]].concat();
        let problem = not_text(&bytes, std::str::from_utf8(&bytes).unwrap_err());
        assert_eq!((problem.line, problem.column), (2, 6));
    }

    #[test]
    fn an_excerpt_marks_the_place_whatever_is_before_it() {
        let shown = |line: &str, before, marked| {
            let excerpt = excerpt(line, before, marked).unwrap();
            (excerpt.text, excerpt.indent, excerpt.carets)
        };
        assert_eq!(shown("a = 12", 4, 2), ("a = 12".to_owned(), 4, 2));
        assert_eq!(shown("\ta = 1", 5, 1), (" a = 1".to_owned(), 5, 1));
        assert_eq!(shown("名 = 1", 4, 1), ("名 = 1".to_owned(), 5, 1));
        assert_eq!(shown("a\u{1b} = 1", 5, 1), ("a\\u{1b} = 1".to_owned(), 10, 1));
        assert_eq!(shown("a =", 3, 0), ("a =".to_owned(), 3, 1));
        let (text, indent, carets) = shown(&format!("{}X{}", "-".repeat(500), "+".repeat(500)), 500, 300);
        assert_eq!((text.len(), indent, carets, &text[40..42]), (120, 40, 80, "X+"));
    }

    #[test]
    fn a_line_that_may_hold_a_secret_is_not_shown() {
        for line in ["x = 'mqtt://u:geheim@h'", "x = 'zookeeper://h/p?auth=digest:u:geheim'", "x = 'u:geheim@h"] {
            assert_eq!(excerpt(line, 4, 3), None);
        }
    }
}
