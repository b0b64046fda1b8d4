//! The access log as somebody wants it: a text or an object of JSON, with Envoy's operators.

mod time;

use std::{
    borrow::Cow,
    fs,
    io::{self, Write as _},
    str::FromStr,
    sync::LazyLock,
};

use http::HeaderName;

pub(crate) use self::time::TimeFormat;

/// A text or an object may have this many bytes.
const MAX_FORMAT: usize = 8 << 10;
/// What stands for what is not there, in a text.
const NOTHING: &str = "-";

/// In a cluster that of the pod.
pub(crate) static HOSTNAME: LazyLock<Option<String>> = LazyLock::new(|| {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim_end().to_owned())
});

/// How a line of the access log is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFormat(Shape);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Shape {
    Text(Vec<Piece>),
    /// The keys and their values.
    Json(Vec<(String, Vec<Piece>)>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Literal(String),
    /// Its value, of which so many bytes at the most.
    Operator(Operator, Option<usize>),
}

macro_rules! operators {
    ($($(#[doc = $doc:literal])+ $variant:ident = $text:literal,)+) => {
        /// What a line can tell.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub(crate) enum Operator {
            $($(#[doc = $doc])+ $variant,)+
            /// `START_TIME(FORMAT)`
            StartTimeAs(TimeFormat),
            /// `REQ(NAME?OTHER)`: what a request says, or else what it says there.
            Request(Said, Option<Said>),
            /// `RESP(NAME?OTHER)`: a header of the answer's.
            Response(HeaderName, Option<HeaderName>),
        }

        impl Operator {
            fn plain(name: &str) -> Option<Self> {
                match name {
                    $($text => Some(Self::$variant),)+
                    _ => None,
                }
            }

            fn known() -> impl Iterator<Item = &'static str> {
                [$($text,)+ "START_TIME(FORMAT)", "REQ(NAME)", "RESP(NAME)"].into_iter()
            }
        }
    };
}

operators! {
    /// When it began: RFC 3339, in UTC.
    StartTime = "START_TIME",
    /// From the beginning to the end, in milliseconds.
    Duration = "DURATION",
    /// To the head of the answer, in milliseconds.
    ResponseDuration = "RESPONSE_DURATION",
    /// `HTTP/1.1`, `HTTP/1.0` or `HTTP/2`.
    Protocol = "PROTOCOL",
    /// 0 where there was no answer.
    ResponseCode = "RESPONSE_CODE",
    /// The reason, or `via_upstream`.
    ResponseCodeDetails = "RESPONSE_CODE_DETAILS",
    /// What else is known of why.
    ConnectionTerminationDetails = "CONNECTION_TERMINATION_DETAILS",
    /// The same, where there was no connection to a server.
    UpstreamTransportFailureReason = "UPSTREAM_TRANSPORT_FAILURE_REASON",
    /// Several by commas.
    ResponseFlags = "RESPONSE_FLAGS",
    /// Of the body of a request, or from the client.
    BytesReceived = "BYTES_RECEIVED",
    /// Of the answer's, or to the client.
    BytesSent = "BYTES_SENT",
    /// The name of gRPC's status.
    GrpcStatus = "GRPC_STATUS",
    /// Its number.
    GrpcStatusNumber = "GRPC_STATUS_NUMBER",
    /// The server's address.
    UpstreamHost = "UPSTREAM_HOST",
    /// The host of its service.
    UpstreamCluster = "UPSTREAM_CLUSTER",
    /// The same.
    UpstreamClusterRaw = "UPSTREAM_CLUSTER_RAW",
    /// The server's identity.
    UpstreamPeer = "UPSTREAM_PEER_URI_SAN",
    /// How often a request was sent.
    Attempts = "UPSTREAM_REQUEST_ATTEMPT_COUNT",
    /// The address that the proxy dialled from, which nobody knows.
    UpstreamLocalAddress = "UPSTREAM_LOCAL_ADDRESS",
    /// The address that the client dialled.
    DownstreamLocalAddress = "DOWNSTREAM_LOCAL_ADDRESS",
    /// The client's.
    DownstreamRemoteAddress = "DOWNSTREAM_REMOTE_ADDRESS",
    /// The client's, without the port.
    DownstreamRemoteIp = "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
    /// The client's identity.
    DownstreamPeer = "DOWNSTREAM_PEER_URI_SAN",
    /// Whom the client's TLS names.
    RequestedServerName = "REQUESTED_SERVER_NAME",
    /// The rule that a request follows.
    RouteName = "ROUTE_NAME",
    /// Of the trace that it is part of.
    TraceId = "TRACE_ID",
    /// The proxy's own.
    Hostname = "HOSTNAME",
}

/// What a request says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    Method,
    /// With the query.
    Path,
    Authority,
    Scheme,
    Header(HeaderName),
}

/// What an operator has for one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    Text(Cow<'a, str>),
    Number(u64),
}

