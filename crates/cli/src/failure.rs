//! What ends a command: exit codes, and errors as people read them. Every verb's errors pass through here once.

use std::io;

use lightbyte_link::ClientError;

/// How a command ended. The numbers are a contract with scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    /// It did what was asked.
    Done = 0,
    /// It did not, for a reason without a code of its own.
    Error = 1,
    /// Something differs from the manifest, or has no place in the cluster.
    Differs = 2,
    /// The time was up.
    TimedOut = 3,
    /// Somebody else changed it, or it exists already.
    Conflict = 4,
    /// There is no such thing.
    NotFound = 5,
    /// The words make no command (sysexits.h, `EX_USAGE`).
    Usage = 64,
    /// Ctrl-C: 128 and the number of the signal, as shells count.
    Interrupted = 130,
}

/// What a command leaves to whoever started it: a [`Code`] of ours, or that of a command that it ran in a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit(pub(crate) u8);

impl From<Code> for Exit {
    fn from(code: Code) -> Exit {
        Exit(code as u8)
    }
}

impl Exit {
    /// The exit code of a command in a guest; one that no process of ours can leave becomes the highest that it can.
    pub(crate) fn of_command(code: u32) -> Exit {
        Exit(u8::try_from(code).unwrap_or(u8::MAX))
    }
}

/// An error that this program itself found, with its exit code and the next step.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    /// The exit code.
    pub(crate) code: Code,
    /// One line without a full stop.
    pub(crate) message: String,
    /// More of it, a line each.
    pub(crate) details: Vec<String>,
    /// The next command.
    pub(crate) hint: Option<String>,
}

impl Failure {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Failure {
        Failure { code, message: message.into(), details: Vec::new(), hint: None }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Failure {
        Failure::new(Code::Usage, message)
    }

    pub(crate) fn hint(self, hint: impl Into<String>) -> Failure {
        Failure { hint: Some(hint.into()), ..self }
    }

    pub(crate) fn details(self, details: Vec<String>) -> Failure {
        Failure { details, ..self }
    }
}

/// The exit code of an error: the only place that decides it.
pub(crate) fn code_of(error: &anyhow::Error) -> Code {
    error.chain().find_map(code_of_one).unwrap_or(Code::Error)
}

fn code_of_one(error: &(dyn std::error::Error + 'static)) -> Option<Code> {
    if let Some(failure) = error.downcast_ref::<Failure>() {
        return Some(failure.code);
    }
    let status = error.downcast_ref::<ClientError>()?.status();
    Some(match status {
        Some(404) => Code::NotFound,
        Some(409 | 412) => Code::Conflict,
        Some(408 | 504) => Code::TimedOut,
        _ => Code::Error,
    })
}

/// Whether whoever read our output has hung up, as `head` does: no error to speak of.
pub(crate) fn is_hang_up(error: &anyhow::Error) -> bool {
    let is_broken_pipe = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
    // A server that hung up is another matter.
    let is_of_server = |cause: &(dyn std::error::Error + 'static)| cause.is::<ClientError>();
    error.root_cause().downcast_ref().is_some_and(is_broken_pipe) && !error.chain().any(is_of_server)
}

/// What a person reads: the chain on one line, then details, then the hint.
pub(crate) fn describe(error: &anyhow::Error) -> Description {
    // A refusal names the object and the reason by itself; what we were about to do would only repeat it.
    let is_refusal = |cause: &&(dyn std::error::Error + 'static)| {
        matches!(cause.downcast_ref(), Some(ClientError::Refused(_)))
    };
    let before = error.chain().position(|cause| is_refusal(&cause)).unwrap_or(0);
    let chain: Vec<String> = error.chain().skip(before).map(|cause| one_line(&cause.to_string())).collect();
    let (details, hint) = error.chain().find_map(more_of).unwrap_or_default();
    Description { message: chain.join(": "), details, hint }
}

/// An error in the parts that are printed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Description {
    pub(crate) message: String,
    pub(crate) details: Vec<String>,
    pub(crate) hint: Option<String>,
}

fn more_of(error: &(dyn std::error::Error + 'static)) -> Option<(Vec<String>, Option<String>)> {
    if let Some(failure) = error.downcast_ref::<Failure>() {
        return Some((failure.details.clone(), failure.hint.clone()));
    }
    let hint = match error.downcast_ref::<ClientError>()? {
        ClientError::Refused(problem) => return Some((problem.details.clone(), problem.hint.clone())),
        ClientError::Unreachable { .. } => {
            "is the cluster running? `lightbyte dev` starts one on this machine"
        }
        ClientError::Broken { .. } => "it may have been carried out; `lightbyte get` shows what is there now",
        ClientError::Answer { .. } => {
            "`lightbyte --version` and `lightbyte status` show whose version is older"
        }
    };
    Some((Vec::new(), Some(hint.to_owned())))
}

fn one_line(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    text.strip_suffix('.').map(str::to_owned).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;
    use lightbyte_link::Problem;

    fn refused(status: u16) -> anyhow::Error {
        ClientError::Refused(Problem { status, title: "no".to_owned(), ..Problem::default() }).into()
    }

    #[test]
    fn every_error_has_its_exit_code() {
        let check =
            |error: anyhow::Error, expect: i32| assert_eq!(code_of(&error) as i32, expect, "{error:#}");
        check(anyhow::anyhow!("anything"), 1);
        check(refused(400), 1);
        check(refused(404), 5);
        check(refused(409), 4);
        check(refused(412), 4);
        check(refused(503), 1);
        check(refused(504), 3);
        check(refused(404).context("ask for `vm/a`"), 5);
        check(ClientError::Unreachable { tried: String::new() }.into(), 1);
        check(Failure::usage("words").into(), 64);
        check(Failure::new(Code::Differs, "no place").into(), 2);
        check(Failure::new(Code::TimedOut, "late").into(), 3);
        check(Failure::new(Code::Interrupted, "Ctrl-C").into(), 130);
        assert_eq!(Code::Done as i32, 0);
    }

    #[test]
    fn the_chain_is_one_line_and_details_and_hint_survive_it() {
        let problem = Problem {
            title: "the manifest has\n2 problems.".to_owned(),
            status: 422,
            details: vec!["spec.cpus: too many".to_owned()],
            hint: Some("fewer".to_owned()),
        };
        let error = Err::<(), _>(ClientError::Refused(problem)).context("apply the manifests").unwrap_err();
        let expect = Description {
            message: "the manifest has 2 problems".to_owned(),
            details: vec!["spec.cpus: too many".to_owned()],
            hint: Some("fewer".to_owned()),
        };
        assert_eq!(describe(&error), expect);
        let error = anyhow::anyhow!("it is gone.").context("open `a.yaml`").context("read the manifests");
        assert_eq!(describe(&error).message, "read the manifests: open `a.yaml`: it is gone");
    }

    #[test]
    fn a_reader_that_hung_up_is_no_error() {
        let error =
            anyhow::Error::from(io::Error::from(io::ErrorKind::BrokenPipe)).context("write the answer");
        assert!(is_hang_up(&error));
        assert!(!is_hang_up(&io::Error::from(io::ErrorKind::StorageFull).into()));
        let source = io::Error::from(io::ErrorKind::BrokenPipe).into();
        let endpoint = "http://n1".parse().unwrap();
        assert!(!is_hang_up(&ClientError::Broken { endpoint, source }.into()), "a server's end is an error");
    }
}
