//! An orderly end: everybody is asked, then made, to stop; what is written reaches the disk; the machine resets, which
//! ends the VMM (`-no-reboot` of QEMU; Firecracker does so by itself. A power-off may leave it alive).

use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

use lightbyte_guest::protocol::{Shutdown, Way};
use rustix::mount::{MountFlags, mount_remount};
use rustix::process::{Pid, Signal, kill_process};
use rustix::system::{RebootCommand, reboot};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{sleep, timeout};

use crate::agent::Agent;
use crate::{leaving, mounted};

/// Longest time between TERM and KILL, whatever the host says.
const GRACE_MAX: Duration = Duration::from_secs(60);

/// How long processes may take to die of KILL.
const KILL_MAX: Duration = Duration::from_secs(2);

/// So that the answer to the host leaves before its channel dies.
const ANSWER_PAUSE: Duration = Duration::from_millis(20);

/// Ends the machine because the host wants that.
pub(crate) async fn shutdown(agent: Rc<Agent>, how: Shutdown) {
    sleep(ANSWER_PAUSE).await;
    if std::process::id() == 1 {
        end(&agent, Duration::from_millis(how.grace_ms).min(GRACE_MAX)).await;
        return;
    }
    // The system's own init ends its services in order, in its own time; the host has a limit for it. A reboot, because
    // a power-off may leave the process of the VMM alive; the host knows that it asked.
    let failed = match Command::new("systemctl").args(["reboot", "--no-block"]).spawn() {
        Ok(child) => agent.children.register(child.id()).await != Ok(0),
        Err(error) => {
            println!("lightbyte-guest: start systemctl: {error}");
            true
        }
    };
    if failed {
        println!("lightbyte-guest: asked to shut down, but systemctl failed");
        agent.shutting_down.set(false);
    }
}

/// Obeys those who ask process 1 of a tiny image for the end: `reboot`, `poweroff` and `halt` of busybox send these
/// signals to it.
pub(crate) async fn on_signals(agent: Rc<Agent>) {
    let listen = |kind| signal(kind).map_err(|error| println!("lightbyte-guest: listen to signals: {error}"));
    let (Ok(mut restart), Ok(mut off), Ok(mut halt)) = (
        listen(SignalKind::terminate()),
        listen(SignalKind::user_defined2()),
        listen(SignalKind::user_defined1()),
    ) else {
        return;
    };
    let way = tokio::select! {
        _ = restart.recv() => Way::Reboot,
        _ = off.recv() => Way::Poweroff,
        _ = halt.recv() => Way::Poweroff,
    };
    if !agent.shutting_down.replace(true) {
        leaving::tell(way).await;
        end(&agent, Duration::from_millis(Shutdown::default().grace_ms)).await;
    }
}

/// Ends everything, and the machine.
async fn end(agent: &Agent, grace: Duration) {
    end_all(agent, Signal::TERM, grace).await;
    end_all(agent, Signal::KILL, KILL_MAX).await;
    rustix::fs::sync();
    // Those that were mounted last first: one may be within another.
    for found in mounted::file_systems().iter().rev() {
        if let Err(error) = mount_remount(&found.path, MountFlags::RDONLY, c"") {
            println!("lightbyte-guest: make {} read-only: {error}", found.path);
        }
    }
    rustix::fs::sync();
    if let Err(error) = reboot(RebootCommand::Restart) {
        println!("lightbyte-guest: reset: {error}");
    }
}

/// Signals everybody but process 1 and waits until nobody is left.
async fn end_all(agent: &Agent, signal: Signal, wait: Duration) {
    if !agent.children.reap() {
        return;
    }
    let _ = signal_all(signal, None);
    if signal == Signal::TERM {
        // A shell that a person types at ignores TERM, and ends when its terminal hangs up. The proxy would end at once
        // by that, and not when what is in flight is done.
        let _ = signal_all(Signal::HUP, agent.proxy.process().pid);
    }
    let all_gone = async {
        loop {
            let news = agent.children.reaped.notified();
            if !agent.children.reap() {
                return;
            }
            // The pause is for a SIGCHLD that came between the two lines above.
            let _ = timeout(Duration::from_millis(50), news).await;
        }
    };
    let _ = timeout(wait, all_gone).await;
}

fn signal_all(signal: Signal, spared: Option<Pid>) -> rustix::io::Result<()> {
    // kill(-1) of kill(2) has no safe form; the process table says the same.
    let entries = std::fs::read_dir("/proc").map_err(|_| rustix::io::Errno::NOENT)?;
    for pid in entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()) {
        // Kernel threads ignore signals, and a process that has just ended needs none.
        match Pid::from_raw(pid) {
            Some(found) if pid > 1 && spared != Some(found) => {
                let _ = kill_process(found, signal);
            }
            _ => {}
        }
    }
    Ok(())
}
