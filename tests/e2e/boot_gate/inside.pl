# What a pod's own processes do, as they are told on standard input, one line each: the answer is one line too.
use strict;
use warnings;
use IO::Select;
use Socket qw(:DEFAULT inet_pton getaddrinfo AF_INET6 IPPROTO_TCP AI_NUMERICHOST AI_NUMERICSERV);

use constant { MPTCP => 262, SMC => 43, V6ONLY => 26, IPPROTO_IPV6 => 41, PATIENCE => 5, QUESTION => "are you there?\n" };

$| = 1;
$SIG{CHLD} = 'IGNORE';
my %datagrams;
my %spare;

# Serves echo at a socket that listens.
sub serve {
    my ($listener) = @_;
    listen($listener, 128) or return said(0);
    return 'ok' if fork;
    while (accept(my $stream, $listener)) {
        next if fork;
        while (sysread($stream, my $bytes, 65536)) { syswrite($stream, $bytes) }
        exit;
    }
    exit;
}

sub address {
    my ($host, $port, $type) = @_;
    my $hints = { flags => AI_NUMERICHOST | AI_NUMERICSERV, socktype => $type };
    my ($error, $found) = getaddrinfo($host, $port, $hints);
    die "$host: $error" if $error;
    return $found;
}

# "ok", or the number of the error.
sub said { return $_[0] ? 'ok' : 'error ' . ($! + 0) }

sub wildcard {
    my ($type, $port) = @_;
    socket(my $socket, AF_INET6, $type, 0) or return;
    setsockopt($socket, IPPROTO_IPV6, V6ONLY, pack('i', 0));
    setsockopt($socket, SOL_SOCKET, SO_REUSEADDR, pack('i', 1));
    bind($socket, pack_sockaddr_in6($port, "\0" x 16)) or return;
    return $socket;
}

sub ask {
    my ($stream) = @_;
    my $ready = IO::Select->new($stream);
    syswrite($stream, QUESTION) or return said(0);
    return 'silence' unless $ready->can_read(PATIENCE);
    my $read = sysread($stream, my $answer, 100);
    return defined $read ? ($read ? 'ok' : 'end') : said(0);
}

sub answers {
    my ($to, $word) = @_;
    socket(my $stream, $to->{family}, SOCK_STREAM, 0) or return;
    connect($stream, $to->{addr}) or return;
    syswrite($stream, "$word\n") or return;
    return IO::Select->new($stream)->can_read(PATIENCE) && sysread($stream, my $answer, 100);
}

my %commands = (
    # Asks an echo server.
    dial => sub {
        my ($host, $port) = @_;
        my $to = address($host, $port, SOCK_STREAM);
        socket(my $stream, $to->{family}, SOCK_STREAM, 0) or return said(0);
        connect($stream, $to->{addr}) or return said(0);
        return ask($stream);
    },
    # Asks an echo server until it answers. Says how often it did not.
    insist => sub {
        my ($host, $port, $word) = @_;
        my $to = address($host, $port, SOCK_STREAM);
        for my $failures (0 .. 6000) {
            return "after $failures" if answers($to, $word);
            select(undef, undef, undef, 0.01);
        }
        return 'never';
    },
    # Serves echo, over both families.
    listen => sub {
        my ($port) = @_;
        my $listener = wildcard(SOCK_STREAM, $port) or return said(0);
        return serve($listener);
    },
    # Makes sockets to use later: one that is bound, and two that are not.
    spare => sub {
        my ($port) = @_;
        $spare{listener} = wildcard(SOCK_STREAM, $port) or return said(0);
        for my $family (AF_INET, AF_INET6) {
            socket($spare{$family}, $family, SOCK_STREAM, 0) or return said(0);
        }
        return 'ok';
    },
    # Dials with one of these.
    'spare-dial' => sub {
        my ($host, $port) = @_;
        my $to = address($host, $port, SOCK_STREAM);
        return said(connect($spare{$to->{family}}, $to->{addr}));
    },
    # Listens with one of these.
    'spare-listen' => sub { return serve($spare{listener}) },
    # Dials with a socket of SMC, below which the kernel makes one of TCP.
    smc => sub {
        my ($host, $port) = @_;
        my $to = address($host, $port, SOCK_STREAM);
        socket(my $socket, SMC, SOCK_STREAM, $to->{family} == AF_INET ? 0 : 1) or return said(0);
        return said(connect($socket, $to->{addr}));
    },
    # Sends a datagram from a socket that is not connected.
    send => sub {
        my ($host, $port) = @_;
        my $to = address($host, $port, SOCK_DGRAM);
        socket(my $socket, $to->{family}, SOCK_DGRAM, 0) or return said(0);
        return said(send($socket, 'hello', 0, $to->{addr}));
    },
    # Connects a socket for datagrams.
    associate => sub {
        my ($host, $port) = @_;
        my $to = address($host, $port, SOCK_DGRAM);
        socket(my $socket, $to->{family}, SOCK_DGRAM, 0) or return said(0);
        return said(connect($socket, $to->{addr}));
    },
    # Takes datagrams, over both families.
    bind => sub {
        my ($port) = @_;
        my $socket = wildcard(SOCK_DGRAM, $port) or return said(0);
        $datagrams{$port} = $socket;
        return 'ok';
    },
    # What has come there.
    heard => sub {
        my ($port) = @_;
        my $count = 0;
        while (defined recv($datagrams{$port}, my $bytes, 100, MSG_DONTWAIT)) { $count++ }
        return $count;
    },
    # Sends an echo request, as ping does.
    raw => sub {
        my ($host) = @_;
        my $to = address($host, 0, SOCK_DGRAM);
        socket(my $socket, $to->{family}, SOCK_RAW, $to->{family} == AF_INET ? 1 : 58) or return said(0);
        my $type = $to->{family} == AF_INET ? 8 : 128;
        return said(send($socket, pack('CCnnn', $type, 0, 0, 0, 0), 0, $to->{addr}));
    },
    # Makes a socket of MPTCP.
    mptcp => sub { return said(socket(my $socket, AF_INET, SOCK_STREAM, MPTCP)) },
);

while (my $line = <STDIN>) {
    my ($command, @arguments) = split ' ', $line;
    print $commands{$command}->(@arguments), "\n";
}
