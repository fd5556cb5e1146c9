-- What: the functions through which the service appends. The service changes events, sessions and agents in no other way.
-- Locks: none that matter; functions only.
-- Reversible: drop the functions (the service cannot append without them).
-- Size: nothing.

set local lock_timeout = '250ms';
set local statement_timeout = '5s';

-- Returns the key of a feed, which is created if necessary. Null if the id belongs to the other kind.
create function put_feed(wanted_id text, wanted_kind smallint) returns integer
language plpgsql set search_path = public, pg_temp as $$
declare
    key        integer;
    found_kind smallint;
begin
    insert into feeds (kind, feed_id) values (wanted_kind, wanted_id)
    on conflict on constraint feed_id_is_unique do nothing;
    select feed_key, kind into key, found_kind from feeds where feed_id = wanted_id;
    if found_kind <> wanted_kind then
        return null;
    end if;
    -- Each feed starts with one acknowledged range per event type, before any event.
    insert into acks (first_version, last_version, feed_key, type)
    select 0, 0, key, type from unnest('{0,1,2}'::smallint[]) type
    on conflict on constraint acks_pkey do nothing;
    return key;
end
$$;

comment on function put_feed(text, smallint) is 'Key of the feed with this id, which is created if it does not exist; null if the id belongs to the other kind (1 agent, 2 gateway).';

create function put_gateway(wanted_id text, wanted_name text, sets_name boolean, out is_gateway boolean, out present_name text)
language plpgsql security definer set search_path = public, pg_temp as $$
declare
    key integer := put_feed(wanted_id, 2::smallint);
begin
    is_gateway := key is not null;
    if is_gateway then
        insert into gateways as g (feed_key, name) values (key, wanted_name)
        on conflict on constraint gateways_pkey do update
        set name = case when sets_name then excluded.name else g.name end
        returning g.name into present_name;
    end if;
end
$$;

comment on function put_gateway(text, text, boolean) is 'Creates or changes a gateway and returns its name; is_gateway is false if the id belongs to an agent.';

-- Null keeps a value, or means its default in a new agent.
create function put_agent(
    wanted_id text, wanted_name text, sets_name boolean, wanted_image text, sets_image boolean,
    wanted_max_sessions integer, default_max_sessions integer, wanted_online boolean
) returns boolean
language plpgsql set search_path = public, pg_temp as $$
declare
    key     integer := put_feed(wanted_id, 1::smallint);
    present record;
begin
    if key is null then
        return false;
    end if;
    select a.profile_key, p.name, p.image into present
    from agents a join profiles p on p.profile_key = a.profile_key
    where a.feed_key = key;
    if present.profile_key is null
       or (sets_name and wanted_name is distinct from present.name)
       or (sets_image and wanted_image is distinct from present.image) then
        -- A new row: events of the past go on showing the old one.
        insert into profiles (feed_key, name, image)
        values (key, case when sets_name then wanted_name else present.name end,
                case when sets_image then wanted_image else present.image end)
        returning profile_key into present.profile_key;
    end if;
    insert into agents as a (feed_key, profile_key, max_sessions, status)
    values (key, present.profile_key, coalesce(wanted_max_sessions, default_max_sessions),
            case when wanted_online is false then 0 else 1 end)
    on conflict on constraint agents_pkey do update
    set profile_key = excluded.profile_key,
        max_sessions = coalesce(wanted_max_sessions, a.max_sessions),
        status = case wanted_online when true then 1 when false then 0 else a.status end;
    return true;
end
$$;

comment on function put_agent is 'Creates or changes an agent; false if the id belongs to a gateway. The caller holds append_lock.';

-- Greedy: each session in turn goes to the available agent with the fewest open sessions; among equals, to
-- the one whose last assignment is longest ago. An agent is available if it is online, below its maximum, and not
-- silent (has polled before, but not in the last 90 s: the wire contract). A session that an agent released does
-- not go back to that agent: released_by names it, and is null for all other sessions.
create function choose_agents(released_by integer[]) returns integer[]
language plpgsql stable set search_path = public, pg_temp as $$
declare
    agents integer[];
    counts integer[];
    most   integer[];
    chosen integer[] := '{}';
    free   bigint;
    level  integer;
    place  integer := 1;
    best   integer;
