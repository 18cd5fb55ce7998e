//! The recipe of the image.

use super::{python_tools, text};

const RECIPE: &str = "deploy/Dockerfile";

#[tokio::test]
async fn hadolint_accepts_the_recipe() {
    let Some(tools) = python_tools().await else {
        return;
    };
    let file = super::path(RECIPE);
    tools
        .run(&["hadolint", file.to_str().expect("UTF-8")])
        .await;
}

#[test]
fn the_image_runs_as_a_number_without_a_shell_and_probes_itself() {
    let recipe = text(RECIPE);
    let last = recipe.rsplit("\nFROM ").next().expect("a stage");
    let user = last.lines().find_map(|line| line.strip_prefix("USER "));
    let user = user.expect("a user");
    assert!(
        user.split(':')
            .all(|part| part.parse::<u32>().is_ok_and(|id| id > 0)),
        "{user}"
    );
    // With a shell in between, signals would not reach the relay.
    for instruction in ["ENTRYPOINT ", "CMD "] {
        let line = last.lines().find_map(|line| line.strip_prefix(instruction));
        assert!(line.is_some_and(|line| line.starts_with('[')), "{line:?}");
    }
    assert!(last.contains("CMD [\"tidings\", \"health\"]"), "{last}");
    for label in ["title", "description", "licenses", "version", "revision"] {
        let label = format!("org.opencontainers.image.{label}=");
        assert!(last.contains(&label), "{label}");
    }
}
