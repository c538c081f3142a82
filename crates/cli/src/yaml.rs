//! YAML in and out. The only module that knows which library does it.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_saphyr::DuplicateKeyPolicy;

/// The longest text that is read: far above the largest request that a server takes.
pub(crate) const TEXT_BYTES_MAX: u64 = 4 << 20;

/// Why a text is no YAML, with the place.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct YamlError(String);

/// Every document of `text` as a JSON value. Empty documents are left out; a key that stands twice is an error.
pub(crate) fn read_documents(text: &str) -> Result<Vec<Value>, YamlError> {
    let options = serde_saphyr::options! {
        with_snippet: false,
        duplicate_keys: DuplicateKeyPolicy::Error,
        strict_booleans: true,
    };
    serde_saphyr::from_multiple_with_options(text, options).map_err(|error| YamlError(error.to_string()))
}

/// The one document of `text`.
pub(crate) fn read<T: DeserializeOwned>(text: &str) -> Result<T, YamlError> {
    serde_saphyr::from_str(text).map_err(|error| YamlError(error.to_string()))
}

/// `value` as one document, with a final line end.
pub(crate) fn write<T: Serialize>(value: &T) -> Result<String, YamlError> {
    let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
    let text =
        serde_saphyr::to_string_with_options(value, options).map_err(|error| YamlError(error.to_string()))?;
    Ok(if text.ends_with('\n') { text } else { text + "\n" })
}

/// `values` as documents that [`read_documents`] takes.
pub(crate) fn write_documents<T: Serialize>(values: &[T]) -> Result<String, YamlError> {
    let documents: Vec<String> = values.iter().map(write).collect::<Result<_, _>>()?;
    Ok(documents.join("---\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_written_is_read_back() {
        let check = |value: Value| {
            let text = write(&value).unwrap();
            assert_eq!(read_documents(&text).unwrap(), [value], "{text}");
        };
        check(
            json!({"kind": "vm", "name": "a", "labels": {}, "spec": {"image": "demo", "nics": [], "size": null}}),
        );
        // Texts that YAML would take for something else.
        check(
            json!({"a": "1", "b": "true", "c": "null", "d": "no", "e": "1.5", "f": "", "g": "~", "h": "0x10", "i": "- x"}),
        );
        check(
            json!({"a": "two\nlines\n", "b": "# no comment", "c": "x: y", "d": " spaces ", "e": "console=ttyS0 root=/dev/vda"}),
        );
        check(json!({"list": [1, -1, 1.5, true, {"deep": [{"er": []}]}, [[]]]}));
        check(json!({"a": "10.0.0.1", "b": "2026-11-22T19:00:00Z", "c": "1e3", "d": "12:30:45"}));
    }

    #[test]
    fn several_documents_stand_in_one_text() {
        let check =
            |text: &str, expect: &[Value]| assert_eq!(read_documents(text).unwrap(), expect, "{text}");
        check("a: 1\n---\na: 2\n", &[json!({"a": 1}), json!({"a": 2})]);
        check("---\na: 1\n---\n---\n# nothing\n", &[json!({"a": 1})]);
        check("{\"a\": [1, \"x\"]}", &[json!({"a": [1, "x"]})]);
        check("", &[]);
        let values = [json!({"a": 1}), json!({"b": {"c": "1"}})];
        assert_eq!(read_documents(&write_documents(&values).unwrap()).unwrap(), values);
    }

    #[test]
    fn an_error_names_the_place() {
        let check = |text: &str, expect: &str| {
            let error = read_documents(text).unwrap_err().to_string();
            assert!(error.contains(expect), "{error}");
        };
        check("a: 1\nb: [1, 2\n", "line");
        check("a: 1\na: 2\n", "line 2");
    }
}
