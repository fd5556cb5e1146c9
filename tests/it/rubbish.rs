//! `append()` called with what no service sends, as the service's role: nothing comes of it that contradicts itself.

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::support::postgres;

/// The gateway `web` has feed 1; `ann` and `bob` have feeds 2 and 3. Ann owns session 1, session 2 is queued, session 3
/// was closed. All came through the gateway, but for session 4, which is Ann's and an admin's. Events 1 to 4 are there.
const WORLD: &str = "
    select put_gateway('web', null, false);
    select put_agent('ann', 'Ann', true, null, false, null, 50, true);
    select put_agent('bob', 'Bob', true, null, false, null, 50, true);
    insert into sessions (opened_at, closed_at, status, owner_key, gateway_key, assigned_version, session_id, from_id) values
        (now(), null, 1, 2, 1, 1, 's1', 'c'), (now(), null, 0, null, 1, 0, 's2', 'c'), (now(), now(), 2, 2, 1, 1, 's3', 'c'),
        (now(), null, 1, 2, null, 2, 's4', 'c');
    update agents set open_sessions = 2 where feed_key = 2;
    insert into events (version, created_at, session_key, append, feed_key, profile_key, author_key, message_seq, type, reason, message_type, content_type)
        select n, now(), 1, n, 2, 1, 0, 0, 0, 0, 0, 0 from generate_series(1, 4) n;";

/// A call, argument by argument; what is not said is right for a customer's message in session 1.
const ARGUMENTS: [(&str, &str); 20] = [
    ("history", "(select history from store)"),
    ("evidence", "7"),
    ("head", "4"),
    ("sessions", "'{1}'"),
    ("revisions", "'{1}'"),
    ("seq_versions", "'{4}'"),
    ("seqs", "'{0}'"),
    ("session", "'{1}'"),
    ("feed", "'{2}'"),
    ("profile", "'{1}'"),
    ("author", "'{1}'"),
    ("step", "'{1}'"),
    ("type", "'{1}'"),
    ("reason", "'{0}'"),
    ("message_type", "'{0}'"),
    ("content_type", "'{0}'"),
    ("id", "'{}'"),
    ("id_text", "'{}'"),
    ("content", "'{x}'"),
    ("rare", "null"),
];

/// An agent's message, which the gateway is told of, too.
const SENT: &str = "session='{1,1}' feed='{2,1}' profile='{1,1}' author='{2,0}' step='{1,1}' type='{1,1}' reason='{0,0}' message_type='{1,1}' content_type='{0,0}'";
/// The close of session 1, and its transfer to Bob.
const CLOSE: &str = "session='{1,1}' feed='{2,1}' profile='{1,1}' author='{0,0}' step='{null,null}' type='{2,2}' reason='{1,1}' message_type='{0,0}' content_type='{0,0}' content='{}' rare='{\"changes\":[{\"session\":1,\"status\":2,\"needs_room\":false,\"last_op\":1,\"by\":2,\"first\":1}]}'";
const TRANSFER: &str = "session='{1,1,1}' feed='{2,3,1}' profile='{1,2,2}' author='{0,0,0}' step='{null,0,null}' type='{2,0,0}' reason='{2,0,0}' message_type='{0,0,0}' content_type='{0,0,0}' content='{}' rare='{\"changes\":[{\"session\":1,\"status\":1,\"owner\":3,\"needs_room\":true,\"last_op\":3,\"by\":2,\"to\":3,\"first\":1,\"added\":2}]}'";
/// A customer's message in the queue.
const QUEUED: &str = "sessions='{2}' feed='{0}' profile='{0}'";
/// Session 4, which no gateway is told of.
const ADMINS: &str = "sessions='{4}' author='{2}' message_type='{1}'";

/// The statement: later changes win.
fn call(changes: &[&str]) -> String {
    let mut arguments = ARGUMENTS.map(|(name, value)| (name, value.to_owned()));
    for change in changes.iter().flat_map(|change| change.split(' ')).filter(|change| !change.is_empty()) {
        let (name, value) = change.split_once('=').expect("name=value");
        let argument = arguments.iter_mut().find(|argument| argument.0 == name).expect(name);
        value.clone_into(&mut argument.1);
    }
    let values: Vec<String> = arguments.into_iter().map(|(_, value)| value).collect();
    format!("select last, stale from append({})", values.join(", "))
}

/// Whether the store is as it should be: versions without a gap, and counts that are true.
const CONSISTENT: &str = "
    select (select count(*) = max(version) from events)
       and not exists (select from agents a where open_sessions <> (select count(*) from sessions s where s.owner_key = a.feed_key and s.status = 1))
       and not exists (select from events where append is null and version = (select max(version) from events) - 100)";

