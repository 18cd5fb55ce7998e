//! The web console: `tidings console` as a process, with real databases and brokers.

mod actions;
mod browser;
mod events;
mod live;
mod on_a_relay;
mod pages;
mod runs;
mod security;
mod seed;
mod stalled;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::support::services::signal;

/// Time limit of a wait.
const PATIENCE: Duration = Duration::from_secs(120);

/// The user and the password of consoles with actions.
const USER: &str = "ada";
const PASSWORD: &str = "correct-horse-battery";

/// A console in its own process, which is killed on drop.
struct Console {
    child: Child,
    address: String,
    log: Arc<Mutex<String>>,
    /// The file of users is deleted on drop.
    _users: Option<tempfile::Users>,
}

/// A file that is deleted on drop.
mod tempfile {
    use std::path::PathBuf;

    pub(super) struct Users(pub(super) PathBuf);

    impl Users {
        pub(super) fn new(text: &str) -> Self {
            let name = format!("tidings-users-{}", uuid::Uuid::now_v7());
            let path = std::env::temp_dir().join(name);
            std::fs::write(&path, text).expect("a file can be written");
            Self(path)
        }
    }

    impl Drop for Users {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }
}

/// Response of the console.
#[derive(Debug)]
struct Response {
    status: u16,
    head: String,
    body: String,
}

impl Response {
    fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .filter_map(|line| line.split_once(": "))
            .find(|(one, _)| one.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }
}

impl Console {
    /// Starts a console that only shows.
    fn start(urls: &[&str], brokers: Option<&str>) -> Self {
        Self::with(urls, brokers, &[], None)
    }

    /// Starts a console that allows actions to [`USER`].
    fn with_actions(urls: &[&str], brokers: Option<&str>) -> Self {
        let users = tempfile::Users::new(&format!("{USER}:{PASSWORD}\n"));
        let path = users.0.to_str().expect("UTF-8").to_owned();
        let arguments = ["--allow-actions", "--console-users-file", &path];
        Self::with(urls, brokers, &arguments, Some(users))
    }

    fn with(
        urls: &[&str],
        brokers: Option<&str>,
        arguments: &[&str],
        users: Option<tempfile::Users>,
    ) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
        command.args(["console", "--listen", "127.0.0.1:0", "--log-format", "json"]);
        for url in urls {
            command.args(["--database-url", url]);
        }
        command.args(arguments).env_clear();
        if let Some(brokers) = brokers {
            command.env("KAFKA_BROKERS", brokers);
        }
        Self::spawn(command, "console", users)
    }

    /// Starts a process whose first log line has the address of the server in `field`.
    fn spawn(mut command: Command, field: &str, users: Option<tempfile::Users>) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let mut stderr = BufReader::new(child.stderr.take().expect("stderr is a pipe"));
        let mut line = String::new();
        stderr.read_line(&mut line).expect("a log line");
        let start: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line}"));
        let address = start[field]
            .as_str()
            .and_then(|url| url.strip_prefix("http://"))
            .expect("the start line names the address")
            .trim_end_matches("/console")
            .to_owned();
        let log = Arc::new(Mutex::new(String::new()));
        let writer = log.clone();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let mut log = writer.lock().unwrap_or_else(PoisonError::into_inner);
                log.push_str(&line);
                log.push('\n');
            }
        });
        Self {
            child,
            address,
            log,
            _users: users,
        }
    }

    /// Sends SIGTERM and waits for the end of the process. Returns its exit code.
    fn stop(&mut self) -> Option<i32> {
        signal(self.child.id(), "TERM");
        self.child.wait().expect("the process ends").code()
    }

    fn log(&self) -> String {
        self.log
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Requests a page with the user's credentials, and expects it.
    fn page(&self, path: &str) -> String {
        let response = self.request("GET", path, &[("authorization", &basic())], "");
        assert_eq!(response.status, 200, "{path}: {response:?}");
        response.body
    }

    /// Requests a page until it contains `text`.
    fn until(&self, path: &str, text: &str) -> String {
        let began = Instant::now();
        loop {
            let page = self.page(path);
            if page.contains(text) {
                return page;
            }
            assert!(
                began.elapsed() < PATIENCE,
                "{path} never has {text:?}: {page}"
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Submits the form of a confirmation page as a browser does. Returns the response.
    fn submit(&self, confirmation: &str) -> Response {
        let origin = format!("http://{}", self.address);
        self.request(
            "POST",
            "/console/act",
            &[
                ("authorization", &basic()),
                ("origin", &origin),
                ("sec-fetch-site", "same-origin"),
                ("content-type", "application/x-www-form-urlencoded"),
            ],
            &form(confirmation),
        )
    }

    fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Response {
        let mut stream = TcpStream::connect(&self.address).expect("the console listens");
        let mut head = format!("{method} {path} HTTP/1.1\r\n");
        if !headers.iter().any(|(name, _)| *name == "host") {
            head.push_str(&format!("host: {}\r\n", self.address));
        }
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(&format!("content-length: {}\r\n\r\n{body}", body.len()));
        stream
            .write_all(head.as_bytes())
            .expect("the request is sent");
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("a time limit");
        let (mut bytes, mut part, began) = (Vec::new(), [0; 8 << 10], Instant::now());
        // The console closes the connection after each response.
        loop {
            let count = stream.read(&mut part).expect("a response");
            if count == 0 {
                break;
            }
            bytes.extend_from_slice(&part[..count]);
            assert!(began.elapsed() < PATIENCE, "{path}: no end of the response");
        }
        let text = String::from_utf8(bytes).expect("UTF-8");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
        let status = head[9..12].parse().expect("a status");
        Response {
            status,
            head: head.to_owned(),
            body: unchunked(head, body),
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Joins the chunks of a chunked body.
fn unchunked(head: &str, body: &str) -> String {
    if !head
        .to_ascii_lowercase()
        .contains("transfer-encoding: chunked")
    {
        return body.to_owned();
    }
    let (mut rest, mut whole) = (body, String::new());
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).expect("a size");
        whole.push_str(&after[..size]);
        rest = after[size..].trim_start_matches("\r\n");
        if size == 0 {
            break;
        }
    }
    whole
}

fn basic() -> String {
    format!("Basic {}", STANDARD.encode(format!("{USER}:{PASSWORD}")))
}

/// Returns the hidden fields of a page's form as a body.
fn form(page: &str) -> String {
    let mut body = url::form_urlencoded::Serializer::new(String::new());
    for input in page.split("<input type=\"hidden\" name=\"").skip(1) {
        let (name, rest) = input.split_once("\" value=\"").expect("a value");
        let (value, _) = rest.split_once('"').expect("an end");
        body.append_pair(name, &unescaped(value));
    }
    body.finish()
}

/// Returns the targets of links that contain `part`.
fn links(page: &str, part: &str) -> Vec<String> {
    page.split("href=\"")
        .skip(1)
        .filter_map(|rest| rest.split_once('"'))
        .map(|(link, _)| unescaped(link))
        .filter(|link| link.contains(part))
        .collect()
}

fn unescaped(text: &str) -> String {
    text.replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&quot;", "\"")
        .replace("&amp;", "&")
}