/// Something that has ended, of which a line tells.
pub(crate) trait Ended {
    /// `None` where there is no such thing.
    fn value(&self, operator: &Operator) -> Option<Value<'_>>;
}

/// The text is no format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct LogFormatError(String);

impl FromStr for LogFormat {
    type Err = LogFormatError;

    fn from_str(text: &str) -> Result<Self, LogFormatError> {
        Ok(Self(Shape::Text(pieces(text.trim_end_matches('\n'))?)))
    }
}

impl LogFormat {
    /// An object with these keys, whose values are texts with operators.
    pub fn object<'a>(fields: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, LogFormatError> {
        let fields = fields.into_iter().map(|(key, text)| Ok((key.to_owned(), pieces(text)?)));
        Ok(Self(Shape::Json(fields.collect::<Result<_, _>>()?)))
    }

    /// The headers of requests that it tells of.
    pub(crate) fn request_headers(&self) -> impl Iterator<Item = &HeaderName> {
        let said = self.operators().filter_map(|operator| match operator {
            Operator::Request(first, other) => Some([Some(first), other.as_ref()]),
            _ => None,
        });
        said.flatten().flatten().filter_map(|said| match said {
            Said::Header(name) => Some(name),
            _ => None,
        })
    }

    /// The headers of answers that it tells of.
    pub(crate) fn response_headers(&self) -> impl Iterator<Item = &HeaderName> {
        let names = self.operators().filter_map(|operator| match operator {
            Operator::Response(first, other) => Some([Some(first), other.as_ref()]),
            _ => None,
        });
        names.flatten().flatten()
    }

    fn operators(&self) -> impl Iterator<Item = &Operator> {
        let pieces: Vec<&Piece> = match &self.0 {
            Shape::Text(pieces) => pieces.iter().collect(),
            Shape::Json(fields) => fields.iter().flat_map(|(_, pieces)| pieces).collect(),
        };
        pieces.into_iter().filter_map(|piece| match piece {
            Piece::Operator(operator, _) => Some(operator),
            Piece::Literal(_) => None,
        })
    }

    /// Writes the line where the log goes. One that can't be written is lost.
    pub(crate) fn write(&self, of: &dyn Ended) {
        let line = self.line(of) + "\n";
        let _ = io::stderr().lock().write_all(line.as_bytes());
    }

    fn line(&self, of: &dyn Ended) -> String {
        match &self.0 {
            Shape::Text(pieces) => text(pieces, of),
            Shape::Json(fields) => {
                let mut line = String::from("{");
                for (nth, (key, pieces)) in fields.iter().enumerate() {
                    line.push_str(if nth > 0 { "," } else { "" });
                    quote(&mut line, key);
                    line.push(':');
                    typed(&mut line, pieces, of);
                }
                line.push('}');
                line
            }
        }
    }
}

/// A value of its own type, where it is nothing but that.
fn typed(line: &mut String, pieces: &[Piece], of: &dyn Ended) {
    let [Piece::Operator(operator, most)] = pieces else { return quote(line, &text(pieces, of)) };
    match of.value(operator) {
        Some(Value::Number(number)) => line.push_str(&number.to_string()),
        Some(Value::Text(text)) => quote(line, cut(&text, *most)),
        None => line.push_str("null"),
    }
}

