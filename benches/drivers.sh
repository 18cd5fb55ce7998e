#!/usr/bin/env bash
# What a service that only publishes compiles, for each driver: crates, CPU seconds of a release build from clean, and bytes of the
# stripped program. Builds one after another in a temporary folder; takes about ten minutes on two cores.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
echo "| feature | crates | CPU s | MB |"
echo "|---|---|---|---|"
for feature in ${*:-outbox sqlx tokio-postgres diesel-async sea-orm}; do
  mkdir -p "$folder/$feature/src"
  cat >"$folder/$feature/Cargo.toml" <<TOML
[package]
name = "publishes"
version = "0.0.0"
edition = "2024"
[dependencies]
serde = { version = "1", features = ["derive"] }
tidings = { path = "$root", default-features = false, features = ["$feature"] }
[profile.release]
strip = true
[workspace]
TOML
  cat >"$folder/$feature/src/main.rs" <<'RUST'
use serde::{Deserialize, Serialize};
use tidings::{DomainEvent, Outbox};

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "order", id = "order_id")]
struct OrderPlaced {
    order_id: i64,
}

fn main() {
    let placed = Outbox::new().event(&OrderPlaced { order_id: 7 }).build();
    let placed = placed.expect("a valid event");
    println!("{:?}", Outbox::new().statement(&[placed]));
}
RUST
  cp "$root/Cargo.lock" "$folder/$feature/Cargo.lock"
  cd "$folder/$feature"
  crates=$(cargo tree --edges normal,build --prefix none 2>/dev/null | sed 's/ (.*//' | sort -u | wc -l)
  cargo fetch --quiet
  TIMEFORMAT='%U %S'
  seconds=$({ time cargo build --release --quiet 2>/dev/null; } 2>&1 | awk '{ printf "%.0f", $1 + $2 }')
  bytes=$(stat -c %s target/release/publishes)
  awk -v f="$feature" -v c="$crates" -v s="$seconds" -v b="$bytes" 'BEGIN { printf "| `%s` | %d | %d | %.1f |\n", f, c, s, b / 1e6 }'
  rm -rf target
done
