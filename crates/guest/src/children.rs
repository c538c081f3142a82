//! Process 1 inherits every orphan and must reap it. All waiting is done here, in one place: a second waiter (as
//! `tokio::process` would be) could lose exit codes to this one.
//!
//! Everything runs on one thread, so a child that is started and registered without an `await` in between cannot be reaped
//! before it is known.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use rustix::process::{Pid, WaitOptions, wait};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, oneshot};

use crate::agent::Agent;

/// Who waits for which child.
#[derive(Default)]
pub(crate) struct Children {
    waiting: RefCell<HashMap<i32, oneshot::Sender<u32>>>,
    /// Woken whenever children were reaped.
    pub(crate) reaped: Notify,
}

impl Children {
    /// To be called right after the start of a child; gives its exit code, or 128 + the signal that ended it.
    pub(crate) fn register(&self, pid: u32) -> oneshot::Receiver<u32> {
        let (sender, receiver) = oneshot::channel();
        if let Ok(pid) = i32::try_from(pid) {
            self.waiting.borrow_mut().insert(pid, sender);
        }
        receiver
    }

    /// Reaps all that have ended; false when there is no child at all.
    pub(crate) fn reap(&self) -> bool {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    let signal = status.terminating_signal().map(|signal| 128 + signal);
                    let code = status.exit_status().or(signal).unwrap_or(255);
                    self.tell(pid, u32::try_from(code).unwrap_or(255));
                }
                Ok(None) => return true,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }

    fn tell(&self, pid: Pid, code: u32) {
        if let Some(sender) = self.waiting.borrow_mut().remove(&pid.as_raw_nonzero().get()) {
            // Whoever asked may have hung up.
            let _ = sender.send(code);
        }
    }
}

/// Reaps for ever.
pub(crate) async fn reaper(agent: Rc<Agent>) {
    let Ok(mut signals) = signal(SignalKind::child()) else {
        println!("lightbyte-guest: cannot hear of children");
        return;
    };
    loop {
        agent.children.reap();
        agent.children.reaped.notify_waiters();
        signals.recv().await;
    }
}
