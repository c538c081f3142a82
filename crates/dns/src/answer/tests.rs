//! Every rule of an answer, read back by a library that is not ours.

mod follow;
mod hostile;

use std::net::{Ipv4Addr, Ipv6Addr};

use domain::base::Message;
use domain::base::opt::AllOptData;
use domain::rdata::AllRecordData;
use lightbyte_api::zone::{Records, Service, Set, Zone};

use super::*;

const A: u16 = rtype::A;
const AAAA: u16 = rtype::AAAA;

fn v4(text: &str) -> Ipv4Addr {
    text.parse().expect("an address")
}

/// A zone with one of each.
fn zone() -> Zone {
    let mut zone = Zone::new("lab", 7);
    let mut add = |name: &str, records: Records| zone.names.insert(name.to_owned(), records);
    add("@", Records { txt: vec!["the zone".to_owned()].into(), ..Records::default() });
    add(
        "db.vm",
        Records {
            a: vec![v4("10.77.0.5")].into(),
            aaaa: vec!["fd00::5".parse::<Ipv6Addr>().expect("an address")].into(),
            ..Records::default()
        },
    );
    let three = ["10.77.0.1", "10.77.0.2", "10.77.0.3"].map(v4).to_vec();
    add("web.lb", Records { a: three.into(), ..Records::default() });
    let service = |priority| Service { priority, weight: 1, port: 80, target: "web.lb.lab".to_owned() };
    add("_http._tcp.web.lb", Records { srv: vec![service(0)].into(), ..Records::default() });
    let alias = |target: &str| Records { cname: vec![target.to_owned()].into(), ..Records::default() };
    add("www", alias("db.vm.lab"));
    add("far", alias("www.example.org"));
    add("lost", alias("gone.vm.lab"));
    add("round", alias("and.lab"));
    add("and", alias("round.lab"));
    let big: Vec<Ipv4Addr> = (0..100).map(|number| Ipv4Addr::new(10, 78, 0, number)).collect();
    add("big.group", Records { a: Set { values: big, ttl_s: 1 }, ..Records::default() });
    add("long", Records { txt: Set { values: vec!["x".repeat(255)], ttl_s: 300 }, ..Records::default() });
    zone.reverse =
        ["10.77.0.0/16", "10.80.16.0/20", "fd00::/64"].map(|net| net.parse().expect("a subnet")).to_vec();
    for (address, target) in
        [("10.77.0.5", "db.vm.lab"), ("10.80.17.1", "x.vm.lab"), ("fd00::5", "db.vm.lab")]
    {
        zone.pointers.insert(address.parse().expect("an address"), target.to_owned());
    }
    assert_eq!(zone.check(), []);
    zone
}

/// A query as a client writes it.
fn query(name: &str, rtype: u16) -> Vec<u8> {
    let mut message = vec![0x12, 0x34, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0];
    if name == "." {
        message.push(0);
    } else {
        message.extend(wire::encode(name));
    }
    message.extend(rtype.to_be_bytes());
    message.extend(CLASS_IN.to_be_bytes());
    message
}

/// The query with OPT.
fn with_edns(mut message: Vec<u8>, payload: u16, version: u8, flags: u8) -> Vec<u8> {
    message[11] += 1;
    message.extend([0, 0, 41]);
    message.extend(payload.to_be_bytes());
    message.extend([0, version, flags, 0, 0, 0]);
    message
}

fn changed(mut message: Vec<u8>, at: usize, byte: u8) -> Vec<u8> {
    message[at] = byte;
    message
}

/// A table and everything else that an answer depends on.
struct World {
    table: Table,
    freshness: Freshness,
    transport: Transport,
    does_forward: bool,
    turns: Turns,
}

impl World {
    fn new() -> World {
        let (table, turns) = (Table::new(&zone()), Turns::new());
        World { table, freshness: Freshness::Fresh, transport: Transport::Udp, does_forward: false, turns }
    }

    fn ask(&self, message: &[u8]) -> (Verdict, Vec<u8>) {
        let World { freshness, transport, does_forward, .. } = *self;
        let context = Context { freshness, transport, does_forward, turns: &self.turns };
        let mut reply = vec![0xaa; 7];
        let verdict = answer(&self.table, &context, message, &mut reply);
        (verdict, reply)
    }

