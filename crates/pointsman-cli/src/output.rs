//! The one place that writes to stdout and stderr.
//!
//! Data goes to stdout, everything else to stderr. Every line is flushed, so that whoever reads through a pipe has it at
//! once. A reader that went away is an error of kind `BrokenPipe`, which ends a command quietly (see
//! [`Failure`](crate::failure::Failure)).

use std::borrow::Cow;
use std::io::{self, IsTerminal as _, Write as _};

use pointsman::is_invisible;
pub(crate) use pointsman::shown;
use serde::Serialize;

use crate::args::Output;

/// Writes one line, or several, of data.
pub(crate) fn line(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{text}")?;
    stdout.flush()
}

/// Writes data in the form that is asked for: `names` for `-o name`, and `table`, which is given the width that it has, for people.
pub(crate) fn show(
    form: Output,
    data: &impl Serialize,
    names: impl IntoIterator<Item = String>,
    table: impl FnOnce(Option<usize>) -> String,
) -> io::Result<()> {
    match form {
        Output::Json => json(data),
        Output::Yaml => yaml(data),
        Output::Name => names.into_iter().try_for_each(|name| line(&shown(&name))),
        Output::Wide => line(&table(None)),
        Output::Table => line(&table(width())),
    }
}

/// The width of the terminal that stdout is, in columns.
fn width() -> Option<usize> {
    let stdout = io::stdout();
    let size = stdout.is_terminal().then(|| rustix::termios::tcgetwinsize(&stdout).ok()).flatten()?;
    (size.ws_col > 0).then_some(usize::from(size.ws_col))
}

/// Writes an object as a document of YAML.
fn yaml(value: &impl Serialize) -> io::Result<()> {
    line(&format!("---\n{}", yaml_text(value)?))
}

/// YAML; where something would be hidden in it, JSON with that escaped, which is YAML as well.
fn yaml_text(value: &impl Serialize) -> io::Result<String> {
    let text = serde_norway::to_string(value).map_err(io::Error::other)?;
    let is_hidden = |c: char| is_invisible(c) || (c.is_control() && c != '\n');
    if !text.chars().any(is_hidden) {
        return Ok(text.trim_end().to_owned());
    }
    let json = serde_json::to_string(value)?;
    Ok(json.chars().map(|c| if is_hidden(c) { format!("\\U{:08x}", u32::from(c)) } else { c.to_string() }).collect())
}

/// Writes an object as one line of JSON. For whoever reads it on a terminal, what cannot be seen is escaped, as JSON does: programs read the
/// same text.
pub(crate) fn json(value: &impl Serialize) -> io::Result<()> {
    line(&json_escaped(&serde_json::to_string(value)?))
}

/// JSON with every character escaped that cannot be seen, or that changes the order of others: such stand only in its strings.
pub(crate) fn json_escaped(json: &str) -> Cow<'_, str> {
    if !json.chars().any(is_hidden) {
        return json.into();
    }
    let mut escaped = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        if is_hidden(c) {
            c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| escaped.push_str(&format!("\\u{unit:04x}")));
        } else {
            escaped.push(c);
        }
    }
    escaped.into()
}

/// Whether JSON may have a character as it is, which a terminal does not show, or takes for a command.
pub(crate) fn is_hidden(c: char) -> bool {
    is_invisible(c) || matches!(c, '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}')
}

/// Writes bytes as they are.
pub(crate) fn raw(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}

/// Tells the user something that is not data.
pub(crate) fn note(text: &str) {
    // Nobody listens: nobody to tell.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Whether a person looks at stdout.
pub(crate) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_says_the_same_with_nothing_hidden() {
        let text = "a\u{202e}b\u{e0041}c";
        let json = serde_json::to_string(&[text]).unwrap();
        let escaped = json_escaped(&json);
        assert_eq!(escaped, r#"["a\u202eb\udb40\udc41c"]"#);
        assert_eq!(serde_json::from_str::<Vec<String>>(&escaped).unwrap(), [text]);
        assert_eq!(yaml_text(&[text]).unwrap(), r#"["a\U0000202eb\U000e0041c"]"#);
        assert!(matches!(json_escaped("[\"\u{7528}\"]"), Cow::Borrowed(_)));
    }
}
