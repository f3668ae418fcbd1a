//! A real Chromium, driven by chromedriver (W3C WebDriver).

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::process::Process;
use crate::zookeeper::free_port;

const CHROMIUM: &str = "/usr/bin/chromium";
const CHROMEDRIVER: &str = "/usr/bin/chromedriver";
/// How long anything may take on a busy machine.
const DEADLINE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(25);
const NETWORK_CHANGED: &str = "ERR_NETWORK_CHANGED";
/// What browsers do besides showing a page is not wanted: it would be traffic, and differ from one day to the next.
const FLAGS: &[&str] = &[
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--window-size=1440,1000",
    // The browser ends with what drives it, whatever ends that.
    "--remote-debugging-pipe",
];

/// A browser with one window and a profile of its own. It ends with this value.
#[derive(Debug)]
pub struct Browser {
    _driver: Process,
    folder: TempDir,
    port: u16,
    session: String,
    /// What has come onto the console, and has not been asked for yet.
    kept: Mutex<Vec<ConsoleLine>>,
}

/// A message on the browser's console.
#[derive(Debug, Clone)]
pub struct ConsoleLine {
    /// Where it comes from: `network` for a request that failed, `security`, `javascript`, `console-api`, …
    pub source: String,
    /// What it says.
    pub text: String,
}

