//! Headless Chromium for tests of a page: opens an address, clicks elements and evaluates
//! expressions.
//!
//! The driver is `chromedriver`, which speaks [WebDriver](https://www.w3.org/TR/webdriver2/): one
//! JSON request per command. The crates for this protocol would add more code and licences than the
//! eight commands used here.

use std::io::{BufRead as _, BufReader};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::support::eventually::eventually_blocking;
use crate::support::http::ask;
use crate::support::services::skipped;

/// Flags for a run without a window, a first-run dialog or background network traffic.
const FLAGS: [&str; 9] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
];

/// A browser with one page. The browser ends when this value is dropped.
pub(crate) struct Browser {
    driver: Child,
    address: String,
    session: String,
    profile: PathBuf,
}

/// Remedy for a missing browser or driver.
const MISSING: &str =
    "install Chromium and its driver: on Debian, `apt-get install chromium chromium-driver`";

/// Returns `true` if Chromium and its driver are installed. Otherwise reports how to install them.
pub(crate) fn is_installed() -> bool {
    let is_there = |program: &str| {
        Command::new(program)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok()
    };
    if is_there("chromedriver")
        && (binary().is_some()
            || ["chrome", "google-chrome", "chromium"]
                .into_iter()
                .any(is_there))
    {
        return true;
    }
    skipped(
        "the pages of the console and of examples/shop are not tested without a browser",
        MISSING,
    );
    false
}

/// Returns the path at which distributions install the browser. The driver finds it elsewhere by
/// itself.
fn binary() -> Option<&'static str> {
    let binaries = [
        "/usr/bin/chromium",
        "/usr/bin/chromium-browser",
        "/usr/bin/google-chrome",
    ];
    binaries
        .into_iter()
        .find(|binary| Path::new(binary).exists())
}

