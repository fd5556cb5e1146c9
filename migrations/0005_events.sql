-- What: the events of all feeds in one order, messages among them, and the function that appends.
-- Locks: none that matter; all is new.
-- Reversible: no; this is the history.
-- Size: about 540 bytes per message of 300 bytes and 140 bytes per other event, indexes included.
--
-- Narrower than squawk likes, on purpose: keys as in 0002, a number within one session, and codes that a
-- check names. Forty bytes less in every row.
-- squawk-ignore-file prefer-bigint-over-int, prefer-bigint-over-smallint

set local lock_timeout = '250ms';
set local statement_timeout = '5s';

create table events (
    version      bigint      not null,
    created_at   timestamptz not null,
    session_key  bigint      not null,
    id           uuid,
    feed_key     integer     not null,
    profile_key  integer     not null,
    author_key   integer     not null,
    message_seq  integer     not null,
    type         smallint    not null,
    reason       smallint    not null,
    message_type smallint    not null,
    content_type smallint    not null,
    id_text      text,
    content      text,
    -- No foreign keys: each would be checked for each row of each append. The
    -- appending transaction has read what it refers to, and nothing is deleted.
    constraint events_pkey primary key (version),
    constraint event_version_is_positive check (version >= 1),
    constraint event_type_is_known check (type in (0, 1, 2) and reason in (0, 1, 2, 3) and message_type in (0, 1) and content_type in (0, 1)),
    constraint event_is_a_message_or_is_not check (
        case when content is null then author_key = 0 and id is null and id_text is null
             else type = 1 and author_key <> 0 and (id is null) <> (id_text is null)
        end)
);

-- Every read of a feed is a scan of one to three ranges of this index, one for
-- each type, merged. (feed_key, version) would serve all types a little faster,
-- but make a rare type scan its whole feed; both would cost every append twice.
create index events_by_feed on events (feed_key, type, version);

-- A session's messages, in their order.
create unique index message_seq_is_unique on events (session_key, message_seq) where content is not null;

-- Most Ids are UUIDs: 16 bytes instead of 37, in the row and in the index.
create unique index message_id_is_unique on events (id) where id is not null;
create unique index message_id_text_is_unique on events (id_text) where id_text is not null;

-- Finds the AddSession that a message's Id acknowledges. Small: one in ten events.
create index events_adding_a_session on events (session_key, message_seq) where type = 0;

-- Insert-only: vacuum early and freeze at once, so that the visibility map is
-- fresh and no wraparound vacuum ever has the whole table to read.
alter table events set (
    autovacuum_vacuum_insert_scale_factor = 0.02,
    autovacuum_freeze_min_age = 0
);

comment on table events is 'What happened on each feed. Append-only, enforced for everyone; only content may be erased.';
comment on column events.version is 'The event''s number: dense (1, 2, 3 and so on), given under append_lock in commit order.';
comment on column events.created_at is 'When it was appended (the database''s clock); never decreases with the version.';
comment on column events.session_key is 'The session it is about.';
comment on column events.id is 'Message: its Id when that is a UUID in its usual lower-case form, else null.';
comment on column events.feed_key is 'The feed it belongs to; 0 for a message that came while its session was queued: nobody is told of it until the session''s AddSession brings it.';
comment on column events.profile_key is 'The agent it tells of, as the agent was then; 0 for none.';
comment on column events.author_key is 'Message: feed of the gateway or agent that sent it. 0 for events without content.';
comment on column events.message_seq is 'Message: the message''s number in its session (1, 2, 3 and so on without gaps). AddSession: the last message that came with it (at most 20 are shown), 0 for none. DelSession: 0.';
comment on column events.type is '0 AddSession, 1 Message, 2 DelSession.';
comment on column events.reason is 'Of a DelSession: 1 closed, 2 transferred, 3 released. Else 0.';
comment on column events.message_type is 'Message: 0 received from the customer, 1 sent by an agent. Else 0.';
comment on column events.content_type is 'Message: 0 text, 1 URL of an image. Else 0.';
comment on column events.id_text is 'Message: its Id in any other form than events.id takes, else null.';
comment on column events.content is 'Message: the text, or the URL of the image. An agent''s message is told to two feeds; only its first event, the owner''s, holds it. Null for all other events.';

