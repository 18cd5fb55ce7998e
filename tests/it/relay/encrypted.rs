//! TLS and authentication: the demands of a database URL hold for every session.

use std::path::Path;
use std::process::Command;

use dev_services::{Postgres, PostgresOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::operator::insert;
use crate::support::running::{Place, Running};
use crate::support::services::{TestDatabase, migrated_database_on, own_postgres};

/// Starts a server with TLS and a role `ann`, which must authenticate over TCP with a SCRAM
/// password.
async fn server(basic_constraints: &str) -> (Postgres, TestDatabase) {
    let postgres = own_postgres(PostgresOptions::new()).await;
    let data = postgres.data_folder();
    certificate(&data, basic_constraints);
    let database = migrated_database_on(&postgres.url()).await;
    let name = database.url.rsplit('/').next().expect("a name").to_owned();
    let setting = [
        "create role ann superuser login password 'secret'".to_owned(),
        format!("alter database {name} owner to ann"),
        "alter system set ssl = on".to_owned(),
    ];
    for sql in setting {
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
            .execute(&database.pool)
            .await
            .expect("the statement succeeds");
    }
    let hba = "local all all trust\nhost all postgres all trust\n\
        host replication all all scram-sha-256\nhost all all all scram-sha-256\n";
    std::fs::write(data.join("pg_hba.conf"), hba).expect("the write succeeds");
    sqlx::raw_sql("select pg_reload_conf()")
        .execute(&database.pool)
        .await
        .expect("the statement succeeds");
    while !sqlx::query_scalar::<_, bool>("select current_setting('ssl')::boolean")
        .fetch_one(&database.pool)
        .await
        .expect("the query succeeds")
    {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    (postgres, database)
}

/// Creates a self-signed certificate for localhost in the server's data folder, with the owner of
/// that folder.
fn certificate(data: &Path, basic_constraints: &str) {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    let (key, certificate) = (data.join("server.key"), data.join("server.crt"));
    let made = Command::new("openssl")
        .args([
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
        ])
        // The machine trusts no authority of this name.
        .arg(format!("/CN=tidings-{}", uuid::Uuid::now_v7().simple()))
        .args(["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"])
        .args([
            "-addext",
            &format!("basicConstraints=critical,{basic_constraints}"),
        ])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .expect("openssl runs");
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).expect("set");
    let owner = std::fs::metadata(data).expect("a folder");
    for file in [&key, &certificate] {
        std::os::unix::fs::chown(file, Some(owner.uid()), Some(owner.gid()))
            .expect("the owner is set");
    }
}

fn as_ann(database: &TestDatabase, host: &str, query: &str) -> String {
    let mut url: url::Url = database.url.parse().expect("a URL");
    url.set_username("ann").expect("a name");
    url.set_password(Some("secret")).expect("a password");
    url.set_host(Some(host)).expect("a host");
    url.set_query(Some(query));
    url.to_string()
}

/// Neon issues URLs with such parameters.
#[tokio::test(flavor = "multi_thread")]
async fn every_session_is_bound_to_the_tls_channel_if_the_url_demands_it() {
    let (_postgres, database) = server("CA:FALSE").await;
    for query in [
        "sslmode=require&channel_binding=require",
        "sslmode=require&require_auth=scram-sha-256",
    ] {
        let place = Place {
            url: as_ann(&database, "localhost", query),
            ..Place::new(&database)
        };
        let relay = place.start();
        insert(&database.pool, 1..=20).await;
        place.reader().until_distinct(20);
        relay.says("stream", "streaming").await;
        // The view hides the columns of walsenders of other roles, so ann is a superuser.
        let sql = "select count(*), count(*) filter (where s.ssl) from pg_stat_ssl s \
            join pg_stat_activity a using (pid) where a.usename = 'ann'";
        let (sessions, encrypted): (i64, i64) = sqlx::query_as(sql)
            .fetch_one(&database.pool)
            .await
            .expect("the query succeeds");
        assert!(
            sessions >= 3 && sessions == encrypted,
            "{encrypted} of {sessions}"
        );
        let (code, text) = place.command(&["status"]);
        assert_eq!(code, 0, "{text}");
        relay.stop().await;
        sqlx::raw_sql("set local tidings.delete_unpublished = on; truncate tidings.outbox")
            .execute(&database.pool)
            .await
            .expect("the table is emptied");
    }
    let wrong = as_ann(&database, "localhost", "sslmode=require&require_auth=md5");
    let place = Place {
        url: wrong,
        ..Place::new(&database)
    };
    let refusal = place.start().refusal().await;
    assert!(
        refusal.contains("require_auth accepts md5 only"),
        "{refusal}"
    );
    let (code, text) = place.command(&["status"]);
    assert!(
        code != 0 && text.contains("require_auth accepts md5 only"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_refused_stops_the_relay_with_the_remedy() {
    for (constraints, host, remedy) in [
        ("CA:TRUE", "localhost", "basicConstraints"),
        ("CA:FALSE", "localhost", "sslrootcert=FILE"),
    ] {
        let (postgres, database) = server(constraints).await;
        let own = if constraints == "CA:TRUE" {
            format!("&sslrootcert={}", readable(&postgres).display())
        } else {
            String::new()
        };
        let place = Place {
            url: as_ann(&database, host, &format!("sslmode=verify-full{own}")),
            ..Place::new(&database)
        };
        let refusal = place.start().refusal().await;
        assert!(
            refusal.contains(remedy) && refusal.contains("localhost:"),
            "{refusal}"
        );
        let (code, text) = place.command(&["status"]);
        assert!(code != 0 && text.contains(remedy), "{text}");
    }
    // A self-signed certificate without the rights of an authority may be its own root.
    let (postgres, database) = server("CA:FALSE").await;
    let root = readable(&postgres);
    let place = Place {
        url: as_ann(
            &database,
            "localhost",
            &format!("sslmode=verify-full&sslrootcert={}", root.display()),
        ),
        ..Place::new(&database)
    };
    let relay = place.start();
    relay.says("lease", "leads").await;
    relay.stop().await;
}

/// Copies the server's certificate to a place that every account can read.
fn readable(postgres: &Postgres) -> std::path::PathBuf {
    let copy =
        std::env::temp_dir().join(format!("tidings-it-{}.crt", uuid::Uuid::now_v7().simple()));
    std::fs::copy(postgres.data_folder().join("server.crt"), &copy).expect("the copy succeeds");
    copy
}

/// A server requests the password in clear text. The test records the bytes that the relay sends.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_asks_for_the_password_in_clear_text_is_not_sent_it_where_that_is_excluded() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener
        .local_addr()
        .expect("the listener has an address")
        .port();
    let (sent, mut received) = tokio::sync::mpsc::unbounded_channel::<Vec<u8>>();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let sent = sent.clone();
            tokio::spawn(async move {
                let mut buffer = vec![0; 4096];
                // Decline the request for TLS, which has eight bytes. Answer the start-up message
                // with the request for a clear-text password.
                while let Ok(read @ 1..) = client.read(&mut buffer).await {
                    let answer: &[u8] = if read == 8 {
                        b"N"
                    } else {
                        b"R\0\0\0\x08\0\0\0\x03"
                    };
                    let _ = sent.send(buffer[..read].to_vec());
                    if client.write_all(answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    for query in ["require_auth=scram-sha-256", "require_auth=!password"] {
        let url = format!("postgres://ann:hunter2@127.0.0.1:{port}/shop?{query}");
        let options = tidings::relay::RelayOptions::new(
            tidings::postgres::DatabaseSettings::parse(&url).expect("a URL"),
            Default::default(),
        );
        let refusal = Running::start(options).refusal().await;
        assert!(
            refusal.contains("in clear text") && refusal.contains("nothing was sent"),
            "{refusal}"
        );
    }
    received.close();
    while let Some(bytes) = received.recv().await {
        assert!(
            !bytes.windows(7).any(|part| part == b"hunter2"),
            "the password was sent"
        );
    }
}
