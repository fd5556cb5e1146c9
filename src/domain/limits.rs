//! Every constant of the service, with its unit and its reason.

use chrono::TimeDelta;

/// Most events in one answer of `/message/query` (wire contract).
pub const EVENTS_PER_PAGE_MAX: i64 = 1000;
/// Events in an answer when the request does not say (wire contract).
pub const EVENTS_PER_PAGE_DEFAULT: i64 = 100;
/// Longest time a poll is held, in seconds (wire contract).
pub const POLL_WAIT_S_MAX: u64 = 60;
/// Time a poll is held when the request does not say, in seconds (wire contract).
pub const POLL_WAIT_S_DEFAULT: u64 = 25;
/// An answer stops growing at this many bytes (wire contract).
pub const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The same, as SQL takes it: no more content than this is read for one answer.
pub const ANSWER_BYTES_MAX_SQL: i64 = 4 * 1024 * 1024;
/// How far `a=@<time>` may be ahead of the server's clock and still mean `now` (wire contract).
pub const CLOCKS_APART: TimeDelta = TimeDelta::seconds(5);
/// How long instant mode holds a page that the token was just given, in milliseconds (wire contract).
pub const REPEATED_PAGE_HOLD_MS: u64 = 1000;

/// Body of any request but a batch of messages, in bytes (wire contract).
pub const BODY_BYTES_MAX: usize = 256 * 1024;
/// Body of a batch of messages, in bytes (wire contract).
pub const BATCH_BODY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// A body over its limit is read on and thrown away up to this many bytes, so that the client
/// gets to read the answer instead of a reset.
pub const DISCARDED_BODY_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Messages in one batch (wire contract).
pub const BATCH_MESSAGES_MAX: usize = 1000;
/// `Content` of a message, in bytes of UTF-8 (wire contract).
pub const CONTENT_BYTES_MAX: usize = 64 * 1024;
/// Path and query of a request, in bytes. Longer acknowledgement lists go into a POST.
pub const URL_BYTES_MAX: usize = 16 * 1024;
/// Whole head of a request, in bytes.
pub const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Acknowledgements in one request. A body of 256 KiB cannot hold many more.
pub const ACKS_PER_REQUEST_MAX: usize = 50_000;

/// Messages that an AddSession brings at most (wire contract).
pub const ADD_SESSION_MESSAGES_MAX: i32 = 20;
/// `SessionId`, in characters.
pub const SESSION_ID_CHARS_MAX: usize = 128;
/// `Id` of a message, in characters (wire contract).
pub const MESSAGE_ID_CHARS_MAX: usize = 64;
/// Names and ids of customers, names of agents and gateways, in characters.
pub const NAME_CHARS_MAX: usize = 256;
/// URL of an image of a customer or agent, in characters.
pub const IMAGE_CHARS_MAX: usize = 2048;
/// `MaxSessions` of an agent when the request does not say (wire contract).
pub const MAX_SESSIONS_DEFAULT: i32 = 50;
/// An agent that has polled before and then has not for this long gets nothing new, in seconds (wire contract).
pub const AGENT_SILENT_S: i64 = 90;
/// Shortest admin token accepted from the configuration, in characters (wire contract).
pub const ADMIN_TOKEN_CHARS_MIN: usize = 32;

/// Requests that may wait for the writer; more are answered 50300.
pub const WRITER_QUEUE_MAX: usize = 8192;
/// What one append may cost, in the time of one message: so the append lock is held for 15 ms or so.
pub const APPEND_COST_MAX: usize = 1000;
/// What an open, close, transfer and the like costs, in the time of one message.
pub const APPEND_COST_OF_A_CHANGE: usize = 5;
/// Content in one append at most, in bytes.
pub const APPEND_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Requests in one append at most.
pub const APPEND_REQUESTS_MAX: usize = 1000;
/// How often a request is decided again because its session has changed meanwhile. Each time, another
/// request for that session has succeeded.
pub const APPEND_TRIES_MAX: u32 = 20;
/// How long a request waits for its append before it is answered 50300, in milliseconds.
pub const APPEND_WAIT_MS: u64 = 8_000;
/// Longest time that the writer waits for the answer to an append, in milliseconds. Then the outcome is unknown.
pub const APPEND_ANSWER_MS: u64 = 5_000;
/// Requests in an append from which on the next one waits for the senders of this one, while other processes
/// append.
pub const APPEND_WORTH_WAITING: usize = 4;
/// How long it then waits at most, in milliseconds.
pub const APPEND_WAIT_FOR_MORE_MS: u64 = 1;
/// How long after another process's append a process counts as not alone, in milliseconds.
pub const APPEND_CONTENDED_MS: u64 = 50;
/// Shortest time between two notifications of other processes under load, in milliseconds.
pub const NOTIFY_PAUSE_MS: u64 = 2;
/// Versions end before this number: larger whole numbers are Ids (wire contract).
pub const VERSION_END: i64 = 1_000_000_000_000_000;
/// No store gives so many versions while a client's clock is believed.
pub const VERSIONS_SOON: i64 = 2_000_000_000_000;
/// How far ahead of ours a client's clock is believed to be, in milliseconds.
pub const CLIENT_CLOCK_AHEAD_MS: i64 = 10_000;
/// Acknowledging requests recorded together at most.
pub const ACK_BATCH_MAX: usize = 512;
/// Items of a batch from which on no further request is added.
pub const ACK_BATCH_ITEMS_MAX: usize = 20_000;

