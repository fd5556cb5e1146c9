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

/// What is appended, and the newest version after it.
const GOOD: &[(&[&str], i64)] = &[
    (&[], 5),
    (&["id=array[gen_random_uuid()]"], 5),
    (&["id_text='{m-1}'", "content_type='{1}'"], 5),
    (&["content='{\"\"}'"], 5),
    (&[QUEUED], 5),
    (&[ADMINS], 5),
    (&[SENT], 6),
    (&[CLOSE], 6),
    (&[TRANSFER], 7),
    // Nothing at all; and less than what there is.
    (
        &[
            "session='{}' feed='{}' profile='{}' author='{}' step='{}' type='{}' reason='{}' message_type='{}' content_type='{}' content='{}'",
        ],
        4,
    ),
    (&["session='{{1}}'"], 5),
    (&["head=0"], 5),
    (&["head=-1"], 5),
];

/// What is left out, as if another replica had changed the session.
const STALE: &[&str] = &[
    "revisions='{2}'",
    "revisions='{0}'",
    "sessions='{99}'",
    "sessions='{99}' revisions='{null}'",
    "sessions='{null}'",
    "revisions='{null}'",
    "seq_versions='{5}'",
    "seq_versions='{null}'",
    "sessions='{3}'",
];

/// A check says no, ours or a constraint's (the first two digits of the code say so); or a parameter cannot be.
const REFUSED: &str = "23";
const INVALID: &str = "22";

