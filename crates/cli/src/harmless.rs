//! A guest's words on a person's terminal.

/// What a terminal may be shown of a guest's words: a guest is hostile, and a terminal obeys what it reads (escape
/// sequences can set its title, or make it type). Files and pipes get everything as it was.
#[derive(Default)]
pub(crate) struct Harmless {
    /// The beginning of a character whose end has not come yet.
    cut: Vec<u8>,
}

impl Harmless {
    /// The text of some more bytes.
    pub(crate) fn show(&mut self, bytes: &[u8]) -> String {
        let mut all = std::mem::take(&mut self.cut);
        all.extend_from_slice(bytes);
        self.cut = all.split_off(all.len() - length_of_cut(&all));
        String::from_utf8_lossy(&all).chars().fold(
            String::with_capacity(all.len()),
            |mut shown, character| {
                match character {
                    '\n' | '\t' => shown.push(character),
                    '\r' => {}
                    // As `cat -v` shows them. Those from 0x80 on are obeyed by terminals as well (ECMA-48, C1).
                    '\0'..='\x7f' if character.is_control() => {
                        shown.extend(['^', char::from((character as u8) ^ 0x40)]);
                    }
                    '\u{80}'..='\u{9f}' => {
                        shown.push_str("M-^");
                        shown.push(char::from((character as u8) ^ 0xc0));
                    }
                    _ => shown.push(character),
                }
                shown
            },
        )
    }
}

/// How many bytes at the end begin a character of UTF-8 that goes on after them.
fn length_of_cut(bytes: &[u8]) -> usize {
    let is_cut = |length: &usize| {
        let begin = bytes.len().checked_sub(*length).map(|place| bytes[place]);
        let needed = match begin {
            Some(0xc2..=0xdf) => 2,
            Some(0xe0..=0xef) => 3,
            Some(0xf0..=0xf4) => 4,
            _ => 0,
        };
        needed > *length
    };
    (1..=3).find(is_cut).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_shown_text_alone_wherever_it_is_cut() {
        let check = |bytes: &[u8], expect: &str| {
            for cut in 0..=bytes.len() {
                let mut harmless = Harmless::default();
                let shown = harmless.show(&bytes[..cut]) + &harmless.show(&bytes[cut..]);
                assert_eq!(shown, expect, "cut at {cut}");
            }
        };
        check(
            b"boot\r\n\tdone \xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80\n",
            "boot\n\tdone \u{e9} \u{20ac} \u{1f600}\n",
        );
        check(b"\x1b]0;owned\x07", "^[]0;owned^G");
        check(b"\x7f\0", "^?^@");
        check(b"\xc2\x9b31m \xc2\x9dtitle\xc2\x9c", "M-^[31m M-^]titleM-^\\");
        check(b"\x9b31m", "\u{fffd}31m");
    }
}
