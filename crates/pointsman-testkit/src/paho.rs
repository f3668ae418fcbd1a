//! An MQTT client that is none of ours: Eclipse Paho for Python, of Debian's package, in a process of its own.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use crate::process::Process;

mod message;
mod options;

pub use message::PahoMessage;
pub use options::{Echo, PahoOptions, PahoSubscription};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Debian's Python: another one does not find Debian's modules.
const PYTHON: &str = "/usr/bin/python3";
const LIBRARY: &str = "/usr/lib/python3/dist-packages/paho/mqtt/client.py";
const SCRIPT: &str = include_str!("paho.py");

/// A process with one MQTT client in it, which sends, receives, or answers as a service. Killed on drop.
///
/// Methods take `&self` and may overlap. They panic where the process has ended or gives no answer within 30 seconds.
#[derive(Debug)]
pub struct Paho {
    process: Option<Process>,
    folder: TempDir,
    commands: UnboundedSender<String>,
    answers: Arc<Mutex<Answers>>,
    messages: tokio::sync::Mutex<UnboundedReceiver<PahoMessage>>,
    events: tokio::sync::Mutex<UnboundedReceiver<PahoEvent>>,
}

/// How a broker has answered CONNECT.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PahoConnack {
    /// 0 is success; the other codes depend on the protocol's version.
    pub reason: u8,
    /// Whether the broker had kept a session.
    pub session_present: bool,
    /// MQTT 5: the properties by Paho's names, such as `AssignedClientIdentifier` or `ReceiveMaximum`.
    pub properties: Value,
}

/// What happens to a connection without a command.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PahoEvent {
    /// Paho has reconnected by itself.
    Connected(PahoConnack),
    /// The connection is gone.
    Disconnected {
        /// What the broker's DISCONNECT said; `None` when there was none.
        reason: Option<u8>,
    },
}

/// Who waits for what the process says.
#[derive(Debug, Default)]
struct Answers {
    last: u64,
    waiting: HashMap<u64, oneshot::Sender<Value>>,
    ended: bool,
}

impl Paho {
    /// Starts the process, which is connected to nothing yet.
    ///
    /// # Panics
    /// When it does not start; its log is in the message.
    pub async fn start() -> Paho {
        for (file, package) in [(PYTHON, "python3"), (LIBRARY, "python3-paho-mqtt")] {
            assert!(Path::new(file).exists(), "{file} is missing; `cargo xtask test` installs it (package {package})");
        }
        let folder = tempfile::Builder::new().prefix("pointsman-paho-").tempdir().unwrap();
        // A script named paho.py would hide the module.
        let (script, socket) = (folder.path().join("driver.py"), folder.path().join("socket"));
        fs::write(&script, SCRIPT).unwrap();
        let listener = UnixListener::bind(&socket).unwrap();
        let command = [PYTHON, &script.to_string_lossy(), &socket.to_string_lossy()].map(str::to_owned);
        let mut process = Process::start(&command, folder.path(), &log_path(&folder));
        let (read, write) = accept(&listener, &mut process, &folder).await.into_split();
        let (commands, queue) = unbounded_channel();
        let (message_sender, messages) = unbounded_channel();
        let (event_sender, events) = unbounded_channel();
        let answers = Arc::<Mutex<Answers>>::default();
        tokio::spawn(say(queue, write));
        tokio::spawn(listen(read, answers.clone(), message_sender, event_sender));
        let (messages, events) = (messages.into(), events.into());
        Paho { process: Some(process), folder, commands, answers, messages, events }
    }

    /// Connects, in place of what it was connected to before.
    ///
    /// # Panics
    /// When the broker cannot be reached or turns it away.
    pub async fn connect(&self, options: PahoOptions) -> PahoConnack {
        let connack = self.try_connect(options).await.unwrap_or_else(|error| panic!("Paho cannot connect: {error}"));
        assert_eq!(connack.reason, 0, "Paho is turned away");
        connack
    }

    /// Connects; a CONNACK is `Ok` whatever it says, no CONNACK is an error.
    pub async fn try_connect(&self, options: PahoOptions) -> Result<PahoConnack, String> {
        to_connack(&self.ask("connect", json!({ "options": options })).await)
    }