struct Store {
    app: PgConnection,
    sql: PgConnection,
}

impl Store {
    async fn new() -> Self {
        let url = postgres::new_database().await;
        let mut sql = PgConnection::connect(&url).await.expect("it answers");
        sqlx::raw_sql(WORLD).execute(&mut sql).await.expect("the world");
        let app = PgConnection::connect(&postgres::as_application(&url)).await.expect("the service gets in");
        Self { app, sql }
    }

    /// What a call does: the newest version after it and what was stale, or the error's code. It is taken back.
    async fn outcome(&mut self, statement: &str) -> Result<(Option<i64>, Option<Vec<bool>>), String> {
        sqlx::raw_sql("begin").execute(&mut self.app).await.expect("it begins");
        let done = sqlx::query_as(AssertSqlSafe(statement.to_owned())).fetch_one(&mut self.app).await;
        sqlx::raw_sql("rollback").execute(&mut self.app).await.expect("it is taken back");
        done.map_err(|error| {
            let error = error.into_database_error().expect("the server's answer");
            error.code().expect("a code").into_owned()
        })
    }
}

#[tokio::test]
async fn what_contradicts_itself_is_refused() {
    let mut store = Store::new().await;
    // (what, the newest version after it)
    for (good, last) in [
        (vec![], 5),
        (vec!["id=array[gen_random_uuid()]"], 5),
        (vec!["id_text='{m-1}'", "content_type='{1}'"], 5),
        (vec!["content='{\"\"}'"], 5),
        (vec![QUEUED], 5),
        (vec![ADMINS], 5),
        (vec![SENT], 6),
        (vec![CLOSE], 6),
        (vec![TRANSFER], 7),
        // Nothing at all; and less than what there is.
        (
            vec![
                "session='{}' feed='{}' profile='{}' author='{}' step='{}' type='{}' reason='{}' message_type='{}' content_type='{}' content='{}'",
            ],
            4,
        ),
        (vec!["session='{{1}}'"], 5),
        (vec!["head=0"], 5),
        (vec!["head=-1"], 5),
    ] {
        assert_eq!(store.outcome(&call(&good)).await.map(|outcome| outcome.0), Ok(Some(last)), "{good:?}");
    }
    // Left out, as if another replica had changed the session.
    for stale in [
        "revisions='{2}'",
        "revisions='{0}'",
        "sessions='{99}'",
        "sessions='{99}' revisions='{null}'",
        "sessions='{null}'",
        "revisions='{null}'",
        "seq_versions='{5}'",
        "seq_versions='{null}'",
        "sessions='{3}'",
    ] {
        assert_eq!(store.outcome(&call(&[stale])).await, Ok((Some(4), Some(vec![true]))), "{stale}");
    }
    // A check, by us or by a constraint (the first two digits say so); or a parameter that cannot be.
    let (refused, invalid) = ("23", "22");
    for (bad, code) in [
        // What an event cannot be.
        (vec!["type='{3}'"], refused),
        (vec!["type='{-1}'"], refused),
        (vec!["type='{0}'"], refused),
        (vec!["type='{2}'"], refused),
        (vec!["reason='{1}'"], refused),
        (vec!["message_type='{2}'"], refused),
        (vec!["message_type='{-1}'"], refused),
        (vec!["content_type='{2}'"], refused),
        (vec!["content='{}'"], refused),
        (vec!["content='{}'", "author='{0}'"], refused),
        (vec!["author='{0}'"], refused),
        (vec!["id=array[gen_random_uuid()]", "id_text='{m-2}'"], refused),
        (vec!["id_text='{\"\"}'"], refused),
        (vec!["id_text=array[repeat('x',65)]"], refused),
        (vec!["id_text=array[gen_random_uuid()::text]"], refused),
        // Somebody else's session, feed, name or number.
        (vec!["feed='{1}'"], refused),
        (vec!["feed='{3}'"], refused),
        (vec!["feed='{0}'"], refused),
        (vec!["feed='{99}'"], refused),
        (vec!["feed='{-1}'"], refused),
        (vec!["author='{2}'"], refused),
        (vec!["author='{3}'"], refused),
        (vec!["author='{99}'"], refused),
        (vec!["profile='{0}'"], refused),
        (vec!["profile='{2}'"], refused),
        (vec!["profile='{9}'"], refused),
        (vec!["step='{0}'"], refused),
        (vec!["step='{-1}'"], refused),
        (vec!["step='{null}'"], refused),
        (vec!["seqs='{-1}'"], invalid),
        (vec![QUEUED, "feed='{2}'"], refused),
        (vec![QUEUED, "message_type='{1}'", "author='{2}'"], refused),
        (vec![QUEUED, "type='{2}'", "content='{}'"], refused),
        (vec![ADMINS, "author='{-1}'", "message_type='{0}'"], refused),
        // An agent's message is told to both, one after the other.
        (vec!["message_type='{1}'", "author='{2}'"], refused),
        (vec![SENT, "feed='{2,3}'"], refused),
        (vec![SENT, "feed='{2,2}'"], refused),
        (vec![SENT, "feed='{1,1}'"], refused),
        (vec![SENT, "author='{2,2}'"], refused),
        (vec![SENT, "content='{x,y}'"], refused),
        (vec![SENT, "content_type='{0,1}'"], refused),
        (vec![SENT, "message_type='{1,0}'"], refused),
        (vec![SENT, "content='{null,x}'", "author='{0,2}'"], refused),
        (
            vec![SENT, "sessions='{1,4}' revisions='{1,1}' seq_versions='{4,4}' seqs='{0,0}'", "session='{2,1}'"],
            refused,
        ),
        // What a change tells is what it is.
        (vec![CLOSE, "rare=null"], refused),
        (vec![CLOSE, "reason='{2,2}'"], refused),
        (vec![CLOSE, "reason='{0,0}'"], refused),
        (vec![CLOSE, "feed='{2,3}'"], refused),
        (vec![CLOSE, "feed='{0,1}'"], refused),
        (vec![CLOSE, "profile='{0,1}'"], refused),
        (vec![CLOSE, "step='{1,null}'"], refused),
        (vec![CLOSE, "content='{x}'"], refused),
        (vec![CLOSE, "type='{0,2}'"], refused),
        (vec![CLOSE, "content_type='{1,0}'"], refused),
        (vec![TRANSFER, "feed='{2,2,1}'"], refused),
        (vec![TRANSFER, "feed='{2,3,3}'", "profile='{1,1,1}'"], refused),
        (vec![TRANSFER, "profile='{1,1,1}'"], refused),
        (vec![TRANSFER, "step='{null,-1,null}'"], refused),
        (vec![TRANSFER, "type='{2,2,0}'", "reason='{2,2,0}'"], refused),
        // Arrays that do not fit together.
        (vec!["feed='{2,2}'"], refused),
        (vec!["feed='{}'"], refused),
        (vec!["content='{x,y}'"], refused),
        (vec!["id=array[null,gen_random_uuid()]"], refused),
        (vec!["session='{1,1}'"], refused),
        (vec!["session='{2}'"], refused),
        (vec!["session='{0}'"], refused),
        (vec!["session='{null}'"], refused),
        (vec!["session='{-2147483648}'"], refused),
        (vec!["author='{}'"], refused),
        (vec!["type='{}'"], refused),
        (vec!["type='{null}'"], refused),
        (vec!["reason='{null}'"], refused),
        (vec!["message_type='{}'"], refused),
        (vec!["profile='{}'"], refused),
        (vec!["step='{}'"], refused),
        (vec!["seqs='{}'"], refused),
        (vec!["seqs='{null}'"], invalid),
        (vec!["sessions='{1,1}' revisions='{1,1}' seq_versions='{4,4}' seqs='{0,0}'"], refused),
        (vec!["sessions='[0:0]={1}'"], invalid),
        (vec!["feed='[2:2]={2}'"], invalid),
        (vec!["session='[0:0]={1}'"], invalid),
        (vec!["author='[0:0]={1}'"], invalid),
        // Nulls where everything depends on it.
        (vec!["history=null"], invalid),
        (vec!["evidence=null"], invalid),
        (vec!["head=null"], invalid),
        (vec!["sessions=null"], invalid),
        (vec!["revisions=null"], invalid),
        (vec!["session=null"], invalid),
        (vec!["content=null"], invalid),
        (vec!["id=null"], invalid),
    ] {
        let error = store.outcome(&call(&bad)).await.expect_err(&format!("{bad:?}"));
        assert!(error.starts_with(code), "{bad:?}: {error}");
    }
    for rare in [
        r#"{"changes":[{"session":1,"status":2,"first":1},{"session":1,"status":2,"first":1}]}"#,
        r#"{"changes":[{"session":2,"status":2,"first":1}]}"#,
        r#"{"changes":[{"session":0,"status":2}]}"#,
        r#"{"changes":[{"session":2000000000,"status":2}]}"#,
        r#"{"changes":[{"session":null,"status":2}]}"#,
        r#"{"changes":[{"session":1,"status":3,"first":1}]}"#,
        r#"{"changes":[{"session":1,"status":null,"first":1}]}"#,
        r#"{"changes":[{"session":1,"status":1,"owner":99,"first":1,"added":1}]}"#,
        r#"{"changes":[{"session":1,"status":1,"owner":1,"first":1,"added":1}]}"#,
        r#"{"changes":[{"session":1,"status":1,"owner":3,"first":1}]}"#,
        r#"{"changes":[{"session":1,"status":1,"owner":3,"first":1,"added":99}]}"#,
        r#"{"changes":[{"session":1,"status":2,"first":9}]}"#,
        r#"{"changes":{"session":1}}"#,
        r#"{"changes":[1]}"#,
        r#"{"changes":[{"session":"x"}]}"#,
        r#"{"opens":[{"session_id":"s9","session_type":0,"from_id":"c","gateway":99}]}"#,
        r#"{"opens":[{"session_id":"s9","session_type":0,"from_id":"c","gateway":2}]}"#,
        r#"{"opens":[{"session_id":null,"session_type":0,"from_id":"c","gateway":1}]}"#,
        r#"{"opens":[{"session_id":"s9","session_type":0,"from_id":"c"},{"session_id":"s9","session_type":0,"from_id":"c"}]}"#,
        r#"{"agents":[{"id":"no id!","sets_name":false,"sets_image":false,"default_max_sessions":50}]}"#,
        r#"{"agents":[{"id":null,"sets_name":false,"sets_image":false,"default_max_sessions":50}]}"#,
        r#"{"agents":[{"id":"new","sets_name":false,"sets_image":false}]}"#,
        r#"{"presence":[{"agent":2}]}"#,
        r#"{"assign":"perhaps"}"#,
    ] {
        let statement = call(&[CLOSE])
            .replace(r#"{"changes":[{"session":1,"status":2,"needs_room":false,"last_op":1,"by":2,"first":1}]}"#, rare);
        let done = store.outcome(&statement).await;
        assert!(done.is_err(), "{rare}: {done:?}");
    }
}

#[tokio::test]
async fn rubbish_that_is_committed_leaves_no_hole() {
    let mut store = Store::new().await;
    let calls = [
        vec![],
        // A version that this store never had: what follows is another history, from the next version on.
        vec!["head=1000"],
        vec!["head=9223372036854775807"],
        vec!["history=gen_random_uuid()"],
        vec!["head=null"],
        vec!["seq_versions='{1000}'"],
        vec!["evidence=8", SENT],
        vec![
            "session='{1,2}' feed='{2,0}' profile='{1,0}' author='{1,1}' step='{2,1}' type='{1,1}' reason='{0,0}' message_type='{0,0}' content_type='{0,0}' content='{a,b}' sessions='{1,2}' revisions='{1,9}' seq_versions='{4,4}' seqs='{2,0}'",
        ],
        vec![TRANSFER],
        vec![CLOSE],
        vec![
            "rare='{\"opens\":[{\"session_id\":\"s9\",\"session_type\":0,\"from_id\":\"c\",\"gateway\":1},{\"session_id\":\"s1\",\"session_type\":0,\"from_id\":\"c\"}],\"assign\":true}'",
            QUEUED,
        ],
        vec![],
    ];
    for changes in calls {
        drop(sqlx::raw_sql(AssertSqlSafe(call(&changes))).execute(&mut store.app).await);
        let consistent: bool = sqlx::query_scalar(CONSISTENT).fetch_one(&mut store.sql).await.expect("a look");
        assert!(consistent, "{changes:?}");
    }
    let histories: Vec<(i32, i64)> = sqlx::query_as("select ordinal, first_version from histories order by ordinal")
        .fetch_all(&mut store.sql)
        .await
        .expect("the histories");
    assert_eq!(histories, [(1, 1), (2, 6), (3, 6)]);
    // A settled append does not happen any more, and the level of isolation is the one it was made for.
    sqlx::raw_sql("select settle_append(99, 0)").execute(&mut store.app).await.expect("it is settled");
    assert_eq!(store.outcome(&call(&["evidence=99"])).await, Ok((None, None)));
    let set = "set default_transaction_isolation = 'repeatable read'";
    sqlx::raw_sql(set).execute(&mut store.app).await.expect("it is set");
    assert_eq!(store.outcome(&call(&[])).await, Err("25000".to_owned()));
}
