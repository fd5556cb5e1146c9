//! Reads are index range scans, whatever the statistics say: the statements themselves, explained
//! on a table of 120,000 events in 120 feeds, in six partitions and the empty ones ahead of them.

use deskfeed::store::pool::{Db, Purpose};
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgConnection, Row};

use crate::support::{TestDesk, postgres};

/// Versions in a partition.
const WIDTH: i64 = 20_000;

/// Feed 7 holds 1,000 Messages and one AddSession at its very end; feed 8 nothing but DelSessions
/// and one Message at its very end. Every other event is somebody's Message.
const LOAD: &str = "
    select make_partitions(1, 160000);
    insert into feeds (kind, feed_id) select 1, 'agent-' || n from generate_series(1, 120) n;
    insert into profiles (feed_key, name) select feed_key, 'name' from feeds;
    insert into agents (feed_key, profile_key) select feed_key, profile_key from profiles;
    insert into sessions (opened_at, status, owner_key, session_id, from_id)
        select now(), 1, 1 + n % 120, 'session-' || n, 'customer' from generate_series(0, 1199) n;
    insert into events (version, created_at, session_key, feed_key, message_seq, profile_key, type, reason,
                        author_key, message_type, content_type, id, content)
        select n + 1, '2026-01-01'::timestamptz + n * interval '1 s', 1 + n % 1200, 1 + n % 120,
               case type when 1 then 1 + n / 1200 else 0 end, 1, type, case type when 2 then 1 else 0 end,
               case type when 1 then 1 else 0 end, 0, 0,
               case type when 1 then gen_random_uuid() end, case type when 1 then repeat('x', 200) end
        from generate_series(0, 119999) n,
             lateral (select case when n = 119886 then 0 when n % 120 = 7 and n < 119880 then 2 else 1 end as type) t;
    insert into acks select 0, 0, feed_key, type from feeds, unnest(array[0, 1, 2]::smallint[]) type;
    -- Feed 9 has acknowledged every second Message: as many gaps as there can be.
    insert into acks select version, version, 9, 1 from events where feed_key = 9 and version % 240 = 9;
    analyze;
";

struct Plans {
    connection: PgConnection,
    desk: TestDesk,
}

impl Plans {
    async fn load() -> Self {
        let desk = TestDesk::on(postgres::database_in_partitions(WIDTH).await, 1, &[]).await;
        sqlx::raw_sql(LOAD).execute(&mut desk.sql().await).await.expect("the events are loaded");
        // The service's own connection, with its settings.
        let db = Db::new(&postgres::as_application(&desk.url), 1).expect("a URL");
        Self { connection: db.connect(Purpose::Reads).await.expect("a connection"), desk }
    }

    /// Explains a statement with these arguments, and runs it.
    async fn explain(&mut self, statement: &str, arguments: &str) -> Plan {
        let sql = format!("deallocate all; prepare explained as {statement}");
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut self.connection).await.expect("the statement is prepared");
        let arguments = if arguments.is_empty() { String::new() } else { format!("({arguments})") };
        let sql = format!("explain (analyze, buffers, timing off, format json) execute explained {arguments}");
        let row = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_one(&mut self.connection).await.expect("a plan");
        let text: String = row.try_get_unchecked(0).expect("the plan as text");
        let mut plan = Plan { text: text.clone(), ..Plan::default() };
        plan.read(&serde_json::from_str::<Value>(&text).expect("JSON")[0]["Plan"]);
        plan
    }
}

/// How a statement got at the large tables.
#[derive(Default)]
struct Plan {
    text: String,
    /// Indexes used on events.
    indexes: Vec<String>,
    /// Scans of events without an index.
    without_index: usize,
    /// Scans that an index does not narrow down, however large a partition grows. (Some are planned while
    /// it is empty.)
    wide: Vec<String>,
    /// The first versions of the partitions that were looked into, each scan by itself.
    looked_into: Vec<i64>,
    /// Rows of events looked at, those thrown away too.
    events_looked_at: f64,
    /// Rows that came out.
    rows: f64,
    /// Rows of other tables looked at, and whether an index led to them: (table, index, rows).
    others: Vec<(String, Option<String>, f64)>,
}

