//! What dashboards and alert rules ask for is there to be asked for.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use serde_json::{Value, json};

use crate::support::TestDesk;

/// Labels that Prometheus adds to every series.
const ADDED_LABELS: [&str; 2] = ["instance", "job"];

/// Metrics by name, each with names of its labels.
pub type Metrics = BTreeMap<String, BTreeSet<String>>;

#[tokio::test]
async fn dashboards_and_rules_ask_for_metrics_of_the_service() {
    let desk = TestDesk::start().await;
    let (ann, web) = (desk.agent("ann").await, desk.gateway("web").await);
    web.open_to("s1", "ann").await.ok();
    web.send("s1", "text").await.ok();
    assert_eq!(ann.query("wait=0").await.events().len(), 2);
    assert_eq!(ann.get("/session/history?SessionId=none").await.code(), 40401);
    let exposed = exposed(&desk.admin.get("/metrics").await.text);
    let asked = asked_for(&["deskfeed_", "http_server_"]);
    assert!(asked.len() >= 10, "only {asked:?}: does the test still read them?");
    check(&asked, &exposed);
}

#[tokio::test]
async fn what_somebody_is_woken_for_is_there_before_it_happens() {
    let desk = TestDesk::start().await;
    let text = desk.admin.get("/metrics").await.text;
    // As a whole line: Prometheus sees the step from 0 to 1 only if there was a 0.
    let rules = read("deploy/prometheus/rules.yml");
    let mut codes = 0;
    for part in rules.split("deskfeed_problems_total{code=\"").skip(1) {
        let code = &part[..5];
        assert!(text.contains(&format!("deskfeed_problems_total{{code=\"{code}\"}} ")), "no {code} in {text}");
        codes += 1;
    }
    assert!(codes >= 4, "{codes}");
}

#[test]
fn the_dashboard_is_one_that_grafana_takes() {
    let dashboard: Value = serde_json::from_str(&read("deploy/grafana/dashboards/deskfeed.json")).expect("JSON");
    let source = read("deploy/grafana/provisioning/datasources/prometheus.yml");
    let uid = line_value(&source, "uid:");
    let panels = dashboard["panels"].as_array().expect("panels");
    let (mut ids, mut cells) = (BTreeSet::new(), BTreeSet::new());
    for panel in panels {
        let title = panel["title"].as_str().expect("a title");
        assert!(ids.insert(panel["id"].as_u64().expect("an id")), "{title}: its id is another's too");
        let place = |name: &str| panel["gridPos"][name].as_u64().unwrap_or_else(|| panic!("{title}: no {name}"));
        for x in place("x")..place("x") + place("w") {
            assert!(x < 24, "{title} is wider than the page");
            for y in place("y")..place("y") + place("h") {
                assert!(cells.insert((x, y)), "{title} lies on another panel");
            }
        }
        if panel["type"] == "row" {
            continue;
        }
        assert!(panel["description"].as_str().is_some_and(|text| !text.is_empty()), "{title}: no description");
        assert_eq!(panel["datasource"], json!({"type": "prometheus", "uid": uid}), "{title}");
        let targets = panel["targets"].as_array().expect("targets");
        assert!(!targets.is_empty(), "{title} shows nothing");
        for target in targets {
            assert_eq!(target["datasource"]["uid"], uid, "{title}");
            assert!(target["expr"].as_str().is_some_and(|expr| !expr.is_empty()), "{title}");
        }
    }
    assert!(ids.len() > 10, "{}", ids.len());
    let provider = read("deploy/grafana/provisioning/dashboards/deskfeed.yml");
    let compose = read("docker-compose.yml");
    assert!(provider.contains("path: /etc/grafana/dashboards}"), "{provider}");
    assert!(compose.contains("./deploy/grafana/dashboards:/etc/grafana/dashboards:ro"));
    assert!(compose.contains("./deploy/grafana/provisioning:/etc/grafana/provisioning:ro"));
}

#[test]
fn each_alert_says_what_to_do_and_is_tested() {
    let rules = read("deploy/prometheus/rules.yml");
    let tests = read("deploy/prometheus/rules_test.yml");
    let alerts: Vec<&str> = rules.split("- alert: ").skip(1).collect();
    assert!(alerts.len() > 5);
    for alert in alerts {
        let name = alert.lines().next().expect("a name");
        assert!(line_value(alert, "summary:").len() > 60, "{name}: what is to be done?");
        assert!(alert.contains("severity: critical") || alert.contains("severity: warning"), "{name}: how urgent?");
        let samples = tests.matches(&format!("[{{labels: 'ALERTS{{alertname=\"{name}\"")).count();
        assert!(samples >= 1, "{name} is not tested");
    }
}

/// Metrics with these beginnings that the dashboard and the rules ask for.
pub fn asked_for(prefixes: &[&str]) -> Metrics {
    let dashboard: Value = serde_json::from_str(&read("deploy/grafana/dashboards/deskfeed.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels").iter();
    let mut expressions: Vec<String> = panels
        .flat_map(|panel| panel["targets"].as_array().cloned().unwrap_or_default())
        .map(|target| target["expr"].as_str().expect("an expression").to_owned())
        .collect();
    let rules = read("deploy/prometheus/rules.yml");
    expressions.extend(rules.lines().filter_map(|line| line.trim().strip_prefix("expr:")).map(str::to_owned));
    let mut asked = Metrics::new();
    for expression in expressions {
        for (name, labels) in selectors(&expression) {
            if prefixes.iter().any(|prefix| name.starts_with(prefix)) {
                asked.entry(name).or_default().extend(labels);
            }
        }
    }
    asked
}

/// Everything in a Prometheus text.
pub fn exposed(text: &str) -> Metrics {
    let mut exposed = Metrics::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        for (name, labels) in selectors(line).into_iter().take(1) {
            exposed.entry(name).or_default().extend(labels);
        }
    }
    exposed
}

/// Each metric that is asked for is there, with the labels asked for.
pub fn check(asked: &Metrics, exposed: &Metrics) {
    for (name, labels) in asked {
        let there = exposed.get(name).unwrap_or_else(|| panic!("nobody exposes {name}"));
        for label in labels {
            assert!(there.contains(label) || ADDED_LABELS.contains(&label.as_str()), "{name} has no label {label}");
        }
    }
}

/// Names in a text that look like metrics, each with the labels in its braces.
fn selectors(text: &str) -> Vec<(String, Vec<String>)> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find(|c: char| c.is_ascii_alphabetic()) {
        let word = &rest[start..];
        let end = word.find(|c| !is_name(c)).unwrap_or(word.len());
        let (name, after) = word.split_at(end);
        let braces = after.strip_prefix('{').and_then(|inside| inside.split_once('}'));
        let labels = braces.map_or(Vec::new(), |(inside, _)| {
            inside
                .split(',')
                .filter_map(|pair| pair.split_once('='))
                .map(|(label, _)| label.trim().to_owned())
                .collect()
        });
        found.push((name.to_owned(), labels));
        rest = braces.map_or(after, |(_, behind)| behind);
    }
    found
}

fn line_value<'a>(text: &'a str, key: &str) -> &'a str {
    let line = text.lines().find_map(|line| line.trim().strip_prefix(key));
    line.unwrap_or_else(|| panic!("no {key}")).trim()
}

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
