//! A resolver on real sockets of 127.0.0.1, with the kernel's choice of ports.

mod forwarding;
mod rig;

use std::time::Instant;

use lightbyte_dns::{Dns, NotApplied, Rcode, StartError};

use rig::{Rig, SERVFAIL, ask_tcp, ask_udp, options, query, state_dir, told, zone};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

#[tokio::test(flavor = "multi_thread")]
async fn a_zone_is_seen_at_once_and_never_goes_back() {
    let rig = Rig::start("apply", &[]).await;
    let check = async |expect: &str| {
        assert_eq!(told(&ask_udp(rig.address(), &query("db.vm.lab")).await), expect);
        assert_eq!(told(&ask_tcp(rig.address(), &query("db.vm.lab")).await), expect);
    };
    check(SERVFAIL).await;
    for revision in 1..=50 {
        let octet = u8::try_from(revision).expect("fits");
        assert_eq!(rig.dns.apply(&zone(revision, octet)).expect("applies"), revision);
        check(&format!("NOERROR 10.77.0.{octet}")).await;
    }
    assert!(matches!(rig.dns.apply(&zone(49, 49)), Err(NotApplied::Older { asked: 49, holds: 50 })));
    assert!(matches!(rig.dns.apply(&zone(50, 1)), Err(NotApplied::Another(50))));
    assert_eq!(rig.dns.apply(&zone(50, 50)).expect("holds already"), 50);
    let mut other = zone(51, 1);
    other.name = "other".to_owned();
    assert!(matches!(rig.dns.apply(&other), Err(NotApplied::OtherZone { .. })));
    other.format = 9;
    let refused = rig.dns.apply(&other).expect_err("is bad").to_string();
    assert_eq!(refused, "the zone breaks 1 rules, the first: format: is 9, this reader knows 1 only");
    check("NOERROR 10.77.0.50").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_confirmed_is_not_denied() {
    let rig = Rig::start("confirm", &[]).await;
    let unknown = async || told(&ask_udp(rig.address(), &query("gone.vm.lab")).await);
    assert_eq!(unknown().await, SERVFAIL);
    rig.dns.apply(&zone(3, 3)).expect("applies");
    assert_eq!(unknown().await, SERVFAIL);
    assert!(!rig.dns.confirm(2, Instant::now()));
    assert_eq!(unknown().await, SERVFAIL);
    assert!(rig.dns.confirm(3, Instant::now()));
    assert_eq!(unknown().await, "NXDOMAIN");
    rig.dns.apply(&zone(4, 4)).expect("applies");
    assert_eq!(unknown().await, "NXDOMAIN");
    let status = rig.dns.status();
    assert_eq!(
        (status.revision, status.denies_unknown, status.not_saved, status.udp_threads),
        (Some(4), true, None, 2)
    );
    let count = |rcode| status.counts.answers.get(&rcode).copied();
    assert_eq!((count(Rcode::ServFail), count(Rcode::NxDomain)), (Some(3), Some(2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_knows_the_names_and_denies_none() {
    let mut rig = Rig::start("restart", &[]).await;
    rig.dns.apply(&zone(7, 7)).expect("applies");
    assert!(rig.dns.confirm(7, Instant::now()));
    let held = rig.address();
    rig.restart(held).await;
    assert_eq!(rig.address(), held, "the ports were free");
    assert_eq!(told(&ask_udp(held, &query("db.vm.lab")).await), "NOERROR 10.77.0.7");
    assert_eq!(told(&ask_udp(held, &query("gone.vm.lab")).await), SERVFAIL);
    assert_eq!((rig.dns.status().revision, rig.dns.status().confirmed_age_ms), (Some(7), None));
    assert!(matches!(rig.dns.apply(&zone(6, 6)), Err(NotApplied::Older { .. })));
    assert!(rig.dns.confirm(7, Instant::now()));
    assert_eq!(told(&ask_udp(held, &query("gone.vm.lab")).await), "NXDOMAIN");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zone_that_cannot_be_saved_holds_and_is_saved_later() {
    let mut rig = Rig::start("full", &[]).await;
    std::fs::remove_dir_all(state_dir("full")).expect("is ours");
    rig.dns.apply(&zone(1, 1)).expect("applies");
    assert!(rig.dns.status().not_saved.is_some());
    assert_eq!(told(&ask_udp(rig.address(), &query("db.vm.lab")).await), "NOERROR 10.77.0.1");
    std::fs::create_dir(state_dir("full")).expect("makes it");
    rig.dns.apply(&zone(1, 1)).expect("holds already");
    assert_eq!(rig.dns.status().not_saved, None);
    rig.restart(rig.address()).await;
    assert_eq!(rig.dns.status().revision, Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_queries_go_over_one_connection() {
    let rig = Rig::start("pipeline", &[]).await;
    rig.dns.apply(&zone(1, 1)).expect("applies");
    let mut stream = TcpStream::connect(rig.address()).await.expect("connects");
    let framed = rig::framed(&query("db.vm.lab"));
    stream.write_all(&framed.repeat(100)).await.expect("sends");
    for _ in 0..100 {
        assert_eq!(told(&rig::read_framed(&mut stream).await), "NOERROR 10.77.0.1");
    }
    // What is too long or no query ends the connection.
    for bad in [vec![0xff, 0xff], rig::framed(&[0; 11])] {
        let mut stream = TcpStream::connect(rig.address()).await.expect("connects");
        stream.write_all(&bad).await.expect("sends");
        assert!(matches!(stream.read(&mut [0; 1]).await, Ok(0) | Err(_)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_client_does_not_hold_all_connections() {
    let rig = Rig::start("connections", &[]).await;
    rig.dns.apply(&zone(1, 1)).expect("applies");
    let mut held = Vec::new();
    for _ in 0..32 {
        let mut stream = TcpStream::connect(rig.address()).await.expect("connects");
        stream.write_all(&rig::framed(&query("db.vm.lab"))).await.expect("sends");
        assert_eq!(told(&rig::read_framed(&mut stream).await), "NOERROR 10.77.0.1");
        held.push(stream);
    }
    let mut one_more = TcpStream::connect(rig.address()).await.expect("connects");
    assert!(matches!(one_more.read(&mut [0; 1]).await, Ok(0) | Err(_)));
    assert_eq!(rig.dns.status().counts.tcp_connections, 32);
    assert_eq!(told(&ask_udp(rig.address(), &query("db.vm.lab")).await), "NOERROR 10.77.0.1");
}

#[tokio::test(flavor = "multi_thread")]
async fn options_that_make_no_sense_are_refused() {
    let check = async |change: &dyn Fn(&mut lightbyte_dns::Options), expect: &str| {
        let mut options = options(&state_dir("options"), "127.0.0.1:0".parse().expect("an address"));
        change(&mut options);
        match Dns::start(options).await {
            Err(StartError::Options(what)) => assert_eq!(what, expect),
            other => panic!("{expect}: {other:?}"),
        }
    };
    let own = "127.0.0.1:5353".parse().expect("an address");
    check(&|options| options.listen.clear(), "0 addresses to listen on, 1 to 64 are allowed").await;
    check(&|options| options.udp_threads = 0, "0 threads an address, 1 to 16 are allowed").await;
    check(&|options| options.forward_to = vec![own; 4], "4 resolvers to ask, at most 3 are allowed").await;
    let asks_itself = |options: &mut lightbyte_dns::Options| {
        options.listen = vec![own];
        options.forward_to = vec![own];
    };
    check(&asks_itself, "127.0.0.1:5353 would be asked by itself, for ever").await;
    check(
        &|options| options.zone = "Lab".to_owned(),
        "the zone's name `Lab` is to be in lower case, without a dot at its end",
    )
    .await;
}
