//! Whether KVM is usable on this host. That `/dev/kvm` opens, and makes VMs, says little: under some hypervisors it only
//! interprets, a thousand times slower and not every instruction, and a stock kernel spins in it for ever. So a small
//! program of our own is run, which does what a kernel does, and must be through in time.

#[cfg(target_arch = "x86_64")]
mod machine;
#[cfg(target_arch = "x86_64")]
mod program;

use std::fmt;

/// Whether machines can be run by KVM here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KvmVerdict {
    /// They can.
    Usable,
    /// There is no `/dev/kvm`.
    NotThere,
    /// This process may not open `/dev/kvm`.
    NotPermitted,
    /// It is there and does not run a program as a CPU would: it fails, or is too slow. Why, in words for people.
    Unfit(String),
}

impl KvmVerdict {
    /// Whether machines can be run by KVM.
    #[must_use]
    pub const fn is_usable(&self) -> bool {
        matches!(self, KvmVerdict::Usable)
    }
}

impl fmt::Display for KvmVerdict {
    /// One line, such as `KVM is not usable: there is no /dev/kvm`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KvmVerdict::Usable => formatter.write_str("KVM is usable"),
            KvmVerdict::NotThere => formatter.write_str("KVM is not usable: there is no /dev/kvm"),
            KvmVerdict::NotPermitted => {
                formatter.write_str("KVM is not usable: this process may not open /dev/kvm")
            }
            KvmVerdict::Unfit(why) => write!(formatter, "KVM is not usable: {why}"),
        }
    }
}

/// Asks once; nothing is kept. It takes some milliseconds where KVM is usable, and at most two seconds.
#[must_use]
pub fn probe() -> KvmVerdict {
    #[cfg(target_arch = "x86_64")]
    return machine::probe();
    #[cfg(not(target_arch = "x86_64"))]
    return KvmVerdict::Unfit("only CPUs of x86-64 can be asked".to_owned());
}
