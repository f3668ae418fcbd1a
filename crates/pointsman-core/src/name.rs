//! Names: of services and codes of instances.

/// The longest name of a service, and the longest code, in bytes of UTF-8.
pub const MAX_NAME_BYTES: usize = 255;

/// Why a name of a service, or a code, is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {} {reason}; {RULE}", shown(&format!("{name:?}")))]
#[non_exhaustive]
pub struct InvalidName {
    /// What was to be named: `service` or `code`.
    pub what: &'static str,
    /// The name as it was given, cut after 64 characters.
    pub name: String,
    /// What is wrong with it.
    pub reason: String,
}

const RULE: &str = "a name has 1 to 255 bytes, is neither `.` nor `..`, and has no `/`, `+`, `#`, `$`, white space, \
                    control, invisible or private-use character, and none above U+FFFF (such as an emoji)";

/// Checks a name of a service, or a code, against the one rule that both follow.
///
/// The rule is what all the places allow where a name ends up: a path element of ZooKeeper (no `/`, no control or
/// private-use character, none above U+FFFF, neither `.` nor `..`), a topic level of MQTT (no `+`, `#`, `/`, `$`, NUL), a path segment of a
/// URL, a file name. And no [invisible character](is_invisible), so that two names that look alike are the same.
///
/// # Errors
///
/// [`InvalidName`], which says what is wrong and what the rule is.
pub fn check_name(what: &'static str, name: &str) -> Result<(), InvalidName> {
    let reason = if name.is_empty() {
        "is empty".to_owned()
    } else if name.len() > MAX_NAME_BYTES {
        format!("has {} bytes", name.len())
    } else if name == "." || name == ".." {
        "is a relative path".to_owned()
    } else if let Some(bad) = name.chars().find(|&c| !allowed(c)) {
        shown(&format!("has {bad:?} in it"))
    } else {
        return Ok(());
    };
    Err(InvalidName { what, name: name.chars().take(64).collect(), reason })
}

fn allowed(c: char) -> bool {
    let special = matches!(c, '/' | '+' | '#' | '$');
    // ZooKeeper refuses these ranges in paths: it sees a character above U+FFFF as its two surrogates.
    let refused_by_zookeeper = matches!(c, '\u{e000}'..='\u{f8ff}' | '\u{fff0}'..);
    !(special || refused_by_zookeeper || c.is_control() || c.is_whitespace() || is_invisible(c))
}

/// Whether a character is not seen itself, or changes the order in which others are shown: all of Unicode's general category Cf
/// (format: zero-width and bidirectional characters, the soft hyphen, tags; Unicode 16.0, `DerivedGeneralCategory.txt`), and the letters
/// and marks that are always drawn as nothing (`Default_Ignorable_Code_Point` of `DerivedCoreProperties.txt`, without the variation
/// selectors, which belong to emoji).
///
/// Names, codes and tags with such a character are not registered; whoever shows a text that somebody else has written escapes it.
///
/// ```
/// use pointsman_core::is_invisible;
///
/// assert!(is_invisible('\u{202e}') && is_invisible('\u{200b}') && !is_invisible('用'));
/// ```
#[must_use]
pub fn is_invisible(c: char) -> bool {
    let format = matches!(c,
        '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{890}'..='\u{891}' | '\u{8e2}' | '\u{180e}'
        | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2064}' | '\u{2066}'..='\u{206f}' | '\u{feff}'
        | '\u{fff9}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1343f}' | '\u{1bca0}'..='\u{1bca3}'
        | '\u{1d173}'..='\u{1d17a}' | '\u{e0001}' | '\u{e0020}'..='\u{e007f}');
    let drawn_as_nothing = matches!(
        c,
        '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{2065}' | '\u{3164}' | '\u{ffa0}'
    );
    format || drawn_as_nothing
}

/// The text as it can be shown to people: with every character escaped that could move the cursor, change colours, break the line,
/// change the order of what is shown, or hide (`\u{202e}`).
///
/// ```
/// assert_eq!(pointsman_core::shown("a\u{1b}[2J\u{202e}b"), "a\\u{1b}[2J\\u{202e}b");
/// ```
#[must_use]
pub fn shown(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') || is_invisible(c) {
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
    fn ordinary_names_pass() {
        for name in
            ["ress", "cacd3aa4-4eb8-4bf6-b967-fbcee5377992", "用户", "a.b", "...", "127.0.0.1:50000", "[::1]:80"]
        {
            check_name("service", name).unwrap();
        }
        check_name("service", &"x".repeat(MAX_NAME_BYTES)).unwrap();
    }

    #[test]
    fn what_moves_the_cursor_or_hides_is_escaped() {
        assert_eq!(shown("用户 a-b"), "用户 a-b");
        assert_eq!(shown("a\u{1b}[2Jb\r\n\0"), "a\\u{1b}[2Jb\\r\\n\\u{0}");
        assert_eq!(shown("a\u{202e}b\u{9b}\u{e0041}"), "a\\u{202e}b\\u{9b}\\u{e0041}");
    }

    #[test]
    fn bad_names_are_refused_with_the_rule() {
        let long = "x".repeat(MAX_NAME_BYTES + 1);
        for name in [
            "",
            ".",
            "..",
            "a/b",
            "a+",
            "#",
            "$SYS",
            "a\0b",
            "a b",
            "a\n",
            "\u{e000}",
            "\u{fff0}",
            "\u{1f600}",
            "a\u{200b}",
            "\u{202e}a",
            "a\u{ad}b",
            "\u{feff}a",
            "\u{3164}",
            &long,
        ] {
            let error = check_name("code", name).unwrap_err().to_string();
            assert!(error.contains("code"), "{error}");
            assert!(error.contains("1 to 255 bytes"), "{error}");
            assert!(error.len() < 500 && !error.chars().any(is_invisible), "{error}");
        }
    }
}
