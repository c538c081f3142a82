//! The backend as a program of its own, for tests of drivers; the host binary has it as `lightbyte vsock`.

use std::process::ExitCode;

fn main() -> ExitCode {
    lightbyte_vsock::main_with(std::env::args_os().skip(1))
}