impl Plan {
    fn read(&mut self, node: &Value) {
        if self.rows == 0.0 {
            self.rows = node["Actual Rows"].as_f64().unwrap_or(0.0);
        }
        let relation = node["Relation Name"].as_str().unwrap_or_default();
        if let Some(first_version) = relation.strip_prefix("events_") {
            match node["Index Name"].as_str() {
                Some(index) => {
                    let condition = node["Index Cond"].as_str().unwrap_or_default();
                    let narrow = if index.ends_with("_pkey") {
                        node["Filter"].is_null() || condition.contains('>') && condition.contains('<')
                    } else {
                        ["(feed_key =", "(session_key =", "(id =", "(id_text ="]
                            .iter()
                            .any(|key| condition.contains(key))
                    };
                    if !narrow {
                        self.wide.push(format!("{index}: {condition}"));
                    }
                    self.indexes.push(index.to_owned());
                }
                None => self.without_index += 1,
            }
            let loops = node["Actual Loops"].as_f64().unwrap_or(0.0);
            let per_loop = ["Actual Rows", "Rows Removed by Filter", "Rows Removed by Index Recheck"]
                .iter()
                .filter_map(|name| node[name].as_f64())
                .sum::<f64>();
            self.events_looked_at += per_loop * loops;
            // A type that is not wanted makes its scans end before they look at anything.
            let has_looked =
                ["Shared Hit Blocks", "Shared Read Blocks"].iter().any(|name| node[name].as_f64() > Some(0.0));
            if has_looked {
                self.looked_into.push(first_version.parse().expect("partitions are named by their first version"));
            }
        }
        if !relation.is_empty() && !relation.starts_with("events") {
            let number = |name: &str| node[name].as_f64().unwrap_or(0.0);
            let rows = (number("Actual Rows") + number("Rows Removed by Filter")) * number("Actual Loops");
            self.others.push((relation.to_owned(), node["Index Name"].as_str().map(str::to_owned), rows));
        }
        for child in node["Plans"].as_array().into_iter().flatten() {
            self.read(child);
        }
    }

    /// Index scans only, each of a range.
    #[track_caller]
    fn assert_narrow(&self) {
        assert_eq!(self.without_index, 0, "{}", self.text);
        assert_eq!(self.wide, Vec::<String>::new(), "{}", self.text);
    }

    /// Index scans only, the feed's index among them, and not many more events than came out.
    #[track_caller]
    fn assert_range_scan(&self, rows: f64, index: &str) {
        self.assert_narrow();
        assert!(self.indexes.iter().any(|used| used.ends_with(index)), "{index} is not used: {}", self.text);
        // One more names the head.
        assert!((self.rows - 1.0 - rows).abs() < 0.5, "{} rows instead of {rows}: {}", self.rows, self.text);
        // One more for the head, and one row of look-ahead for each of the three types.
        assert!(self.events_looked_at <= rows + 8.0, "{} events looked at: {}", self.events_looked_at, self.text);
    }
}

/// What a partition's part of the index `events_by_feed` is called.
const BY_FEED: &str = "_feed_key_type_version_idx";

const READ_AFTER: &str = include_str!("../../src/store/sql/read_after.sql");
const READ_BEFORE: &str = include_str!("../../src/store/sql/read_before.sql");
const READ_UNACKED: &str = include_str!("../../src/store/sql/read_unacked.sql");

