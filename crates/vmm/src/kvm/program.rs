//! The program that KVM is to run, and the memory that it runs in: tables of long mode (Intel SDM volume 3, chapters 3
//! to 6), and some fifty bytes of code.

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};

/// Memory of the machine.
pub(super) const MEMORY_BYTES: usize = 0x8000;

// Where everything lies in it.
const PML4: usize = 0x1000;
const DIRECTORY_POINTERS: usize = 0x2000;
const DIRECTORY: usize = 0x3000;
const GDT: usize = 0x4000;
const IDT: usize = 0x4800;
const CODE: usize = 0x5000;
const HANDLER: usize = 0x5080;
/// 16 bytes, aligned to as many, as `cmpxchg16b` wants them.
const PAIR: usize = 0x6000;
const STACK_TOP: usize = 0x8000;

/// `int3`: the breakpoint's vector.
const VECTOR: usize = 3;
/// Places in the GDT, as selectors: the first is empty.
const CODE_SELECTOR: u16 = 1 << 3;
const DATA_SELECTOR: u16 = 2 << 3;
/// Present and writable (SDM volume 3, table 4-14 and following).
const TABLE_FLAGS: u64 = 0b11;
/// The same, and a page of 2 MiB.
const PAGE_FLAGS: u64 = TABLE_FLAGS | 1 << 7;
const LOW: u32 = 0x11;
const HIGH: u32 = 0x22;

/// What an interpreter tends not to know first, so that it is told at once; then what it is slow at.
#[rustfmt::skip]
const INSTRUCTIONS: &[(&[u8], &str)] = &[
    (&[0xcc],                            "int3"),                      // to the handler and back
    (&[0x31, 0xc0],                      "xor eax, eax"),
    (&[0x31, 0xd2],                      "xor edx, edx"),
    (&[0xbb, 0x11, 0x00, 0x00, 0x00],    "mov ebx, 0x11"),             // LOW
    (&[0xb9, 0x22, 0x00, 0x00, 0x00],    "mov ecx, 0x22"),             // HIGH
    (&[0xf0, 0x48, 0x0f, 0xc7, 0x0f],    "lock cmpxchg16b [rdi]"),     // rdi = PAIR, which is nought
    (&[0x4c, 0x8b, 0x0f],                "mov r9, [rdi]"),
    (&[0x4c, 0x8b, 0x57, 0x08],          "mov r10, [rdi+8]"),
    (&[0xb9, 0x40, 0x42, 0x0f, 0x00],    "mov ecx, 1000000"),          // a millisecond of a CPU, seconds of an interpreter
    (&[0xff, 0xc9],                      "dec ecx"),
    (&[0x75, 0xfc],                      "jnz"),                       // to the one before it
    (&[0xf4],                            "hlt"),
];

#[rustfmt::skip]
const HANDLER_INSTRUCTIONS: &[(&[u8], &str)] = &[
    (&[0x49, 0xff, 0xc0],                "inc r8"),
    (&[0x48, 0xcf],                      "iretq"),
];

/// The memory before the program begins.
pub(super) fn memory() -> Vec<u8> {
    let mut memory = vec![0; MEMORY_BYTES];
    let mut put = |at: usize, bytes: &[u8]| memory[at..at + bytes.len()].copy_from_slice(bytes);
    // The first 2 MiB, each address as itself; only the beginning has memory.
    put(PML4, &(DIRECTORY_POINTERS as u64 | TABLE_FLAGS).to_le_bytes());
    put(DIRECTORY_POINTERS, &(DIRECTORY as u64 | TABLE_FLAGS).to_le_bytes());
    put(DIRECTORY, &PAGE_FLAGS.to_le_bytes());
    put(GDT + usize::from(CODE_SELECTOR), &0x00af_9b00_0000_ffff_u64.to_le_bytes());
    put(GDT + usize::from(DATA_SELECTOR), &0x00cf_9300_0000_ffff_u64.to_le_bytes());
    put(IDT + VECTOR * 16, &gate(HANDLER as u64));
    for (start, instructions) in [(CODE, INSTRUCTIONS), (HANDLER, HANDLER_INSTRUCTIONS)] {
        let code: Vec<u8> = instructions.iter().flat_map(|(bytes, _)| *bytes).copied().collect();
        put(start, &code);
    }
    memory
}

/// An interrupt gate of long mode (SDM volume 3, figure 6-8).
fn gate(handler: u64) -> [u8; 16] {
    let mut gate = [0; 16];
    let offset = handler.to_le_bytes();
    gate[..2].copy_from_slice(&offset[..2]);
    gate[2..4].copy_from_slice(&CODE_SELECTOR.to_le_bytes());
    gate[5] = 0x8e;
    gate[6..12].copy_from_slice(&offset[2..]);
    gate
}

/// Registers at the program's beginning.
pub(super) fn registers() -> kvm_regs {
    kvm_regs {
        rip: CODE as u64,
        rsp: STACK_TOP as u64,
        rdi: PAIR as u64,
        // The bit that is always set.
        rflags: 2,
        ..kvm_regs::default()
    }
}

