//! `pointsman mqtt passwd`: the users of the embedded broker.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::ExitCode;
use std::thread;

use pointsman::mqtt::broker::Users;
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use tokio::sync::oneshot;

use crate::args::Passwd;
use crate::failure::Failure;
use crate::signals::Signals;
use crate::{Outcome, output};

/// Maximum length of a password in bytes: what MQTT can send.
const MAX_PASSWORD: usize = 65_535;

/// Changes a user's line, and leaves all others as they are.
pub(crate) async fn run(args: &Passwd) -> Outcome {
    let Passwd { file, user, delete } = args;
    check(user)?;
    let fail = |error: io::Error| Failure::new(format!("{}: {error}", file.display()));
    let before = match fs::read_to_string(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !delete => String::new(),
        read => read.map_err(fail)?,
    };
    let is_known = before.lines().any(|line| is_of(line, user));
    if *delete && !is_known {
        return Err(Failure::new(format!("{} has no user {user:?}", file.display())));
    }
    let hash = if *delete { None } else { Some(hash(&password(user).await?)?) };
    write(file, &edited(&before, user, hash.as_deref())).map_err(fail)?;
    let done = match (delete, is_known) {
        (true, _) => "deleted from",
        (false, true) => "has another password in",
        (false, false) => "added to",
    };
    output::note(&format!("{} {done} {}", output::shown(user), file.display()));
    Ok(ExitCode::SUCCESS)
}

fn check(user: &str) -> Result<(), Failure> {
    let is_unfit = user.is_empty() || user.starts_with('#') || user.trim() != user;
    if is_unfit || user.contains(|c: char| c == ':' || c.is_control()) {
        return Err(Failure::usage(format!(
            "{user:?} cannot be a user: no colons, no control characters, no # or space at its begin"
        )));
    }
    Ok(())
}

fn hash(password: &[u8]) -> Result<String, Failure> {
    Users::hash(password).ok_or_else(|| Failure::new("the system gives no random numbers"))
}

fn is_of(line: &str, user: &str) -> bool {
    line.split_once(':').is_some_and(|(name, _)| name == user)
}

/// The text of the file with another line of the user, or without it.
fn edited(text: &str, user: &str, hash: Option<&str>) -> String {
    let mut line = hash.map(|hash| format!("{user}:{hash}"));
    let mut lines: Vec<String> = Vec::new();
    for old in text.lines() {
        if is_of(old, user) {
            lines.extend(line.take());
        } else {
            lines.push(old.to_owned());
        }
    }
    lines.extend(line);
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// Writes the file at once: whoever reads it finds the one text or the other, and nobody else can read it.
fn write(path: &Path, text: &str) -> io::Result<()> {
    // A link stays one.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
    let beside = path.with_file_name(format!(".{name}.{:016x}", fastrand::u64(..)));
    let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    let renamed = written.and_then(|()| fs::rename(&beside, &path));
    if renamed.is_err() {
        let _ = fs::remove_file(&beside);
        return renamed;
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

/// Reads the password: twice from a terminal, which does not show it, or a line from whatever else stdin is.
async fn password(user: &str) -> Result<Vec<u8>, Failure> {
    let is_terminal = io::stdin().is_terminal();
    let password = if is_terminal {
        let password = asked(&format!("Password of {}: ", output::shown(user))).await?;
        if asked("The same again: ").await? != password {
            return Err(Failure::new("the two are not the same: nothing is changed"));
        }
        password
    } else {
        line()?
    };
    if password.is_empty() {
        return Err(Failure::new("the password is empty: nothing is changed"));
    }
    if password.len() > MAX_PASSWORD {
        return Err(Failure::new(format!("the password is longer than {MAX_PASSWORD} bytes: nothing is changed")));
    }
    Ok(password)
}

fn line() -> Result<Vec<u8>, Failure> {
    let mut line = Vec::new();
    let read = io::stdin().lock().read_until(b'\n', &mut line);
    read.map_err(|error| Failure::new(format!("read the password from stdin: {error}")))?;
    let end = line.iter().rposition(|byte| !matches!(byte, b'\n' | b'\r')).map_or(0, |last| last + 1);
    line.truncate(end);
    Ok(line)
}

/// Asks on the terminal, which shows nothing meanwhile. A signal ends that, and leaves the terminal as it was.
async fn asked(question: &str) -> Result<Vec<u8>, Failure> {
    let fail = |error: io::Error| Failure::new(format!("read the password from the terminal: {error}"));
    let mut signals = Signals::listen()?;
    let _silence = Silence::new().map_err(fail)?;
    let mut stderr = io::stderr();
    stderr.write_all(question.as_bytes()).and_then(|()| stderr.flush()).map_err(fail)?;
    // On a thread that may be left behind: nothing else ends a read from a terminal.
    let (sender, read) = oneshot::channel();
    thread::spawn(move || sender.send(line()));
    let line = tokio::select! {
        line = read => line.unwrap_or_else(|_| Err(Failure::hurried())),
        _ = signals.next() => Err(Failure::hurried()),
    };
    output::note("");
    line
}

/// A terminal that does not show what is typed, until this is dropped.
struct Silence(rustix::termios::Termios);

impl Silence {
    fn new() -> io::Result<Self> {
        let stdin = io::stdin();
        let before = tcgetattr(&stdin)?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO | LocalModes::ECHONL);
        tcsetattr(&stdin, OptionalActions::Flush, &silent)?;
        Ok(Self(before))
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn one_line_is_changed_and_the_rest_stays() {
        let text = "# users\nanna:x\n\nbert:y";
        assert_eq!(edited(text, "bert", Some("z")), "# users\nanna:x\n\nbert:z\n");
        assert_eq!(edited(text, "carl", Some("z")), "# users\nanna:x\n\nbert:y\ncarl:z\n");
        assert_eq!(edited(text, "anna", None), "# users\n\nbert:y\n");
        assert_eq!(edited("", "anna", Some("x")), "anna:x\n");
    }

    #[test]
    fn the_file_is_replaced_and_readable_by_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("users"), folder.path().join("link"));
        write(&file, "a").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        std::os::unix::fs::symlink("users", &link).unwrap();
        write(&link, "b").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "b");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing is left beside it");
    }

    #[test]
    fn names_that_would_be_another_line_are_refused() {
        for user in ["", "a:b", "#a", " a", "a\nb", "a\u{7}"] {
            assert!(check(user).is_err(), "{user:?}");
        }
        assert!(check("anna b@x.example").is_ok());
    }
}
