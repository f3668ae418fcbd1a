//! Users and their passwords.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use argon2::password_hash::phc::PasswordHash;
use argon2::{Argon2, Params, PasswordHasher as _, PasswordVerifier as _};

/// Users with the hashes of their passwords (Argon2id, as PHC strings). Cheap to clone.
#[derive(Clone, Default)]
pub struct Users {
    hashes: Arc<BTreeMap<String, PasswordHash>>,
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

/// Maximum memory for one hash, in KiB, and of passes over it: a file is not to stop the broker.
const MOST_MEMORY: u32 = 256 << 10;
const MOST_PASSES: u32 = 32;

impl Users {
    /// Reads the text of a file with a `USER:HASH` a line, as `pointsman mqtt passwd` writes them. Empty lines, and those that begin with
    /// `#`, are passed over.
    ///
    /// # Errors
    ///
    /// A line that is no user with a hash, or a user that is there twice, or no user at all.
    pub fn parse(text: &str) -> Result<Users, InvalidUsers> {
        let mut hashes = BTreeMap::new();
        for (line, content) in (1..).zip(text.lines()) {
            if content.trim().is_empty() || content.trim_start().starts_with('#') {
                continue;
            }
            let wrong = |reason| InvalidUsers { line, reason };
            let (user, hash) = content.split_once(':').ok_or(wrong("is not USER:HASH"))?;
            if user.is_empty() || hash.is_empty() {
                return Err(wrong("has an empty user or hash; it should be USER:HASH"));
            }
            let hash = hash_of(hash.trim_end()).map_err(wrong)?;
            if hashes.insert(user.to_owned(), hash).is_some() {
                return Err(wrong("names a user that an earlier line has named"));
            }
        }
        if hashes.is_empty() {
            let reason = "there is no user; `pointsman mqtt passwd FILE USER` adds one";
            return Err(InvalidUsers { line: 1, reason });
        }
        Ok(Users { hashes: Arc::new(hashes) })
    }

    /// Adds a user, or changes the password. That takes as long as a password's check, some 20 ms.
    #[must_use]
    pub fn with(mut self, user: impl Into<String>, password: impl AsRef<[u8]>) -> Users {
        if let Some(hash) = hash(password.as_ref()) {
            Arc::make_mut(&mut self.hashes).insert(user.into(), hash);
        }
        self
    }

    /// Removes a user.
    #[must_use]
    pub fn without(mut self, user: &str) -> Users {
        Arc::make_mut(&mut self.hashes).remove(user);
        self
    }

    /// Returns the hash of a password, as it stands in a file behind the user; `None` where the system gives no random numbers.
    #[must_use]
    pub fn hash(password: &[u8]) -> Option<String> {
        hash(password).map(|hash| hash.to_string())
    }

    /// Whether that is the user's password. How long it takes, some 20 ms, does not tell whether the user exists.
    #[must_use]
    pub fn admits(&self, user: &str, password: &[u8]) -> bool {
        let known = self.hashes.get(user);
        // The hash of a user that does not exist is somebody's, so that it costs the same; what comes of it does not count.
        let Some(hash) = known.or_else(|| self.hashes.values().next()) else { return false };
        Argon2::default().verify_password(password, hash).is_ok() & known.is_some()
    }

    /// Whether there is such a user.
    #[must_use]
    pub fn contains(&self, user: &str) -> bool {
        self.hashes.contains_key(user)
    }

    /// Whether the user has the same password here as there, as far as the hashes tell.
    pub(super) fn agree(&self, other: &Users, user: &str) -> bool {
        self.hashes.get(user) == other.hashes.get(user)
    }

    /// The hash of a user's password.
    pub(super) fn stored(&self, user: &str) -> Option<String> {
        self.hashes.get(user).map(ToString::to_string)
    }
}

fn hash(password: &[u8]) -> Option<PasswordHash> {
    Argon2::default().hash_password(password).ok()
}

fn hash_of(text: &str) -> Result<PasswordHash, &'static str> {
    if !text.starts_with('$') {
        return Err(
            "has a password as it is: they are kept as hashes; `pointsman mqtt passwd FILE USER` writes the line anew",
        );
    }
    let hash = PasswordHash::new(text).map_err(|_| "has a hash that cannot be read")?;
    if hash.algorithm.as_str() != "argon2id" {
        return Err("has a hash that is not of argon2id; `pointsman mqtt passwd FILE USER` writes the line anew");
    }
    let params = Params::try_from(&hash).map_err(|_| "has a hash that cannot be read")?;
    if hash.salt.is_none() || hash.hash.is_none() {
        return Err("has a hash without a salt or a value");
    }
    if params.m_cost() > MOST_MEMORY || params.t_cost() > MOST_PASSES {
        return Err("has a hash that takes more than 256 MiB or 32 passes to check");
    }
    Ok(hash)
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
        let text = format!(
            "# users\n\nanna:{}\nbert:{}\n",
            Users::hash(b"secret").unwrap(),
            Users::hash(b" with space:and colon ").unwrap()
        );
        assert!(!text.contains("secret") && text.contains("$argon2id$v=19$"), "{text}");
        let users = Users::parse(&text).unwrap();
        assert!(users.admits("anna", b"secret") && users.admits("bert", b" with space:and colon "));
        for (user, password) in
            [("anna", "secre"), ("anna", "secretsecret"), ("anna", ""), ("carl", "secret"), ("", "")]
        {
            assert!(!users.admits(user, password.as_bytes()), "{user} {password}");
        }
        assert_eq!(format!("{users:?}"), "Users(…)");
    }

    #[test]
    fn a_wrong_line_is_named_and_not_shown() {
        let good = format!("a:{}", Users::hash(b"b").unwrap());
        for (text, line) in [
            (format!("{good}\nsecret\n"), 2),
            (format!("{good}\n{good}"), 2),
            (format!("{good}\nanna:secret"), 2),
            (":x".to_owned(), 1),
            ("x:".to_owned(), 1),
            ("x:$argon2id$secret".to_owned(), 1),
            ("x:$2b$12$secretsecretsecretsecre".to_owned(), 1),
            (format!("{good}\n{}", good.replace("a:", "b:").replace("m=19456", "m=4000000")), 2),
            ("# nobody\n".to_owned(), 1),
            (String::new(), 1),
        ] {
            let error = Users::parse(&text).unwrap_err();
            assert_eq!(error.line, line, "{text}");
            assert!(!error.to_string().contains("secret"));
        }
    }
}
