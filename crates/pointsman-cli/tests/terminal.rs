//! `dev`, and what asks for passwords, on a terminal, under a shell with job control.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// Far longer than anything takes on a slow machine.
const DEADLINE: Duration = Duration::from_secs(30);
const POINTSMAN: &str = env!("CARGO_BIN_EXE_pointsman");
const ENTERS: &str = "\x1b[?1049h";
const LEAVES: &str = "\x1b[?1049l";

/// A shell on a terminal of its own.
struct Shell {
    terminal: File,
    child: Child,
    output: Receiver<Vec<u8>>,
    seen: String,
}

impl Shell {
    fn start(runtime_folder: &Path, environment: &[(&str, &str)]) -> Self {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&terminal).unwrap();
        unlockpt(&terminal).unwrap();
        let name = ptsname(&terminal, Vec::new()).unwrap().into_string().unwrap();
        let side = || Stdio::from(OpenOptions::new().read(true).write(true).open(&name).unwrap());
        let mut command = Command::new("setsid");
        command.args(["--ctty", "sh", "-i", "-m"]).stdin(side()).stdout(side()).stderr(side());
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("TERM", "xterm-256color").env("PS1", "$ ").env("XDG_RUNTIME_DIR", runtime_folder);
        command.envs(environment.iter().copied());
        let child = command.spawn().unwrap();
        let terminal = File::from(terminal);
        let mut reader = terminal.try_clone().unwrap();
        let (sender, output) = channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 8192];
            // Ends with an error when the last process on the terminal has gone.
            while let Ok(read) = reader.read(&mut bytes) {
                if sender.send(bytes[..read].to_vec()).is_err() {
                    return;
                }
            }
        });
        let shell = Self { terminal, child, output, seen: String::new() };
        shell.resize(80, 24);
        shell
    }

    fn types(&mut self, text: &str) {
        self.terminal.write_all(text.as_bytes()).unwrap();
    }

    fn resize(&self, columns: u16, rows: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.terminal, size).unwrap();
    }

    /// Reads on until the words are there, and returns all up to their end.
    fn until(&mut self, words: &str) -> String {
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some(at) = self.seen.find(words) {
                let rest = self.seen.split_off(at + words.len());
                return std::mem::replace(&mut self.seen, rest);
            }
            let left = end.saturating_duration_since(Instant::now());
            let bytes = self.output.recv_timeout(left);
            let bytes = bytes.unwrap_or_else(|_| panic!("no {words:?} in {:?}", self.seen));
            self.seen.push_str(&String::from_utf8_lossy(&bytes));
        }
    }

    /// Waits until the shell itself reads what is typed. Before its prompt, what is typed may still be the program's, which throws it away.
    fn until_it_listens(&mut self) {
        self.until("$ ");
        self.types("echo listening-$((1+1))\r");
        self.until("listening-2");
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_view_follows_its_size_and_keys_and_gives_the_terminal_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut shell = Shell::start(folder.path(), &[]);
    shell.types(&format!("{POINTSMAN} dev\r"));
    shell.until(ENTERS);
    shell.until("ress-1 is master");
    assert!(shell.until("ress-3").contains("ADDRESS"), "there is room for that");

    shell.resize(40, 10);
    shell.until("\x1b[2J");
    shell.until(" q quit  k kill master");
    shell.resize(80, 24);
    shell.until("d drain/undrain  a algorithm");

    shell.types(&"n".repeat(20));
    shell.until("more are hidden");
    shell.types("\x1b[6~");
    shell.until(" > ress-12");
    shell.types("\x1b[5~");
    shell.until(" > ress-2");

    // Ctrl-Z.
    shell.types("\x1a");
    shell.until(LEAVES);
    shell.until_it_listens();
    shell.types("fg\r");
    shell.until(ENTERS);
    shell.until("ress-1 is master");

    shell.types("q");
    shell.until(LEAVES);
    shell.until_it_listens();
}

#[test]
fn the_commands_beside_it_find_its_registry_while_it_runs() {
    let folder = tempfile::tempdir().unwrap();
    let mut shell = Shell::start(folder.path(), &[("NO_COLOR", "1")]);
    shell.types(&format!("{POINTSMAN} dev\r"));
    shell.until(ENTERS);
    let picture = shell.until("ress-3");
    assert!(!picture.contains("\x1b[38;5;"), "colours: {picture:?}");
    let services = || {
        let mut command = Command::new(POINTSMAN);
        command.args(["services", "-o", "json"]).env_remove("POINTSMAN_REGISTRY").env("XDG_RUNTIME_DIR", folder.path());
        command.output().unwrap()
    };
    let output = services();
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.starts_with("note: using the registry of `pointsman dev` at http://127.0.0.1:"), "{told}");
    assert!(String::from_utf8(output.stdout).unwrap().contains("\"http-balancer\""));
    shell.types("q");
    shell.until(LEAVES);
    shell.until_it_listens();
    assert!(!String::from_utf8(services().stderr).unwrap().contains("pointsman dev` at"), "it has ended");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_terminal_that_cannot_be_drawn_on_gets_lines() {
    let folder = tempfile::tempdir().unwrap();
    let mut shell = Shell::start(folder.path(), &[("TERM", "dumb")]);
    shell.types(&format!("{POINTSMAN} dev\r"));
    let lines = shell.until("ress ress-1 is master");
    assert!(!lines.contains(ENTERS), "{lines:?}");
    // Ctrl-C.
    shell.types("\x03");
    shell.until_it_listens();
}

#[test]
fn a_password_is_asked_for_and_not_shown() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("users");
    let mut shell = Shell::start(folder.path(), &[]);
    let asks = format!("{POINTSMAN} mqtt passwd {} anna\r", file.display());
    let mut seen = String::new();
    for (again, end) in [("hidden", "added to"), ("another", "not the same")] {
        shell.types(&asks);
        for (question, answer) in [("Password of anna: ", "hidden"), ("The same again: ", again)] {
            seen += &shell.until(question);
            shell.types(&format!("{answer}\r"));
        }
        seen += &shell.until(end);
    }
    assert!(!seen.contains("hidden") && !seen.contains("another"), "{seen:?}");
    assert!(std::fs::read_to_string(&file).unwrap().starts_with("anna:$argon2id$"));
    // Ctrl-C leaves a terminal that shows what is typed.
    shell.types(&asks);
    shell.until("Password of anna: ");
    shell.types("\x03");
    shell.until("$ ");
    shell.types("echo shown-$((1+1))\r");
    shell.until("echo shown-$((1+1))");
    shell.until("shown-2");
}

#[test]
fn the_tour_can_be_read_along_at_a_pace() {
    let folder = tempfile::tempdir().unwrap();
    let mut shell = Shell::start(folder.path(), &[]);
    shell.types(&format!("{POINTSMAN} dev --tour --pace 1ms\r"));
    shell.until("All 21 steps were as expected");
}
