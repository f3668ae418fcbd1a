//! The binary `pointsman`. All that it does is in the library beside it, where it can be tested.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    pointsman_cli::run()
}
