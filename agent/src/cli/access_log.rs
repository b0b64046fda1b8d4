//! What the access log of waypoints and gateways is like.

use std::{collections::BTreeMap, sync::Arc};

use clap::Args;
use orlop_model::world::routing::Percent;
use orlop_proxy::{AccessLog, LogFormat};

use super::http_proxy::percent;

#[derive(Args, Debug)]
pub struct AccessLogArguments {
    /// A line of the access log: a text with Envoy's operators, such as "%REQ(:METHOD)% %RESPONSE_CODE%", or an object of
    /// JSON whose values are such [default: as --log-format says].
    #[arg(long, value_name = "FORMAT", value_parser = format)]
    pub access_log_format: Option<Format>,
    /// So many percent of the requests have a line.
    #[arg(long, value_name = "PERCENT", default_value = "100", value_parser = percent)]
    pub access_log_sampling: f64,
}

/// A format, and how it is written.
#[derive(Clone, Debug)]
pub struct Format {
    text: String,
    format: Arc<LogFormat>,
}

impl AccessLogArguments {
    /// The arguments of a waypoint that say the same.
    pub fn to_args(&self) -> Vec<String> {
        let format = self.access_log_format.as_ref().map(|of| format!("--access-log-format={}", of.text));
        let sampling = self.access_log_sampling;
        let sampling = (sampling < 100.0).then(|| format!("--access-log-sampling={sampling}"));
        format.into_iter().chain(sampling).collect()
    }

    /// What it is to be like.
    pub fn access_log(&self) -> AccessLog {
        AccessLog {
            format: self.access_log_format.as_ref().map(|of| Arc::clone(&of.format)),
            sampling: Percent((self.access_log_sampling * 10_000.0).round() as u32),
        }
    }
}

fn format(text: &str) -> Result<Format, String> {
    let format = if text.trim_start().starts_with('{') {
        let fields: BTreeMap<String, String> = serde_json::from_str(text)
            .map_err(|error| format!("want an object of JSON whose values are texts: {error}"))?;
        LogFormat::object(fields.iter().map(|(key, value)| (key.as_str(), value.as_str())))
    } else {
        text.parse()
    };
    let format = Arc::new(format.map_err(|error| error.to_string())?);
    Ok(Format { text: text.to_owned(), format })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_format_is_a_text_or_an_object_of_texts() {
        for good in ["%RESPONSE_CODE%\n", r#"{"code": "%RESPONSE_CODE%"}"#, " {}"] {
            assert!(format(good).is_ok(), "{good}");
        }
        for (bad, says) in [
            ("%NOPE%", "%NOPE%"),
            (r#"{"code": "%NOPE%"}"#, "%NOPE%"),
            (r#"{"code": 1}"#, "invalid type"),
            (r#"{"code": "x""#, "EOF"),
        ] {
            let error = format(bad).unwrap_err();
            assert!(error.contains(says), "{bad}: {error}");
        }
    }

    #[test]
    fn what_a_controller_is_told_waypoints_are() {
        let text = "%REQ(:METHOD)% \"x\"\n";
        let arguments =
            AccessLogArguments { access_log_format: Some(format(text).unwrap()), access_log_sampling: 12.5 };
        let args = arguments.to_args();
        assert_eq!(args, [format!("--access-log-format={text}"), "--access-log-sampling=12.5".to_owned()]);
        assert_eq!(arguments.access_log().sampling, Percent(125_000));
    }
}
