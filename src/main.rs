//! Binary `tidings`. See `tidings --help`.

/// Allocator of the process. It halves the CPU time of the relay, including librdkafka; see the
/// dependency in `Cargo.toml`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    tidings::cli::main()
}
