//! Regular expressions as Envoy has them: RE2's (<https://github.com/google/re2/wiki/Syntax>).

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use regex_syntax::ast::parse::Parser;
use regex_syntax::ast::{
    AssertionKind, Ast, ClassPerl, ClassPerlKind, ClassSetBinaryOp, ClassSetItem, Flag, Flags, FlagsItemKind,
    GroupKind, Span, Visitor, visit,
};

/// A regular expression of RE2's syntax that has to match a whole text, in linear time.
#[derive(Clone)]
pub struct Regex {
    text: String,
    part: regex::Regex,
    whole: regex::Regex,
}

/// The compiled size of one expression: far above what people write, far below what would exhaust memory.
const MAX_REGEX: usize = 256 << 10;
/// What is written may be this long.
const MAX_REGEX_TEXT: usize = 4096;

impl Regex {
    /// Whether it matches all of the text.
    pub fn matches(&self, text: &str) -> bool {
        self.whole.is_match(text)
    }

    /// Whether it matches a part of the text.
    pub fn is_in(&self, text: &str) -> bool {
        self.part.is_match(text)
    }

    /// Replaces every part that the expression matches; `\1` stands for a group.
    pub fn replaced(&self, text: &str, replacement: &str) -> String {
        self.part.replace_all(text, rewritten(replacement).as_str()).into_owned()
    }
}

/// RE2 writes `\1` where the crate writes `${1}`.
fn rewritten(replacement: &str) -> String {
    let mut found = String::with_capacity(replacement.len());
    let mut characters = replacement.chars();
    while let Some(c) = characters.next() {
        match c {
            '$' => found.push_str("$$"),
            '\\' => match characters.next() {
                Some(digit @ '0'..='9') => found.extend(["${", digit.encode_utf8(&mut [0; 4]), "}"]),
                Some(other) => found.push(other),
                None => {}
            },
            c => found.push(c),
        }
    }
    found
}

fn builder(text: &str) -> regex::RegexBuilder {
    let mut builder = regex::RegexBuilder::new(text);
    builder.size_limit(MAX_REGEX).dfa_size_limit(MAX_REGEX);
    builder
}

impl FromStr for Regex {
    type Err = RegexError;

    fn from_str(text: &str) -> Result<Self, RegexError> {
        if text.len() > MAX_REGEX_TEXT {
            return Err(RegexError(format!("is longer than {MAX_REGEX_TEXT} bytes")));
        }
        let meant = as_re2_means(text).map_err(|why| wrong(&why))?;
        let build = |text: &str| builder(text).build().map_err(|error| wrong(&last_line(&error)));
        // By itself first: a parenthesis too many must not pair with ours.
        let part = build(&meant)?;
        let whole = build(&format!(r"\A(?:{meant})\z"))?;
        Ok(Self { text: text.to_owned(), part, whole })
    }
}

fn wrong(why: &str) -> RegexError {
    RegexError(format!("is no regular expression that RE2 takes: {why}"))
}

/// What an error of the crate's says, without the expression.
fn last_line(error: &impl ToString) -> String {
    error.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

impl PartialEq for Regex {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Regex {}

impl fmt::Debug for Regex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.text)
    }
}

impl fmt::Display for Regex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The text is no regular expression.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RegexError(String);

/// The same for the crate, which takes some of it for something else: `\d`, `\s`, `\w` and `\b` are ASCII's in RE2, and
/// Unicode's there. What RE2 takes for something else, such as for the characters that it is written with, is refused with
/// what it is; some of what it has not at all means here what it looks like, such as `\u0041` and `a{1001}`.
fn as_re2_means(text: &str) -> Result<String, String> {
    let parsed = Parser::new().parse(text).map_err(|error| last_line(&error))?;
    let edits = visit(&parsed, Reading { text, edits: Vec::new() }).map_err(str::to_owned)?;
    let (mut meant, mut from) = (String::with_capacity(text.len()), 0);
    for (Range { start, end }, instead) in edits {
        meant.push_str(&text[from..start]);
        meant.push_str(instead);
        from = end;
    }
    meant.push_str(&text[from..]);
    Ok(meant)
}

struct Reading<'a> {
    text: &'a str,
    /// What is to be written instead, from left to right.
    edits: Vec<(Range<usize>, &'static str)>,
}

impl Reading<'_> {
    fn instead(&mut self, span: Span, text: &'static str) {
        self.edits.push((span.start.offset..span.end.offset, text));
    }

    fn written(&self, span: Span) -> &str {
        self.text.get(span.start.offset..span.end.offset).unwrap_or_default()
    }

    fn class(&mut self, class: &ClassPerl) {
        let ascii = match (&class.kind, class.negated) {
            (ClassPerlKind::Digit, false) => "[0-9]",
            (ClassPerlKind::Digit, true) => "[^0-9]",
            (ClassPerlKind::Space, false) => r"[\t\n\f\r ]",
            (ClassPerlKind::Space, true) => r"[^\t\n\f\r ]",
            (ClassPerlKind::Word, false) => "[0-9A-Za-z_]",
            (ClassPerlKind::Word, true) => "[^0-9A-Za-z_]",
        };
        self.instead(class.span, ascii);
    }
}

const NO_SETS: &str = "it knows no &&, -- and ~~ in a class: write each of the two as \\&, \\- or \\~";

fn flags(flags: &Flags) -> Result<(), &'static str> {
    let known = |kind: &FlagsItemKind| match kind {
        FlagsItemKind::Negation => true,
        FlagsItemKind::Flag(flag) => {
            matches!(
                flag,
                Flag::CaseInsensitive | Flag::MultiLine | Flag::DotMatchesNewLine | Flag::SwapGreed
            )
        }
    };
    match flags.items.iter().all(|item| known(&item.kind)) {
        true => Ok(()),
        false => Err("its flags are i, m, s and U"),
    }
}

