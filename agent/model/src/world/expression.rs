//! The part of CEL (the Common Expression Language) that access logs are filtered by and tags of metrics are made of:
//! attributes of Envoy, literals, comparisons, logic, and tests of texts. Types are checked when it is read; what it
//! costs to ask one is bounded by its length.

use std::borrow::Cow;
use std::str::FromStr;
use std::time::Duration;

use super::parse::{self, Kind};
use super::routing::Regex;

/// What is written may be this long.
pub(super) const MAX_TEXT: usize = 1024;

/// An expression, ready to be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expression {
    text: String,
    root: Node,
    kind: Kind,
}

/// Something that is known of a request or a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Attribute {
    /// `request.method`
    Method,
    /// `request.path`: with the query.
    Path,
    /// `request.url_path`: without it.
    UrlPath,
    /// `request.query`
    Query,
    /// `request.host`
    Host,
    /// `request.scheme`
    Scheme,
    /// `request.protocol`
    Protocol,
    /// `request.headers['name']`, `request.useragent`, `request.referer`, `request.id`; in lower case.
    Header(String),
    /// `request.size`, in bytes.
    RequestSize,
    /// `request.duration`
    Duration,
    /// `response.code`
    Code,
    /// `response.grpc_status`
    GrpcStatus,
    /// `response.code_details`: the reason, where there is one.
    Details,
    /// `response.size`, in bytes.
    ResponseSize,
    /// `source.address`
    Source,
    /// `source.port`
    SourcePort,
    /// `destination.address`
    Destination,
    /// `destination.port`
    DestinationPort,
    /// `upstream.address`
    Upstream,
    /// `connection.mtls`
    Mtls,
    /// `connection.uri_san_peer_certificate`: the client's identity.
    Principal,
    /// `connection.requested_server_name`
    Sni,
}

/// What an attribute is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// A text.
    Text(Cow<'a, str>),
    /// A number.
    Number(i64),
    /// True or false.
    Flag(bool),
    /// How long something took.
    Time(Duration),
}

