//! `deskfeed migrate` as a DBA uses it, and migrations while the service runs.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use deskfeed::store::schema::{FILES, File, Migrations, SchemaState};
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::task::JoinSet;

use crate::support::{
    Client,
    desk::ADMIN_TOKEN,
    postgres::{self, OWNER},
    process::{self, Ended, Service, command},
};

/// Runs `deskfeed migrate` as the owner.
async fn migrate(url: &str, arguments: &[&str]) -> Ended {
    let url = postgres::as_role(url, OWNER);
    process::run(&[&["migrate", "--database-url", &url], arguments].concat()).await
}

/// The same, which must succeed.
async fn migrated(url: &str, arguments: &[&str]) -> String {
    let ended = migrate(url, arguments).await;
    assert_eq!(ended.code, Some(0), "{arguments:?}: {} {}", ended.out, ended.err);
    ended.out
}

/// Serves the database for a moment.
async fn serves(url: &str) {
    let service = Service::serve(&["--database-url", &postgres::as_application(url)]).await;
    assert!(!service.err.text().contains("lacks rights"), "{}", service.err.text());
    service.terminate().await;
}

async fn run_sql(url: &str, sql: &str) {
    let mut connection = PgConnection::connect(url).await.expect("PostgreSQL answers");
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await.expect(sql);
}

fn newest() -> i64 {
    FILES.last().expect("files").0
}

#[tokio::test]
async fn psql_alone_leaves_what_serve_accepts() {
    let url = postgres::database_of_roles().await;
    let printed = migrated(&url, &["print"]).await;
    let (applied, said) = postgres::run_psql(&postgres::as_role(&url, OWNER), &[], &printed).await;
    assert!(applied, "{said}");
    migrated(&url, &["status"]).await;
    migrated(&url, &["verify"]).await;
    serves(&url).await;

    // Again, or without what comes before: it says so and changes nothing.
    for psql in [vec![], vec!["-v", "ON_ERROR_STOP=0"]] {
        let (_, said) = postgres::run_psql(&postgres::as_role(&url, OWNER), &psql, &printed).await;
        assert!(said.contains("but the newest applied one is"), "{said}");
        migrated(&url, &["verify"]).await;
    }
    let empty = postgres::database_of_roles().await;
    let later = migrated(&empty, &["print", "--from", "3"]).await;
    let (applied, said) = postgres::run_psql(&postgres::as_role(&empty, OWNER), &[], &later).await;
    assert!(!applied && said.contains("migration 3 comes right after 2"), "{said}");
    assert!(migrated(&url, &["print"]).await.contains("Nothing to apply"));
    assert_ne!(migrate(&url, &["print", "--from", "99"]).await.code, Some(0));
}

#[tokio::test]
async fn psql_and_a_migrator_at_once_leave_one_schema() {
    for _ in 0..3 {
        let url = postgres::database_of_roles().await;
        let printed = migrated(&url, &["print"]).await;
        let owner = postgres::as_role(&url, OWNER);
        // Whichever is later finds the other at work or done.
        let (ended, (applied, said)) = tokio::join!(migrate(&url, &[]), postgres::run_psql(&owner, &[], &printed));
        assert!(ended.code == Some(0) || applied, "one of them succeeds: {} {said}", ended.err);
        migrated(&url, &["up"]).await;
        migrated(&url, &["verify"]).await;
    }
}

#[tokio::test]
async fn up_stops_where_it_is_told_to() {
    let url = postgres::database_of_roles().await;
    assert_ne!(migrate(&url, &["up", "--to", "99"]).await.code, Some(0));
    let half = migrated(&url, &["up", "--to", "3"]).await;
    assert!(half.contains("0003 tokens") && half.contains("missing from 4 on"), "{half}");
    let status = migrate(&url, &["status"]).await;
    assert_eq!(status.code, Some(3));
    assert_eq!(status.out.lines().filter(|line| line.contains(" applied ")).count(), 3, "{}", status.out);
    assert_eq!(migrate(&url, &["verify"]).await.code, Some(3), "what is not applied is not verified");
    let whole = migrated(&url, &[]).await;
    assert!(!whole.contains("0003") && whole.contains("The schema is current."), "{whole}");
    serves(&url).await;
}

