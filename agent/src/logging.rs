use anyhow::Context as _;
use tracing_subscriber::{filter::Targets, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::cli::{LogArguments, LogFormat};

/// Logs to standard error from now on.
pub fn start(arguments: &LogArguments) -> anyhow::Result<()> {
    let filter: Targets = arguments.log.parse().with_context(|| {
        format!("--log {:?} is not a filter such as `info` or `warn,access=info`", arguments.log)
    })?;
    let registry = tracing_subscriber::registry().with(filter);
    match arguments.log_format {
        LogFormat::Text => registry.with(fmt::layer().with_writer(std::io::stderr).with_ansi(false)).init(),
        LogFormat::Json => {
            registry.with(fmt::layer().json().flatten_event(true).with_writer(std::io::stderr)).init()
        }
    }
    Ok(())
}
