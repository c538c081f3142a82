//! What a verb is aimed at: `KIND/NAME`, `KIND NAME`, or a bare name that the API resolves.

use lightbyte_api::manifest::kind_hint;
use lightbyte_api::{Kind, Name, ObjectRef};

use crate::failure::Failure;

/// What the words of a command mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// This object.
    Object(ObjectRef),
    /// The object of this name, whatever its kind.
    Named(Name),
    /// All objects of a kind.
    Kind(Kind),
}

/// Reads the words after a verb. A first word that is a kind without a name holds for the bare words after it.
pub(crate) fn read(words: &[String]) -> Result<Vec<Target>, Failure> {
    let kind = words.first().and_then(|first| first.parse::<Kind>().ok());
    if let (Some(kind), 1) = (kind, words.len()) {
        return Ok(vec![Target::Kind(kind)]);
    }
    let names = if kind.is_some() { &words[1..] } else { words };
    names.iter().map(|word| read_one(kind, word)).collect()
}

fn read_one(kind: Option<Kind>, word: &str) -> Result<Target, Failure> {
    if let Some((kind, name)) = word.split_once('/') {
        return Ok(Target::Object(ObjectRef::new(read_kind(kind)?, read_name(name)?)));
    }
    let name = read_name(word)?;
    Ok(match kind {
        Some(kind) => Target::Object(ObjectRef::new(kind, name)),
        None => Target::Named(name),
    })
}

/// The one object that a verb needs.
pub(crate) fn read_single(words: &[String]) -> Result<Target, Failure> {
    let mut targets = read(words)?;
    match (targets.pop(), targets.is_empty()) {
        (Some(Target::Kind(kind)), true) => Err(which(kind)),
        (Some(target), true) => Ok(target),
        _ => Err(Failure::usage("one object is needed").hint("name it as `KIND/NAME`, such as `vm/hello`")),
    }
}

/// The one VM that a verb needs: a bare name is a VM's, whatever else is called so.
pub(crate) fn read_vm(words: &[String]) -> Result<ObjectRef, Failure> {
    match read_single(words)? {
        Target::Object(object) => Ok(object),
        Target::Named(name) => Ok(ObjectRef::new(Kind::Vm, name)),
        Target::Kind(kind) => Err(which(kind)),
    }
}

/// The one object of `kind` that a verb needs: a bare name is of that kind, whatever else is called so.
pub(crate) fn read_of(kind: Kind, word: &str) -> Result<ObjectRef, Failure> {
    match read_one(Some(kind), word)? {
        Target::Object(object) if object.kind == kind => Ok(object),
        _ => Err(Failure::usage(format!("`{word}` is no {kind}"))),
    }
}

/// A kind was named where one object is needed.
pub(crate) fn which(kind: Kind) -> Failure {
    Failure::usage(format!("which {kind}?"))
        .hint(format!("name it as `{kind}/NAME`; `lightbyte get {kind}` lists them"))
}

/// Reads a kind, and says which are near.
pub(crate) fn read_kind(word: &str) -> Result<Kind, Failure> {
    word.parse::<Kind>().map_err(|error| Failure::usage(error.to_string()).hint(kind_hint(word)))
}

fn read_name(word: &str) -> Result<Name, Failure> {
    word.parse::<Name>().map_err(|error| Failure::usage(format!("`{word}` is no name: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(result: Result<Vec<Target>, Failure>) -> String {
        let one = |target: &Target| match target {
            Target::Object(object) => object.to_string(),
            Target::Named(name) => format!("?/{name}"),
            Target::Kind(kind) => format!("{kind}/*"),
        };
        match result {
            Ok(targets) => targets.iter().map(one).collect::<Vec<_>>().join(" "),
            Err(failure) => {
                assert_eq!(failure.code, crate::failure::Code::Usage);
                format!("{failure} ({})", failure.hint.clone().unwrap_or_default())
            }
        }
    }

    fn words(text: &str) -> Vec<String> {
        text.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect()
    }

    #[test]
    fn words_are_read_as_targets() {
        let check = |text: &str, expect: &str| assert_eq!(show(read(&words(text))), expect, "{text}");
        check("vm/hello", "vm/hello");
        check("vm hello", "vm/hello");
        check("vms a b", "vm/a vm/b");
        check("vms", "vm/*");
        check("net", "network/*");
        check("hello", "?/hello");
        check("a b", "?/a ?/b");
        check("vm/a net/b c", "vm/a network/b ?/c");
        check("vm net/lan", "network/lan");
        check("vn/hello", "`vn` is not a kind of object (did you mean `vm`?)");
        check(
            "vm/Hello",
            "`Hello` is no name: a name is made of a-z, 0-9 and -, begins with a letter and does not end with -; \
             `H` at 1 is not ()",
        );
        check("vm/", "`` is no name: a name may not be empty ()");
    }

    #[test]
    fn a_verb_for_one_object_takes_one() {
        let check = |text: &str, expect: &str| {
            assert_eq!(show(read_single(&words(text)).map(|target| vec![target])), expect, "{text}");
        };
        check("vm hello", "vm/hello");
        check("hello", "?/hello");
        let vm = |text: &str| read_vm(&words(text)).expect("a VM").to_string();
        assert_eq!([vm("hello"), vm("vm/hello"), vm("vm hello")], ["vm/hello"; 3]);
        check("vm", "which vm? (name it as `vm/NAME`; `lightbyte get vm` lists them)");
        check("vm/a vm/b", "one object is needed (name it as `KIND/NAME`, such as `vm/hello`)");
        check("", "one object is needed (name it as `KIND/NAME`, such as `vm/hello`)");
    }
}
