/* events.version_before */
-- Versions are dense and their times never decrease: a binary search by primary key.
with recursive search (low, high) as (
    select oldest_version, greatest(coalesce((select max(version) from events), 0), oldest_version - 1) + 1 from store
    union all
    select case when e.created_at < $1 then middle + 1 else low end,
           case when e.created_at < $1 then high else middle end
    from search
    cross join lateral (select (low + high) / 2 as middle) m
    cross join lateral (select created_at from events where version >= middle and version <= middle order by version limit 1) e
    where low < high
)
select low - 1 from search where low = high
