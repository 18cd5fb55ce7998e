//! Rules of this repository that no compiler checks. Each test is one rule and needs no service.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
};

/// The folders of the library from the bottom up. A folder imports from its own rank and from lower
/// ones.
const RANKS: &[&[&str]] = &[
    &["failpoint", "event", "resilience"],
    &["postgres", "outbox", "kafka"],
    &["relay", "subscriber"],
    &["saga", "operator"],
    &["testing", "health", "admin"],
    &["cli", "fuzzing"],
];

/// Lines of a file, without its unit tests.
const FILE_LINES_MAX: usize = 400;
/// Lines of a function outside unit tests.
const FUNCTION_LINES_MAX: usize = 70;
const COLUMNS_MAX: usize = 100;

/// Words that the glossary or a role replaces, in comments, docs and messages.
const BANNED: &[&str] = &[
    "anew", "whoever", "somebody", "nobody", "detour", "goes on", "is gone", "so many",
];

/// First words of an indirect question.
const QUESTIONS: &[&str] = &["What", "Which", "Where", "How", "Whether", "Who"];

struct Source {
    path: String,
    text: String,
}

impl Source {
    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        (1..).zip(self.text.lines())
    }

    /// The comments and doc comments, with their line numbers.
    fn comments(&self) -> impl Iterator<Item = (usize, &str)> {
        self.lines().filter_map(|(number, line)| {
            let comment = line.trim_start().strip_prefix("//")?;
            Some((number, comment.trim_start_matches(['/', '!']).trim()))
        })
    }
}

/// All files with this extension that belong to the repository.
fn sources(folders: &[&str], extension: &str) -> Vec<Source> {
    fn collect(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() && !path.ends_with("target") {
                collect(&path, extension, found);
            } else if path.extension().is_some_and(|found| found == extension) {
                found.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    for folder in folders {
        collect(&root.join(folder), extension, &mut found);
    }
    found.sort();
    let read = |path: PathBuf| Source {
        path: path
            .strip_prefix(root)
            .unwrap_or(&path)
            .display()
            .to_string(),
        text: fs::read_to_string(&path).expect("a text file"),
    };
    found.into_iter().map(read).collect()
}

fn rust() -> Vec<Source> {
    let folders = [
        "src",
        "derive",
        "tests",
        "benches",
        "examples",
        "dev-services",
    ];
    sources(&folders, "rs")
}

fn docs() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut docs = sources(&["docs", "examples"], "md");
    for name in ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"] {
        docs.push(Source {
            path: name.into(),
            text: fs::read_to_string(root.join(name)).expect("a text file"),
        });
    }
    docs
}

fn assert_none(rule: &str, violations: &[String]) {
    assert!(
        violations.is_empty(),
        "{rule}:\n  {}",
        violations.join("\n  ")
    );
}

/// The text of a file up to its unit tests.
fn without_tests(text: &str) -> &str {
    text.find("#[cfg(test)]\nmod tests {")
        .map_or(text, |at| &text[..at])
}

#[test]
fn a_folder_imports_only_from_its_rank_and_lower_ones() {
    let rank: HashMap<&str, usize> = (0..)
        .zip(RANKS)
        .flat_map(|(rank, folders)| folders.iter().map(move |folder| (*folder, rank)))
        .collect();
    let mut violations = Vec::new();
    for source in sources(&["src"], "rs") {
        let mut parts = source.path.trim_start_matches("src/").split(['/', '.']);
        let Some(own) = parts.next().and_then(|folder| rank.get(folder)) else {
            continue;
        };
        for (number, line) in source.lines() {
            if line.trim_start().starts_with("//") {
                continue;
            }
            for path in line.split("crate::").skip(1) {
                let folder = path
                    .split(|c: char| !c.is_alphanumeric() && c != '_')
                    .next()
                    .unwrap_or_default();
                if rank.get(folder).is_some_and(|other| other > own) {
                    violations.push(format!("{}:{number} imports {folder}", source.path));
                }
            }
        }
    }
    assert_none("imports run upwards", &violations);
}

#[test]
fn every_folder_of_the_library_has_a_rank() {
    let known: BTreeSet<&str> = RANKS.iter().copied().flatten().copied().collect();
    let mut violations = BTreeSet::new();
    for source in sources(&["src"], "rs") {
        let name = source.path.trim_start_matches("src/");
        let folder = name.split(['/', '.']).next().unwrap_or_default();
        if !known.contains(folder) && !["lib", "main"].contains(&folder) {
            violations.insert(folder.to_owned());
        }
    }
    let violations: Vec<String> = violations.into_iter().collect();
    assert_none("folders without a rank", &violations);
}

#[test]
fn files_and_functions_are_short() {
    let mut violations = Vec::new();
    for source in sources(&["src"], "rs") {
        if source.path.ends_with("tests.rs") {
            continue;
        }
        let text = without_tests(&source.text);
        let lines = text.lines().count();
        if lines > FILE_LINES_MAX {
            violations.push(format!("{}: {lines} lines", source.path));
        }
        let mut function: Option<(usize, usize, String)> = None;
        for (number, line) in (1..).zip(text.lines()) {
            let indent = line.len() - line.trim_start().len();
            if let Some((begin, at, name)) = &function {
                if indent == *at && line.trim_start().starts_with('}') {
                    let lines = number - begin + 1;
                    if lines > FUNCTION_LINES_MAX {
                        violations.push(format!("{}:{begin} {name}: {lines} lines", source.path));
                    }
                    function = None;
                }
                continue;
            }
            let words = line
                .trim_start()
                .trim_start_matches("pub(crate) ")
                .trim_start_matches("pub(super) ")
                .trim_start_matches("pub ")
                .trim_start_matches("async ");
            if let Some(name) = words.strip_prefix("fn ")
                && !line.trim_end().ends_with('}')
                && !line.trim_end().ends_with(';')
            {
                let name = name.split(['(', '<']).next().unwrap_or_default().to_owned();
                function = Some((number, indent, name));
            }
        }
    }
    assert_none("files or functions are too long", &violations);
}