/// Who knows attributes.
pub trait Attributes {
    /// The attribute, where it is there: of the kind that [`Attribute::kind`] says.
    fn get(&self, attribute: &Attribute) -> Option<Value<'_>>;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Node {
    Value(Value<'static>),
    Attribute(Attribute),
    Has(Attribute),
    Not(Box<Node>),
    And(Box<Node>, Box<Node>),
    Or(Box<Node>, Box<Node>),
    Compare(Box<Node>, Comparison, Box<Node>),
    In(Box<Node>, Vec<Node>),
    Test(Box<Node>, Test),
    Text(Box<Node>),
    Choose(Box<Node>, Box<Node>, Box<Node>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Test {
    Contains(String),
    StartsWith(String),
    EndsWith(String),
    Matches(Regex),
}

/// The text is no expression of the part of CEL that is understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ExpressionError(pub(super) String);

impl FromStr for Expression {
    type Err = ExpressionError;

    fn from_str(text: &str) -> Result<Self, ExpressionError> {
        let (root, kind) = parse::expression(text)?;
        Ok(Self { text: text.to_owned(), root, kind })
    }
}

impl Expression {
    /// As it is written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether it is true or false, and nothing else.
    pub fn is_condition(&self) -> bool {
        self.kind == Kind::Flag
    }

    /// The headers that it asks for.
    pub fn headers(&self) -> Vec<&str> {
        let mut found = Vec::new();
        self.root.headers(&mut found);
        found
    }

    /// Whether it holds. Not where it depends on what is not there, as Envoy has it.
    pub fn holds(&self, of: &dyn Attributes) -> bool {
        self.root.value(of) == Some(Value::Flag(true))
    }

    /// What it is, as a text; `None` where it depends on what is not there.
    pub fn text_of(&self, of: &dyn Attributes) -> Option<String> {
        self.root.value(of).map(|value| value.into_text())
    }
}

impl Node {
    fn headers<'n>(&'n self, found: &mut Vec<&'n str>) {
        match self {
            Self::Attribute(Attribute::Header(name)) | Self::Has(Attribute::Header(name)) => found.push(name),
            Self::Value(_) | Self::Attribute(_) | Self::Has(_) => {}
            Self::Not(inner) | Self::Test(inner, _) | Self::Text(inner) => inner.headers(found),
            Self::And(one, other) | Self::Or(one, other) | Self::Compare(one, _, other) => {
                [one, other].into_iter().for_each(|node| node.headers(found));
            }
            Self::In(one, list) => {
                list.iter().chain([&**one]).for_each(|node| node.headers(found));
            }
            Self::Choose(condition, one, other) => {
                [condition, one, other].into_iter().for_each(|node| node.headers(found));
            }
        }
    }

    /// `None` is CEL's error: something is not there.
    fn value<'v>(&'v self, of: &'v dyn Attributes) -> Option<Value<'v>> {
        let flag = |node: &Self| match node.value(of)? {
            Value::Flag(flag) => Some(flag),
            _ => None,
        };
        Some(match self {
            Self::Value(value) => value.clone(),
            Self::Attribute(attribute) => of.get(attribute)?,
            Self::Has(attribute) => Value::Flag(of.get(attribute).is_some()),
            Self::Not(inner) => Value::Flag(!flag(inner)?),
            // One side may decide where the other can't be told.
            Self::And(one, other) => match flag(one) {
                Some(false) => Value::Flag(false),
                Some(true) => Value::Flag(flag(other)?),
                None => Value::Flag(flag(other).filter(|flag| !flag)?),
            },
            Self::Or(one, other) => match flag(one) {
                Some(true) => Value::Flag(true),
                Some(false) => Value::Flag(flag(other)?),
                None => Value::Flag(flag(other).filter(|flag| *flag)?),
            },
            Self::Compare(one, how, other) => Value::Flag(how.holds(&one.value(of)?, &other.value(of)?)?),
            Self::In(one, list) => {
                let one = one.value(of)?;
                Value::Flag(list.iter().any(|other| other.value(of).as_ref() == Some(&one)))
            }
            Self::Test(inner, test) => {
                let Value::Text(text) = inner.value(of)? else { return None };
                Value::Flag(test.holds(&text))
            }
            Self::Text(inner) => Value::Text(inner.value(of)?.into_text().into()),
            Self::Choose(condition, one, other) => {
                if flag(condition)? {
                    one.value(of)?
                } else {
                    other.value(of)?
                }
            }
        })
    }
}

impl Value<'_> {
    fn into_text(self) -> String {
        match self {
            Self::Text(text) => text.into_owned(),
            Self::Number(number) => number.to_string(),
            Self::Flag(flag) => flag.to_string(),
            Self::Time(time) => format!("{}s", time.as_secs_f64()),
        }
    }
}

impl Comparison {
    fn holds(self, one: &Value<'_>, other: &Value<'_>) -> Option<bool> {
        let order = match (one, other) {
            (Value::Text(one), Value::Text(other)) => one.cmp(other),
            (Value::Number(one), Value::Number(other)) => one.cmp(other),
            (Value::Flag(one), Value::Flag(other)) => one.cmp(other),
            (Value::Time(one), Value::Time(other)) => one.cmp(other),
            _ => return None,
        };
        Some(match self {
            Self::Equal => order.is_eq(),
            Self::Unequal => order.is_ne(),
            Self::Less => order.is_lt(),
            Self::LessOrEqual => order.is_le(),
            Self::Greater => order.is_gt(),
            Self::GreaterOrEqual => order.is_ge(),
        })
    }
}

impl Test {
    fn holds(&self, text: &str) -> bool {
        match self {
            Self::Contains(part) => text.contains(part.as_str()),
            Self::StartsWith(part) => text.starts_with(part.as_str()),
            Self::EndsWith(part) => text.ends_with(part.as_str()),
            Self::Matches(regex) => regex.is_in(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    struct Known(HashMap<&'static str, Value<'static>>);

    impl Attributes for Known {
        fn get(&self, attribute: &Attribute) -> Option<Value<'_>> {
            let name = match attribute {
                Attribute::Code => "code",
                Attribute::UrlPath => "path",
                Attribute::Mtls => "mtls",
                Attribute::Duration => "duration",
                Attribute::Header(name) if name == "user-agent" => "agent",
                _ => return None,
            };
            self.0.get(name).cloned()
        }
    }

    fn known() -> Known {
        Known(HashMap::from([
            ("code", Value::Number(503)),
            ("path", Value::Text("/v1/x".into())),
            ("mtls", Value::Flag(true)),
            ("duration", Value::Time(Duration::from_millis(700))),
        ]))
    }

    #[test]
    fn conditions_hold_or_not() {
        for (text, wanted) in [
            ("response.code >= 500", true),
            ("response.code>=400 && response.code < 500", false),
            ("response.code in [500, 503]", true),
            ("connection.mtls && request.url_path.contains('v1')", true),
            ("!(request.url_path.startsWith(\"/v1\"))", false),
            ("request.url_path.endsWith('x') == true", true),
            ("request.url_path.matches('^/v[0-9]+/')", true),
            ("request.duration > duration('500ms')", true),
            ("request.duration > duration('1.5s')", false),
            ("has(request.useragent)", false),
            ("!has(request.useragent) || !request.useragent.startsWith('probe')", true),
            ("'user-agent' in request.headers", false),
            ("string(response.code) == '503'", true),
            ("false ? true : response.code != 200", true),
            // What is not there decides nothing, where it would have to.
            ("request.useragent == 'x'", false),
            ("!(request.useragent == 'x')", false),
            ("request.useragent == 'x' || true", true),
            ("request.headers['X-A'] != '' && false", false),
        ] {
            let expression: Expression = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert!(expression.is_condition());
            assert_eq!(expression.holds(&known()), wanted, "{text}");
        }
    }

    #[test]
    fn a_tag_is_a_text() {
        for (text, wanted) in [
            ("'fixed'", Some("fixed")),
            ("response.code", Some("503")),
            ("request.useragent", None),
            ("has(request.useragent) ? request.useragent : 'none'", Some("none")),
            (r"'a\'b\\'", Some(r"a'b\")),
        ] {
            let expression: Expression = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(expression.text_of(&known()).as_deref(), wanted, "{text}");
        }
    }

    #[test]
    fn what_is_not_understood_is_no_expression() {
        let deep = "!".repeat(200) + "true";
        let long = format!("'{}'", "a".repeat(MAX_TEXT));
        for text in [
            "",
            "response.code >=",
            "response.code == '500'",
            "response.code && true",
            "!response.code",
            "response.flags == 1",
            "filter_state['x'] == 'y'",
            "xds.cluster_name",
            "request.url_path.contains(1)",
            "request.url_path.matches('(')",
            "request.duration > 5",
            "response.code in ['a']",
            "true ? 1 : 'a'",
            "duration('soon')",
            "99999999999999999999",
            "(true",
            "true)",
            "'open",
            "true true",
            &deep,
            &long,
        ] {
            assert!(text.parse::<Expression>().is_err(), "{text}");
        }
    }
}
