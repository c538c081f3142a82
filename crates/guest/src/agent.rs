//! What the agent knows: milestones of the boot and who it is. One thread uses it, so plain cells are enough.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use lightbyte_guest::protocol::{Identity, Info, Milestones};
use rustix::time::{ClockId, clock_gettime};

use crate::children::Children;

/// This agent's version.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Shared by all tasks of the agent.
pub(crate) struct Agent {
    milestones: Cell<Milestones>,
    pub(crate) identity: RefCell<Option<Identity>>,
    pub(crate) children: Children,
    pub(crate) shutting_down: Cell<bool>,
}

impl Agent {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self {
            milestones: Cell::default(),
            identity: RefCell::default(),
            children: Children::default(),
            shutting_down: Cell::new(false),
        })
    }

    /// Notes that a milestone was reached now, if it was not before.
    pub(crate) fn reached(&self, which: impl Fn(&mut Milestones) -> &mut Option<u64>) {
        let mut milestones = self.milestones.get();
        which(&mut milestones).get_or_insert_with(boot_ms);
        self.milestones.set(milestones);
    }

    pub(crate) fn milestones(&self) -> Milestones {
        self.milestones.get()
    }

    pub(crate) fn info(&self) -> Info {
        Info {
            agent: VERSION.to_owned(),
            kernel_release: rustix::system::uname().release().to_string_lossy().into_owned(),
            boot: self.milestones(),
            identity: self.identity.borrow().clone(),
        }
    }
}

/// Milliseconds since the kernel started.
pub(crate) fn boot_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000
}
