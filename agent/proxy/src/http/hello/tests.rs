use super::*;

const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;
const APPLICATION_DATA: u8 = 23;

fn sized(bytes: usize, of: &[u8]) -> Vec<u8> {
    [&(of.len() as u32).to_be_bytes()[4 - bytes..], of].concat()
}

fn extension(kind: u16, body: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &sized(2, body)].concat()
}

fn named(name: &str) -> Vec<u8> {
    extension(SERVER_NAME, &sized(2, &[&[0][..], &sized(2, name.as_bytes())].concat()))
}

/// The message of a hello with these extensions.
fn message_of(extensions: &[Vec<u8>]) -> Vec<u8> {
    let fixed = [&[3, 3][..], &[7; 32], &sized(1, &[]), &sized(2, &[0x13, 1]), &sized(1, &[0])].concat();
    let body = [fixed, sized(2, &extensions.concat())].concat();
    [vec![CLIENT_HELLO], sized(3, &body)].concat()
}

fn record(content: &[u8]) -> Vec<u8> {
    [&[HANDSHAKE, 3, 1][..], &sized(2, content)].concat()
}

fn hello_of(extensions: &[Vec<u8>]) -> Vec<u8> {
    record(&message_of(extensions))
}

fn seen(bytes: &[u8]) -> Option<Seen> {
    read(bytes).map(|(seen, _)| seen)
}

fn tls(name: &str) -> Option<Seen> {
    Some(Seen::Tls(Some(name.to_owned())))
}

#[test]
fn a_name_is_read_however_the_hello_comes() {
    let hello = hello_of(&[extension(10, &[0, 2, 0, 29]), named("A.example")]);
    assert_eq!(read(&hello).map(|(_, length)| length), Some(hello.len()));
    assert_eq!(seen(&hello), tls("a.example"));
    for length in 0..hello.len() {
        assert_eq!(seen(&hello[..length]), None, "{length}");
    }
    // In a record for each byte of it.
    let whole = message_of(&[named("a.example")]);
    let pieces: Vec<u8> = whole.iter().flat_map(|byte| record(&[*byte])).collect();
    assert_eq!(seen(&pieces), tls("a.example"));
    assert_eq!(seen(&hello_of(&[])), Some(Seen::Tls(None)));
    // What follows is somebody else's concern.
    assert_eq!(seen(&[&hello[..], b"more"].concat()), tls("a.example"));
}

#[test]
fn what_could_be_tls_and_is_not_understood_is_unknown() {
    let good = hello_of(&[named("a")]);
    let with = |index: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[index] = byte;
        bytes
    };
    let message = message_of(&[named("a")]);
    let two_names = [&[0][..], &sized(2, b"a"), &[0], &sized(2, b"b")].concat();
    for (what, bytes) in [
        ("another version of records", with(1, 2)),
        ("another version of the hello", with(9, 2)),
        ("two hellos in a record", record(&[&message[..], &message].concat())),
        ("two names", hello_of(&[extension(SERVER_NAME, &sized(2, &two_names))])),
        ("the extension twice", hello_of(&[named("a"), named("b")])),
        ("another kind of name", hello_of(&[extension(SERVER_NAME, &sized(2, &[1, 0, 1, b'a']))])),
        ("nothing in the extension", hello_of(&[extension(SERVER_NAME, &[])])),
        ("more in the extension", hello_of(&[extension(SERVER_NAME, &[0, 4, 0, 0, 1, b'a', 0])])),
        ("a name with a zero", hello_of(&[named("a\0b")])),
        ("a name with a dot at its end", hello_of(&[named("a.")])),
        ("an address", hello_of(&[named("10.0.0.1")])),
        ("an empty name", hello_of(&[named("")])),
        ("a name that is too long", hello_of(&[named(&"a.".repeat(150))])),
        ("an encrypted name", hello_of(&[named("a"), extension(ENCRYPTED_CLIENT_HELLO, &[])])),
        ("early data", hello_of(&[named("a"), extension(EARLY_DATA, &[])])),
        ("an empty record between", [record(&message[..9]), record(&[]), record(&message[9..])].concat()),
        (
            "an alert between",
            [record(&message[..9]), vec![ALERT, 3, 1, 0, 2, 1, 0], record(&message[9..])].concat(),
        ),
        ("another message", record(&[2, 0, 0, 0])),
        ("a record that is too long", vec![HANDSHAKE, 3, 1, 0x40, 1, CLIENT_HELLO]),
        ("another record first", vec![APPLICATION_DATA, 3, 3, 0, 1, 0]),
        ("a change of cipher first", [vec![CHANGE_CIPHER_SPEC, 3, 3, 0, 1, 1], good.clone()].concat()),
        ("SSL 2", vec![0x80, 0x2e, 1, 3, 1]),
        ("SSL 2 with padding", vec![0x00, 0x2e, 0, 1, 3, 1]),
        ("PostgreSQL's wish for TLS", vec![0, 0, 0, 8, 4, 0xd2, 0x16, 0x2f]),
        (
            "what never ends",
            [record(&[1, 255, 255, 255]), record(&[0; MAX_RECORD]), record(&[0; MAX_RECORD])].concat(),
        ),
    ] {
        assert_eq!(seen(&bytes), Some(Seen::Unknown), "{what}");
    }
    for plain in [&b"GET "[..], b"*1\r\n", b"QUIT", b"PROXY TCP4", b"\r\n\r\n\0\r\nQUIT\n", b"E"] {
        assert_eq!(seen(plain), Some(Seen::Unknown));
    }
}

#[test]
fn every_byte_that_is_changed_leaves_the_name_or_makes_it_unknown() {
    let good = hello_of(&[named("a"), extension(10, &[1, 2])]);
    let at = good.iter().rposition(|byte| *byte == b'a').unwrap();
    for index in (0..good.len()).filter(|index| *index != at) {
        for byte in 0..=u8::MAX {
            let mut bytes = good.clone();
            bytes[index] = byte;
            // If the name itself is hidden there is none to go by.
            let name = match seen(&bytes) {
                Some(Seen::Tls(Some(name))) => name,
                _ => continue,
            };
            assert_eq!(name, "a", "{index} {byte}");
        }
    }
}