begin
    -- Every agent before another in this order is given a session before it, so no more of them are
    -- needed than there are sessions, and one for the agent that is left out. polls_seen is read for those
    -- in front only. Sorted with the highest count first: at each level, whoever has just been raised to it
    -- comes last.
    select array_agg(a.feed_key), array_agg(a.open_sessions), array_agg(a.max_sessions), sum(a.max_sessions - a.open_sessions)
    into agents, counts, most, free
    from (
        select a.*
        from (
            select a.*
            from (
                select * from agents
                where status = 1 and open_sessions < max_sessions
                order by open_sessions, assigned_at nulls first, feed_key
                offset 0
            ) a
            where not exists (
                select from polls_seen p
                where p.feed_key = a.feed_key and p.seen_at <= clock_timestamp() - interval '90 seconds'
            )
            order by a.open_sessions, a.assigned_at nulls first, a.feed_key
            limit cardinality(released_by) + 1
        ) a
        order by a.open_sessions desc, a.assigned_at nulls first, a.feed_key
    ) a;
    level := counts[cardinality(counts)];
    for i in 1..cardinality(released_by) loop
        exit when coalesce(free, 0) = 0;
        best := null;
        if released_by[i] is null then
            -- The next agent of this level, or of the next one.
            loop
                if place > cardinality(agents) then
                    place := 1;
                    level := level + 1;
                end if;
                exit when counts[place] <= level and counts[place] < most[place];
                place := place + 1;
            end loop;
            best := place;
            place := place + 1;
        else
            for j in 1..cardinality(agents) loop
                if agents[j] <> released_by[i] and counts[j] < most[j] and (best is null or counts[j] < counts[best]) then
                    best := j;
                end if;
            end loop;
            continue when best is null;
        end if;
        counts[best] := counts[best] + 1;
        free := free - 1;
        chosen[i] := agents[best];
    end loop;
    return chosen;
end
$$;

comment on function choose_agents(integer[]) is 'The agents to whom new sessions would be assigned now, one per element; null (or missing at the end) if nobody is available. An element names the agent that its session must not go to, or is null.';

create function refuse_event(reason text) returns smallint
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    raise exception 'an event to be appended contradicts itself: %', reason using errcode = 'check_violation';
end
$$;

comment on function refuse_event(text) is 'Refuses an event that contradicts itself.';

create function next_history(by_hand boolean) returns uuid
language plpgsql set search_path = public, pg_temp as $$
declare
    newest histories;
    system bigint := (select system_identifier from pg_control_system());
    line   integer := current_timeline();
begin
    select * into newest from histories order by ordinal desc limit 1;
    if not by_hand and newest.system_identifier = system and newest.timeline = line then
        return newest.name;
    end if;
    lock table append_lock in exclusive mode;
    -- Again: another replica may have been first.
    select * into newest from histories order by ordinal desc limit 1;
    if not by_hand and newest.system_identifier = system and newest.timeline = line then
        return newest.name;
    end if;
    insert into histories (first_version, system_identifier, ordinal, timeline)
    select greatest(coalesce((select max(version) from events), 0), oldest_version - 1) + 1, system, newest.ordinal + 1, line
    from store
    returning * into newest;
    update store set history = newest.name;
    perform pg_notify('deskfeed', 'history');
    return newest.name;
end
$$;

comment on function next_history(boolean) is 'Name of the present history. After a promotion or a restore (the cluster or its timeline has changed), or by hand, it first begins a new one with the next version.';

-- A cluster's timeline changes only by promotion, and the service never appends on a connection that was made
-- to a standby. So one call per connection is enough, before its first append.
create function begin_history() returns uuid
language sql security definer set search_path = public, pg_temp as $$
    select next_history(false)
$$;

comment on function begin_history() is 'Name of the present history, after beginning a new one if the server was promoted or the store restored. The service may call it, with the owner''s rights.';

