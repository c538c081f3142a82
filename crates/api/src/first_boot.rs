//! What a VM is given at its first boot: who may enter, files, and a script. It is done once for each root disk.

use serde::{Deserialize, Serialize};

use crate::reader::Reader;

/// The most bytes of everything that is given at a first boot: the guest's agent takes it in one message.
pub const FIRST_BOOT_BYTES_MAX: usize = 32 << 10;
/// The most SSH keys.
pub const SSH_KEYS_MAX: usize = 32;
/// The most files.
pub const FILES_MAX: usize = 32;
/// The longest path of a file.
pub const PATH_BYTES_MAX: usize = 255;
/// What a file may be used for when nothing is said: its owner writes, everybody reads.
pub const MODE_DEFAULT: &str = "0644";

/// What is done at the first boot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FirstBoot {
    /// Public keys of those who may log in as root, in the form of `authorized_keys` (sshd(8)).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ssh_keys: Vec<String>,
    /// Files to write.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<NewFile>,
    /// What `/bin/sh` runs after that.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub script: String,
}

/// A file to write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewFile {
    /// Its absolute path; directories are made as needed.
    pub path: String,
    /// Its permissions in octal, such as `0600`.
    #[serde(default = "mode_default")]
    pub mode: String,
    /// Its text.
    pub content: String,
}

fn mode_default() -> String {
    MODE_DEFAULT.to_owned()
}

impl NewFile {
    /// The permissions as a number; those of [`MODE_DEFAULT`] if they are none, which reading refuses.
    #[must_use]
    pub fn mode_bits(&self) -> u32 {
        read_mode(&self.mode).unwrap_or(0o644)
    }
}

fn read_mode(text: &str) -> Option<u32> {
    u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777)
}

impl FirstBoot {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == FirstBoot::default()
    }

    /// How many bytes of text it has: nearly all of what it takes up in the store.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let keys: usize = self.ssh_keys.iter().map(String::len).sum();
        let files: usize = self.files.iter().map(|file| file.path.len() + file.content.len()).sum();
        keys + files + self.script.len()
    }

    /// Reads what a person wrote, and notes every problem.
    pub fn read(fields: &mut Reader<'_>) -> Option<FirstBoot> {
        let ssh_keys: Vec<String> = fields.or("ssh_keys", Vec::new());
        let files = fields.list("files", FILES_MAX, read_file).unwrap_or_default();
        let script = fields.or("script", String::new());
        if ssh_keys.len() > SSH_KEYS_MAX {
            fields.problem(
                "ssh_keys",
                format!("are {}, at most {SSH_KEYS_MAX} are allowed", ssh_keys.len()),
                None,
            );
        }
        if ssh_keys.iter().any(|key| !is_ssh_key(key)) {
            let hint = "such as `ssh-ed25519 AAAA… me@here`: the one line of a .pub file".to_owned();
            fields.problem("ssh_keys", "must be public keys, one line each", Some(hint));
        }
        let first_boot = FirstBoot { ssh_keys, files, script };
        if first_boot.bytes() > FIRST_BOOT_BYTES_MAX {
            let found = first_boot.bytes();
            let hint = "fetch what is large in the script".to_owned();
            fields.problem(
                "script",
                format!("all of it has {found} bytes, at most {FIRST_BOOT_BYTES_MAX} are allowed"),
                Some(hint),
            );
        }
        Some(first_boot)
    }
}

/// Whether the text is one line that begins with the name of a kind of key. What follows is sshd's to judge.
fn is_ssh_key(text: &str) -> bool {
    let mut words = text.split(' ');
    let kind = words.next().unwrap_or_default();
    let known = ["ssh-", "ecdsa-", "sk-ssh-", "sk-ecdsa-"].iter().any(|begin| kind.starts_with(begin));
    known && words.next().is_some_and(|key| key.len() > 16) && !text.chars().any(char::is_control)
}

fn read_file(fields: &mut Reader<'_>) -> Option<NewFile> {
    let path: Option<String> = fields.required("path");
    let mode = fields.or("mode", mode_default());
    let content = fields.required("content");
    let is_path = |path: &String| {
        let mut parts = path.split('/').skip(1);
        path.starts_with('/')
            && path.len() <= PATH_BYTES_MAX
            && parts.all(|part| !matches!(part, "" | "." | ".."))
    };
    if path.as_ref().is_some_and(|path| !is_path(path)) {
        fields.problem("path", "must be an absolute path, such as /etc/motd", None);
    }
    if read_mode(&mode).is_none() {
        fields.problem(
            "mode",
            format!("`{mode}` is not a mode in octal"),
            Some("such as \"0600\"".to_owned()),
        );
    }
    Some(NewFile { path: path?, mode, content: content? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn check(value: &Value, expect: &[&str]) {
        let mut problems = Vec::new();
        let mut reader = Reader::new("", value, &mut problems);
        let _ = FirstBoot::read(&mut reader);
        reader.finish();
        assert_eq!(problems.iter().map(ToString::to_string).collect::<Vec<_>>(), expect, "{value}");
    }

    #[test]
    fn what_a_person_writes_is_read_or_refused() {
        let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA me@here";
        check(
            &json!({"ssh_keys": [key], "files": [{"path": "/etc/motd", "content": "hi\n"}], "script": "date\n"}),
            &[],
        );
        check(
            &json!({"ssh_keys": ["-----BEGIN OPENSSH PRIVATE KEY-----"]}),
            &[
                "ssh_keys: must be public keys, one line each (such as `ssh-ed25519 AAAA… me@here`: the one line of a .pub file)",
            ],
        );
        check(
            &json!({"files": [{"path": "etc/../motd", "mode": "9", "content": ""}]}),
            &[
                "files[0].path: must be an absolute path, such as /etc/motd",
                "files[0].mode: `9` is not a mode in octal (such as \"0600\")",
            ],
        );
        check(
            &json!({"script": "x".repeat(FIRST_BOOT_BYTES_MAX + 1)}),
            &[
                "script: all of it has 32769 bytes, at most 32768 are allowed (fetch what is large in the script)",
            ],
        );
    }
}
