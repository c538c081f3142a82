//! An orderly end: everybody is asked, then made, to stop; what is written reaches the disk; the machine resets, which
//! ends the VMM (`-no-reboot` of QEMU; Firecracker does so by itself. A power-off may leave it alive).

use std::rc::Rc;
use std::time::Duration;

use lightbyte_guest::protocol::Shutdown;
use rustix::mount::{MountFlags, mount_remount};
use rustix::process::{Pid, Signal, kill_process};
use rustix::system::{RebootCommand, reboot};
use tokio::time::{sleep, timeout};

use crate::agent::Agent;

/// Longest time between TERM and KILL, whatever the host says.
const GRACE_MAX: Duration = Duration::from_secs(60);

/// How long processes may take to die of KILL.
const KILL_MAX: Duration = Duration::from_secs(2);

/// So that the answer to the host leaves before its channel dies.
const ANSWER_PAUSE: Duration = Duration::from_millis(20);

/// Ends the machine. Only process 1 does so; elsewhere it is up to the system's own init.
pub(crate) async fn shutdown(agent: Rc<Agent>, how: Shutdown) {
    sleep(ANSWER_PAUSE).await;
    if std::process::id() != 1 {
        println!("lightbyte-guest: asked to shut down, but this is not process 1");
        agent.shutting_down.set(false);
        return;
    }
    end_all(&agent, Signal::TERM, Duration::from_millis(how.grace_ms).min(GRACE_MAX)).await;
    end_all(&agent, Signal::KILL, KILL_MAX).await;
    rustix::fs::sync();
    if let Err(error) = mount_remount("/", MountFlags::RDONLY, c"") {
        println!("lightbyte-guest: make / read-only: {error}");
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
    let _ = signal_all(signal);
    if signal == Signal::TERM {
        // A shell that a person types at ignores TERM, and ends when its terminal hangs up.
        let _ = signal_all(Signal::HUP);
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

fn signal_all(signal: Signal) -> rustix::io::Result<()> {
    // kill(-1) of kill(2) has no safe form; the process table says the same.
    let entries = std::fs::read_dir("/proc").map_err(|_| rustix::io::Errno::NOENT)?;
    for pid in entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()) {
        // Kernel threads ignore signals, and a process that has just ended needs none.
        if let (true, Some(pid)) = (pid > 1, Pid::from_raw(pid)) {
            let _ = kill_process(pid, signal);
        }
    }
    Ok(())
}
