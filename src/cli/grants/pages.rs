//! Blocks of the documentation that show rights, written by the command itself.
//!
//! A block follows a comment with the command line: `<!-- tidings grants publisher --role app -->`.

use super::{grants, text};
use crate::cli::args::Command;
use crate::cli::config;
use crate::cli::grants::GrantsCommand;
use crate::cli::help::parse;

const PAGES: [&str; 3] = ["managed-postgres.md", "operating.md", "security.md"];

const BEGIN: &str = "<!-- tidings grants ";

/// Returns the code block for a command line of the documentation's example deployment.
fn block(line: &str) -> String {
    let url = "postgres://localhost/shop";
    let words = format!("tidings grants {line} --database-url {url}");
    let cli = parse(words.split_whitespace()).expect(line);
    let config = config::load(None, &[], cli.settings.layer(), GrantsCommand::NEEDS);
    let config = config.expect("the settings are valid");
    let Some(Command::Grants(command)) = &cli.command else {
        panic!("{line}");
    };
    let grants = grants(&config, command).expect(line);
    let (_, output) = command.parts();
    let language = if line.contains("--only kafka") {
        "sh"
    } else {
        "sql"
    };
    let text = text::text(&grants, None, output.only);
    format!("```{language}\n{text}```\n")
}

/// Returns the page with each block as the command writes it, and the number of blocks.
fn rewritten(page: &str) -> (String, usize) {
    let mut parts = page.split(BEGIN);
    let mut text = parts.next().unwrap_or_default().to_owned();
    let mut blocks = 0;
    for part in parts {
        let (line, rest) = part.split_once(" -->\n").expect("the comment ends");
        let after = rest
            .strip_prefix("\n```")
            .and_then(|rest| rest.split_once("\n```\n"))
            .map_or(rest, |(_, after)| after);
        text.push_str(&format!("{BEGIN}{line} -->\n\n{}{after}", block(line)));
        blocks += 1;
    }
    (text, blocks)
}

#[test]
fn the_pages_show_the_rights_that_the_command_prints() {
    let mut blocks = 0;
    for name in PAGES {
        let path = format!("{}/docs/{name}", env!("CARGO_MANIFEST_DIR"));
        let page = std::fs::read_to_string(&path).expect(name);
        let (text, found) = rewritten(&page);
        blocks += found;
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(&path, text).expect("the page is writable");
        } else {
            assert_eq!(page, text, "run: UPDATE_DOCS=1 cargo test --lib pages");
        }
    }
    assert!(blocks >= 10, "{blocks} blocks");
}

#[test]
fn only_the_command_grants_rights_in_the_pages() {
    for name in PAGES {
        let path = format!("{}/docs/{name}", env!("CARGO_MANIFEST_DIR"));
        let page = std::fs::read_to_string(&path).expect(name);
        let parts: Vec<&str> = page.split("```").collect();
        for pair in parts.windows(2) {
            let (before, block) = (pair[0], pair[1]);
            let grants = block.contains("\ngrant ") || block.contains("kafka-acls.sh");
            let is_code = block.starts_with("sql\n") || block.starts_with("sh\n");
            assert!(
                !is_code || !grants || before.ends_with(" -->\n\n"),
                "{block}"
            );
        }
    }
}
