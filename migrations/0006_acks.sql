-- What: which events each feed has acknowledged.
-- Locks: SHARE ROW EXCLUSIVE on feeds (its foreign key), for a moment; the table is new.
-- Reversible: drop the table; every event comes back in instant mode.
-- Size: three rows per feed, and one more for each stretch of events that was
--       acknowledged before an earlier one was.
--
-- Narrower than squawk likes, on purpose: keys as in 0002, and a type is one of three.
-- squawk-ignore-file prefer-bigint-over-int, prefer-bigint-over-smallint

set local lock_timeout = '250ms';
set local statement_timeout = '5s';

create table acks (
    first_version bigint   not null,
    last_version  bigint   not null,
    feed_key      integer  not null,
    type          smallint not null,
    constraint acks_pkey primary key (feed_key, type, first_version),
    constraint ack_has_a_feed foreign key (feed_key) references feeds (feed_key),
    constraint ack_type_is_known check (type in (0, 1, 2)),
    constraint ack_range_is_ordered check (last_version >= first_version)
) with (fillfactor = 70);

comment on table acks is 'Acknowledged events as ranges of versions, per feed and event type. All events of the feed and type within a range are acknowledged; between two ranges lies at least one that is not. The first range starts at 0.';
comment on column acks.first_version is 'Start of the range, included.';
comment on column acks.last_version is 'End of the range, included.';
comment on column acks.feed_key is 'The feed.';
comment on column acks.type is 'The event type, as in events.type.';
