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

/// The content of the field of this number, if a message begins with it.
pub fn first_field(number: u8, message: &[u8]) -> Option<&[u8]> {
    let rest = message.strip_prefix(&[number << 3 | LENGTH_DELIMITED])?;
    let end = rest.iter().position(|byte| byte & 0x80 == 0)?;
    let (length, rest) = rest.split_at_checked(end + 1)?;
    let length = length
        .iter()
        .rev()
        .try_fold(0usize, |sum, byte| sum.checked_mul(0x80).map(|sum| sum + usize::from(byte & 0x7f)))?;
    rest.get(..length)
}

const LENGTH_DELIMITED: u8 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_written_and_read() {
        assert_eq!(field(3, b""), [0x1a, 0]);
        assert_eq!(field(1, b"ab"), [0x0a, 2, b'a', b'b']);
        assert_eq!(field(2, &[7; 300])[..4], [0x12, 0xac, 0x02, 7]);
        for length in [0, 1, 127, 128, 300, 70_000] {
            let content = vec![9; length];
            let message = [field(1, &content), field(2, b"rest")].concat();
            assert_eq!(first_field(1, &message), Some(content.as_slice()));
            assert_eq!(first_field(2, &message), None);
        }
        assert_eq!(first_field(1, &[0x0a, 5, 1]), None);
        assert_eq!(first_field(1, &[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]), None);
    }
}
