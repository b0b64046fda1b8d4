//! `outlierDetection`

use std::time::Duration;

use orlop_model::world::routing::Outlier;
use serde::Deserialize;

use crate::duration::positive;
use crate::field::{FieldError, FieldPath};

/// Istio's default of `consecutiveLocalOriginFailures`.
const LOCAL_FAILURES: u32 = 5;

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct OutlierObject {
    /// The older name of consecutive5xxErrors.
    consecutive_errors: Option<u32>,
    /// After so many failures in a row: 5 if left out, never if 0.
    #[serde(rename = "consecutive5xxErrors")]
    consecutive_5xx_errors: Option<u32>,
    /// After so many answers 502, 503 or 504 in a row.
    consecutive_gateway_errors: Option<u32>,
    /// How often to look: every 10s if left out.
    interval: Option<String>,
    /// How long at first: 30s if left out; longer each time.
    base_ejection_time: Option<String>,
    /// At most so many of the servers: 10 if left out.
    max_ejection_percent: Option<u32>,
    /// None are left out, if fewer than these are well.
    min_health_percent: Option<u32>,
    /// Counts by themselves the times that there was no answer.
    split_external_local_origin_errors: Option<bool>,
    /// After so many times in a row without an answer, if these are counted by themselves: 5 if left out.
    consecutive_local_origin_failures: Option<u32>,
}

impl OutlierObject {
    pub(super) fn convert(self, path: &FieldPath) -> Result<Outlier, FieldError> {
        let default = Outlier::default();
        let time = |text: Option<String>, field: &str, default: Duration| {
            text.map_or(Ok(default), |text| positive(&text, || path.clone().key(field)))
        };
        let percent = |value: Option<u32>, field: &str, default: u32| match value.unwrap_or(default) {
            value @ 0..=100 => Ok(value),
            value => Err(FieldError::new(path.clone().key(field), format!("{value} is no percentage"))),
        };
        let split = self.split_external_local_origin_errors == Some(true);
        let local_failures = self.consecutive_local_origin_failures.unwrap_or(LOCAL_FAILURES);
        Ok(Outlier {
            server_errors: self
                .consecutive_5xx_errors
                .or(self.consecutive_errors)
                .unwrap_or(default.server_errors),
            gateway_errors: self.consecutive_gateway_errors.unwrap_or(default.gateway_errors),
            local_failures: split.then_some(local_failures),
            interval: time(self.interval, "interval", default.interval)?,
            base: time(self.base_ejection_time, "baseEjectionTime", default.base)?,
            max_percent: percent(self.max_ejection_percent, "maxEjectionPercent", default.max_percent)?,
            min_health: percent(self.min_health_percent, "minHealthPercent", default.min_health)?,
        })
    }
}
