//! The binary. See `tidings --help`.

/// Half the CPU of the relay, and of librdkafka within it: see the dependency.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    tidings::cli::main()
}
