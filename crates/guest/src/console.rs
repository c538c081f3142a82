//! A shell on the serial console of tiny images, for whoever has the console and presses Enter: the way in when the
//! network and vsock are not. Full images have a login of their own there.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::rc::Rc;

use anyhow::Context;
use rustix::fs::{Mode, OFlags};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;

use crate::agent::Agent;
use crate::{login, terminal};

/// The serial line that is the console of every VMM of ours.
const CONSOLE: &str = "/dev/ttyS0";

/// Says that a shell is to be had, and starts one at each Enter, until there is nothing to start.
pub(crate) async fn serve(agent: Rc<Agent>) {
    if !Path::new(CONSOLE).exists() {
        return;
    }
    loop {
        println!("lightbyte-guest: press Enter for a shell on this console");
        let code = match until_enter().await {
            Ok(()) => run_shell(&agent).await,
            Err(error) => Err(error),
        };
        if let Err(error) = code {
            println!("lightbyte-guest: no shell on the console: {error:#}");
            return;
        }
    }
}

/// Reads the line that the kernel gives once Enter is pressed.
async fn until_enter() -> anyhow::Result<()> {
    let fd = open(OFlags::NONBLOCK)?;
    // A terminal is no pipe, but waits and reads like one.
    let mut input = Receiver::from_file_unchecked(File::from(fd)).context("watch the console")?;
    match input.read(&mut [0; 256]).await.context("read the console")? {
        0 => anyhow::bail!("it has ended"),
        _ => Ok(()),
    }
}

async fn run_shell(agent: &Rc<Agent>) -> anyhow::Result<()> {
    let console = open(OFlags::empty())?;
    let copy = || console.try_clone().map(Stdio::from).context("duplicate the console");
    let mut command = Command::new("sh");
    command.env_clear().envs(login::environment()).env("TERM", "linux").current_dir("/");
    command.stdin(copy()?).stdout(copy()?).stderr(copy()?);
    terminal::lead_session(&mut command);
    let child = command.spawn().context("start sh")?;
    // How it ended is seen on the console.
    let _ = agent.children.register(child.id()).await;
    Ok(())
}

/// Opens the console without making it this process's own terminal.
fn open(more: OFlags) -> anyhow::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | more;
    rustix::fs::open(CONSOLE, flags, Mode::empty()).with_context(|| format!("open {CONSOLE}"))
}
