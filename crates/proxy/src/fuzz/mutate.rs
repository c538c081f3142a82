//! Mutations: some of bytes, some of pieces between separators, so that what comes out still looks like something.

use crate::chance::mix;

/// What separates pieces in the languages that are read here.
const SEPARATORS: &[u8] = b"\r\n :;,=/.{}[]\"";

/// Numbers at which code breaks.
const NUMBERS: [&str; 10] =
    ["0", "1", "-1", "255", "65535", "65536", "4294967296", "18446744073709551616", "1e9", "00"];

/// Draws mutations, the same ones for the same seed.
pub(super) struct Mutator<'a> {
    state: u64,
    words: &'a [&'a str],
}

impl<'a> Mutator<'a> {
    pub(super) fn new(seed: u64, words: &'a [&'a str]) -> Mutator<'a> {
        Mutator { state: mix(seed), words }
    }

    fn draw(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.state)
    }

    /// Less than `end`, or 0 if that is 0.
    pub(super) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.draw()).unwrap_or_default().checked_rem(end).unwrap_or_default()
    }

    /// One of the inputs, changed a few times.
    pub(super) fn mutated(&mut self, inputs: &[Vec<u8>]) -> Vec<u8> {
        let mut input = inputs[self.below(inputs.len())].clone();
        for _ in 0..=self.below(4) {
            self.mutate(&mut input, inputs);
        }
        input
    }

    fn mutate(&mut self, input: &mut Vec<u8>, inputs: &[Vec<u8>]) {
        let at = self.below(input.len() + 1);
        match self.below(10) {
            0 if at < input.len() => input[at] ^= 1 << self.below(8),
            1 if at < input.len() => input[at] = u8::try_from(self.below(256)).unwrap_or_default(),
            2 => input.insert(at, u8::try_from(self.below(256)).unwrap_or_default()),
            3 => input.truncate(at),
            4 => drop(input.drain(at..self.end(at, input.len()))),
            5 => {
                let piece = input[at..self.end(at, input.len())].to_vec();
                let to = self.below(input.len() + 1);
                drop(input.splice(to..to, piece));
            }
            6 => {
                let (start, end) = self.piece(input, at);
                let word = self.word();
                drop(input.splice(start..end, word));
            }
            7 => {
                let word = self.word();
                drop(input.splice(at..at, word));
            }
            8 => {
                let other = &inputs[self.below(inputs.len())];
                let (start, end) = self.piece(other, self.state as usize % (other.len() + 1));
                drop(input.splice(at..at, other[start..end].to_vec()));
            }
            _ => {
                let (start, end) = self.piece(input, at);
                drop(input.drain(start..end));
            }
        }
    }

    fn end(&mut self, at: usize, length: usize) -> usize {
        (at + self.below(16)).min(length)
    }

    /// The piece between separators around a place, sometimes with the separator after it.
    fn piece(&mut self, input: &[u8], at: usize) -> (usize, usize) {
        let is_separator = |byte: &u8| SEPARATORS.contains(byte);
        let start = input[..at].iter().rposition(is_separator).map_or(0, |place| place + 1);
        let end = input[at..].iter().position(is_separator).map_or(input.len(), |place| at + place);
        (start, (end + self.below(2)).min(input.len()))
    }

    fn word(&mut self) -> Vec<u8> {
        let chosen = self.below(self.words.len() + NUMBERS.len());
        let word = self.words.get(chosen).or_else(|| NUMBERS.get(chosen - self.words.len()));
        word.map(|word| word.as_bytes().to_vec()).unwrap_or_default()
    }
}
