//! Programs that must compile, and programs that must not. The compiler's messages are part of the
//! interface.
//!
//! Each program is compiled against the libraries of this very test run, so that no dependency is
//! built twice. The expected messages of `fail/NAME.rs` are in `fail/NAME.expected`. After an
//! intended change, run `UPDATE_EXPECTED=1 cargo test --test compile` and review the difference.

mod compiler;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Mutex,
    thread,
};

use compiler::Compiler;

/// Number of programs that are compiled at once.
const THREADS: usize = 2;

#[test]
fn a_subscriber_that_cannot_work_does_not_compile_and_says_what_to_do() {
    each_of("fail", compile_and_compare);
}

#[test]
fn faults_are_reported_where_they_are_and_with_a_remedy() {
    each_of("fail/derive", compile_and_compare);
}

#[test]
fn the_parts_of_a_subscriber_compile_in_any_order() {
    each_of("pass", |compiler, program| {
        let messages = compiler.compile(program);
        messages.is_empty().then_some(()).ok_or(messages)
    });
}

/// Runs `check` on each program of a folder and reports all failures.
fn each_of(folder: &str, check: impl Fn(&Compiler, &Path) -> Result<(), String> + Sync) {
    let compiler = Compiler::of_this_build();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/compile")
        .join(folder);
    let mut programs: Vec<PathBuf> = fs::read_dir(&folder)
        .expect("the folder can be read")
        .map(|entry| entry.expect("the folder can be read").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect();
    assert!(!programs.is_empty(), "no program in {}", folder.display());
    programs.sort();
    let (programs, failures) = (Mutex::new(programs), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while let Some(program) =
                    { programs.lock().expect("the lock is not poisoned").pop() }
                {
                    if let Err(failure) = check(compiler, &program) {
                        let name = program.file_name().unwrap_or_default().to_string_lossy();
                        let failure = format!("{name}:\n{failure}");
                        failures
                            .lock()
                            .expect("the lock is not poisoned")
                            .push(failure);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().expect("the lock is not poisoned");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn compile_and_compare(compiler: &Compiler, program: &Path) -> Result<(), String> {
    let messages = compiler.compile(program);
    if messages.is_empty() {
        return Err("it compiles, and must not".into());
    }
    let expected_at = program.with_extension("expected");
    if std::env::var_os("UPDATE_EXPECTED").is_some() {
        fs::write(&expected_at, messages).map_err(|error| error.to_string())?;
        return Ok(());
    }
    let expected = fs::read_to_string(&expected_at).unwrap_or_default();
    if messages == expected {
        return Ok(());
    }
    Err(format!(
        "expected:\n{expected}\nthe compiler reports:\n{messages}"
    ))
}
