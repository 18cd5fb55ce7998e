//! The package: the files that its page and its documentation refer to. The workflows, which
//! publish it.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use super::{path, text};

/// Returns the files of a package.
fn packaged(package: &str) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args([
            "package",
            "--list",
            "--allow-dirty",
            "--offline",
            "--package",
            package,
        ])
        .current_dir(path(""))
        .stdin(Stdio::null())
        .output()
        .expect("cargo runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    let list = String::from_utf8(output.stdout).expect("UTF-8");
    list.lines().map(str::to_owned).collect()
}

/// Returns the relative links of a page.
fn links(page: &str) -> Vec<&str> {
    let ends = page.split("](").skip(1);
    let targets = ends.filter_map(|rest| rest.split([')', ' ']).next());
    targets.filter(|link| !link.contains("://")).collect()
}

/// Returns the anchor of a heading, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase();
    let kept = kept.chars().filter_map(|c| match c {
        ' ' => Some('-'),
        c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
        _ => None,
    });
    kept.collect()
}

#[test]
fn each_link_of_the_readme_leads_to_a_heading_of_a_packaged_file() {
    let files = packaged("tidings");
    let readme = text("README.md");
    let links = links(&readme);
    assert!(links.len() > 30, "{links:?}");
    for link in links {
        let (file, wanted) = link.split_once('#').unwrap_or((link, ""));
        let file = if file.is_empty() { "README.md" } else { file };
        let is_there = match file.strip_suffix('/') {
            Some(folder) => files.iter().any(|one| one.starts_with(folder)),
            None => files.contains(file),
        };
        assert!(is_there, "{link} is not in the package");
        if !wanted.is_empty() {
            let page = text(file);
            let headings = page.lines().filter(|line| line.starts_with('#'));
            let mut anchors = headings.map(|line| anchor(line.trim_start_matches('#').trim()));
            let anchored = format!("id=\"{wanted}\"");
            let exists = anchors.any(|one| one == wanted) || page.contains(&anchored);
            assert!(exists, "{link} has no heading");
        }
    }
}

#[test]
fn each_package_has_its_licences_and_its_page() {
    for package in ["tidings", "tidings-derive", "tidings-testing"] {
        let files = packaged(package);
        for file in ["LICENSE-MIT", "LICENSE-APACHE", "README.md"] {
            assert!(files.contains(file), "{package} lacks {file}");
        }
    }
}

#[test]
fn actionlint_accepts_the_workflows() {
    let workflows = ["ci", "release"].map(|name| path(&format!(".github/workflows/{name}.yml")));
    let checked = Command::new("actionlint")
        .args(&workflows)
        .stdin(Stdio::null())
        .output();
    let Ok(checked) = checked else {
        // Debian has no package of actionlint, so its absence is no failure.
        eprintln!(
            "SKIPPED: actionlint is missing; \
             go install github.com/rhysd/actionlint/cmd/actionlint@latest"
        );
        return;
    };
    let found = String::from_utf8_lossy(&checked.stdout);
    assert!(checked.status.success(), "{found}");
}