#[tokio::test]
async fn pages_are_range_scans_of_the_feeds_index() {
    let mut plans = Plans::load().await;
    for (statement, from) in [(READ_AFTER, 60_000), (READ_BEFORE, 60_000), (READ_AFTER, 0), (READ_BEFORE, i64::MAX)] {
        for limit in [2, 101] {
            let plan =
                plans.explain(statement, &format!("7, {from}, {limit}, 0::smallint, 1::smallint, 2::smallint")).await;
            plan.assert_range_scan(f64::from(limit), BY_FEED);
        }
    }
    let plan = plans.explain(READ_UNACKED, "7, 0, 101, 0::smallint, 1::smallint, 2::smallint").await;
    plan.assert_range_scan(101.0, BY_FEED);
}

#[tokio::test]
async fn pages_look_into_the_partitions_that_they_need() {
    let mut plans = Plans::load().await;
    // (statement, from, rows, the partitions that hold them)
    for (statement, from, limit, holding) in [
        (READ_AFTER, 60_500, 101, 60_001..=60_001),
        (READ_AFTER, 79_000, 101, 60_001..=80_001),
        (READ_AFTER, 119_999, 101, 100_001..=100_001),
        (READ_BEFORE, 60_001, 101, 40_001..=40_001),
        (READ_BEFORE, 61_000, 101, 40_001..=60_001),
        (READ_BEFORE, 200, 101, 1..=1),
    ] {
        let plan = plans.explain(statement, &format!("7, {from}, {limit}, null, 1::smallint, null")).await;
        assert!(!plan.text.contains("Sort\","), "the partitions follow each other: {}", plan.text);
        assert!(!plan.looked_into.is_empty(), "{}", plan.text);
        // The newest event is looked for from the other end.
        let beyond = |first: &&i64| !holding.contains(*first) && **first < 100_001;
        assert_eq!(plan.looked_into.iter().find(beyond), None, "{from}: {:?} {}", plan.looked_into, plan.text);
        assert!(plan.looked_into.iter().any(|first| holding.contains(first)), "{:?}", plan.looked_into);
    }
    // What is not acknowledged begins where acknowledgements end.
    let acknowledge = "update acks set last_version = 110000 where feed_key = 7";
    sqlx::raw_sql(acknowledge).execute(&mut plans.desk.sql().await).await.expect("it is acknowledged");
    let plan = plans.explain(READ_UNACKED, "7, 0, 51, 0::smallint, 1::smallint, 2::smallint").await;
    plan.assert_range_scan(51.0, BY_FEED);
    assert!(plan.looked_into.iter().all(|first| *first >= 100_001), "{:?} {}", plan.looked_into, plan.text);
    // A session's newest message is in the newest partition that has any.
    let plan = plans.explain(include_str!("../../src/store/sql/find_sessions.sql"), "'{session-5}'").await;
    assert!(plan.looked_into.iter().all(|first| *first >= 100_001), "{:?} {}", plan.looked_into, plan.text);
}

#[tokio::test]
async fn a_rare_type_does_not_scan_its_feed() {
    let mut plans = Plans::load().await;
    // (feed, type): one such event among a thousand others.
    for (feed, types) in [(7, "0::smallint, null, null"), (8, "null, 1::smallint, null")] {
        for (statement, from) in [(READ_AFTER, 0), (READ_BEFORE, i64::MAX), (READ_UNACKED, 0)] {
            let plan = plans.explain(statement, &format!("{feed}, {from}, 101, {types}")).await;
            plan.assert_range_scan(1.0, BY_FEED);
        }
    }
    // A type that the feed has none of.
    let plan = plans.explain(READ_AFTER, "7, 0, 101, null, null, 2::smallint").await;
    plan.assert_range_scan(0.0, BY_FEED);
}

#[tokio::test]
async fn what_is_not_acknowledged_is_found_without_a_look_at_what_is() {
    let mut plans = Plans::load().await;
    let plan = plans.explain(READ_UNACKED, "9, 0, 101, 0::smallint, 1::smallint, 2::smallint").await;
    plan.assert_range_scan(101.0, BY_FEED);
    let plan = plans.explain(include_str!("../../src/store/sql/count_unacked.sql"), "9").await;
    plan.assert_narrow();
}

