//! One small thread for each VM that runs: hears of its end, takes the guest's call, tells the guest who it is, and
//! keeps its console within bounds. It is the same for a VM that was started here and for one that was found running.
//!
//! ```text
//!  started --> waiting for the call --call--> introducing --identity taken, Ready told--> known --+
//!  found  --> asking for its health --well------^   ^ (again while it fails)   ^----- call again --+
//!                |  (again while it fails)          |
//!  a call that it leaves: told, from any state
//!                +--call----------------------------+        the process ends, from any state: Exited told, over
//! ```

use std::cell::Cell;
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lightbyte_api::{Timestamp, VmId};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use lightbyte_guest::protocol::{Info, Problem, Way};
use lightbyte_plan::agent::Leaving;

use crate::channel::Call;
use crate::driver::VmmEvent;
use crate::machines::Shared;
use crate::process::Held;
use crate::room::{Room, write_whole};
use crate::{channel, console};

/// How long a guest that was found running may take to say that it is well.
const HEALTH_MAX: Duration = Duration::from_secs(2);

/// How long a guest may take to take its identity; it takes a tenth of a second on a quiet machine.
const IDENTITY_MAX: Duration = Duration::from_secs(10);

/// Pause before a guest that did not answer is asked again: one question costs little, and a deaf guest stays deaf.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// How often in its life a machine's guest is heard that it leaves: once is enough, and it may change its mind.
const LEAVINGS_MAX: u32 = 8;

/// What is still to be said to the guest.
#[derive(Clone, Copy, Debug)]
enum Talk {
    /// Nothing until it calls.
    Waiting,
    /// Ask whether it is well, at this time. It was found running and may have called long ago.
    Ask(Instant),
    /// Tell it who it is, at this time.
    Introduce(Instant),
}

pub(crate) struct Minder {
    pub(crate) vm: VmId,
    pub(crate) room: Room,
    pub(crate) console: PathBuf,
    /// Other files that the process writes.
    pub(crate) logs: Vec<PathBuf>,
    /// The identity as the guest takes it.
    pub(crate) identity: Vec<u8>,
    /// Where the guest calls; without one it is only asked.
    pub(crate) listener: Option<UnixListener>,
    pub(crate) process: Held,
    pub(crate) shared: Arc<Shared>,
    /// Whether it was found running.
    pub(crate) is_found: bool,
    /// Whether its guest has said what hinders it: the end of that is told as well.
    pub(crate) is_hindered: Cell<bool>,
}

impl Minder {
    /// Goes on until the process ends, or the driver does.
    pub(crate) fn run(self) {
        let now = Instant::now();
        let mut talk = if self.is_found { Talk::Ask(now) } else { Talk::Waiting };
        let mut look_at = now + console::LOOK_EVERY;
        let mut leavings_left = LEAVINGS_MAX;
        loop {
            let until = match talk {
                Talk::Waiting => look_at,
                Talk::Ask(at) | Talk::Introduce(at) => look_at.min(at),
            };
            match self.wait(until) {
                Woken::DriverEnded => return,
                Woken::ProcessEnded => break,
                Woken::Called => talk = self.take_call(&mut leavings_left).unwrap_or(talk),
                Woken::Time => {}
            }
            if Instant::now() >= look_at {
                // A full disk is told by everything else that needs it; the console is cut in any case.
                let _ = console::rotate(&self.console);
                self.logs.iter().for_each(|log| console::cut(log));
                look_at = Instant::now() + console::LOOK_EVERY;
            }
            talk = self.talk(talk);
        }
        // What it said last may have come in the same moment as its end.
        if self.has_called() {
            let _ = self.take_call(&mut leavings_left);
        }
        self.shared.reap();
        let _ = console::rotate(&self.console);
        self.shared.tell(VmmEvent::Exited(self.vm));
    }