    /// Connects once more as the same client, after the connection was lost or given up. What Paho has in flight is sent again.
    pub async fn reconnect(&self) -> Result<PahoConnack, String> {
        to_connack(&self.ask("reconnect", json!({})).await)
    }

    /// Sends DISCONNECT and closes. No event follows.
    pub async fn disconnect(&self) {
        self.ask("disconnect", json!({})).await;
    }

    /// Subscribes; returns the reason code of SUBACK, which is the QoS that is granted, or 0x80 and more.
    ///
    /// # Panics
    /// When the connection is lost before the acknowledgement.
    pub async fn subscribe(&self, filter: &str, qos: u8) -> u8 {
        self.subscribe_with(PahoSubscription::new(filter, qos)).await
    }

    /// The same with options of MQTT 5.
    pub async fn subscribe_with(&self, subscription: PahoSubscription) -> u8 {
        to_reason(&self.ask("subscribe", json!(subscription)).await).expect("an acknowledged subscription")
    }

    /// Unsubscribes; returns the reason code of UNSUBACK, 0 for MQTT 3.
    ///
    /// # Panics
    /// When the connection is lost before the acknowledgement.
    pub async fn unsubscribe(&self, filter: &str) -> u8 {
        to_reason(&self.ask("unsubscribe", json!({ "filter": filter })).await).expect("an acknowledged unsubscription")
    }

    /// Publishes, and returns the reason code of PUBACK, or of PUBREC and PUBCOMP; 0 for QoS 0 and for MQTT 3.
    ///
    /// # Panics
    /// When the connection is lost before the acknowledgement, or it takes longer than 30 seconds.
    pub async fn publish(&self, message: PahoMessage) -> u8 {
        self.try_publish(message).await.expect("an acknowledged message")
    }

    /// The same, where `None` says that the connection was lost, or not there, before the acknowledgement. Above QoS 0 the
    /// message is still Paho's to send when it is connected again. Paho that reconnects by itself answers when it has done so.
    pub async fn try_publish(&self, message: PahoMessage) -> Option<u8> {
        to_reason(&self.ask("publish", json!({ "message": message })).await)
    }

    /// From now on it is a service: it answers every message that has a response topic.
    pub async fn echo(&self, echo: Echo) {
        self.ask("echo", json!({ "echo": echo })).await;
    }

    /// From now on it is a service of go-micro-service with the given code: it subscribes to
    /// `/+/+/POST/+/configs/serverinfo/<code>/`, and answers a payload at `/<version>/<sender>/POST/<id>/...` by
    /// `echo[<code>]:<payload>` at `/<version>/<sender>/POST/<id>`. Returns the reason code of SUBACK.
    pub async fn envelope_echo(&self, code: &str, qos: u8) -> u8 {
        let answer = self.ask("envelope_echo", json!({ "code": code, "qos": qos })).await;
        to_reason(&answer).expect("an acknowledged subscription")
    }

    /// The next message that has come.
    ///
    /// # Panics
    /// When there is none for so long.
    pub async fn next_message(&self, within: Duration) -> PahoMessage {
        self.try_next_message(within).await.unwrap_or_else(|| panic!("no message within {within:?}\n{}", self.log()))
    }

    /// The next message that has come; `None` when there is none for so long.
    pub async fn try_next_message(&self, within: Duration) -> Option<PahoMessage> {
        timeout(within, async { self.messages.lock().await.recv().await }).await.ok().flatten()
    }

    /// The messages up to and with the first that `is_last` says yes to.
    ///
    /// # Panics
    /// When that has not come after so long; what has is in the message.
    pub async fn messages_until(
        &self,
        mut is_last: impl FnMut(&PahoMessage) -> bool,
        within: Duration,
    ) -> Vec<PahoMessage> {
        let start = Instant::now();
        let mut messages = Vec::new();
        loop {
            let Some(message) = self.try_next_message(within.saturating_sub(start.elapsed())).await else {
                panic!("not the last message within {within:?}, but {messages:?}\n{}", self.log());
            };
            let last = is_last(&message);
            messages.push(message);
            if last {
                return messages;
            }
        }
    }