    fn told(&self, message: &[u8]) -> String {
        match self.ask(message) {
            (Verdict::Silence, _) => "silence".to_owned(),
            (Verdict::Forward, _) => "forward".to_owned(),
            (Verdict::Follow, reply) => format!("follow {}", describe(&reply)),
            (Verdict::Send { .. }, reply) => describe(&reply),
        }
    }

    fn check(&self, name: &str, rtype: u16, expect: &str) {
        assert_eq!(self.told(&query(name, rtype)), expect, "{name} {rtype}");
    }
}

/// A message as text: the code, flags, records by section, and what OPT says.
fn describe(bytes: &[u8]) -> String {
    let message = Message::from_octets(bytes).expect("a header");
    let header = message.header();
    assert!(header.qr());
    let mut text = message.opt_rcode().to_string();
    for (flag, is_set) in [("aa", header.aa()), ("tc", header.tc()), ("ra", header.ra()), ("ad", header.ad())]
    {
        if is_set {
            text += &format!(" {flag}");
        }
    }
    let (_, answers, authorities, additional) = message.sections().expect("sections");
    for (section, mark) in [(answers, ">"), (authorities, "^")] {
        for record in section.limit_to::<AllRecordData<_, _>>() {
            let record = record.expect("a record");
            let ttl = record.ttl().as_secs();
            // Names in data end with a dot, and owners do not: that is the library's taste.
            let data = format!("{} ", record.data()).replace(". ", " ");
            text += &format!(" {mark} {} {ttl} {} {}", record.owner(), record.rtype(), data.trim_end());
        }
    }
    for record in additional.limit_to::<AllRecordData<_, _>>() {
        assert!(record.is_ok());
    }
    if let Some(opt) = message.opt() {
        text += &format!(" + {}", opt.udp_payload_size());
        text += if opt.dnssec_ok() { " do" } else { "" };
        for option in opt.opt().iter::<AllOptData<_, _>>() {
            if let AllOptData::ExtendedError(error) = option.expect("an option") {
                text += &format!(" ede {}", error.code().to_int());
            }
        }
    }
    text
}

const SOA: &str = "^ lab 5 SOA ns.lab hostmaster.lab 7 5 5 5 5";

#[test]
fn names_of_the_zone_have_their_records() {
    let world = World::new();
    world.check("db.vm.lab", A, "NOERROR aa > db.vm.lab 5 A 10.77.0.5");
    world.check("db.vm.lab", AAAA, "NOERROR aa > db.vm.lab 5 AAAA fd00::5");
    world.check(
        "_http._tcp.web.lb.lab",
        rtype::SRV,
        "NOERROR aa > _http._tcp.web.lb.lab 5 SRV 0 1 80 web.lb.lab",
    );
    world.check("lab", rtype::TXT, "NOERROR aa > lab 5 TXT \"the zone\"");
    world.check("lab", rtype::SOA, "NOERROR aa > lab 5 SOA ns.lab hostmaster.lab 7 5 5 5 5");
    world.check("lab", rtype::NS, "NOERROR aa > lab 5 NS ns.lab");
    let long = format!("NOERROR aa > long.lab 300 TXT \"{}\"", "x".repeat(255));
    world.check("long.lab", rtype::TXT, &long);
}

#[test]
fn what_a_name_has_not_is_told_from_what_is_no_name() {
    let world = World::new();
    world.check("web.lb.lab", AAAA, &format!("NOERROR aa {SOA}"));
    world.check("lab", A, &format!("NOERROR aa {SOA}"));
    world.check("ns.lab", A, &format!("NOERROR aa {SOA}"));
    // Between names.
    world.check("vm.lab", A, &format!("NOERROR aa {SOA}"));
    world.check("_tcp.web.lb.lab", A, &format!("NOERROR aa {SOA}"));
    world.check("gone.vm.lab", A, &format!("NXDOMAIN aa {SOA}"));
    world.check("x.db.vm.lab", A, &format!("NXDOMAIN aa {SOA}"));
    // A length that looks like the zone's is not the zone.
    world.check("dblab", A, "REFUSED");
    world.check("x\u{3}lab", A, "REFUSED");
}

