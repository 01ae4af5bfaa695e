//! Samovar: the daemon and the command line.

use std::process::ExitCode;

mod api;
mod auth;
mod config;
mod durable;
mod http;
mod metrics;
mod openapi;
mod serve;
mod tls;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["init", "--data", data] => serve::init(data.as_ref(), None, None),
        ["serve", "--data", data] => {
            config::Config::load(None, Some(data.as_ref())).map_err(anyhow::Error::from).and_then(serve::serve)
        }
        ["dev"] => serve::dev(1, None),
        ["dev", "--data", data] => serve::dev(1, Some(data.into())),
        _ => Err(anyhow::anyhow!("usage: samovar init --data DIR | serve --data DIR | dev [--data DIR]")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("samovar: {error:#}");
            ExitCode::FAILURE
        }
    }
}
