use anyhow::Context as _;
use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    fmt,
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

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

/// Says on standard error what is wrong with objects of a cluster, to somebody who has asked for something else.
pub fn start_for_people() {
    let filter = Targets::new().with_target("orlop_kube", LevelFilter::WARN);
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(false).without_time().with_target(false);
    tracing_subscriber::registry().with(filter).with(lines).init();
}