#[tokio::test]
async fn the_tail_scan_history_lists_and_times_use_their_indexes() {
    let mut plans = Plans::load().await;
    let plan = plans.explain(include_str!("../../src/store/sql/read_all.sql"), "119000, 501").await;
    plan.assert_range_scan(501.0, "_pkey");

    let version_before = include_str!("../../src/store/sql/version_before.sql");
    let plan = plans.explain(version_before, "'2026-01-01 12:00:00Z'").await;
    plan.assert_narrow();
    assert!(plan.events_looked_at < 40.0, "a binary search: {}", plan.text);

    let list = include_str!("../../src/store/sql/list_by_owner.sql");
    let plan = plans.explain(list, "9223372036854775807, 11, '{0,1,2}', 7").await;
    assert!(plan.text.contains("sessions_by_owner"), "{}", plan.text);
    plan.assert_narrow();

    for (statement, arguments) in [
        (include_str!("../../src/store/sql/find_sessions.sql"), "'{session-7}'"),
        (include_str!("../../src/store/sql/last_messages.sql"), "'{0}', '{7}', '{100000}', 20, 4000000"),
        (include_str!("../../src/store/sql/find_kept.sql"), "array[gen_random_uuid()], '{x}', '{5}'"),
        (
            include_str!("../../src/store/sql/find_acked_ids.sql"),
            "'{0}', '{7}', array[gen_random_uuid()], '{x}', '{5}'",
        ),
        (include_str!("../../src/store/sql/probe_acks.sql"), "'{7}', '{1}', '{100}', '{2000}'"),
        (
            "select version from events where session_key = $1 and content is not null and version < $2 order by version desc limit $3",
            "7, 100000, 11",
        ),
    ] {
        let mut plan = plans.explain(statement, arguments).await;
        // What is planned while a partition is empty is planned anew when the next one is made.
        plan.wide.retain(|scan| !["events_120001_", "events_140001_"].iter().any(|empty| scan.starts_with(empty)));
        plan.assert_narrow();
    }
}

/// A statement of `append()` or of a function it calls, from these words to those, with parameters in place of variables.
fn of_append(from: &str, to: &str, variables: &[(&str, &str)]) -> String {
    let text = include_str!("../../migrations/0008_append.sql");
    let start = text.find(from).unwrap_or_else(|| panic!("{from} is not there"));
    let length = text[start..].find(to).unwrap_or_else(|| panic!("{to} does not follow"));
    let mut statement = text[start..start + length + to.len()].to_owned();
    for (variable, parameter) in variables {
        assert!(statement.contains(variable), "{variable}: {statement}");
        statement = statement.replace(variable, parameter);
    }
    statement
}

