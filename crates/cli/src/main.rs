//! `lightbyte`: what people type, and the processes of a cluster, in one binary.
//!
//! Everything up to the parsed command is synchronous, and a verb gets a runtime of one thread: a command that asks one
//! question must start fast. What a verb does is in `verbs`; nothing here decides anything about a cluster.

mod arguments;
mod change;
mod cluster;
mod context;
mod drivers;
mod failure;
mod harmless;
mod manifests;
mod processes;
mod remote;
mod resolver;
mod session;
mod table;
mod target;
mod terminal;
mod verbs;
mod waiting;
mod who;
mod yaml;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser as _};
use lightbyte_link::Client;

use crate::arguments::{Arguments, Import, Verb};
use crate::cluster::Cluster;
use crate::failure::{Code, Exit};
use crate::terminal::{say, say_error};
use crate::verbs::maintenance::Maintenance;

/// The word that starts a VM's channel: said by the QEMU driver, and by no person.
const VSOCK: &str = "vsock";

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    if words.get(1).is_some_and(|word| word == VSOCK) {
        return lightbyte_vsock::main_with(words.into_iter().skip(2));
    }
    let code = match parse(words) {
        Ok(arguments) => act(&arguments),
        Err(code) => code.into(),
    };
    ExitCode::from(code.0)
}

fn parse(words: Vec<OsString>) -> Result<Arguments, Code> {
    let (words, note) = arguments::expand_alias(words);
    if let Some(note) = note {
        say(&note);
    }
    Arguments::try_parse_from(words).map_err(|error| {
        // clap knows which of its answers are data and which are errors; a closed output loses them.
        drop(error.print());
        match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Code::Done,
            _ => Code::Usage,
        }
    })
}

fn act(arguments: &Arguments) -> Exit {
    match run(arguments) {
        Ok(exit) => exit,
        Err(error) if failure::is_hang_up(&error) => Code::Done.into(),
        Err(error) => {
            say_error(&failure::describe(&error));
            failure::code_of(&error).into()
        }
    }
}

fn run(arguments: &Arguments) -> Result<Exit> {
    if let Some(code) = run_here(&arguments.verb) {
        return Ok(code?.into());
    }
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    let servers = context::servers(arguments.context.as_deref())?;
    let cluster = Cluster::new(Client::new(servers)).back_at(arguments.verb.past()).asked_by(who::is_here());
    let client = cluster.client().clone();
    let ended = runtime.block_on(async {
        match &arguments.verb {
            Verb::Exec(words) => verbs::exec::run(&cluster, words).await,
            Verb::Ssh(words) => verbs::ssh::run(&cluster, words, arguments.context.as_deref()).await,
            Verb::Forward(words) => Ok(verbs::forward::run(cluster, words).await?.into()),
            verb => Ok(ask(&cluster, verb).await?.into()),
        }
    });
    if let Some(millis) = client.oldest_answer_millis() {
        terminal::say_hint(&format!(
            "what servers said may be {} old: they cannot ask the store; `lightbyte status` shows its members",
            table::seconds(millis / 1_000)
        ));
    }
    ended
}

/// What needs no cluster; `None` for all that does.
fn run_here(verb: &Verb) -> Option<Result<Code>> {
    Some(match verb {
        Verb::Explain(words) => verbs::explain::run(words),
        Verb::Doctor(words) => verbs::doctor::run(words),
        Verb::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(*shell, &mut Arguments::command(), "lightbyte", &mut text);
            terminal::print(&String::from_utf8_lossy(&text)).map(|()| Code::Done)
        }
        Verb::Dev(words) => processes::dev(words),
        Verb::Server(words) => processes::server(words),
        Verb::Worker(words) => processes::worker(words),
        Verb::Dns(words) => processes::dns(words),
        _ => return None,
    })
}

async fn ask(cluster: &Cluster, verb: &Verb) -> Result<Code> {
    match verb {
        Verb::Run(words) => verbs::run::run(cluster, words).await,
        Verb::Get(words) => verbs::get::run(cluster, words).await,
        Verb::Describe(words) => verbs::describe::run(cluster, words).await,
        Verb::Apply(words) => verbs::apply::run(cluster, words).await,
        Verb::Diff(words) => verbs::diff::run(cluster, words).await,
        Verb::Plan(words) => verbs::plan::run(cluster, words).await,
        Verb::Edit(words) => verbs::edit::run(cluster, words).await,
        Verb::Delete(words) => verbs::delete::run(cluster, words).await,
        Verb::Protect(words) => verbs::protect::run(cluster, words, true).await,
        Verb::Unprotect(words) => verbs::protect::run(cluster, words, false).await,
        Verb::Create(words) => verbs::disks::create(cluster, words).await,
        Verb::Attach(words) => verbs::disks::attach(cluster, words).await,
        Verb::Detach(words) => verbs::disks::detach(cluster, words).await,
        Verb::Grow(words) => verbs::disks::grow(cluster, words).await,
        Verb::Scale(words) => verbs::scale::run(cluster, words).await,
        Verb::Rollout(words) => verbs::rollout::run(cluster, words).await,
        Verb::Cordon(words) => verbs::maintenance::run(cluster, words, Maintenance::Cordon).await,
        Verb::Uncordon(words) => verbs::maintenance::run(cluster, words, Maintenance::Uncordon).await,
        Verb::Drain(words) => verbs::maintenance::drain(cluster, words).await,
        Verb::Undrain(words) => verbs::maintenance::run(cluster, words, Maintenance::Undrain).await,
        Verb::Release(words) => verbs::release::run(cluster, words).await,
        Verb::Move(words) => verbs::disks::r#move(cluster, words).await,
        Verb::Start(words) => verbs::power::run(cluster, words, "start").await,
        Verb::Stop(words) => verbs::power::run(cluster, words, "stop").await,
        Verb::Restart(words) => verbs::power::run(cluster, words, "restart").await,
        Verb::Why(words) => verbs::why::run(cluster, words).await,
        Verb::Stuck => verbs::stuck::run(cluster).await,
        Verb::Test(words) => verbs::test::run(cluster, words).await,
        Verb::Top(words) => verbs::top::run(cluster, words).await,
        Verb::Wait(words) => verbs::wait::run(cluster, words).await,
        Verb::Status(words) => verbs::status::run(cluster, words).await,
        Verb::Etcd(words) => verbs::etcd::run(cluster, words).await,
        Verb::Events(words) => verbs::events::run(cluster, words).await,
        Verb::Console(words) => verbs::console::run(cluster, words).await,
        Verb::Logs(words) => verbs::logs::run(cluster, words).await,
        Verb::Cp(words) => verbs::cp::run(cluster, words).await,
        Verb::Import(Import::Image(words)) => verbs::import::run(cluster, words).await,
        Verb::Import(Import::Certificate(words)) => verbs::import::certificate::run(cluster, words).await,
        // These were done before.
        Verb::Exec(_)
        | Verb::Ssh(_)
        | Verb::Forward(_)
        | Verb::Explain(_)
        | Verb::Doctor(_)
        | Verb::Completions { .. }
        | Verb::Dev(_)
        | Verb::Dns(_)
        | Verb::Server(_)
        | Verb::Worker(_) => Ok(Code::Done),
    }
}
