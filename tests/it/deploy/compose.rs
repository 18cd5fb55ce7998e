//! `docker-compose.yml`: its services, and the relations between them.

use std::collections::BTreeSet;

use yaml_rust2::Yaml;

use super::{path, seconds, yaml};

fn services() -> Yaml {
    yaml("docker-compose.yml").remove(0)["services"].clone()
}

fn names(services: &Yaml) -> Vec<&str> {
    let all = services.as_hash().expect("a table").keys();
    all.map(|name| name.as_str().expect("a name")).collect()
}

/// Returns the profiles of a service. A service without profiles is always started.
fn profiles(service: &Yaml) -> BTreeSet<&str> {
    let all = service["profiles"].as_vec().into_iter().flatten();
    all.filter_map(Yaml::as_str).collect()
}

#[test]
fn a_profile_starts_everything_that_its_services_depend_on() {
    let services = services();
    let mut seen = BTreeSet::new();
    for name in names(&services) {
        let service = &services[name];
        let own = profiles(service);
        seen.extend(own.iter().map(|profile| (*profile).to_owned()));
        let needed = service["depends_on"].as_hash().into_iter().flatten();
        for (other, how) in needed {
            let other = other.as_str().expect("a name");
            let theirs = profiles(&services[other]);
            let is_started = theirs.is_empty() || !own.is_empty() && own.is_subset(&theirs);
            assert!(
                is_started,
                "{name} needs {other}, which {own:?} does not start"
            );
            assert_eq!(how["condition"].as_str(), Some("service_healthy"), "{name}");
        }
    }
    assert_eq!(seen, ["observe", "relay"].map(String::from).into());
}

#[test]
fn the_relay_is_stopped_later_than_its_shutdown_grace() {
    let relay = &services()["relay"];
    let grace = relay["environment"]["TIDINGS_SHUTDOWN_GRACE"].as_str();
    let stop = relay["stop_grace_period"].as_str();
    let (grace, stop) = (grace.expect("a grace"), stop.expect("a period"));
    assert!(seconds(stop) > seconds(grace) + 2, "{stop} after {grace}");
    assert_eq!(relay["healthcheck"]["test"][1].as_str(), Some("tidings"));
    assert_eq!(relay["healthcheck"]["test"][2].as_str(), Some("health"));
}

#[test]
fn every_service_has_a_health_check_and_listens_on_loopback() {
    let services = services();
    for name in names(&services) {
        let service = &services[name];
        let check = &service["healthcheck"]["test"];
        assert!(!check.is_badvalue(), "{name} has no health check");
        for port in service["ports"].as_vec().into_iter().flatten() {
            let port = port.as_str().expect("text");
            assert!(port.starts_with("127.0.0.1:"), "{name}: {port}");
        }
    }
}

#[test]
fn every_mounted_file_exists_and_prometheus_scrapes_the_port_of_the_relay() {
    let services = services();
    for name in names(&services) {
        for volume in services[name]["volumes"].as_vec().into_iter().flatten() {
            let volume = volume.as_str().expect("text");
            let source = volume.split(':').next().expect("a source");
            assert!(path(source).exists(), "{name}: {source}");
        }
        let build = &services[name]["build"]["dockerfile"];
        if let Some(file) = build.as_str() {
            assert!(path(file).exists(), "{name}: {file}");
        }
    }
    let prometheus = &yaml("deploy/prometheus/prometheus.yml")[0];
    let target = prometheus["scrape_configs"][0]["static_configs"][0]["targets"][0].as_str();
    let listen = services["relay"]["environment"]["TIDINGS_ADMIN_LISTEN"].as_str();
    let port = listen.and_then(|listen| listen.rsplit(':').next());
    assert_eq!(target, port.map(|port| format!("relay:{port}")).as_deref());
}
