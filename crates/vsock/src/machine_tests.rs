//! Scripts: each line is an input; the lines that start with `<` are what came of it.

use super::*;
use crate::connection::BUFFER_BYTES_MAX;
use std::fmt::Write;

const GUEST: u64 = 3;

struct World {
    machine: Machine,
    now: Duration,
    id: ConnectionId,
    ports: (u32, u32),
    out: String,
    buffer_bytes: u32,
    forwarded_bytes: u32,
    refuse_dials: bool,
    room: bool,
    host_bytes: u32,
    greeted: String,
}

impl World {
    fn new() -> Self {
        Self {
            machine: Machine::new(GUEST),
            now: Duration::ZERO,
            id: ConnectionId(0),
            ports: (0, 0),
            out: String::new(),
            buffer_bytes: 1000,
            forwarded_bytes: 0,
            refuse_dials: false,
            room: true,
            host_bytes: 0,
            greeted: String::new(),
        }
    }

    fn header(&self, operation: u16) -> Header {
        Header {
            source_cid: GUEST,
            destination_cid: HOST_CID,
            source_port: self.ports.0,
            destination_port: self.ports.1,
            kind: TYPE_STREAM,
            operation,
            buffer_bytes: self.buffer_bytes,
            forwarded_bytes: self.forwarded_bytes,
            ..Header::default()
        }
    }

    fn packet(&mut self, header: Header, payload: &[u8]) {
        self.machine.packet(&header, payload, self.now);
    }

    fn say(&mut self, line: &str) {
        writeln!(self.out, "< {line}").expect("writing to a string");
    }

    fn settle(&mut self) {
        loop {
            while let Some(effect) = self.machine.effect() {
                self.effect(effect);
            }
            if !self.room {
                return;
            }
            match self.machine.next(self.now) {
                None => return,
                Some(Outgoing::Control(header)) => self.control(header),
                Some(Outgoing::Data { connection, bytes_max }) => {
                    let bytes = bytes_max.min(self.host_bytes);
                    self.host_bytes -= bytes;
                    if bytes == 0 {
                        self.machine.data_blocked(connection);
                    } else if let Some(header) = self.machine.data_read(connection, bytes) {
                        self.say(&format!("guest: DATA {}", header.length));
                    }
                }
            }
        }
    }

    fn effect(&mut self, effect: Effect) {
        match effect {
            Effect::Dial { connection, port } => {
                self.id = connection;
                self.say(&format!("host: dial {port}"));
                self.machine.dialled(connection, !self.refuse_dials);
            }
            Effect::Flush(id) => {
                let bytes = self.machine.to_host(id);
                if bytes.starts_with(b"OK ") {
                    self.greeted = String::from_utf8_lossy(bytes).trim_end().to_owned();
                    let (greeted, length) = (self.greeted.clone(), bytes.len());
                    self.say(&format!("host: {greeted}"));
                    self.machine.host_wrote(id, length);
                }
            }
            Effect::ShutRead(_) => self.say("host: shut read"),
            Effect::ShutWrite(_) => self.say("host: shut write"),
            Effect::Close(_) => self.say("host: close"),
        }
    }

    fn control(&mut self, header: Header) {
        let name = match Operation::from_code(header.operation) {
            Some(Operation::Shutdown) => format!("Shutdown {}", header.flags),
            Some(Operation::CreditUpdate) => format!("CreditUpdate {}", header.forwarded_bytes),
            Some(Operation::Request) => {
                self.ports = (header.destination_port, header.source_port);
                "Request".to_owned()
            }
            other => format!("{other:?}").replace("Some(", "").replace(')', ""),
        };
        self.say(&format!("guest: {name}"));
    }

