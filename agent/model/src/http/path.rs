use std::borrow::Cow;

/// Why a path can't be brought into its normal form. Such a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Not `/` at its beginning, nor `*` alone.
    #[error("does not begin with a slash")]
    Relative,
    /// `%` without two hexadecimal digits.
    #[error("has a % that encodes nothing")]
    Encoding,
    /// A control character, encoded or not, or a byte that is not ASCII.
    #[error("has a control character or a byte that is not ASCII")]
    Character,
    /// More `..` than there are segments.
    #[error("leads above the root")]
    AboveRoot,
}

/// Brings a path (without its query) into the one form that policies and routes are asked about and that the server
/// gets, so that all three mean the same: what need not be encoded is not (RFC 3986, section 6.2.2), the rest in upper
/// case; `\` is `/`; several slashes are one; `.` and `..` are resolved. An encoded slash stays encoded, since it is
/// part of a segment.
pub fn normalised(path: &str) -> Result<Cow<'_, str>, PathError> {
    if path == "*" {
        return Ok(Cow::Borrowed(path));
    }
    if !path.starts_with(['/', '\\']) {
        return Err(PathError::Relative);
    }
    if is_normal(path) {
        return Ok(Cow::Borrowed(path));
    }
    resolved(&decoded(path)?).map(Cow::Owned)
}

/// Stands for a slash that is part of a segment: no path has one.
const INNER_SLASH: &str = "\0";

/// Of a longer path that is encoded nobody can tell what it means: to find out would take too long.
const MAX_ENCODED: usize = 8 << 10;

/// What a server may take a normal path for: decoded, once or twice; with the slashes and dots that were encoded taken
/// for such, or for part of a segment; without the parameters of its segments, as which some read what is behind a `;`;
/// without what looks like a query then. `None` where nobody can tell: if one of these leads above the root, has a
/// control character or is no UTF-8, or if it is encoded once more.
pub(crate) fn readings(path: &str) -> Option<Vec<Cow<'_, str>>> {
    if !path.contains(['%', ';']) {
        return Some(vec![Cow::Borrowed(path)]);
    }
    if path.len() > MAX_ENCODED {
        return None;
    }
    let mut found = Vec::new();
    for text in [path, &bare(path)] {
        read(text, 1, &mut found)?;
        if text.contains("%2F") {
            let inner: Option<Vec<_>> = text.split("%2F").map(meaning).collect();
            found.push(inner?.join(INNER_SLASH));
        }
    }
    found.sort_unstable();
    found.dedup();
    Some(found.into_iter().map(Cow::Owned).collect())
}

/// Adds what the text may be taken for once it is decoded, and then so often again.
fn read(text: &str, again: u8, found: &mut Vec<String>) -> Option<()> {
    let mut new = vec![meaning(text)?];
    while let Some(text) = new.pop() {
        if found.contains(&text) {
            continue;
        }
        let cut = text.split(['?', '#']).next().unwrap_or_default();
        new.extend([bare(&text), cut.to_owned(), resolved(&text).ok()?]);
        if meaning(&text)? != text {
            read(&text, again.checked_sub(1)?, found)?;
        }
        found.push(text);
    }
    Some(())
}

/// Without the parameters of its segments.
fn bare(path: &str) -> String {
    let segments: Vec<_> =
        path.split('/').map(|segment| segment.split(';').next().unwrap_or_default()).collect();
    segments.join("/")
}

/// The text with all of it decoded, if that is a text.
fn meaning(text: &str) -> Option<String> {
    let mut found = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let mut ahead = rest.clone();
        let encoded =
            (byte == b'%').then(|| Some(ahead.next().and_then(digit)? << 4 | ahead.next().and_then(digit)?));
        match encoded.flatten() {
            Some(byte) => {
                rest = ahead;
                found.push(byte);
            }
            None => found.push(byte),
        }
    }
    String::from_utf8(found).ok().filter(|text| !text.contains(char::is_control))
}

/// Without what slashes and dots say of segments.
fn resolved(path: &str) -> Result<String, PathError> {
    let is_slash = ['/', '\\'];
    let mut segments: Vec<&str> = Vec::new();
    for segment in path.split(is_slash) {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop().ok_or(PathError::AboveRoot)?),
            segment => segments.push(segment),
        }
    }
    let mut normal = String::with_capacity(path.len());
    for segment in &segments {
        normal.push('/');
        normal.push_str(segment);
    }
    let last = path.rsplit(is_slash).next().unwrap_or_default();
    if segments.is_empty() || matches!(last, "" | "." | "..") {
        normal.push('/');
    }
    Ok(normal)
}

