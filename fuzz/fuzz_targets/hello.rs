//! The first bytes of a client's connection, by whose TLS policies and routes may go.
#![no_main]

use libfuzzer_sys::fuzz_target;
use orlop_proxy::fuzzing;
use rustls::server::Acceptor;

fuzz_target!(|input: &[u8]| {
    let Some(seen) = fuzzing::hello(input) else { return };
    if let Some(name) = &seen {
        assert!(!name.is_empty() && name.is_ascii() && *name == name.to_ascii_lowercase());
    }
    // A server that takes the same bytes for a hello takes them for one to the same host.
    let mut acceptor = Acceptor::default();
    let mut rest = input;
    while let Ok(1..) = acceptor.read_tls(&mut rest) {
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                let theirs = accepted.client_hello().server_name().map(str::to_ascii_lowercase);
                assert_eq!(seen, theirs);
                return;
            }
            Ok(None) => {}
            Err(_) => return,
        }
    }
});