-- Appends many requests in one call, which is a transaction of its own: how long the append lock is held does not
-- depend on how far away the service is.
--
-- The service has decided each request on its cached state of the session, and states the revision of that
-- state. Sessions that have changed since, or that get a message whose Id is taken, are left out as a whole and
-- marked in `stale`; everything else is written. So the work of other replicas on other sessions costs nothing.
-- What only the database knows at this moment is decided here: versions, message numbers, the agents' present
-- profiles, which agents are available, and who is next in the queue.
--
-- Parameters: one group of arrays has an element per session, the other one per event; an event's session is a
-- position in the first group. Arrays of Ids and texts may be shorter than their group: the rest is null.
--   seq_versions, seqs   seqs[i] was the number of the session's newest message when seq_versions[i] was the newest version
--   profile_sources      whose profile an event shows: 0 none, 1 that of the session's owner, 2 that of the new owner
--   seq_steps            added to the session's newest number; null if the event has no number
--   rare                 the parts that most batches do not have; null if there are none:
--     agents    [{id, name, sets_name, image, sets_image, max_sessions, default_max_sessions, online}], see put_agent()
--     presence  [{agent, online}]
--     changes   [{session, status, owner, needs_room, last_op, by, to, first, added}], at most one per session:
--               first and added are the positions of its first event and of the new owner's AddSession
--     opens     [{session_id, session_type, from_id, from_name, from_image, gateway, owner}]: without an owner, an
--               available agent is chosen, or the session waits in the queue
--     assign    true: queued sessions are assigned as well, as far as agents are available
-- Returns: history and head (the newest version before it; null if nothing was done because the history is another
-- one or the evidence is settled), last (the newest version after it), and for each session, change and open what the
-- service needs to answer and to show the events. refused_changes, taken_opens, refused_opens and taken_agents are
-- positions: refused if the agent is not available, taken if the id exists.
--
-- Any role that may call this may append; it runs with the owner's rights. So it checks its input: no call leaves a
-- gap in the versions, an event in a feed that has nothing to do with its session, or an event that contradicts its
-- session or itself. Such a call fails as a whole. Not checked: texts, message numbers that the caller states, and
-- an Id that one call gives twice across a boundary of partitions.
create function append(
    expected_history uuid, evidence bigint, known_head bigint,
    session_keys bigint[], revisions bigint[], seq_versions bigint[], seqs integer[],
    event_sessions integer[], feed_keys integer[], profile_sources smallint[], author_keys integer[], seq_steps integer[],
    types smallint[], reasons smallint[], message_types smallint[], content_types smallint[],
    ids uuid[], id_texts text[], contents text[], rare jsonb,
    out history uuid, out head bigint, out last bigint, out appended_at timestamptz,
    out stale boolean[], out last_seqs integer[], out owner_profiles integer[],
    out change_profiles integer[], out refused_changes integer[],
    out open_keys bigint[], out open_owners integer[], out open_profiles integer[], out open_versions bigint[],
    out taken_opens integer[], out refused_opens integer[], out taken_agents integer[], out assigned integer
)
language plpgsql security definer set search_path = public, pg_temp as $$
declare
    room         bigint;
    is_settled   boolean;
    -- Of each session, without nulls: its owner (0 while queued) and its gateway (-1 none).
    owners       integer[];
    told_gateways integer[];
    -- Of each session that changes.
    new_statuses smallint[];
    new_owners   integer[];
    taken        integer[];
    positions    integer[];
    new_profiles integer[] := '{}';
    item         record;
    -- The sessions that wait for an agent: those of the queue, then the opens that name none.
    queued       bigint[];
    gateways     integer[];
    released     integer[];
    queued_seqs  integer[];
    in_queue     integer := 0;
    chosen       integer[];
    next_choice  integer;
    -- The AddSession events of the queue and of opens.
    entered      bigint[] := '{}';
    entered_to   integer[] := '{}';
    entered_by   integer[] := '{}';
    entered_seqs integer[] := '{}';
    entered_at   bigint[] := '{}';