#[tokio::test]
async fn what_was_run_by_hand_is_marked() {
    let url = postgres::database_of_roles().await;
    let owner = postgres::as_role(&url, OWNER);
    let early = migrate(&url, &["mark-applied", "2"]).await;
    assert!(early.code != Some(0) && early.err.contains("comes after 1"), "{}", early.err);
    for (number, _, sql) in FILES {
        run_sql(&owner, &format!("begin; {sql}; commit")).await;
        if number < newest() {
            migrated(&url, &["mark-applied", &number.to_string()]).await;
        }
    }
    // The last one is marked although a part of it was not run: that shows at once.
    run_sql(&owner, "drop index sessions_by_owner").await;
    let last = migrate(&url, &["mark-applied", &newest().to_string()]).await;
    assert_eq!(last.code, Some(3));
    assert!(last.out.contains("missing: index sessions_by_owner"), "{}", last.out);
    run_sql(&owner, "create index sessions_by_owner on sessions (owner_key, status, session_key)").await;
    assert!(migrated(&url, &["mark-applied", "1"]).await.contains("recorded already"));
    migrated(&url, &["verify"]).await;
    // Rights come with `up`, whether or not anything is missing.
    migrated(&url, &["up"]).await;
    serves(&url).await;

    run_sql(&owner, "update _sqlx_migrations set checksum = '\\x00' where version = 1").await;
    assert_ne!(migrate(&url, &["mark-applied", "1"]).await.code, Some(0), "another file's record is left alone");
    for command in ["print", "up", "status", "verify"] {
        let ended = migrate(&url, &[command]).await;
        assert_eq!(ended.code, Some(3), "{command}: {} {}", ended.out, ended.err);
    }
}

#[tokio::test]
async fn verify_names_what_differs() {
    let url = postgres::database_of_roles().await;
    migrated(&url, &["up"]).await;
    migrated(&url, &["verify"]).await;
    for (change, back, told) in [
        (
            "alter table feeds add column extra int",
            "alter table feeds drop column extra",
            "not of the migrations: column feeds.extra",
        ),
        (
            "alter table agents alter max_sessions set default 51",
            "alter table agents alter max_sessions set default 50",
            "different: column agents.max_sessions",
        ),
        (
            "alter table gateways alter name set not null",
            "alter table gateways alter name drop not null",
            "different: column gateways.name",
        ),
        (
            "alter table acks drop constraint ack_range_is_ordered",
            "alter table acks add constraint ack_range_is_ordered check (last_version >= first_version)",
            "missing: constraint acks.ack_range_is_ordered",
        ),
        (
            "drop index tokens_revoked",
            "create index tokens_revoked on tokens (revocation) where revocation is not null",
            "missing: index tokens_revoked",
        ),
        ("create index mine on feeds (kind)", "drop index mine", "not of the migrations: index mine"),
        (
            "alter table events disable trigger events_are_kept",
            "alter table events enable always trigger events_are_kept",
            "different: trigger events.events_are_kept",
        ),
        (
            "drop index events_1_id_is_unique",
            "create unique index events_1_id_is_unique on events_1 (id) where id is not null",
            "different: partitions' index events_#_id_is_unique",
        ),
        (
            "alter table events_10000001 disable trigger events_are_kept",
            "alter table events_10000001 enable always trigger events_are_kept",
            "different: partitions' trigger events_are_kept",
        ),
        (
            "create index mine on events_1 (created_at)",
            "drop index mine",
            "not of the migrations: partitions' index mine",
        ),
        (
            "create rule nothing as on delete to acks do instead nothing",
            "drop rule nothing on acks",
            "not of the migrations: rule acks.nothing",
        ),
        (
            "alter function refuse_change() security definer",
            "alter function refuse_change() security invoker",
            "different: function refuse_change()",
        ),
        ("create table mine ()", "drop table mine", "not of the migrations: table mine"),
        (
            "alter function append reset search_path",
            "alter function append set search_path = public, pg_temp",
            "different: function append(",
        ),
        (
            "alter function append security invoker",
            "alter function append security definer",
            "different: function append(",
        ),
        ("create sequence mine", "drop sequence mine", "not of the migrations: sequence mine"),
        ("alter table polls_seen set unlogged", "alter table polls_seen set logged", "different: table polls_seen"),
    ] {
        run_sql(&postgres::as_role(&url, OWNER), change).await;
        let verified = migrate(&url, &["verify"]).await;
        assert_eq!(verified.code, Some(3), "{change}: {}", verified.out);
        assert!(verified.out.contains(told), "{change}: {}", verified.out);
        run_sql(&postgres::as_role(&url, OWNER), back).await;
        migrated(&url, &["verify"]).await;
    }
    // Partitions come and go.
    let owner = postgres::as_role(&url, OWNER);
    run_sql(&owner, "select make_partitions(1, 50000000); alter table events detach partition events_1").await;
    migrated(&url, &["verify"]).await;
    // Any role may ask; storage parameters are the DBA's.
    run_sql(&postgres::as_role(&url, OWNER), "alter table sessions set (fillfactor = 90)").await;
    let monitor = postgres::as_role(&url, postgres::MONITOR);
    assert_eq!(process::run(&["migrate", "--database-url", &monitor, "verify"]).await.code, Some(0));
}

