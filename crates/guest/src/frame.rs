//! The stream of `POST /v1/exec` after its upgrade: frames of one kind byte, a big-endian 32-bit length and that many
//! bytes. A frame is never larger than [`FRAME_BYTES_MAX`]; a longer one, or one of unknown kind, ends the stream.

use thiserror::Error;

/// Largest content of one frame: what a pipe holds on Linux.
pub const FRAME_BYTES_MAX: usize = 64 * 1024;

/// Bytes in front of the content.
pub const HEAD_BYTES: usize = 5;

/// How much input may be on its way to a program that has not taken it: whoever sends more is cut off. So a program that
/// takes none holds up neither signals nor the news that the other side is gone.
pub const INPUT_BYTES_MAX: usize = 256 * 1024;

/// What a frame holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// To the program's input; an empty one is its end.
    Stdin(Vec<u8>),
    /// From the program, or from its terminal; an empty one is its end.
    Stdout(Vec<u8>),
    /// From the program.
    Stderr(Vec<u8>),
    /// New size of the terminal.
    Resize {
        /// Lines.
        rows: u16,
        /// Characters in a line.
        columns: u16,
    },
    /// A signal's number for the program (for its foreground group, if it has a terminal).
    Signal(u8),
    /// The program has ended: its exit code, or 128 + the signal that ended it. The last frame.
    Exit(u32),
    /// So many bytes of input were taken since the last such frame, or have nobody to take them.
    Taken(u32),
}

/// A stream that is not one of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    /// The kind byte means nothing.
    #[error("frame kind {0} is unknown")]
    Kind(u8),
    /// The content is too long, or of the wrong length for its kind.
    #[error("a frame of kind {kind} cannot have {bytes} bytes")]
    Length {
        /// The kind byte.
        kind: u8,
        /// The length that was announced.
        bytes: usize,
    },
}

impl Frame {
    /// The bytes on the wire.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, content): (u8, &[u8]) = match self {
            Self::Stdin(bytes) => (0, bytes),
            Self::Stdout(bytes) => (1, bytes),
            Self::Stderr(bytes) => (2, bytes),
            Self::Resize { rows, columns } => {
                let size = u32::from(*rows) << 16 | u32::from(*columns);
                return frame(3, &size.to_be_bytes());
            }
            Self::Signal(number) => return frame(4, &[*number]),
            Self::Exit(code) => return frame(5, &code.to_be_bytes()),
            Self::Taken(bytes) => return frame(6, &bytes.to_be_bytes()),
        };
        frame(kind, content)
    }

    /// Takes one frame from the front of `bytes`; nothing if it is not whole yet.
    ///
    /// # Errors
    /// If the bytes are no frame; the stream cannot be used any more.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Self, usize)>, FrameError> {
        let Some((head, rest)) = bytes.split_at_checked(HEAD_BYTES) else { return Ok(None) };
        let kind = head[0];
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let fits = match kind {
            0..=2 => length <= FRAME_BYTES_MAX,
            3 | 5 | 6 => length == 4,
            4 => length == 1,
            _ => return Err(FrameError::Kind(kind)),
        };
        if !fits {
            return Err(FrameError::Length { kind, bytes: length });
        }
        let Some(content) = rest.get(..length) else { return Ok(None) };
        let number = |bytes: &[u8]| bytes.iter().fold(0_u32, |sum, byte| sum << 8 | u32::from(*byte));
        let frame = match kind {
            0 => Self::Stdin(content.to_vec()),
            1 => Self::Stdout(content.to_vec()),
            2 => Self::Stderr(content.to_vec()),
            3 => Self::Resize {
                rows: (number(content) >> 16) as u16,
                columns: (number(content) & 0xffff) as u16,
            },
            4 => Self::Signal(content[0]),
            5 => Self::Exit(number(content)),
            _ => Self::Taken(number(content)),
        };
        Ok(Some((frame, HEAD_BYTES + length)))
    }
}

fn frame(kind: u8, content: &[u8]) -> Vec<u8> {
    // Callers read at most FRAME_BYTES_MAX at once; what would not fit is cut rather than sent as a broken frame.
    let content = &content[..content.len().min(FRAME_BYTES_MAX)];
    let mut bytes = Vec::with_capacity(HEAD_BYTES + content.len());
    bytes.push(kind);
    bytes.extend_from_slice(&(content.len() as u32).to_be_bytes());
    bytes.extend_from_slice(content);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_the_wire_cut_anywhere() {
        let frames = [
            Frame::Stdin(vec![]),
            Frame::Stdin(vec![1, 2, 3]),
            Frame::Stdout(vec![0; FRAME_BYTES_MAX]),
            Frame::Stderr(b"x".to_vec()),
            Frame::Resize { rows: 24, columns: 0x1234 },
            Frame::Signal(15),
            Frame::Exit(143),
            Frame::Taken(70_000),
        ];
        for frame in frames {
            let bytes = frame.encode();
            for cut in [0, 1, HEAD_BYTES - 1, HEAD_BYTES, bytes.len() - 1]
                .into_iter()
                .filter(|cut| *cut < bytes.len())
            {
                assert_eq!(Frame::decode(&bytes[..cut]), Ok(None));
            }
            assert_eq!(Frame::decode(&bytes), Ok(Some((frame, bytes.len()))));
        }
    }

    #[test]
    fn what_is_no_frame_is_refused_before_its_content_comes() {
        let cases: [(&[u8], FrameError); 5] = [
            (&[7, 0, 0, 0, 0], FrameError::Kind(7)),
            (&[0, 0, 1, 0, 1], FrameError::Length { kind: 0, bytes: 65_537 }),
            (&[1, 255, 255, 255, 255], FrameError::Length { kind: 1, bytes: 0xffff_ffff }),
            (&[3, 0, 0, 0, 3], FrameError::Length { kind: 3, bytes: 3 }),
            (&[4, 0, 0, 0, 0], FrameError::Length { kind: 4, bytes: 0 }),
        ];
        for (bytes, error) in cases {
            assert_eq!(Frame::decode(bytes), Err(error));
        }
    }
}
