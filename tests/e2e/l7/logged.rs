//! The access log in a format of one's own.

use orlop_tests::traffic::request;
use serde_json::Value;

use super::Stage;
use super::scripted::{Reply, Scripted};
use crate::mesh::TIMEOUT;

/// The lines of the log that begin so, without that.
fn lines(stage: &Stage, begin: &str) -> Vec<String> {
    let log = stage.waypoint.log().unwrap();
    log.lines().filter_map(|line| line.strip_prefix(begin)).map(str::to_owned).collect()
}

/// Waits for one that is so.
#[track_caller]
fn line(stage: &Stage, begin: &str, wanted: impl Fn(&str) -> bool) -> String {
    let mut found = None;
    orlop_tests::wait_for(TIMEOUT, || {
        found = lines(stage, begin).into_iter().find(|line| wanted(line));
        found.is_some()
    });
    found.unwrap_or_else(|| panic!("no such line in:\n{}", stage.waypoint.log().unwrap()))
}

#[test]
fn a_text_tells_what_is_asked_of_requests() {
    let format = "LOG %START_TIME% \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% \
        %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %BYTES_RECEIVED% %BYTES_SENT% \"%REQ(USER-AGENT)%\" \
        \"%RESP(X-MINE)%\" %UPSTREAM_HOST% %UPSTREAM_CLUSTER% %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% \
        %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_PEER_URI_SAN%\n";
    let stage = Stage::with(&["--access-log-format", format]);
    let server =
        Scripted::start(&stage.mesh.server, |_| Reply::With(200, vec![("x-mine", "1")], "ok".to_owned()));
    let mut stream = stage.connect();
    let head = "POST /a?b=c HTTP/1.1\r\nhost: web\r\nuser-agent: me \"x\"\r\ncontent-length: 2\r\n\r\nhi";
    assert_eq!(request(&mut stream, head).unwrap().status, 200);
    let told = line(&stage, "LOG ", |line| line.contains("POST"));
    let (time, rest) = told.split_once(' ').unwrap();
    assert!(time.ends_with('Z') && time.len() == "2024-01-01T00:00:00.000Z".len(), "{time}");
    let (client, web) = (stage.mesh.client.ipv4(), stage.web());
    let identity = crate::hbone::identity("client");
    let wanted = format!(
        "\"POST /a?b=c HTTP/1.1\" 200 - via_upstream 2 2 \"me \"x\"\" \"1\" {} web.shop.svc.cluster.local {client} {web} {identity}",
        stage.mesh.server.addr(80)
    );
    assert_eq!(rest, wanted);
    drop(server);
    assert_eq!(stage.get("/gone").status, 503);
    let told = line(&stage, "LOG ", |line| line.contains("/gone"));
    assert!(told.contains("\"GET /gone HTTP/1.1\" 503 UF,URX peer_refused 0 "), "{told}");
    assert!(stage.records().is_empty(), "{:#?}", stage.records());
}

#[test]
fn an_object_has_its_keys_and_as_many_requests_as_are_wanted() {
    let format = r#"{"status": "%RESPONSE_CODE%", "path": "%REQ(:PATH)%", "agent": "%REQ(USER-AGENT)%", "marked": "%REQ(X-MARK)%"}"#;
    let stage = Stage::with(&["--access-log-format", format, "--access-log-sampling", "25"]);
    let _server = Scripted::status(&stage.mesh.server, 200);
    let mut stream = stage.connect();
    for number in 0..400 {
        let head = format!("GET /{number} HTTP/1.1\r\nhost: web\r\nuser-agent: \"\\\r\n\r\n");
        assert_eq!(request(&mut stream, &head).unwrap().status, 200);
    }
    stage.await_count(&[], 400.0);
    let log = stage.waypoint.log().unwrap();
    let told = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let told: Vec<_> = told.filter(|line| line.get("marked").is_some()).collect();
    assert!((98..=102).contains(&told.len()), "{}", told.len());
    for line in &told {
        assert_eq!(
            (&line["status"], &line["agent"], &line["marked"]),
            (&200.into(), &"\"\\".into(), &Value::Null)
        );
    }
}

#[test]
fn a_line_has_its_trace_its_host_and_its_time_as_it_is_wanted() {
    let format = "LOG %START_TIME(%Y-%m-%d %s.%3f)% %GRPC_STATUS% %GRPC_STATUS_NUMBER% %HOSTNAME% %TRACE_ID% %PROTOCOL%\n";
    let traced = ["--otlp", "http://127.0.0.1:9", "--trace-sampling", "0", "--access-log-format", format];
    let stage = Stage::with(&traced);
    let _server = Scripted::start(&stage.mesh.server, |asked| {
        let status = if asked.line.contains("/grpc") { "5" } else { "" };
        Reply::With(200, vec![("grpc-status", status), ("content-type", "application/grpc")], String::new())
    });
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let head = format!(
        "POST /grpc HTTP/1.1\r\nhost: web\r\ncontent-type: application/grpc\r\ncontent-length: 0\r\n\
         traceparent: 00-{trace}-b7ad6b7169203331-00\r\n\r\n"
    );
    assert_eq!(request(&mut stage.connect(), &head).unwrap().status, 200);
    let told = line(&stage, "LOG ", |line| line.contains(trace));
    let [day, time, status, number, host, _, protocol] = told.split(' ').collect::<Vec<_>>()[..] else {
        panic!("{told}")
    };
    assert_eq!((status, number, protocol), ("NotFound", "5", "HTTP/1.1"));
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(host, hostname.trim_end());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    let since = now - time.parse::<f64>().unwrap();
    assert!((0.0..60.0).contains(&since), "{told}");
    assert!(day.len() == 10 && day.starts_with("20"), "{told}");
}