    fn line(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| words.get(at).and_then(|word| word.parse::<u32>().ok()).unwrap_or(0);
        match (words[0], words[1]) {
            ("host", "connects") => {
                self.id = self.machine.mint();
                self.machine.host_connects(self.id, number(2));
            }
            ("host", "writes") => {
                self.host_bytes += number(2);
                self.machine.host_readable(self.id);
            }
            ("host", "reads") => self.machine.host_wrote(self.id, number(2) as usize),
            ("host", "ends") => self.machine.host_ended(self.id),
            ("host", "dies") => self.machine.host_failed(self.id),
            ("host", "hangs-up") => self.machine.host_hung_up(self.id),
            ("listener", "none") => self.refuse_dials = true,
            ("ring", "full") => self.room = false,
            ("ring", "free") => self.room = true,
            ("time", _) => {
                self.now += Duration::from_secs(u64::from(number(1)));
                self.machine.tick(self.now);
            }
            ("guest", "restarts") => self.machine.guest_restarted(self.now),
            ("guest", "requests") => {
                self.ports = (5000, number(2));
                self.packet(self.header(1), &[]);
            }
            ("guest", "shuts") => self.packet(Header { flags: number(2), ..self.header(4) }, &[]),
            ("guest", "writes") => {
                let payload = vec![7; number(2) as usize];
                self.packet(Header { length: number(2), ..self.header(5) }, &payload);
            }
            ("guest", "lies-length") => self.packet(Header { length: number(2), ..self.header(5) }, &[]),
            ("guest", "took") => {
                self.forwarded_bytes = number(2);
                self.packet(self.header(6), &[]);
            }
            ("guest", "kind") => self.packet(Header { kind: 2, ..self.header(number(2) as u16) }, &[]),
            ("guest", "from") => self.packet(Header { source_cid: 9, ..self.header(1) }, &[]),
            ("guest", "op") => self.packet(self.header(number(2) as u16), &[]),
            other => panic!("no such line: {other:?}"),
        }
    }
}

fn check(script: &str) {
    let mut world = World::new();
    let mut expected = String::new();
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
        writeln!(expected, "{line}").expect("writing to a string");
        if !line.starts_with('<') {
            writeln!(world.out, "{line}").expect("writing to a string");
            world.line(line);
            world.settle();
        }
    }
    assert_eq!(world.out, expected);
}

const RESPONSE: &str = "guest op 2";

fn open_from_host() -> String {
    format!("host connects 1024\n< guest: Request\n{RESPONSE}\n< host: OK 1073741824\n")
}

fn open_from_guest() -> String {
    "guest requests 1025\n< host: dial 1025\n< guest: Response\n".to_owned()
}

#[test]
fn a_host_connection_lives_and_ends() {
    check(
        &(open_from_host()
            + "host writes 300\n< guest: DATA 300\nhost ends\n< guest: Shutdown 2\nguest writes 5\nhost reads 5\nguest shuts 3\n< host: close\n< guest: Reset\n"),
    );
}

#[test]
fn a_refused_host_connection_is_closed() {
    check("host connects 1024\n< guest: Request\nguest op 3\n< host: close\n");
}

#[test]
fn a_host_that_hangs_up_before_the_answer_leaves_nothing() {
    check("ring full\nhost connects 1024\nhost hangs-up\n< host: close\nring free\n");
    check(
        "host connects 1024\n< guest: Request\nhost hangs-up\n< host: close\n< guest: Reset\nguest op 2\n< guest: Reset\n",
    );
}

#[test]
fn a_killed_host_program_ends_its_connection() {
    check(
        &(open_from_host()
            + "guest writes 100\nhost dies\n< guest: Shutdown 3\n< host: close\nguest writes 5\nguest op 3\n"),
    );
    check(&(open_from_host() + "host dies\n< guest: Shutdown 3\n< host: close\ntime 8\n< guest: Reset\n"));
    check(
        &(open_from_host()
            + "host dies\n< guest: Shutdown 3\n< host: close\nguest shuts 3\n< guest: Reset\n"),
    );
}

#[test]
fn what_the_host_sent_before_it_hung_up_still_arrives() {
    check(
        &(open_from_host()
            + "ring full\nhost writes 10\nhost hangs-up\nring free\n< guest: Shutdown 1\n< guest: DATA 10\nhost ends\n< guest: Shutdown 3\n< host: close\n"),
    );
}

#[test]
fn guest_connections_need_a_listener() {
    check(&(open_from_guest() + "guest writes 5\nhost reads 5\nguest op 3\n< host: close\n"));
    check(
        "listener none\nguest requests 9\n< host: dial 9\n< guest: Reset\nguest requests 9\n< host: dial 9\n< guest: Reset\n",
    );
}

