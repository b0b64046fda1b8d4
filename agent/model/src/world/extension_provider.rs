use std::time::Duration;

use super::security::Pattern;
use crate::name::NamespacedName;

/// An `orlop.dev` ExtensionProvider: who is asked about requests that an AuthorizationPolicy with action CUSTOM matches.
/// It says what an entry of `extensionProviders` says in Istio's mesh configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtensionProvider {
    /// Namespace and name.
    pub name: NamespacedName,
    /// `service`: the host of a service, and the namespace in which that is looked for where it says one.
    pub host: String,
    /// The same.
    pub namespace: Option<String>,
    /// `port`
    pub port: u16,
    /// `timeout`
    pub timeout: Duration,
    /// `failOpen`: whether requests pass while it can't be asked.
    pub fail_open: bool,
    /// `statusOnError`: what they are answered with else.
    pub status_on_error: u16,
    /// `includeRequestBodyInCheck`
    pub body: Option<BodyInCheck>,
    /// How it is asked.
    pub speaks: Speaks,
}

impl ExtensionProvider {
    /// The namespace in which its host is looked for: its own, unless `service` says another.
    pub fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or(&self.name.namespace)
    }
}

/// How much of a request's body a provider sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyInCheck {
    /// `maxRequestBytes`
    pub max: usize,
    /// `allowPartialMessage`: whether it sees the beginning of one that is longer, which is refused else.
    pub partial: bool,
    /// `packAsBytes`: whether it gets bytes, in place of a text.
    pub bytes: bool,
}

/// What a provider speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// `envoyExtAuthzGrpc`: `envoy.service.auth.v3.Authorization`.
    Grpc,
    /// `envoyExtAuthzHttp`: a request like the one that is asked about.
    Http(HttpCheck),
}

/// What of a request an HTTP provider sees, and what becomes of its answer. Names of headers are in lower case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpCheck {
    /// `pathPrefix`, before the request's path.
    pub path_prefix: String,
    /// `includeRequestHeadersInCheck`, beside `authorization`.
    pub shown: Vec<Pattern>,
    /// `includeAdditionalHeadersInCheck`: names and values.
    pub added: Vec<(String, String)>,
    /// `headersToUpstreamOnAllow`: of the answer, what the server gets.
    pub to_upstream: Vec<Pattern>,
    /// `headersToDownstreamOnDeny`: of the answer, what the client gets when it is refused; all where it is empty.
    pub to_client_on_deny: Vec<Pattern>,
    /// `headersToDownstreamOnAllow`: of the answer, what the client gets with the server's.
    pub to_client_on_allow: Vec<Pattern>,
}