create view messages as
select session_key, created_at, case when feed_key = 0 then 0 else version end as version, message_seq as seq, author_key,
       message_type as type, content_type, id, id_text, content
from events
where content is not null;

comment on view messages is 'Messages, numbered within their session: the events that hold content. To erase a message''s content, update it here or in events.';
comment on column messages.session_key is 'The session.';
comment on column messages.created_at is 'When the append that brought it was made (the database''s clock).';
comment on column messages.version is 'Version of the Message event in the owner''s feed (an agent''s message has another event, version + 1, in the gateway''s feed); 0 when it came while the session was queued.';
comment on column messages.seq is 'Number within the session: 1, 2, 3 and so on without gaps.';
comment on column messages.author_key is 'Feed of the gateway or agent that sent it.';
comment on column messages.type is '0 received from the customer, 1 sent by an agent.';
comment on column messages.content_type is '0 text, 1 URL of an image.';
comment on column messages.id is 'The message''s Id when it is a UUID in its usual lower-case form, else null.';
comment on column messages.id_text is 'The message''s Id in any other form, else null.';
comment on column messages.content is 'The text, or the URL of the image.';

create function refuse_change() returns trigger
language plpgsql as $$
begin
    raise exception '% of table % is refused: it is append-only', tg_op, tg_table_name
        using errcode = 'object_not_in_prerequisite_state',
              hint = 'Events are history. To erase a message''s content, update events.content.';
end
$$;

comment on function refuse_change() is 'Trigger function: refuses the statement, whoever asks.';

create trigger events_are_kept
    before delete or truncate on events
    for each statement execute function refuse_change();

create trigger events_change_in_content_only
    before update of version, created_at, session_key, id, feed_key, profile_key, author_key, message_seq, type, reason,
                     message_type, content_type, id_text on events
    for each statement execute function refuse_change();

-- ALWAYS: also in sessions that run with session_replication_role = replica.
alter table events enable always trigger events_are_kept;
alter table events enable always trigger events_change_in_content_only;

-- Appending is one call, so that a batch of messages costs one round trip and the lock is held for
-- no longer than the server needs. The caller has decided on what it knows of the store: if that
-- is no longer so (another replica has appended, a session has changed), nothing happens and null
-- comes back. Each statement of the function has a snapshot of its own (read committed), so the
-- second sees all that was committed before the lock was had.
create function append_events(
    expected_head bigint, expected_changes bigint, at timestamptz, notify boolean,
    session_keys bigint[], feed_keys integer[], profile_keys integer[], author_keys integer[], message_seqs integer[],
    types smallint[], reasons smallint[], message_types smallint[], content_types smallint[],
    ids uuid[], id_texts text[], contents text[]
) returns timestamptz
language plpgsql as $$
declare
    found_head    bigint;
    found_changes bigint;
    appended_at   timestamptz;
begin
    lock table append_lock in exclusive mode;
    select greatest(coalesce((select max(version) from events), 0), oldest_version - 1),
           (select last_value from session_changes),
           greatest(coalesce(at, clock_timestamp()), (select created_at from events order by version desc limit 1))
    into found_head, found_changes, appended_at
    from store;
    if found_head <> expected_head or found_changes <> expected_changes then
        return null;
    end if;
    insert into events (version, created_at, session_key, feed_key, profile_key, author_key, message_seq,
                        type, reason, message_type, content_type, id, id_text, content)
    select found_head + position, appended_at, session_key, feed_key, profile_key, author_key, message_seq,
           type, reason, message_type, content_type, id, id_text, content
    from unnest(session_keys, feed_keys, profile_keys, author_keys, message_seqs,
                types, reasons, message_types, content_types, ids, id_texts, contents) with ordinality
        e (session_key, feed_key, profile_key, author_key, message_seq,
           type, reason, message_type, content_type, id, id_text, content, position);
    if notify then
        perform pg_notify('deskfeed', (found_head + cardinality(session_keys))::text);
    end if;
    return appended_at;
end
$$;

comment on function append_events is 'Appends events if the newest version and the count of session_changes are as expected, and gives their time; else gives null and does nothing.';
