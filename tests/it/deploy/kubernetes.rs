//! Manifests and chart: valid for Kubernetes, and consistent with the relay.

use std::process::{Command, Stdio};

use yaml_rust2::{Yaml, YamlLoader};

use super::{Folder, path, python_tools, seconds, text, yaml};

const MANIFESTS: [&str; 2] = [
    "deploy/kubernetes/relay.yaml",
    "deploy/kubernetes/migrate.yaml",
];

/// Version of the schemas: the oldest that the project of Kubernetes still maintains.
const VERSION: &str = "1.34";

/// Returns the document of a kind.
fn of_kind<'d>(documents: &'d [Yaml], kind: &str) -> &'d Yaml {
    let found = documents
        .iter()
        .find(|one| one["kind"].as_str() == Some(kind));
    found.unwrap_or_else(|| panic!("no {kind}"))
}

/// Asserts the relations of a deployment to the relay and to the other documents.
fn assert_sound(documents: &[Yaml]) {
    let deployment = of_kind(documents, "Deployment");
    let spec = &deployment["spec"];
    let pod = &spec["template"]["spec"];
    assert_eq!(spec["replicas"].as_i64(), Some(2));
    let grace = pod["terminationGracePeriodSeconds"].as_i64();
    assert!(grace > Some(default_grace() + 2), "{grace:?}");
    let affinity = &pod["affinity"]["podAntiAffinity"];
    let required = &affinity["requiredDuringSchedulingIgnoredDuringExecution"][0];
    let labels = &spec["selector"]["matchLabels"];
    assert_eq!(&required["labelSelector"]["matchLabels"], labels);
    let budget = of_kind(documents, "PodDisruptionBudget");
    assert_eq!(budget["spec"]["maxUnavailable"].as_i64(), Some(1));
    assert_eq!(&budget["spec"]["selector"]["matchLabels"], labels);
    assert_eq!(&of_kind(documents, "Service")["spec"]["selector"], labels);

    let container = &pod["containers"][0];
    for (probe, path) in [
        ("livenessProbe", "/health/live"),
        ("readinessProbe", "/health/ready"),
    ] {
        assert_eq!(container[probe]["httpGet"]["path"].as_str(), Some(path));
    }
    // Without its own name for the settings, the relay refuses a variable of another service.
    assert_eq!(pod["enableServiceLinks"].as_bool(), Some(false));
    // Secrets are files only.
    for variable in container["env"].as_vec().expect("variables") {
        let name = variable["name"].as_str().expect("a name");
        assert!(name != "DATABASE_URL", "{name}");
        assert!(variable["valueFrom"].is_badvalue(), "{name}");
    }
    assert_is_restricted(pod);
    assert_is_restricted(&of_kind(documents, "Job")["spec"]["template"]["spec"]);
}

/// Asserts the rules of the Pod Security Standard `restricted`.
fn assert_is_restricted(pod: &Yaml) {
    let all = &pod["securityContext"];
    assert_eq!(all["runAsNonRoot"].as_bool(), Some(true));
    let profile = &all["seccompProfile"]["type"];
    assert_eq!(profile.as_str(), Some("RuntimeDefault"));
    let recipe = text("deploy/Dockerfile");
    let user = all["runAsUser"].as_i64().expect("a user");
    assert!(recipe.contains(&format!("USER {user}:{user}\n")), "{user}");
    let one = &pod["containers"][0]["securityContext"];
    assert_eq!(one["allowPrivilegeEscalation"].as_bool(), Some(false));
    assert_eq!(one["readOnlyRootFilesystem"].as_bool(), Some(true));
    assert_eq!(one["capabilities"]["drop"][0].as_str(), Some("ALL"));
}

/// Returns the default of `shutdown_grace` in seconds.
fn default_grace() -> i64 {
    let reference = text("docs/configuration.md");
    let row = reference
        .lines()
        .find(|line| line.starts_with("| `shutdown_grace`"));
    let default = row
        .and_then(|row| row.split('|').nth(4))
        .expect("a default");
    i64::try_from(seconds(default.trim().trim_matches('`'))).expect("a small number")
}

/// Validates files against the schemas of Kubernetes. Other resources, such as those of the
/// Prometheus operator, have no schema there.
async fn validate(files: &[&str]) {
    let Some(tools) = python_tools().await else {
        return;
    };
    let mut arguments = vec!["kubernetes-validate", "--strict", "-k", VERSION];
    arguments.extend(files);
    tools.run(&arguments).await;
}