#[test]
fn aliases_are_followed_within_the_zone() {
    let world = World::new();
    let www = "NOERROR aa > www.lab 5 CNAME db.vm.lab";
    world.check("www.lab", rtype::CNAME, www);
    world.check("www.lab", A, &format!("{www} > db.vm.lab 5 A 10.77.0.5"));
    world.check("www.lab", rtype::TXT, &format!("{www} {SOA}"));
    world.check("far.lab", A, "NOERROR aa > far.lab 5 CNAME www.example.org");
    world.check("lost.lab", A, &format!("NXDOMAIN aa > lost.lab 5 CNAME gone.vm.lab {SOA}"));
    let told = world.told(&query("round.lab", A));
    assert_eq!(told.matches(" CNAME ").count(), ALIASES_MAX + 1, "{told}");
    let edge = World { freshness: Freshness::Stale, ..World::new() };
    edge.check("lost.lab", A, "SERVFAIL");
}

#[test]
fn reverse_names_are_numbers() {
    let world = World::new();
    let ptr = rtype::PTR;
    world.check("5.0.77.10.in-addr.arpa", ptr, "NOERROR aa > 5.0.77.10.in-addr.arpa 5 PTR db.vm.lab");
    let soa = |apex: &str| SOA.replace("^ lab", &format!("^ {apex}"));
    let v4 = soa("77.10.in-addr.arpa");
    world.check("5.0.77.10.in-addr.arpa", A, &format!("NOERROR aa {v4}"));
    world.check("6.0.77.10.in-addr.arpa", ptr, &format!("NXDOMAIN aa {v4}"));
    world.check("0.77.10.in-addr.arpa", ptr, &format!("NOERROR aa {v4}"));
    world.check("1.77.10.in-addr.arpa", ptr, &format!("NXDOMAIN aa {v4}"));
    world.check("77.10.in-addr.arpa", rtype::SOA, &v4.replace('^', "NOERROR aa >"));
    world.check("77.10.in-addr.arpa", rtype::NS, "NOERROR aa > 77.10.in-addr.arpa 5 NS ns.lab");
    for name in ["05.0", "256.0", "x.0", "1.5.0", "+5.0", "5.x"] {
        world.check(&format!("{name}.77.10.in-addr.arpa"), ptr, &format!("NXDOMAIN aa {v4}"));
    }
    world.check("10.in-addr.arpa", ptr, "REFUSED");
    world.check("in-addr.arpa", ptr, "REFUSED");
    world.check("1.0.78.10.in-addr.arpa", ptr, "REFUSED");
    // A subnet of 20 bits is sixteen zones.
    let second = soa("17.80.10.in-addr.arpa");
    world.check("1.17.80.10.in-addr.arpa", ptr, "NOERROR aa > 1.17.80.10.in-addr.arpa 5 PTR x.vm.lab");
    world.check("2.17.80.10.in-addr.arpa", ptr, &format!("NXDOMAIN aa {second}"));
    world.check("1.32.80.10.in-addr.arpa", ptr, "REFUSED");
    let zeros = |count: usize| "0.".repeat(count);
    let v6 = format!("{}0.0.d.f.ip6.arpa", zeros(12));
    let name = format!("5.{}{v6}", zeros(15));
    world.check(&name, ptr, &format!("NOERROR aa > {name} 5 PTR db.vm.lab"));
    world.check(&format!("0.{v6}"), ptr, &format!("NOERROR aa {}", soa(&v6)));
    world.check(&format!("1.{v6}"), ptr, &format!("NXDOMAIN aa {}", soa(&v6)));
    world.check(&v6, rtype::NS, &format!("NOERROR aa > {v6} 5 NS ns.lab"));
    world.check(v6.trim_start_matches("0."), ptr, "REFUSED");
}

#[test]
fn letters_come_back_as_they_were_asked() {
    let world = World::new();
    let told = world.told(&query("Db.VM.laB", A));
    assert_eq!(told, "NOERROR aa > Db.VM.laB 5 A 10.77.0.5");
    let (_, reply) = world.ask(&query("Db.VM.laB", A));
    assert_eq!(reply[12..27], query("Db.VM.laB", A)[12..], "the question, byte for byte");
    let told = world.told(&query("GONE.Lab", A));
    assert_eq!(told, "NXDOMAIN aa ^ Lab 5 SOA ns.lab hostmaster.lab 7 5 5 5 5");
}

