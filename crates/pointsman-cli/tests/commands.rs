//! Every command of the READMEs and of `--help` is run as it is written; only addresses of machines that are not there are replaced.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::path::{Path, PathBuf};
use std::process::Stdio;

use pointsman_testkit::http::EchoOrigin;
use pointsman_testkit::{Mosquitto, ZooKeeper, unique_prefix};
use rustix::process::{Pid, Signal, kill_process_group};
use support::served::free_port;
use support::{DEADLINE, run, stdout};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// Commands of the READMEs that are not run here, and where they are.
const ELSEWHERE: [(&str, &str); 3] = [
    ("cargo run -- dev", "tests/usage.rs runs dev and its tour; cargo has built what is tested here"),
    ("cargo xtask test", "it is what runs this test"),
    ("cargo install", "it would replace what is installed on this machine"),
];

/// A block of code in a document.
struct Block {
    language: String,
    lines: Vec<String>,
}

fn blocks(document: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut block = None::<Block>;
    for line in document.lines() {
        match (line.strip_prefix("```"), &mut block) {
            (Some(language), None) => block = Some(Block { language: language.to_owned(), lines: Vec::new() }),
            (Some(_), Some(_)) => blocks.extend(block.take()),
            (None, Some(block)) => block.lines.push(line.to_owned()),
            (None, None) => {}
        }
    }
    blocks
}

/// The commands of a block: lines that end with a backslash go on, comments are left out.
fn commands(block: &Block) -> Vec<String> {
    let text = block.lines.join("\n").replace("\\\n", " ");
    let lines = text.lines().map(|line| line.split_once("  #").map_or(line, |(command, _)| command).trim().to_owned());
    lines.filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
}

/// The servers that stand for those of the documents.
struct World {
    zookeeper: String,
    _mosquitto: Mosquitto,
    _origin: EchoOrigin,
    replaced: Vec<(&'static str, String)>,
    folder: tempfile::TempDir,
    variables: Vec<(String, String)>,
}

impl World {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(".curlrc"), "silent\nshow-error\nmax-time = 5\n").unwrap();
        let zookeeper = format!("zookeeper://{}/{}", ZooKeeper::shared().await.address(), unique_prefix());
        let mosquitto = Mosquitto::start().await;
        let origin = EchoOrigin::start("ress").await;
        let (agent, proxy) = (free_port(), free_port());
        let replaced = vec![
            ("zookeeper://10.0.0.1:2181,10.0.0.2:2181,10.0.0.3:2181/micro-service", zookeeper.clone()),
            ("zookeeper://10.0.0.1:2181/micro-service", zookeeper.clone()),
            ("10.0.1.7:8080", origin.address().to_string()),
            ("10.0.0.7:80", origin.address().to_string()),
            ("./my-service", "sleep 1000".to_owned()),
            ("./ress", "sleep 1000".to_owned()),
            ("--above TERM", "--above 1".to_owned()),
            ("127.0.0.1:7480", format!("127.0.0.1:{agent}")),
            ("10.0.2.1:80", format!("127.0.0.1:{proxy}")),
            ("http://10.0.2.1/", format!("http://127.0.0.1:{proxy}/")),
            ("mqtt://10.0.1.1:1883", mosquitto.url()),
        ];
        let variables = Vec::new();
        Self { zookeeper, _mosquitto: mosquitto, _origin: origin, replaced, folder, variables }
    }

    fn put_in(&self, text: &str) -> String {
        self.replaced.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
    }

    /// A command line in a shell that finds the command under test, as a process group of its own.
    fn shell(&self, line: &str, folder: &Path) -> Command {
        let binaries = Path::new(env!("CARGO_BIN_EXE_pointsman")).parent().unwrap().display().to_string();
        let mut shell = Command::new("sh");
        shell.args(["-c", line]).current_dir(folder).process_group(0).kill_on_drop(true);
        shell.env("PATH", format!("{binaries}:{}", std::env::var("PATH").unwrap()));
        shell.env("CURL_HOME", self.folder.path()).env("HOME", self.folder.path()).env_remove("XDG_RUNTIME_DIR");
        shell.envs(self.variables.iter().cloned());
        shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        shell
    }
}

/// Returns the word that a long-running command prints once it works, or `None` for a command that ends by itself.
fn goes_on(line: &str) -> Option<&'static str> {
    let starts = |start: &str| line.starts_with(start);
    match () {
        () if starts("pointsman serve") => Some("ready"),
        () if starts("pointsman register") && line.contains("-o json") => Some("\"role\""),
        () if starts("pointsman register") => Some(" is "),
        () if starts("pointsman watch") => Some("ress"),
        () => None,
    }
}

/// A command that goes on.
struct GoesOn {
    line: String,
    child: Child,
}

impl GoesOn {
    /// Returns once it has said the word.
    async fn start(mut shell: Command, line: &str, word: &str) -> Self {
        let mut child = shell.spawn().unwrap();
        let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let said = async {
            tokio::select! {
                true = says(stdout, word) => {}
                true = says(stderr, word) => {}
                else => panic!("{line}: ended without {word:?}"),
            }
        };
        timeout(DEADLINE, said).await.unwrap_or_else(|_| panic!("{line}: no {word:?}"));
        Self { line: line.to_owned(), child }
    }

    async fn end(mut self) {
        let pid = i32::try_from(self.child.id().unwrap()).unwrap();
        kill_process_group(Pid::from_raw(pid).unwrap(), Signal::TERM).unwrap();
        let ended = timeout(DEADLINE, self.child.wait()).await;
        ended.unwrap_or_else(|_| panic!("{}: does not end", self.line)).unwrap();
    }
}

