use std::time::Duration;

use crate::world::routing::{Retries, RetryOn};

/// The longest pause between two attempts is this many times the first.
const MAX_BACKOFF: u32 = 10;

/// What is tried again where nothing else is said: what can't have done anything yet, and what gRPC says may be.
const DEFAULT: [RetryOn; 5] = [
    RetryOn::ConnectFailure,
    RetryOn::ResetBeforeRequest,
    RetryOn::RefusedStream,
    RetryOn::Grpc(14),
    RetryOn::Grpc(1),
];

/// How far an attempt came that got no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// It is refused here, and so would another one be.
    RefusedHere,
    /// There was no connection to a server.
    NotConnected,
    /// There was one, on which nothing of the request was sent.
    NotSent,
    /// The request was sent, in whole or in part: the server may have done something about it.
    Sent,
    /// It was sent, and the server says that it has not begun to do anything about it.
    RefusedUnread,
}

/// The head of an answer, as far as it says whether to try again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answered {
    /// Its status.
    pub status: u16,
    /// That of gRPC, if it is in the head.
    pub grpc: Option<u8>,
    /// Whether it has `x-envoy-ratelimited`.
    pub rate_limited: bool,
}

impl Retries {
    /// Whether there is to be another attempt, by how one has ended. As Envoy's `RetryStateImpl` has it.
    pub fn wants_again(&self, ended: Result<Answered, Reach>) -> bool {
        let conditions = self.on.as_deref().unwrap_or(&DEFAULT);
        match ended {
            // Whoever is over a limit is so for each attempt: no other condition counts.
            Ok(Answered { rate_limited: true, .. }) => conditions.contains(&RetryOn::RateLimited),
            Ok(answered) => conditions.iter().any(|on| on.meets_answer(answered)),
            Err(reach) => conditions.iter().any(|on| on.meets_failure(reach)),
        }
    }

    /// The pause before a retry, the first of which is number 0; `share`, from 0 to 1, is drawn anew for each. As Envoy's
    /// `JitteredExponentialBackOffStrategy` has it, above what the Gateway API has as the shortest.
    pub fn pause(&self, number: u32, share: f64) -> Duration {
        let most = self.backoff.saturating_mul((1 << number.min(8)).min(MAX_BACKOFF));
        self.at_least.saturating_add(most.mul_f64(share))
    }
}

impl RetryOn {
    fn meets_answer(self, Answered { status, grpc, .. }: Answered) -> bool {
        match self {
            Self::ServerError => status >= 500,
            Self::GatewayError => matches!(status, 502..=504),
            Self::Conflict => status == 409,
            Self::Status(wanted) => status == wanted,
            Self::Grpc(wanted) => grpc == Some(wanted),
            Self::ConnectFailure
            | Self::RefusedStream
            | Self::ResetBeforeRequest
            | Self::Reset
            | Self::RateLimited => false,
        }
    }

    fn meets_failure(self, reach: Reach) -> bool {
        match self {
            Self::ConnectFailure => reach == Reach::NotConnected,
            Self::ResetBeforeRequest => matches!(reach, Reach::NotConnected | Reach::NotSent),
            Self::RefusedStream => reach == Reach::RefusedUnread,
            Self::Reset | Self::ServerError | Self::GatewayError => reach != Reach::RefusedHere,
            Self::Conflict | Self::Status(_) | Self::Grpc(_) | Self::RateLimited => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(conditions: &[RetryOn]) -> Retries {
        Retries { on: Some(conditions.to_vec()), ..Retries::default() }
    }

    fn answered(status: u16) -> Result<Answered, Reach> {
        Ok(Answered { status, ..Answered::default() })
    }

    #[test]
    fn what_a_server_may_have_acted_upon_is_tried_again_only_where_that_is_wanted() {
        use Reach::{NotConnected, NotSent, RefusedHere, RefusedUnread, Sent};
        for (retries, wanted) in [
            (Retries::default(), &[NotConnected, NotSent, RefusedUnread][..]),
            (on(&[]), &[]),
            (on(&[RetryOn::ConnectFailure]), &[NotConnected]),
            (on(&[RetryOn::ResetBeforeRequest]), &[NotConnected, NotSent]),
            (on(&[RetryOn::RefusedStream]), &[RefusedUnread]),
            (on(&[RetryOn::Reset]), &[NotConnected, NotSent, Sent, RefusedUnread]),
            (on(&[RetryOn::ServerError]), &[NotConnected, NotSent, Sent, RefusedUnread]),
            (on(&[RetryOn::GatewayError]), &[NotConnected, NotSent, Sent, RefusedUnread]),
            (on(&[RetryOn::Conflict, RetryOn::Status(504), RetryOn::Grpc(4), RetryOn::RateLimited]), &[]),
        ] {
            let all = [RefusedHere, NotConnected, NotSent, Sent, RefusedUnread];
            let again: Vec<_> = all.into_iter().filter(|reach| retries.wants_again(Err(*reach))).collect();
            assert_eq!(again, wanted, "{:?}", retries.on);
        }
    }

    #[test]
    fn a_pause_is_a_share_of_what_doubles_up_to_ten_times_the_first() {
        let ms = Duration::from_millis;
        let retries = Retries::default();
        let longest = [0, 1, 2, 3, 4, 5, 31, u32::MAX].map(|number| retries.pause(number, 1.0));
        assert_eq!(longest, [25, 50, 100, 200, 250, 250, 250, 250].map(ms));
        assert_eq!([0.0, 0.5].map(|share| retries.pause(2, share)), [ms(0), ms(50)]);
        let of = |backoff, at_least| Retries { backoff, at_least, ..Retries::default() };
        assert_eq!(of(ms(10), ms(0)).pause(1, 1.0), ms(20));
        // None is shorter than what the Gateway API asks for, and they differ all the same.
        let slow = of(ms(25), ms(100));
        assert_eq!([0.0, 1.0].map(|share| slow.pause(0, share)), [ms(100), ms(125)]);
        assert_eq!(of(Duration::ZERO, ms(0)).pause(3, 1.0), ms(0));
    }

    #[test]
    fn answers_are_tried_again_by_their_status() {
        for (condition, wanted) in [
            (RetryOn::ServerError, &[500, 502, 503, 504, 555][..]),
            (RetryOn::GatewayError, &[502, 503, 504]),
            (RetryOn::Conflict, &[409]),
            (RetryOn::Status(429), &[429]),
            (RetryOn::Reset, &[]),
            (RetryOn::ResetBeforeRequest, &[]),
            (RetryOn::RateLimited, &[]),
        ] {
            let again = |status: &u16| on(&[condition]).wants_again(answered(*status));
            let found: Vec<_> = [200, 409, 429, 500, 502, 503, 504, 555].into_iter().filter(again).collect();
            assert_eq!(found, wanted, "{condition:?}");
            assert!(!Retries::default().wants_again(answered(503)));
        }
        for (grpc, wanted) in [(0, false), (1, true), (4, false), (14, true)] {
            let answer = Ok(Answered { status: 200, grpc: Some(grpc), rate_limited: false });
            assert_eq!(Retries::default().wants_again(answer), wanted, "{grpc}");
        }
    }

    #[test]
    fn whoever_is_over_a_limit_is_tried_again_by_its_own_condition_alone() {
        let limited = |status| Ok(Answered { status, grpc: None, rate_limited: true });
        for status in [429, 503] {
            assert!(on(&[RetryOn::RateLimited]).wants_again(limited(status)));
            assert!(!on(&[RetryOn::ServerError, RetryOn::Status(429)]).wants_again(limited(status)));
        }
    }
}
