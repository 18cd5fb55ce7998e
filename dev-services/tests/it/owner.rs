//! Tests of the program `services`.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::wire;

fn services(arguments: &[&str]) -> Command {
    let mut services = Command::new(env!("CARGO_BIN_EXE_services"));
    services
        .args(arguments)
        .env_remove("DATABASE_URL")
        .env_remove("KAFKA_BROKERS")
        .env("TIDINGS_DEV_SERVICES", "programs");
    services.stdin(Stdio::piped()).stdout(Stdio::piped());
    services
}

/// Starts `services up` and returns it with the ports of Postgres and Kafka.
fn up() -> (Child, u16, u16) {
    let mut owner = services(&["up"]).spawn().expect("`services` can be run");
    let mut lines = BufReader::new(owner.stdout.take().expect("stdout is a pipe")).lines();
    let mut line = || {
        lines
            .next()
            .expect("`services up` prints two lines")
            .expect("the lines are text")
    };
    let (database, brokers) = (line(), line());
    let port = |text: &str| {
        text.split(':')
            .next_back()
            .and_then(|end| end.split(['/', '\'']).next()?.parse().ok())
    };
    assert!(
        database.starts_with("export DATABASE_URL='postgres://postgres@127.0.0.1:"),
        "{database}"
    );
    assert!(
        brokers.starts_with("export KAFKA_BROKERS='127.0.0.1:"),
        "{brokers}"
    );
    (
        owner,
        port(&database).expect("the URL contains a port"),
        port(&brokers).expect("the address contains a port"),
    )
}

/// Returns the folders that the process has created.
fn folders(owner: u32) -> Vec<String> {
    let names = fs::read_dir(std::env::temp_dir())
        .expect("the temporary folder can be read")
        .flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    names
        .filter(|name| name.starts_with("tidings-") && name.contains(&format!("-{owner}-")))
        .collect()
}

/// Returns the processes whose command line or working folder contains one of the folders: keepers,
/// servers and their children.
fn processes(folders: &[String]) -> BTreeSet<u32> {
    let names_a_folder = |pid: &u32| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command);
        let working = fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
        folders.iter().any(|folder| {
            command.contains(folder.as_str()) || working.to_string_lossy().contains(folder.as_str())
        })
    };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(names_a_folder)
        .collect()
}

/// Waits until no process and no folder of an owner is left.
fn assert_gone(folders: &[String], pids: &BTreeSet<u32>) {
    let until = Instant::now() + Duration::from_secs(15);
    loop {
        let left: Vec<_> = pids
            .iter()
            .filter(|pid| Path::new(&format!("/proc/{pid}/cwd")).read_link().is_ok())
            .collect();
        let kept: Vec<_> = folders
            .iter()
            .filter(|folder| std::env::temp_dir().join(folder).exists())
            .collect();
        if left.is_empty() && kept.is_empty() {
            return;
        }
        assert!(
            Instant::now() < until,
            "still there: processes {left:?}, folders {kept:?}"
        );
        sleep(Duration::from_millis(10));
    }
}

#[test]
fn both_servers_answer_until_the_input_ends() {
    let (mut owner, postgres, kafka) = up();
    assert!(wire::sql(postgres, "select 1").expect("Postgres answers"));
    assert_eq!(
        wire::create_topic(kafka, "orders").expect("Kafka answers"),
        0
    );
    let folders = folders(owner.id());
    let pids = processes(&folders);
    drop(owner.stdin.take());
    assert!(owner.wait().expect("the owner ends").success());
    assert_gone(&folders, &pids);
}

#[test]
#[cfg(target_os = "linux")]
fn nothing_outlives_an_owner_that_is_killed() {
    let (mut owner, ..) = up();
    let folders = folders(owner.id());
    let pids = processes(&folders);
    assert_eq!(folders.len(), 2, "{folders:?}");
    assert!(
        pids.len() >= 10,
        "two keepers, Java, Postgres and its children: {pids:?}"
    );
    owner.kill().expect("the owner can be killed");
    owner.wait().expect("the owner ends");
    assert_gone(&folders, &pids);
}

#[test]
#[cfg(target_os = "linux")]
fn nothing_outlives_an_owner_that_is_killed_while_the_servers_start() {
    for milliseconds in [1, 4, 8, 20, 100, 400] {
        let mut owner = services(&["up"]).spawn().expect("`services` can be run");
        sleep(Duration::from_millis(milliseconds));
        let folders = folders(owner.id());
        owner.kill().expect("the owner can be killed");
        owner.wait().expect("the owner ends");
        assert_gone(&folders, &processes(&folders));
    }
}

#[test]
fn run_passes_the_variables_and_the_exit_code_on() {
    let output = services(&[
        "run",
        "--",
        "sh",
        "-c",
        "echo $DATABASE_URL $KAFKA_BROKERS; exit 7",
    ])
    .output()
    .expect("`services` can be run");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.starts_with("postgres://postgres@127.0.0.1:") && text.contains(" 127.0.0.1:"),
        "{text}"
    );
    assert_eq!(output.status.code(), Some(7));
}