/// Reads until a line has the word, and goes on reading, so that the pipe does not fill up.
async fn says(pipe: impl AsyncRead + Unpin + Send + 'static, word: &str) -> bool {
    let mut lines = BufReader::new(pipe).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if line.contains(word) {
            tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
            return true;
        }
    }
    false
}

/// Runs every command of a README, and returns how many there are.
async fn carry_out(name: &str) -> usize {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(name);
    let document = std::fs::read_to_string(path).unwrap();
    let mut world = World::start().await;
    let mut folder = PathBuf::from(world.folder.path());
    let (mut going_on, mut count) = (Vec::new(), 0);
    for (index, block) in blocks(&document).into_iter().enumerate() {
        if block.language == "toml" {
            // Its first line is its name. The commands after it run in its folder.
            folder = world.folder.path().join(index.to_string());
            std::fs::create_dir(&folder).unwrap();
            let name = block.lines[0].strip_prefix("# ").unwrap();
            std::fs::write(folder.join(name), world.put_in(&block.lines.join("\n"))).unwrap();
        }
        if block.language != "sh" {
            continue;
        }
        for line in commands(&block) {
            count += 1;
            if ELSEWHERE.iter().any(|(start, _)| line.starts_with(start)) {
                continue;
            }
            if let Some((variable, value)) = line.strip_prefix("export ").and_then(|pair| pair.split_once('=')) {
                world.variables.push((variable.to_owned(), world.put_in(value.trim_matches('\''))));
                continue;
            }
            let line = world.put_in(&line);
            if line.contains("$CODE") {
                let code = code_of_first("ress", &world.zookeeper).await;
                world.variables.push(("CODE".to_owned(), code));
            }
            let mut shell = world.shell(&line, &folder);
            if let Some(word) = goes_on(&line) {
                going_on.push(GoesOn::start(shell, &line, word).await);
                continue;
            }
            let output = timeout(DEADLINE, shell.output()).await;
            let output = output.unwrap_or_else(|_| panic!("{line}: does not end")).unwrap();
            // A stream of curl's is looked at for a moment: 28 is its word for the time that is over.
            let expected = if line.contains("curl -N") { 28 } else { 0 };
            assert_eq!(output.status.code(), Some(expected), "{line}: {output:?}");
        }
    }
    for command in going_on.into_iter().rev() {
        command.end().await;
    }
    count
}

async fn code_of_first(service: &str, registry: &str) -> String {
    let output = run(&["instances", service, "-o", "json", "--registry", registry]).await;
    let instances: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    instances[0]["code"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn the_commands_of_the_readme() {
    assert_eq!(carry_out("README.md").await, 26);
}

#[tokio::test]
async fn the_commands_of_the_chinese_readme() {
    assert_eq!(carry_out("README.zh-CN.md").await, 26);
}

/// Examples of `--help` that are not run here, and why.
const NOT_RUN: [(&str, &str); 6] = [
    ("pointsman mqtt passwd", "tests/mqtt_users.rs runs it: it asks for a password"),
    ("pointsman resign", "tests/agent.rs runs it: only an agent can"),
    ("pointsman deregister", "tests/agent.rs runs it: only an agent can"),
    ("pointsman dev", "tests/usage.rs runs dev and its tour"),
    ("pointsman services --registry OLD -o json | jq", "jq need not be installed"),
    ("pointsman --help", "it is where the examples come from"),
];

/// The names of the commands, as `--help` lists them.
async fn command_names() -> Vec<String> {
    let help = stdout(&run(&["--help"]).await);
    let list = help.split_once("Commands:\n").unwrap().1.split("\n\n").next().unwrap().to_owned();
    let names = list.lines().filter_map(|line| line.strip_prefix("  ").filter(|rest| !rest.starts_with(' ')));
    names.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

/// The examples of a command.
async fn examples_of(name: &str) -> Vec<String> {
    let help = stdout(&run(&[name, "--help"]).await);
    let Some((_, examples)) = help.split_once("Examples:\n") else { return Vec::new() };
    let examples = examples.lines().map(|line| line.split("   #").next().unwrap().trim().to_owned());
    examples.filter(|line| line.starts_with("pointsman ")).collect()
}

#[tokio::test]
async fn every_command_has_examples_and_each_works() {
    let mut world = World::start().await;
    let folder = PathBuf::from(world.folder.path());
    let registry = world.zookeeper.clone();
    world.variables.push(("POINTSMAN_REGISTRY".to_owned(), registry.clone()));
    world.replaced.push(("NEW", registry));
    let agent = "[agent]\nlisten = '127.0.0.1:0'\n";
    std::fs::write(folder.join("p.toml"), agent).unwrap();
    let beside = world.shell("pointsman register ress --code ress-1", &folder);
    let mut going_on = vec![GoesOn::start(beside, "register", "master").await];
    for name in command_names().await {
        let examples = examples_of(&name).await;
        assert!(!examples.is_empty() || ["help", "clear-overrides"].contains(&&*name), "{name} has no example");
        for line in examples {
            if NOT_RUN.iter().any(|(start, _)| line.starts_with(start)) {
                continue;
            }
            let line = world.put_in(&line);
            let shell = world.shell(&line, &folder);
            match goes_on(&line) {
                Some(word) => going_on.push(GoesOn::start(shell, &line, word).await),
                None => ends_well(shell, &line).await,
            }
        }
    }
    for command in going_on.into_iter().rev() {
        command.end().await;
    }
}

async fn ends_well(mut shell: Command, line: &str) {
    let output = timeout(DEADLINE, shell.output()).await;
    let output = output.unwrap_or_else(|_| panic!("{line}: does not end")).unwrap();
    assert_eq!(output.status.code(), Some(0), "{line}: {output:?}");
}
