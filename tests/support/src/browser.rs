//! A real browser: Debian's `chromium` without a window, driven over its DevTools protocol
//! (<https://chromedevtools.github.io/devtools-protocol/>). Tests that need it are skipped where it is not installed.

use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{skip, tenant::Folder, until, within};

/// The protocol goes over pipes. So it needs no port, and the browser ends when the pipes close, however the test ends.
const SCRIPT: &str = "exec chromium \"$@\" 3<&0 4>&1 </dev/null >/dev/null 2>\"$0\"";

const FLAGS: [&str; 11] = [
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--window-size=1280,900",
];

/// How often the browser is started until it runs.
const STARTS: usize = 3;
/// How long the browser may take to end by itself.
const GRACE: Duration = Duration::from_secs(5);

/// A browser with one page.
pub struct Browser {
    process: Child,
    commands: Option<ChildStdin>,
    messages: mpsc::UnboundedReceiver<Value>,
    /// Events that the test has not asked for yet, oldest first.
    events: VecDeque<Value>,
    session: Option<String>,
    commanded: u64,
    /// The browser's profile, removed after the browser has ended.
    profile: Folder,
}

/// What a page requested and logged.
#[derive(Default)]
pub struct Seen {
    /// The addresses of requests and WebSockets.
    pub urls: Vec<String>,
    /// What was logged as wrong with the page itself.
    pub faults: Vec<String>,
    /// What was logged about requests that failed.
    pub failed: Vec<String>,
}

impl Browser {
    /// Starts the browser, if it is installed.
    pub async fn start() -> Option<Self> {
        skip::need("chromium")?;
        // On a busy machine it sometimes crashes before its first page, which says nothing of the relay.
        for attempt in 1..STARTS {
            match Self::try_start().await {
                Ok(browser) => return Some(browser),
                Err(error) => eprintln!("start {attempt} of the browser: {error}"),
            }
        }
        Some(Self::try_start().await.unwrap())
    }

    async fn try_start() -> Result<Self, String> {
        let profile = Folder::empty();
        let home = profile.path("home");
        let mut command = Command::new("sh");
        command.arg("-c").arg(SCRIPT).arg(profile.path("log")).args(FLAGS).arg("about:blank");
        command.arg(format!("--user-data-dir={}", home.display())).process_group(0);
        command.env("HOME", &home).env("XDG_CONFIG_HOME", &home).env("XDG_CACHE_HOME", &home);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (commands, answers) = (process.stdin.take(), process.stdout.take().unwrap());
        let (sender, messages) = mpsc::unbounded_channel();
        thread::spawn(move || {
            for message in BufReader::new(answers).split(0).map_while(Result::ok) {
                let Ok(message) = serde_json::from_slice(&message) else { return };
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        let mut browser =
            Self { process, commands, messages, events: VecDeque::new(), session: None, commanded: 0, profile };
        let target = browser.try_command("Target.createTarget", json!({ "url": "about:blank" })).await?;
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = browser.try_command("Target.attachToTarget", attach).await?;
        browser.session = Some(attached["sessionId"].as_str().unwrap().to_owned());
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.try_command(&format!("{domain}.enable"), json!({})).await?;
        }
        Ok(browser)
    }

    /// Runs a script in each page before the page's own.
    pub async fn before_pages(&mut self, script: &str) {
        self.command("Page.addScriptToEvaluateOnNewDocument", json!({ "source": script })).await;
    }

    pub async fn open(&mut self, url: &str) {
        let opened = self.command("Page.navigate", json!({ "url": url })).await;
        assert_eq!(opened.get("errorText"), None, "{url}: {opened}");
    }

    /// Returns the value of a JavaScript expression in the page.
    pub async fn value(&mut self, expression: &str) -> Value {
        match self.try_value(expression).await {
            Ok(value) => value,
            Err(error) => panic!("{expression}: {error}"),
        }
    }

    /// Waits until the expression is true.
    pub async fn sees(&mut self, expression: &str) {
        until(expression, async || match self.try_value(expression).await {
            Ok(Value::Bool(true)) => Ok(()),
            // The page may not be loaded yet.
            Err(error) => Err(error),
            Ok(_) => Err(format!("{:?}", self.try_value("document.body.innerText").await)),
        })
        .await;
    }

    /// Returns the value of an expression, or what it throws.
    pub async fn try_value(&mut self, expression: &str) -> Result<Value, String> {
        let evaluate = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let mut answer = self.try_command("Runtime.evaluate", evaluate).await?;
        match answer.get("exceptionDetails") {
            None => Ok(answer["result"]["value"].take()),
            Some(exception) => Err(exception.to_string()),
        }
    }

    /// Gives the page a screen of this size, in CSS pixels.
    pub async fn screen(&mut self, width: u32, height: u32, mobile: bool) {
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 2, "mobile": mobile });
        self.command("Emulation.setDeviceMetricsOverride", metrics).await;
    }

