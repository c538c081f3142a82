//! The proxy's own words, on the console: few lines, and short ones. Strangers make it speak, a serial line is slow, and
//! what else the console has to tell must not drown.

use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe::Receiver;
use tokio::time::Instant;

/// Lines in each window; the rest are counted.
const LINES_MAX: u32 = 20;
const WINDOW: Duration = Duration::from_secs(10);

/// Longest line; the rest of it is left out.
const LINE_BYTES_MAX: usize = 512;

/// What is read at once.
const CHUNK_BYTES: usize = 4 * 1024;

/// Shows what the proxy says, until it has ended.
pub(super) async fn show(mut words: Receiver) {
    let (mut lines, mut window) = (Lines::default(), Window::default());
    let mut chunk = vec![0; CHUNK_BYTES];
    while let Ok(bytes @ 1..) = words.read(&mut chunk).await {
        lines.take(&chunk[..bytes], |line| {
            let (is_shown, left_out) = window.admit(Instant::now());
            if left_out > 0 {
                println!("lightbyte-guest: {left_out} lines of the proxy are left out");
            }
            if is_shown {
                println!("{line}");
            }
        });
    }
    if window.left_out > 0 {
        println!("lightbyte-guest: {} lines of the proxy are left out", window.left_out);
    }
}

/// Bytes become lines.
#[derive(Default)]
struct Lines {
    begun: Vec<u8>,
}

impl Lines {
    fn take(&mut self, bytes: &[u8], mut show: impl FnMut(&str)) {
        for byte in bytes {
            match byte {
                b'\n' => {
                    show(&printable(&self.begun));
                    self.begun.clear();
                }
                byte if self.begun.len() < LINE_BYTES_MAX => self.begun.push(*byte),
                _ => {}
            }
        }
    }
}

/// A stranger's characters must not steer whoever looks at the console.
fn printable(line: &[u8]) -> String {
    String::from_utf8_lossy(line)
        .chars()
        .map(|character| if character.is_control() { '?' } else { character })
        .collect()
}

/// How many lines there were lately.
#[derive(Default)]
struct Window {
    begun: Option<Instant>,
    shown: u32,
    left_out: u64,
}

impl Window {
    /// Whether another line is shown, and how many an earlier window has left out, told once.
    fn admit(&mut self, now: Instant) -> (bool, u64) {
        let mut left_out = 0;
        if self.begun.is_none_or(|begun| now.saturating_duration_since(begun) >= WINDOW) {
            left_out = self.left_out;
            *self = Window { begun: Some(now), shown: 0, left_out: 0 };
        }
        let is_shown = self.shown < LINES_MAX;
        if is_shown {
            self.shown += 1;
        } else {
            self.left_out += 1;
        }
        (is_shown, left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_put_together_cut_and_harmless() {
        let long = "x".repeat(LINE_BYTES_MAX + 1);
        let (mut lines, mut shown) = (Lines::default(), Vec::new());
        for part in ["a", "b\n\nc\u{1b}[2J\r\n", &long, "\nunfinished"] {
            lines.take(part.as_bytes(), |line| shown.push(line.to_owned()));
        }
        assert_eq!(shown, ["ab", "", "c?[2J?", &long[1..]]);
    }

    #[test]
    fn a_flood_is_counted_and_told_once() {
        let (mut window, begun) = (Window::default(), Instant::now());
        let shown = (0..100).filter(|_| window.admit(begun).0).count();
        assert_eq!(shown, LINES_MAX as usize);
        assert_eq!(window.admit(begun + WINDOW), (true, 80));
        assert_eq!(window.admit(begun + WINDOW), (true, 0));
    }
}
