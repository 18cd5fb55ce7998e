//! Tables of URLs and their meanings.

use super::{resolve::CONNECT_TIMEOUT, *};

fn parse(url: &str) -> DatabaseSettings {
    resolve(url, |_| None).unwrap_or_else(|error| panic!("{url}: {error}"))
}

fn fault(url: &str) -> String {
    resolve(url, |_| None).expect_err(url).to_string()
}

#[test]
fn a_url_says_where_the_database_is() {
    for (url, host, port, user, password, database) in [
        (
            "postgres://ann:s3cret@db:6432/shop",
            "db",
            6432,
            "ann",
            Some("s3cret"),
            "shop",
        ),
        ("postgresql://ann@db/shop", "db", 5432, "ann", None, "shop"),
        ("postgres://ann@db", "db", 5432, "ann", None, "ann"),
        (
            "postgres://a%40b:p%40%3A%2F%3F%23%25@db/my%20shop",
            "db",
            5432,
            "a@b",
            Some("p@:/?#%"),
            "my shop",
        ),
        (
            "postgres://ann:a:b@db/shop",
            "db",
            5432,
            "ann",
            Some("a:b"),
            "shop",
        ),
        (
            "postgres://ann@[::1]:6432/shop",
            "::1",
            6432,
            "ann",
            None,
            "shop",
        ),
        (
            "postgres://x/y?host=db&port=6432&user=ann&password=p+q&dbname=shop",
            "db",
            6432,
            "ann",
            Some("p+q"),
            "shop",
        ),
        (
            "  postgres://ann@db/shop\n",
            "db",
            5432,
            "ann",
            None,
            "shop",
        ),
    ] {
        let settings = parse(url);
        let found = (
            settings.host(),
            settings.port(),
            settings.user(),
            settings.password(),
            settings.database(),
        );
        assert_eq!(found, (host, port, user, password, database), "{url}");
        assert_eq!(settings.socket_dir(), None, "{url}");
    }
}

#[test]
fn a_host_that_is_a_path_is_a_socket_directory() {
    for url in [
        "postgres://ann@%2Fvar%2Frun/shop",
        "postgres:///shop?host=/var/run&user=ann",
        "postgres:///shop?host=%2Fvar%2Frun&user=ann",
    ] {
        let settings = parse(url);
        assert_eq!(settings.socket_dir(), Some(Path::new("/var/run")), "{url}");
        assert_eq!(
            (settings.user(), settings.database()),
            ("ann", "shop"),
            "{url}"
        );
        assert_eq!(
            settings.redacted(),
            "postgres://ann@%2Fvar%2Frun:5432/shop?sslmode=prefer"
        );
        assert_eq!(
            settings.connect_options().get_socket(),
            Some(&PathBuf::from("/var/run"))
        );
    }
}

#[test]
fn what_the_url_leaves_out_comes_from_the_environment_and_the_url_wins() {
    let env = |name: &str| {
        let value = match name {
            "PGHOST" => "envhost",
            "PGPORT" => "7000",
            "PGUSER" => "envuser",
            "PGPASSWORD" => "envpass",
            "PGDATABASE" => "envdb",
            "PGSSLMODE" => "require",
            "PGSSLROOTCERT" => "/env.pem",
            "PGOPTIONS" => "-c work_mem=1MB",
            _ => return None,
        };
        Some(value.to_owned())
    };
    let settings = resolve("postgres://", env).expect("an empty URL is completed");
    assert_eq!(
        settings.redacted(),
        "postgres://envuser:***@envhost:7000/envdb?sslmode=verify-ca"
    );
    assert_eq!(settings.password(), Some("envpass"));
    assert_eq!(settings.ssl_root_cert(), Some(Path::new("/env.pem")));
    assert_eq!(
        settings.options(),
        [("work_mem".to_owned(), "1MB".to_owned())]
    );

    let settings = resolve("postgres://ann:p@db:1/shop?sslmode=disable", env).expect("a full URL");
    assert_eq!(
        settings.redacted(),
        "postgres://ann:***@db:1/shop?sslmode=disable"
    );
    assert_eq!(settings.password(), Some("p"));
}

