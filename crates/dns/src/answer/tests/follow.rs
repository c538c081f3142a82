//! What others answer for the target of an alias, put behind the alias.

use super::*;
use crate::alias::{join, query_for_target};

/// What was begun for `far.lab`, as it is gone on with.
fn begun(message: &[u8]) -> Vec<u8> {
    let world = World { does_forward: true, transport: Transport::Tcp, ..World::new() };
    match world.ask(message) {
        (Verdict::Follow, reply) => reply,
        other => panic!("{other:?}"),
    }
}

/// An answer of others to a query: a code, and records as bytes.
fn others(query: &[u8], rcode: u8, records: &[&[u8]]) -> Vec<u8> {
    let mut answer = query.to_vec();
    answer[2] |= 0x80;
    answer[3] = rcode;
    answer[7] = u8::try_from(records.len()).expect("few");
    answer.extend(records.concat());
    answer
}

/// Owner, type, class, 60 s, and data.
fn record(owner: &[u8], rtype: u16, data: &[u8]) -> Vec<u8> {
    let numbers = [rtype, 1, 0, 60, u16::try_from(data.len()).expect("fits")].map(u16::to_be_bytes).concat();
    [owner, &numbers, data].concat()
}

const ALIAS: &str = "> far.lab 5 CNAME www.example.org";

#[test]
fn the_target_is_asked_for_with_what_the_client_said() {
    for message in [query("far.lab", A), with_edns(query("far.lab", AAAA), 1_232, 0, 0x80)] {
        let asked = query_for_target(&message, &begun(&message)).expect("an alias");
        let own = &message[HEADER_BYTES + 9..];
        assert_eq!(asked, [&message[..HEADER_BYTES], &wire::encode("www.example.org"), own].concat());
    }
    let message = query("db.vm.lab", A);
    let (_, reply) = World::new().ask(&message);
    assert_eq!(query_for_target(&message, &reply), None);
}

#[test]
fn what_others_answer_stands_behind_the_alias() {
    let message = query("far.lab", A);
    let check = |rcode: u8, records: &[&[u8]], expect: &str| {
        let begun = begun(&message);
        let target = query_for_target(&message, &begun).expect("an alias");
        let mut reply = Vec::new();
        join(&message, &begun, &others(&target, rcode, records), Transport::Udp, &mut reply);
        assert_eq!(describe(&reply), expect);
    };
    let owner: &[u8] = &[0xc0, 12];
    let address = record(owner, A, &[192, 0, 2, 1]);
    check(0, &[&address], &format!("NOERROR aa ra {ALIAS} > www.example.org 60 A 192.0.2.1"));
    // A name whose end is the question's: at 12 there is `www`, at 16 `example.org`.
    let alias = record(owner, rtype::CNAME, &[1, b'x', 0xc0, 16]);
    let behind = record(&[1, b'x', 0xc0, 16], A, &[192, 0, 2, 2]);
    let both = "> www.example.org 60 CNAME x.example.org > x.example.org 60 A 192.0.2.2";
    check(0, &[&alias, &behind], &format!("NOERROR aa ra {ALIAS} {both}"));
    let mail = record(owner, rtype::MX, &[0, 10, 0xc0, 16]);
    check(0, &[&mail], &format!("NOERROR aa ra {ALIAS} > www.example.org 60 MX 10 example.org"));
    let soa = record(owner, rtype::SOA, &[&[0xc0, 12, 0xc0, 16][..], &[0; 20]].concat());
    check(
        0,
        &[&soa],
        &format!("NOERROR aa ra {ALIAS} > www.example.org 60 SOA www.example.org example.org 0 0 0 0 0"),
    );
    check(0, &[], &format!("NOERROR aa ra {ALIAS}"));
    check(3, &[], &format!("NXDOMAIN aa ra {ALIAS}"));
    check(5, &[], &format!("SERVFAIL aa ra {ALIAS}"));
    // Many are cut.
    let many = vec![address.as_slice(); 40];
    let told = format!("NOERROR aa tc ra {ALIAS}{}", " > www.example.org 60 A 192.0.2.1".repeat(14));
    check(0, &many, &told);
}

#[test]
fn what_others_say_that_cannot_be_read_is_a_failure() {
    let message = query("far.lab", A);
    let begun = begun(&message);
    let target = query_for_target(&message, &begun).expect("an alias");
    let end = u8::try_from(target.len()).expect("fits");
    let bad = [
        // To itself, ahead, and by a ring.
        record(&[0xc0, end], A, &[0; 4]),
        record(&[0xc0, end + 2], A, &[0; 4]),
        record(&[1, b'a', 0xc0, end], A, &[0; 4]),
        record(&[0xc0, 12], rtype::CNAME, &[0x40]),
        record(&[0xc0, 12], rtype::SOA, &[0]),
        vec![0xc0, 12, 0],
        record(&[0xc0, 12], A, &[0; 4])[..15].to_vec(),
    ];
    for record in bad {
        let mut reply = Vec::new();
        join(&message, &begun, &others(&target, 0, &[&record]), Transport::Udp, &mut reply);
        assert_eq!(describe(&reply), "SERVFAIL ra", "{record:?}");
    }
    for length in 0..HEADER_BYTES {
        let mut reply = Vec::new();
        join(&message, &begun, &vec![0x80; length], Transport::Udp, &mut reply);
        assert_eq!(describe(&reply), "SERVFAIL ra");
    }
}
