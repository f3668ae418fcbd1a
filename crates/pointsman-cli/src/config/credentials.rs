//! What the environment says beside the file: user name and password for brokers whose URLs have none themselves, and the
//! agent's tokens where the file names no files.

use std::fs;

use pointsman::mqtt::Credentials;

use super::Config;

const USER: &str = "POINTSMAN_MQTT_USER";
const PASSWORD: &str = "POINTSMAN_MQTT_PASSWORD";
const PASSWORD_FILE: &str = "POINTSMAN_MQTT_PASSWORD_FILE";

pub(super) const READ_TOKEN: &str = "POINTSMAN_AGENT_READ_TOKEN";
pub(super) const WRITE_TOKEN: &str = "POINTSMAN_AGENT_WRITE_TOKEN";

/// The variables that hold a secret themselves.
pub(crate) const SECRETS: [&str; 3] = [PASSWORD, READ_TOKEN, WRITE_TOKEN];

/// The agent's tokens, as they stand in the environment. Never shown: it has no `Debug`.
#[derive(Clone, Default)]
pub(crate) struct Tokens {
    pub(super) read: Option<String>,
    pub(super) write: Option<String>,
}

impl Tokens {
    /// What the variables say.
    pub(crate) fn from_environment() -> Self {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self { read: variable(READ_TOKEN), write: variable(WRITE_TOKEN) }
    }
}

/// What the variables say of brokers. The file is read anew each time.
pub(crate) fn from_environment() -> Result<Option<Credentials>, String> {
    read(|name| std::env::var(name).ok())
}

fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Credentials>, String> {
    let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
    let password = match (variable(PASSWORD), variable(PASSWORD_FILE)) {
        (Some(_), Some(_)) => return Err(format!("{PASSWORD} and {PASSWORD_FILE} are both set; set one of them")),
        (None, Some(path)) => {
            let text = fs::read_to_string(&path).map_err(|error| format!("{PASSWORD_FILE}: read {path}: {error}"))?;
            Some(text.trim_end_matches(['\r', '\n']).to_owned())
        }
        (password, None) => password,
    };
    match (variable(USER), password) {
        (None, None) => Ok(None),
        (None, Some(_)) => Err(format!("a password for brokers is set without {USER}")),
        (Some(user), password) => Ok(Some(Credentials::new(user, password.unwrap_or_default()))),
    }
}

impl Config {
    /// Gives user name and password to the brokers whose URLs have none.
    pub(crate) fn with_credentials(mut self, credentials: Option<&Credentials>) -> Self {
        if let Some(mqtt) = &mut self.mqtt {
            let with = |url: pointsman::mqtt::BrokerUrl| url.or_credentials(credentials.cloned());
            let settings = &mut mqtt.settings;
            settings.ingress = settings.ingress.take().map(with);
            settings.egress = std::mem::take(&mut settings.egress).into_iter().map(with).collect();
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Result<Option<Credentials>, String> {
        read(|name| variables.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn user_and_password_come_together() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        fs::write(&path, "geheim\n").unwrap();
        let path = path.to_str().unwrap();
        assert_eq!(of(&[]), Ok(None));
        assert_eq!(of(&[(USER, ""), (PASSWORD, "")]), Ok(None));
        assert_eq!(of(&[(USER, "u")]), Ok(Some(Credentials::new("u", ""))));
        assert_eq!(of(&[(USER, "u"), (PASSWORD, "p")]), Ok(Some(Credentials::new("u", "p"))));
        assert_eq!(of(&[(USER, "u"), (PASSWORD_FILE, path)]), Ok(Some(Credentials::new("u", "geheim"))));
        for wrong in [
            &[(PASSWORD, "geheim")][..],
            &[(USER, "u"), (PASSWORD, "geheim"), (PASSWORD_FILE, path)],
            &[(USER, "u"), (PASSWORD_FILE, "/does/not/exist")],
        ] {
            let error = of(wrong).unwrap_err();
            assert!(error.contains("POINTSMAN_MQTT_") && !error.contains("geheim"), "{error}");
        }
    }
}
