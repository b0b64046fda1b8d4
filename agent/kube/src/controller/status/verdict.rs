//! What is to be said of an object before it is stored, by what its conditions would say.

use orlop_model::{Finding, World};

use super::Judgement;
use super::conditions::{ACCEPTED, Condition, conditions, part};
use crate::cluster::Head;
use crate::object::Key;

/// What would be said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Why it can't be accepted, whatever else there is in the cluster.
    pub errors: Vec<String>,
    /// What else its author should know, such as that something is not there which may yet come.
    pub warnings: Vec<String>,
}

impl Verdict {
    pub fn warning(text: &str) -> Self {
        Self { errors: Vec::new(), warnings: vec![part(text)] }
    }

    pub fn error(text: &str) -> Self {
        Self { errors: vec![part(text)], warnings: Vec::new() }
    }

    /// Both together.
    pub fn and(mut self, other: Self) -> Self {
        self.errors.extend(other.errors);
        self.warnings.extend(other.warnings);
        self
    }

    /// The same, of something that is let pass.
    pub fn into_warnings(mut self) -> Self {
        self.errors.append(&mut self.warnings);
        Self { errors: Vec::new(), warnings: self.errors }
    }

    fn add(&mut self, condition: &Condition) {
        let Condition { kind, status, reason, message } = condition;
        let (list, text) = match *status {
            "False" if *kind == ACCEPTED || reason == UNSUPPORTED => (&mut self.errors, message.clone()),
            "False" => (&mut self.warnings, format!("{reason}: {message}")),
            "True" if !message.is_empty() => (&mut self.warnings, message.clone()),
            _ => return,
        };
        if !list.contains(&text) {
            list.push(text);
        }
    }
}

/// Of a route's reasons the one that is of the route alone: what it is for may come after it, or let it in then.
const UNSUPPORTED: &str = "UnsupportedValue";

impl Judgement {
    /// Of an object of this world.
    pub(crate) fn verdict(&self, world: &World, key: &Key, head: &Head) -> Verdict {
        let findings: Vec<&Finding> = self.findings.get(key).into_iter().flatten().collect();
        let mut verdict = Verdict::default();
        if let Some(parents) = self.told(world, key, head, &findings, |told| told.parents()) {
            parents.iter().flat_map(|(.., conditions)| conditions).for_each(|of| verdict.add(of));
            // What others make of it is not for us to say.
            let is_ours = parents.len() == head.parents.refs.len();
            return if is_ours { verdict } else { verdict.into_warnings() };
        }
        match &head.refused {
            // What holds until it is mended does not, as it is not stored.
            Some(error) => verdict.errors.push(part(&error.to_string())),
            None => match key {
                Key::BackendTls(name) => {
                    let said = self.policy(world, name, head, &findings).services();
                    said.iter().flat_map(|(.., conditions)| conditions).for_each(|of| verdict.add(of));
                }
                _ => conditions(key.kind(), None, &findings).iter().for_each(|of| verdict.add(of)),
            },
        }
        verdict
    }
}