impl Browser {
    /// Starts a browser, which shows nothing yet.
    pub async fn start() -> Browser {
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        // What it leaves in the temporary folder and in the user's stays in its own.
        let own = |variable: &str| format!("{variable}={}", folder.path().display());
        let variables = ["HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"].map(own);
        let driver = [CHROMEDRIVER.to_owned(), format!("--port={port}")];
        let command = [&["env".to_owned()][..], &variables, &driver].concat();
        let driver = Process::start(&command, folder.path(), &folder.path().join("chromedriver.log"));
        let mut browser = Browser { _driver: driver, folder, port, session: String::new(), kept: Mutex::default() };
        let start = Instant::now();
        while browser.send(Method::GET, "/status", None).await.is_none() {
            assert!(start.elapsed() < DEADLINE, "chromedriver does not answer; see {}", browser.log().display());
            sleep(POLL).await;
        }
        let profile = format!("--user-data-dir={}", browser.folder.path().join("profile").display());
        let mut flags: Vec<&str> = FLAGS.to_vec();
        flags.push(&profile);
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "goog:loggingPrefs": {"browser": "ALL"},
            "goog:chromeOptions": {"binary": CHROMIUM, "args": flags},
        }}});
        let session = browser.call(Method::POST, "/session", wanted).await;
        browser.session = session["sessionId"].as_str().expect("a session").to_owned();
        // The browser's own first page complains where there is no network.
        browser.open("about:blank").await;
        browser.console().await;
        browser
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("chromedriver.log")
    }

    /// Goes to an address, and returns when the page has been loaded.
    ///
    /// Where a network comes or goes on this machine, the namespaces of another test's for instance, a browser gives up all that
    /// it is loading, from this machine too: then it is loaded again, as a user would do it.
    pub async fn open(&self, url: &str) {
        let start = Instant::now();
        loop {
            self.keep_console().await;
            let before = self.kept.lock().unwrap().len();
            let opened = self.try_call(Method::POST, &self.path("/url"), json!({ "url": url })).await;
            self.keep_console().await;
            if !self.forget_interruption(before, &opened) {
                opened.unwrap_or_else(|error| panic!("{url}: {error}"));
                return;
            }
            assert!(start.elapsed() < DEADLINE, "{url}: the network does not stop to change");
            // Where only what follows a # is another, or nothing is, nothing is loaded anew.
            self.command("/url", json!({"url": "about:blank"})).await;
        }
    }

    /// Whether the network has changed meanwhile. Then what else the page has complained of is forgotten.
    fn forget_interruption(&self, before: usize, opened: &Result<Value, String>) -> bool {
        let mut kept = self.kept.lock().unwrap();
        let mut errors = kept[before..].iter().map(|line| &line.text).chain(opened.as_ref().err());
        let interrupted = errors.any(|error| error.contains(NETWORK_CHANGED));
        if interrupted {
            kept.truncate(before);
        }
        interrupted
    }

    /// Runs a script (the body of a function) in the page; what it returns.
    pub async fn run(&self, script: &str) -> Value {
        self.command("/execute/sync", json!({"script": script, "args": []})).await
    }

    /// Waits until an expression of the page's is true, or something else that is not nothing; what it is.
    ///
    /// # Panics
    ///
    /// When that does not come, with what the page shows.
    pub async fn wait_for(&self, expression: &str) -> Value {
        let start = Instant::now();
        loop {
            let value = self.run(&format!("return {expression}")).await;
            if !matches!(value, Value::Null | Value::Bool(false)) {
                return value;
            }
            if start.elapsed() > DEADLINE {
                let page = self.run("return document.body.innerText").await;
                panic!("never came: {expression}\nconsole: {:?}\npage: {page}", self.console().await);
            }
            sleep(POLL).await;
        }
    }

    /// Clicks on the first element that fits, as a user does: it must be in sight, or come there by scrolling.
    pub async fn click(&self, selector: &str) {
        let element = self.find(selector).await;
        self.command(&format!("/element/{element}/click"), json!({})).await;
    }

    /// Types into the first element that fits.
    pub async fn type_into(&self, selector: &str, text: &str) {
        let element = self.find(selector).await;
        self.command(&format!("/element/{element}/value"), json!({ "text": text })).await;
    }

    /// Presses keys one after the other, wherever the focus is. For those without a character see WebDriver, "keyboard actions".
    pub async fn press(&self, keys: &str) {
        let each = |key: char| [json!({"type": "keyDown", "value": key}), json!({"type": "keyUp", "value": key})];
        let actions: Vec<Value> = keys.chars().flat_map(each).collect();
        self.command("/actions", json!({"actions": [{"type": "key", "id": "keys", "actions": actions}]})).await;
    }

    /// Waits for the first element that fits a CSS selector; its id.
    async fn find(&self, selector: &str) -> String {
        let quoted = Value::from(selector);
        self.wait_for(&format!("document.querySelector({quoted}) !== null")).await;
        let found = self.command("/element", json!({"using": "css selector", "value": selector})).await;
        let id = found.as_object().and_then(|found| found.values().next()).and_then(Value::as_str);
        id.expect("the id of an element").to_owned()
    }

    /// Makes the page as large as a screen of so many pixels; below 500 a phone's.
    pub async fn resize(&self, width: u32, height: u32) {
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500});
        self.devtools("Emulation.setDeviceMetricsOverride", metrics).await;
    }

    /// What the user prefers: a media feature of CSS, such as `prefers-color-scheme`, `dark`.
    pub async fn prefer(&self, feature: &str, value: &str) {
        let features = json!({"features": [{"name": feature, "value": value}]});
        self.devtools("Emulation.setEmulatedMedia", features).await;
    }

    async fn devtools(&self, command: &str, parameters: Value) {
        self.command("/goog/cdp/execute", json!({"cmd": command, "params": parameters})).await;
    }

    /// What can be seen, as PNG.
    pub async fn screenshot(&self) -> Vec<u8> {
        let picture = self.call(Method::GET, &self.path("/screenshot"), Value::Null).await;
        decode(picture.as_str().expect("a picture"))
    }

    /// What has come onto the console since this was last asked.
    pub async fn console(&self) -> Vec<ConsoleLine> {
        self.keep_console().await;
        std::mem::take(&mut *self.kept.lock().unwrap())
    }

    /// The browser says each line once.
    async fn keep_console(&self) {
        let lines = self.command("/se/log", json!({"type": "browser"})).await;
        let text = |line: &Value, key: &str| line[key].as_str().unwrap_or_default().to_owned();
        let lines = lines.as_array().into_iter().flatten();
        let lines = lines.map(|line| ConsoleLine { source: text(line, "source"), text: text(line, "message") });
        self.kept.lock().unwrap().extend(lines);
    }

    async fn command(&self, path: &str, body: Value) -> Value {
        self.call(Method::POST, &self.path(path), body).await
    }

    fn path(&self, path: &str) -> String {
        format!("/session/{}{path}", self.session)
    }

    async fn call(&self, method: Method, path: &str, body: Value) -> Value {
        self.try_call(method, path, body).await.unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// What the browser answers, or which error.
    async fn try_call(&self, method: Method, path: &str, body: Value) -> Result<Value, String> {
        let body = (!body.is_null()).then_some(body);
        let sent = tokio::time::timeout(DEADLINE * 2, self.send(method, path, body.as_ref())).await;
        let answer = sent.unwrap_or_else(|_| panic!("chromedriver is too slow: {path}"));
        let mut answer = answer.unwrap_or_else(|| panic!("chromedriver does not answer: {path}"));
        let value = answer["value"].take();
        let error = value.get("error").and_then(Value::as_str);
        match error {
            Some(error) => Err(format!("{body:?}: {error}: {}", value["message"])),
            None => Ok(value),
        }
    }

    /// One request on a connection of its own; `None` when nobody answers.
    async fn send(&self, method: Method, path: &str, body: Option<&Value>) -> Option<Value> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await.ok()?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
        let connection = tokio::spawn(connection);
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = Request::builder().method(method).uri(path);
        let request = request.header(HOST, format!("127.0.0.1:{}", self.port)).header(CONTENT_TYPE, "application/json");
        let response = sender.send_request(request.body(Full::new(Bytes::from(body))).unwrap()).await.ok()?;
        let answer = response.into_body().collect().await.ok()?.to_bytes();
        connection.abort();
        serde_json::from_slice(&answer).ok()
    }
}

/// Base64 (RFC 4648), as WebDriver sends pictures.
fn decode(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut held, mut bits) = (0_u32, 0);
    for byte in text.bytes() {
        let digit = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => continue,
        };
        held = held << 6 | u32::from(digit);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((held >> bits & 0xff) as u8);
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::decode;

    #[test]
    fn base64() {
        for (text, bytes) in [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYmFy", "foobar")] {
            assert_eq!(decode(text), bytes.as_bytes());
        }
    }
}
