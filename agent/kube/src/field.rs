use std::fmt;
use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use orlop_model::world::{Protocol, TargetPort};
use serde::de::{DeserializeOwned, Error as _, IgnoredAny};
use serde::{Deserialize, Deserializer};
use serde_path_to_error::Segment;

/// What is wrong with one field of an object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct FieldError {
    /// Which field.
    pub path: FieldPath,
    /// What is wrong and what would be right.
    pub problem: String,
}

impl FieldError {
    pub(crate) fn new(path: impl Into<FieldPath>, problem: impl Into<String>) -> Self {
        Self { path: path.into(), problem: problem.into() }
    }

    /// The same of a part of an object, which is at this path.
    pub(crate) fn below(self, path: &FieldPath) -> Self {
        let steps = path.0.iter().cloned().chain(self.path.0);
        Self { path: FieldPath(steps.collect()), problem: self.problem }
    }
}

/// The way to a field from the object's root; shown as `status.podIPs[0].ip`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldPath(pub(crate) Vec<Step>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Key(String),
    Index(usize),
}

impl FieldPath {
    pub(crate) fn key(mut self, key: impl Into<String>) -> Self {
        self.0.push(Step::Key(key.into()));
        self
    }

    pub(crate) fn index(mut self, index: usize) -> Self {
        self.0.push(Step::Index(index));
        self
    }
}

/// Keys joined by dots.
impl From<&str> for FieldPath {
    fn from(keys: &str) -> Self {
        keys.split('.').fold(Self::default(), Self::key)
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, step) in self.0.iter().enumerate() {
            match step {
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Key(key) if key.contains(['.', '/']) => write!(f, "[{key:?}]")?,
                Step::Key(key) if position == 0 => f.write_str(key)?,
                Step::Key(key) => write!(f, ".{key}")?,
            }
        }
        Ok(())
    }
}

/// A field that may be left out but not be null: `key:` with its entries commented out would mean any.
#[derive(Debug)]
pub(crate) struct NotNull<T>(pub Option<T>);

impl<T> Default for NotNull<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for NotNull<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Option::deserialize(deserializer)? {
            Some(value) => Ok(Self(Some(value))),
            None => Err(D::Error::custom("there is nothing in it; fill it, or leave it out")),
        }
    }
}

/// A field of which only counts whether it is there.
#[derive(Debug)]
pub(crate) struct Ignored;

impl<'de> Deserialize<'de> for Ignored {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

/// An address as the API writes it, with the path to blame if it is none.
pub(crate) fn address(text: &str, path: impl FnOnce() -> FieldPath) -> Result<IpAddr, FieldError> {
    let Ok(address) = text.parse::<IpAddr>() else {
        return Err(FieldError::new(path(), format!("{text:?} is not an IP address")));
    };
    let address = address.to_canonical();
    if address.is_loopback() || address.is_unspecified() || address.is_multicast() {
        return Err(FieldError::new(path(), format!("{text} is no address others can dial")));
    }
    Ok(address)
}

/// A host name, in lower case and without a dot at the end.
pub(crate) fn host(text: &str, path: impl FnOnce() -> FieldPath) -> Result<String, FieldError> {
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let is_label = |label: &str| {
        let inner = label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        (1..=63).contains(&label.len()) && inner && !label.starts_with('-') && !label.ends_with('-')
    };
    if name.len() <= 253 && name.split('.').all(is_label) {
        return Ok(name);
    }
    Err(FieldError::new(path(), format!("{text:?} is not a host name, such as example.com")))
}

pub(crate) fn port(number: i32, path: impl FnOnce() -> FieldPath) -> Result<u16, FieldError> {
    match u16::try_from(number) {
        Ok(number) if number != 0 => Ok(number),
        _ => Err(FieldError::new(path(), format!("{number} is not a port: want 1 to 65535"))),
    }
}

pub(crate) fn protocol(name: Option<&str>, path: impl FnOnce() -> FieldPath) -> Result<Protocol, FieldError> {
    match name {
        None | Some("" | "TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(other) => Err(FieldError::new(path(), format!("{other:?} is not TCP, UDP or SCTP"))),
    }
}

pub(crate) fn target_port(
    target: Option<IntOrString>,
    path: impl FnOnce() -> FieldPath,
) -> Result<TargetPort, FieldError> {
    match target {
        None => Ok(TargetPort::Unset),
        Some(IntOrString::Int(number)) => Ok(TargetPort::Number(port(number, path)?)),
        Some(IntOrString::String(name)) if name.bytes().any(|b| b.is_ascii_lowercase()) => {
            Ok(TargetPort::Name(name))
        }
        Some(IntOrString::String(name)) => {
            let problem = format!("{name:?} is not the name of a port; write a number without quotes");
            Err(FieldError::new(path(), problem))
        }
    }
}

/// Reads it, and says where it is wrong.
pub(crate) fn typed<'de, T: DeserializeOwned, D: Deserializer<'de>>(object: D) -> Result<T, FieldError> {
    serde_path_to_error::deserialize(object).map_err(|error| {
        let path = field_path(error.path());
        FieldError::new(path, type_problem(&error.inner().to_string()))
    })
}

fn type_problem(text: &str) -> String {
    // The place in a text that nobody sees.
    let text = text.split(" at line ").next().unwrap_or(text);
    let scalar = ["integer", "floating point", "boolean"];
    let unquoted = text.ends_with("expected a string") && scalar.iter().any(|kind| text.contains(kind));
    if unquoted { format!("{text}; put it in quotes") } else { text.to_owned() }
}

fn field_path(path: &serde_path_to_error::Path) -> FieldPath {
    path.iter().fold(FieldPath::default(), |found, segment| match segment {
        Segment::Seq { index } => found.index(*index),
        Segment::Map { key } => found.key(key),
        Segment::Enum { variant } => found.key(variant),
        Segment::Unknown => found,
    })
}
