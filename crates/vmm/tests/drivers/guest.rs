//! What a guest is asked, whatever its machine is: its agent over vsock, and its console.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use lightbyte_api::VmId;
use lightbyte_guest::frame::Frame;
use lightbyte_guest::protocol::{AGENT_PORT, EXEC_PROTOCOL, Exec, Info, Metrics, Problem};
use lightbyte_vmm::driver::CONSOLE_CHUNK_BYTES_MAX;
use lightbyte_vmm::{ConsoleFrom, Guest};

use crate::contract::{Bed, refused};

/// How long one answer of a guest may take: it shares an emulated CPU with whatever else it does.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// A port on which no guest listens.
const DEAF_PORT: u32 = 4711;

/// Asks the guest of a VM that is ready.
pub(crate) fn answers(bed: &Bed<'_>, vm: VmId) {
    refused(bed.drivers.guest.connect(vm, DEAF_PORT, ANSWER_MAX).map(drop));
    let get =
        |path: &str| ask(&mut connect(&*bed.drivers.guest, vm), &format!("GET {path} HTTP/1.1\r\n"), b"");
    let (status, body) = get("/v1/health");
    assert_eq!((status, body.as_slice()), (200, br#"{"healthy":true}"#.as_slice()));
    let (status, body) = get("/v1/info");
    let info: Info = serde_json::from_slice(&body).expect("an info");
    assert_eq!((status, info.identity.expect("an identity").uid), (200, vm.to_string()));
    let (status, body) = get("/v1/metrics");
    let metrics: Metrics = serde_json::from_slice(&body).expect("metrics");
    assert_eq!((status, metrics.memory_total_bytes > 64 << 20), (200, true), "{metrics:?}");
    assert_eq!(get("/v1/nothing").0, 404);
}

/// Runs programs in the guest of a VM that is ready.
pub(crate) fn runs_programs(bed: &Bed<'_>, vm: VmId) {
    let table: [(&[&str], &str, &str, u32); 4] = [
        (&["echo", "two", "words"], "", "two words\n", 0),
        (&["echo"], "", "\n", 0),
        (&["false"], "", "", 1),
        (&["cat"], "what goes in\ncomes out\n", "what goes in\ncomes out\n", 0),
    ];
    for (argv, input, output, code) in table {
        let mut stream = connect(&*bed.drivers.guest, vm);
        assert_eq!(exec(&mut stream, argv).0, 101, "{argv:?}");
        if !input.is_empty() {
            send(&mut stream, &Frame::Stdin(input.into()));
            send(&mut stream, &Frame::Stdin(Vec::new()));
        }
        assert_eq!(outcome(&mut stream), (output.to_owned(), code), "{argv:?}");
    }
    let (status, body) = exec(&mut connect(&*bed.drivers.guest, vm), &["no-such-program"]);
    let problem: Problem = serde_json::from_slice(&body).expect("a problem");
    assert_eq!(status, 422);
    assert!(problem.error.starts_with("start no-such-program: No such file"), "{problem:?}");
    assert_eq!(
        ask(&mut connect(&*bed.drivers.guest, vm), "POST /v1/exec HTTP/1.1\r\n", b"{}").0,
        426,
        "without its upgrade"
    );
}

/// A program that waits for its input, with the stream to it.
pub(crate) fn waits(bed: &Bed<'_>, vm: VmId) -> UnixStream {
    let mut stream = connect(&*bed.drivers.guest, vm);
    assert_eq!(exec(&mut stream, &["cat"]).0, 101);
    send(&mut stream, &Frame::Stdin(b"here".to_vec()));
    let said =
        std::iter::repeat_with(|| frame(&mut stream)).find(|frame| !matches!(frame, Some(Frame::Taken(_))));
    assert_eq!(said.flatten(), Some(Frame::Stdout(b"here".to_vec())));
    stream
}

/// The streams to a guest have ended with its machine.
pub(crate) fn has_ended(bed: &Bed<'_>, vm: VmId, mut stream: UnixStream) {
    let is_over = |error: &std::io::Error| {
        !matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
    };
    // What was said before is still to be had.
    let end = stream.read_to_end(&mut Vec::new());
    assert!(end.as_ref().is_ok() || end.as_ref().is_err_and(is_over), "the stream goes on: {end:?}");
    refused(bed.drivers.guest.connect(vm, AGENT_PORT, ANSWER_MAX).map(drop));
}

/// Reads the console of a VM that has said something, from several places.
pub(crate) fn has_a_console(bed: &Bed<'_>, vm: VmId) {
    let read = |from| bed.drivers.guest.read_console(vm, from).expect("read the console");
    let all = read(ConsoleFrom::Position(0));
    assert!(!all.bytes.is_empty() && all.bytes.len() as u64 <= CONSOLE_CHUNK_BYTES_MAX);
    assert_eq!(all.begin, 0, "a young console is kept whole");
    let again = read(ConsoleFrom::Position(1));
    assert_eq!((again.begin, again.bytes.first()), (1, all.bytes.get(1)));
    let last = read(ConsoleFrom::Last(3));
    assert!(last.begin >= all.next() - 3 && last.bytes.len() == 3, "{last:?}");
    let end = read(ConsoleFrom::Position(u64::MAX));
    assert!(end.bytes.is_empty() && end.begin >= last.next(), "{end:?}");
}

/// Types at the console of a VM that is ready: it is shown, and kept with everything else that was said.
pub(crate) fn can_be_typed_at(bed: &Bed<'_>, vm: VmId) {
    let before = bed.drivers.guest.read_console(vm, ConsoleFrom::Position(u64::MAX)).expect("its end").next();
    let mut console = bed.drivers.guest.open_console(vm).expect("the console");
    console.set_read_timeout(Some(ANSWER_MAX)).expect("set a time-out");
    console.write_all(b"typed").expect("type");
    let mut shown = Vec::new();
    while !shown.ends_with(b"typed") {
        shown.push(byte(&mut console).expect("what was typed is shown"));
    }
    drop(console);
    // QEMU shows a byte first and keeps it then.
    let until = Instant::now() + ANSWER_MAX;
    let kept = loop {
        let kept =
            bed.drivers.guest.read_console(vm, ConsoleFrom::Position(before)).expect("read the console");
        let kept = String::from_utf8_lossy(&kept.bytes).into_owned();
        if kept.contains("typed") || Instant::now() > until {
            break kept;
        }
        std::thread::yield_now();
    };
    assert!(kept.contains("typed"), "{kept:?}");
    // The next one is served as the first was.
    drop(bed.drivers.guest.open_console(vm).expect("the console again"));
}

/// A VM that is no more is not reached. What it said may be kept.
pub(crate) fn is_absent(bed: &Bed<'_>, vm: VmId) {
    refused(bed.drivers.guest.connect(vm, AGENT_PORT, ANSWER_MAX).map(drop));
    refused(bed.drivers.guest.open_console(vm).map(drop));
    bed.drivers.guest.read_console(vm, ConsoleFrom::Last(9)).expect("an answer");
}

/// Runs a program in a guest that is ready, and gives what it said, with its code.
pub(crate) fn run(guest: &dyn Guest, vm: VmId, argv: &[&str]) -> (String, u32) {
    let mut stream = connect(guest, vm);
    assert_eq!(exec(&mut stream, argv).0, 101, "{argv:?}");
    outcome(&mut stream)
}

fn connect(guest: &dyn Guest, vm: VmId) -> UnixStream {
    let stream = guest.connect(vm, AGENT_PORT, ANSWER_MAX).expect("reach the agent");
    assert_eq!(stream.read_timeout().expect("an answer"), None, "it waits for ever");
    stream.set_read_timeout(Some(ANSWER_MAX)).expect("set a time-out");
    stream
}

fn exec(stream: &mut UnixStream, argv: &[&str]) -> (u16, Vec<u8>) {
    let exec = Exec { argv: argv.iter().map(|word| (*word).to_owned()).collect(), ..Exec::default() };
    let head =
        format!("POST /v1/exec HTTP/1.1\r\nConnection: upgrade, close\r\nUpgrade: {EXEC_PROTOCOL}\r\n");
    ask(stream, &head, &serde_json::to_vec(&exec).expect("a body"))
}

/// Status and body of an answer.
fn ask(stream: &mut UnixStream, head: &str, body: &[u8]) -> (u16, Vec<u8>) {
    let head = format!("{head}Host: guest\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(&[head.as_bytes(), body].concat()).expect("ask");
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(byte(stream).expect("a whole head"));
    }
    let text = String::from_utf8(answer).expect("text").to_ascii_lowercase();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().expect("a length"))];
    stream.read_exact(&mut body).expect("a whole body");
    (text[9..12].parse().expect("a status"), body)
}

fn send(stream: &mut UnixStream, frame: &Frame) {
    stream.write_all(&frame.encode()).expect("send a frame");
}

/// All that a program says, and its code.
fn outcome(stream: &mut UnixStream) -> (String, u32) {
    let mut output = Vec::new();
    loop {
        match frame(stream).expect("a frame before the end") {
            Frame::Taken(_) => {}
            Frame::Stdout(bytes) => output.extend(bytes),
            Frame::Exit(code) => return (String::from_utf8(output).expect("text"), code),
            other => panic!("{other:?}"),
        }
    }
}

fn frame(stream: &mut UnixStream) -> Option<Frame> {
    let mut bytes = Vec::new();
    loop {
        if let Some((frame, _)) = Frame::decode(&bytes).expect("a frame") {
            return Some(frame);
        }
        bytes.push(byte(stream)?);
    }
}

fn byte(stream: &mut UnixStream) -> Option<u8> {
    let mut byte = [0];
    (stream.read(&mut byte).expect("an answer in time") > 0).then_some(byte[0])
}
