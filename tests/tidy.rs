//! Rules of this repository that no compiler checks. Each test is one rule and needs no service.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    ops::Range,
    path::{Path, PathBuf},
};

/// The folders of the library from the bottom up. A folder imports from its own rank and from lower
/// ones.
const RANKS: &[&[&str]] = &[
    &[
        "failpoint",
        "backoff",
        "task",
        "event",
        "resilience",
        "escape",
        "fnv",
        "trace",
    ],
    &["postgres", "outbox", "kafka"],
    &["relay", "subscriber"],
    &["saga", "inspect"],
    &["operator"],
    &["testing", "health", "admin"],
    &["console"],
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

/// Errors of tests and benchmarks that are a `String`, because they are only shown. The number only
/// falls.
const STRING_ERRORS_IN_TESTS_MAX: usize = 12;

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

/// The unit tests of a file, up to the brace that ends them. Code may follow.
fn unit_tests(text: &str) -> Range<usize> {
    let Some(begin) = text.find("#[cfg(test)]\nmod tests {") else {
        return text.len()..text.len();
    };
    let end = text[begin..].find("\n}\n").map(|end| begin + end + 3);
    begin..end.unwrap_or(text.len())
}

/// The text of a file without its unit tests. The remaining lines keep their numbers.
fn without_tests(text: &str) -> String {
    let tests = unit_tests(text);
    let blank = "\n".repeat(text[tests.clone()].matches('\n').count());
    format!("{}{blank}{}", &text[..tests.start], &text[tests.end..])
}

/// The first name after each `crate::`, also in groups over several lines, with its line number.
fn imports(source: &Source) -> Vec<(usize, &str)> {
    let name = |text: &str| {
        text.find(|c: char| !c.is_alphanumeric() && c != '_')
            .unwrap_or(text.len())
    };
    let (mut found, mut depth) = (Vec::new(), 0_usize);
    for (number, line) in source.lines() {
        let mut rest = line.split("//").next().unwrap_or_default();
        // Inside a group, the names at its first level follow `{` or `,`.
        let mut is_first = depth > 0;
        while !rest.is_empty() {
            if depth == 0 {
                let Some(at) = rest.find("crate::") else {
                    break;
                };
                rest = &rest[at + "crate::".len()..];
                if let Some(group) = rest.strip_prefix('{') {
                    (rest, depth, is_first) = (group, 1, true);
                } else {
                    found.push((number, &rest[..name(rest)]));
                }
                continue;
            }
            rest = rest.trim_start();
            let end = name(rest);
            if end > 0 {
                if is_first && depth == 1 {
                    found.push((number, &rest[..end]));
                }
                (rest, is_first) = (&rest[end..], false);
            } else if let Some(sign) = rest.chars().next() {
                match sign {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    ',' => is_first = true,
                    _ => {}
                }
                rest = &rest[sign.len_utf8()..];
            }
        }
    }
    found
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
        for (number, folder) in imports(&source) {
            if rank.get(folder).is_some_and(|other| other > own) {
                violations.push(format!("{}:{number} imports {folder}", source.path));
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

/// The name of the function that this line begins.
fn function_name(line: &str) -> Option<&str> {
    let mut words = line.trim_start();
    if let Some(rest) = words.strip_prefix("pub(") {
        words = rest.split_once(") ")?.1;
    }
    for word in ["pub ", "const ", "async ", "unsafe ", "extern \"C\" "] {
        words = words.strip_prefix(word).unwrap_or(words);
    }
    words.strip_prefix("fn ")?.split(['(', '<']).next()
}

#[test]
fn files_and_functions_are_short() {
    let mut violations = Vec::new();
    for source in sources(&["src"], "rs") {
        if source.path.ends_with("tests.rs") {
            continue;
        }
        let text = without_tests(&source.text);
        let tests = &source.text[unit_tests(&source.text)];
        let lines = source.text.lines().count() - tests.lines().count();
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
            if let Some(name) = function_name(line)
                && !line.trim_end().ends_with(['}', ';'])
            {
                function = Some((number, indent, name.to_owned()));
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
            let is_comment = line.trim_start().starts_with("//");
            let unbreakable = line.contains("://")
                || !is_comment && (line.contains('"') || function_name(line).is_some());
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

/// The second of the type arguments that begin here, also over several lines.
fn second_argument(arguments: &str) -> Option<&str> {
    let (mut depth, mut begin) = (0_i32, None);
    for (at, sign) in arguments.char_indices() {
        match sign {
            '<' | '(' | '[' => depth += 1,
            '>' if arguments[..at].ends_with('-') => {}
            '>' | ')' | ']' if depth == 0 => return Some(arguments[begin?..at].trim()),
            '>' | ')' | ']' => depth -= 1,
            ',' if depth == 0 && begin.is_none() => begin = Some(at + 1),
            ',' if depth == 0 => return Some(arguments[begin?..at].trim()),
            _ => {}
        }
    }
    None
}

/// The lines at which this text has a `Result` with a text as its error.
fn text_errors(text: &str) -> Vec<usize> {
    text.match_indices("Result<")
        .filter(|(at, name)| second_argument(&text[at + name.len()..]) == Some("String"))
        .map(|(at, _)| text[..at].lines().count())
        .collect()
}

#[test]
fn errors_have_types() {
    let mut violations = Vec::new();
    for source in sources(&["src"], "rs") {
        let found = text_errors(&without_tests(&source.text));
        violations.extend(found.iter().map(|line| format!("{}:{line}", source.path)));
    }
    assert_none("an error is a String", &violations);
}

#[test]
fn errors_of_tests_have_types_where_a_caller_distinguishes_them() {
    let mut violations = Vec::new();
    for source in rust() {
        let tests = match source.path.starts_with("src/") {
            true => unit_tests(&source.text),
            false => 0..source.text.len(),
        };
        let before = source.text[..tests.start].lines().count();
        let found = text_errors(&source.text[tests]);
        let places = found.iter().map(|line| before + line);
        violations.extend(places.map(|line| format!("{}:{line}", source.path)));
    }
    let more = violations.len() > STRING_ERRORS_IN_TESTS_MAX;
    let rule = format!("more than {STRING_ERRORS_IN_TESTS_MAX} errors of tests are a String");
    assert_none(&rule, if more { &violations } else { &[] });
}

#[test]
fn public_types_have_different_names() {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for source in sources(&["src"], "rs") {
        for line in source.text.lines() {
            let Some(rest) = [
                "pub struct ",
                "pub enum ",
                "pub trait ",
                "pub type ",
                "pub union ",
            ]
            .iter()
            .find_map(|kind| line.strip_prefix(kind)) else {
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
        .filter(|(_, places)| places.len() > 1)
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
        // A file of unit tests belongs to the file that it tests.
        let needs_one = source.path.starts_with("src/") && !source.path.ends_with("tests.rs");
        if word.map_or(needs_one, |word| QUESTIONS.contains(&word)) {
            violations.push(format!("{}: {first}", source.path));
        }
    }
    assert_none(
        "headers are missing, or are indirect questions",
        &violations,
    );
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