impl Browser {
    /// Starts a browser and opens `url`.
    pub(crate) fn open(url: &str) -> Self {
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("chromedriver: {error}; {MISSING}"));
        let mut lines = BufReader::new(driver.stdout.take().expect("the output is piped"))
            .lines()
            .map_while(Result::ok);
        let port = lines.find_map(|line| {
            line.split_once("successfully on port ")
                .map(|(_, port)| port.to_owned())
        });
        let port = port.expect("chromedriver prints its port");
        // Drain the rest of the output, so that a full pipe cannot block the driver.
        std::thread::spawn(move || lines.for_each(drop));
        let address = format!("127.0.0.1:{}", port.trim_end_matches('.'));
        let profile =
            std::env::temp_dir().join(format!("tidings-browser-{}", uuid::Uuid::now_v7()));
        let mut flags: Vec<String> = FLAGS.map(str::to_owned).into();
        flags.push(format!("--user-data-dir={}", profile.display()));
        let mut options = json!({ "args": flags });
        if let Some(binary) = binary() {
            options["binary"] = binary.into();
        }
        let wanted = json!({
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": { "browser": "ALL" },
        });
        let mut browser = Self {
            driver,
            address,
            session: String::new(),
            profile,
        };
        let started = browser.try_command(
            "POST",
            "/session",
            &json!({ "capabilities": { "alwaysMatch": wanted } }),
        );
        let started = started.unwrap_or_else(|error| panic!("{error}; {MISSING}"));
        browser.session = format!("/session/{}", started["sessionId"].as_str().expect("an id"));
        browser.command("POST", "/url", &json!({ "url": url }));
        browser
    }

    /// Opens another address in the same browser.
    pub(crate) fn go(&self, url: &str) {
        self.command("POST", "/url", &json!({ "url": url }));
    }

    /// Selects the light or the dark colours.
    pub(crate) fn colours(&self, scheme: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.command(
            "POST",
            "/goog/cdp/execute",
            &json!({ "cmd": "Emulation.setEmulatedMedia", "params": { "features": features } }),
        );
    }

    /// Presses the tab key.
    pub(crate) fn tab(&self) {
        self.keys("\u{e004}");
    }

    /// Presses one key per character. `\u{e007}` is the enter key.
    pub(crate) fn keys(&self, keys: &str) {
        let keys: Vec<Value> = keys
            .chars()
            .flat_map(|key| {
                ["keyDown", "keyUp"].map(|kind| json!({ "type": kind, "value": key.to_string() }))
            })
            .collect();
        let actions = json!([{ "type": "key", "id": "keyboard", "actions": keys }]);
        self.command("POST", "/actions", &json!({ "actions": actions }));
    }

    /// Evaluates an expression in the page.
    pub(crate) fn value(&self, expression: &str) -> Value {
        self.command(
            "POST",
            "/execute/sync",
            &json!({ "script": format!("return {expression}"), "args": [] }),
        )
    }

    /// Clicks the first element that matches the selector, as soon as it can be clicked.
    pub(crate) fn click(&self, selector: &str) {
        self.until(&format!("{selector} can be clicked"), || {
            let element = self.try_command(
                "POST",
                &format!("{}/element", self.session),
                &json!({ "using": "css selector", "value": selector }),
            );
            let Ok(Value::Object(element)) = element else {
                return false;
            };
            let element = element
                .values()
                .next()
                .and_then(Value::as_str)
                .expect("an id");
            // The page may have redrawn the element since it was found.
            self.try_command(
                "POST",
                &format!("{}/element/{element}/click", self.session),
                &json!({}),
            )
            .is_ok()
        });
    }

    /// Waits until an expression of the page is `true`.
    pub(crate) fn until_true(&self, expression: &str) {
        self.until(expression, || self.value(expression) == true);
    }

    /// Sets the size of the window, in CSS pixels.
    pub(crate) fn resize(&self, width: u32, height: u32) {
        let screen = json!({
            "width": width,
            "height": height,
            "deviceScaleFactor": 1,
            "mobile": width < 600,
        });
        self.command(
            "POST",
            "/goog/cdp/execute",
            &json!({ "cmd": "Emulation.setDeviceMetricsOverride", "params": screen }),
        );
    }

    /// Returns the errors in the console of the page.
    pub(crate) fn errors(&self) -> Vec<String> {
        let log = self.command("POST", "/se/log", &json!({ "type": "browser" }));
        let entries = log
            .as_array()
            .expect("a list")
            .iter()
            .filter(|entry| entry["level"] == "SEVERE");
        entries
            .map(|entry| entry["message"].as_str().unwrap_or_default().to_owned())
            .collect()
    }

    /// Saves a screenshot in the folder `TIDINGS_TEST_PICTURES`, if that variable is set.
    pub(crate) fn picture(&self, name: &str) {
        use base64::Engine as _;
        let Some(folder) = std::env::var_os("TIDINGS_TEST_PICTURES") else {
            return;
        };
        let picture = self.command("GET", "/screenshot", &json!({}));
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(picture.as_str().expect("text"))
            .expect("base64");
        std::fs::write(Path::new(&folder).join(name), bytes).expect("the folder exists");
    }

    fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        eventually_blocking(what, || {
            let shown = || self.value("document.body.innerText");
            holds().then_some(()).ok_or_else(shown)
        });
    }

    fn command(&self, method: &str, path: &str, body: &Value) -> Value {
        self.try_command(method, &format!("{}{path}", self.session), body)
            .unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    fn try_command(&self, method: &str, path: &str, body: &Value) -> Result<Value, String> {
        let body = if method == "POST" {
            body.to_string()
        } else {
            String::new()
        };
        let (status, answer) = ask(&self.address, method, path, &body);
        let mut answer: Value =
            serde_json::from_str(&answer).map_err(|error| format!("{error}: {answer}"))?;
        let value = answer["value"].take();
        if status == 200 {
            Ok(value)
        } else {
            Err(value["message"].as_str().unwrap_or_default().to_owned())
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !self.session.is_empty() {
            let leave =
                AssertUnwindSafe(|| self.try_command("DELETE", &self.session, &Value::Null));
            let _ = std::panic::catch_unwind(leave);
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
        let _ = std::fs::remove_dir_all(&self.profile);
    }
}