#[test]
fn addresses_from_the_environment_are_used_as_they_are_and_nothing_is_started() {
    let mut services = services(&[
        "run",
        "--",
        "sh",
        "-c",
        "echo $DATABASE_URL $KAFKA_BROKERS; ls -d ${TMPDIR:-/tmp}/tidings-*-$PPID-*",
    ]);
    let output = services
        .env("DATABASE_URL", "postgres://there")
        .env("KAFKA_BROKERS", "there:9092")
        .output()
        .expect("`services` can be run");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "postgres://there there:9092\n"
    );
}

#[test]
#[cfg(target_os = "linux")]
fn a_program_that_drains_after_the_owner_is_gone_still_has_its_servers() {
    let script = "echo ${DATABASE_URL##*:}; read -r _; sleep 0.5; \
                  echo >/dev/tcp/127.0.0.1/$(echo ${DATABASE_URL##*:} | cut -d/ -f1) \
                  && echo served";
    let mut owner = services(&["run", "--", "bash", "-c", script])
        .spawn()
        .expect("`services` can be run");
    let mut lines = BufReader::new(owner.stdout.take().expect("stdout is a pipe")).lines();
    let input = owner.stdin.take();
    assert!(lines.next().is_some(), "the program runs");
    let folders = folders(owner.id());
    let pids = processes(&folders);
    owner.kill().expect("the owner can be killed");
    owner.wait().expect("the owner ends");
    drop(input);
    assert_eq!(
        lines
            .next()
            .expect("the program continues")
            .expect("it prints text"),
        "served"
    );
    assert_gone(&folders, &pids);
}

/// A `docker` that only logs its arguments. `up` takes FAKE_UP seconds.
const FAKE_DOCKER: &str = r#"#!/bin/sh
echo "$POSTGRES_PORT:$KAFKA_PORT $*" >>"$FAKE_LOG"
case "$*" in *" up "*) exec sleep "$FAKE_UP" ;; esac
"#;

#[test]
fn docker_is_used_when_an_engine_answers_and_its_containers_are_taken_down_however_we_end() {
    use std::os::unix::fs::PermissionsExt;
    let folder = std::env::temp_dir().join(format!("fake-docker-{}", std::process::id()));
    fs::create_dir(&folder).expect("the temporary folder can be written");
    let program = folder.join("docker");
    fs::write(&program, FAKE_DOCKER).expect("the temporary folder can be written");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))
        .expect("the temporary folder can be written");
    let path = format!(
        "{}:{}",
        folder.display(),
        std::env::var("PATH").expect("PATH is set")
    );
    let start = |log: &str, up: &str| {
        let mut services = services(&[
            "run",
            "--",
            "sh",
            "-c",
            "echo $DATABASE_URL $KAFKA_BROKERS; read -r _; true",
        ]);
        services
            .env_remove("TIDINGS_DEV_SERVICES")
            .env("PATH", &path)
            .env("FAKE_UP", up)
            .env("FAKE_LOG", folder.join(log));
        services.spawn().expect("`services` can be run")
    };
    let told = |log: &str| fs::read_to_string(folder.join(log)).unwrap_or_default();
    let wait_for = |log: &str, word: &str| {
        let until = Instant::now() + Duration::from_secs(20);
        while !told(log).contains(word) {
            assert!(Instant::now() < until, "no `{word}` in {}", told(log));
            sleep(Duration::from_millis(10));
        }
    };

    let mut owner = start("ends", "0.1");
    let mut line = String::new();
    BufReader::new(owner.stdout.take().expect("stdout is a pipe"))
        .read_line(&mut line)
        .expect("the program prints text");
    drop(owner.stdin.take());
    assert!(owner.wait().expect("the owner ends").success());
    let log = told("ends");
    let ports = log
        .lines()
        .find(|line| line.contains(" up --detach --wait postgres kafka"))
        .and_then(|line| line.split(' ').next());
    let (postgres, kafka) = ports
        .and_then(|ports| ports.split_once(':'))
        .expect("compose receives the ports");
    assert_eq!(
        line,
        format!("postgres://postgres:postgres@127.0.0.1:{postgres}/postgres 127.0.0.1:{kafka}\n")
    );
    assert_eq!(
        log.lines()
            .filter(|line| line.contains(" down --volumes"))
            .count(),
        1,
        "{log}"
    );

    // Killed while the images are being pulled.
    let mut owner = start("killed", "30");
    wait_for("killed", " up ");
    owner.kill().expect("the owner can be killed");
    owner.wait().expect("the owner ends");
    wait_for("killed", " down --volumes");
    fs::remove_dir_all(&folder).expect("the temporary folder can be written");
}
