//! The path of a request, which has one form for rules, policies and servers.
#![no_main]

use libfuzzer_sys::fuzz_target;
use orlop_model::http::normalised;

fuzz_target!(|path: &str| {
    let Ok(normal) = normalised(path) else { return };
    assert_eq!(normalised(&normal).as_deref(), Ok(&*normal), "it has another form");
    if normal == "*" {
        return;
    }
    let mut segments: Vec<_> = normal.strip_prefix('/').expect("it is absolute").split('/').collect();
    // After a slash at the end there is nothing.
    segments.pop_if(|last| last.is_empty());
    assert!(segments.iter().all(|segment| !matches!(*segment, "" | "." | "..")), "{normal}");
    assert!(normal.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\'), "{normal}");
    for encoded in normal.split('%').skip(1) {
        let digits = encoded.get(..2).expect("there are two digits");
        assert!(digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'A'..=b'F')), "{normal}");
        let byte = u8::from_str_radix(digits, 16).expect("they are");
        assert!(!byte.is_ascii_alphanumeric() && !b"-._~".contains(&byte), "{normal} need not encode that");
    }
    // What is decoded is the same, segment by segment, to whoever resolves dots and slashes only.
    assert_eq!(decoded(&segments), decoded(&reference(path)));
});

/// The segments of a path, one at a time. An encoded dot is one.
fn reference(path: &str) -> Vec<String> {
    let dots = path.replace("%2e", ".").replace("%2E", ".");
    let mut found: Vec<String> = Vec::new();
    for segment in dots.split(['/', '\\']) {
        match segment {
            "" | "." => {}
            ".." => drop(found.pop()),
            segment => found.push(segment.to_owned()),
        }
    }
    found
}

fn decoded<T: AsRef<str>>(segments: &[T]) -> Vec<Vec<u8>> {
    let of_segment = |segment: &T| {
        let mut parts = segment.as_ref().split('%');
        let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
        for part in parts {
            let (digits, rest) = part.split_at(2);
            bytes.push(u8::from_str_radix(digits, 16).expect("they are hexadecimal"));
            bytes.extend(rest.bytes());
        }
        bytes
    };
    segments.iter().map(of_segment).collect()
}
