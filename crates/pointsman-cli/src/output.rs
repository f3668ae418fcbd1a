//! The one place that writes to stdout and stderr.
//!
//! Data goes to stdout, everything else to stderr. Every line is flushed, so that whoever reads through a pipe has it at
//! once. A reader that went away is an error of kind `BrokenPipe`, which ends a command quietly (see
//! [`Failure`](crate::failure::Failure)).

use std::io::{self, IsTerminal as _, Write as _};

use serde::Serialize;

/// Writes one line, or several, of data.
pub(crate) fn line(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{text}")?;
    stdout.flush()
}

/// Writes an object as one line of JSON.
pub(crate) fn json(value: &impl Serialize) -> io::Result<()> {
    line(&serde_json::to_string(value)?)
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

/// The text with every character escaped that could move the cursor, change colours or the direction of writing, or hide:
/// names in a registry are written by strangers.
pub(crate) fn shown(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        let hides =
            matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
        if c.is_control() || hides {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_the_cursor_is_escaped() {
        assert_eq!(shown("用户 a-b"), "用户 a-b");
        assert_eq!(shown("a\u{1b}[2Jb\r\n\0"), "a\\u{1b}[2Jb\\r\\n\\u{0}");
        assert_eq!(shown("a\u{202e}b\u{9b}"), "a\\u{202e}b\\u{9b}");
    }
}
