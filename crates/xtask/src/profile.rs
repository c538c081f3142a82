//! `cargo xtask profile`: teaches the compiler where the proxy spends its time.
//!
//! A proxy that counts its own branches is built and given the loads of `cargo xtask bench requests`; what it has counted is
//! kept in the cache, and whoever builds the proxy as it is shipped gives it to the compiler. It is of no other compiler and
//! is made on the machine that builds: a repository that keeps it would keep megabytes that nobody can read, and that grow
//! stale without a sign. Without it the same proxy is built, which takes more processor time for each request.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};

use crate::setup::{self, Consent, Scope};
use crate::workspace::{PROFILE, Workspace, find_tool};
use crate::{flags, images, process};

/// What profiles end in.
const SUFFIX: &str = ".profdata";

/// The word of `lightbyte-bench` that gives the loads.
const TRAINING_WORD: &str = "training-of-requests";

/// `cargo xtask profile [--yes]`
pub(crate) fn run(workspace: &Workspace, words: &[String]) -> Result<ExitCode> {
    let cache = setup::ensure(Scope::WithoutVms, Consent::from_flags(&flags(words, &["--yes"])?))?;
    let compiler = Compiler::find()?;
    let merge = compiler.merger()?;
    let target = workspace.target.join("profiling");
    let counts = target.join("counts");
    // What an earlier run has counted was of another build.
    let _nothing_to_remove = fs::remove_dir_all(&counts).is_err();
    eprintln!("building a proxy that counts; it takes as long as the proxy itself");
    let proxy = images::build_counting_proxy(workspace, &target, &counts)?;
    let mut build = workspace.cargo();
    build.args(["build", "--quiet", "--profile", PROFILE, "--package", "lightbyte-bench"]);
    process::run(&mut build)?;
    let mut load = Command::new(workspace.binary("lightbyte-bench"));
    process::run(load.arg(TRAINING_WORD).env("LIGHTBYTE_SHIPPED_PROXY", proxy)).context("give it loads")?;

    let directory = directory(&cache.directory);
    fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
    let before = all(&directory)?;
    // A name of its own each time: cargo builds anew when the path of a profile changes, and not when its content does.
    let number = 1 + before.iter().filter_map(|path| number_of(path)).max().unwrap_or(0);
    let profile = directory.join(format!("{}-{number}{SUFFIX}", compiler.name));
    let growing = directory.join("growing");
    process::run(Command::new(merge).args(["merge", "-o"]).arg(&growing).arg(&counts))?;
    fs::rename(&growing, &profile).context("keep the profile")?;
    for old in before {
        fs::remove_file(&old).with_context(|| format!("remove {}", old.display()))?;
    }
    println!("the profile is {}; `cargo xtask images proxy` uses it", profile.display());
    Ok(ExitCode::SUCCESS)
}

/// The flags by which this machine's compiler uses the profile that it has, if it has one.
pub(crate) fn flags_of(cache: &Path) -> Result<String> {
    let directory = directory(cache);
    let name = Compiler::find()?.name;
    let found = all(&directory)?.into_iter().find(|path| {
        path.file_name()
            .and_then(|file| file.to_str())
            .is_some_and(|file| file.starts_with(&format!("{name}-")))
    });
    Ok(found.map_or_else(String::new, |path| {
        // Of what was written since it knows nothing, and says so for each function.
        format!(" -Cprofile-use={} -Cllvm-args=-pgo-warn-missing-function=false", path.display())
    }))
}

fn directory(cache: &Path) -> PathBuf {
    cache.join("profiles")
}

fn all(directory: &Path) -> Result<Vec<PathBuf>> {
    match fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => {
            let paths = entries.with_context(|| format!("list {}", directory.display()))?.flatten();
            let paths = paths.map(|entry| entry.path());
            Ok(paths.filter(|path| path.to_string_lossy().ends_with(SUFFIX)).collect())
        }
    }
}

fn number_of(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?.strip_suffix(SUFFIX)?;
    name.rsplit_once('-')?.1.parse().ok()
}

/// The compiler of this machine.
struct Compiler {
    /// One that no other compiler has.
    name: String,
    llvm: String,
}

impl Compiler {
    fn find() -> Result<Compiler> {
        Compiler::read(&process::output(Command::new("rustc").arg("-vV"))?)
    }

    fn read(said: &str) -> Result<Compiler> {
        let value = |name: &str| {
            let value = said.lines().find_map(|line| line.strip_prefix(name));
            value.map(str::trim).with_context(|| format!("find `{name}` in what rustc says of itself"))
        };
        let llvm = value("LLVM version:")?.split('.').next().unwrap_or_default().to_owned();
        Ok(Compiler { name: format!("{}-llvm{llvm}", value("release:")?), llvm })
    }

    /// `llvm-profdata` of the same LLVM: another one does not read what this compiler's programs write.
    fn merger(&self) -> Result<PathBuf> {
        let root = process::output(Command::new("rustc").args(["--print", "target-libdir"]))?;
        let own = Path::new(root.trim()).with_file_name("bin").join("llvm-profdata");
        let debian = format!("llvm-profdata-{}", self.llvm);
        if own.is_file() {
            return Ok(own);
        }
        find_tool(&debian).map_or_else(
            || {
                let llvm = &self.llvm;
                bail!("there is no llvm-profdata {llvm}: `apt-get install llvm-{llvm}` or `rustup component add llvm-tools`")
            },
            Ok,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_are_numbered() {
        let table = [
            ("a/1.95.0-llvm22-7.profdata", Some(7)),
            ("a/1.95.0-llvm22-7", None),
            ("a/growing", None),
            ("a/x.profdata", None),
        ];
        for (path, expected) in table {
            assert_eq!(number_of(Path::new(path)), expected, "{path}");
        }
    }

    #[test]
    fn a_compiler_is_known_by_its_version_and_its_llvm() {
        let said = "rustc 1.95.0 (abc 2026-04-14)\nhost: x86_64-unknown-linux-gnu\nrelease: 1.95.0\nLLVM version: 22.1.2\n";
        let compiler = Compiler::read(said).expect("is read");
        assert_eq!((compiler.name.as_str(), compiler.llvm.as_str()), ("1.95.0-llvm22", "22"));
        assert!(Compiler::read("rustc 1.95.0").is_err());
    }
}
