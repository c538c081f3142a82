//! `lightbyte logs`: what a guest wrote to its console.

use std::io::{self, IsTerminal as _, Write as _};

use anyhow::{Context as _, Result};

use crate::arguments::Logs;
use crate::cluster::Cluster;
use crate::failure::Code;
use crate::target;

pub(crate) async fn run(cluster: &Cluster, words: &Logs) -> Result<Code> {
    let object = cluster.resolve(target::read_single(&words.target)?).await?;
    let mut query = vec![("follow", words.follow.to_string())];
    query.extend(words.lines.map(|lines| ("lines", lines.to_string())));
    let stream = cluster.bytes(&object, "logs", &query).await;
    let mut stream = stream.with_context(|| format!("read the console of `{object}`"))?;
    let mut stdout = io::stdout();
    let for_person = stdout.is_terminal();
    while let Some(bytes) = stream.next().await.context("read on")? {
        let text = if for_person { harmless(&bytes) } else { bytes.to_vec() };
        stdout.write_all(&text).and_then(|()| stdout.flush()).context("write the console")?;
    }
    Ok(Code::Done)
}

/// What a terminal may be shown of a guest's words: a guest is hostile, and a terminal obeys what it reads (escape
/// sequences can set its title, or make it type). Files and pipes get everything as it was.
fn harmless(bytes: &[u8]) -> Vec<u8> {
    let mut shown = Vec::with_capacity(bytes.len());
    for byte in bytes {
        match byte {
            b'\n' | b'\t' => shown.push(*byte),
            b'\r' => {}
            // As `cat -v` shows them.
            0..=31 => shown.extend([b'^', byte + 64]),
            127 => shown.extend(*b"^?"),
            // The second half of Latin-1 holds control characters too; as parts of UTF-8 they are none.
            _ => shown.push(*byte),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_shown_text_alone() {
        let check = |bytes: &[u8], expect: &str| {
            assert_eq!(String::from_utf8_lossy(&harmless(bytes)), expect);
        };
        check(b"boot\r\n\tdone \xc3\xa9\n", "boot\n\tdone \u{e9}\n");
        check(b"\x1b]0;owned\x07", "^[]0;owned^G");
        check(b"\x7f", "^?");
    }
}