/// Nothing of what others say makes another line of it.
fn text(pieces: &[Piece], of: &dyn Ended) -> String {
    let mut line = String::new();
    for piece in pieces {
        match piece {
            Piece::Literal(text) => line.push_str(text),
            Piece::Operator(operator, most) => match of.value(operator) {
                Some(Value::Number(number)) => line.push_str(&number.to_string()),
                Some(Value::Text(text)) if !text.is_empty() => {
                    let plain = |c: char| if c.is_control() { ' ' } else { c };
                    line.extend(cut(&text, *most).chars().map(plain));
                }
                Some(Value::Text(_)) | None => line.push_str(NOTHING),
            },
        }
    }
    line
}

fn cut(text: &str, most: Option<usize>) -> &str {
    most.map_or(text, |most| &text[..text.floor_char_boundary(most)])
}

/// RFC 8259, section 7.
fn quote(line: &mut String, text: &str) {
    line.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => line.extend(['\\', c]),
            c if c.is_control() => line.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => line.push(c),
        }
    }
    line.push('"');
}

fn pieces(text: &str) -> Result<Vec<Piece>, LogFormatError> {
    if text.len() > MAX_FORMAT {
        return Err(LogFormatError(format!("it has more than {MAX_FORMAT} bytes")));
    }
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some((literal, after)) = rest.split_once('%') {
        // What is in brackets may have some of its own.
        let inside = after.find(['(', '%']).filter(|at| after[*at..].starts_with('('));
        let closed = inside.map_or(Some(0), |_| after.find(')'));
        let end = closed.and_then(|from| Some(from + after[from..].find('%')?));
        let Some(end) = end else {
            return Err(LogFormatError(format!("%{after} has no % at its end; a % itself is %%")));
        };
        let (operator, after) = (&after[..end], &after[end + 1..]);
        let literal = if operator.is_empty() { format!("{literal}%") } else { literal.to_owned() };
        pieces.extend((!literal.is_empty()).then_some(Piece::Literal(literal)));
        if !operator.is_empty() {
            pieces.push(piece(operator)?);
        }
        rest = after;
    }
    pieces.extend((!rest.is_empty()).then(|| Piece::Literal(rest.to_owned())));
    Ok(pieces)
}

/// `NAME`, `NAME(ARGUMENT)`, and either with `:LENGTH`.
fn piece(text: &str) -> Result<Piece, LogFormatError> {
    let unknown = || {
        let known: Vec<_> = Operator::known().collect();
        LogFormatError(format!("%{text}% is no operator that is known: {}", known.join(", ")))
    };
    let (operator, most) = match text.split_once(')') {
        Some((call, length)) => {
            let (name, argument) = call.split_once('(').ok_or_else(unknown)?;
            if name == "START_TIME" && length.is_empty() {
                return Ok(Piece::Operator(Operator::StartTimeAs(argument.parse()?), None));
            }
            let (first, other) = match argument.split_once('?') {
                Some((first, other)) => (first, Some(other)),
                None => (argument, None),
            };
            let operator = match name {
                "REQ" => Operator::Request(said(first)?, other.map(said).transpose()?),
                "RESP" => Operator::Response(header(first)?, other.map(header).transpose()?),
                _ => return Err(unknown()),
            };
            let length = if length.is_empty() {
                None
            } else {
                Some(length.strip_prefix(':').and_then(|length| length.parse().ok()).ok_or_else(unknown)?)
            };
            (operator, length)
        }
        None => (Operator::plain(text).ok_or_else(unknown)?, None),
    };
    Ok(Piece::Operator(operator, most))
}

fn said(name: &str) -> Result<Said, LogFormatError> {
    Ok(match name.to_ascii_lowercase().as_str() {
        ":method" => Said::Method,
        ":path" => Said::Path,
        ":authority" => Said::Authority,
        ":scheme" => Said::Scheme,
        name => Said::Header(header(name)?),
    })
}

