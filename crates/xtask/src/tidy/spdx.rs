//! Licence expressions as crates state them: `MIT OR Apache-2.0`, `(MIT OR X) AND Y`, and the old form `MIT/Apache-2.0`.

/// Whether the expression can be met with licences for which `is_allowed` holds. Text that is no expression is not met.
pub(super) fn is_met(expression: &str, is_allowed: &dyn Fn(&str) -> bool) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    any(&mut rest, is_allowed).is_some_and(|met| met && rest.is_empty())
}

fn any(rest: &mut &[&str], is_allowed: &dyn Fn(&str) -> bool) -> Option<bool> {
    let mut met = all(rest, is_allowed)?;
    while take(rest, "OR") {
        met |= all(rest, is_allowed)?;
    }
    Some(met)
}

fn all(rest: &mut &[&str], is_allowed: &dyn Fn(&str) -> bool) -> Option<bool> {
    let mut met = one(rest, is_allowed)?;
    while take(rest, "AND") {
        met &= one(rest, is_allowed)?;
    }
    Some(met)
}

fn one(rest: &mut &[&str], is_allowed: &dyn Fn(&str) -> bool) -> Option<bool> {
    if take(rest, "(") {
        let met = any(rest, is_allowed)?;
        return take(rest, ")").then_some(met);
    }
    let (word, after) = rest.split_first()?;
    if matches!(*word, "OR" | "AND" | "WITH" | ")") {
        return None;
    }
    *rest = after;
    // `MPL-2.0+` means that version or a later one, so the version itself may be chosen.
    let word = word.strip_suffix('+').unwrap_or(word);
    if !take(rest, "WITH") {
        return Some(is_allowed(word));
    }
    let (exception, after) = rest.split_first()?;
    *rest = after;
    Some(is_allowed(&format!("{word} WITH {exception}")))
}

fn take(rest: &mut &[&str], word: &str) -> bool {
    match rest.split_first() {
        Some((first, after)) if *first == word => {
            *rest = after;
            true
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_met_by_allowed_licences_only() {
        let allowed = ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"];
        let table = [
            ("MIT", true),
            ("GPL-3.0", false),
            ("GPL-3.0 OR MIT", true),
            ("MIT/GPL-3.0", true),
            ("MIT AND GPL-3.0", false),
            ("MIT AND ISC", true),
            ("(GPL-3.0 OR MIT) AND ISC", true),
            ("GPL-3.0 OR (MIT AND GPL-2.0)", false),
            ("GPL-3.0 OR MIT AND ISC", true),
            ("Apache-2.0 WITH LLVM-exception", true),
            ("Apache-2.0", false),
            ("MIT+", true),
            ("", false),
            ("MIT MIT", false),
            ("MIT OR", false),
            ("(MIT", false),
        ];
        for (expression, expected) in table {
            assert_eq!(is_met(expression, &|name| allowed.contains(&name)), expected, "{expression}");
        }
    }
}
