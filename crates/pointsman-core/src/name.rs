//! Names: of services and codes of instances.

/// The longest name of a service, and the longest code, in bytes of UTF-8.
pub const MAX_NAME_BYTES: usize = 255;

/// Why a name of a service, or a code, is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {name:?} {reason}; {RULE}")]
pub struct InvalidName {
    /// What was to be named: `service` or `code`.
    pub what: &'static str,
    /// The name as it was given, cut after 64 characters.
    pub name: String,
    /// What is wrong with it.
    pub reason: String,
}

const RULE: &str = "a name has 1 to 255 bytes, is neither `.` nor `..`, and has no `/`, `+`, `#`, `$`, white space, \
                    control or private-use character, and none above U+FFFF (such as an emoji)";

/// Checks a name of a service, or a code, against the one rule that both follow.
///
/// The rule is what all the places allow where a name ends up: a path element of ZooKeeper (no `/`, no control or
/// private-use character, none above U+FFFF, neither `.` nor `..`), a topic level of MQTT (no `+`, `#`, `/`, `$`, NUL), a path segment of a
/// URL, a file name.
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
        format!("has {bad:?} in it")
    } else {
        return Ok(());
    };
    Err(InvalidName { what, name: name.chars().take(64).collect(), reason })
}

fn allowed(c: char) -> bool {
    let special = matches!(c, '/' | '+' | '#' | '$');
    // ZooKeeper refuses these ranges in paths: it sees a character above U+FFFF as its two surrogates.
    let refused_by_zookeeper = matches!(c, '\u{e000}'..='\u{f8ff}' | '\u{fff0}'..);
    !(special || refused_by_zookeeper || c.is_control() || c.is_whitespace())
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
    fn bad_names_are_refused_with_the_rule() {
        let long = "x".repeat(MAX_NAME_BYTES + 1);
        for name in
            ["", ".", "..", "a/b", "a+", "#", "$SYS", "a\0b", "a b", "a\n", "\u{e000}", "\u{fff0}", "\u{1f600}", &long]
        {
            let error = check_name("code", name).unwrap_err().to_string();
            assert!(error.contains("code"), "{error}");
            assert!(error.contains("1 to 255 bytes"), "{error}");
            assert!(error.len() < 500, "{error}");
        }
    }
}