begin
    -- Arrays of different lengths are noticed where an element is missing.
    if num_nulls(expected_history, evidence, known_head, session_keys, revisions, seq_versions, seqs, event_sessions, feed_keys,
                 profile_sources, author_keys, seq_steps, types, reasons, message_types, content_types, ids, id_texts, contents) > 0
       or 1 <> any (array[array_lower(session_keys, 1), array_lower(seqs, 1), array_lower(event_sessions, 1), array_lower(feed_keys, 1),
                          array_lower(author_keys, 1), array_lower(types, 1), array_lower(content_types, 1)])
       or (0 <= all (seqs)) is not true then
        raise exception 'what is to be appended has a null, a negative number of a message, or an array that does not begin at 1'
            using errcode = 'invalid_parameter_value';
    end if;
    if current_setting('transaction_isolation') <> 'read committed' then
        raise exception 'append() needs the isolation level read committed' using errcode = 'invalid_transaction_state';
    end if;
    lock table append_lock in exclusive mode;
    -- Each statement of a function has a snapshot of its own (read committed): this one and those after it see
    -- everything that was committed before the lock was had. The newest event is known_head or newer, so no
    -- older partition is looked into.
    select s.history, s.partitions_end, coalesce(e.version, s.oldest_version - 1), e.created_at,
           exists (select from settled_appends a where a.evidence = append.evidence)
    into history, room, head, appended_at, is_settled
    from store s
    left join lateral (
        select version, created_at from events where version >= known_head order by version desc limit 1
    ) e on true;
    if history <> expected_history or is_settled then
        head := null;
        return;
    end if;
    if appended_at is null and known_head > 0 then
        -- A version of this history is not there any more: what follows is another one.
        perform next_history(true);
        head := null;
        return;
    end if;
    -- Times never decrease with the version; nothing else depends on them.
    appended_at := greatest(clock_timestamp(), appended_at);

    if cardinality(session_keys) > 0 then
        if cardinality(session_keys) > 1
           and (select count(distinct session_key) < count(*) from unnest(session_keys) session_key) then
            perform refuse_event('a session is named twice');
        end if;
        select array_agg(s.is_stale), array_agg(s.profile_key), array_agg(s.owner_key), array_agg(s.gateway_key)
        into stale, owner_profiles, owners, told_gateways
        from (
            select (s.revision = given.revision and s.status < 2 and given.seq_version <= head) is not true as is_stale,
                   a.profile_key, case s.status when 1 then s.owner_key else 0 end as owner_key,
                   coalesce(s.gateway_key, -1) as gateway_key
            from unnest(session_keys, revisions, seq_versions) with ordinality given (session_key, revision, seq_version, n)
            left join sessions s on s.session_key = given.session_key
            left join agents a on a.feed_key = s.owner_key
            order by given.n
        ) s;
        -- Sessions may have been given messages since the service knew their numbers.
        last_seqs := seqs;
        if head > any (seq_versions) then
            for item in
                select given.n, m.message_seq
                from unnest(session_keys, seq_versions) with ordinality given (session_key, seq_version, n)
                cross join lateral (
                    select e.message_seq from events e
                    where e.session_key = given.session_key and e.content is not null
                      and e.version > given.seq_version and e.version <= head
                    order by e.version desc limit 1
                ) m
                where given.seq_version < head
            loop
                last_seqs[item.n] := item.message_seq;
            end loop;
        end if;
        -- A message whose Id is there is a repetition, which is the service's to decide. (Two statements: in
        -- one, both queries would be started each time.)
        if cardinality(ids) > 0 then
            select array_agg(given.session) into taken
            from (select unnest(ids) as id, unnest(event_sessions) as session) given
            join events e on e.id = given.id
            where given.id is not null;
        end if;
        if cardinality(id_texts) > 0 then
            select taken || array_agg(given.session) into taken
            from (select unnest(id_texts) as id, unnest(event_sessions) as session) given
            join events e on e.id_text = given.id
            where given.id is not null;
        end if;
        for i in 1..coalesce(cardinality(taken), 0) loop
            stale[taken[i]] := true;
        end loop;
    end if;

    if rare is not null then
        for item in
            select a.*, row_number() over () as n
            from jsonb_to_recordset(rare -> 'agents')
                 as a (id text, name text, sets_name boolean, image text, sets_image boolean, max_sessions integer,
                       default_max_sessions integer, online boolean)
        loop
            if not put_agent(item.id, item.name, item.sets_name, item.image, item.sets_image, item.max_sessions,
                             item.default_max_sessions, item.online) then
                taken_agents := taken_agents || item.n::integer;
            end if;
        end loop;
        if rare ? 'presence' then
            update agents a set status = p.online::integer
            from jsonb_to_recordset(rare -> 'presence') as p (agent integer, online boolean)
            where a.feed_key = p.agent;
            -- Who says to be online takes back what it has released.
            update sessions s set last_op_to = null
            from jsonb_to_recordset(rare -> 'presence') as p (agent integer, online boolean)
            where p.online and s.status = 0 and s.last_op = 2 and s.last_op_to = p.agent;
        end if;
        if rare ? 'opens' then
            select array_agg(o.n::integer) into taken_opens
            from rows from (jsonb_to_recordset(rare -> 'opens') as (session_id text)) with ordinality o (session_id, n)
            join sessions s on s.session_id = o.session_id;
        end if;
        -- Each agent takes as many of those meant for it as it has room for, in their order.
        select array_agg(w.n) filter (where w.is_change), array_agg(w.n) filter (where not w.is_change)
        into refused_changes, refused_opens
        from (
            select w.*, row_number() over (partition by w.agent order by w.is_change desc, w.n) as turn
            from (
                select true as is_change, c.n::integer as n, c.owner as agent
                from rows from (jsonb_to_recordset(rare -> 'changes') as (session integer, owner integer, needs_room boolean))
                     with ordinality c (session, owner, needs_room, n)
                where c.needs_room and not stale[c.session]
                union all
                select false, o.n::integer, o.owner
                from rows from (jsonb_to_recordset(rare -> 'opens') as (owner integer)) with ordinality o (owner, n)
                where o.owner is not null and (o.n = any (taken_opens)) is not true
            ) w
        ) w
        left join agents a on a.feed_key = w.agent
        where (a.status = 1 and a.open_sessions + w.turn <= a.max_sessions) is not true;
        for item in
            select c.*, a.profile_key, c.n = any (refused_changes) as is_refused
            from rows from (jsonb_to_recordset(rare -> 'changes')
                            as (session integer, status smallint, owner integer, first integer, added integer))
                 with ordinality c (session, status, owner, first, added, n)
            left join agents a on a.feed_key = c.owner
            order by c.n
        loop
            if (item.session between 1 and cardinality(session_keys) and item.status between 0 and 2) is not true
               or new_statuses[item.session] is not null then
                perform refuse_event(format('change %s is of no session, of one that changes twice, or to no status', item.n));
            end if;
            if item.status = 1 and (item.profile_key is not null and types[item.added] = 0 and feed_keys[item.added] = item.owner
                                    and event_sessions[item.added] = item.session) is not true
               or item.first is not null and event_sessions[item.first] is distinct from item.session then
                perform refuse_event(format('change %s is to an owner who is no agent, or its events are not its own', item.n));
            end if;
            new_statuses[item.session] := item.status;
            new_owners[item.session] := item.owner;
            new_profiles[item.session] := item.profile_key;
            change_profiles := change_profiles || item.profile_key;
            if item.is_refused then
                stale[item.session] := true;
            end if;
        end loop;
        if rare ? 'changes' then
            perform refuse_event(format('event %s is not what the change of its session tells this feed', e.n))
            from (select generate_series(1, cardinality(event_sessions)) as n, unnest(event_sessions) as session,
                         unnest(feed_keys) as feed_key, unnest(profile_sources) as profile_source,
                         unnest(author_keys) as author_key, unnest(seq_steps) as seq_step, unnest(types) as type,
                         unnest(reasons) as reason, unnest(message_types) as message_type,
                         unnest(content_types) as content_type, unnest(ids) as id, unnest(id_texts) as id_text,
                         unnest(contents) as content) e
            where e.type <> 1 and not stale[e.session]
              and (e.content is null and e.id is null and e.id_text is null
                   and (e.author_key, e.message_type, e.content_type) = (0, 0, 0) and e.feed_key > 0
                   and case e.type
                           when 0 then new_statuses[e.session] = 1 and e.reason = 0 and e.profile_source = 2
                                       and e.feed_key in (new_owners[e.session], told_gateways[e.session])
                                       and coalesce(e.seq_step, 0) >= 0
                           when 2 then new_statuses[e.session] = case e.reason when 1 then 2 when 2 then 1 when 3 then 0 end
                                       and e.feed_key in (owners[e.session], told_gateways[e.session])
                                       and e.profile_source = case when owners[e.session] > 0 then 1 else 0 end
                                       and e.seq_step is null
                       end) is not true;
        end if;
    end if;

    if true = any (stale) then
        select array_agg(e.position) into positions
        from (
            select case when not stale[e.session]
                        then count(*) filter (where not stale[e.session]) over (order by e.n)
                   end::integer as position
            from unnest(event_sessions) with ordinality e (session, n)
            order by e.n
        ) e;
        last := head + (select coalesce(max(position), 0) from unnest(positions) position);
    else
        last := head + cardinality(event_sessions);
    end if;
    -- Partitions are made long before they are needed; but no append fails for want of one.
    if last >= room then
        perform make_partitions_ahead((last - head)::integer);
    end if;

    if last > head then
        insert into events (version, created_at, session_key, append, feed_key, profile_key, author_key, message_seq,
                            type, reason, message_type, content_type, id, id_text, content)
        select head + coalesce(positions[e.n], e.n), appended_at, session_keys[e.session],
               case when coalesce(positions[e.n], e.n) = 1 then evidence end,
               e.feed_key,
               case e.profile_source when 0 then 0 when 1 then owner_profiles[e.session] else new_profiles[e.session] end,
               e.author_key, case when e.seq_step is null then 0 else last_seqs[e.session] + e.seq_step end,
               -- An expression is set up anew for each statement, at a price for each operator: so there are few.
               case when e.type = 1 and e.reason = 0 and e.content_type = any ('{0,1}') and e.seq_step > 0
                         and e.profile_source = case when owners[e.session] > 0 then 1 else 0 end
                         and case when e.content is not null
                                  then e.feed_key = owners[e.session] and e.author_key > 0
                                       and e.author_key = case e.message_type when 0 then told_gateways[e.session]
                                                                              when 1 then owners[e.session] end
                                       and (e.message_type = 0 or feed_keys[e.n + 1] = told_gateways[e.session]
                                            or told_gateways[e.session] < 0)
                                       and (e.id_text is null
                                            or e.id is null and e.id_text !~ '^$|^.{65}|^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$')
                                  else e.feed_key = told_gateways[e.session] and e.message_type = 1
                                       and e.author_key = 0 and e.id is null and e.id_text is null
                                       and author_keys[e.n - 1] > 0 and event_sessions[e.n - 1] = e.session
                                       and content_types[e.n - 1] = e.content_type
                             end
                    then 1
                    -- The others were looked at with the changes.
                    when e.type <> 1 and new_statuses[e.session] is not null
                    then e.type
                    else refuse_event(format('event %s is no message of its session for this feed', e.n))
               end,
               e.reason, e.message_type, e.content_type, e.id, e.id_text, e.content
        -- Row by row: in "from unnest(...)" each array would be copied first, a quarter of what 500 rows take.
        from (select generate_series(1, cardinality(event_sessions)) as n, unnest(event_sessions) as session,
                     unnest(feed_keys) as feed_key, unnest(profile_sources) as profile_source, unnest(author_keys) as author_key,
                     unnest(seq_steps) as seq_step, unnest(types) as type, unnest(reasons) as reason,
                     unnest(message_types) as message_type, unnest(content_types) as content_type,
                     unnest(ids) as id, unnest(id_texts) as id_text, unnest(contents) as content) e
        where positions is null or positions[e.n] is not null;
    end if;
    if rare is null then
        return;
    end if;

    if rare ? 'changes' then
        update sessions s
        set revision = s.revision + 1,
            status = c.status,
            owner_key = case c.status when 0 then null when 1 then c.owner else s.owner_key end,
            closed_at = case c.status when 2 then appended_at end,
            assigned_version = case c.status when 0 then 0 when 1 then head + coalesce(positions[c.added], c.added)
                                             else s.assigned_version end,
            last_op = coalesce(c.last_op, s.last_op),
            last_op_by = case when c.last_op is null then s.last_op_by else c.by end,
            last_op_to = case when c.last_op is null then s.last_op_to else c."to" end,
            last_op_version = case when c.last_op is null then s.last_op_version
                                   else coalesce(head + coalesce(positions[c.first], c.first), 0) end
        from jsonb_to_recordset(rare -> 'changes')
             as c (session integer, status smallint, owner integer, last_op smallint, by integer, "to" integer,
                   first integer, added integer)
        where s.session_key = session_keys[c.session] and not stale[c.session];
        update agents a
        set open_sessions = a.open_sessions + d.difference,
            assigned_at = case when d.gains then appended_at else a.assigned_at end
        from (
            select d.agent, sum(d.difference)::integer as difference, bool_or(d.difference > 0) as gains
            from (
                select owners[c.session] as agent, -1 as difference
                from jsonb_to_recordset(rare -> 'changes') as c (session integer)
                where not stale[c.session]
                union all
                select c.owner, 1
                from jsonb_to_recordset(rare -> 'changes') as c (session integer, status smallint, owner integer)
                where c.status = 1 and not stale[c.session]
            ) d
            where d.agent > 0
            group by d.agent
        ) d
        where a.feed_key = d.agent;
    end if;

    -- The queue, and opens.
    if (rare ->> 'assign')::boolean then
        select array_agg(q.session_key), array_agg(q.gateway_key), array_agg(q.released_by), array_agg(q.seq), count(*)
        into queued, gateways, released, queued_seqs, in_queue
        from (
            select s.session_key, s.gateway_key, case when s.last_op = 2 then s.last_op_to end as released_by,
                   coalesce(m.message_seq, 0) as seq
            from sessions s
            left join lateral (
                select e.message_seq from events e
                where e.session_key = s.session_key and e.content is not null
                order by e.version desc limit 1
            ) m on true
            where s.status = 0
            order by s.session_key limit 100
        ) q;
    end if;
    -- If more wait than one append assigns, opens wait behind them.
    if in_queue < 100 then
        for i in 1..coalesce(jsonb_array_length(rare -> 'opens'), 0) loop
            if rare -> 'opens' -> (i - 1) ->> 'owner' is null then
                released := released || null::integer;
            end if;
        end loop;
    end if;
    if cardinality(released) > 0 then
        chosen := choose_agents(released);
    end if;
    for i in 1..in_queue loop
        if chosen[i] is not null then
            entered := entered || queued[i];
            entered_to := entered_to || chosen[i];
            entered_by := entered_by || gateways[i];
            entered_seqs := entered_seqs || queued_seqs[i];
            entered_at := entered_at || last + 1;
            last := last + case when gateways[i] is null then 1 else 2 end;
        end if;
    end loop;
    assigned := cardinality(entered);
    if assigned > 0 then
        update sessions s
        set revision = s.revision + 1, status = 1, owner_key = e.agent, assigned_version = e.version
        from unnest(entered, entered_to, entered_at) e (session_key, agent, version)
        where s.session_key = e.session_key;
    end if;

    if rare ? 'opens' then
        next_choice := in_queue + 1;
        for item in
            select o.*, o.gateway is not null and g.feed_key is null as is_lost
            from rows from (jsonb_to_recordset(rare -> 'opens') as (gateway integer, owner integer))
                 with ordinality o (gateway, owner, n)
            left join gateways g on g.feed_key = o.gateway
            order by o.n
        loop
            if item.is_lost then
                perform refuse_event('its gateway is not there');
            end if;
            open_keys[item.n] := null;
            open_owners[item.n] := null;
            open_versions[item.n] := null;
            continue when (item.n = any (taken_opens || refused_opens)) is true;
            if item.owner is null then
                item.owner := chosen[next_choice];
                next_choice := next_choice + 1;
            end if;
            open_keys[item.n] := nextval('sessions_session_key_seq');
            open_owners[item.n] := item.owner;
            open_versions[item.n] := 0;
            if item.owner is not null then
                open_versions[item.n] := last + 1;
                entered := entered || open_keys[item.n];
                entered_to := entered_to || item.owner;
                entered_by := entered_by || item.gateway;
                entered_seqs := entered_seqs || 0;
                entered_at := entered_at || last + 1;
                last := last + case when item.gateway is null then 1 else 2 end;
            end if;
        end loop;
        insert into sessions (session_key, opened_at, status, owner_key, gateway_key, assigned_version,
                              session_type, session_id, from_id, from_name, from_image)
        overriding system value
        select open_keys[o.n], appended_at, case when open_owners[o.n] is null then 0 else 1 end, open_owners[o.n], o.gateway,
               open_versions[o.n], o.session_type, o.session_id, o.from_id, o.from_name, o.from_image
        from rows from (jsonb_to_recordset(rare -> 'opens')
                        as (session_id text, session_type integer, from_id text, from_name text, from_image text, gateway integer))
             with ordinality o (session_id, session_type, from_id, from_name, from_image, gateway, n)
        where open_keys[o.n] is not null;
        select array_agg(o.profile_key) into open_profiles
        from (
            select a.profile_key
            from unnest(open_owners) with ordinality o (owner, n)
            left join agents a on a.feed_key = o.owner
            order by o.n
        ) o;
    end if;

    if cardinality(entered) > 0 then
        if last >= room then
            perform make_partitions_ahead((last - head)::integer);
        end if;
        insert into events (version, created_at, session_key, append, feed_key, profile_key, author_key, message_seq,
                            type, reason, message_type, content_type)
        select e.version + side.n, appended_at, e.session_key, case when e.version + side.n = head + 1 then evidence end,
               case side.n when 0 then e.agent else e.gateway end, a.profile_key, 0, case side.n when 0 then e.seq else 0 end,
               0, 0, 0, 0
        from unnest(entered_at, entered, entered_to, entered_by, entered_seqs) e (version, session_key, agent, gateway, seq)
        join agents a on a.feed_key = e.agent
        -- The agent is told, and then the gateway, if a gateway opened it.
        cross join (values (0), (1)) side (n)
        where side.n = 0 or e.gateway is not null;
        update agents a set open_sessions = a.open_sessions + e.gained, assigned_at = appended_at
        from (select agent, count(*)::integer as gained from unnest(entered_to) agent group by agent) e
        where a.feed_key = e.agent;
    end if;
