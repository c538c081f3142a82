//! Text that comes from outside and is shown to people.

/// Whether a character could make a terminal show something else than the text: controls (ECMA-48), and marks of direction (UAX 9).
#[must_use]
pub fn misleads(character: char) -> bool {
    let turns =
        matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    character.is_control() || turns
}
