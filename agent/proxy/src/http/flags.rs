//! Envoy's response flags.

use std::fmt;

use orlop_model::Reason;

macro_rules! flags {
    ($($(#[doc = $doc:literal])+ $variant:ident = $text:literal,)+) => {
        /// One of them, in the order in which they are written.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Flag {
            $($(#[doc = $doc])+ $variant,)+
        }

        const ALL: [(Flag, &str); [$($text),+].len()] = [$((Flag::$variant, $text)),+];
    };
}

flags! {
    /// No endpoint is ready.
    NoHealthyUpstream = "UH",
    /// The answer took too long.
    UpstreamRequestTimeout = "UT",
    /// A fault of our own.
    LocalReset = "LR",
    /// The server reset the stream.
    UpstreamRemoteReset = "UR",
    /// No connection to a server.
    UpstreamConnectionFailure = "UF",
    /// The server closed the connection.
    UpstreamConnectionTermination = "UC",
    /// More than the destination's policy allows.
    UpstreamOverflow = "UO",
    /// No rule matches.
    NoRouteFound = "NR",
    /// A rule has it wait.
    DelayInjected = "DI",
    /// A rule has it fail.
    FaultInjected = "FI",
    /// More than a limit lets pass.
    RateLimited = "RL",
    /// Denied, or nobody can tell.
    UnauthorizedExternalService = "UAEX",
    /// Nobody can tell whether a limit lets it pass.
    RateLimitServiceError = "RLSE",
    /// The client was gone first.
    DownstreamConnectionTermination = "DC",
    /// It would have been tried again, but for the number of times.
    UpstreamRetryLimitExceeded = "URX",
    /// Nothing moved.
    StreamIdleTimeout = "SI",
    /// What the client says is no HTTP that could be passed on.
    DownstreamProtocolError = "DPE",
    /// It was open for as long as it may.
    DurationTimeout = "DT",
    /// What the server says is none.
    UpstreamProtocolError = "UPE",
    /// The rule leads nowhere.
    NoClusterFound = "NC",
    /// There is no memory left.
    OverloadManager = "OM",
}

/// Those of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Flags(u32);

impl Flags {
    pub(super) fn add(&mut self, flag: impl Into<Option<Flag>>) {
        self.0 |= flag.into().map_or(0, |flag| 1 << flag as u32);
    }

    pub(super) fn has(self, flag: Flag) -> bool {
        self.0 & 1 << flag as u32 != 0
    }

    /// With that of the reason for which the request has failed.
    pub(super) fn with(mut self, reason: Reason) -> Self {
        let more_is_known = [Flag::UpstreamRemoteReset, Flag::UpstreamProtocolError, Flag::LocalReset];
        let flag = of(reason);
        if flag != Some(Flag::UpstreamConnectionTermination)
            || !more_is_known.iter().any(|known| self.has(*known))
        {
            self.add(flag);
        }
        self
    }
}

impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut set = ALL.iter().filter(|(flag, _)| self.has(*flag)).map(|(_, text)| text);
        f.write_str(set.next().unwrap_or(&"-"))?;
        set.try_for_each(|text| write!(f, ",{text}"))
    }
}

/// As Envoy has it.
fn of(reason: Reason) -> Option<Flag> {
    Some(match reason {
        Reason::NoHealthyEndpoint => Flag::NoHealthyUpstream,
        Reason::UpstreamReset | Reason::TunnelClosed => Flag::UpstreamConnectionTermination,
        Reason::Reset | Reason::Draining => Flag::DownstreamConnectionTermination,
        Reason::BadRequest | Reason::HeaderLimit | Reason::HeaderTimeout => Flag::DownstreamProtocolError,
        Reason::BodyTooLarge => return None,
        Reason::NoRoute | Reason::Misdirected => Flag::NoRouteFound,
        Reason::NoSuchDestination | Reason::InvalidRoute => Flag::NoClusterFound,
        Reason::RequestTimeout => Flag::UpstreamRequestTimeout,
        Reason::IdleTimeout => Flag::StreamIdleTimeout,
        Reason::MaxDuration => Flag::DurationTimeout,
        Reason::MemoryLimit => Flag::OverloadManager,
        Reason::Overflow => Flag::UpstreamOverflow,
        Reason::FaultInjected => Flag::FaultInjected,
        Reason::PolicyDenied
        | Reason::AuthorizerUnavailable
        | Reason::InvalidToken
        | Reason::TokenKeysUnavailable => Flag::UnauthorizedExternalService,
        Reason::RateLimited => Flag::RateLimited,
        Reason::RateLimitUnavailable => Flag::RateLimitServiceError,
        Reason::Internal => Flag::LocalReset,
        _ => Flag::UpstreamConnectionFailure,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_are_told_in_envoys_order() {
        let mut flags = Flags::default();
        assert_eq!(flags.to_string(), "-");
        flags.add(Flag::UpstreamRetryLimitExceeded);
        assert_eq!(flags.with(Reason::ConnectFailed).to_string(), "UF,URX");
        flags.add(Flag::DelayInjected);
        assert_eq!(flags.with(Reason::UpstreamReset).to_string(), "UC,DI,URX");
        flags.add(Flag::UpstreamRemoteReset);
        assert_eq!(flags.with(Reason::UpstreamReset).to_string(), "UR,DI,URX");
        assert_eq!(Flags::default().with(Reason::BodyTooLarge).to_string(), "-");
    }

    #[test]
    fn there_is_room_for_all() {
        let mut flags = Flags::default();
        ALL.iter().for_each(|(flag, _)| flags.add(*flag));
        assert_eq!(flags.to_string().split(',').count(), ALL.len());
    }
}
