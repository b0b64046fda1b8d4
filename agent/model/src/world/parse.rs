//! Reads expressions.

use std::time::Duration;

use super::expression::{Attribute, Comparison, ExpressionError, MAX_TEXT, Node, Test, Value};

/// Parentheses and the like within each other.
const MAX_DEPTH: usize = 32;

/// What an expression is, whatever it is asked of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Number,
    Flag,
    Time,
}

type Typed = (Node, Kind);
type Parsed<T> = Result<T, ExpressionError>;

pub(super) fn expression(text: &str) -> Parsed<Typed> {
    if text.len() > MAX_TEXT {
        return wrong(format!("is longer than {MAX_TEXT} bytes"));
    }
    let mut parser = Parser { tokens: tokens(text)?, at: 0, depth: 0 };
    let found = parser.choice()?;
    match parser.next() {
        None => Ok(found),
        Some(token) => wrong(format!("has {token:?} where it should end")),
    }
}

impl Attribute {
    fn named(path: &str) -> Option<Self> {
        let header = |name: &str| Some(Self::Header(name.to_owned()));
        Some(match path {
            "request.method" => Self::Method,
            "request.path" => Self::Path,
            "request.url_path" => Self::UrlPath,
            "request.query" => Self::Query,
            "request.host" => Self::Host,
            "request.scheme" => Self::Scheme,
            "request.protocol" => Self::Protocol,
            "request.useragent" => return header("user-agent"),
            "request.referer" => return header("referer"),
            "request.id" => return header("x-request-id"),
            "request.size" => Self::RequestSize,
            "request.duration" => Self::Duration,
            "response.code" => Self::Code,
            "response.grpc_status" => Self::GrpcStatus,
            "response.code_details" => Self::Details,
            "response.size" => Self::ResponseSize,
            "source.address" => Self::Source,
            "source.port" => Self::SourcePort,
            "destination.address" => Self::Destination,
            "destination.port" => Self::DestinationPort,
            "upstream.address" => Self::Upstream,
            "connection.mtls" => Self::Mtls,
            "connection.uri_san_peer_certificate" => Self::Principal,
            "connection.requested_server_name" => Self::Sni,
            _ => return None,
        })
    }

    fn kind(&self) -> Kind {
        match self {
            Self::RequestSize
            | Self::Code
            | Self::GrpcStatus
            | Self::ResponseSize
            | Self::SourcePort
            | Self::DestinationPort => Kind::Number,
            Self::Mtls => Kind::Flag,
            Self::Duration => Kind::Time,
            Self::Method
            | Self::Path
            | Self::UrlPath
            | Self::Query
            | Self::Host
            | Self::Scheme
            | Self::Protocol
            | Self::Header(_)
            | Self::Details
            | Self::Source
            | Self::Destination
            | Self::Upstream
            | Self::Principal
            | Self::Sni => Kind::Text,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    /// A name, with what follows it after dots.
    Name(String),
    Text(String),
    Number(i64),
    Sign(&'static str),
}

const SIGNS: [&str; 17] =
    ["&&", "||", "==", "!=", "<=", ">=", "<", ">", "!", "(", ")", "[", "]", ",", "?", ":", "."];

fn tokens(text: &str) -> Parsed<Vec<Token>> {
    let mut found = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let end = |more: fn(char) -> bool| rest.find(|c: char| !more(c)).unwrap_or(rest.len());
        let length = if first == '\'' || first == '"' {
            let (inner, length) = literal(rest, first)?;
            found.push(Token::Text(inner));
            length
        } else if first.is_ascii_digit()
            || (first == '-' && rest[1..].starts_with(|c: char| c.is_ascii_digit()))
        {
            let digits = rest[1..].find(|c: char| !c.is_ascii_digit()).map_or(rest.len(), |at| at + 1);
            let number = rest[..digits].parse();
            found.push(Token::Number(number.map_err(|_| problem("has a number that is too large"))?));
            digits
        } else if first.is_ascii_alphabetic() || first == '_' {
            let length = end(|c| c.is_ascii_alphanumeric() || c == '_');
            found.push(Token::Name(rest[..length].to_owned()));
            length
        } else {
            let sign = SIGNS.into_iter().find(|sign| rest.starts_with(sign));
            let sign = sign.ok_or_else(|| problem(format!("has {first:?}, which means nothing")))?;
            found.push(Token::Sign(sign));
            sign.len()
        };
        rest = rest[length..].trim_start();
    }
    Ok(found)
}

/// A text between quotes, and how long it is with these.
fn literal(text: &str, quote: char) -> Parsed<(String, usize)> {
    let mut found = String::new();
    let mut characters = text.char_indices().skip(1);
    while let Some((at, c)) = characters.next() {
        match c {
            '\\' => match characters.next() {
                Some((_, c @ ('\\' | '\'' | '"'))) => found.push(c),
                _ => return wrong("has a backslash before what needs none"),
            },
            c if c == quote => return Ok((found, at + 1)),
            c => found.push(c),
        }
    }
    wrong("has a text that does not end")
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
}

impl Parser {
    fn next(&mut self) -> Option<Token> {
        let token = self.tokens.get(self.at).cloned();
        self.at += 1;
        token
    }

    fn take(&mut self, sign: &str) -> bool {
        let is_there = matches!(self.tokens.get(self.at), Some(Token::Sign(found)) if *found == sign);
        self.at += usize::from(is_there);
        is_there
    }

    fn want(&mut self, sign: &str) -> Parsed<()> {
        if self.take(sign) { Ok(()) } else { wrong(format!("wants a {sign:?}")) }
    }

    /// `A ? B : C`
    fn choice(&mut self) -> Parsed<Typed> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return wrong("has too many parts within each other");
        }
        let condition = self.either()?;
        let found = if self.take("?") {
            let condition = flag(condition)?;
            let one = self.choice()?;
            self.want(":")?;
            let other = self.choice()?;
            if one.1 != other.1 {
                return wrong("chooses between what can't be compared");
            }
            (Node::Choose(condition.into(), one.0.into(), other.0.into()), one.1)
        } else {
            condition
        };
        self.depth -= 1;
        Ok(found)
    }

