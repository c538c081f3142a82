//! The agent in a guest. As process 1 of a tiny image it is also its init; in a full image it is a service.
//!
//! A panic of process 1 is a kernel panic, so nothing here may end the process: tasks are caught by the runtime, the rest
//! by [`main`], which goes on reaping whatever happens. With words it is a program that the host runs: see [`words`].

mod agent;
mod becoming;
mod boot;
mod check;
mod children;
mod console;
mod dhcp;
mod exec;
mod first_boot;
mod freeze;
mod grow;
mod leaving;
mod login;
mod metrics;
mod mounted;
mod mounts;
mod netlink;
mod network;
mod notify;
mod page;
mod proxy;
mod ready;
mod relay;
mod routes;
mod serve;
mod shutdown;
mod terminal;
mod wire;
mod words;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use rustix::event::Timespec;

/// How long to wait before the agent is started again after it failed as a whole.
const RESTART_PAUSE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

fn main() -> ExitCode {
    let words: Vec<String> =
        std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    // The kernel gives process 1 the words that it does not know itself.
    if !words.is_empty() && std::process::id() != 1 {
        return words::run(&words);
    }
    let agent = agent::Agent::new(proxy::Proxy::default());
    if std::process::id() == 1 {
        agent.reached(|milestones| &mut milestones.kernel);
        if let Err(error) = boot::boot() {
            // Without a root disk the agent still answers, so that the host can say why.
            println!("lightbyte-guest: boot: {error:#}");
        }
        agent.reached(|milestones| &mut milestones.init);
    } else {
        freeze::thaw_all();
    }
    loop {
        match catch_unwind(AssertUnwindSafe(|| serve::run(&agent))) {
            Ok(Ok(())) => println!("lightbyte-guest: the server ended"),
            Ok(Err(error)) => println!("lightbyte-guest: {error:#}"),
            Err(_) => println!("lightbyte-guest: a bug; going on"),
        }
        let _ = rustix::event::poll(&mut [], Some(&RESTART_PAUSE));
    }
}
