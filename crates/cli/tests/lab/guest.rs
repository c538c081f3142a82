//! What is in a real VM: files that go in and out, ports, and a whole Debian.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Stdio;

use crate::bed::{Bed, path, signal, skip, until};
use crate::real::{missing, page_at};

/// Why a whole Debian cannot run here; `None` when it can.
fn missing_debian() -> Option<String> {
    let images = std::env::var_os("LIGHTBYTE_IMAGES").unwrap_or_default();
    let is_there = Path::new(&images).join("debian/manifest.json").is_file();
    missing().or_else(|| {
        (!is_there).then(|| "there is no debian image; `cargo xtask images debian` makes it".to_owned())
    })
}

#[test]
fn files_and_ports_of_a_vm_are_at_hand() {
    let test = "files_and_ports_of_a_vm_are_at_hand";
    if let Some(why) = missing() {
        return skip(test, &why);
    }
    let Some(bed) = Bed::new("files", &["--vmm", "qemu", "--nodes", "1"]) else { return };
    bed.start();
    bed.ok(&["run", "demo", "--name", "hello"]);
    files_go_in_and_out(&bed);
    streams_go_in_and_out(&bed);
    ports_lead_in(&bed);
    health_is_told(&bed);

    assert_eq!(bed.fails(&["ssh", "hello"]).0, 1);
    assert!(bed.fails(&["ssh", "hello"]).1.contains("no ssh server listens in `vm/hello`"));
    assert!(bed.fails(&["logs", "hello", "--unit", "x"]).1.contains("`vm/hello` has no journal"));

    // A guest that restarts itself comes back, with what it had.
    drop(bed.run(&["exec", "hello", "--", "sh", "-c", "echo $$ > /run/mark; reboot; exec sleep 60"]));
    until("it was started again", || {
        bed.run(&["exec", "hello", "--", "test", "!", "-e", "/run/mark"]).status.success()
    });
    assert_eq!(bed.ok(&["exec", "hello", "--", "cat", "/srv/site/a/b"]), "hi\n");
    previous_lives_are_told(&bed);
}

fn files_go_in_and_out(bed: &Bed) {
    let here = bed.state().join("files");
    let site = here.join("site");
    std::fs::create_dir_all(site.join("a")).expect("a directory");
    std::fs::write(site.join("a/b"), "hi\n").expect("a file");
    symlink("a/b", site.join("link")).expect("a link");
    let large: Vec<u8> = (0..3_000_000_u32).flat_map(|number| number.to_le_bytes()[..1].to_vec()).collect();
    std::fs::write(here.join("large"), &large).expect("a large file");

    bed.ok(&["exec", "hello", "--", "mkdir", "/srv"]);
    bed.ok(&["cp", path(&site), "hello:/srv"]);
    assert_eq!(bed.ok(&["exec", "hello", "--", "cat", "/srv/site/link"]), "hi\n");
    bed.ok(&["cp", path(&here.join("large")), "vm/hello:/srv/renamed"]);
    bed.ok(&["cp", "hello:/srv/.", path(&here.join("back"))]);
    assert_eq!(std::fs::read(here.join("back/renamed")).expect("it came back"), large);
    assert_eq!(std::fs::read_link(here.join("back/site/link")).expect("a link"), Path::new("a/b"));

    let refused = |words: &[&str], expect: &str| {
        let (_, errors) = bed.fails(&[&["cp"], words].concat());
        assert!(errors.contains(expect), "{words:?}: {errors}");
    };
    refused(&["hello:/none", path(&here)], "/none: No such file or directory");
    refused(&[path(&site), "hello:/none/x"], "nothing was written to `/none/x`");
    refused(&[path(&site), "hello:/srv/renamed"], "a directory does not replace it");
    // More than the disk holds.
    bed.ok(&[
        "exec",
        "hello",
        "--",
        "sh",
        "-c",
        "dd if=/dev/zero of=/fill bs=1M count=200 2>/dev/null; true",
    ]);
    refused(&[path(&here.join("large")), "hello:/srv/renamed"], "No space left on device");
    bed.ok(&["exec", "hello", "--", "rm", "/fill"]);
    let left = bed.ok(&["exec", "hello", "--", "sh", "-c", "ls -A /srv; wc -c < /srv/renamed"]);
    assert_eq!(left, "renamed\nsite\n3000000\n", "the old file is whole, and nothing else is left");
}

