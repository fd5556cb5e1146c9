-- What: the events of all feeds in one order, including messages, partitioned by version; the
--       functions that create partitions and move the oldest version that is kept.
-- Locks: the row of store, for a moment; everything else is new.
-- Reversible: no; this is the history.
-- Size: about 500 bytes per message of 300 bytes and 140 bytes per other event, indexes included; an
--       empty partition has 100 kB.
--
-- Narrower than squawk recommends, on purpose: keys as in 0002, a number within one session, and codes that
-- append() checks. Saves forty bytes per row.
-- squawk-ignore-file prefer-bigint-over-int, prefer-bigint-over-smallint

set local lock_timeout = '250ms';
set local statement_timeout = '5s';

create table events (
    version      bigint      not null,
    created_at   timestamptz not null,
    session_key  bigint      not null,
    append       bigint,
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
    -- appending transaction has read the referenced rows, and nothing is deleted.
    -- No check constraints: PostgreSQL parses their text again for every statement, and
    -- one took a third of the time of a single-message append. append() makes the same
    -- checks, and only the owner may insert directly.
    constraint events_pkey primary key (version)
) partition by range (version);

-- No two entries of these two indexes are equal, so there is nothing to deduplicate.
--
-- Every read of a feed merges one to three range scans of this index, one per type.
-- (feed_key, version) would serve all types together slightly faster, but a rare type
-- would scan its whole feed; with both indexes, every append would pay twice.
create index events_by_feed on events (feed_key, type, version) with (deduplicate_items = off);

-- A session's messages in order. By version and not by message_seq, which is the same order: the
-- newest are in the last partitions, and a search for them ends there.
create index messages_by_session on events (session_key, version) with (deduplicate_items = off) where content is not null;

-- Finds the AddSession that a message's Id acknowledges. Small: covers one event in ten.
create index events_adding_a_session on events (session_key, message_seq) where type = 0;

comment on table events is 'What happened in each feed. Append-only, enforced for everyone; only content may be erased.';
comment on column events.version is 'The event''s number: dense (1, 2, 3 and so on), assigned under append_lock in commit order.';
comment on column events.created_at is 'When it was appended (the database''s clock); never decreases with the version.';
comment on column events.session_key is 'The session it is about.';
comment on column events.append is 'First event of an append: its evidence, a random number by which it is found if the commit is not answered. Null for all other events.';
comment on column events.id is 'Message: the Id given by its sender, if that is a UUID in its usual lower-case form, else null. A message without any given Id has made_message_id(version, created_at), which is not stored.';
comment on column events.feed_key is 'The feed it belongs to; 0 for a message that arrived while its session was queued: nobody receives it until the session''s AddSession brings it.';
comment on column events.profile_key is 'Profile of the agent that it shows, as it was then; 0 for none.';
comment on column events.author_key is 'Message: feed of the gateway or agent that sent it. 0 for events without content.';
comment on column events.message_seq is 'Message: the message''s number in its session (1, 2, 3 and so on without gaps; it restarts if none of the session''s messages is kept). AddSession: the last message that came with it (at most 20 are shown), 0 for none. DelSession: 0.';
comment on column events.type is '0 AddSession, 1 Message, 2 DelSession.';
comment on column events.reason is 'DelSession: 1 closed, 2 transferred, 3 released. Else 0.';
comment on column events.message_type is 'Message: 0 received from the customer, 1 sent by an agent. Else 0.';
comment on column events.content_type is 'Message: 0 text, 1 URL of an image. Else 0.';
comment on column events.id_text is 'Message: the Id given by its sender, if it has any other form than events.id holds, else null.';
comment on column events.content is 'Message: the text, or the URL of the image. An agent''s message goes to two feeds; only its first event, the owner''s, holds the content. Null for all other events.';

-- A UUIDv7 (RFC 9562) of the milliseconds since 1970, the remaining microseconds as 12 bits (section
-- 6.2, method 3), and the version in place of random bits. It is unique because the version is. It need
-- not be stored or indexed, because it contains the version to look for.
create function made_message_id(version bigint, created_at timestamptz) returns uuid
language sql stable parallel safe set search_path = pg_catalog, pg_temp as $$
    select (lpad(to_hex(us / 1000), 12, '0') || to_hex(28672 + us % 1000 * 4096 / 1000)
            || to_hex((-9223372036854775808)::bigint | version))::uuid
    from (select (extract(epoch from created_at) * 1000000)::bigint as us) t
$$;

comment on function made_message_id(bigint, timestamptz) is 'The Id of a message without a given one.';

create view messages as
select session_key, created_at, case when feed_key = 0 then 0 else version end as version, message_seq as seq, author_key,
       message_type as type, content_type,
       case when id is null and id_text is null then made_message_id(events.version, created_at) else id end as id, id_text, content
from events
where content is not null;