    fn either(&mut self) -> Parsed<Typed> {
        let mut found = self.both()?;
        while self.take("||") {
            let other = self.both()?;
            found = (Node::Or(flag(found)?.into(), flag(other)?.into()), Kind::Flag);
        }
        Ok(found)
    }

    fn both(&mut self) -> Parsed<Typed> {
        let mut found = self.comparison()?;
        while self.take("&&") {
            let other = self.comparison()?;
            found = (Node::And(flag(found)?.into(), flag(other)?.into()), Kind::Flag);
        }
        Ok(found)
    }

    fn comparison(&mut self) -> Parsed<Typed> {
        const COMPARISONS: [(&str, Comparison); 6] = [
            ("==", Comparison::Equal),
            ("!=", Comparison::Unequal),
            ("<=", Comparison::LessOrEqual),
            (">=", Comparison::GreaterOrEqual),
            ("<", Comparison::Less),
            (">", Comparison::Greater),
        ];
        let one = self.negation()?;
        if self.tokens.get(self.at) == Some(&Token::Name("in".to_owned())) {
            self.at += 1;
            return self.among(one);
        }
        let Some((_, how)) = COMPARISONS.into_iter().find(|(sign, _)| self.take(sign)) else {
            return Ok(one);
        };
        let other = self.negation()?;
        if one.1 != other.1 {
            return wrong("compares what can't be compared");
        }
        Ok((Node::Compare(one.0.into(), how, other.0.into()), Kind::Flag))
    }

    fn among(&mut self, one: Typed) -> Parsed<Typed> {
        if !self.take("[") {
            return match (one.0, self.path()?.as_str()) {
                (Node::Value(Value::Text(name)), "request.headers") => {
                    Ok((Node::Has(Attribute::Header(name.to_ascii_lowercase())), Kind::Flag))
                }
                _ => wrong("has an in without a list"),
            };
        }
        let mut list = Vec::new();
        while !self.take("]") {
            let (node, kind) = self.choice()?;
            if kind != one.1 {
                return wrong("compares what can't be compared");
            }
            list.push(node);
            if !self.take(",") {
                self.want("]")?;
                break;
            }
        }
        Ok((Node::In(one.0.into(), list), Kind::Flag))
    }

    fn negation(&mut self) -> Parsed<Typed> {
        let mut negations = 0;
        while self.take("!") {
            negations += 1;
        }
        let found = self.operand()?;
        match negations {
            0 => Ok(found),
            1 | 3 | 5 => Ok((Node::Not(flag(found)?.into()), Kind::Flag)),
            2 | 4 => Ok((flag(found)?, Kind::Flag)),
            _ => wrong("denies itself too often"),
        }
    }

