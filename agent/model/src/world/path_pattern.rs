use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::security::Pattern;

/// What a request's path must look like: a [`Pattern`], or a template of segments. It is compared with what paths mean:
/// `%41` is `A`, in both.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PathPattern {
    /// `/x`, `/x*`, `*x` or `*`.
    Text(Pattern),
    /// `/x/{*}/y/{**}`: the segments before `{**}`, and those behind it, if it is there.
    Template {
        /// One by one.
        before: Vec<Segment>,
        /// What ends the path. Before it there is one segment or more; the last of all may be empty.
        after: Option<Vec<String>>,
    },
}

/// A segment of a template.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Segment {
    /// This text.
    Literal(String),
    /// `{*}`: any text but the empty one.
    Any,
}

/// Why a text is no pattern of paths.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathPatternError {
    /// It is no pattern at all.
    #[error(transparent)]
    Pattern(#[from] super::security::PatternError),
    /// No path begins like this.
    #[error("{0:?} matches no path: begin it with a slash, or with a '*'")]
    Relative(String),
    /// No path looks like this once it is normalised.
    #[error(
        "{0:?} matches no path: write it without empty segments, without '.' and '..' as segments, and without '\\', '?' and '#'"
    )]
    Abnormal(String),
    /// What `%` encodes is no text, or a slash, which means one thing to one server and another to the next.
    #[error("{0:?} has a '%' that encodes no character, or a slash; write %25 for the character itself")]
    Encoding(String),
    /// Braces or stars out of place.
    #[error(
        "{0:?} is no template: write /segments, of which {{*}} stands for one and {{**}}, with neither behind it, for one or more"
    )]
    Template(String),
}

impl PathPattern {
    /// Whether a path, decoded, looks like this.
    pub fn matches(&self, path: &str) -> bool {
        let (before, after) = match self {
            PathPattern::Text(pattern) => return pattern.matches(path),
            PathPattern::Template { before, after } => (before, after),
        };
        let Some(path) = path.strip_prefix('/') else { return false };
        let mut segments = path.split('/');
        let is = |wanted: &Segment, segment: &str| match wanted {
            Segment::Literal(text) => text == segment,
            Segment::Any => !segment.is_empty(),
        };
        if !before.iter().all(|wanted| segments.next().is_some_and(|segment| is(wanted, segment))) {
            return false;
        }
        let Some(after) = after else { return segments.next().is_none() };
        // Something must be left for `{**}`.
        let mut last = segments.rev();
        after.iter().rev().all(|wanted| last.next() == Some(wanted)) && last.next().is_some()
    }
}

impl FromStr for PathPattern {
    type Err = PathPatternError;

    fn from_str(text: &str) -> Result<Self, PathPatternError> {
        if text.contains(['{', '}']) {
            return template(text);
        }
        let pattern = match text.parse()? {
            Pattern::Present => Pattern::Present,
            Pattern::Exact(whole) => Pattern::Exact(literal(&whole, text)?),
            Pattern::Prefix(start) => Pattern::Prefix(literal(&start, text)?),
            Pattern::Suffix(end) => Pattern::Suffix(literal(&end, text)?),
        };
        match &pattern {
            Pattern::Exact(start) | Pattern::Prefix(start) if !start.starts_with('/') => {
                return Err(PathPatternError::Relative(text.to_owned()));
            }
            Pattern::Exact(whole) => normal(whole, text)?,
            Pattern::Prefix(start) => normal(&format!("{start}x"), text)?,
            Pattern::Suffix(end) => normal(&format!("x{end}"), text)?,
            Pattern::Present => {}
        }
        Ok(PathPattern::Text(pattern))
    }
}

fn template(text: &str) -> Result<PathPattern, PathPatternError> {
    let wrong = || PathPatternError::Template(text.to_owned());
    let mut before = Vec::new();
    let mut after: Option<Vec<String>> = None;
    for segment in text.strip_prefix('/').ok_or_else(wrong)?.split('/') {
        match (segment, &mut after) {
            ("{*}", None) => before.push(Segment::Any),
            ("{**}", None) => after = Some(Vec::new()),
            _ if segment.contains(['{', '}', '*']) => return Err(wrong()),
            (segment, None) => before.push(Segment::Literal(literal(segment, text)?)),
            (segment, Some(after)) => after.push(literal(segment, text)?),
        }
    }
    normal(&literal(&text.replace(['{', '*', '}'], "x"), text)?, text)?;
    Ok(PathPattern::Template { before, after })
}

