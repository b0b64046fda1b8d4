//! base64url (RFC 4648, section 5) as JWS has it (RFC 7515, section 2).

/// Decodes it: without padding, line breaks or spaces, and each text in one spelling alone.
pub fn decode(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 2);
    for group in text.chunks(4) {
        let mut bits = 0_u32;
        for &symbol in group {
            bits = bits << 6 | u32::from(value(symbol)?);
        }
        // Of the last group, what is no whole byte must be zero.
        let (length, rest) = match group.len() {
            4 => (3, 0),
            3 => (2, 2),
            2 => (1, 4),
            _ => return None,
        };
        if bits & ((1 << rest) - 1) != 0 {
            return None;
        }
        let whole = (bits >> rest).to_be_bytes();
        bytes.extend_from_slice(whole.get(4 - length..)?);
    }
    Some(bytes)
}

fn value(symbol: u8) -> Option<u8> {
    match symbol {
        b'A'..=b'Z' => Some(symbol - b'A'),
        b'a'..=b'z' => Some(symbol - b'a' + 26),
        b'0'..=b'9' => Some(symbol - b'0' + 52),
        b'-' => Some(62),
        b'_' => Some(63),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_spelling_alone_is_taken() {
        for (text, want) in [
            ("", Some(&b""[..])),
            ("Zg", Some(b"f")),
            ("Zm8", Some(b"fo")),
            ("Zm9v", Some(b"foo")),
            ("Zm9vYg", Some(b"foob")),
            ("-_8", Some(b"\xfb\xff")),
            ("+/8", None),
            ("Zg==", None),
            ("Zh", None),
            ("Zm9", None),
            ("Z", None),
            ("Zm9vZ", None),
            ("Zm 9v", None),
            ("Zm9v\n", None),
            ("Zm9é", None),
        ] {
            assert_eq!(decode(text.as_bytes()).as_deref(), want, "{text:?}");
        }
    }
}
