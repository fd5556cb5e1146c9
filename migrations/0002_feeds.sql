-- What: agents and gateways (each owns one feed), their names over time, and when they last polled.
-- Locks: none that matter; the tables are new.
-- Reversible: drop the tables (only while no session refers to them).
-- Size: one row per agent or gateway, one profile row per change of a name or image.
--
-- Narrower than squawk likes, on purpose: there is a feed for each agent and gateway and a profile for
-- each change of one, far from 2^31, and the keys stand in every row of events; kinds and states are
-- small numbers that a check names.
-- squawk-ignore-file prefer-bigint-over-int, prefer-bigint-over-smallint

set local lock_timeout = '250ms';
set local statement_timeout = '5s';

create table feeds (
    created_at timestamptz not null default now(),
    feed_key   integer     not null generated always as identity,
    kind       smallint    not null,
    feed_id    text        not null,
    constraint feeds_pkey primary key (feed_key),
    constraint feed_id_is_unique unique (feed_id),
    constraint feed_is_an_agents_or_a_gateways check (kind in (1, 2)),
    constraint feed_id_has_1_to_64_characters check (feed_id ~ '^[A-Za-z0-9._@:-]{1,64}$')
);

comment on table feeds is 'Everybody who has a feed. Agents and gateways share one namespace.';
comment on column feeds.created_at is 'When the agent or gateway was made known.';
comment on column feeds.feed_key is 'Short key of the feed, used by every other table. 32 bits: an agent or gateway each.';
comment on column feeds.kind is '1 agent, 2 gateway.';
comment on column feeds.feed_id is 'The id clients use.';

create table profiles (
    created_at  timestamptz not null default now(),
    profile_key integer     not null generated always as identity,
    feed_key    integer     not null,
    name        text,
    image       text,
    constraint profiles_pkey primary key (profile_key),
    constraint profile_belongs_to_a_feed foreign key (feed_key) references feeds (feed_key)
);

comment on table profiles is 'An agent''s name and image over time. Rows never change: an event shows the profile of its own day for ever.';
comment on column profiles.created_at is 'From when on this profile was the agent''s.';
comment on column profiles.profile_key is 'Key that events refer to.';
comment on column profiles.feed_key is 'Whose profile.';
comment on column profiles.name is 'Shown as FromName or ToName; null when unknown.';
comment on column profiles.image is 'Shown as FromImage or ToImage; null when unknown.';

create table agents (
    assigned_at   timestamptz,
    feed_key      integer  not null,
    profile_key   integer  not null,
    open_sessions integer  not null default 0,
    max_sessions  integer  not null default 50,
    status        smallint not null default 1,
    constraint agents_pkey primary key (feed_key),
    constraint agent_has_a_feed foreign key (feed_key) references feeds (feed_key),
    constraint agent_has_a_profile foreign key (profile_key) references profiles (profile_key),
    constraint open_sessions_is_not_negative check (open_sessions >= 0),
    constraint max_sessions_is_not_negative check (max_sessions >= 0),
    constraint agent_is_away_or_online check (status in (0, 1))
) with (fillfactor = 70);

comment on table agents is 'Staff, and what routing needs to know of them. Changed only under append_lock.';
comment on column agents.assigned_at is 'When a session was last assigned; breaks ties between equally busy agents.';
comment on column agents.feed_key is 'The agent''s feed.';
comment on column agents.profile_key is 'The present profile.';
comment on column agents.open_sessions is 'Number of sessions with status open that this agent owns.';
comment on column agents.max_sessions is 'No session is assigned or transferred to an agent that has this many.';
comment on column agents.status is '0 away, 1 online.';

create table gateways (
    feed_key integer not null,
    name     text,
    constraint gateways_pkey primary key (feed_key),
    constraint gateway_has_a_feed foreign key (feed_key) references feeds (feed_key)
);

comment on table gateways is 'Programs that bring customers'' messages in.';
comment on column gateways.feed_key is 'The gateway''s feed.';
comment on column gateways.name is 'For people; null when unknown.';

-- Apart from agents, so that the replicas' regular notes never wait for an append.
create table polls_seen (
    seen_at  timestamptz not null,
    feed_key integer     not null,
    constraint polls_seen_pkey primary key (feed_key),
    constraint poll_seen_has_a_feed foreign key (feed_key) references feeds (feed_key)
) with (fillfactor = 50);

comment on table polls_seen is 'When each agent last polled. An agent without a row has never polled.';
comment on column polls_seen.seen_at is 'Time of the last poll, to within half a minute.';
comment on column polls_seen.feed_key is 'The agent''s feed.';