#[test]
fn encryption_is_named_as_libpq_names_it() {
    for (query, mode) in [
        ("", SslMode::Prefer),
        ("?sslmode=disable", SslMode::Disable),
        ("?sslmode=prefer", SslMode::Prefer),
        ("?sslmode=require", SslMode::Require),
        ("?sslmode=verify-ca", SslMode::VerifyCa),
        ("?sslmode=verify-full", SslMode::VerifyFull),
        ("?sslrootcert=system", SslMode::VerifyFull),
    ] {
        let settings = parse(&format!("postgres://ann@db/shop{query}"));
        assert_eq!(settings.ssl_mode(), mode, "{query}");
        assert_eq!(settings.ssl_root_cert(), None, "{query}");
    }
    // As in libpq: with a root certificate, `require` verifies the authority.
    let settings = parse("postgres://ann@db/shop?sslmode=require&sslrootcert=/ca.pem");
    assert_eq!(settings.ssl_mode(), SslMode::VerifyCa);
    let settings =
        parse("postgres://ann@db/shop?sslrootcert=/ca.pem&sslcert=/me.pem&sslkey=/me.key");
    assert_eq!(settings.ssl_root_cert(), Some(Path::new("/ca.pem")));
    assert_eq!(
        settings.ssl_client_identity(),
        Some((Path::new("/me.pem"), Path::new("/me.key")))
    );
}

#[test]
fn session_settings_names_and_timeouts_pass_through() {
    let settings = parse(
        "postgres://ann@db/shop?options=-c%20a.b=1%20--work-mem=2%20-cx=y%5C%20z&connect_timeout=3&application_name=me",
    );
    let options: Vec<_> = settings
        .options()
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    assert_eq!(options, [("a.b", "1"), ("work_mem", "2"), ("x", "y z")]);
    assert_eq!(settings.connect_timeout(), Duration::from_secs(3));
    assert_eq!(settings.application_name("relay"), "me");
    let connect = settings.connect_options();
    assert!(
        connect
            .get_options()
            .is_some_and(|text| text.ends_with(r"-c a.b=1 -c work_mem=2 -c x=y\ z"))
    );

    let settings = parse("postgres://ann@db/shop");
    assert_eq!(
        settings.connect_options_as("relay").get_application_name(),
        Some("tidings relay")
    );
    assert_eq!(
        settings.connect_options().get_application_name(),
        Some("tidings")
    );
    assert_eq!(settings.connect_timeout(), CONNECT_TIMEOUT);
}

#[test]
fn urls_that_services_hand_out_are_read_as_they_are() {
    for (url, gateway) in [
        (
            "postgresql://neondb_owner:npg_x@ep-a-1.eu-central-1.aws.neon.tech/neondb?sslmode=require&channel_binding=require",
            true,
        ),
        (
            "postgres://u:p@ep-a-1.aws.neon.tech/neondb?sslmode=require&options=endpoint%3Dep-a-1",
            false,
        ),
        (
            "postgresql://postgres:p@db.abc.supabase.co:5432/postgres",
            false,
        ),
        (
            "postgres://u:p@shop.abc.eu-west-1.rds.amazonaws.com:5432/shop?sslmode=verify-full&sslrootcert=/global-bundle.pem",
            false,
        ),
        (
            "postgres://u:p@shop.postgres.database.azure.com:5432/shop?sslmode=require&target_session_attrs=read-write",
            false,
        ),
        (
            "postgres://u:p@db/shop?keepalives=1&keepalives_idle=30&keepalives_interval=10&keepalives_count=5&tcp_user_timeout=1",
            false,
        ),
        (
            "postgres://u:p@db/shop?gssencmode=disable&sslcompression=0&client_encoding=utf8&sslmode=allow",
            false,
        ),
        (
            "postgres://u:p@db/shop?sslmode=require&sslnegotiation=direct",
            true,
        ),
        (
            "postgres://u:p@db/shop?require_auth=scram-sha-256&sslsni=1",
            true,
        ),
        (
            "postgres://u:p@db/shop?channel_binding=prefer&sslsni=0",
            true,
        ),
    ] {
        assert_eq!(parse(url).needs_gateway(), gateway, "{url}");
    }
    let settings = parse("postgres://u:p@db/shop?fallback_application_name=mine");
    assert_eq!(settings.application_name("relay"), "mine");
    let env = |name: &str| (name == "PGCHANNELBINDING").then(|| "require".to_owned());
    let settings = resolve("postgres://u:p@db/shop?sslmode=require", env).expect("a URL");
    assert_eq!(settings.channel_binding(), ChannelBinding::Require);
}

