//! `edge-relay compile`: the child process that compiles one component for the host.

use clap::Args;

use crate::{
    command::Failure,
    component::load::compile::{
        child,
        child::{ChildError, ChildLimits},
    },
};

/// Compiles the component on standard input to machine code on standard output, within limits.
///
/// The host starts it. It has no other use.
#[derive(Args)]
pub struct Compile {
    /// Most bytes of memory.
    #[arg(long)]
    memory: u64,
    /// Most seconds of processor time.
    #[arg(long)]
    seconds: u64,
    /// Most bytes of code.
    #[arg(long)]
    size: u64,
}

impl Compile {
    pub fn run(self) -> Result<(), Failure> {
        let Self { memory, seconds, size } = self;
        child::run(&ChildLimits { memory, seconds, size }).map_err(|error| match error {
            ChildError::Refused(_) => Failure::Coded(child::REFUSED, error.into()),
            ChildError::NoMemory(_) => Failure::Coded(child::NO_MEMORY, error.into()),
            ChildError::Io(_) | ChildError::Limits(_) => Failure::failed(error),
        })
    }
}
