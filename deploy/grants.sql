-- The rights of the roles that deploy/roles.sql makes, on the tables: what each needs and no more.
-- Run by `deskfeed migrate`, and a part of what `deskfeed migrate print` prints. By hand, as the
-- role that owns the schema, after all migrations: psql -X -v ON_ERROR_STOP=1 -f deploy/grants.sql
--
-- Safe to run again: what was granted before is taken back first, in the same transaction. A role
-- that is not there is left out. One grant a line: `deskfeed doctor` reads this file, too.
do $grants$ begin

-- The service. Columns are named where it changes a few only.
if to_regrole('deskfeed_app') is not null then
    revoke all on _sqlx_migrations, store, histories, append_lock, settled_appends, feeds, profiles, agents, gateways, polls_seen, tokens, sessions, events, messages, erasable, erasures, acks from deskfeed_app;
    revoke all on function append, settle_append, begin_history, next_history, current_timeline, put_gateway, put_agent, put_feed, choose_agents, refuse_event, made_message_id, event_partitions, make_partitions, make_partitions_ahead, keep_events_from, sessions_in_need_of_events_before, refuse_change, take_append_lock, raise_revision from deskfeed_app;
    grant select on _sqlx_migrations to deskfeed_app;
    -- Counts revocations; the rest of the row is the owner's.
    grant select, update (revocations) on store to deskfeed_app;
    grant select on histories to deskfeed_app;
    -- Rows are locked (for no key update), which asks for a right to change some column.
    grant select, update (created_at) on feeds to deskfeed_app;
    grant select on profiles to deskfeed_app;
    grant select on agents to deskfeed_app;
    grant select on gateways to deskfeed_app;
    grant select, insert, update (seen_at) on polls_seen to deskfeed_app;
    grant select, insert, update (last_used_at, revocation) on tokens to deskfeed_app;
    grant select on sessions to deskfeed_app;
    -- Through the table alone: its partitions are nobody's but the owner's.
    grant select on events to deskfeed_app;
    -- These functions run with the owner's rights: the service has no other way to change an event, a session, an
    -- agent or a gateway. They check what they are given.
    grant execute on function append to deskfeed_app;
    grant execute on function settle_append to deskfeed_app;
    grant execute on function begin_history to deskfeed_app;
    grant execute on function put_gateway to deskfeed_app;
    -- The view `messages` calls it, with the rights of who reads the view.
    grant execute on function made_message_id to deskfeed_app;
    -- For `deskfeed doctor`, which may be run as the service's role.
    grant execute on function event_partitions to deskfeed_app;
    -- Makes the partitions to come.
    grant execute on function make_partitions_ahead(integer) to deskfeed_app;
    grant select on messages to deskfeed_app;
    grant select on erasures to deskfeed_app;
    -- Ranges grow together: the ones in between go.
    grant select, insert, update (last_version), delete on acks to deskfeed_app;
end if;

-- People and programs that look at conversations: everything but the hashes of tokens.
if to_regrole('deskfeed_readonly') is not null then
    revoke all on _sqlx_migrations, store, histories, append_lock, settled_appends, feeds, profiles, agents, gateways, polls_seen, tokens, sessions, events, messages, erasable, erasures, acks from deskfeed_readonly;
    revoke all on function append, settle_append, begin_history, next_history, current_timeline, put_gateway, put_agent, put_feed, choose_agents, refuse_event, made_message_id, event_partitions, make_partitions, make_partitions_ahead, keep_events_from, sessions_in_need_of_events_before, refuse_change, take_append_lock, raise_revision from deskfeed_readonly;
    grant select on _sqlx_migrations, store, histories, settled_appends, feeds, profiles, agents, gateways, polls_seen, sessions, events, messages, erasures, acks to deskfeed_readonly;
    grant select (created_at, expires_at, last_used_at, revocation, token_id, feed_key, role) on tokens to deskfeed_readonly;
    -- The view `messages` calls it, with the rights of who reads the view.
    grant execute on function made_message_id to deskfeed_readonly;
end if;

-- Monitoring, `deskfeed doctor` too: how much and how old, never who or what.
if to_regrole('deskfeed_monitor') is not null then
    revoke all on _sqlx_migrations, store, histories, append_lock, settled_appends, feeds, profiles, agents, gateways, polls_seen, tokens, sessions, events, messages, erasable, erasures, acks from deskfeed_monitor;
    revoke all on function append, settle_append, begin_history, next_history, current_timeline, put_gateway, put_agent, put_feed, choose_agents, refuse_event, made_message_id, event_partitions, make_partitions, make_partitions_ahead, keep_events_from, sessions_in_need_of_events_before, refuse_change, take_append_lock, raise_revision from deskfeed_monitor;
    grant select on _sqlx_migrations, store, histories, settled_appends to deskfeed_monitor;
    grant select (version, created_at, feed_key, type) on events to deskfeed_monitor;
    grant select (opened_at, closed_at, session_key, status) on sessions to deskfeed_monitor;
    grant select (feed_key, open_sessions, max_sessions, status) on agents to deskfeed_monitor;
    grant select on polls_seen to deskfeed_monitor;
    -- Says which partitions there are.
    grant execute on function event_partitions to deskfeed_monitor;
end if;

-- `deskfeed erase`: may blank what it cannot read, and must leave a record that it cannot change. When
-- and who are the table's defaults, which it may not write over.
if to_regrole('deskfeed_eraser') is not null then
    revoke all on _sqlx_migrations, store, histories, append_lock, settled_appends, feeds, profiles, agents, gateways, polls_seen, tokens, sessions, events, messages, erasable, erasures, acks from deskfeed_eraser;
    revoke all on function append, settle_append, begin_history, next_history, current_timeline, put_gateway, put_agent, put_feed, choose_agents, refuse_event, made_message_id, event_partitions, make_partitions, make_partitions_ahead, keep_events_from, sessions_in_need_of_events_before, refuse_change, take_append_lock, raise_revision from deskfeed_eraser;
    grant select on _sqlx_migrations to deskfeed_eraser;
    grant select (oldest_program) on store to deskfeed_eraser;
    -- LOCK TABLE ... IN EXCLUSIVE MODE asks for a right to change; there is nothing in it to change.
    grant update on append_lock to deskfeed_eraser;
    grant select (feed_key, feed_id) on feeds to deskfeed_eraser;
    grant select (session_key, gateway_key, session_id, from_id), update (from_name, from_image) on sessions to deskfeed_eraser;
    -- A view of the events that hold content: no other can be touched through it.
    grant select (version, session_key, content_type), update (content) on erasable to deskfeed_eraser;
    grant select, insert (erasure, session_key, through_version, messages, asked, asked_id) on erasures to deskfeed_eraser;
end if;

end $grants$;
