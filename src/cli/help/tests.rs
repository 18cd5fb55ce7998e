use super::*;

fn built() -> Command {
    // The narrowest terminal that the output is made for.
    let mut command = command().term_width(80);
    command.build();
    command
}

/// Calls `seen` with the path and the help of the command and of each of its subcommands.
fn each_help(command: &mut Command, path: &str, long: bool, seen: &mut impl FnMut(&str, &str)) {
    let text = match long {
        true => command.render_long_help(),
        false => command.render_help(),
    };
    seen(path, &text.to_string());
    let inner = command.get_subcommands_mut();
    inner
        .filter(|inner| inner.get_name() != "help")
        .for_each(|inner| {
            let path = format!("{path} {}", inner.get_name());
            each_help(inner, path.trim_start(), long, seen);
        });
}

#[test]
fn the_command_line_is_sound() {
    command().debug_assert();
}

#[test]
fn the_short_help_of_each_command_fits_a_screen() {
    each_help(&mut built(), "", false, &mut |path, text| {
        assert!(text.lines().count() <= 38, "{path}: {text}");
        assert!(
            text.lines().all(|line| line.chars().count() <= 80),
            "{path}: {text}"
        );
    });
}

#[test]
fn the_help_lists_each_command_once_under_its_purpose() {
    let root = built();
    let mut grouped: Vec<_> = GROUPS
        .iter()
        .flat_map(|(_, names)| *names)
        .copied()
        .collect();
    grouped.sort_unstable();
    let mut names: Vec<_> = root
        .get_subcommands()
        .map(Command::get_name)
        .filter(|name| *name != "help")
        .collect();
    names.sort_unstable();
    assert_eq!(grouped, names, "a new command needs a line in GROUPS");
    let text = built().render_help().to_string();
    for (group, names) in GROUPS {
        let from = text.find(&format!("\n{group}:\n")).expect("the heading");
        for name in names {
            let at = text[from..].find(&format!("\n  {name} ")).expect(name);
            assert!(!text[from + 1..from + at].contains("\n\n"), "{text}");
        }
    }
}

#[test]
fn the_long_help_of_a_command_lists_the_flags_that_it_uses() {
    each_help(&mut built(), "", true, &mut |path, text| {
        for key in KEYS {
            let flag = format!("--{}", key.flag);
            let is_listed = text
                .lines()
                .filter_map(|line| line.trim_start().split([' ', '[', '=']).next())
                .any(|word| word == flag);
            assert_eq!(is_listed, applies(path, key.path), "{path} {flag}: {text}");
        }
        let property = text.contains("--kafka-property");
        assert_eq!(property, applies(path, PROPERTY_FLAG), "{path}: {text}");
    });
    let listed = |path: &str| {
        let keys = KEYS.iter().filter(|key| applies(path, key.path));
        keys.map(|key| key.path).collect::<Vec<_>>()
    };
    let logs = ["log.format", "log.level"];
    assert_eq!(listed("relay").len(), KEYS.len());
    assert_eq!(listed("check").len(), KEYS.len());
    assert_eq!(
        listed("status"),
        [&["schema", "database.url"], &logs[..]].concat()
    );
    assert_eq!(listed("sagas abort"), listed("status"));
    let never_reads_kafka = [
        "migrate",
        "status",
        "subscribers list",
        "sagas list",
        "parked retry",
    ];
    for path in never_reads_kafka {
        assert!(!applies(path, PROPERTY_FLAG), "{path}");
        assert!(
            !listed(path).iter().any(|key| key.starts_with("kafka.")),
            "{path}"
        );
    }
    assert!(!applies("dead-letters list", "database.url"));
}

#[test]
fn each_form_of_value_is_named_in_the_help_of_a_relay() {
    let mut command = built();
    let relay = command.find_subcommand_mut("relay").expect("the command");
    let text = relay.render_long_help().to_string();
    let counts = (
        text.matches("<HOST:PORT").count(),
        text.matches("<TEXT").count(),
    );
    assert_eq!(counts, (1, 1), "{text}");
}

#[test]
fn each_command_has_examples_that_can_be_typed() {
    each_help(&mut built(), "", true, &mut |path, _| {
        let lines: Vec<_> = examples(path).lines().collect();
        assert!(!lines.is_empty(), "{path} has no example");
        for line in lines {
            let typed = line.split('#').next().unwrap_or_default();
            let parsed = parse(typed.split_whitespace());
            assert!(parsed.is_ok(), "{line}: {:?}", parsed.err());
            assert!(
                typed.trim().starts_with(format!("tidings {path}").trim()),
                "{line}"
            );
        }
    });
}

#[test]
fn a_flag_may_stand_before_or_after_the_command() {
    for line in [
        "tidings --name a -X x=y --create-topics relay",
        "tidings relay --name a -X x=y --create-topics",
        "tidings --name a relay list -X x=y --create-topics",
    ] {
        let cli = parse(line.split(' ')).expect(line);
        assert_eq!(
            cli.settings.given(),
            [("name", "a"), ("topics.create", "true")],
            "{line}"
        );
        assert_eq!(cli.settings.properties, ["x=y"], "{line}");
    }
    let cli = parse(["tidings", "relay", "--create-topics=false"]).expect("a value");
    assert_eq!(cli.settings.given(), [("topics.create", "false")]);
}

#[test]
fn the_help_of_the_console_names_the_address_that_it_listens_on() {
    for long in [false, true] {
        each_help(&mut built(), "", long, &mut |path, text| {
            if path == "console" {
                assert!(text.contains("[default: 127.0.0.1:9465]"), "{text}");
                assert!(
                    !text.contains("9464") && !text.contains("ADMIN_LISTEN"),
                    "{text}"
                );
            }
        });
    }
}
