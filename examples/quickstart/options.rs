//! The command line.

use std::{fmt::Display, net::SocketAddr, str::FromStr};

use lexopt::{
    Arg::{Long, Short},
    Parser, ValueExt,
};

pub(crate) const HELP: &str = "\
Measures an MCP server before and after it is wrapped by mcp-perf.

cargo run --release --example quickstart -- [OPTIONS]

  --requests N     how many requests each server gets [12000]
  --clients N      how many clients send them at the same time, 1 to 256 [16]
  --seed N         what registry and requests are drawn from [1]
  --json           print the figures as one JSON object
  --serve ADDRESS  serve the wrapped server there, for example at 127.0.0.1:8080, until Ctrl-C
  --help           print this

With REDIS_URL set, the wrapped server has a second level of cache there.";

/// Each client watches at least one of the servers that reports are sent on.
const MAX_CLIENTS: usize = 256;

/// What the command line says, or its defaults.
pub(crate) struct Options {
    pub(crate) requests: usize,
    pub(crate) clients: usize,
    pub(crate) seed: u64,
    pub(crate) json: bool,
    pub(crate) serve: Option<SocketAddr>,
}

impl Options {
    /// Reads the command line; `None` if it asks for help.
    pub(crate) fn from_arguments() -> Result<Option<Self>, lexopt::Error> {
        let mut options = Self { requests: 12_000, clients: 16, seed: 1, json: false, serve: None };
        let mut arguments = Parser::from_env();
        while let Some(argument) = arguments.next()? {
            match argument {
                Long("requests") => options.requests = value("--requests", &mut arguments)?,
                Long("clients") => options.clients = value("--clients", &mut arguments)?,
                Long("seed") => options.seed = value("--seed", &mut arguments)?,
                Long("json") => options.json = true,
                Long("serve") => options.serve = Some(value("--serve", &mut arguments)?),
                Long("help") | Short('h') => return Ok(None),
                _ => return Err(argument.unexpected()),
            }
        }
        if options.requests == 0 {
            return Err("--requests must be at least 1".into());
        }
        if !(1..=MAX_CLIENTS).contains(&options.clients) {
            return Err(format!("--clients must be 1 to {MAX_CLIENTS}").into());
        }
        Ok(Some(options))
    }
}

fn value<T>(option: &str, arguments: &mut Parser) -> Result<T, lexopt::Error>
where
    T: FromStr<Err: Display>,
{
    let value = arguments.value()?.string()?;
    value.parse().map_err(|error| format!("{option} cannot be {value:?}: {error}").into())
}