#[tokio::test]
async fn an_append_looks_at_what_it_needs() {
    let mut plans = Plans::load().await;
    let setup = "
        insert into feeds (kind, feed_id) select 1, 'more-' || n from generate_series(1, 500) n;
        insert into profiles (feed_key, name) select feed_key, 'name' from feeds where feed_id like 'more-%';
        insert into agents (feed_key, profile_key, open_sessions) select feed_key, profile_key, feed_key % 40 from profiles where feed_key > 120;
        insert into polls_seen select now(), feed_key from agents;
        insert into sessions (opened_at, status, session_id, from_id) select now(), 0, 'queued-' || n, 'customer' from generate_series(1, 300) n;
        analyze";
    sqlx::raw_sql(setup).execute(&mut plans.desk.sql().await).await.expect("more agents and a queue");

    // The head: from the newest known version on.
    let newest = of_append(
        "select version, created_at from events where version >= known_head",
        "limit 1",
        &[("known_head", "$1")],
    );
    let plan = plans.explain(&newest, "119000").await;
    assert_eq!((plan.without_index, plan.events_looked_at, plan.rows), (0, 1.0, 1.0), "{}", plan.text);
    assert!(plan.looked_into.iter().all(|first| *first >= 100_001), "{:?}", plan.looked_into);

    // Whether sessions are as they were.
    let check = of_append(
        "select array_agg(s.is_stale)",
        "order by given.n\n        ) s",
        &[
            ("into stale, owner_profiles, owners, told_gateways", ""),
            ("unnest(session_keys, revisions, seq_versions)", "unnest($1::bigint[], $2::bigint[], $3::bigint[])"),
            ("<= head", "<= $4::bigint"),
        ],
    );
    let plan = plans.explain(&check, "'{7,8,1100}', '{1,1,1}', '{100000,100000,100000}', 120000").await;
    let sessions: Vec<_> = plan.others.iter().filter(|other| other.0 == "sessions").collect();
    assert_eq!(sessions, [&("sessions".to_owned(), Some("sessions_pkey".to_owned()), 3.0)], "{}", plan.text);

    // Their newest messages: no partition that is older than what is known, and one event of each.
    let numbers = of_append(
        "select given.n, m.message_seq",
        "where given.seq_version < head",
        &[("unnest(session_keys, seq_versions)", "unnest($1::bigint[], $2::bigint[])"), ("head", "$3::bigint")],
    );
    let mut plan = plans.explain(&numbers, "'{7,8,1100}', '{118000,118000,118000}', 120000").await;
    plan.wide.retain(|scan| !["events_120001_", "events_140001_"].iter().any(|empty| scan.starts_with(empty)));
    plan.assert_narrow();
    assert!(plan.events_looked_at <= 3.0, "{}", plan.text);
    assert!(plan.looked_into.iter().all(|first| *first >= 100_001), "{:?} {}", plan.looked_into, plan.text);

    // Ids: each is looked for in the index of each partition.
    for (from, column, ids) in
        [("ids", "id", "array[gen_random_uuid(), null]"), ("id_texts", "id_text", "'{m-1,null}'")]
    {
        let kind = if column == "id" { "uuid" } else { "text" };
        let taken = of_append(
            &format!("from (select unnest({from}) as id"),
            "where given.id is not null",
            &[
                (&format!("unnest({from})"), &format!("unnest($1::{kind}[])")),
                ("unnest(event_sessions)", "unnest($2::integer[])"),
            ],
        );
        let mut plan = plans.explain(&format!("select given.session {taken}"), &format!("{ids}, '{{1,2}}'")).await;
        plan.wide.retain(|scan| !["events_120001_", "events_140001_"].iter().any(|empty| scan.starts_with(empty)));
        plan.assert_narrow();
        assert!(plan.events_looked_at < 1.0, "{}", plan.text);
    }

    // The queue: a hundred of those that wait, in their order.
    let queue = of_append("select s.session_key, s.gateway_key, case", "order by s.session_key limit 100", &[]);
    let plan = plans.explain(&queue, "").await;
    let sessions = plan.others.iter().find(|other| other.0 == "sessions").expect("sessions are read");
    assert_eq!(sessions, &("sessions".to_owned(), Some("sessions_by_status".to_owned()), 100.0), "{}", plan.text);
    assert_eq!((plan.without_index, plan.events_looked_at), (0, 0.0), "{}", plan.text);

    // Of 620 agents, whether they are silent is looked up for those in front.
    let choose = of_append(
        "select array_agg(a.feed_key), array_agg(a.open_sessions)",
        "order by a.open_sessions desc, a.assigned_at nulls first, a.feed_key\n    ) a",
        &[("into agents, counts, most, free", ""), ("cardinality(released_by)", "$1::integer")],
    );
    let plan = plans.explain(&choose, "3").await;
    let polls: f64 = plan.others.iter().filter(|other| other.0 == "polls_seen").map(|other| other.2).sum();
    assert!(plan.others.iter().all(|other| other.0 != "polls_seen" || other.1.is_some()), "{}", plan.text);
    assert!(polls <= 5.0, "{polls}: {}", plan.text);
}