const BAD: &[(&[&str], &str)] = &[
    // What an event cannot be.
    (&["type='{3}'"], REFUSED),
    (&["type='{-1}'"], REFUSED),
    (&["type='{0}'"], REFUSED),
    (&["type='{2}'"], REFUSED),
    (&["reason='{1}'"], REFUSED),
    (&["message_type='{2}'"], REFUSED),
    (&["message_type='{-1}'"], REFUSED),
    (&["content_type='{2}'"], REFUSED),
    (&["content='{}'"], REFUSED),
    (&["content='{}'", "author='{0}'"], REFUSED),
    (&["author='{0}'"], REFUSED),
    (&["id=array[gen_random_uuid()]", "id_text='{m-2}'"], REFUSED),
    (&["id_text='{\"\"}'"], REFUSED),
    (&["id_text=array[repeat('x',65)]"], REFUSED),
    (&["id_text=array[gen_random_uuid()::text]"], REFUSED),
    // Somebody else's session, feed, name or number.
    (&["feed='{1}'"], REFUSED),
    (&["feed='{3}'"], REFUSED),
    (&["feed='{0}'"], REFUSED),
    (&["feed='{99}'"], REFUSED),
    (&["feed='{-1}'"], REFUSED),
    (&["author='{2}'"], REFUSED),
    (&["author='{3}'"], REFUSED),
    (&["author='{99}'"], REFUSED),
    (&["profile='{0}'"], REFUSED),
    (&["profile='{2}'"], REFUSED),
    (&["profile='{9}'"], REFUSED),
    (&["step='{0}'"], REFUSED),
    (&["step='{-1}'"], REFUSED),
    (&["step='{null}'"], REFUSED),
    (&["seqs='{-1}'"], INVALID),
    (&[QUEUED, "feed='{2}'"], REFUSED),
    (&[QUEUED, "message_type='{1}'", "author='{2}'"], REFUSED),
    (&[QUEUED, "type='{2}'", "content='{}'"], REFUSED),
    (&[ADMINS, "author='{-1}'", "message_type='{0}'"], REFUSED),
    // An agent's message is told to both, one after the other.
    (&["message_type='{1}'", "author='{2}'"], REFUSED),
    (&[SENT, "feed='{2,3}'"], REFUSED),
    (&[SENT, "feed='{2,2}'"], REFUSED),
    (&[SENT, "feed='{1,1}'"], REFUSED),
    (&[SENT, "author='{2,2}'"], REFUSED),
    (&[SENT, "content='{x,y}'"], REFUSED),
    (&[SENT, "content_type='{0,1}'"], REFUSED),
    (&[SENT, "message_type='{1,0}'"], REFUSED),
    (&[SENT, "content='{null,x}'", "author='{0,2}'"], REFUSED),
    (&[SENT, "sessions='{1,4}' revisions='{1,1}' seq_versions='{4,4}' seqs='{0,0}'", "session='{2,1}'"], REFUSED),
    // What a change tells is what it is.
    (&[CLOSE, "rare=null"], REFUSED),
    (&[CLOSE, "reason='{2,2}'"], REFUSED),
    (&[CLOSE, "reason='{0,0}'"], REFUSED),
    (&[CLOSE, "feed='{2,3}'"], REFUSED),
    (&[CLOSE, "feed='{0,1}'"], REFUSED),
    (&[CLOSE, "profile='{0,1}'"], REFUSED),
    (&[CLOSE, "step='{1,null}'"], REFUSED),
    (&[CLOSE, "content='{x}'"], REFUSED),
    (&[CLOSE, "type='{0,2}'"], REFUSED),
    (&[CLOSE, "content_type='{1,0}'"], REFUSED),
    (&[TRANSFER, "feed='{2,2,1}'"], REFUSED),
    (&[TRANSFER, "feed='{2,3,3}'", "profile='{1,1,1}'"], REFUSED),
    (&[TRANSFER, "profile='{1,1,1}'"], REFUSED),
    (&[TRANSFER, "step='{null,-1,null}'"], REFUSED),
    (&[TRANSFER, "type='{2,2,0}'", "reason='{2,2,0}'"], REFUSED),
    // Arrays that do not fit together.
    (&["feed='{2,2}'"], REFUSED),
    (&["feed='{}'"], REFUSED),
    (&["content='{x,y}'"], REFUSED),
    (&["id=array[null,gen_random_uuid()]"], REFUSED),
    (&["session='{1,1}'"], REFUSED),
    (&["session='{2}'"], REFUSED),
    (&["session='{0}'"], REFUSED),
    (&["session='{null}'"], REFUSED),
    (&["session='{-2147483648}'"], REFUSED),
    (&["author='{}'"], REFUSED),
    (&["type='{}'"], REFUSED),
    (&["type='{null}'"], REFUSED),
    (&["reason='{null}'"], REFUSED),
    (&["message_type='{}'"], REFUSED),
    (&["profile='{}'"], REFUSED),
    (&["step='{}'"], REFUSED),
    (&["seqs='{}'"], REFUSED),
    (&["seqs='{null}'"], INVALID),
    (&["sessions='{1,1}' revisions='{1,1}' seq_versions='{4,4}' seqs='{0,0}'"], REFUSED),
    (&["sessions='[0:0]={1}'"], INVALID),
    (&["feed='[2:2]={2}'"], INVALID),
    (&["session='[0:0]={1}'"], INVALID),
    (&["author='[0:0]={1}'"], INVALID),
    // Nulls where everything depends on it.
    (&["history=null"], INVALID),
    (&["evidence=null"], INVALID),
    (&["head=null"], INVALID),
    (&["sessions=null"], INVALID),
    (&["revisions=null"], INVALID),
    (&["session=null"], INVALID),
    (&["content=null"], INVALID),
    (&["id=null"], INVALID),
];

/// In place of [`CLOSE`]'s.
const BAD_RARE: &[&str] = &[
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
];

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
    for (good, last) in GOOD {
        assert_eq!(store.outcome(&call(good)).await.map(|outcome| outcome.0), Ok(Some(*last)), "{good:?}");
    }
    for stale in STALE {
        assert_eq!(store.outcome(&call(&[stale])).await, Ok((Some(4), Some(vec![true]))), "{stale}");
    }
    for (bad, code) in BAD {
        let error = store.outcome(&call(bad)).await.expect_err(&format!("{bad:?}"));
        assert!(error.starts_with(code), "{bad:?}: {error}");
    }
    for rare in BAD_RARE {
        let close = r#"{"changes":[{"session":1,"status":2,"needs_room":false,"last_op":1,"by":2,"first":1}]}"#;
        let statement = call(&[CLOSE]);
        assert!(statement.contains(close));
        let done = store.outcome(&statement.replace(close, rare)).await;
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
