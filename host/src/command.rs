//! The commands, one module each.

use std::{error::Error, io};

use clap::Subcommand;
use tokio::runtime::Runtime;

use crate::relay::StartError;

mod compile;
mod component;
mod demo;
mod feed;
mod host;
mod migrate;
mod pass;
mod retention;
mod serve;
mod tenants;

#[derive(Subcommand)]
pub enum Command {
    Serve(serve::Serve),
    Pass(pass::Pass),
    Demo(demo::Demo),
    Feed(feed::Feed),
    Component(component::Component),
    Tenants(tenants::Tenants),
    Migrate(migrate::Migrate),
    Retention(retention::Retention),
    #[command(hide = true)]
    Compile(compile::Compile),
}

/// Why a command ended early.
pub enum Failure {
    /// The request is wrong: exit code 2.
    Usage(Box<dyn Error>),
    /// The request could not be carried out: exit code 1.
    Failed(Box<dyn Error>),
    /// An exit code that the program which started this one knows.
    Coded(u8, Box<dyn Error>),
}

impl Failure {
    fn usage(error: impl Into<Box<dyn Error>>) -> Self {
        Self::Usage(error.into())
    }

    fn failed(error: impl Into<Box<dyn Error>>) -> Self {
        Self::Failed(error.into())
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Components(_) | StartError::Manifests(_) | StartError::Tls(_) | StartError::Proxy(_) => {
                Self::usage(error)
            }
            error => Self::failed(error),
        }
    }
}

impl Command {
    pub fn run(self) -> Result<(), Failure> {
        match self {
            Self::Serve(serve) => serve.run(),
            Self::Pass(pass) => pass.run(),
            Self::Demo(demo) => demo.run(),
            Self::Feed(feed) => feed.run(),
            Self::Component(component) => component.run(),
            Self::Tenants(tenants) => tenants.run(),
            Self::Migrate(migrate) => migrate.run(),
            Self::Retention(retention) => retention.run(),
            Self::Compile(compile) => compile.run(),
        }
    }
}

/// The runtime of listeners and upstreams. One thread is enough, since clients and guests have their own.
fn io_runtime() -> Result<Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::failed)
}

/// Prints a line that programs wait for, so it must not stay in a buffer.
fn announce(line: &str) -> Result<(), Failure> {
    use io::Write;
    let mut out = io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(Failure::failed)
}
