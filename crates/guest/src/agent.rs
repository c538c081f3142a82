//! What the agent knows: milestones of the boot and who it is. One thread uses it, so plain cells are enough.

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::rc::Rc;

use lightbyte_guest::protocol::{FirstBootState, Identity, Info, Milestones};
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::watch;

use crate::children::Children;
use crate::dhcp;
use crate::freeze::Frozen;
use crate::proxy::Proxy;

/// This agent's version.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Shared by all tasks of the agent.
pub(crate) struct Agent {
    milestones: Cell<Milestones>,
    pub(crate) identity: RefCell<Option<Identity>>,
    pub(crate) children: Children,
    pub(crate) shutting_down: Cell<bool>,
    pub(crate) first_boot: RefCell<FirstBootState>,
    pub(crate) first_boot_begun: Cell<bool>,
    pub(crate) mount_error: RefCell<String>,
    pub(crate) frozen: RefCell<Option<Frozen>>,
    /// How many freezes were begun, and how many of them are still beginning.
    pub(crate) freezes: Cell<u64>,
    pub(crate) freezing: Cell<u32>,
    /// Whose freeze was given up last, before it came.
    pub(crate) given_up: RefCell<String>,
    /// Held by whoever makes this guest what the host says.
    pub(crate) becoming: tokio::sync::Mutex<()>,
    pub(crate) dhcp: RefCell<dhcp::Clients>,
    /// Whether this guest is what the host says, once: addresses are set, disks are mounted.
    pub(crate) set_up: watch::Sender<bool>,
    pub(crate) proxy: Proxy,
    /// The address that the first card has besides its own.
    pub(crate) virtual_addresses: RefCell<Vec<IpAddr>>,
}

impl Agent {
    pub(crate) fn new(proxy: Proxy) -> Rc<Self> {
        Rc::new(Self {
            milestones: Cell::default(),
            identity: RefCell::default(),
            children: Children::default(),
            shutting_down: Cell::new(false),
            first_boot: RefCell::default(),
            first_boot_begun: Cell::new(false),
            mount_error: RefCell::default(),
            frozen: RefCell::default(),
            freezes: Cell::new(0),
            freezing: Cell::new(0),
            given_up: RefCell::default(),
            becoming: tokio::sync::Mutex::default(),
            dhcp: RefCell::default(),
            set_up: watch::Sender::default(),
            proxy,
            virtual_addresses: RefCell::default(),
        })
    }

    /// Notes that a milestone was reached now, if it was not before.
    pub(crate) fn reached(&self, which: impl Fn(&mut Milestones) -> &mut Option<u64>) {
        let mut milestones = self.milestones.get();
        which(&mut milestones).get_or_insert_with(boot_ms);
        self.milestones.set(milestones);
    }

    /// Whether file systems stand still, or are about to.
    pub(crate) fn is_freezing(&self) -> bool {
        self.freezing.get() > 0 || self.frozen.borrow().as_ref().is_some_and(|frozen| !frozen.is_over())
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
            first_boot: self.first_boot.borrow().clone(),
            mount_error: self.mount_error.borrow().clone(),
        }
    }
}

/// Milliseconds since the kernel started.
pub(crate) fn boot_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000
}