#[test]
fn the_manifests_agree_with_the_relay_and_the_image() {
    assert_sound(&MANIFESTS.map(yaml).concat());
    let monitor = &yaml("deploy/kubernetes/servicemonitor.yaml")[0]["spec"];
    let relay = yaml(MANIFESTS[0]);
    let service = of_kind(&relay, "Service");
    assert_eq!(
        monitor["selector"]["matchLabels"],
        service["metadata"]["labels"]
    );
    let port = &service["spec"]["ports"][0]["name"];
    assert_eq!(&monitor["endpoints"][0]["port"], port);
}

#[tokio::test]
async fn kubernetes_accepts_the_manifests() {
    let files = MANIFESTS.map(|name| path(name).to_str().expect("UTF-8").to_owned());
    validate(&files.each_ref().map(String::as_str)).await;
}

/// The settings in the manifest are those of a relay.
#[test]
fn the_relay_accepts_the_settings_of_the_manifest() {
    let relay = yaml(MANIFESTS[0]);
    let settings = &of_kind(&relay, "ConfigMap")["data"]["tidings.toml"];
    let folder = Folder::new();
    let settings = folder.file("tidings.toml", settings.as_str().expect("text"));
    let url = folder.file("database-url", "postgres://127.0.0.1:1/none\n");
    let output = Command::new(env!("CARGO_BIN_EXE_tidings"))
        .args(["grants", "relay", "order"])
        .env_clear()
        .env("TIDINGS_CONFIG", settings)
        .env("DATABASE_URL_FILE", url)
        .output()
        .expect("the binary runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
}

#[tokio::test]
async fn the_chart_renders_the_same_relations_with_and_without_its_options() {
    let chart = path("deploy/helm/tidings");
    let render = |options: &[&str]| {
        let rendered = Command::new("helm")
            .args(["template", "shop"])
            .arg(&chart)
            .args(options)
            .stdin(Stdio::null())
            .output();
        let Ok(rendered) = rendered else {
            // Debian has no package of helm, so its absence is no failure.
            eprintln!(
                "SKIPPED: helm is missing; \
                 go install helm.sh/helm/v3/cmd/helm@latest"
            );
            return None;
        };
        let error = String::from_utf8_lossy(&rendered.stderr);
        assert!(rendered.status.success(), "{options:?}: {error}");
        Some(String::from_utf8(rendered.stdout).expect("UTF-8"))
    };
    let Some(plain) = render(&[]) else {
        return;
    };
    assert_sound(&YamlLoader::load_from_str(&plain).expect("YAML"));
    let options = [
        "--set=kafka.brokers=a:1\\,b:2",
        "--set=secrets.kafkaProperties.SASL_PASSWORD.name=s",
        "--set=secrets.kafkaProperties.SASL_PASSWORD.key=k",
        "--set-string=settings=[limits]\nin_flight_events = 64\n",
        "--set=serviceMonitor.labels.release=prometheus",
        "--set=nodeSelector.disk=ssd",
        "--set=podAnnotations.a=b",
    ];
    let full = render(&options).expect("helm runs");
    let documents = YamlLoader::load_from_str(&full).expect("YAML");
    assert_sound(&documents);
    let pod = &of_kind(&documents, "Deployment")["spec"]["template"]["spec"];
    let variables = pod["containers"][0]["env"].as_vec().expect("variables");
    let value = |name: &str| {
        let all = variables.iter();
        let mut named = all.filter(|one| one["name"].as_str() == Some(name));
        named.next().and_then(|one| one["value"].as_str())
    };
    assert_eq!(value("TIDINGS_KAFKA_BROKERS"), Some("a:1,b:2"));
    assert_eq!(
        value("TIDINGS_KAFKA_PROPERTIES_SASL_PASSWORD_FILE"),
        Some("/run/secrets/tidings/SASL_PASSWORD")
    );
    let folder = Folder::new();
    let preferred = render(&["--set=antiAffinity=preferred"]).expect("helm runs");
    let files = [
        folder.file("plain.yaml", &plain),
        folder.file("full.yaml", &full),
        folder.file("preferred.yaml", &preferred),
    ];
    validate(&files.each_ref().map(String::as_str)).await;
    let monitored = render(&["--set=serviceMonitor.enabled=true"]).expect("helm runs");
    assert!(monitored.contains("kind: ServiceMonitor"), "{monitored}");
}
