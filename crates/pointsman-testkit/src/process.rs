//! A process that ends with the test process, whatever ends that.

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// Runs the command behind it. Its standard input is a pipe that only the test process holds: when that ends, by `kill -9` as
/// well, the pipe does, and the command is killed and its folder removed. What waits for that comes before the `echo`, which
/// ends the shell when the test process is no longer there to read it. SIGHUP is what the kernel sends to the group when the test
/// process dies while the command is stopped.
const WATCHDOG: &str = r#"
folder=$1; log=$2; shift 2
trap '' HUP
exec 3<&0
"$@" </dev/null >>"$log" 2>&1 3<&- &
command=$!
( cat <&3; kill -9 $command; while kill -0 $command; do sleep 0.01; done; rm -rf "$folder" ) >/dev/null 2>&1 &
echo $command
wait $command
"#;

/// A running command with its watchdog; killed on drop.
#[derive(Debug)]
pub(crate) struct Process {
    /// A process group of its own.
    watchdog: Child,
    command: Pid,
}

impl Process {
    /// Starts `command` (program and arguments), with its output in `log`; `folder` is removed when the test process dies.
    pub(crate) fn start(command: &[String], folder: &Path, log: &Path) -> Process {
        OpenOptions::new().create(true).append(true).open(log).unwrap();
        let mut watchdog = Command::new("sh")
            .args(["-c", WATCHDOG, "watchdog"])
            .args([folder, log])
            .args(command)
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("start sh");
        let mut line = String::new();
        BufReader::new(watchdog.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let pid = line.trim().parse().unwrap_or_else(|_| panic!("no process id from the watchdog of {command:?}"));
        Process { watchdog, command: Pid::from_raw(pid).unwrap() }
    }

    /// Whether the command still runs (stopped counts as running).
    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.watchdog.try_wait(), Ok(None))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.command.as_raw_nonzero().get().unsigned_abs()
    }

    /// SIGSTOP. On a busy machine it takes a while until it has reached every thread, so this waits for that.
    pub(crate) fn pause(&self) {
        kill_process(self.command, Signal::STOP).expect("SIGSTOP");
        let start = Instant::now();
        while !self.is_stopped() {
            assert!(start.elapsed() < Duration::from_secs(10), "process {} does not stop", self.pid());
            sleep(Duration::from_millis(1));
        }
    }

    /// Whether every thread has stopped.
    fn is_stopped(&self) -> bool {
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid())).expect("the threads of a process");
        threads.flatten().all(|thread| {
            let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            stat.contains(") T ")
        })
    }

    /// SIGCONT.
    pub(crate) fn resume(&self) {
        kill_process(self.command, Signal::CONT).expect("SIGCONT");
    }

    /// Nothing happens to a command that has ended by itself.
    pub(crate) fn signal(&self, signal: Signal) {
        let _ = kill_process(self.command, signal);
    }
}

impl Drop for Process {
    /// SIGKILL for all of the group, so that the watchdog has no time to remove the folder.
    fn drop(&mut self) {
        let group = Pid::from_child(&self.watchdog);
        let _ = kill_process_group(group, Signal::KILL);
        drop(self.watchdog.wait());
        // The command is the watchdog's child, not ours: it is gone when its entry is, or is a zombie that init has to reap.
        for _ in 0..500 {
            let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
            if stat.is_empty() || stat.contains(") Z ") || stat.contains(") X ") {
                break;
            }
            sleep(Duration::from_millis(2));
        }
    }
}

/// Runs a short command to its end; panics with its output when it fails.
pub(crate) fn run(command: &[&str]) {
    let output = Command::new(command[0]).args(&command[1..]).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{}: {error}", command.join(" ")));
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {}: {message}", command.join(" "), output.status);
}
