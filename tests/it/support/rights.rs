//! Rights of a role, as `tidings grants` prints them, and a broker that enforces them.

use std::process::Command;

use dev_services::{Acl, AclOperation, AclResource, Kafka, KafkaOptions};
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgPool};
use tidings::kafka::Settings;

use super::services::{TestDatabase, own_kafka};

/// The password of every role and principal of the tests.
const PASSWORD: &str = "secret";

/// One privilege on one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SqlRight {
    pub(crate) privilege: String,
    pub(crate) object: String,
    role: String,
}

impl SqlRight {
    pub(crate) async fn grant(&self, pool: &PgPool) {
        let Self {
            privilege,
            object,
            role,
        } = self;
        run(pool, format!("grant {privilege} on {object} to {role}")).await;
    }

    pub(crate) async fn revoke(&self, pool: &PgPool) {
        let Self {
            privilege,
            object,
            role,
        } = self;
        run(pool, format!("revoke {privilege} on {object} from {role}")).await;
    }
}

/// The rights that the command prints for a role.
pub(crate) struct Rights {
    pub(crate) role: String,
    create_role: Vec<String>,
    objects: Vec<String>,
    pub(crate) sql: Vec<SqlRight>,
    pub(crate) acls: Vec<Acl>,
}

impl Rights {
    /// Runs `tidings grants ARGUMENTS` for a role of this database with a new name.
    pub(crate) fn of(database: &TestDatabase, arguments: &[&str]) -> Self {
        let role = format!("r{}", uuid::Uuid::now_v7().simple());
        Self::of_role(database, &role, arguments)
    }

    /// Runs `tidings grants ARGUMENTS` for this role and the principal of the same name.
    pub(crate) fn of_role(database: &TestDatabase, role: &str, arguments: &[&str]) -> Self {
        let output = Command::new(env!("CARGO_BIN_EXE_tidings"))
            .arg("grants")
            .args(arguments)
            .args(["--role", role, "--json"])
            .env_clear()
            .env("DATABASE_URL", &database.url)
            .output()
            .expect("the binary runs");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{error}");
        let printed: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        Self {
            role: role.to_owned(),
            create_role: texts(&printed["create_role"]),
            objects: texts(&printed["objects"]),
            sql: each(&printed["postgres"], "privileges", |grant, privilege| {
                SqlRight {
                    privilege: privilege.to_owned(),
                    object: text(&grant["object"]),
                    role: text(&grant["to"]),
                }
            }),
            acls: each(&printed["kafka"], "operations", acl),
        }
    }

    /// Creates the role with its rights. Nothing is revoked from `public`.
    pub(crate) async fn grant(&self, pool: &PgPool) {
        for sql in &self.create_role {
            run(pool, sql.clone()).await;
        }
        let password = format!("alter role \"{}\" password '{PASSWORD}'", self.role);
        run(pool, password).await;
        for right in &self.sql {
            right.grant(pool).await;
        }
        for sql in &self.objects {
            run(pool, sql.clone()).await;
        }
    }

    /// Allows the entries on a broker.
    pub(crate) fn allow(&self, kafka: &Kafka) {
        for acl in &self.acls {
            kafka.create_acl(acl).expect("the entry is added");
        }
    }

    /// Returns the database's URL with the role.
    pub(crate) fn url(&self, database: &TestDatabase) -> String {
        let mut url: url::Url = database.url.parse().expect("a URL");
        url.set_username(&self.role).expect("a name");
        url.set_password(Some(PASSWORD)).expect("a password");
        url.to_string()
    }

    /// Drops the role.
    pub(crate) async fn drop_role(self, pool: &PgPool) {
        let role = &self.role;
        run(pool, format!("drop owned by {role}; drop role {role}")).await;
    }
}

fn text(value: &Value) -> String {
    value.as_str().expect("a string").to_owned()
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().expect("a list").iter().map(text).collect()
}

/// Returns one entry for each word in the list `words` of each grant.
fn each<T>(grants: &Value, words: &str, one: impl Fn(&Value, &str) -> T) -> Vec<T> {
    let grants = grants.as_array().expect("a list").iter();
    grants
        .flat_map(|grant| {
            let all = texts(&grant[words]);
            all.iter().map(|word| one(grant, word)).collect::<Vec<_>>()
        })
        .collect()
}

fn acl(grant: &Value, operation: &str) -> Acl {
    Acl {
        resource: match &*text(&grant["resource"]) {
            "topic" => AclResource::Topic,
            "group" => AclResource::Group,
            "transactional-id" => AclResource::TransactionalId,
            other => panic!("unexpected resource: {other}"),
        },
        name: text(&grant["name"]),
        prefixed: grant["pattern"] == "prefixed",
        principal: text(&grant["principal"]),
        operation: match operation {
            "Read" => AclOperation::Read,
            "Write" => AclOperation::Write,
            "Create" => AclOperation::Create,
            "Describe" => AclOperation::Describe,
            "DescribeConfigs" => AclOperation::DescribeConfigs,
            other => panic!("unexpected operation: {other}"),
        },
        allow: true,
    }
}

/// Revokes the privileges that every role has by default, so that each one must be granted.
pub(crate) async fn revoke_defaults(database: &TestDatabase) {
    let sql = format!(
        "revoke all on database \"{}\" from public; revoke all on schema public from public",
        database.name
    );
    run(&database.pool, sql).await;
}

pub(crate) async fn run(pool: &PgPool, sql: String) {
    sqlx::raw_sql(AssertSqlSafe(sql.clone()))
        .execute(pool)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// Starts a broker with an authorizer. Clients of its second listener authenticate as these users,
/// and have only the rights that are granted to their names.
pub(crate) async fn guarded_kafka(users: &[&str]) -> Kafka {
    let passwords: Vec<String> = users
        .iter()
        .map(|user| format!("user_{user}=\"{PASSWORD}\""))
        .collect();
    let options = KafkaOptions::new()
        .proxied(true)
        .set(
            "listener.security.protocol.map",
            "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXIED:SASL_PLAINTEXT",
        )
        .set("sasl.enabled.mechanisms", "PLAIN")
        .set(
            "listener.name.proxied.plain.sasl.jaas.config",
            format!(
                "org.apache.kafka.common.security.plain.PlainLoginModule required {};",
                passwords.join(" ")
            ),
        )
        .set(
            "authorizer.class.name",
            "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        )
        .set("super.users", "User:ANONYMOUS");
    own_kafka(options).await
}

/// Returns the settings with which this user of a guarded broker connects.
pub(crate) fn settings_of(user: &str, kafka: &Kafka) -> Settings {
    let properties = [
        ("security.protocol", "SASL_PLAINTEXT"),
        ("sasl.mechanisms", "PLAIN"),
        ("sasl.username", user),
        ("sasl.password", PASSWORD),
    ];
    Settings {
        brokers: kafka.proxied_brokers(),
        properties: properties
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
    }
}
