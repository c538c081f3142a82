use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use super::*;

fn directory(name: &str) -> PathBuf {
    let directory = std::env::temp_dir().join(format!("lightbyte-archive-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).unwrap();
    directory
}

fn packed(path: &Path) -> Vec<u8> {
    pack(path, Owners::AsTheyAre, Vec::new(), &mut |left_out| panic!("left out {left_out}")).unwrap()
}

fn unpacked(stream: &[u8], target: &Path) -> Result<Unpacked, String> {
    let mut done = Unpacked::default();
    unpack(stream, target, Keep::Permissions, &mut done).map(|()| done).map_err(|error| format!("{error:#}"))
}

/// Everything below a directory: paths with what they are.
fn tree(root: &Path) -> Vec<String> {
    fn look(root: &Path, at: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let name = path.strip_prefix(root).unwrap().display().to_string();
            if metadata.is_symlink() {
                found.push(format!("{name} -> {}", fs::read_link(&path).unwrap().display()));
            } else if metadata.is_dir() {
                found.push(format!("{name}/ {:o}", metadata.mode() & 0o7777));
                look(root, &path, found);
            } else {
                let text = fs::read_to_string(&path).unwrap();
                found.push(format!("{name} {:o} {}", metadata.mode() & 0o7777, text.escape_default()));
            }
        }
    }
    let mut found = Vec::new();
    look(root, root, &mut found);
    found.sort();
    found
}

#[test]
fn what_comes_goes_where_people_expect_it() {
    let root = directory("place");
    fs::create_dir_all(root.join("from/dir/sub")).unwrap();
    fs::write(root.join("from/file"), "new").unwrap();
    fs::write(root.join("from/dir/sub/a"), "a").unwrap();
    let check = |from: &str, to: &str, expect: &[&str]| {
        let target = root.join("to");
        let _ = fs::remove_dir_all(&target);
        fs::create_dir_all(target.join("there")).unwrap();
        fs::write(target.join("old"), "old").unwrap();
        // Joining would drop the ends that matter.
        let stream = packed(Path::new(&format!("{}/from/{from}", root.display())));
        let result = unpacked(&stream, Path::new(&format!("{}/{to}", target.display())));
        let found: Vec<String> = match result {
            Ok(_) => tree(&target)
                .into_iter()
                .filter(|line| *line != "old 644 old" && *line != "there/ 755")
                .collect(),
            Err(error) => vec![error.replace(&target.display().to_string(), "")],
        };
        assert_eq!(found, expect, "{from} to {to}");
    };
    check("file", "there", &["there/file 644 new"]);
    check("file", "there/.", &["there/file 644 new"]);
    check("file", "name", &["name 644 new"]);
    check("file", "old", &["old 644 new"]);
    check("file", "name/", &["there is no directory `/name/`"]);
    check("file", "none/name", &["/none: No such file or directory (os error 2)"]);
    check("dir", "there", &["there/dir/ 755", "there/dir/sub/ 755", "there/dir/sub/a 644 a"]);
    check("dir/.", "there", &["there/sub/ 755", "there/sub/a 644 a"]);
    check("dir", "name", &["name/ 755", "name/sub/ 755", "name/sub/a 644 a"]);
    check("dir/.", "name", &["name/ 755", "name/sub/ 755", "name/sub/a 644 a"]);
    check("dir", "old", &["`/old` is a file, and a directory does not replace it"]);
    check("dir", "name/.", &["there is no directory `/name/.`"]);
    fs::remove_dir_all(&root).unwrap();
}

#[test]
fn links_modes_and_long_names_survive() {
    let root = directory("keep");
    let from = root.join("from");
    let long = "x".repeat(120);
    fs::create_dir_all(from.join(&long)).unwrap();
    fs::write(from.join(&long).join(&long), "deep").unwrap();
    fs::write(from.join("program"), "p").unwrap();
    fs::set_permissions(from.join("program"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::hard_link(from.join("program"), from.join("second")).unwrap();
    symlink("/nowhere/../at//all", from.join("link")).unwrap();
    symlink(&long, from.join("long-link")).unwrap();
    fs::create_dir(from.join("closed")).unwrap();
    fs::write(from.join("closed/in"), "in").unwrap();
    fs::set_permissions(from.join("closed"), fs::Permissions::from_mode(0o500)).unwrap();
    let to = root.join("to");
    let done = unpacked(&packed(&from), &to).unwrap();
    assert_eq!(done, Unpacked { entries: 9, bytes: 7 });
    let expected: Vec<String> = tree(&from).into_iter().map(|line| line.replace("4751", "751")).collect();
    assert_eq!(tree(&to), expected, "a set-user-id bit is not taken from a stranger");
    let number = |name: &str| fs::metadata(to.join(name)).unwrap().ino();
    assert_eq!(number("program"), number("second"), "one file");
    let time = |root: &Path| fs::metadata(root.join("program")).unwrap().mtime();
    assert_eq!(time(&to), time(&from));
    // Again, over what is there.
    assert_eq!(unpacked(&packed(&from).clone(), &to.join(".")).map(|done| done.entries), Ok(9));
    for place in [&from, &to] {
        fs::set_permissions(place.join("closed"), fs::Permissions::from_mode(0o700)).unwrap();
    }
    fs::remove_dir_all(&root).unwrap();
}

/// A stream that no packer of ours would make.
fn stream(entries: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, kind, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o6777);
        header.set_mtime(0);
        let is_file = kind.is_file();
        header.set_size(if is_file { content.len() as u64 } else { 0 });
        if !is_file {
            header.set_link_name_literal(content).unwrap();
        }
        header.set_cksum();
        builder.append(&header, if is_file { content.as_bytes() } else { b"" }).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn a_hostile_stream_writes_nothing_outside() {
    use tar::EntryType::{Directory, Fifo, Link, Regular, Symlink};
    let root = directory("hostile");
    let secret = root.join("secret");
    let outside = secret.display().to_string();
    let check = |entries: &[(&str, tar::EntryType, &str)], expect: &str| {
        let target = root.join("to");
        let _ = fs::remove_dir_all(&target);
        fs::create_dir(&target).unwrap();
        fs::write(&secret, "secret").unwrap();
        let result = unpacked(&stream(entries), &target.join("."));
        let said = match result {
            Ok(_) => tree(&target).join(", "),
            Err(error) => error,
        };
        assert!(said.contains(expect), "{entries:?}: {said}");
        assert_eq!(fs::read_to_string(&secret).unwrap(), "secret", "{entries:?}");
        assert_eq!(fs::metadata(&secret).unwrap().nlink(), 1, "{entries:?}");
        assert_eq!(fs::read_dir(&root).unwrap().count(), 2, "{entries:?}");
    };
    check(&[("../secret", Regular, "x")], "`../secret` leads out of the target");
    check(&[("a/../../secret", Regular, "x")], "leads out of the target");
    check(&[("l", Symlink, &outside), ("l", Regular, "x")], "l 777 x");
    check(&[("l", Symlink, ".."), ("l/secret", Regular, "x")], "`l` leads out of the target by a link");
    check(&[("l", Symlink, "/"), ("l/new", Directory, "")], "`l` leads out of the target by a link");
    check(&[("l", Link, "../secret")], "`../secret` leads out of the target");
    check(&[("s", Symlink, ".."), ("l", Link, "s/secret")], "`s` leads out of the target by a link");
    check(&[("s", Symlink, &outside), ("l", Link, "s"), ("l", Regular, "x")], "l 777 x");
    check(&[(outside.trim_start_matches('/').split('/').next_back().unwrap(), Fifo, "")], "");
    check(&[("a", Regular, "x"), ("a/b", Regular, "y")], "`a` is no directory");
    check(&[("a", Directory, ""), ("a", Regular, "y")], "there is a directory of that name");
    fs::remove_dir_all(&root).unwrap();
}

#[test]
fn a_stream_that_is_cut_leaves_whole_files_and_is_told() {
    let root = directory("cut");
    let from = root.join("from");
    fs::create_dir(&from).unwrap();
    fs::write(from.join("a"), "a".repeat(2000)).unwrap();
    fs::write(from.join("b"), "b".repeat(2000)).unwrap();
    let stream = packed(&from);
    // Behind the last content there are only blocks of nothing.
    for cut in [0, 100, 512, 513, 700, 1024, 2000, 3000, 3071, 4000, 5000] {
        let to = root.join("to");
        let _ = fs::remove_dir_all(&to);
        let result = unpacked(&stream[..cut], &to);
        let is_between = [512, 3072].contains(&cut);
        assert!(result.is_err() || is_between, "{cut}");
        for entry in fs::read_dir(&to).into_iter().flatten() {
            assert_eq!(fs::metadata(entry.unwrap().path()).unwrap().len(), 2000, "cut at {cut}");
        }
    }
    let long = vec![b'x'; 100_000];
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::GNULongName);
    header.set_size(long.len() as u64);
    header.set_cksum();
    let mut builder = tar::Builder::new(Vec::new());
    builder.append(&header, long.as_slice()).unwrap();
    let error = unpacked(&builder.into_inner().unwrap(), &root).unwrap_err();
    assert_eq!(error, "a name in the stream is too long");
    fs::remove_dir_all(&root).unwrap();
}
