//! Names that are not the zone's, which others answer: here resolvers that do as a test says.

use std::net::SocketAddr;

use tokio::net::{TcpListener, UdpSocket};

use super::rig::{Rig, SERVFAIL, ask_tcp, ask_udp, framed, query, read_framed, told, zone};
use tokio::io::AsyncWriteExt as _;

/// What a resolver does with a query over UDP.
#[derive(Clone, Copy, Debug)]
enum Does {
    Answers,
    /// Answers, after others have tried to: with another id, another question, and a query.
    AnswersAfterGuesses,
    /// Says that the answer is to be had over TCP, and gives it there.
    Cuts,
    Refuses,
    Nothing,
    /// Is not there: nobody listens at port 1.
    Gone,
}

/// How many ports are looked at for one that is free.
const PORT_TRIES: usize = 100;

/// An answer with so many addresses.
fn answer(query: &[u8], addresses: u8) -> Vec<u8> {
    let mut answer = query.to_vec();
    answer[2] |= 0x80;
    answer[3] |= 0x80;
    answer[7] = addresses;
    for number in 1..=addresses {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, number]);
    }
    answer
}

fn changed(mut message: Vec<u8>, at: usize, bits: u8) -> Vec<u8> {
    message[at] ^= bits;
    message
}

/// A resolver that does one thing for ever; 100 addresses over TCP, one over UDP.
async fn upstream(does: Does) -> SocketAddr {
    if matches!(does, Does::Gone) {
        return "127.0.0.1:1".parse().expect("an address");
    }
    let (socket, listener) = one_port().await;
    let address = socket.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let query = read_framed(&mut stream).await;
            let _ = stream.write_all(&framed(&answer(&query, 100))).await;
        }
    });
    tokio::spawn(async move {
        let mut query = [0; 4_096];
        while let Ok((length, from)) = socket.recv_from(&mut query).await {
            let query = &query[..length];
            let good = answer(query, 1);
            let answers = match does {
                Does::Answers => vec![good],
                Does::AnswersAfterGuesses => vec![
                    Vec::new(),
                    changed(good.clone(), 1, 1),
                    changed(good.clone(), 14, 1),
                    changed(good.clone(), 2, 0x80),
                    good,
                ],
                Does::Cuts => vec![changed(query.to_vec(), 2, 0x82)],
                Does::Refuses => vec![changed(changed(query.to_vec(), 2, 0x80), 3, 5)],
                Does::Nothing | Does::Gone => Vec::new(),
            };
            for answer in answers {
                let _ = socket.send_to(&answer, from).await;
            }
        }
    });
    address
}

/// A port that is free for both. What is free for UDP may be the near end of anybody's connection, so that several are tried.
async fn one_port() -> (UdpSocket, TcpListener) {
    for _ in 0..PORT_TRIES {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
        if let Ok(listener) = TcpListener::bind(socket.local_addr().expect("an address")).await {
            return (socket, listener);
        }
    }
    panic!("none of {PORT_TRIES} ports is free for UDP and TCP");
}

async fn check(name: &str, upstreams: &[Does], udp: &str, tcp: &str) {
    let mut addresses = Vec::new();
    for does in upstreams {
        addresses.push(upstream(*does).await);
    }
    let rig = Rig::start(name, &addresses).await;
    rig.dns.apply(&zone(1, 1)).expect("applies");
    let letters = query("WWW.Example.org");
    let over_udp = ask_udp(rig.address(), &letters).await;
    assert_eq!(told(&over_udp), udp, "{upstreams:?}");
    assert_eq!(over_udp[12..letters.len()], letters[12..], "the question as it was asked");
    let over_tcp = told(&ask_tcp(rig.address(), &letters).await);
    assert_eq!(over_tcp.split(' ').take(2).collect::<Vec<_>>().join(" "), tcp, "{upstreams:?}");
    assert_eq!(told(&ask_udp(rig.address(), &query("db.vm.lab")).await), "NOERROR 10.77.0.1");
    let counts = rig.dns.status().counts;
    let is_failure = u64::from(udp == SERVFAIL);
    assert_eq!((counts.forwarded, counts.forwards_failed), (2 - 2 * is_failure, 2 * is_failure));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_say_comes_back() {
    let good = "NOERROR 192.0.2.1";
    check("answers", &[Does::Answers], good, good).await;
    check("second", &[Does::Refuses, Does::Answers], good, good).await;
    check("refused", &[Does::Refuses], "REFUSED", "REFUSED").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alias_that_leaves_the_zone_is_gone_on_with() {
    let check = async |name: &str, does: Does, udp: &str, tcp_records: usize| {
        let rig = Rig::start(name, &[upstream(does).await]).await;
        rig.dns.apply(&zone(1, 1)).expect("applies");
        let over_udp = told(&ask_udp(rig.address(), &query("far.lab")).await);
        assert_eq!(over_udp.split(' ').take(3).collect::<Vec<_>>().join(" "), udp, "{does:?}");
        let over_tcp = told(&ask_tcp(rig.address(), &query("far.lab")).await);
        assert_eq!(over_tcp.matches(" 192.0.2.").count(), tcp_records, "{over_tcp}");
    };
    check("follow", Does::Answers, "NOERROR 192.0.2.1", 1).await;
    check("follow-cut", Does::Cuts, "NOERROR tc 192.0.2.1", 100).await;
    check("follow-refused", Does::Refuses, SERVFAIL, 0).await;
    check("follow-nobody", Does::Gone, SERVFAIL, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_answer_is_left_for_the_next() {
    check("next", &[Does::Nothing, Does::Answers], "NOERROR 192.0.2.1", "NOERROR 192.0.2.1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_answers_in_anothers_place_is_not_heard() {
    check("guesses", &[Does::AnswersAfterGuesses], "NOERROR 192.0.2.1", "NOERROR 192.0.2.1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_cut_is_asked_for_again() {
    check("cut", &[Does::Cuts], "NOERROR tc", "NOERROR 192.0.2.1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_there_is_a_failure() {
    check("nobody", &[Does::Gone], SERVFAIL, SERVFAIL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_client_does_not_take_all_places() {
    let rig = Rig::start("places", &[upstream(Does::Nothing).await]).await;
    rig.dns.apply(&zone(1, 1)).expect("applies");
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
    socket.connect(rig.address()).await.expect("connects");
    for _ in 0..65 {
        socket.send(&query("www.example.org")).await.expect("sends");
    }
    // The first answer is the refusal: the rest waits for who says nothing.
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer).await.expect("receives");
    assert_eq!(told(&answer[..length]), SERVFAIL);
    assert_eq!(rig.dns.status().counts.forwards_refused, 1);
    assert_eq!(told(&ask_udp(rig.address(), &query("db.vm.lab")).await), "NOERROR 10.77.0.1");
}
