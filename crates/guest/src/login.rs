//! The environment of what the host runs: that of root's login, as far as files say it.

use std::collections::BTreeMap;
use std::path::Path;

use crate::boot::read_limited;

/// Where programs are looked for, unless the system says otherwise.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Files with settings, later ones above earlier ones (pam_env(8), locale(7) of Debian).
const FILES: &[&str] = &["/etc/default/locale", "/etc/environment"];

/// Longest of them that is read.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// What root has when it logs in. A file that is not there or not understood changes nothing.
pub(crate) fn environment() -> BTreeMap<String, String> {
    let read = |path: &str| read_limited(Path::new(path), FILE_BYTES_MAX).unwrap_or_default();
    let mut settings = of_user(&read("/etc/passwd"));
    for file in FILES {
        settings.extend(settings_in(&read(file)));
    }
    settings
}

fn of_user(passwd: &str) -> BTreeMap<String, String> {
    let line = passwd.lines().find(|line| line.split(':').nth(2) == Some("0")).unwrap_or_default();
    let field = |number: usize, or: &str| {
        line.split(':').nth(number).filter(|text| !text.is_empty()).unwrap_or(or).to_owned()
    };
    let user = field(0, "root");
    let all = [
        ("PATH", PATH.to_owned()),
        ("HOME", field(5, "/root")),
        ("SHELL", field(6, "/bin/sh")),
        ("LOGNAME", user.clone()),
        ("USER", user),
    ];
    all.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// `NAME=value` in lines, with or without quotes; anything else is passed over.
fn settings_in(text: &str) -> impl Iterator<Item = (String, String)> {
    text.lines().filter_map(|line| {
        let line = line.trim();
        let (name, value) = line.strip_prefix("export ").unwrap_or(line).split_once('=')?;
        let is_name = !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            && !name.as_bytes()[0].is_ascii_digit();
        let quoted = |mark: char| value.strip_prefix(mark)?.strip_suffix(mark);
        let value = quoted('"').or_else(|| quoted('\'')).unwrap_or(value);
        (is_name && !value.contains('\0')).then(|| (name.to_owned(), value.to_owned()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_has_its_shell_and_the_systems_settings() {
        let passwd = "daemon:x:1:1::/:/bin/false\nadmin:x:0:0:root:/home/admin:/bin/bash\n";
        let settings = of_user(passwd);
        let expected = [
            ("HOME", "/home/admin"),
            ("LOGNAME", "admin"),
            ("PATH", PATH),
            ("SHELL", "/bin/bash"),
            ("USER", "admin"),
        ];
        assert!(
            settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).eq(expected),
            "{settings:?}"
        );
        assert_eq!(of_user("")["HOME"], "/root");
        let text = "# LANG=no\nLANG=\"C.UTF-8\"\nexport A='b c'\n  EMPTY=\n1X=2\nnothing\n=x\n";
        let found: Vec<_> = settings_in(text).collect();
        let expected = [("LANG", "C.UTF-8"), ("A", "b c"), ("EMPTY", "")];
        assert!(found.iter().map(|(name, value)| (name.as_str(), value.as_str())).eq(expected), "{found:?}");
    }
}