comment on view messages is 'Messages, numbered within their session: the events that hold content. To erase a message''s content, update it here or in events.';
comment on column messages.session_key is 'The session.';
comment on column messages.created_at is 'When the append that brought it was made (the database''s clock).';
comment on column messages.version is 'Version of the Message event in the owner''s feed (an agent''s message has another event, version + 1, in the gateway''s feed); 0 when it came while the session was queued.';
comment on column messages.seq is 'Number within the session: 1, 2, 3 and so on without gaps; it begins anew when none of the session''s messages is kept.';
comment on column messages.author_key is 'Feed of the gateway or agent that sent it.';
comment on column messages.type is '0 received from the customer, 1 sent by an agent.';
comment on column messages.content_type is '0 text, 1 URL of an image.';
comment on column messages.id is 'The message''s Id when it is a UUID in its usual lower-case form, else null. To find a message by it, look for events.id: this column has no index.';
comment on column messages.id_text is 'The message''s Id in any other form, else null.';
comment on column messages.content is 'The text, or the URL of the image.';

create function refuse_change() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
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
    before update of version, created_at, session_key, append, id, feed_key, profile_key, author_key, message_seq, type, reason,
                     message_type, content_type, id_text on events
    for each statement execute function refuse_change();

-- ALWAYS: also in sessions that run with session_replication_role = replica.
alter table events enable always trigger events_are_kept;
alter table events enable always trigger events_change_in_content_only;

create function event_partitions() returns table (name text, first_version bigint, end_version bigint, detaching boolean)
language sql stable set search_path = public, pg_temp as $$
    select c.relname::text, substring(bound from 'FROM \(''?(\d+)')::bigint,
           coalesce(substring(bound from 'TO \(''?(\d+)')::bigint, 9223372036854775807), i.inhdetachpending
    from pg_inherits i
    join pg_class c on c.oid = i.inhrelid
    cross join lateral pg_get_expr(c.relpartbound, c.oid) bound
    where i.inhparent = 'events'::regclass and bound like 'FOR VALUES FROM%'
    order by 2
$$;

comment on function event_partitions() is 'The partitions of events: first version, first version after it, and whether it was begun to be detached.';

-- A partition is made apart and then attached: that way nobody who reads or appends waits, because of
-- events itself it takes a lock that they do not mind (SHARE UPDATE EXCLUSIVE). What is attached is
-- empty, so there is nothing to look through, and no check constraint that would spare the look.
--
-- A unique index of a partitioned table must contain its key, the version, and so could not keep Ids
-- unique. The indexes on Ids are each partition's own and refuse duplicates within it. Across
-- partitions, append() looks up clients' Ids in all of them while it holds append_lock. Ids derived from
-- a version are always new.
create function make_partitions(first_version bigint, last_version bigint) returns integer
language plpgsql set search_path = public, pg_temp as $$
declare
    width  bigint;
    begins bigint;
    name   text;
    made   integer := 0;