    /// Saves a picture of the whole page for people to look at, if `EDGE_RELAY_PICTURES` names a folder.
    pub async fn picture(&mut self, name: &str) {
        let Some(folder) = std::env::var_os("EDGE_RELAY_PICTURES") else { return };
        for scheme in ["light", "dark"] {
            let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
            self.command("Emulation.setEmulatedMedia", json!({ "features": features })).await;
            let answer = self.command("Page.captureScreenshot", json!({ "captureBeyondViewport": true })).await;
            let picture = BASE64_STANDARD.decode(answer["data"].as_str().unwrap()).unwrap();
            std::fs::write(Path::new(&folder).join(format!("{name}-{scheme}.png")), picture).unwrap();
        }
    }

    /// Returns all that was seen since the last call.
    pub async fn seen(&mut self) -> Seen {
        // The answer comes after the events before it.
        self.value("null").await;
        let mut seen = Seen::default();
        for event in self.events.drain(..) {
            let parameters = &event["params"];
            match event["method"].as_str().unwrap_or_default() {
                "Network.requestWillBeSent" => {
                    seen.urls.push(parameters["request"]["url"].as_str().unwrap().to_owned())
                }
                "Network.webSocketCreated" => seen.urls.push(parameters["url"].as_str().unwrap().to_owned()),
                "Log.entryAdded" if parameters["entry"]["source"] == "network" => {
                    seen.failed.push(parameters["entry"].to_string());
                }
                "Log.entryAdded" | "Runtime.consoleAPICalled" | "Runtime.exceptionThrown" => {
                    seen.faults.push(parameters.to_string());
                }
                _ => {}
            }
        }
        seen
    }

    async fn command(&mut self, method: &str, parameters: Value) -> Value {
        match self.try_command(method, parameters).await {
            Ok(result) => result,
            Err(error) => panic!("{method}: {error}"),
        }
    }

    async fn try_command(&mut self, method: &str, parameters: Value) -> Result<Value, String> {
        self.commanded += 1;
        let id = self.commanded;
        let mut command = json!({ "id": id, "method": method, "params": parameters });
        if let Some(session) = &self.session {
            command["sessionId"] = json!(session);
        }
        let pipe = self.commands.as_mut().unwrap();
        let written = pipe.write_all(format!("{command}\0").as_bytes());
        let answer = async {
            loop {
                let message = self.messages.recv().await?;
                if message["id"] == id {
                    return Some(message);
                }
                self.events.push_back(message);
            }
        };
        let Some(mut answer) = within(method, answer).await else {
            let log = std::fs::read_to_string(self.profile.path("log")).unwrap_or_default();
            return Err(format!("{method}: the browser has ended ({written:?}):\n{log}"));
        };
        match answer.get("error") {
            None => Ok(answer["result"].take()),
            Some(error) => Err(error.to_string()),
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        drop(self.commands.take());
        let asked = Instant::now();
        while asked.elapsed() < GRACE && matches!(self.process.try_wait(), Ok(None)) {
            thread::sleep(Duration::from_millis(10));
        }
        // Kills the browser's own child processes too.
        let _ = kill_process_group(Pid::from_child(&self.process), Signal::KILL);
        let _ = self.process.wait();
    }
}