fn streams_go_in_and_out(bed: &Bed) {
    let stream = bed.run(&["cp", "hello:/srv/site", "-"]).stdout;
    assert_eq!(stream.len() % 512, 0, "whole blocks of tar");
    let mut child = bed.child(&["cp", "-", "hello:/root"]);
    let mut input = child.stdin.take().expect("its input");
    input.write_all(&stream).expect("it is taken");
    drop(input);
    assert!(child.wait().expect("its end").success());
    assert_eq!(bed.ok(&["exec", "hello", "--", "cat", "/root/site/a/b"]), "hi\n");
}

fn ports_lead_in(bed: &Bed) {
    let words = ["forward", "hello", "0:80", "0:9"];
    let mut child =
        bed.command(&words).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().expect("it runs");
    let mut said = BufReader::new(child.stderr.take().expect("what it says"));
    let mut address = || {
        let mut line = String::new();
        said.read_line(&mut line).expect("a line");
        line.split(' ').next().unwrap_or_default().to_owned()
    };
    let (to_page, to_nothing) = (address(), address());
    for _ in 0..3 {
        assert!(page_at(&to_page).is_some_and(|text| text.contains("hello from hello")), "{to_page}");
    }
    assert_eq!(page_at(&to_nothing).as_deref().unwrap_or_default(), "");
    let mut rest = String::new();
    said.read_line(&mut rest).expect("what it says of that");
    signal("INT", i32::try_from(child.id()).expect("a process number"));
    assert!(child.wait().expect("its end").success());
    assert!(rest.contains("error: port 9 of `vm/hello`: connect to port 9: Connection refused"), "{rest}");

    let mut child = bed.child(&["forward", "--stdio", "hello", "80"]);
    let mut input = child.stdin.take().expect("its input");
    input.write_all(b"GET / HTTP/1.0\r\nhost: vm\r\n\r\n").expect("it is taken");
    let mut text = String::new();
    child.stdout.take().expect("its output").read_to_string(&mut text).expect("the page");
    assert!(text.contains("hello from hello"), "{text}");
    drop(input);
    assert!(child.wait().expect("its end").success());
}

/// The same VM is asked by each way in turn; each is seen to pass, and to fail.
fn health_is_told(bed: &Bed) {
    let ask = |check: &str| {
        let text = format!(
            "kind: vm\nname: hello\nspec:\n  image: demo\n  health: {{every: 1s, failures: 1, {check}}}\n"
        );
        bed.ok(&["apply", "-f", path(&bed.manifests(&text))]);
    };
    let state = || bed.json(&["get", "vm/hello"])["status"].clone();
    for check in ["http: {port: 80}", "tcp: {port: 80}", "exec: {command: [test, -e, /proc]}"] {
        ask("exec: {command: [\"false\"]}");
        until("it is unhealthy", || state()["state"] == "unhealthy");
        ask(check);
        bed.ok(&["wait", "vm/hello", "--for", "ready"]);
        assert_eq!(state()["health"]["state"], "healthy", "{check}");
    }
    let failures = [
        ("http: {port: 9, path: /a?b}", "GET /a?b on port 9: Connection refused (os error 111)"),
        ("tcp: {port: 9}", "port 9: Connection refused (os error 111)"),
        ("exec: {command: [sh, -c, echo no room >&2; exit 3]}", "ended with 3: no room"),
        ("timeout: 100ms, exec: {command: [sleep, \"60\"]}", "no answer within 100 ms"),
    ];
    for (check, expected) in failures {
        ask(check);
        until("it is unhealthy", || {
            let problem = state()["health"]["problem"].as_str().unwrap_or_default().to_owned();
            problem.ends_with(expected)
        });
        assert_eq!((state()["state"].as_str(), state()["ready"].as_bool()), (Some("unhealthy"), Some(false)));
        // The reason that was told stands as long as it is unhealthy.
        ask("http: {port: 80}");
        bed.ok(&["wait", "vm/hello", "--for", "ready"]);
    }
    assert_eq!(state()["restarts"], 0);
    bed.ok(&["exec", "hello", "--", "touch", "/run/sick"]);
    ask("restart: true, exec: {command: [test, \"!\", -e, /run/sick]}");
    until("it was restarted, and is well", || state()["restarts"] == 1 && state()["ready"] == true);
}

