//! A machine of KVM with one CPU, which runs the program, and is stopped when it takes too long.
//!
//! It runs in a thread, since only a signal to that thread gets it out of KVM. A thread that does not come out even so is
//! left to itself: it holds a descriptor and 32 KiB.

use std::ffi::{c_int, c_void};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use rustix::time::{ClockId, clock_gettime};
use vm_memory::{Bytes as _, MmapRegion, VolatileMemory as _};
use vmm_sys_util::signal::{Killable as _, SIGRTMIN, register_signal_handler};

use super::{KvmVerdict, program};

/// CPU time that the program may use. A CPU needs a millisecond, so that this allows for much; the time that passes
/// meanwhile says nothing on a loaded host.
const CPU_TIME_MAX: Duration = Duration::from_millis(100);

/// How long all of it may take: many times what a loaded host makes of it, and short enough for the start of an agent.
const ANSWER_MAX: Duration = Duration::from_millis(1500);

/// How often the machine is interrupted, to see whether it has used up its time.
const KICK_EVERY: Duration = Duration::from_millis(20);

/// Where Intel's CPUs may have three pages for themselves, in addresses of the guest: as KVM's documentation of
/// `KVM_SET_TSS_ADDR` has it, below 4 GiB and out of the way.
const TSS_ADDRESS: usize = 0xfffb_d000;

/// Fields are dropped in this order: the memory goes when nothing runs in it any more.
struct Machine {
    cpu: VcpuFd,
    _vm: VmFd,
    _memory: MmapRegion,
}

/// See [`super::probe`].
pub(super) fn probe() -> KvmVerdict {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => return not_opened(&error.into()),
    };
    within(ANSWER_MAX, move |runs| match Machine::new(&kvm) {
        Ok(machine) => {
            runs.store(true, Ordering::Relaxed);
            machine.run()
        }
        Err(error) => KvmVerdict::Unfit(format!("no machine can be made: {error}")),
    })
}

fn not_opened(error: &io::Error) -> KvmVerdict {
    match error.kind() {
        io::ErrorKind::NotFound => KvmVerdict::NotThere,
        io::ErrorKind::PermissionDenied => KvmVerdict::NotPermitted,
        _ => KvmVerdict::Unfit(format!("/dev/kvm does not open: {error}")),
    }
}