#[test]
fn half_closes_go_both_ways() {
    check(
        &(open_from_guest()
            + "guest shuts 2\n< host: shut write\nhost writes 5\n< guest: DATA 5\nhost ends\n< guest: Shutdown 2\nguest shuts 1\n< host: close\n< guest: Reset\n"),
    );
    check(
        &(open_from_guest()
            + "guest shuts 1\n< host: shut read\nhost writes 5\nguest writes 5\nhost reads 5\n"),
    );
    check(
        &(open_from_guest()
            + "guest writes 9\nguest shuts 2\nhost reads 4\nhost reads 5\n< host: shut write\n"),
    );
}

#[test]
fn a_guest_that_closes_waits_for_a_slow_reader_and_one_that_resets_does_not_lose_bytes() {
    check(
        &(open_from_guest() + "guest writes 9\nguest shuts 3\nhost reads 9\n< host: close\n< guest: Reset\n"),
    );
    check(&(open_from_guest() + "guest writes 9\nguest op 3\nhost reads 9\n< host: close\n"));
    check(&(open_from_guest() + "guest writes 9\nguest op 3\ntime 60\n< host: close\n"));
    // The same ports again while the old bytes still wait.
    check(&(open_from_guest() + "guest writes 9\nguest op 3\n" + &open_from_guest()));
}

#[test]
fn credit_bounds_both_directions() {
    check(
        &(open_from_host()
            + "host writes 1500\n< guest: DATA 1000\nguest took 400\n< guest: DATA 400\nguest took 1400\n< guest: DATA 100\n"),
    );
    // A guest that claims to have taken what was never sent gets nothing, and harms nobody else.
    check(&(open_from_host() + "guest took 5\nhost writes 10\nguest took 0\n< guest: DATA 10\n"));
    check(
        &(open_from_guest()
            + "guest writes 60000\nguest writes 60000\nguest writes 60000\n< host: close\n< guest: Reset\n"),
    );
    check(
        &(open_from_guest()
            + "guest writes 32767\nhost reads 32767\nguest writes 1\nhost reads 1\n< guest: CreditUpdate 32768\n"),
    );
    check(&(open_from_guest() + "guest op 7\n< guest: CreditUpdate 0\n"));
}

#[test]
fn nonsense_costs_a_guest_its_own_connection_only() {
    for nonsense in [
        "guest op 0",
        "guest op 8",
        "guest op 65535",
        "guest kind 5",
        "guest lies-length 7",
        "guest op 1",
        "guest op 2",
    ] {
        check(&(open_from_guest() + nonsense + "\n< host: close\n< guest: Reset\n"));
    }
    for nonsense in [
        "guest op 0",
        "guest op 2",
        "guest op 5",
        "guest op 6",
        "guest kind 1",
        "guest lies-length 4000000000",
    ] {
        check(&format!("{nonsense}\n< guest: Reset\n"));
    }
    check("guest op 3\nguest from 9\n");
    check(
        &(open_from_guest()
            + "guest shuts 2\n< host: shut write\nguest writes 1\n< host: close\n< guest: Reset\n"),
    );
    check(&(open_from_guest() + "guest shuts 4294967292\nguest writes 1\n"));
    // An answer before the guest was asked.
    check("ring full\nhost connects 1024\nguest requests 1073741824\n< host: dial 1073741824\n");
}

#[test]
fn a_restarted_guest_has_no_connections() {
    check(&(open_from_host() + "guest restarts\n< host: close\nguest writes 1\n< guest: Reset\n"));
}

#[test]
fn floods_meet_limits() {
    let mut machine = Machine::new(GUEST);
    let header = |port, operation| Header { source_port: port, operation, ..World::new().header(operation) };
    for port in 0..10_000 {
        machine.packet(&header(port, 1), &[], Duration::ZERO);
        while let Some(effect) = machine.effect() {
            if let Effect::Dial { connection, .. } = effect {
                machine.dialled(connection, port % 2 == 0);
            }
        }
    }
    assert_eq!(machine.connections.len(), GUEST_CONNECTIONS_MAX);
    assert_eq!(machine.refusals.len(), REFUSALS_MAX);
    // Open and reset for ever, without giving a ring buffer.
    for round in 0..10_000 {
        machine.packet(&header(round % 100, 3), &[], Duration::ZERO);
        machine.packet(&header(round % 100, 1), &[], Duration::ZERO);
        while let Some(effect) = machine.effect() {
            if let Effect::Dial { connection, .. } = effect {
                machine.dialled(connection, true);
            }
        }
    }
    assert!(machine.turns.len() <= GUEST_CONNECTIONS_MAX, "{}", machine.turns.len());
    assert!(machine.connections.len() <= GUEST_CONNECTIONS_MAX);
    // The host still gets all of its own.
    for _ in 0..HOST_CONNECTIONS_MAX + 1 {
        let id = machine.mint();
        machine.host_connects(id, 1024);
    }
    assert_eq!(machine.effect().map(|effect| matches!(effect, Effect::Close(_))), Some(true));
    assert_eq!(machine.effect(), None);
}