/// What it said before its restart, and what it said at all when it is no more.
fn previous_lives_are_told(bed: &Bed) {
    let say = |mark: &str| {
        bed.ok(&["exec", "hello", "--", "sh", "-c", &format!("echo {mark} > /dev/console")]);
        until("it is on the console", || bed.ok(&["logs", "hello"]).contains(mark));
    };
    let says = |words: &[&str], expected: (bool, bool)| {
        let said = bed.ok(words);
        assert_eq!((said.contains("mark-1"), said.contains("mark-2")), expected, "{words:?}: {said}");
    };
    say("mark-1");
    bed.ok(&["restart", "vm/hello"]);
    say("mark-2");
    says(&["logs", "hello"], (true, true));
    says(&["logs", "hello", "--previous"], (true, false));
    says(&["logs", "vm/hello", "--previous", "-n", "0"], (false, false));
    bed.ok(&["delete", "vm/hello", "--yes"]);
    says(&["logs", "hello", "--previous"], (false, true));
    assert!(bed.fails(&["logs", "hello"]).1.contains("vm/hello does not exist"));
    let (_, errors) = bed.fails(&["logs", "nobody", "--previous"]);
    assert!(errors.contains("no worker has kept what one of that name said"), "{errors}");
}

#[test]
fn a_whole_debian_boots_and_is_reached() {
    let test = "a_whole_debian_boots_and_is_reached";
    if let Some(why) = missing_debian() {
        return skip(test, &why);
    }
    let Some(bed) = Bed::new("debian", &["--vmm", "qemu", "--nodes", "1"]) else { return };
    bed.start();
    bed.ok(&["run", "debian", "--name", "deb", "--memory", "384MiB", "--disk", "2GiB"]);
    let state = bed.run(&["exec", "deb", "--", "systemctl", "is-system-running", "--wait"]).stdout;
    let failed = bed.ok(&["exec", "deb", "--", "systemctl", "--failed", "--no-legend", "--plain"]);
    assert_eq!(String::from_utf8_lossy(&state), "running\n", "{failed}");
    let identity =
        bed.ok(&["exec", "deb", "--", "sh", "-c", "hostname; cat /etc/machine-id; ls /etc/ssh/ssh_host*"]);
    let lines: Vec<&str> = identity.lines().collect();
    let [name, machine, "/etc/ssh/ssh_host_ed25519_key", "/etc/ssh/ssh_host_ed25519_key.pub"] =
        lines.as_slice()
    else {
        panic!("{identity}")
    };
    assert_eq!((*name, machine.len()), ("deb", 32));
    let room = bed.ok(&["exec", "deb", "--", "df", "--output=size", "--block-size=1M", "/"]);
    let room = room.lines().next_back().and_then(|line| line.trim().parse::<u64>().ok());
    assert!(room.is_some_and(|mib| mib > 1_500), "the root has grown into its disk: {room:?}");

    // A login with a key that nobody had to copy by hand, and no question about the machine's own.
    let key = bed.state().join("key");
    let made = std::process::Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f", path(&key)])
        .status();
    if made.is_ok_and(|status| status.success()) {
        bed.ok(&["exec", "deb", "--", "mkdir", "-p", "-m", "700", "/root/.ssh"]);
        bed.ok(&["cp", &format!("{}.pub", path(&key)), "deb:/root/.ssh/authorized_keys"]);
        assert_eq!(bed.ok(&["ssh", "deb", "-i", path(&key), "--", "cat /etc/hostname"]), "deb\n");
        assert_eq!(bed.fails(&["ssh", "deb", "-i", path(&key), "--", "exit 7"]).0, 7);
    }
    assert!(bed.ok(&["logs", "deb", "--unit", "ssh"]).contains("Server listening on"));

    let boot = || bed.run(&["exec", "deb", "--", "cat", "/proc/sys/kernel/random/boot_id"]);
    let before = boot().stdout;
    drop(bed.run(&["exec", "deb", "--", "sh", "-c", "systemctl reboot; exec sleep 60"]));
    // While it ends it takes no commands, and counts as running still.
    until("it was started again", || {
        let now = boot();
        now.status.success() && now.stdout != before
    });
    let again = bed.ok(&["exec", "deb", "--", "cat", "/etc/machine-id"]);
    assert_eq!(again.trim(), *machine, "and is the same machine");
    bed.ok(&["stop", "vm/deb"]);
    bed.ok(&["delete", "vm/deb", "--yes"]);
}
