//! Rights as SQL and as commands of `kafka-acls.sh`.

use super::System;
use crate::inspect::grants::{AclGrant, AclPattern, Grants, SqlGrant, identifier};

/// Columns of a line.
const WIDTH: usize = 100;

/// The brokers where none are configured: the shell replaces the variable.
const BROKERS: &str = "\"$KAFKA_BROKERS\"";

/// Characters that a shell leaves unchanged.
const PLAIN: &str = "_-.:,/=@+";

/// Returns both parts, or the one that `only` names.
pub(super) fn text(grants: &Grants, brokers: Option<&str>, only: Option<System>) -> String {
    let mut parts = Vec::new();
    if only != Some(System::Kafka) {
        parts.push(sql(grants));
    }
    if only != Some(System::Postgres) {
        parts.push(acls(grants, brokers));
    }
    parts.join("\n")
}

fn sql(grants: &Grants) -> String {
    if grants.postgres.is_empty() {
        return format!("-- Postgres: {} needs nothing.\n", grants.role);
    }
    let role = identifier(&grants.role);
    let mut text = String::from(
        "-- Postgres, as the owner of the database and the tables. It may run again.\n",
    );
    text.push_str(&format!(
        "-- A new role has no password: set one with \\password {role} in psql.\n"
    ));
    for statement in &grants.create_role {
        text.push_str(&format!("{statement};\n"));
    }
    for grant in &grants.postgres {
        text.push_str(&granted(grant));
    }
    for statement in &grants.objects {
        text.push_str(&format!("{statement};\n"));
    }
    text
}

fn granted(grant: &SqlGrant) -> String {
    let purpose = grant.purpose.map(|purpose| format!("-- {purpose}\n"));
    let statement = wrapped(&format!("{};", grant.statement()));
    format!("{}{statement}\n", purpose.unwrap_or_default())
}

/// Breaks a list of columns that is longer than a line.
fn wrapped(statement: &str) -> String {
    let list = statement.split_once('(').and_then(|(before, rest)| {
        let (columns, after) = rest.rsplit_once(')')?;
        Some((before, columns, after))
    });
    match list {
        Some((before, columns, after)) if statement.len() > WIDTH => {
            let mut lines = vec![String::from("   ")];
            for word in columns.split(' ') {
                if lines
                    .last()
                    .is_some_and(|line| line.len() + word.len() >= WIDTH)
                {
                    lines.push(String::from("   "));
                }
                if let Some(line) = lines.last_mut() {
                    line.push(' ');
                    line.push_str(word);
                }
            }
            format!("{before}(\n{}\n){after}", lines.join("\n"))
        }
        _ => statement.to_owned(),
    }
}

fn acls(grants: &Grants, brokers: Option<&str>) -> String {
    if grants.kafka.is_empty() {
        return format!("# Kafka: {} needs nothing.\n", grants.role);
    }
    let brokers = brokers.map_or_else(|| BROKERS.to_owned(), quoted);
    let mut text = String::from(
        "# Kafka, as an administrator of the cluster. It may run again.\n\
         # Add --command-config FILE if the cluster requires authentication.\n",
    );
    for grant in &grants.kafka {
        text.push_str(&allowed(grant, &brokers));
    }
    text
}

fn allowed(grant: &AclGrant, brokers: &str) -> String {
    let purpose = grant.purpose.map(|purpose| format!("# {purpose}\n"));
    let operations: String = grant
        .operations
        .iter()
        .map(|operation| format!("--operation {operation} "))
        .collect();
    let pattern = match grant.pattern {
        AclPattern::Literal => "",
        AclPattern::Prefixed => " --resource-pattern-type prefixed",
    };
    let resource = format!(
        "{} {}{pattern}",
        grant.resource.option(),
        quoted(&grant.name)
    );
    let fits = operations.len() + resource.len() + 4 <= WIDTH;
    let between = if fits { "" } else { "\\\n    " };
    format!(
        "{}kafka-acls.sh --bootstrap-server {brokers} --add --allow-principal {} \\\n    \
         {operations}{between}{resource}\n",
        purpose.unwrap_or_default(),
        quoted(&grant.principal),
    )
}

/// Returns a word for a shell, in quotes if it needs them.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || PLAIN.contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::grants::{Duty, Grantee, Place, RelayDuty};

    fn grants(role: &str, principal: &str, duty: &Duty) -> Grants {
        let place = Place {
            database: "shop".into(),
            schema: "tidings".into(),
        };
        let grantee = Grantee {
            role: role.into(),
            principal: principal.into(),
        };
        Grants::new(grantee, &place, duty)
    }

    fn relay() -> Duty {
        Duty::Relay(RelayDuty {
            name: "shop".into(),
            streams: true,
            is_exactly_once: true,
            has_retention: true,
            debezium: Some(("public".into(), "Outbox \"1\"".into())),
            publication: "it's".into(),
            topics: vec!["order".into(), "shop.*".into()],
            dead_letter_topics: Vec::new(),
            creates_topics: false,
        })
    }

    #[test]
    fn names_are_quoted_for_sql_and_for_the_shell() {
        let grants = grants("o'brien \"x\"", "User:CN=relay shop", &relay());
        let text = text(&grants, None, None);
        for part in [
            "where rolname = 'o''brien \"x\"'",
            "create role \"o'brien \"\"x\"\"\" login replication;",
            "grant select on \"public\".\"Outbox \"\"1\"\"\" to \"o'brien \"\"x\"\"\";",
            "where pubname = 'it''s'",
            "--allow-principal 'User:CN=relay shop' \\\n",
            "--bootstrap-server \"$KAFKA_BROKERS\" ",
            "--topic shop. --resource-pattern-type prefixed\n",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert_eq!(quoted("it's"), "'it'\\''s'");
    }

    #[test]
    fn each_half_can_be_printed_alone_and_no_line_is_longer_than_a_terminal() {
        let grants = grants("relay", "User:relay", &relay());
        let whole = text(&grants, Some("a:9092,b:9092"), None);
        let sql = text(&grants, None, Some(System::Postgres));
        let acls = text(&grants, Some("a:9092,b:9092"), Some(System::Kafka));
        assert_eq!(whole, format!("{sql}\n{acls}"));
        assert!(
            !sql.contains("kafka-acls") && !acls.contains("grant "),
            "{whole}"
        );
        assert!(whole.lines().all(|line| line.len() <= WIDTH), "{whole}");
    }

    #[test]
    fn a_role_without_rights_in_a_system_is_told_so() {
        let grants = grants("app", "User:app", &Duty::Migrator);
        assert!(text(&grants, None, None).ends_with("# Kafka: app needs nothing.\n"));
    }
}