end
$$;

comment on function append is 'Appends what the service has decided, under append_lock. See migrations/0008_append.sql for the parameters.';

-- Determines the outcome of an append whose commit was not answered. It takes the lock, so it waits for an append
-- that is still committing (or waiting for a standby). The row that it writes prevents the append from happening
-- later. And since its commit follows the append's own in the log, a standby that has confirmed it has the append
-- as well.
create function settle_append(
    wanted bigint, known_head bigint, out found_version bigint, out found_at timestamptz, out found_history uuid
)
language plpgsql security definer set search_path = public, pg_temp as $$
begin
    lock table append_lock in exclusive mode;
    select version, created_at into found_version, found_at
    from events where version > known_head and append = wanted order by version limit 1;
    select history into found_history from store;
    delete from settled_appends where settled_at < clock_timestamp() - interval '7 days';
    insert into settled_appends (evidence, version) values (wanted, found_version)
    on conflict on constraint settled_appends_pkey do update set settled_at = excluded.settled_at;
end
$$;

comment on function settle_append(bigint, bigint) is 'Finds the append with this evidence among the events after a version, or ensures that it never happens.';

-- Only the owner may execute these; deploy/grants.sql grants the service what it needs.
revoke execute on function current_timeline(), put_feed(text, smallint), put_gateway(text, text, boolean),
    put_agent(text, text, boolean, text, boolean, integer, integer, boolean), choose_agents(integer[]), refuse_event(text),
    next_history(boolean), begin_history(), settle_append(bigint, bigint),
    append(uuid, bigint, bigint, bigint[], bigint[], bigint[], integer[], integer[], integer[], smallint[], integer[], integer[],
           smallint[], smallint[], smallint[], smallint[], uuid[], text[], text[], jsonb) from public;