/// Bytes of encoded events that a process keeps in its tail.
pub const TAIL_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Events that a process loads into its tail when it starts, so that readers who come back
/// after a restart need no query each.
pub const TAIL_PRELOAD_EVENTS: i64 = 10_000;
/// Tokens that a process reads when it starts, for the same reason.
pub const TOKENS_PRELOADED_MAX: i64 = 50_000;
/// Events read in one scan of the relay.
pub const RELAY_SCAN_EVENTS: i64 = 2000;
/// How many times as long as a look took the relay then rests, if it is not the timer's turn: so looks take
/// half of the time at most, however often other processes notify.
pub const RELAY_REST: u32 = 1;
/// How long the relay waits for an append of this process that others of it have overtaken, in milliseconds.
pub const RELAY_REORDER_MS: u64 = 1;
/// Appends of this process that wait for what is between them and the tail, at most.
pub const RELAY_AHEAD_MAX: usize = 256;
/// How often the relay looks at the table whether or not it was notified, in milliseconds.
/// Bounds the delay that a lost notification can cause (promised: 1 s).
pub const SWEEP_MS: u64 = 400;
/// How long the relay's look at the head may take, in milliseconds, before it connects anew.
pub const RELAY_LOOK_MS: u64 = 1_000;
/// How long ago the last look that succeeded may have begun for a process to count as in touch with the
/// database, in milliseconds. One that does not is not ready, and tells nothing from its memory: what it
/// remembers may have been erased.
pub const IN_TOUCH_MS: u64 = 3_000;
/// How long ago the relay's last look that succeeded may have begun for a cached token to be believed, in
/// milliseconds. A revoked token is refused within 1 s (wire contract), by a process that was paused meanwhile too.
pub const TOKENS_BELIEVED_MS: u64 = 1_000;
/// How long `deskfeed erase` waits after its last commit, in milliseconds: then every process has seen
/// it, or is not in touch any more. The slack is for two clocks that do not run quite alike.
pub const ERASURE_SETTLES_MS: u64 = IN_TOUCH_MS + 500;
/// Messages that one transaction of `deskfeed erase` blanks at most: appends wait for it meanwhile.
pub const ERASED_MESSAGES_PER_COMMIT: usize = 500;
/// Sessions in one transaction of `deskfeed erase` at most, for the same reason.
pub const ERASED_SESSIONS_PER_COMMIT: usize = 100;
/// How often a process notifies itself to prove its LISTEN connection, in milliseconds.
pub const LISTENER_PING_MS: u64 = 5_000;
/// A LISTEN connection that has not heard its own ping for this long is replaced, in milliseconds.
pub const LISTENER_SILENT_MS: u64 = 10_000;
/// How often polls and token uses are noted in the database, in milliseconds.
pub const ACTIVITY_FLUSH_MS: u64 = 5_000;
/// How old a note of an agent's poll or a token's use may grow before it is renewed, in seconds:
/// well below [`AGENT_SILENT_S`], and seldom enough for tens of thousands of parked polls.
pub const ACTIVITY_RENEW_S: u64 = 30;
/// How often a process tries to assign queued sessions without a cause of its own, in milliseconds.
pub const ASSIGN_SWEEP_MS: u64 = 1_000;

/// How often a process sees to it that partitions lie ahead of the newest event, in milliseconds.
/// Two of them do, and of the default width they last for minutes at any pace. Making one also has the
/// plans made anew that were made while the present one was empty.
pub const PARTITIONS_SWEEP_MS: u64 = 5_000;
/// How long it then waits for its lock, in milliseconds, and how long before it tries again.
pub const PARTITIONS_LOCK_MS: u64 = 250;
pub const PARTITIONS_PAUSE_MS: u64 = 1_000;

/// How long a parked poll waits before it asks a database again that was away, in milliseconds.
pub const POLL_RETRY_MS: u64 = 100;
/// How long a request waits for PostgreSQL before it is answered 50300, in milliseconds.
pub const DB_ACQUIRE_MS: u64 = 2_000;
/// How long one read may take, in milliseconds; the server's own limit (statement_timeout) is shorter.
pub const DB_READ_MS: u64 = 6_000;
/// statement_timeout of every connection, in milliseconds.
pub const DB_STATEMENT_MS: u64 = 5_000;
/// lock_timeout of every connection, in milliseconds: a replica that hangs with the append
/// lock held is ended by PostgreSQL sooner (idle_in_transaction_session_timeout).
pub const DB_LOCK_MS: u64 = 3_000;
/// idle_in_transaction_session_timeout of every connection, in milliseconds.
pub const DB_IDLE_IN_TRANSACTION_MS: u64 = 2_000;
/// How long a writer waits for one commit, in milliseconds. Then the outcome is unknown.
pub const COMMIT_MS: u64 = 10_000;

/// How long a client may take to send the head of a request, in seconds.
pub const HEAD_READ_S: u64 = 10;
/// How long a connection is kept between two requests, in seconds. Longer than balancers and
/// clients keep theirs, so that they close first and no request meets a closing connection.
pub const KEEP_ALIVE_S: u64 = 100;
/// How long a client may take to send a body, in seconds.
pub const BODY_READ_S: u64 = 15;
/// How long a connection may be unable to take a byte of an answer, in seconds.
pub const WRITE_STALL_S: u64 = 30;
/// Connections waiting to be accepted. A short queue turns a mass reconnect into retransmits
/// of 1 s and 3 s.
pub const LISTEN_BACKLOG: i32 = 4096;
/// How long a stopping process waits for the first request of a new connection, in milliseconds.
pub const FIRST_REQUEST_MS: u64 = 500;
/// From the signal to stop to the exit, in seconds (wire contract: 10).
pub const SHUTDOWN_S: u64 = 9;
/// `Retry-After` of 50300 and 42900, in seconds.
pub const RETRY_AFTER_S: u64 = 1;