/// Brings a CPU that was reset into long mode, at the highest privilege.
pub(super) fn enter_long_mode(special: &mut kvm_sregs) {
    let segment = kvm_segment { limit: u32::MAX, present: 1, s: 1, g: 1, ..kvm_segment::default() };
    // Code that may be read, and data that may be written, both used before; `l` is long mode.
    special.cs = kvm_segment { selector: CODE_SELECTOR, type_: 11, l: 1, ..segment };
    let data = kvm_segment { selector: DATA_SELECTOR, type_: 3, db: 1, ..segment };
    for register in [&mut special.ds, &mut special.es, &mut special.fs, &mut special.gs, &mut special.ss] {
        *register = data;
    }
    (special.gdt.base, special.gdt.limit) = (GDT as u64, 3 * 8 - 1);
    (special.idt.base, special.idt.limit) = (IDT as u64, (VECTOR as u16 + 1) * 16 - 1);
    special.cr3 = PML4 as u64;
    // CR4: PAE. CR0: PG, NE, ET, PE. EFER: LMA, LME.
    special.cr4 = 1 << 5;
    special.cr0 = 1 << 31 | 1 << 5 | 1 << 4 | 1;
    special.efer = 1 << 10 | 1 << 8;
}

/// Whether a program that has halted did all that it had to.
pub(super) fn is_done(registers: &kvm_regs) -> bool {
    let wanted = [(registers.r8, 1), (registers.r9, LOW), (registers.r10, HIGH), (registers.rcx, 0)];
    wanted.into_iter().all(|(found, wanted)| found == u64::from(wanted))
}

/// The instruction at this address.
pub(super) fn instruction_at(address: u64) -> &'static str {
    for (start, instructions) in [(CODE, INSTRUCTIONS), (HANDLER, HANDLER_INSTRUCTIONS)] {
        let mut end = start as u64;
        for (bytes, text) in instructions {
            let begin = end;
            end += bytes.len() as u64;
            if (begin..end).contains(&address) {
                return text;
            }
        }
    }
    "nowhere"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_hold_the_numbers_that_are_looked_for() {
        let number_of = |name: &str| {
            let (bytes, _) =
                INSTRUCTIONS.iter().find(|(_, text)| text.starts_with(name)).expect("it is there");
            u32::from_le_bytes(bytes[1..].try_into().expect("four bytes"))
        };
        assert_eq!((number_of("mov ebx"), number_of("mov ecx, 0x22")), (LOW, HIGH));
        assert_eq!(number_of("mov ecx, 1000000"), 1_000_000);
    }

    #[test]
    fn every_part_has_its_place() {
        let memory = memory();
        let quad = |at: usize| u64::from_le_bytes(memory[at..at + 8].try_into().expect("eight bytes"));
        assert_eq!([PML4, DIRECTORY_POINTERS, DIRECTORY].map(quad), [0x2003, 0x3003, 0x83]);
        assert_eq!(
            [0, 8, 16].map(|place| quad(GDT + place)),
            [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff]
        );
        // SDM volume 3, figure 6-8: the handler's address in three parts, the selector, present, an interrupt gate.
        assert_eq!([0, 8].map(|place| quad(IDT + 48 + place)), [0x0000_8e00_0008_5080, 0]);
        let code: Vec<u8> = INSTRUCTIONS.iter().flat_map(|(bytes, _)| *bytes).copied().collect();
        assert!(CODE + code.len() <= HANDLER);
        assert_eq!(memory[CODE..CODE + code.len()], code);
        assert_eq!(memory[HANDLER..HANDLER + 5], [0x49, 0xff, 0xc0, 0x48, 0xcf]);
        assert_eq!((PAIR % 16, quad(PAIR), quad(PAIR + 8)), (0, 0, 0));
    }

    #[test]
    fn addresses_name_their_instructions() {
        let table = [
            (0x5000, "int3"),
            (0x5001, "xor eax, eax"),
            (0x500f, "lock cmpxchg16b [rdi]"),
            (0x5020, "dec ecx"),
            (0x5024, "hlt"),
            (0x5025, "nowhere"),
            (0x5083, "iretq"),
            (0, "nowhere"),
        ];
        for (address, expected) in table {
            assert_eq!(instruction_at(address), expected, "{address:#x}");
        }
    }

    #[test]
    fn a_halt_alone_is_not_enough() {
        let done = kvm_regs { r8: 1, r9: 0x11, r10: 0x22, ..kvm_regs::default() };
        assert!(is_done(&done));
        for wrong in [
            kvm_regs { r8: 0, ..done },
            kvm_regs { r9: 0, ..done },
            kvm_regs { r10: 0, ..done },
            kvm_regs { rcx: 7, ..done },
        ] {
            assert!(!is_done(&wrong), "{wrong:?}");
        }
    }
}
