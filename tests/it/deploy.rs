//! What runs around the service knows the service's limits, and everybody the same images.

use std::{fs, path::Path};

use deskfeed::domain::limits;

/// Connections of a process besides those for reads (writer, acknowledgements, listener, relay).
const CONNECTIONS_BESIDES_READERS: u64 = 6;
/// Connections that PostgreSQL keeps for superusers.
const CONNECTIONS_RESERVED: u64 = 3;

#[test]
fn the_balancer_waits_longer_than_a_poll() {
    let balancer = read("deploy/haproxy.cfg");
    for name in ["timeout client ", "timeout server "] {
        let waits = number(&balancer, name);
        assert!(waits >= limits::POLL_WAIT_S_MAX + 10, "{name}{waits}s");
    }
    let idle = number(&balancer, "timeout http-keep-alive ");
    assert!(idle >= limits::KEEP_ALIVE_S, "the service keeps idle connections longer, {} s", limits::KEEP_ALIVE_S);
}

#[test]
fn the_balancer_takes_what_the_service_takes() {
    let buffer = number(&read("deploy/haproxy.cfg"), "tune.bufsize ");
    let url = u64::try_from(limits::URL_BYTES_MAX).expect("fits");
    assert!(buffer >= url + 12 * 1024, "a URL of {url} bytes and 12 KiB of headers do not fit in {buffer}");
}

#[test]
fn each_replica_that_the_balancer_has_room_for_gets_its_connections() {
    let compose = read("docker-compose.yml");
    let replicas = number(&read("deploy/haproxy.cfg"), "server-template replica ");
    let readme = read("README.md");
    let readers: u64 = readme
        .lines()
        .find(|line| line.contains("`DESKFEED_DB_READERS`"))
        .and_then(|line| line.rsplit('`').nth(1))
        .and_then(|text| text.parse().ok())
        .expect("README names the default");
    let wanted = replicas * (readers + CONNECTIONS_BESIDES_READERS) + CONNECTIONS_RESERVED;
    let there = number(&compose, "max_connections=");
    assert!(wanted <= there, "{replicas} replicas want {wanted} connections, PostgreSQL has {there}");
    assert!(replicas > number(&compose, "deploy: {replicas: "), "room for one more while they are replaced");
}

#[test]
fn a_replica_is_given_the_time_it_takes_to_stop() {
    let compose = read("docker-compose.yml");
    let service = compose.split("\n  deskfeed:\n").nth(1).expect("the service");
    let grace = number(service, "stop_grace_period: ");
    assert!(grace > limits::SHUTDOWN_S, "{grace} s");
}

#[test]
fn everybody_names_the_same_images() {
    let (compose, dockerfile, engine) = (read("docker-compose.yml"), read("Dockerfile"), read(".ci/engine"));
    let rules = read(".ci/run");
    for (variable, file, start, end) in [
        ("postgres_image", &compose, "${POSTGRES_IMAGE:-", "}"),
        ("haproxy_image", &compose, "${HAPROXY_IMAGE:-", "}"),
        ("prometheus_image", &compose, "${PROMETHEUS_IMAGE:-", "}"),
        ("prometheus_image", &rules, "/etc/prometheus:ro\" ", " "),
        ("rust_image", &dockerfile, "ARG RUST_IMAGE=", "\n"),
        ("debian_image", &dockerfile, "ARG BASE_IMAGE=", "\n"),
    ] {
        let named = file.split(start).nth(1).and_then(|rest| rest.split(end).next());
        let named = named.unwrap_or_else(|| panic!("{start} is not there"));
        assert!(
            engine.contains(&format!("readonly {variable}={named}\n")),
            ".ci/engine has another {variable}: {named}"
        );
    }
}

/// The first number after a text.
fn number(text: &str, before: &str) -> u64 {
    let rest = text.split(before).nth(1).unwrap_or_else(|| panic!("{before} is not there"));
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or_else(|error| panic!("{before}: {error}"))
}

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
