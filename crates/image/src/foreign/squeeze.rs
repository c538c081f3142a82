//! What others compress: layers, kernels, modules. What comes out is bounded, whatever goes in says.

use std::io::{self, Cursor, Read};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
const XZ: &[u8] = &[0xfd, b'7', b'z', b'X', b'Z', 0];

/// Whether it is in a compression that is known here.
pub(crate) fn is_squeezed(head: &[u8]) -> bool {
    [GZIP, ZSTD, XZ].iter().any(|magic| head.starts_with(magic))
}

/// The content of a stream, uncompressed if it is in a compression that is known here.
pub(crate) fn reader(mut input: impl Read + 'static) -> Result<Box<dyn Read>> {
    let mut head = [0; 6];
    let mut length = 0;
    while length < head.len() {
        match input.read(&mut head[length..]).context("read its beginning")? {
            0 => break,
            bytes => length += bytes,
        }
    }
    let head = head[..length].to_vec();
    let is = |magic: &[u8]| head.starts_with(magic);
    let (gzip, zstd, xz) = (is(GZIP), is(ZSTD), is(XZ));
    let whole = Cursor::new(head).chain(input);
    if gzip {
        return Ok(Box::new(flate2::read::MultiGzDecoder::new(whole)));
    }
    if zstd {
        return Ok(Box::new(Frames { input: whole, frame: None }));
    }
    if xz {
        bail!("it is compressed with xz, which container images do not use");
    }
    Ok(Box::new(whole))
}

/// Zstandard frames, one after the other (RFC 8878, section 3.1).
struct Frames<R: Read> {
    input: R,
    frame: Option<Box<ruzstd::decoding::FrameDecoder>>,
}

impl<R: Read> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
        loop {
            let frame = match &mut self.frame {
                Some(frame) => frame,
                None => {
                    let mut first = [0; 1];
                    if self.input.read(&mut first)? == 0 {
                        return Ok(0);
                    }
                    let mut frame = Box::new(FrameDecoder::new());
                    frame.init(Cursor::new(first).chain(&mut self.input)).map_err(io::Error::other)?;
                    self.frame.insert(frame)
                }
            };
            if frame.can_collect() == 0 && !frame.is_finished() {
                let room = BlockDecodingStrategy::UptoBytes(buffer.len().max(1));
                frame.decode_blocks(&mut self.input, room).map_err(io::Error::other)?;
            }
            let read = frame.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            if frame.is_finished() {
                self.frame = None;
            }
        }
    }
}

/// A small file whole, uncompressed, such as a module; xz by the program of that name.
pub(crate) fn small(bytes: Vec<u8>, bytes_max: u64) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    if bytes.starts_with(XZ) {
        content = xz(&bytes, bytes_max)?;
    } else {
        reader(Cursor::new(bytes))?.take(bytes_max + 1).read_to_end(&mut content).context("uncompress it")?;
    }
    ensure!(content.len() as u64 <= bytes_max, "it has more than {bytes_max} bytes");
    Ok(content)
}

fn xz(bytes: &[u8], bytes_max: u64) -> Result<Vec<u8>> {
    let mut child = Command::new("xz")
        .args(["-dc", "--single-stream", "--memlimit=256MiB"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("start xz (package xz-utils)")?;
    let (input, output) = (child.stdin.take(), child.stdout.take());
    let (mut input, output) = input.zip(output).context("speak with xz")?;
    let mut content = Vec::new();
    std::thread::scope(|scope| {
        // A program that stops reading ends the write; what came out tells.
        scope.spawn(move || drop(io::Write::write_all(&mut input, bytes)));
        let read = output.take(bytes_max + 1).read_to_end(&mut content);
        // Its end closes its input, and so ends the thread.
        let _ = child.kill();
        read
    })
    .context("read what xz says")?;
    child.wait().context("wait for xz")?;
    ensure!(!content.is_empty(), "xz cannot uncompress it");
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn by(program: &str, content: &[u8]) -> Option<Vec<u8>> {
        let mut child = Command::new(program)
            .arg("-c")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        child.stdin.take()?.write_all(content).ok()?;
        Some(child.wait_with_output().ok()?.stdout)
    }

    #[test]
    fn what_programs_compress_is_read() {
        let content: Vec<u8> = (0..300_000_u32).map(|index| (index / 7 % 251) as u8).collect();
        for program in ["gzip", "xz", "zstd"] {
            // One that is not installed is not what is tested here.
            let Some(squeezed) = by(program, &content) else { continue };
            assert!(is_squeezed(&squeezed), "{program}");
            assert!(small(squeezed.clone(), 1 << 20).unwrap() == content, "{program}");
            assert!(small(squeezed.clone(), 1_000).is_err(), "{program} is bounded");
            assert!(small(squeezed[..squeezed.len() / 2].to_vec(), 1 << 20).ok() != Some(content.clone()));
            if program != "xz" {
                let twice = [squeezed.clone(), squeezed].concat();
                let mut read = Vec::new();
                reader(Cursor::new(twice)).unwrap().read_to_end(&mut read).unwrap();
                assert!(read == [content.clone(), content.clone()].concat(), "{program} twice");
            }
        }
        assert_eq!(small(b"plain".to_vec(), 10).unwrap(), b"plain");
    }
}