begin
    -- Two who make partitions at once: the second waits here, and then finds them made.
    lock table only events in share update exclusive mode;
    select partition_width into width from store;
    begins := greatest((select max(end_version) from event_partitions()), first_version - (first_version - 1) % width);
    while begins <= last_version loop
        name := 'events_' || begins;
        -- Insert-only: vacuum early and freeze at once, so that the visibility map is
        -- fresh and no wraparound vacuum ever has a whole partition to read.
        execute format('create table %I (like events including constraints including indexes including comments)
            with (autovacuum_vacuum_insert_scale_factor = 0.02, autovacuum_freeze_min_age = 0)', name);
        -- Only Ids that clients gave are kept. Most are UUIDs: 16 bytes instead of 37, in the row and in the index.
        execute format('create unique index %I on %I (id) where id is not null', name || '_id_is_unique', name);
        execute format('create unique index %I on %I (id_text) where id_text is not null', name || '_id_text_is_unique', name);
        -- For statements that name the partition itself.
        execute format('create trigger events_are_kept before delete or truncate on %I
            for each statement execute function refuse_change()', name);
        execute format('create trigger events_change_in_content_only
            before update of version, created_at, session_key, append, id, feed_key, profile_key, author_key, message_seq, type, reason,
                             message_type, content_type, id_text on %I
            for each statement execute function refuse_change()', name);
        execute format('alter table %I enable always trigger events_are_kept, enable always trigger events_change_in_content_only', name);
        execute format('alter table events attach partition %I for values from (%s) to (%s)', name, begins, begins + width);
        execute format('comment on table %I is %L', name, format('Events from version %s to %s.', begins, begins + width - 1));
        begins := begins + width;
        made := made + 1;
    end loop;
    update store set partitions_end = begins where partitions_end <> begins;
    return made;
end
$$;

comment on function make_partitions(bigint, bigint) is 'Creates the partitions of events that are missing for these versions, and returns how many. Only for the owner.';

-- Called by every replica at startup and regularly, and by an append that finds no room.
create function make_partitions_ahead(events integer default 0) returns integer
language plpgsql security definer set search_path = public, pg_temp as $$
declare
    head bigint;
    last bigint;
begin
    select greatest(coalesce((select max(e.version) from events e), 0), oldest_version - 1) into head from store;
    -- Two whole partitions beyond the one of the newest event. No more than a batch can need, whoever asks.
    select head + least(greatest(make_partitions_ahead.events, 0), 20000) + 2 * partition_width into last from store;
    if (select max(end_version) from event_partitions()) > last
       and (select partitions_end from store) = (select max(end_version) from event_partitions()) then
        return 0;
    end if;
    return make_partitions(head + 1, last);
end
$$;

comment on function make_partitions_ahead(integer) is 'Ensures that two partitions of events lie ahead of the newest event and of as many as are about to be appended; returns how many it created. The service may call it, with the owner''s rights.';

-- Only the owner may execute these; deploy/grants.sql grants what others need. (A view calls functions with its
-- reader's rights; trigger functions need no grant.)
revoke execute on function made_message_id(bigint, timestamptz), refuse_change(), event_partitions(),
    make_partitions(bigint, bigint), make_partitions_ahead(integer) from public;

-- The partition of the first events, and two ahead of it.
do $$ begin perform make_partitions_ahead(1); end $$;

-- A customer's message that arrived while its session was queued reaches nobody until an AddSession
-- brings it. As long as that is pending, or is itself kept, the message must be kept.
create function sessions_in_need_of_events_before(version bigint) returns table (session_id text, since timestamptz)
language sql stable set search_path = public, pg_temp as $$
    select s.session_id, m.created_at
    from sessions s
    cross join lateral (
        select e.version, e.created_at, e.message_seq from events e
        where e.session_key = s.session_key and e.content is not null and e.feed_key = 0
          and e.version < sessions_in_need_of_events_before.version
        order by e.version desc limit 1
    ) m
    where s.status in (0, 1)
      and not exists (
          select from events a
          where a.session_key = s.session_key and a.type = 0 and a.message_seq >= m.message_seq
            and a.version > m.version and a.version < sessions_in_need_of_events_before.version
      )
    order by m.created_at
$$;

comment on function sessions_in_need_of_events_before(bigint) is 'Sessions that are not closed and have messages before this version that their agent has not received before it.';

-- The first half of retention. The second half detaches the partitions, which cannot be done in a
-- transaction; whatever becomes of that, readers already know that those events are gone.
create function keep_events_from(first_kept bigint) returns bigint
language plpgsql set search_path = public, pg_temp as $$
declare
    oldest  bigint;
    kept    bigint := first_kept;
    waiting text;
begin
    -- Nothing is appended or assigned meanwhile.
    lock table append_lock in exclusive mode;
    select oldest_version into oldest from store;
    if first_kept <= oldest then
        return oldest;
    end if;
    if not exists (select from event_partitions() p where p.first_version = first_kept) then
        raise exception 'no partition of events begins with version %', first_kept;
    end if;
    if first_kept >= (select coalesce(max(e.version), 0) from events e) then
        raise exception 'the partition of the newest event is kept';
    end if;
    select string_agg(s.session_id, ', ') into waiting
    from (select * from sessions_in_need_of_events_before(first_kept) limit 5) s;
    if waiting is not null then
        raise exception 'sessions have messages before version % that no agent has been told of: %', first_kept, waiting
            using hint = 'Wait until they are assigned, or close them.';
    end if;
    -- The second event of an agent's message shows the content of the first, the one before it, and goes with it.
    if exists (select from events e where e.version = first_kept and e.type = 1 and e.content is null) then
        kept := first_kept + 1;
    end if;
    update store set oldest_version = kept;
    -- There is nothing left to acknowledge before it: what lies between ranges there would be looked through in vain.
    perform from feeds order by feed_key for no key update;
    with gone as (
        delete from acks where acks.first_version > 0 and acks.first_version <= kept
        returning acks.feed_key, acks.type, acks.last_version
    )
    update acks a
    set last_version = greatest(a.last_version, kept - 1, (select max(g.last_version) from gone g where g.feed_key = a.feed_key and g.type = a.type))
    where a.first_version = 0 and (a.last_version < kept - 1 or exists (select from gone g where g.feed_key = a.feed_key and g.type = a.type));
    -- Every replica looks at once.
    perform pg_notify('deskfeed', 'oldest ' || kept);
    return kept;
end
$$;

comment on function keep_events_from(bigint) is 'Moves the oldest version that is kept to the beginning of a partition, and gives it; readers behind it are answered 41000 from then on. Refuses to where events are still needed. The owner''s.';

revoke execute on function keep_events_from(bigint), sessions_in_need_of_events_before(bigint) from public;
