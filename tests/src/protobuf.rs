//! As much of protobuf's encoding as the services around a ztunnel need: fields of bytes.

/// A field of bytes, below number 16.
pub fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut encoded = vec![number << 3 | LENGTH_DELIMITED];
    let mut length = bytes.len();
    while length > 0x7f {
        encoded.push(u8::try_from(length & 0x7f).unwrap_or_default() | 0x80);
        length >>= 7;
    }
    encoded.push(u8::try_from(length).unwrap_or_default());
    encoded.extend_from_slice(bytes);
    encoded
}

const LENGTH_DELIMITED: u8 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_written() {
        assert_eq!(field(3, b""), [0x1a, 0]);
        assert_eq!(field(1, b"ab"), [0x0a, 2, b'a', b'b']);
        assert_eq!(field(2, &[7; 300])[..4], [0x12, 0xac, 0x02, 7]);
    }
}
