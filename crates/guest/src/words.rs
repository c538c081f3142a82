//! Words for the agent's own program, which the host runs by `exec` as `lightbyte-guest WORD …`: what is needed in every
//! guest, whatever programs its image has.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use lightbyte_guest::archive::{Keep, Owners, Unpacked, pack, unpack};
use rustix::event::Timespec;

use crate::leaving;

/// The program that means the agent's own, wherever that lies.
pub(crate) const OWN_NAME: &str = "lightbyte-guest";

/// Where the agent's own program is, also when its name is gone (proc(5)).
pub(crate) const OWN_PROGRAM: &str = "/proc/self/exe";

/// How long a service of the guest may take to accept a connection.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// How long a system may take to start, and the pause between looks.
const START_MAX: Duration = Duration::from_secs(90);
const START_PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 300_000_000 };

/// What is carried at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// What is left out of an archive is told up to here, and then counted.
const LEFT_OUT_TOLD_MAX: usize = 20;

/// The words.
const USAGE: &str = "\
usage: lightbyte-guest pack PATH        writes PATH to standard output, as tar
       lightbyte-guest unpack PATH      makes at PATH what comes on standard input, as tar
       lightbyte-guest connect PORT     joins standard input and output to 127.0.0.1:PORT
       lightbyte-guest reaches PORT     whether something listens there, when the system has started
       lightbyte-guest leaving HOW      tells the host that the machine ends: poweroff, halt, reboot or kexec";

/// Does what the words say, and tells on standard error what went wrong.
pub(crate) fn run(words: &[String]) -> ExitCode {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["pack", path] => pack_to_output(Path::new(path)),
        ["unpack", path] => unpack_from_input(Path::new(path)),
        ["connect", port] => connect(port).and_then(|stream| join(&stream)),
        ["reaches", port] => reaches(port),
        ["leaving", how] => leaving::leave(how),
        // As systemd-shutdown(8) starts what lies in its directory.
        [how @ ("poweroff" | "halt" | "reboot" | "kexec")] => leaving::leave(how),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(64);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn pack_to_output(path: &Path) -> Result<()> {
    let mut count = 0;
    let mut left_out = |what| {
        count += 1;
        if count <= LEFT_OUT_TOLD_MAX {
            eprintln!("left out {what}");
        }
    };
    let output = io::BufWriter::with_capacity(CHUNK_BYTES, io::stdout().lock());
    let mut output = pack(path, Owners::AsTheyAre, output, &mut left_out)?;
    if count > LEFT_OUT_TOLD_MAX {
        eprintln!("left out {} more", count - LEFT_OUT_TOLD_MAX);
    }
    output.flush().context("write")
}

fn unpack_from_input(path: &Path) -> Result<()> {
    let mut done = Unpacked::default();
    let input = io::BufReader::with_capacity(CHUNK_BYTES, io::stdin().lock());
    unpack(input, path, Keep::Everything, &mut done).with_context(|| match done.entries {
        0 => format!("nothing was written to `{}`", path.display()),
        count => format!("`{}` is incomplete ({count} entries were written)", path.display()),
    })
}

fn connect(port: &str) -> Result<TcpStream> {
    let Ok(port @ 1..) = port.parse::<u16>() else { bail!("`{port}` is no port") };
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    TcpStream::connect_timeout(&address, CONNECT_MAX).with_context(|| format!("connect to port {port}"))
}

/// Whether something listens there. A system that still starts is waited for: its services come late.
fn reaches(port: &str) -> Result<()> {
    let began = Instant::now();
    loop {
        match connect(port) {
            Err(_) if began.elapsed() < START_MAX && is_starting() => {
                let _ = rustix::event::poll(&mut [], Some(&START_PAUSE));
            }
            result => return result.map(drop),
        }
    }
}

/// Whether systemd has not come to its end yet (systemctl(1), `is-system-running`).
fn is_starting() -> bool {
    let state = Command::new("systemctl").arg("is-system-running").output();
    state.is_ok_and(|state| matches!(state.stdout.trim_ascii(), b"initializing" | b"starting"))
}

/// Carries both ways until both have ended; the end of one is passed on while the other goes on.
fn join(stream: &TcpStream) -> Result<()> {
    let mut to_service = stream.try_clone().context("duplicate the connection")?;
    let input = move || {
        // A service that takes no more is seen by the other way, too.
        let _ = carry(&mut io::stdin().lock(), &mut to_service);
        let _ = to_service.shutdown(Shutdown::Write);
    };
    let input = thread::Builder::new().spawn(input).context("start a thread")?;
    carry(&mut &*stream, &mut io::stdout().lock()).context("read from the service")?;
    close_output().context("end the output")?;
    let _ = input.join();
    Ok(())
}

fn carry(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match from.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(bytes) => {
                to.write_all(&chunk[..bytes])?;
                to.flush()?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Closes standard output: putting something else in its place does that.
fn close_output() -> io::Result<()> {
    let nowhere = std::fs::File::options().write(true).open("/dev/null")?;
    Ok(rustix::stdio::dup2_stdout(&nowhere)?)
}
