//! The `edge-relay` program: parses the command line, runs the command, turns its error into an exit code.

use std::process::ExitCode;

use clap::Parser;
use edge_relay::command::{Command, Failure};

/// A WebSocket relay whose logic is sandboxed WASM components.
#[derive(Parser)]
#[command(name = "edge-relay", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

fn main() -> ExitCode {
    match Arguments::parse().command.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(error)) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
        Err(Failure::Coded(code, error)) => {
            eprintln!("{error}");
            ExitCode::from(code)
        }
        Err(Failure::Failed(error)) => {
            eprintln!("edge-relay: {error}");
            ExitCode::FAILURE
        }
    }
}