    /// An attribute, a literal, a call, or something in parentheses, and what is asked of it.
    fn operand(&mut self) -> Parsed<Typed> {
        let mut found = match self.next() {
            Some(Token::Text(text)) => (Node::Value(Value::Text(text.into())), Kind::Text),
            Some(Token::Number(number)) => (Node::Value(Value::Number(number)), Kind::Number),
            Some(Token::Sign("(")) => {
                let found = self.choice()?;
                self.want(")")?;
                found
            }
            Some(Token::Name(name)) => self.named(&name)?,
            Some(token) => return wrong(format!("has {token:?} where something should be")),
            None => return wrong("ends too early"),
        };
        while self.take(".") {
            let Some(Token::Name(name)) = self.next() else { return wrong("has a dot before nothing") };
            found = self.test(found, &name)?;
        }
        Ok(found)
    }

    fn named(&mut self, name: &str) -> Parsed<Typed> {
        match name {
            "true" | "false" => return Ok((Node::Value(Value::Flag(name == "true")), Kind::Flag)),
            "has" => {
                self.want("(")?;
                let attribute = self.attribute()?;
                self.want(")")?;
                return Ok((Node::Has(attribute), Kind::Flag));
            }
            "string" => {
                self.want("(")?;
                let (inner, _) = self.choice()?;
                self.want(")")?;
                return Ok((Node::Text(inner.into()), Kind::Text));
            }
            "duration" => {
                self.want("(")?;
                let Some(Token::Text(text)) = self.next() else { return wrong("wants duration('1s')") };
                self.want(")")?;
                let time = time(&text).ok_or_else(|| problem(format!("{text:?} is no duration")))?;
                return Ok((Node::Value(Value::Time(time)), Kind::Time));
            }
            _ => {}
        }
        self.at -= 1;
        let attribute = self.attribute()?;
        let kind = attribute.kind();
        Ok((Node::Attribute(attribute), kind))
    }

    fn attribute(&mut self) -> Parsed<Attribute> {
        let path = self.path()?;
        if path == "request.headers" {
            self.want("[")?;
            let Some(Token::Text(name)) = self.next() else { return wrong("wants request.headers['name']") };
            self.want("]")?;
            return Ok(Attribute::Header(name.to_ascii_lowercase()));
        }
        let unknown = || problem(format!("{path} is not known here"));
        Attribute::named(&path).ok_or_else(unknown)
    }

    /// Two names: all attributes have those.
    fn path(&mut self) -> Parsed<String> {
        let Some(Token::Name(first)) = self.next() else { return wrong("wants an attribute") };
        self.want(".").map_err(|_| problem(format!("{first} is not known here")))?;
        let Some(Token::Name(second)) = self.next() else { return wrong("has a dot before nothing") };
        Ok(format!("{first}.{second}"))
    }

    fn test(&mut self, (node, kind): Typed, name: &str) -> Parsed<Typed> {
        self.want("(")?;
        let Some(Token::Text(text)) = self.next() else { return wrong(format!("wants {name}('text')")) };
        self.want(")")?;
        if kind != Kind::Text {
            return wrong(format!("asks for {name} of what is no text"));
        }
        let test = match name {
            "contains" => Test::Contains(text),
            "startsWith" => Test::StartsWith(text),
            "endsWith" => Test::EndsWith(text),
            "matches" => Test::Matches(text.parse().map_err(|error| problem(format!("{text:?} {error}")))?),
            other => return wrong(format!("{other} is not known here")),
        };
        Ok((Node::Test(node.into(), test), Kind::Flag))
    }
}

fn flag((node, kind): Typed) -> Parsed<Node> {
    if kind == Kind::Flag { Ok(node) } else { wrong("takes what is neither true nor false for that") }
}

/// As CEL writes durations of one unit.
fn time(text: &str) -> Option<Duration> {
    let unit_at = text.find(|c: char| c.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at(unit_at);
    let number: f64 = number.parse().ok()?;
    let seconds = match unit {
        "h" => 3600.0,
        "m" => 60.0,
        "s" => 1.0,
        "ms" => 1e-3,
        "us" => 1e-6,
        "ns" => 1e-9,
        _ => return None,
    };
    Duration::try_from_secs_f64(number * seconds).ok()
}

fn problem(text: impl Into<String>) -> ExpressionError {
    ExpressionError(text.into())
}

fn wrong<T>(text: impl Into<String>) -> Parsed<T> {
    Err(problem(text))
}