/// Migrations of a release to come: a column, an index that is made while others write, and
/// the end of the programs that do not know them.
fn later_files() -> Vec<File> {
    let mut files = FILES.to_vec();
    let text = |sql: String| -> &'static str { sql.leak() };
    files.push((
        newest() + 1,
        "later_column",
        "set local lock_timeout = '250ms';\nalter table sessions add column priority smallint not null default 0;\n\
         alter table events add column later text;\n",
    ));
    files.push((
        newest() + 2,
        "later_index",
        "-- no-transaction\n-- for each partition of events\n\
         create index concurrently if not exists {partition}_by_time on {partition} (created_at);\n",
    ));
    // What is there already is attached; only what was made meanwhile is empty and indexed now.
    files.push((
        newest() + 3,
        "later_whole",
        "set local lock_timeout = '250ms';\ncreate index if not exists events_by_time on events (created_at);\n",
    ));
    files.push((newest() + 4, "contract", text(format!("update store set oldest_program = {};\n", newest() + 4))));
    files
}

#[tokio::test]
async fn psql_makes_an_index_while_others_write_too() {
    let url = postgres::new_database().await;
    let owner_url = postgres::as_role(&url, OWNER);
    let mut owner = PgConnection::connect(&owner_url).await.expect("the owner gets in");
    let new = Migrations::of(&later_files());
    let printed = new.print(&mut owner).await.expect("a script");
    let (applied, said) = postgres::run_psql(&owner_url, &[], &printed).await;
    assert!(applied, "{said}");
    assert_eq!(new.state(&mut owner).await.expect("a state"), SchemaState::Current);
    let valid: Vec<bool> = sqlx::query_scalar(
        "select indisvalid from pg_index where indexrelid in ('events_by_time'::regclass, 'events_1_by_time'::regclass)",
    )
    .fetch_all(&mut owner)
    .await
    .expect("they are there");
    assert_eq!(valid, [true, true]);
    // Those to come have it, too.
    let ahead = "select make_partitions(1, 40000000); select 'events_30000001_created_at_idx'::regclass";
    sqlx::raw_sql(ahead).execute(&mut owner).await.expect("it is made with the partition");
    new.up(&mut owner, None, |migration, _| panic!("{} again", migration.version)).await.expect("nothing is left");
}