/// Lets `work` give a verdict in a thread, until the time is over. Once `work` has said that a machine runs it is
/// interrupted again and again; not before, since making a machine fails when it is interrupted.
fn within(wait: Duration, work: impl FnOnce(&AtomicBool) -> KvmVerdict + Send + 'static) -> KvmVerdict {
    // A signal that nobody else uses, and whose handler does nothing: it is there to break off a system call.
    let signal = SIGRTMIN();
    if let Err(error) = register_signal_handler(signal, kicked) {
        return KvmVerdict::Unfit(format!("it cannot be interrupted: {error}"));
    }
    let (sender, verdict) = mpsc::channel();
    let runs = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&runs);
    // One who waits no longer takes no verdict.
    let thread = std::thread::Builder::new()
        .name("kvm probe".to_owned())
        .spawn(move || drop(sender.send(work(&told))));
    let thread = match thread {
        Ok(thread) => thread,
        Err(error) => return KvmVerdict::Unfit(format!("no thread can be made for it: {error}")),
    };
    let until = Instant::now() + wait;
    while Instant::now() < until {
        match verdict.recv_timeout(KICK_EVERY) {
            Ok(verdict) => return verdict,
            // One that has just ended needs no signal.
            Err(RecvTimeoutError::Timeout) if runs.load(Ordering::Relaxed) => drop(thread.kill(signal)),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    KvmVerdict::Unfit(format!("a test program has no end after {} ms", wait.as_millis()))
}

extern "C" fn kicked<T>(_signal: c_int, _information: *mut T, _context: *mut c_void) {}

impl Machine {
    fn new(kvm: &Kvm) -> io::Result<Machine> {
        let vm = kvm.create_vm()?;
        vm.set_tss_address(TSS_ADDRESS)?;
        let memory = MmapRegion::new(program::MEMORY_BYTES).map_err(io::Error::other)?;
        memory.as_volatile_slice().write_slice(&program::memory(), 0).map_err(io::Error::other)?;
        give_memory(&vm, &memory)?;
        let cpu = vm.create_vcpu(0)?;
        cpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?)?;
        let mut special = cpu.get_sregs()?;
        program::enter_long_mode(&mut special);
        cpu.set_sregs(&special)?;
        cpu.set_regs(&program::registers())?;
        Ok(Machine { cpu, _vm: vm, _memory: memory })
    }

    /// Runs the program to its end, whatever that is.
    fn run(mut self) -> KvmVerdict {
        let begin = cpu_time();
        loop {
            let end = match self.cpu.run() {
                Ok(VcpuExit::Hlt) => return self.halted(),
                Ok(exit) => format!("{exit:?}"),
                Err(error) if error.errno() == rustix::io::Errno::INTR.raw_os_error() => {
                    if cpu_time().saturating_sub(begin) < CPU_TIME_MAX {
                        continue;
                    }
                    let most = CPU_TIME_MAX.as_millis();
                    return self.unfit(&format!("is not through after {most} ms of CPU time"));
                }
                Err(error) => error.to_string(),
            };
            return self.unfit(&format!("ends with {end}"));
        }
    }

    fn halted(&self) -> KvmVerdict {
        match self.cpu.get_regs() {
            Ok(registers) if program::is_done(&registers) => KvmVerdict::Usable,
            _ => self.unfit("halts with wrong results"),
        }
    }

    fn unfit(&self, how: &str) -> KvmVerdict {
        let place = self.cpu.get_regs().map_or("nowhere", |registers| program::instruction_at(registers.rip));
        KvmVerdict::Unfit(format!(
            "/dev/kvm only interprets, or is broken: a test program {how}, at `{place}`"
        ))
    }
}

/// CPU time of this thread, its guest's included.
fn cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

#[expect(unsafe_code, reason = "KVM takes memory by its address")]
fn give_memory(vm: &VmFd, memory: &MmapRegion) -> io::Result<()> {
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: memory.size() as u64,
        userspace_addr: memory.as_ptr() as u64,
    };
    // SAFETY: the region is mapped, is used by nothing else, and outlives the machine: `Machine` drops it last.
    Ok(unsafe { vm.set_user_memory_region(region) }?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_gives_an_answer_in_time() {
        let begin = Instant::now();
        let verdict = super::super::probe();
        assert!(begin.elapsed() < Duration::from_secs(2), "{verdict} after {:?}", begin.elapsed());
        eprintln!("{verdict} ({:?})", begin.elapsed());
        match verdict {
            KvmVerdict::Usable | KvmVerdict::NotThere | KvmVerdict::NotPermitted => {}
            KvmVerdict::Unfit(why) => assert!(!why.is_empty(), "a reason"),
        }
    }

    #[test]
    fn a_machine_that_does_not_come_back_is_left() {
        let (let_go, held) = mpsc::channel::<()>();
        let wait = Duration::from_millis(50);
        let verdict = within(wait, move |_| {
            let _ = held.recv();
            KvmVerdict::Usable
        });
        assert_eq!(verdict, KvmVerdict::Unfit("a test program has no end after 50 ms".to_owned()));
        drop(let_go);
    }

    #[test]
    fn what_does_not_open_is_told_apart() {
        let table = [
            (2, "KVM is not usable: there is no /dev/kvm"),
            (13, "KVM is not usable: this process may not open /dev/kvm"),
            (19, "KVM is not usable: /dev/kvm does not open: No such device (os error 19)"),
        ];
        for (code, expected) in table {
            assert_eq!(not_opened(&io::Error::from_raw_os_error(code)).to_string(), expected);
        }
    }
}