#[test]
fn a_password_comes_from_a_file_that_no_other_account_reads() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = std::env::temp_dir().join(format!("tidings-passfile-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let file = folder.join("pass");
    std::fs::write(&file, "db:5432:shop:ann:filed\n").expect("written");
    let url = format!("postgres://ann@db/shop?passfile={}", file.display());
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).expect("set");
    assert!(fault(&url).contains("chmod 600"));
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("set");
    assert_eq!(parse(&url).password(), Some("filed"));
    assert_eq!(
        parse(&format!(
            "postgres://ann:own@db/shop?passfile={}",
            file.display()
        ))
        .password(),
        Some("own")
    );
    std::fs::remove_dir_all(&folder).expect("removed");
}

#[test]
fn a_url_that_cannot_be_used_is_refused_with_the_way_out() {
    for (url, expected) in [
        ("", "write postgres://"),
        ("db:5432", "write postgres://"),
        ("mysql://ann@db/shop", "write postgres://"),
        ("host=db user=ann", "write postgres://"),
        ("postgres://ann@/shop", "no host"),
        ("postgres://ann@a:1,b:2/shop", "several hosts"),
        ("postgres://ann@a,b/shop", "several hosts"),
        (
            "postgres://ann@db/shop?sslmod=require",
            "unknown parameter sslmod; did you mean sslmode?",
        ),
        (
            "postgres://ann@db/shop?pool=1",
            "unknown parameter pool; remove it",
        ),
        (
            "postgres://ann@db/shop?channel_binding=yes",
            "use disable, prefer or require",
        ),
        (
            "postgres://ann@db/shop?channel_binding=require&sslmode=disable",
            "needs TLS",
        ),
        (
            "postgres://ann@%2Ftmp/shop?channel_binding=require",
            "needs TLS",
        ),
        ("postgres://ann@db/shop?require_auth=scram", "scram-sha-256"),
        (
            "postgres://ann@db/shop?target_session_attrs=prefer-standby",
            "tidings writes",
        ),
        (
            "postgres://ann@db/shop?gssencmode=require",
            "GSSAPI encryption is not supported",
        ),
        (
            "postgres://ann@db/shop?sslnegotiation=direct",
            "needs sslmode=require or stronger, not prefer",
        ),
        ("postgres://ann@db/shop?sslsni=2", "use 0 or 1"),
        (
            "postgres://ann@db/shop?service=shop",
            "parameter service is not supported",
        ),
        (
            "postgres://ann@db/shop?sslcrl=/crl.pem",
            "revocation lists are not read",
        ),
        (
            "postgres://ann@db/shop?sslmode=on",
            "use disable, prefer, require, verify-ca or verify-full",
        ),
        (
            "postgres://ann@db/shop?sslcert=/a",
            "sslcert is given without sslkey",
        ),
        (
            "postgres://ann@db/shop?sslkey=/a",
            "sslkey is given without sslcert",
        ),
        (
            "postgres://ann@db/shop?sslrootcert=system&sslmode=require",
            "needs sslmode=verify-full",
        ),
        ("postgres://ann@db/shop?connect_timeout=0", "at least 1"),
        ("postgres://ann@db/shop?port=0", "between 1 and 65535"),
        ("postgres://ann@db/shop?options=work_mem", "-c name=value"),
        ("postgres://ann@db/%FF", "not UTF-8"),
    ] {
        let text = fault(url);
        assert!(text.contains(expected), "{url}: {text}");
    }
    let text = fault("postgres://ann@db/shop?sslmode=on&pool=1&connect_timeout=x");
    assert!(
        text.contains("sslmode") && text.contains("pool") && text.contains("connect_timeout"),
        "{text}"
    );
}

#[test]
fn a_password_is_never_shown_whatever_is_wrong_with_the_url() {
    let settings = parse("postgres://ann:hunter2@db/shop?password=hunter2");
    let error = format!("{settings:?} {}", settings.redacted());
    assert!(!error.contains("hunter2"), "{error}");
    for url in [
        "postgres://ann:hun#ter2@db/shop",
        "postgres://ann:12/hunter2@db/shop",
        "postgres://ann:12?hunter2@db/shop",
        "postgres://ann:12#hunter2@db/shop",
        "postgres://ann:hunter2@@db:x/shop",
        "postgres://ann:hunter2@db:99999/shop",
        "ann:hunter2@db/shop",
        "host=db password=hunter2",
    ] {
        let text = fault(url);
        assert!(
            !text.contains("hun") && !text.contains("ter2"),
            "{url}: {text}"
        );
    }
}