    /// The next thing that happens to the connection without a command.
    ///
    /// # Panics
    /// When nothing does for so long.
    pub async fn next_event(&self, within: Duration) -> PahoEvent {
        let event = timeout(within, async { self.events.lock().await.recv().await }).await.ok().flatten();
        event.unwrap_or_else(|| panic!("no event within {within:?}\n{}", self.log()))
    }

    /// SIGKILL: the broker sees the connection end without a DISCONNECT. Of messages and events, what came before can be read.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// SIGSTOP, and waits until it has taken effect: from now on it neither reads nor acknowledges.
    pub fn pause(&self) {
        self.process.as_ref().expect("a running client").pause();
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.process.as_ref().expect("a running client").resume();
    }

    /// The process id while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// What the process has written to its standard error.
    fn log(&self) -> String {
        fs::read_to_string(log_path(&self.folder)).unwrap_or_default()
    }

    async fn ask(&self, what: &str, mut command: Value) -> Value {
        let (sender, answer) = oneshot::channel();
        let id = {
            let mut answers = self.answers.lock().unwrap();
            answers.last += 1;
            let id = answers.last;
            if !answers.ended {
                answers.waiting.insert(id, sender);
            }
            id
        };
        command["do"] = what.into();
        command["id"] = id.into();
        // An error is the same as no answer.
        let _ = self.commands.send(format!("{command}\n"));
        let answer = timeout(PATIENCE, answer).await;
        let answer =
            answer.unwrap_or_else(|_| panic!("Paho does not answer {command} within {PATIENCE:?}\n{}", self.log()));
        answer.unwrap_or_else(|_| panic!("Paho has ended before the answer to {command}\n{}", self.log()))
    }
}

fn log_path(folder: &TempDir) -> PathBuf {
    folder.path().join("paho.log")
}

/// Waits for the process to report.
async fn accept(listener: &UnixListener, process: &mut Process, folder: &TempDir) -> UnixStream {
    let ended = async {
        while process.is_running() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    let log = || fs::read_to_string(log_path(folder)).unwrap_or_default();
    tokio::select! {
        accepted = listener.accept() => accepted.unwrap().0,
        () = ended => panic!("Paho did not start:\n{}", log()),
        () = sleep(PATIENCE) => panic!("Paho has not started after {PATIENCE:?}:\n{}", log()),
    }
}

/// Whole lines, whichever caller gives up.
async fn say(mut commands: UnboundedReceiver<String>, mut write: OwnedWriteHalf) {
    while let Some(line) = commands.recv().await {
        if write.write_all(line.as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn listen(
    read: OwnedReadHalf,
    answers: Arc<Mutex<Answers>>,
    messages: UnboundedSender<PahoMessage>,
    events: UnboundedSender<PahoEvent>,
) {
    let mut lines = BufReader::new(read).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let mut said: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line} from Paho: {error}"));
        if let Some(id) = said["id"].as_u64() {
            let waiting = answers.lock().unwrap().waiting.remove(&id);
            // Who has asked may have given up.
            let _ = waiting.map(|waiting| waiting.send(said));
        } else if said["event"].is_string() {
            let _ = events.send(to_event(&said));
        } else {
            let message = serde_json::from_value(said["message"].take());
            let _ = messages.send(message.unwrap_or_else(|error| panic!("{line} from Paho: {error}")));
        }
    }
    let mut answers = answers.lock().unwrap();
    answers.ended = true;
    answers.waiting.clear();
}

fn to_connack(answer: &Value) -> Result<PahoConnack, String> {
    match answer["error"].as_str() {
        Some(error) => Err(error.to_owned()),
        None => Ok(PahoConnack {
            reason: to_reason(answer).expect("a reason"),
            session_present: answer["session_present"] == true,
            properties: answer["properties"].clone(),
        }),
    }
}

fn to_event(said: &Value) -> PahoEvent {
    match said["event"].as_str() {
        Some("connected") => PahoEvent::Connected(to_connack(said).expect("a CONNACK")),
        _ => PahoEvent::Disconnected { reason: to_reason(said) },
    }
}

fn to_reason(answer: &Value) -> Option<u8> {
    assert!(answer["error"].is_null(), "Paho refuses: {answer}");
    answer["reason"].as_u64().and_then(|reason| u8::try_from(reason).ok())
}