#[test]
fn lines_have_at_most_a_hundred_columns() {
    let mut violations = Vec::new();
    for source in rust() {
        for (number, line) in source.lines() {
            // A string that cannot be broken without changing it, an address, and a long name.
            let unbreakable =
                line.contains("://") || line.contains('"') || line.trim_start().contains("fn ");
            if line.chars().count() > COLUMNS_MAX && !unbreakable {
                violations.push(format!("{}:{number}", source.path));
            }
        }
    }
    for source in docs() {
        let mut code = false;
        for (number, line) in source.lines() {
            code ^= line.trim_start().starts_with("```");
            let unbreakable = code
                || line.starts_with('|')
                || line.contains("](")
                || !line.trim_start().contains(' ');
            if line.chars().count() > COLUMNS_MAX && !unbreakable {
                violations.push(format!("{}:{number}", source.path));
            }
        }
    }
    assert_none("lines are too wide", &violations);
}

#[test]
fn every_test_and_path_that_the_docs_name_exists() {
    let sources = rust();
    let tests: BTreeSet<&str> = sources
        .iter()
        .flat_map(|source| source.text.split("fn ").skip(1))
        .filter_map(|rest| rest.split('(').next())
        .collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut violations = Vec::new();
    for source in docs() {
        for (number, line) in source.lines() {
            for word in line.split('`').skip(1).step_by(2) {
                let is_name = word
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit());
                let is_test = is_name && word.matches('_').count() >= 4;
                if is_test && source.path.ends_with("guarantees.md") && !tests.contains(word) {
                    violations.push(format!("{}:{number} test {word}", source.path));
                }
                let folders = [
                    "src/",
                    "tests/",
                    "benches/",
                    "examples/",
                    "docs/",
                    "migrations/",
                    "derive/",
                    "deploy/",
                ];
                let is_path = folders.iter().any(|folder| word.starts_with(folder))
                    && word
                        .chars()
                        .all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
                if is_path && !root.join(word).exists() {
                    violations.push(format!("{}:{number} path {word}", source.path));
                }
            }
        }
    }
    assert_none("the docs name what does not exist", &violations);
}

#[test]
fn only_the_folder_kafka_names_rdkafka() {
    let mut violations = Vec::new();
    for source in sources(&["src"], "rs") {
        if source.path.starts_with("src/kafka/") {
            continue;
        }
        for (number, line) in source.lines() {
            if line.contains("rdkafka::")
                && !line.trim_start().starts_with("//")
                && !line.contains('"')
            {
                violations.push(format!("{}:{number}", source.path));
            }
        }
    }
    assert_none("rdkafka is named outside src/kafka", &violations);
}

/// Places at which an error is still a `String`. The number only falls.
const STRING_ERRORS_MAX: usize = 66;

/// Names that several public types share: their modules distinguish them.
const SHARED_NAMES: &[&str] = &["Check", "Delivery", "Retry", "Settings", "State"];

#[test]
fn errors_have_types() {
    let mut violations = Vec::new();
    for source in sources(&["src"], "rs") {
        for (number, line) in (1..).zip(without_tests(&source.text).lines()) {
            if line.contains(", String>") && line.contains("Result<") {
                violations.push(format!("{}:{number}", source.path));
            }
        }
    }
    violations.truncate(violations.len().saturating_sub(STRING_ERRORS_MAX));
    assert_none("one more error is a String", &violations);
}

#[test]
fn public_types_have_different_names() {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for source in sources(&["src"], "rs") {
        for line in source.text.lines() {
            let Some(rest) = ["pub struct ", "pub enum ", "pub trait "]
                .iter()
                .find_map(|kind| line.strip_prefix(kind))
            else {
                continue;
            };
            let name: String = rest
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect();
            places.entry(name).or_default().push(source.path.clone());
        }
    }
    let violations: Vec<String> = places
        .iter()
        .filter(|(name, places)| places.len() > 1 && !SHARED_NAMES.contains(&name.as_str()))
        .map(|(name, places)| format!("{name}: {}", places.join(", ")))
        .collect();
    assert_none("a name has several public types", &violations);
}

#[test]
fn file_headers_state_their_subject() {
    let mut violations = Vec::new();
    for source in rust() {
        let first = source.text.lines().next().unwrap_or_default();
        let word = first
            .strip_prefix("//! ")
            .and_then(|header| header.split([' ', ',']).next());
        if word.is_some_and(|word| QUESTIONS.contains(&word)) {
            violations.push(format!("{}: {first}", source.path));
        }
    }
    assert_none("headers are indirect questions", &violations);
}

#[test]
fn comments_and_messages_use_plain_words() {
    let mut violations = Vec::new();
    for source in rust() {
        if source.path == "tests/tidy.rs" {
            continue;
        }
        let literals = source
            .lines()
            .filter(|(_, line)| line.contains('"') && source.path.starts_with("src/"));
        for (number, text) in source.comments().chain(literals) {
            let text = format!(" {} ", text.to_lowercase());
            for word in BANNED {
                if text.contains(&format!(" {word} ")) {
                    violations.push(format!("{}:{number} {word}", source.path));
                }
            }
        }
    }
    assert_none("words to replace", &violations);
}
