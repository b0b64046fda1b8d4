//! What rules write into headers: texts with Envoy's operators.

use std::str::FromStr;

/// The value that a rule gives a header: a text, in which operators stand for what is known of the request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderText(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Literal(String),
    Operator(HeaderOperator),
}

macro_rules! operators {
    ($($(#[doc = $doc:literal])+ $variant:ident = $text:literal,)+) => {
        /// What a header can tell.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum HeaderOperator {
            $($(#[doc = $doc])+ $variant,)+
            /// `REQ(NAME?OTHER):LENGTH`: a header of the request's as it came, or else the other; of that at most so many
            /// bytes. The names are in lower case, and those with a colon are parts of the request.
            Request(String, Option<String>, Option<usize>),
        }

        impl HeaderOperator {
            fn plain(name: &str) -> Option<Self> {
                match name {
                    $($text => Some(Self::$variant),)+
                    _ => None,
                }
            }

            const KNOWN: &[&str] = &[$($text,)+ "REQ(NAME)"];
        }
    };
}

operators! {
    /// When the request came: RFC 3339, in UTC.
    StartTime = "START_TIME",
    /// `HTTP/1.1` or `HTTP/2`.
    Protocol = "PROTOCOL",
    /// The name of the proxy's pod.
    Hostname = "HOSTNAME",
    /// The rule that the request follows.
    RouteName = "ROUTE_NAME",
    /// The server's address, in an answer.
    UpstreamHost = "UPSTREAM_HOST",
    /// The address that the client dialled.
    DownstreamLocalAddress = "DOWNSTREAM_LOCAL_ADDRESS",
    /// The client's.
    DownstreamRemoteAddress = "DOWNSTREAM_REMOTE_ADDRESS",
    /// The client's, without the port.
    DownstreamRemoteIp = "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
    /// The client's identity.
    DownstreamPeer = "DOWNSTREAM_PEER_URI_SAN",
}

/// The text has an operator that there is not here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct HeaderTextError(String);

impl HeaderText {
    /// A text without operators, whatever is in it.
    pub fn verbatim(text: impl Into<String>) -> Self {
        Self(vec![Piece::Literal(text.into())])
    }

    /// The text, where it has no operators.
    pub fn literal(&self) -> Option<&str> {
        match &self.0[..] {
            [] => Some(""),
            [Piece::Literal(text)] => Some(text),
            _ => None,
        }
    }

    /// The text with what its operators stand for; those of which nothing is known are left out.
    pub fn filled(&self, value: impl Fn(&HeaderOperator) -> Option<Vec<u8>>) -> Vec<u8> {
        let mut filled = Vec::new();
        for piece in &self.0 {
            match piece {
                Piece::Literal(text) => filled.extend_from_slice(text.as_bytes()),
                Piece::Operator(operator) => filled.extend(value(operator).unwrap_or_default()),
            }
        }
        filled
    }
}

impl FromStr for HeaderText {
    type Err = HeaderTextError;

    /// `%` itself is `%%`.
    fn from_str(text: &str) -> Result<Self, HeaderTextError> {
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('%') {
            literal.push_str(before);
            let Some((operator, after)) = after.split_once('%') else {
                let problem = format!("has %{after} without a % at its end; a % itself is %%");
                return Err(HeaderTextError(problem));
            };
            rest = after;
            if operator.is_empty() {
                literal.push('%');
                continue;
            }
            if !literal.is_empty() {
                pieces.push(Piece::Literal(std::mem::take(&mut literal)));
            }
            pieces.push(Piece::Operator(self::operator(operator)?));
        }
        literal.push_str(rest);
        if !literal.is_empty() || pieces.is_empty() {
            pieces.push(Piece::Literal(literal));
        }
        Ok(Self(pieces))
    }
}

/// `NAME`, or `REQ(NAME?OTHER):LENGTH`.
fn operator(text: &str) -> Result<HeaderOperator, HeaderTextError> {
    let unknown = || {
        let known = HeaderOperator::KNOWN.join(", ");
        HeaderTextError(format!("has %{text}%, which is no operator that is known here: {known}"))
    };
    let Some(call) = text.strip_prefix("REQ(") else {
        return HeaderOperator::plain(text).ok_or_else(unknown);
    };
    let (names, length) = call.split_once(')').ok_or_else(unknown)?;
    let length = match length {
        "" => None,
        length => {
            let length = length.strip_prefix(':').and_then(|length| length.parse().ok());
            Some(length.ok_or_else(unknown)?)
        }
    };
    let (first, other) = match names.split_once('?') {
        Some((first, other)) => (first, Some(other)),
        None => (names, None),
    };
    Ok(HeaderOperator::Request(said(first)?, other.map(said).transpose()?, length))
}

/// What a client writes of who it is, is nothing that a rule may pass on as if it were known.
fn said(name: &str) -> Result<String, HeaderTextError> {
    let name = name.to_ascii_lowercase();
    if name == "x-forwarded-client-cert" {
        let problem = "has REQ(x-forwarded-client-cert), which a client may write itself; DOWNSTREAM_PEER_URI_SAN is who it is";
        return Err(HeaderTextError(problem.to_owned()));
    }
    // As in the access log: what lets somebody in is copied nowhere.
    if ["authorization", "proxy-authorization", "cookie"].contains(&&*name) {
        return Err(HeaderTextError(format!(
            "has REQ({name}), which lets people in and is not for another header"
        )));
    }
    let is_part = matches!(name.as_str(), ":method" | ":path" | ":authority" | ":scheme");
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if !is_part && (name.is_empty() || !name.bytes().all(token)) {
        return Err(HeaderTextError(format!("has REQ({name}), which is the name of no header")));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(text: &str) -> String {
        let text: HeaderText = text.parse().unwrap();
        let value = |operator: &HeaderOperator| match operator {
            HeaderOperator::Protocol => Some(b"HTTP/2".to_vec()),
            HeaderOperator::Request(name, None, most) => {
                Some(name.bytes().take(most.unwrap_or(usize::MAX)).collect())
            }
            HeaderOperator::Request(_, Some(other), _) => Some(other.clone().into_bytes()),
            _ => None,
        };
        String::from_utf8(text.filled(value)).unwrap()
    }

    #[test]
    fn operators_are_filled_in_and_two_percent_signs_are_one() {
        for (text, wanted) in [
            ("plain", "plain"),
            ("", ""),
            ("%%", "%"),
            ("100%% of %%x%%", "100% of %x%"),
            ("a %PROTOCOL%b%%", "a HTTP/2b%"),
            ("%REQ(X-User)%/%REQ(:path)%", "x-user/:path"),
            ("%REQ(X-User):3%%PROTOCOL%", "x-uHTTP/2"),
            ("%REQ(a?B)%", "b"),
            ("<%UPSTREAM_HOST%>", "<>"),
        ] {
            assert_eq!(filled(text), wanted, "{text}");
        }
        assert_eq!("50%% off".parse::<HeaderText>().unwrap().literal(), Some("50% off"));
        assert_eq!("%PROTOCOL%".parse::<HeaderText>().unwrap().literal(), None);
        assert_eq!(HeaderText::verbatim("%PROTOCOL%").literal(), Some("%PROTOCOL%"));
    }

    #[test]
    fn what_is_no_operator_here_is_refused_by_name() {
        for (text, says) in [
            ("%", "%%"),
            ("50% off", "% off"),
            ("%CEL(x)%", "%CEL(x)%"),
            ("%START_TIME(%s)%", "START_TIME("),
            ("%REQ(a b)%", "a b"),
            ("%REQ()%", "REQ()"),
            ("%REQ(x):y%", "REQ(x):y"),
            ("%REQ(X-Forwarded-Client-Cert)%", "DOWNSTREAM_PEER_URI_SAN"),
        ] {
            let error = text.parse::<HeaderText>().unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