#[test]
fn addresses_take_turns() {
    let world = World::new();
    let first = |rtype| {
        let told = world.told(&query("web.lb.lab", rtype));
        told.split(" > ")
            .map(|record| record.rsplit('.').next().unwrap_or_default().to_owned())
            .collect::<Vec<_>>()[1..]
            .join("")
    };
    // Who asks for AAAA by turns gets all of them too.
    let turns: Vec<String> = (0..6)
        .map(|_| {
            world.ask(&query("web.lb.lab", AAAA));
            first(A)
        })
        .collect();
    assert_eq!(turns, ["123", "231", "312", "123", "231", "312"]);
}

#[test]
fn a_question_for_anything_gets_one_set() {
    let world = World::new();
    world.check("db.vm.lab", rtype::ANY, "NOERROR aa > db.vm.lab 5 A 10.77.0.5");
    world.check("www.lab", rtype::ANY, "NOERROR aa > www.lab 5 CNAME db.vm.lab");
    world.check("vm.lab", rtype::ANY, &format!("NOERROR aa {SOA}"));
    world.check("gone.lab", rtype::ANY, &format!("NXDOMAIN aa {SOA}"));
}

#[test]
fn edns_is_answered_with_edns() {
    let world = World::new();
    let check = |message: Vec<u8>, expect: &str| assert_eq!(world.told(&message), expect);
    let name = || query("db.vm.lab", A);
    let answer = "NOERROR aa > db.vm.lab 5 A 10.77.0.5";
    check(with_edns(name(), 4_096, 0, 0), &format!("{answer} + 1232"));
    check(with_edns(name(), 0, 0, 0x80), &format!("{answer} + 1232 do"));
    check(with_edns(query("gone.lab", A), 4_096, 0, 0), &format!("NXDOMAIN aa {SOA} + 1232"));
    check(with_edns(name(), 4_096, 1, 0), "BADVERS + 1232");
    check(with_edns(with_edns(name(), 512, 0, 0), 512, 0, 0), "FORMERR");
    check(query("db.vm.lab", rtype::OPT), "FORMERR");
    // An option that nobody knows is passed over.
    let mut option = with_edns(name(), 1_232, 0, 0);
    let last = option.len() - 1;
    option[last] = 6;
    option.extend([0xff, 0xf0, 0, 2, 1, 2]);
    check(option.clone(), &format!("{answer} + 1232"));
    check(option[..option.len() - 1].to_vec(), "FORMERR");
}

#[test]
fn what_does_not_fit_is_cut_over_udp() {
    let mut world = World::new();
    let length = |world: &World, payload: Option<u16>| {
        let message = query("big.group.lab", A);
        let message = payload.map_or(message.clone(), |payload| with_edns(message, payload, 0, 0));
        let (verdict, reply) = world.ask(&message);
        let told = describe(&reply);
        assert_eq!(
            matches!(verdict, Verdict::Send { is_truncated: true, .. }),
            told.contains(" tc"),
            "{told:.60}"
        );
        (reply.len(), told.matches(" > ").count(), told.contains(" tc"))
    };
    assert_eq!(length(&world, None), (511, 30, true));
    assert_eq!(length(&world, Some(100)), (506, 29, true));
    assert_eq!(length(&world, Some(1_000)), (986, 59, true));
    assert_eq!(length(&world, Some(65_535)), (1_226, 74, true));
    world.transport = Transport::Tcp;
    assert_eq!(length(&world, None), (1_631, 100, false));
}

