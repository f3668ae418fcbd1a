//! Who may connect.

use std::collections::HashMap;
use std::fmt;

/// Users with their passwords.
#[derive(Clone, Default)]
pub struct Users {
    passwords: HashMap<String, String>,
}

/// A line that names no user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct InvalidUsers {
    /// Which, from 1.
    pub line: usize,
    /// What is wrong, and what would be right. Without the line's text, which may be a password.
    pub reason: &'static str,
}

impl Users {
    /// Reads the text of a file with a `user:password` a line. Empty lines, and those that begin with `#`, are passed over. A
    /// password may have colons in it; it ends with its line.
    ///
    /// # Errors
    ///
    /// A line that is no user with a password, or a user that is there twice, or no user at all.
    pub fn parse(text: &str) -> Result<Users, InvalidUsers> {
        let mut passwords = HashMap::new();
        for (line, content) in (1..).zip(text.lines()) {
            if content.trim().is_empty() || content.trim_start().starts_with('#') {
                continue;
            }
            let wrong = |reason| InvalidUsers { line, reason };
            let (user, password) = content.split_once(':').ok_or(wrong("is not user:password"))?;
            if user.is_empty() || password.is_empty() {
                return Err(wrong("has an empty user or password; it should be user:password"));
            }
            if passwords.insert(user.to_owned(), password.to_owned()).is_some() {
                return Err(wrong("names a user that an earlier line has named"));
            }
        }
        if passwords.is_empty() {
            return Err(InvalidUsers { line: 1, reason: "there is no user; a line should be user:password" });
        }
        Ok(Users { passwords })
    }

    /// Adds a user, or changes the password.
    #[must_use]
    pub fn with(mut self, user: impl Into<String>, password: impl Into<String>) -> Users {
        self.passwords.insert(user.into(), password.into());
        self
    }

    /// Whether that is the user's password. How long it takes does not tell how much of it is right, nor whether the user exists.
    #[must_use]
    pub fn admits(&self, user: &str, password: &[u8]) -> bool {
        let known = self.passwords.get(user);
        let expected = known.map_or("no such user", String::as_str);
        same(expected.as_bytes(), password) & known.is_some()
    }
}

/// Looks at every byte of `given`, whatever it finds.
fn same(expected: &[u8], given: &[u8]) -> bool {
    let mut difference = u8::from(expected.len() != given.len());
    for (place, byte) in given.iter().enumerate() {
        difference |= byte ^ expected.get(place % expected.len().max(1)).copied().unwrap_or_default();
        difference = std::hint::black_box(difference);
    }
    difference == 0
}

/// Shows neither users nor passwords.
impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Users(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_password_admits() {
        let users = Users::parse("# who\n\nanna:secret\nbert: with space:and colon \n").unwrap();
        assert!(users.admits("anna", b"secret") && users.admits("bert", b" with space:and colon "));
        for (user, password) in
            [("anna", "secre"), ("anna", "secretsecret"), ("anna", ""), ("carl", "no such user"), ("", "")]
        {
            assert!(!users.admits(user, password.as_bytes()), "{user} {password}");
        }
        assert_eq!(format!("{users:?}"), "Users(…)");
    }

    #[test]
    fn a_wrong_line_is_named_and_not_shown() {
        for (text, line) in [("a:b\nsecret\n", 2), ("a:b\na:c", 2), (":x", 1), ("x:", 1), ("# nobody\n", 1), ("", 1)] {
            let error = Users::parse(text).unwrap_err();
            assert_eq!(error.line, line, "{text}");
            assert!(!error.to_string().contains("secret"));
        }
    }
}
