//! What strangers send: whatever it is, it gets a message that can be read, or nothing.
//!
//! Each loop has [`ROUNDS`]; with `LIGHTBYTE_FUZZ_SECONDS=600` it goes on for so long, from other seeds:
//!
//! ```text
//!   LIGHTBYTE_FUZZ_SECONDS=600 cargo test --profile ci -p lightbyte-dns --lib hostile:: -- --nocapture
//! ```

use std::time::{Duration, Instant};

use super::*;
use crate::alias::{join, query_for_target};

/// The rounds of each loop; a seed that fails is printed and gives the same round again.
const ROUNDS: u64 = 50_000;

/// The seeds of a loop: its rounds, and more while there is time.
fn seeds(first: u64) -> impl Iterator<Item = u64> {
    let seconds = std::env::var("LIGHTBYTE_FUZZ_SECONDS").ok().and_then(|word| word.parse().ok());
    let end = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    // Those of the loops begin a million apart, so what comes after a loop's own rounds begins far behind all of them.
    let more = (1 << 40) + (first << 20);
    let more = (more..).take_while(move |_| end.is_some_and(|end| Instant::now() < end));
    let mut last = 0;
    (first..first + ROUNDS).chain(more).inspect(move |seed| {
        last += 1;
        if last % (1 << 22) == 0 {
            eprintln!("{last} rounds, at seed {seed}");
        }
    })
}

/// Numbers from a seed (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut number = self.0;
        number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        number ^ (number >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).expect("fits")
    }

    fn byte(&mut self) -> u8 {
        self.next().to_be_bytes()[0]
    }

    fn one_of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len())]
    }
}

/// A query that may be good: names in and out of the zone, every transport and age.
fn some_query(numbers: &mut Numbers) -> Vec<u8> {
    const NAMES: &[&str] = &[
        "lab",
        "db.vm.lab",
        "DB.vm.Lab",
        "big.group.lab",
        "round.lab",
        "www.lab",
        "gone.lab",
        "example.org",
        ".",
        "5.0.77.10.in-addr.arpa",
        "9.9.77.10.in-addr.arpa",
        "arpa",
        "0.0.d.f.ip6.arpa",
        "x.in-addr.arpa",
        "ip6.arpa",
    ];
    const TYPES: &[u16] = &[0, 1, 2, 5, 6, 12, 16, 28, 33, 41, 64, 249, 252, 255, 65_535];
    let mut message = query(numbers.one_of(NAMES), numbers.one_of(TYPES));
    if numbers.below(2) == 0 {
        let payload = numbers.one_of(&[0, 511, 512, 1_232, 65_535]);
        message = with_edns(message, payload, u8::from(numbers.below(8) == 0), numbers.byte());
    }
    message
}

fn some_world(numbers: &mut Numbers) -> World {
    World {
        table: if numbers.below(4) == 0 { Table::unknown("lab") } else { Table::new(&zone()) },
        freshness: numbers.one_of(&[Freshness::Missing, Freshness::Stale, Freshness::Fresh]),
        transport: numbers.one_of(&[Transport::Udp, Transport::Tcp]),
        does_forward: numbers.below(2) == 0,
        turns: Turns::new(),
    }
}

/// What holds for every message and every answer to it.
fn check(world: &World, message: &[u8], seed: u64) {
    let (verdict, reply) = world.ask(message);
    let Verdict::Send { rcode, .. } = verdict else {
        return;
    };
    assert!(message.len() >= HEADER_BYTES && message[2] & 0x80 == 0, "seed {seed}: an answer to no query");
    let told = describe(&reply);
    assert!(told.starts_with(rcode.name()), "seed {seed}: {told}");
    assert_eq!(reply[..2], message[..2], "seed {seed}: the id");
    let limit = if world.transport == Transport::Udp { 1_232 } else { 65_535 };
    assert!(reply.len() <= limit, "seed {seed}: {} bytes", reply.len());
    if world.freshness != Freshness::Fresh {
        assert_ne!(rcode, Rcode::NxDomain, "seed {seed}");
    }
    let (again, _) = world.ask(&reply);
    assert_eq!(again, Verdict::Silence, "seed {seed}: an answer is answered");
}

fn rounds(first: u64, message: impl Fn(&mut Numbers) -> Vec<u8>) {
    let mut worlds = Numbers(first);
    let worlds: Vec<World> = (0..24).map(|_| some_world(&mut worlds)).collect();
    for seed in seeds(first) {
        let mut numbers = Numbers(seed);
        let message = message(&mut numbers);
        check(&worlds[numbers.below(worlds.len())], &message, seed);
    }
}

#[test]
fn queries_that_may_be_good() {
    rounds(1_000_000, some_query);
}

#[test]
fn queries_with_bytes_that_were_hit() {
    rounds(2_000_000, |numbers| {
        let mut message = some_query(numbers);
        for _ in 0..=numbers.below(4) {
            let at = numbers.below(message.len());
            message[at] = numbers.one_of(&[0, 1, 0x0c, 0x3f, 0x40, 0xc0, 0xff, numbers.0.to_be_bytes()[7]]);
        }
        message
    });
}

#[test]
fn queries_that_were_cut_or_go_on() {
    rounds(3_000_000, |numbers| {
        let mut message = some_query(numbers);
        match numbers.below(2) {
            0 => message.truncate(numbers.below(message.len() + 1)),
            _ => message.extend((0..numbers.below(40)).map(|_| numbers.byte()).collect::<Vec<_>>()),
        }
        message
    });
}

#[test]
fn answers_of_others_that_were_hit() {
    let world = World { does_forward: true, transport: Transport::Tcp, ..World::new() };
    for seed in seeds(5_000_000) {
        let mut numbers = Numbers(seed);
        let message = query("far.lab", A);
        let (verdict, begun) = world.ask(&message);
        assert_eq!(verdict, Verdict::Follow);
        let mut others = query_for_target(&message, &begun).expect("an alias");
        others[2] |= 0x80;
        others[7] = 2;
        others.extend([1, b'x', 0xc0, 16, 0, 5, 0, 1, 0, 0, 0, 60, 0, 4, 1, b'y', 0xc0, 12]);
        others.extend([0xc0, 12, 0, 6, 0, 1, 0, 0, 0, 60, 0, 24, 0xc0, 16, 0xc0, 20]);
        others.extend([0; 20]);
        for _ in 0..=numbers.below(4) {
            let at = numbers.below(others.len());
            others[at] = numbers.one_of(&[0, 1, 0x0c, 0x3f, 0xc0, 0xff, seed.to_be_bytes()[7]]);
        }
        others.truncate(others.len() - numbers.below(3));
        let mut reply = Vec::new();
        join(&message, &begun, &others, Transport::Udp, &mut reply);
        // Data of types that have no names goes on as it is, right or wrong; all else can be read.
        let answer = Message::from_octets(&reply[..]).expect("a header");
        let count = answer.answer().expect("answers").filter(Result::is_ok).count();
        assert_eq!(count, usize::from(answer.header_counts().ancount()), "seed {seed}");
        assert_eq!(answer.sections().expect("sections").3.count(), 0, "seed {seed}");
    }
}

#[test]
fn bytes_of_chance() {
    rounds(4_000_000, |numbers| {
        let length = numbers.below(200);
        let mut message: Vec<u8> = (0..length).map(|_| numbers.byte()).collect();
        if length > HEADER_BYTES && numbers.below(2) == 0 {
            // A header that passes, so that the rest is looked at.
            let additional = message[11] % 6;
            message[2..HEADER_BYTES].copy_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, additional]);
        }
        message
    });
}
