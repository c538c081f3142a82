//! Each parser of our own, fed with mutations of a kept corpus: properties that hold for all bytes.
//!
//! The corpus lies in `corpus/`, a directory for each target. In ordinary tests each target gets [`SHORT`]; with
//! `LIGHTBYTE_FUZZ_SECONDS=600` it gets so long, and `LIGHTBYTE_FUZZ_SEED` chooses another way through. Input that breaks
//! a property is written beside the corpus under the name `found-…`: repair the code, and keep the file under a name that
//! says what it is. Long runs are `cargo test`'s, since `cargo nextest` ends a test after two minutes:
//!
//! ```text
//!   LIGHTBYTE_FUZZ_SECONDS=600 cargo test --profile ci -p lightbyte-proxy --lib fuzz:: -- --nocapture
//! ```

mod mutate;
mod targets;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use mutate::Mutator;

/// What a target gets in ordinary tests.
const SHORT: Duration = Duration::from_millis(300);

/// Longest input, so that a mutation of mutations has an end.
const INPUT_BYTES_MAX: usize = 4_096;

/// Of the mutations that are taken one in so many joins the inputs to mutate from, and so many join at most.
const KEPT_ONE_IN: u64 = 4;
const KEPT_MAX: usize = 1_024;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Holds a property against the corpus of a target, then against mutations of it. It says whether the input came so far
/// that all of it was tried: a target that refuses everything tries nothing.
fn hold(target: &str, words: &[&str], property: impl Fn(&[u8]) -> bool) {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let files = fs::read_dir(&directory).expect("has a corpus");
    let mut paths: Vec<PathBuf> = files.map(|file| file.expect("reads").path()).collect();
    // The order of a directory is chance, and the way through is to be the same each time.
    paths.sort();
    let mut inputs: Vec<Vec<u8>> = paths.iter().map(|path| fs::read(path).expect("reads")).collect();
    assert!(!inputs.is_empty(), "{target} has a corpus");
    let check = |input: &[u8]| -> bool {
        let held = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| property(input)));
        held.unwrap_or_else(|panic| {
            let name = format!("found-{:016x}", crate::chance::stable_hash(input));
            let _ = fs::write(directory.join(&name), input);
            eprintln!("{target}: {name}: {}", input.escape_ascii());
            std::panic::resume_unwind(panic);
        })
    };
    assert!(inputs.iter().any(|input| check(input)), "{target} has a corpus that is taken");
    inputs.iter().for_each(|input| {
        check(input);
    });
    let mut mutator = Mutator::new(number("LIGHTBYTE_FUZZ_SEED").unwrap_or(1), words);
    let budget = number("LIGHTBYTE_FUZZ_SECONDS").map_or(SHORT, Duration::from_secs);
    let (begun, mut executions, mut taken) = (Instant::now(), 0_u64, 0_u64);
    while begun.elapsed() < budget {
        let mut input = mutator.mutated(&inputs);
        input.truncate(INPUT_BYTES_MAX);
        executions += 1;
        if !check(&input) {
            continue;
        }
        taken += 1;
        if taken.is_multiple_of(KEPT_ONE_IN) {
            if inputs.len() < KEPT_MAX {
                inputs.push(input);
            } else {
                let place = mutator.below(KEPT_MAX - paths.len()) + paths.len();
                inputs[place] = input;
            }
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    eprintln!("{target}: {executions} executions in {seconds:.1} s, {taken} of them taken");
}
