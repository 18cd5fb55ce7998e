//! Examples in the long help of each command.

/// Examples of each command, one per line.
pub(super) const EXAMPLES: &[(&str, &str)] = &[
    (
        "",
        "  tidings migrate --database-url postgres://app@localhost/shop
  tidings check --create-topics
  tidings relay --create-topics
  tidings status",
    ),
    (
        "try",
        "  tidings try
  tidings try --events 20 --rate 10",
    ),
    (
        "migrate",
        "  tidings migrate --wait 30s   # waits for a server that is starting",
    ),
    (
        "relay",
        "  tidings relay --config /etc/tidings.toml
  tidings relay --create-topics --delivery at-least-once --listen off",
    ),
    ("relay list", "  tidings relay list --json"),
    (
        "relay forget",
        "  tidings relay forget orders
  tidings relay forget orders --delete-topic   # also the topic of its positions",
    ),
    (
        "relay rewind",
        "  tidings relay rewind --name orders --since 2h --dry-run
  tidings relay rewind --name orders --all
  tidings relay rewind --name orders --to-mirror   # the topics were lost",
    ),
    (
        "relay adopt",
        "  tidings relay adopt --name orders --dry-run",
    ),
    (
        "relay skip",
        "  tidings relay skip --event 0199e6f0-5c1a-7d3e-9b21-4f0c8a2d6e10
  tidings relay skip --all --dry-run",
    ),
    ("topics", "  tidings topics list"),
    ("topics list", "  tidings topics list"),
    (
        "topics grow",
        "  tidings topics grow order --partitions 12
  tidings topics grow order --abort   # ends the hold of an interrupted attempt",
    ),
    (
        "check",
        "  tidings check --create-topics
  tidings check --json",
    ),
    (
        "status",
        "  tidings status
  tidings status --watch 5
  tidings status --json",
    ),
    (
        "where",
        "  tidings where   # the newest events
  tidings where order/17
  tidings where 0199e6f0-5c1a-7d3e-9b21-4f0c8a2d6e10 --payload",
    ),
    (
        "verify",
        "  tidings verify --since 1h
  tidings verify --follow --listen 127.0.0.1:9466",
    ),
    (
        "tail",
        "  tidings tail --from-beginning --max 10
  tidings tail order --type OrderPlaced --json",
    ),
    (
        "publish",
        "  tidings publish OrderPlaced --aggregate order/7 --payload-file order.json",
    ),
    (
        "console",
        "  tidings console
  tidings console --allow-actions --console-token-file /etc/tidings/token",
    ),
    (
        "dead-letters",
        "  tidings dead-letters list
  tidings dead-letters list order.inventory.dlt --since 2d",
    ),
    (
        "dead-letters list",
        "  tidings dead-letters list   # the newest letters of all topics
  tidings dead-letters list order.inventory.dlt --since 2d",
    ),
    (
        "dead-letters show",
        "  tidings dead-letters show order.inventory.dlt 3/120",
    ),
    (
        "dead-letters replay",
        "  tidings dead-letters replay order.inventory.dlt 3/120 3/121
  tidings dead-letters replay order.inventory.dlt --all --type OrderPlaced --dry-run",
    ),
    (
        "dead-letters discard",
        "  tidings dead-letters discard order.inventory.dlt 3/120
  tidings dead-letters discard order.inventory.dlt --all --dry-run",
    ),
    ("parked", "  tidings parked list --name orders"),
    ("parked list", "  tidings parked list --name orders"),
    ("parked show", "  tidings parked show order/17"),
    (
        "parked retry",
        "  tidings parked retry order/17
  tidings parked retry --all",
    ),
    (
        "parked discard",
        "  tidings parked discard 0199e6f0-5c1a-7d3e-9b21-4f0c8a2d6e10
  tidings parked discard --all --dry-run",
    ),
    (
        "subscribers",
        "  tidings subscribers list
  tidings subscribers pause inventory",
    ),
    ("subscribers list", "  tidings subscribers list"),
    (
        "subscribers pause",
        "  tidings subscribers pause inventory --reason migration",
    ),
    (
        "subscribers resume",
        "  tidings subscribers resume inventory",
    ),
    (
        "subscribers parked",
        "  tidings subscribers parked list --group inventory",
    ),
    (
        "subscribers parked list",
        "  tidings subscribers parked list --group inventory",
    ),
    (
        "subscribers parked show",
        "  tidings subscribers parked show order/17
  tidings subscribers parked show 0199e6f0-5c1a-7d3e-9b21-4f0c8a2d6e10 --json",
    ),
    (
        "subscribers parked retry",
        "  tidings subscribers parked retry order/17
  tidings subscribers parked retry --group inventory --all --dry-run",
    ),
    (
        "subscribers parked discard",
        "  tidings subscribers parked discard 0199e6f0-5c1a-7d3e-9b21-4f0c8a2d6e10
  tidings subscribers parked discard --group inventory --reason timeout --dry-run",
    ),
    (
        "sagas",
        "  tidings sagas list
  tidings sagas list --saga checkout --status failed",
    ),
    (
        "sagas list",
        "  tidings sagas list
  tidings sagas list --saga checkout --status failed",
    ),
    (
        "sagas show",
        "  tidings sagas show 0199e6f0-5c1a-7d3e-9b21-4f0c8a2d6e10",
    ),
    (
        "sagas retry",
        "  tidings sagas retry 0199e6f0-5c1a-7d3e-9b21-4f0c8a2d6e10",
    ),
    (
        "sagas abort",
        "  tidings sagas abort 0199e6f0-5c1a-7d3e-9b21-4f0c8a2d6e10",
    ),
    (
        "health",
        "  tidings health
  tidings health --live --listen 127.0.0.1:9464",
    ),
    (
        "grants",
        "  tidings grants relay order payment --role relay
  tidings grants subscriber order --group inventory --role inventory
  tidings grants publisher --role app --only postgres   # for psql",
    ),
    ("grants migrator", "  tidings grants migrator --role owner"),
    (
        "grants publisher",
        "  tidings grants publisher --role app --scheduling
  tidings grants publisher --role app --only postgres   # for psql",
    ),
    (
        "grants relay",
        "  tidings grants relay order payment
  tidings grants relay shop.* --role relay_shop --principal User:relay-shop",
    ),
    (
        "grants subscriber",
        "  tidings grants subscriber order --group inventory --role inventory
  tidings grants subscriber order --group orders --role app --sagas",
    ),
    (
        "grants operator",
        "  tidings grants operator order --group inventory",
    ),
    (
        "init",
        "  tidings init
  tidings init /etc/tidings.toml",
    ),
    (
        "config",
        "  tidings config schema   # for an editor that checks the file",
    ),
    (
        "config schema",
        "  tidings config schema   # for an editor that checks the file",
    ),
    (
        "completions",
        "  tidings completions bash   # for ~/.local/share/bash-completion/completions/tidings",
    ),
    (
        "man",
        "  tidings man
  tidings man relay rewind
  tidings man --folder ~/.local/share/man/man1",
    ),
    (
        "sagas disown",
        "  tidings sagas disown checkout --subscriber orders",
    ),
];