/// What lets somebody in is not for the log.
fn header(name: &str) -> Result<HeaderName, LogFormatError> {
    const SECRET: [&str; 4] = ["authorization", "proxy-authorization", "cookie", "set-cookie"];
    let header = HeaderName::try_from(name).map_err(|_| LogFormatError(format!("{name:?} is no header")))?;
    if SECRET.contains(&header.as_str()) {
        return Err(LogFormatError(format!("{name} lets people in, and is not for a log")));
    }
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Request;

    impl Ended for Request {
        fn value(&self, operator: &Operator) -> Option<Value<'_>> {
            match operator {
                Operator::ResponseCode => Some(Value::Number(503)),
                Operator::ResponseFlags => Some(Value::Text("UF,URX".into())),
                Operator::StartTimeAs(format) => {
                    Some(Value::Text(format.of(std::time::SystemTime::UNIX_EPOCH).into()))
                }
                Operator::Request(Said::Method, None) => Some(Value::Text("GET".into())),
                Operator::Request(Said::Header(name), _) if name == "user-agent" => {
                    Some(Value::Text("a \"b\"\n\u{e9}".into()))
                }
                _ => None,
            }
        }
    }

    fn line(format: &str) -> String {
        format.parse::<LogFormat>().unwrap().line(&Request)
    }

    #[test]
    fn a_text_has_the_values_of_its_operators() {
        assert_eq!(
            line("%REQ(:METHOD)% \"%REQ(User-Agent?X)%\" %RESPONSE_CODE% 100%%\n"),
            "GET \"a \"b\" \u{e9}\" 503 100%"
        );
        assert_eq!(line("%UPSTREAM_HOST%%RESPONSE_FLAGS%"), "-UF,URX");
        assert_eq!((line("plain"), line("")), ("plain".to_owned(), String::new()));
        assert_eq!(line("%START_TIME(%F %T)% %RESPONSE_CODE%"), "1970-01-01 00:00:00 503");
        assert_eq!(line("%REQ(USER-AGENT):3%"), "a \"");
        assert_eq!(line("%REQ(USER-AGENT):7%"), "a \"b\" ");
    }

    #[test]
    fn an_object_has_numbers_texts_and_nothing() {
        let fields = [
            ("code", "%RESPONSE_CODE%"),
            ("ua", "%REQ(USER-AGENT)%"),
            ("host", "%UPSTREAM_HOST%"),
            ("a\"", "x %RESPONSE_CODE% -%UPSTREAM_HOST%"),
        ];
        assert_eq!(
            LogFormat::object(fields).unwrap().line(&Request),
            "{\"code\":503,\"ua\":\"a \\\"b\\\"\\u000a\u{e9}\",\"host\":null,\"a\\\"\":\"x 503 --\"}"
        );
    }

    #[test]
    fn istios_own_is_understood() {
        let text = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% \
            %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \
            \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
            %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \
            \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% \
            %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% \
            %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n";
        let format: LogFormat = text.parse().unwrap();
        let asked: Vec<_> = format.request_headers().map(HeaderName::as_str).collect();
        assert_eq!(asked, ["x-envoy-original-path", "x-forwarded-for", "user-agent", "x-request-id"]);
        assert_eq!(format.response_headers().count(), 1);
    }

    #[test]
    fn what_is_unknown_is_refused_by_name() {
        for (text, says) in [
            ("%NONSENSE%", "%NONSENSE%"),
            ("%DURATION", "%DURATION"),
            ("%FILTER_STATE(x)%", "FILTER_STATE"),
            ("%REQ(a b)%", "a b"),
            ("%REQ()%", "\"\""),
            ("%REQ(X):y%", "REQ(X):y"),
            ("%START_TIME(%A)%", "%A"),
            ("%START_TIME(%s%", "START_TIME("),
            ("%START_TIME(%s):3%", "START_TIME("),
            ("%REQ(Authorization)%", "authorization"),
            ("%RESP(Set-Cookie)%", "Set-Cookie"),
        ] {
            let error = text.parse::<LogFormat>().unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
        assert!("x".repeat(9000).parse::<LogFormat>().is_err());
    }
}