    fn wait(&self, until: Instant) -> Woken {
        let left = Timespec::try_from(until.saturating_duration_since(Instant::now())).ok();
        let mut descriptors = vec![
            PollFd::new(self.process.pidfd(), PollFlags::IN),
            PollFd::new(&self.shared.alive, PollFlags::IN),
        ];
        descriptors.extend(self.listener.as_ref().map(|listener| PollFd::new(listener, PollFlags::IN)));
        // An interrupted wait is a short one.
        let woken = poll(&mut descriptors, left.as_ref()).is_ok_and(|count| count > 0);
        let mut ready = descriptors.iter().map(|descriptor| woken && !descriptor.revents().is_empty());
        let mut next = || ready.next().unwrap_or(false);
        match (next(), next(), next()) {
            (_, true, _) => Woken::DriverEnded,
            (true, ..) => Woken::ProcessEnded,
            (_, _, true) => Woken::Called,
            _ => Woken::Time,
        }
    }

    fn has_called(&self) -> bool {
        let Some(listener) = &self.listener else { return false };
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&at_once)).is_ok_and(|count| count > 0)
    }

    fn take_call(&self, leavings_left: &mut u32) -> Option<Talk> {
        let ready = match channel::take_call(self.listener.as_ref()?)? {
            Call::Ready(ready) => ready,
            Call::Leaving(said) => {
                let leaving = match said.leaving {
                    Way::Poweroff => Leaving::Poweroff,
                    Way::Reboot => Leaving::Reboot,
                };
                // One that says so all the time would keep the agent from hearing of others.
                if let Some(left) = leavings_left.checked_sub(1) {
                    *leavings_left = left;
                    self.shared.tell(VmmEvent::Leaving { vm: self.vm, leaving });
                }
                return None;
            }
        };
        let now = Timestamp::now();
        // Kept for whoever finds this VM running: when the agent began cannot be asked later. Without the note the next
        // driver says a later time, which is no reason to leave the guest without its identity.
        let _ = ready.ready.then(|| write_whole(&self.room.agent_at, now.to_string().as_bytes()));
        Some(Talk::Introduce(Instant::now()))
    }

    /// Says what is due, and gives what is to be said next.
    fn talk(&self, talk: Talk) -> Talk {
        let now = Instant::now();
        let request = |method, path, body: &[u8], wait| {
            let answer = channel::request(&self.room.uds, method, path, body, wait);
            answer.ok().filter(|(status, _)| *status == 200).map(|(_, answer)| answer)
        };
        match talk {
            Talk::Ask(at) if at <= now => {
                let is_well = request("GET", "/v1/health", b"", HEALTH_MAX).is_some();
                if is_well { Talk::Introduce(now) } else { Talk::Ask(Instant::now() + ASK_AGAIN) }
            }
            Talk::Introduce(at) if at <= now => {
                let answer =
                    channel::request(&self.room.uds, "PUT", "/v1/identity", &self.identity, IDENTITY_MAX);
                let answer = match answer {
                    Ok((200, answer)) => answer,
                    refused => {
                        let said =
                            refused.ok().and_then(|(_, said)| serde_json::from_slice::<Problem>(&said).ok());
                        if let Some(Problem { error: problem }) = said {
                            self.is_hindered.set(true);
                            self.shared.tell(VmmEvent::Hindered { vm: self.vm, problem });
                        }
                        return Talk::Introduce(Instant::now() + ASK_AGAIN);
                    }
                };
                // Before it is ready: a VM whose disks are not where they were asked is not as it was asked.
                let info = serde_json::from_slice::<Info>(&answer).unwrap_or_default();
                let is_hindered = !info.mount_error.is_empty();
                if self.is_hindered.replace(is_hindered) || is_hindered {
                    self.shared.tell(VmmEvent::Hindered { vm: self.vm, problem: info.mount_error });
                }
                self.shared.tell(VmmEvent::Ready { vm: self.vm, agent_at: self.agent_at() });
                Talk::Waiting
            }
            later => later,
        }
    }

    fn agent_at(&self) -> Timestamp {
        let noted = fs::read_to_string(&self.room.agent_at).ok().and_then(|text| text.parse().ok());
        noted.unwrap_or_else(Timestamp::now)
    }
}

enum Woken {
    DriverEnded,
    ProcessEnded,
    Called,
    Time,
}
