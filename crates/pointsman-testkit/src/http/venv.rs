//! Programs of Python that come from PyPI.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// By its path: another Python may have no venv.
const PYTHON: &str = "/usr/bin/python3";
const OFFLINE: &str = "POINTSMAN_OFFLINE";
pub(super) const WITHOUT_NETWORK: &str = "where there is no network, set POINTSMAN_OFFLINE=1 to do without";

/// A folder with Python packages of certain versions.
#[derive(Debug, Clone)]
pub struct Venv {
    folder: PathBuf,
}

impl Venv {
    /// The packages of these requirements (`name==version`, one a line), in a folder `name` under `folder`. They are installed once: the
    /// next time they are there already, and need no network. `None` when they are not, and `POINTSMAN_OFFLINE=1` says that they
    /// cannot be got; that is printed.
    ///
    /// # Panics
    /// When they cannot be installed.
    #[must_use]
    pub fn of(folder: &Path, name: &str, requirements: &str) -> Option<Venv> {
        let venv = Venv { folder: folder.join(name) };
        let is_there = once(&venv.folder, requirements, || {
            let folder = venv.folder.display().to_string();
            succeed(Command::new(PYTHON).args(["-m", "venv", &folder]), "it needs python3 and python3-venv");
            let file = venv.folder.join("wanted.txt");
            fs::write(&file, requirements).unwrap();
            let mut pip = Command::new(venv.python());
            pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"]).arg(file);
            succeed(&mut pip, WITHOUT_NETWORK);
        });
        is_there.then_some(venv)
    }

    /// A script in it, and where it is.
    pub(super) fn script(&self, name: &str, text: &str) -> PathBuf {
        let script = self.folder.join(name);
        if !fs::read_to_string(&script).is_ok_and(|there| there == text) {
            // Others may be reading it.
            let new = self.folder.join(format!("{name}-{:016x}", fastrand::u64(..)));
            fs::write(&new, text).unwrap();
            fs::rename(&new, &script).unwrap();
        }
        script
    }

    /// Its Python.
    #[must_use]
    pub fn python(&self) -> PathBuf {
        self.program("python")
    }

    /// A program of one of its packages.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.folder.join("bin").join(name)
    }
}

/// Installs something into a folder, unless this (`wanted`) is there already. Whether it is there then: it is not when it is missing and
/// `POINTSMAN_OFFLINE=1`.
pub(super) fn once(folder: &Path, wanted: &str, install: impl FnOnce()) -> bool {
    // Tests run side by side, in one process and in several.
    let lock = File::create(folder.with_extension("lock")).unwrap();
    lock.lock().unwrap();
    let done = folder.join("installed.txt");
    if fs::read_to_string(&done).is_ok_and(|there| there == wanted) {
        return true;
    }
    if std::env::var(OFFLINE).is_ok_and(|value| value == "1") {
        println!("skipped: {} is not there yet, and {OFFLINE}=1 says that it cannot be got", folder.display());
        return false;
    }
    // What an attempt before has left may be half of it.
    let _ = fs::remove_dir_all(folder);
    fs::create_dir(folder).unwrap();
    install();
    fs::write(done, wanted).unwrap();
    true
}

/// Runs a command to its end, which must be a good one.
pub(super) fn succeed(command: &mut Command, hint: &str) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}; {hint}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}; {hint}");
}