#[tokio::test]
async fn two_migrators_at_once_do_not_wait_for_each_other_for_ever() {
    // CREATE INDEX CONCURRENTLY waits for whoever has a snapshot: the other migrator must have none.
    let url = postgres::new_database().await;
    let files: &[File] = later_files().leak();
    let mut migrators = JoinSet::new();
    for _ in 0..3 {
        let mut owner = PgConnection::connect(&postgres::as_role(&url, OWNER)).await.expect("the owner gets in");
        migrators.spawn(async move {
            let mut applied = 0;
            let done = Migrations::of(files).up(&mut owner, None, |_, _| applied += 1).await;
            done.map(|()| applied)
        });
    }
    let applied: Vec<u32> = migrators.join_all().await.into_iter().map(|done| done.expect("each succeeds")).collect();
    assert_eq!(applied.iter().sum::<u32>(), 4, "each file once: {applied:?}");
}

/// Sends one message after the other, each until it is kept; tells how long the longest took.
async fn write(web: Client, session: String, goes_on: Arc<AtomicBool>, longest_us: Arc<AtomicU64>) -> Vec<String> {
    let mut kept = Vec::new();
    while goes_on.load(Ordering::Relaxed) {
        let text = format!("{session} {}", kept.len());
        let id = uuid::Uuid::new_v4().to_string();
        let began = Instant::now();
        loop {
            let reply = web.send_id(&session, &id, &text).await;
            if reply.status == 200 {
                break;
            }
            assert_eq!(reply.code(), 50300, "{}", reply.text);
        }
        longest_us.fetch_max(u64::try_from(began.elapsed().as_micros()).expect("fits"), Ordering::Relaxed);
        kept.push(text);
    }
    kept
}