/// Programs that come and go quicker than the guest answers.
#[test]
fn those_who_left_do_not_keep_others_out_for_ever() {
    let mut machine = Machine::new(GUEST);
    for round in 0..HOST_LINGERING_MAX + 10 {
        let id = machine.mint();
        machine.host_connects(id, 1024);
        if round >= HOST_LINGERING_MAX {
            assert_eq!(machine.effect(), Some(Effect::Close(id)), "round {round}");
            continue;
        }
        let Some(Outgoing::Control(request)) = machine.next(Duration::ZERO) else { panic!("no request") };
        let response = Header {
            source_cid: GUEST,
            destination_cid: HOST_CID,
            source_port: request.destination_port,
            destination_port: request.source_port,
            operation: 2,
            ..request
        };
        machine.packet(&response, &[], Duration::ZERO);
        machine.host_failed(id);
        // The guest is told, and never says goodbye.
        while machine.next(Duration::ZERO).is_some() {}
        while machine.effect().is_some() {}
    }
    assert_eq!(machine.connections.len(), HOST_LINGERING_MAX);
    machine.tick(CLOSE_MAX);
    while machine.next(CLOSE_MAX).is_some() {}
    assert_eq!(machine.connections.len(), 0);
}

/// Random packets and socket events, many of them about connections that exist: nothing panics, every bound holds.
#[test]
fn random_guests_break_nothing() {
    for seed in 1..=200_u64 {
        let mut random = seed;
        let mut pick = move |below: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % below
        };
        let mut world = World::new();
        let mut ids = vec![ConnectionId(0)];
        for _ in 0..500 {
            world.ports = (pick(4) as u32, [1, 2, 1 << 30, (1 << 30) + 1][pick(4) as usize]);
            world.forwarded_bytes = [0, 1, 1000, u32::MAX][pick(4) as usize];
            world.buffer_bytes = [0, 1000, u32::MAX][pick(3) as usize];
            world.refuse_dials = pick(3) == 0;
            world.room = pick(3) > 0;
            world.id = ids[pick(ids.len() as u64) as usize];
            let line = match pick(16) {
                0 => "host connects 1".to_owned(),
                1 => "host writes 70000".to_owned(),
                2 => format!("host reads {}", pick(70_000)),
                3 => "host ends x".to_owned(),
                4 => "host dies x".to_owned(),
                5 => "host hangs-up x".to_owned(),
                6 => format!("time {}", pick(9)),
                7 => format!("guest shuts {}", pick(4)),
                8 | 9 => format!("guest writes {}", pick(65_537)),
                10 => "guest lies-length 77".to_owned(),
                11 if pick(20) == 0 => "guest restarts".to_owned(),
                _ => format!("guest op {}", pick(9)),
            };
            world.line(&line);
            world.settle();
            ids.push(world.id);
            let machine = &world.machine;
            let most = GUEST_CONNECTIONS_MAX + HOST_CONNECTIONS_MAX + HOST_LINGERING_MAX;
            assert!(machine.connections.len() <= most, "seed {seed}");
            assert!(machine.turns.len() <= machine.connections.len(), "seed {seed}");
            let held = |connection: &Connection| connection.to_host().len();
            let most = machine.connections.values().map(held).max().unwrap_or(0);
            assert!(most <= BUFFER_BYTES_MAX as usize + 32, "seed {seed}: {most}");
            for (ports, id) in &machine.by_ports {
                let known = machine.connections.get(id).map(|connection| connection.ports);
                assert_eq!(known, Some(*ports), "seed {seed}");
            }
        }
    }
}
