//! As much of HTTP/1.1 (RFC 9112) as host and guest need when both are ours.

/// Length of a message's head, with the empty line that ends it; nothing if that has not come yet.
pub(crate) fn head_bytes(message: &[u8]) -> Option<usize> {
    Some(message.windows(4).position(|window| window == b"\r\n\r\n")? + 4)
}

/// The value of a field in a head; names of fields have no case.
pub(crate) fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let fields = head.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
    fields.into_iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_whatever_their_case() {
        let head = "GET /a:b HTTP/1.1\r\nHost: guest\r\ncontent-LENGTH:7 \r\n\r\n";
        let table = [("host", Some("guest")), ("Content-Length", Some("7")), ("GET /a", None), ("x", None)];
        for (name, expected) in table {
            assert_eq!(field(head, name), expected, "{name}");
        }
        assert_eq!(head_bytes(head.as_bytes()), Some(head.len()));
        assert_eq!(head_bytes(&head.as_bytes()[..head.len() - 1]), None);
    }
}