impl Visitor for Reading<'_> {
    type Output = Vec<(Range<usize>, &'static str)>;
    type Err = &'static str;

    fn finish(self) -> Result<Self::Output, Self::Err> {
        Ok(self.edits)
    }

    fn visit_pre(&mut self, ast: &Ast) -> Result<(), Self::Err> {
        match ast {
            Ast::ClassPerl(class) => self.class(class),
            Ast::Assertion(assertion) => match assertion.kind {
                AssertionKind::WordBoundary => self.instead(assertion.span, r"(?-u:\b)"),
                AssertionKind::NotWordBoundary => return Err(r"\B is not supported"),
                AssertionKind::StartLine
                | AssertionKind::EndLine
                | AssertionKind::StartText
                | AssertionKind::EndText => {}
                _ => return Err(r"of a word's boundaries it has \b"),
            },
            // The crate takes both for a `-`, and RE2 for the first of a range.
            Ast::ClassBracketed(class)
                if self.written(class.span).trim_start_matches(['[', '^']).starts_with("--") =>
            {
                return Err(NO_SETS);
            }
            Ast::Repetition(repetition) if self.written(repetition.op.span).contains(char::is_whitespace) => {
                return Err("how often something is repeated is written without spaces");
            }
            Ast::Flags(set) => flags(&set.flags)?,
            Ast::Group(group) => {
                if let GroupKind::NonCapturing(set) = &group.kind {
                    flags(set)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn visit_class_set_item_pre(&mut self, item: &ClassSetItem) -> Result<(), Self::Err> {
        match item {
            ClassSetItem::Perl(class) => self.class(class),
            ClassSetItem::Bracketed(_) => return Err("a bracket in a class is written \\["),
            _ => {}
        }
        Ok(())
    }

    fn visit_class_set_binary_op_pre(&mut self, _: &ClassSetBinaryOp) -> Result<(), Self::Err> {
        Err(NO_SETS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_regular_expression_matches_the_whole_text_in_linear_time() {
        let regex: Regex = "/a|/b.*".parse().unwrap();
        assert!(regex.matches("/a") && regex.matches("/bc"));
        assert!(!regex.matches("/ab") && !regex.matches("x/a") && !regex.matches("/a\n"));
        let long = "a".repeat(10_000) + "!";
        assert!(!"(a+)+".parse::<Regex>().unwrap().matches(&long));
    }

    #[test]
    fn what_re2_does_not_take_or_is_too_large_is_refused() {
        for text in ["(", "a)|(b", r"(?=a)", r"(a)\1", "((a{1000}){1000}){1000}", &"a".repeat(5000)] {
            assert!(text.parse::<Regex>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_small_in_ascii_is_taken() {
        for text in [r"[\w-]{1,63}", r"\w{200}", r"(?:\w+\.){3}\w+", r"\w\w\w\w\w\w\w\w\w\w"] {
            text.parse::<Regex>().unwrap();
        }
    }

    #[test]
    fn groups_are_written_with_a_backslash() {
        let regex: Regex = r"^/v1/(.*)/(\d+)$".parse().unwrap();
        assert_eq!(regex.replaced("/v1/users/7", r"/\2/\1$1"), "/7/users$1");
    }

    #[test]
    fn classes_are_those_of_ascii() {
        for (regex, yes, no) in [
            (r"\d+", "07", "٣"),
            (r"\D", "٣", "3"),
            (r"[\d.]+", "1.5", "٣"),
            (r"[^\d]", "٣", "3"),
            (r"[\D]", "٣", "3"),
            (r"\w+", "az_AZ9", "é"),
            (r"[^\w-]", "é", "-"),
            (r"\W", "é", "e"),
            (r"\s", "\t", "\u{a0}"),
            (r"\S", "\u{a0}", " "),
            (r"a\s", "a ", "a\u{b}"),
            (r"(?s).\b.", "aé", "ab"),
            (r"\\d", r"\d", "3"),
            (r"\[\d", "[3", "[٣"),
            (r"(?i)é\d", "É1", "É٣"),
            (r"\pN", "٣", "x"),
            ("[[:digit:]]", "3", "٣"),
        ] {
            let parsed: Regex = regex.parse().unwrap();
            assert!(parsed.matches(yes) && !parsed.matches(no), "{regex}");
            assert_eq!(parsed.to_string(), regex);
        }
    }

    #[test]
    fn what_re2_takes_for_something_else_is_refused() {
        for (regex, why) in [
            ("[a-z&&b]", "&&"),
            ("[a-z--b]", "--"),
            ("[--/]", "--"),
            ("[^--/]", "--"),
            ("[a[b]]", "bracket"),
            ("a{ 2 }", "spaces"),
            ("a{1, 2}", "spaces"),
            ("(?x)a b", "flags"),
            ("(?u:a)", "flags"),
            (r"\B", r"\B"),
            (r"\b{start}a", r"\b"),
            (r"\<a", r"\b"),
        ] {
            let error = regex.parse::<Regex>().unwrap_err().to_string();
            assert!(error.contains(why), "{regex}: {error}");
        }
        for regex in
            ["(?i)a", "(?i:a)b", "(?ms-U:a.b)", "(?P<name>a)", "a{0,3}", r"[\[&\-~-]", "[a&b]", "[-a]"]
        {
            regex.parse::<Regex>().unwrap();
        }
    }
}
