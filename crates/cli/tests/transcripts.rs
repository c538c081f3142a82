//! What people type and read: shell sessions in `transcripts/*.txt`, played against a real server over a store in
//! memory, with a real worker whose host is a fake. `LIGHTBYTE_BLESS=1` writes what was seen into the files.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use support::{Cluster, normal};

/// Plays the session of that name, and compares all of it at once.
fn play(name: &str) {
    let cluster = Cluster::start();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/transcripts/{name}.txt"));
    let text = fs::read_to_string(&path).expect("read the transcript");
    let mut seen = String::new();
    for line in text.lines().filter(|line| line.starts_with(['$', '#'])) {
        if line.starts_with('#') && !seen.is_empty() {
            seen.push('\n');
        }
        seen.push_str(line);
        seen.push('\n');
        if let Some(words) = line.strip_prefix("$ ") {
            seen.push_str(&output_of(&cluster, words));
        }
    }
    if std::env::var_os("LIGHTBYTE_BLESS").is_some() {
        fs::write(&path, &seen).expect("write the transcript");
        return;
    }
    assert_eq!(seen, text, "`{name}` differs from what was seen; LIGHTBYTE_BLESS=1 takes it over");
}

/// What a command writes: stdout, stderr behind `! `, and the exit code if it is not 0. How many steps of progress are
/// seen is a matter of time, so those lines are left out; `progress` looks at them.
fn output_of(cluster: &Cluster, words: &str) -> String {
    let output = cluster.shell(words).output().expect("run the shell");
    let mut text: String = normal(&output.stdout, cluster).lines().map(|line| format!("{line}\n")).collect();
    let is_progress = |line: &str| {
        line.split_once(": ").is_some_and(|(object, _)| object.contains('/') && !object.contains(' '))
    };
    for line in normal(&output.stderr, cluster).lines().filter(|line| !is_progress(line)) {
        text.push_str(&format!("! {line}\n"));
    }
    match output.status.code() {
        Some(0) => text,
        code => {
            text + &format!(
                "[exit {}]\n",
                code.map_or_else(|| "by a signal".to_owned(), |code| code.to_string())
            )
        }
    }
}

#[test]
fn first_steps() {
    play("first-steps");
}

#[test]
fn plan() {
    play("plan");
}

#[test]
fn manifests() {
    play("manifests");
}

#[test]
fn mistakes() {
    play("mistakes");
}

#[test]
fn volumes() {
    play("volumes");
}

#[test]
fn guests() {
    play("guests");
}

#[test]
fn groups() {
    play("groups");
}

#[test]
fn history() {
    play("history");
}

#[test]
fn progress() {
    let cluster = Cluster::start();
    let output = cluster.shell("lightbyte run demo --name hello").output().expect("run the shell");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "10.77.0.2\n");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let lines: Vec<&str> = stderr.lines().collect();
    assert!(lines.iter().all(|line| line.starts_with("vm/hello: ")), "{stderr}");
    assert!(lines.windows(2).all(|pair| pair[0] != pair[1]), "a line for each change: {stderr}");
    assert_eq!(lines.last(), Some(&"vm/hello: running"), "{stderr}");
}

/// Every example of the guide can be applied, and then differs in nothing.
#[test]
fn examples() {
    let cluster = Cluster::start();
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let mut files: Vec<PathBuf> = fs::read_dir(examples)
        .expect("list the examples")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    assert!(files.len() >= 4, "{files:?}");
    for file in files {
        let file = file.display();
        for (verb, expect) in [("diff", Some(2)), ("apply", Some(0)), ("diff", Some(0)), ("apply", Some(0))] {
            let output =
                cluster.shell(&format!("lightbyte {verb} -f {file}")).output().expect("run the shell");
            assert_eq!(
                output.status.code(),
                expect,
                "{verb} {file}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            assert_eq!(output.stdout.is_empty(), (verb, expect) == ("diff", Some(0)), "{verb} {file}");
        }
    }
}

#[test]
fn a_wait_goes_on_with_another_server() {
    let mut cluster = Cluster::start();
    cluster.ok("lightbyte run demo --name big --memory 3GiB --no-wait");
    // The first server in the list is the one that goes away; the other leads.
    let second = cluster.add_server();
    let api = format!("{second},{}", cluster.api());
    let mut waiting =
        cluster.start_shell(&format!("LIGHTBYTE_API={api} lightbyte wait vm/big --timeout 60s"));
    assert_eq!(waiting.line(), "vm/big: pending (waiting: no worker has 1 CPU and 3GiB free)");
    cluster.kill_server();
    cluster.add_worker("n2", "4GiB");
    assert_eq!(waiting.end(), Some(0));
}

#[test]
fn an_interrupt_ends_the_wait_and_nothing_else() {
    let cluster = Cluster::start();
    cluster.ok("lightbyte run demo --name big --memory 3GiB --no-wait");
    let mut waiting = cluster.start_shell("lightbyte wait vm/big --timeout 60s");
    waiting.line();
    waiting.interrupt();
    assert_eq!(waiting.line(), "error: no longer waiting for `vm/big`; the cluster goes on with it");
    assert_eq!(waiting.line(), "hint: `lightbyte wait vm/big --for ready` waits again");
    assert_eq!(waiting.end(), Some(130));
    cluster.ok("lightbyte get vm/big");
}

#[test]
fn logs_of_a_group_join_new_members_and_end_with_it() {
    let cluster = Cluster::start();
    let group = "{kind: scalegroup, name: web, spec: {template: {image: demo}}}";
    cluster.ok(&format!("echo '{group}' | lightbyte apply -f - && lightbyte wait group/web"));
    let mut following = cluster.start_shell("lightbyte logs group/web -f >&2");
    let mut until = |wanted: &str| {
        let found = std::iter::repeat_with(|| following.line()).take(1_000).find(|line| line == wanted);
        assert!(found.is_some(), "{wanted}");
    };
    until("web-1 | web-1 begins");
    cluster.ok("lightbyte scale web 2");
    until("vm/web-2 is a new member");
    until("web-2 | web-2 begins");
    cluster.ok("lightbyte scale web 1");
    until("vm/web-2 is gone");
    cluster.ok("lightbyte delete --yes group/web");
    until("vm/web-1 is gone");
    until("scalegroup/web is gone");
    assert_eq!(following.end(), Some(0));
}

#[test]
fn a_watch_prints_a_line_for_each_change() {
    let cluster = Cluster::start();
    let mut watching = cluster.start_shell("lightbyte get vms -w -o name >&2");
    cluster.ok("lightbyte run demo --name hello");
    assert_eq!(watching.line(), "vm/hello");
    cluster.ok("lightbyte delete --yes hello");
    let gone = std::iter::repeat_with(|| watching.line()).take(1_000).find(|line| line != "vm/hello");
    assert_eq!(gone.as_deref(), Some("vm/hello gone"));
    watching.interrupt();
}