#[test]
fn what_is_not_for_us_is_refused() {
    let world = World::new();
    let check = |message: Vec<u8>, expect: &str| assert_eq!(world.told(&message), expect);
    world.check("example.org", A, "REFUSED");
    world.check(".", rtype::NS, "REFUSED");
    let last = query("lab", A).len() - 1;
    check(changed(query("lab", A), last, 3), "REFUSED");
    check(changed(query("lab", A), last, 255), "REFUSED");
    for transfer in [251, 252] {
        world.check("lab", transfer, "REFUSED");
    }
    for opcode in [1, 2, 4, 5, 6, 15] {
        check(changed(query("lab", A), 2, opcode << 3), "NOTIMP");
    }
    check(changed(query("lab", A), 2, 0x80), "silence");
    check(query("lab", A)[..11].to_vec(), "silence");
    check(Vec::new(), "silence");
    check(changed(query("lab", A), 5, 0), "FORMERR");
    check(changed(query("lab", A), 5, 2), "FORMERR");
    check(changed(query("lab", A), 7, 1), "FORMERR");
    check(changed(query("lab", A), 11, 1), "FORMERR");
    check([query("lab", A), vec![0]].concat(), "FORMERR");
    // A name that points to itself.
    check(changed(changed(query("lab", A), 12, 0xc0), 13, 12), "FORMERR");
    check(changed(query("lab", A), 12, 0x40), "FORMERR");
}

#[test]
fn others_are_asked_for_what_is_theirs() {
    let world = World { does_forward: true, ..World::new() };
    world.check("example.org", A, "forward");
    world.check("1.0.78.10.in-addr.arpa", rtype::PTR, "forward");
    world.check("db.vm.lab", A, "NOERROR aa ra > db.vm.lab 5 A 10.77.0.5");
    world.check("gone.lab", A, &format!("NXDOMAIN aa ra {SOA}"));
    world.check("example.org", 252, "REFUSED ra");
    let not_desired = changed(query("example.org", A), 2, 0);
    assert_eq!(world.told(&not_desired), "REFUSED ra");
    // An alias is for them from where it leaves the zone.
    let far = "far.lab 5 CNAME www.example.org";
    world.check("far.lab", A, &format!("follow NOERROR aa ra > {far}"));
    world.check("far.lab", rtype::CNAME, &format!("NOERROR aa ra > {far}"));
    world.check("far.lab", rtype::ANY, &format!("NOERROR aa ra > {far}"));
    assert_eq!(world.told(&changed(query("far.lab", A), 2, 0)), format!("NOERROR aa ra > {far}"));
    let mut reply = Vec::new();
    fail(&query("example.org", A), Transport::Udp, &mut reply);
    assert_eq!(describe(&reply), "SERVFAIL ra");
    truncate(&with_edns(query("example.org", A), 512, 0, 0), &mut reply);
    assert_eq!(describe(&reply), "NOERROR tc ra + 1232");
}

#[test]
fn what_may_have_changed_is_not_denied() {
    let stale = World { freshness: Freshness::Stale, ..World::new() };
    stale.check("db.vm.lab", A, "NOERROR aa > db.vm.lab 5 A 10.77.0.5");
    stale.check("db.vm.lab", rtype::TXT, &format!("NOERROR aa {SOA}"));
    stale.check("5.0.77.10.in-addr.arpa", rtype::PTR, "NOERROR aa > 5.0.77.10.in-addr.arpa 5 PTR db.vm.lab");
    stale.check("gone.vm.lab", A, "SERVFAIL");
    stale.check("6.0.77.10.in-addr.arpa", rtype::PTR, "SERVFAIL");
    stale.check("example.org", A, "REFUSED");
    let edns = |world: &World, name: &str| world.told(&with_edns(query(name, A), 1_232, 0, 0));
    assert_eq!(edns(&stale, "db.vm.lab"), "NOERROR aa > db.vm.lab 5 A 10.77.0.5 + 1232 ede 3");
    assert_eq!(edns(&stale, "gone.vm.lab"), "SERVFAIL + 1232 ede 22");
    assert_eq!(edns(&stale, "example.org"), "REFUSED + 1232");
    let missing = World { table: Table::unknown("lab"), freshness: Freshness::Missing, ..World::new() };
    for name in ["lab", "db.vm.lab", "5.0.77.10.in-addr.arpa", "in-addr.arpa", "x.ip6.arpa"] {
        missing.check(name, A, "SERVFAIL");
    }
    missing.check("example.org", A, "REFUSED");
    assert_eq!(edns(&missing, "db.vm.lab"), "SERVFAIL + 1232 ede 14");
}
