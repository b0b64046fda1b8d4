use super::{Problem, Tree};

const MAX_LINES: usize = 600;

/// No Rust file grows past what one reads in a sitting.
pub(super) fn length(tree: &Tree) -> Vec<Problem> {
    let lengths = tree.ending_in(".rs").map(|(path, text)| (path, text.lines().count()));
    let long = lengths.filter(|(_, lines)| *lines > MAX_LINES);
    long.map(|(path, lines)| {
        Problem::new(path, MAX_LINES + 1, format!("{lines} lines, more than {MAX_LINES}: make it two files"))
    })
    .collect()
}

/// Where unsafe code may be.
const UNSAFE_PLACES: &[&str] = &["ebpf/src/", "agent/datapath/", "agent/proxy/src/socket.rs", "tests/"];
/// The crate that has one unsafe file, and so can't forbid it whole.
const DENIES: &str = "agent/proxy/";

/// Unsafe code stays in its places, and every other crate forbids it.
pub(super) fn unsafe_code(tree: &Tree) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (path, text) in tree.ending_in(".rs") {
        if UNSAFE_PLACES.iter().any(|place| path.starts_with(place)) {
            continue;
        }
        for (index, line) in code_only(text).lines().enumerate() {
            if words(line).any(|word| word == "unsafe") {
                let what = format!("unsafe code belongs in {}", UNSAFE_PLACES.join(", "));
                problems.push(Problem::new(path, index + 1, what));
            }
        }
        let wanted =
            if path.starts_with(DENIES) { "#![deny(unsafe_code)]" } else { "#![forbid(unsafe_code)]" };
        if (path.ends_with("src/lib.rs") || path.ends_with("src/main.rs")) && !text.contains(wanted) {
            problems.push(Problem::new(path, 1, format!("add `{wanted}`")));
        }
    }
    problems
}

/// Nothing unfinished is committed.
pub(super) fn unfinished(tree: &Tree) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (path, text) in tree.ending_in(".rs") {
        for (index, line) in code_only(text).lines().enumerate() {
            let packed: String = line.split_whitespace().collect();
            if packed.contains("todo!") || packed.contains("unimplemented!") {
                problems.push(Problem::new(
                    path,
                    index + 1,
                    "finish it, or return an error which says what is missing",
                ));
            }
            if packed.contains("#[ignore") {
                problems.push(Problem::new(
                    path,
                    index + 1,
                    "an ignored test proves nothing: make it pass or remove it",
                ));
            }
        }
    }
    problems
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphanumeric() && c != '_')
}

/// The code with comments and the insides of literals blanked; lines keep their numbers.
pub(super) fn code_only(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skipped = literal_or_comment(rest, code.chars().next_back());
        if skipped == 0 {
            code.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            code.extend(rest[..skipped].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            rest = &rest[skipped..];
        }
    }
    code
}

/// The length of the comment or literal that `text` begins with, else 0.
fn literal_or_comment(text: &str, before: Option<char>) -> usize {
    if text.starts_with("//") {
        return text.find('\n').unwrap_or(text.len());
    }
    if text.starts_with("/*") {
        return block_comment(text);
    }
    if text.starts_with('"') {
        return quoted(text, '"');
    }
    let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    if let Some(raw) = text.strip_prefix('r').filter(|_| !in_word || before == Some('b')) {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        if raw[hashes..].starts_with('"') {
            let end = format!("\"{}", "#".repeat(hashes));
            let start = 1 + hashes + 1;
            return text[start..].find(&end).map_or(text.len(), |at| start + at + end.len());
        }
    }
    // `'a'` and `'\n'` are literals, `'a` is a lifetime.
    let mut chars = text.chars();
    match (chars.next(), chars.next(), chars.next()) {
        (Some('\''), Some('\\'), _) => quoted(text, '\''),
        (Some('\''), Some(c), Some('\'')) => 2 + c.len_utf8(),
        _ => 0,
    }
}

fn quoted(text: &str, end: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == end => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Block comments nest.
fn block_comment(text: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < text.len() {
        let rest = &text.as_bytes()[at..];
        match rest {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::super::tree;
    use super::*;

    #[test]
    fn a_long_file_is_found() {
        assert_eq!(length(&tree(&[("a.rs", &"\n".repeat(600)), ("b.md", &"\n".repeat(900))])), []);
        assert_eq!(length(&tree(&[("a.rs", &"\n".repeat(601))])).len(), 1);
    }

    #[test]
    fn unsafe_code_is_found_outside_its_places() {
        let bad = "fn f() {\n    unsafe { g() }\n}\n";
        let problems = unsafe_code(&tree(&[("agent/kube/src/a.rs", bad)]));
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].line, 2);
        for place in
            ["ebpf/src/a.rs", "agent/datapath/src/a.rs", "agent/proxy/src/socket.rs", "tests/src/a.rs"]
        {
            assert_eq!(unsafe_code(&tree(&[(place, bad)])), [], "{place}");
        }
        assert_eq!(unsafe_code(&tree(&[("agent/proxy/src/tunnel.rs", bad)])).len(), 1);
    }

    #[test]
    fn crates_forbid_unsafe_code() {
        assert_eq!(unsafe_code(&tree(&[("agent/kube/src/lib.rs", "")])).len(), 1);
        assert_eq!(unsafe_code(&tree(&[("agent/kube/src/lib.rs", "#![forbid(unsafe_code)]\n")])), []);
        assert_eq!(unsafe_code(&tree(&[("agent/proxy/src/lib.rs", "#![deny(unsafe_code)]\n")])), []);
        assert_eq!(unsafe_code(&tree(&[("agent/proxy/src/lib.rs", "")])).len(), 1);
    }

    #[test]
    fn unfinished_code_is_found() {
        for bad in ["todo!()", "unimplemented!(\"x\")", "#[ignore]", "# [ ignore = \"needs it\" ]"] {
            assert_eq!(unfinished(&tree(&[("a.rs", bad)])).len(), 1, "{bad}");
        }
    }

    #[test]
    fn comments_and_literals_are_no_code() {
        for fine in [
            "// unsafe todo!()",
            "/* unsafe /* todo!() */ unsafe */",
            "let a = \"unsafe \\\" todo!()\";",
            "let a = r#\"unsafe \" todo!()\"#;",
            "let a = br\"unsafe\";",
            "let a = b\"unsafe\";",
            "let a: &'static str = \"unsafe\";",
            "#![deny(unsafe_code)]",
        ] {
            let tree = tree(&[("a.rs", fine)]);
            assert_eq!((unsafe_code(&tree), unfinished(&tree)), (vec![], vec![]), "{fine}");
        }
    }

    #[test]
    fn code_after_a_literal_is_code() {
        for bad in [
            "let q = '\"'; unsafe {}",
            "let q = '\\''; unsafe {}",
            "fn f<'a>() { unsafe {} } // '",
            "\"\" ; unsafe {}",
        ] {
            assert_eq!(unsafe_code(&tree(&[("a.rs", bad)])).len(), 1, "{bad}");
        }
    }
}