/// Whether there is nothing to do, which is so for nearly every request.
fn is_normal(path: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'%' | b'\\');
    let bytes = path.as_bytes();
    // A segment that is empty or begins with a dot needs another look.
    let odd = |pair: &[u8]| pair[0] == b'/' && matches!(pair[1], b'/' | b'.');
    bytes.iter().all(|&byte| plain(byte)) && !bytes.windows(2).any(odd)
}

fn decoded(path: &str) -> Result<String, PathError> {
    let mut found = String::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let (high, low) = (bytes.next().and_then(digit), bytes.next().and_then(digit));
                let (Some(high), Some(low)) = (high, low) else { return Err(PathError::Encoding) };
                let byte = (high << 4) | low;
                match byte {
                    b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                        found.push(byte.into())
                    }
                    0..0x20 | 0x7f => return Err(PathError::Character),
                    _ => found.push_str(&format!("%{byte:02X}")),
                }
            }
            byte if byte.is_ascii_graphic() => found.push(byte.into()),
            _ => return Err(PathError::Character),
        }
    }
    Ok(found)
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_path_has_one_form() {
        for (path, normal) in [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("//a///b", "/a/b"),
            ("/a/./b/", "/a/b/"),
            ("/a/../b", "/b"),
            ("/a/b/..", "/a/"),
            ("/a/.", "/a/"),
            ("/%61dmin", "/admin"),
            ("/a%2fb", "/a%2Fb"),
            ("/%2e%2E/x", ""),
            ("/x/%2e%2e/admin", "/admin"),
            ("/x\\..\\admin", "/admin"),
            ("/.well-known/x", "/.well-known/x"),
            ("/a;b=1/c", "/a;b=1/c"),
            ("*", "*"),
        ] {
            match normalised(path) {
                Ok(found) => assert_eq!(found, normal, "{path}"),
                Err(error) => assert_eq!((error, normal), (PathError::AboveRoot, ""), "{path}"),
            }
        }
    }

    #[test]
    fn a_path_may_be_read_in_several_ways() {
        for (path, want) in [
            ("/a/b", &["/a/b"][..]),
            ("/a%2Bb%20c", &["/a+b c"]),
            ("/caf%C3%A9", &["/café"]),
            ("/x%2Fadmin", &["/x\0admin", "/x/admin"]),
            ("/x%2F..%2Fadmin", &["/admin", "/x\0..\0admin", "/x/../admin"]),
            ("/admin%3F.jpg", &["/admin", "/admin?.jpg"]),
            (
                "/p%2F..%2Fad%256Din",
                &["/ad%6Din", "/admin", "/p\0..\0ad%6Din", "/p/../ad%6Din", "/p/../admin"],
            ),
            ("/x%5C..%5Cadmin", &["/admin", "/x\\..\\admin"]),
            ("/admin;a=1/y", &["/admin/y", "/admin;a=1/y"]),
            ("/x/..;/admin", &["/admin", "/x/../admin", "/x/..;/admin"]),
            ("/x/%2E%2E%3Ba/admin", &["/admin", "/x/../admin", "/x/..;a/admin"]),
            ("/100%25", &["/100%"]),
            ("/%2561dmin", &["/%61dmin", "/admin"]),
            ("/x%252F..%252Fadmin", &["/admin", "/x%2F..%2Fadmin", "/x/../admin"]),
        ] {
            assert_eq!(readings(path).unwrap(), want, "{path}");
        }
        for path in ["/..%2Fadmin", "/%2F..%2Fx", "/x/..;/..;/y", "/%FF", "/%C0%AF", "/%250A", "/%25252561"] {
            assert_eq!(readings(path), None, "{path}");
        }
    }

    #[test]
    fn the_normal_form_is_its_own() {
        for path in ["/a//b/../c", "/%41%2f%3F/..//.", "\\a", "/a/%7e/é"] {
            let Ok(once) = normalised(path) else { continue };
            assert_eq!(normalised(&once), Ok(once.clone()), "{path}");
        }
    }

    #[test]
    fn what_could_mean_two_things_is_refused() {
        for (path, error) in [
            ("", PathError::Relative),
            ("a", PathError::Relative),
            ("/%", PathError::Encoding),
            ("/%4", PathError::Encoding),
            ("/%zz", PathError::Encoding),
            ("/%00", PathError::Character),
            ("/%0d%0a", PathError::Character),
            ("/é", PathError::Character),
            ("/a b", PathError::Character),
            ("/..", PathError::AboveRoot),
            ("/a/../../b", PathError::AboveRoot),
        ] {
            assert_eq!(normalised(path), Err(error), "{path}");
        }
    }
}