/// What a part of a pattern means.
fn literal(part: &str, whole: &str) -> Result<String, PathPatternError> {
    let wrong = || PathPatternError::Encoding(whole.to_owned());
    let mut found = Vec::with_capacity(part.len());
    let mut bytes = part.bytes();
    while let Some(byte) = bytes.next() {
        let mut digit = || bytes.next().and_then(|byte| char::from(byte).to_digit(16));
        found.push(match byte {
            b'%' => {
                let (high, low) = (digit().ok_or_else(wrong)?, digit().ok_or_else(wrong)?);
                u8::try_from(high << 4 | low).map_err(|_| wrong())?
            }
            byte => byte,
        });
    }
    let text = String::from_utf8(found).map_err(|_| wrong())?;
    let slashes = |text: &str| text.matches(['/', '\\']).count();
    (slashes(&text) == slashes(part)).then_some(text).ok_or_else(wrong)
}

/// Whether a text could be (part of) a path in its normal form.
fn normal(text: &str, whole: &str) -> Result<(), PathPatternError> {
    let last = text.split('/').count() - 1;
    let odd = |c: char| c.is_control() || matches!(c, '\\' | '?' | '#');
    let abnormal = |(index, segment): (usize, &str)| {
        let inner = index != 0 && index != last;
        (inner && segment.is_empty()) || matches!(segment, "." | "..") || segment.contains(odd)
    };
    if text.split('/').enumerate().any(abnormal) {
        return Err(PathPatternError::Abnormal(whole.to_owned()));
    }
    Ok(())
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (before, after) = match self {
            PathPattern::Text(pattern) => return pattern.fmt(f),
            PathPattern::Template { before, after } => (before, after),
        };
        for segment in before {
            match segment {
                Segment::Literal(text) => write!(f, "/{text}")?,
                Segment::Any => f.write_str("/{*}")?,
            }
        }
        let Some(after) = after else { return Ok(()) };
        f.write_str("/{**}")?;
        after.iter().try_for_each(|text| write!(f, "/{text}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_stand_for_segments() {
        for (template, path, wanted) in [
            ("/users/{*}", "/users/7", true),
            ("/users/{*}", "/users/", false),
            ("/users/{*}", "/users/7/x", false),
            ("/users/{**}", "/users/7/x", true),
            ("/users/{**}", "/users/", true),
            ("/users/{**}", "/users", false),
            ("/a/{**}/z", "/a/b/c/z", true),
            ("/a/{**}/z", "/a/z", false),
            ("/a/{**}/z", "/a/b/c", false),
            ("/a/{*}/{**}", "/a/b/", true),
            ("/a/{*}/{**}", "/a/b", false),
            ("/a/{**}/", "/a/b/", true),
            ("/a/{**}/", "/a/b", false),
            ("/a%20b/{*}", "/a b/c", true),
        ] {
            let pattern: PathPattern = template.parse().unwrap();
            assert_eq!(pattern.matches(path), wanted, "{template} {path}");
        }
    }

    #[test]
    fn texts_mean_what_they_encode() {
        for (text, path) in [
            ("/a%62c", "/abc"),
            ("/caf%C3%A9", "/café"),
            ("/café*", "/café/x"),
            ("*.jp%67", "/x.jpg"),
            ("*/", "/a/"),
            ("*", "*"),
        ] {
            assert!(text.parse::<PathPattern>().unwrap().matches(path), "{text}");
        }
    }

    #[test]
    fn what_matches_no_path_is_refused() {
        for text in [
            "",
            "a",
            "a*",
            "*a*",
            "/a//b",
            "/a/./b",
            "/a/..",
            "/a/../b*",
            "*//b",
            "/a\\b",
            "/a?b=1",
            "/a#b",
            "/%zz",
            "/%",
            "/%FF",
            "/a%2Fb",
            "/a%5cb*",
            "/%2E%2E/{*}",
            "/%00/{*}",
            "/%00",
            "{*}",
            "/a/{*",
            "/a/{*}.html",
            "/a/{x}",
            "/a/*/{*}",
            "/{**}/{*}",
            "/{**}/a/{**}",
            "/a//{*}",
            "/a/../{*}",
        ] {
            assert!(text.parse::<PathPattern>().is_err(), "{text}");
        }
    }

    #[test]
    fn shown_as_written() {
        for text in ["/a", "/a*", "*a", "*", "/a/{*}/b", "/a/{**}", "/a/{**}/z"] {
            assert_eq!(text.parse::<PathPattern>().unwrap().to_string(), text);
        }
    }
}