/// A past of some size: a migration's time may depend on it.
fn past(events: u64) -> String {
    format!(
        "insert into feeds (kind, feed_id) select 1, 'agent-' || n from generate_series(1, 100) n;
         insert into acks select 0, 0, feed_key, type from feeds, unnest(array[0, 1, 2]::smallint[]) type;
         insert into profiles (feed_key, name) select feed_key, 'name' from feeds;
         insert into agents (feed_key, profile_key, status) select feed_key, profile_key, 0 from profiles;
         insert into sessions (opened_at, status, owner_key, session_id, from_id)
             select now(), 1, 1 + n % 100, 'session-' || n, 'customer' from generate_series(0, 999) n;
         insert into events (version, created_at, session_key, feed_key, message_seq, profile_key, type, reason,
                             author_key, message_type, content_type, id, content)
             select n, '2026-01-01'::timestamptz + n * interval '1 ms', 1 + n % 1000, 1 + n % 100, 1 + n / 1000, 0, 1, 0,
                    1, 0, 0, gen_random_uuid(), repeat('x', 200)
             from generate_series(1, {events}) n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_and_new_programs_serve_while_the_schema_moves_on() {
    let events = std::env::var("DESKFEED_TEST_EVENTS").map_or(20_000, |text| text.parse().expect("a number"));
    let url = postgres::new_database().await;
    run_sql(&url, &past(events)).await;
    let application = postgres::as_application(&url);
    let serve = ["--database-url", &application, "--admin-token", ADMIN_TOKEN];
    let old = [Service::serve(&serve).await, Service::serve(&serve).await];
    let admin = Client::new(&old[0].base, ADMIN_TOKEN);
    let mut clients = Vec::new();
    for (role, id) in [("agent", "ann"), ("gateway", "web")] {
        admin.post(&format!("/admin/{role}"), json!({"Id": id})).await.ok();
        let made = admin.post("/admin/token", json!({"Role": role, "Subject": id})).await.ok();
        clients.push(Client::new(&admin.base, made["Token"].as_str().expect("a token")));
    }
    let (ann, web) = (&clients[0], &clients[1]);
    let goes_on = Arc::new(AtomicBool::new(true));
    let longest_us = Arc::new(AtomicU64::new(0));
    let mut writers = JoinSet::new();
    for number in 0..4 {
        let session = format!("s{number}");
        web.open_to(&session, "ann").await.ok();
        let web = web.at(&old[number % 2].base);
        writers.spawn(write(web, session, Arc::clone(&goes_on), Arc::clone(&longest_us)));
    }

    // The release to come migrates; programs of this one go on, and are started anew.
    let files = later_files();
    let new = Migrations::of(&files);
    let mut owner = PgConnection::connect(&postgres::as_role(&url, OWNER)).await.expect("the owner gets in");
    let began = Instant::now();
    let before_ms = longest_us.swap(0, Ordering::Relaxed) / 1000;
    new.up(&mut owner, Some(newest() + 3), |migration, took| {
        let (name, stall_us) = (&migration.description, longest_us.swap(0, Ordering::Relaxed));
        println!("{name} in {} ms; the longest send took {} ms", took.as_millis(), stall_us / 1000);
    })
    .await
    .expect("the migrations apply");
    let after_ms = began.elapsed().as_millis();
    println!("{events} events, migrated in {after_ms} ms; the longest send before took {before_ms} ms");
    let of_today = Migrations::embedded();
    assert_eq!(of_today.state(&mut owner).await.expect("a state"), SchemaState::Extended { newest: newest() + 3 });
    assert_eq!(new.state(&mut owner).await.expect("a state"), SchemaState::Behind { next: newest() + 4 });
    assert_eq!(
        migrated(&url, &["up"]).await.lines().last(),
        Some("The schema is current."),
        "an old migrator leaves it"
    );
    let again = Service::serve(&serve).await;
    for service in old.iter().chain([&again]) {
        assert_eq!(admin.at(&service.base).get("/readyz").await.status, 200);
    }
    web.at(&again.base).send("s0", "through the one that was started anew").await.ok();

    goes_on.store(false, Ordering::Relaxed);
    let mut kept: Vec<String> = writers.join_all().await.concat();
    println!("{} messages, the longest after it took {} ms", kept.len(), longest_us.load(Ordering::Relaxed) / 1000);
    kept.push("through the one that was started anew".to_owned());
    kept.sort();
    let (mut found, mut after) = (Vec::new(), i64::try_from(events).expect("fits"));
    loop {
        let page = ann.query(&format!("a={after}&wait=0&limit=1000")).await;
        found.extend(page.contents());
        after = page.next();
        if !page.more() {
            break;
        }
    }
    found.sort();
    assert_eq!(found, kept, "each once");

    // What takes away what they need stops them: the balancer sees it, and a start is refused.
    new.up(&mut owner, None, |_, _| {}).await.expect("the contract applies");
    assert_eq!(admin.get("/readyz").await.code(), 50300);
    let refused = Service::start(command(&["serve", "--listen", "127.0.0.1:0", "--database-url", &application])).await;
    assert_eq!(refused.expect_err("it must not serve").code, Some(3));
    assert_eq!(new.state(&mut owner).await.expect("a state"), SchemaState::Current);
    for service in old.into_iter().chain([again]) {
        service.terminate().await;
    }
}

#[tokio::test]
async fn a_migration_waits_for_its_locks_in_short_turns() {
    let url = postgres::new_database().await;
    let owner_url = postgres::as_role(&url, OWNER);
    let (mut owner, mut keeper) = (
        PgConnection::connect(&owner_url).await.expect("the owner gets in"),
        PgConnection::connect(&url).await.expect("the keeper gets in"),
    );
    // A report that runs for a while.
    sqlx::raw_sql("begin; select from sessions").execute(&mut keeper).await.expect("it reads");
    let files = later_files().leak();
    let migrating = tokio::spawn(async move {
        let done = Migrations::of(files).up(&mut owner, Some(newest() + 1), |_, _| {}).await;
        (done, owner)
    });
    // Appends go on in between, each in less than the two turns it may have to wait.
    let mut appender = PgConnection::connect(&postgres::as_application(&url)).await.expect("the service gets in");
    sqlx::raw_sql("set lock_timeout = '2s'").execute(&mut appender).await.expect("it is set");
    for _ in 0..20 {
        let append = "begin; select settle_append(1, 0); select from sessions; rollback";
        sqlx::raw_sql(append).execute(&mut appender).await.expect("the migration lets it by");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!migrating.is_finished());
    keeper.close().await.expect("it closes");
    let (done, _owner) = migrating.await.expect("no panic");
    done.expect("the migration applies when the report is over");
}
