//! The binary. See `tidings --help`.

fn main() -> std::process::ExitCode {
    tidings::cli::main()
}
