/// Source of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// An address that the user set.
    Environment(String),
    /// `docker compose`.
    Compose,
    /// Programs on this machine.
    Programs,
}

/// Chooses the source: an address from the user first, then Docker, then programs.
pub(crate) fn choose(
    address: Option<String>,
    wish: Option<&str>,
    docker_answers: impl FnOnce() -> bool,
) -> Choice {
    match address.filter(|address| !address.is_empty()) {
        Some(address) => Choice::Environment(address),
        None if wish == Some("programs") => Choice::Programs,
        None if docker_answers() => Choice::Compose,
        None => Choice::Programs,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_wins_over_docker_and_docker_wins_over_programs() {
        let address = |text: &str| Some(text.to_owned());
        assert_eq!(
            choose(address("here"), None, || panic!("docker is not queried")),
            Choice::Environment("here".to_owned())
        );
        assert_eq!(choose(None, None, || true), Choice::Compose);
        assert_eq!(choose(address(""), None, || true), Choice::Compose);
        assert_eq!(choose(None, None, || false), Choice::Programs);
        assert_eq!(
            choose(None, Some("programs"), || panic!("docker is not queried")),
            Choice::Programs
        );
    }
}
