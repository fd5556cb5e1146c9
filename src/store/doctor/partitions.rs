//! Whether there is room for the versions to come, and whether retention has finished what it began.

use sqlx::PgConnection;

use super::Result;
use crate::{domain::finding::Finding, store::retention};

const CHECK: &str = "partitions";

/// A partition of events.
#[derive(Debug)]
struct Bounds {
    name: String,
    first_version: i64,
    end_version: i64,
    detaching: bool,
}

pub(super) async fn look(connection: &mut PgConnection) -> Result<Vec<Finding>> {
    let there: bool =
        sqlx::query_scalar("/* doctor.partitions */ select to_regprocedure('event_partitions()') is not null")
            .fetch_one(&mut *connection)
            .await?;
    if !there {
        return Ok(Vec::new());
    }
    let partitions: Vec<(String, i64, i64, bool)> = sqlx::query_as(
        "/* doctor.partitions */ select name, first_version, end_version, detaching from event_partitions()",
    )
    .fetch_all(&mut *connection)
    .await?;
    let bounds = |(name, first_version, end_version, detaching)| Bounds { name, first_version, end_version, detaching };
    let partitions: Vec<Bounds> = partitions.into_iter().map(bounds).collect();
    let (head, oldest, has_default): (i64, i64, bool) = sqlx::query_as(
        "/* doctor.partitions */
         select greatest(coalesce((select max(version) from events), 0), oldest_version - 1), oldest_version,
                exists (select from pg_partitioned_table where partrelid = 'events'::regclass and partdefid <> 0)
         from store",
    )
    .fetch_one(&mut *connection)
    .await?;
    let mut findings = judge_room(head, oldest, &partitions);
    findings.extend(partitions.iter().filter_map(|partition| judge_rest(oldest, partition)));
    if has_default {
        findings.push(Finding::warning(
            CHECK,
            "events has a default partition: no partition can be detached while others read, and making one looks through it",
            "detach it; what makes partitions ahead leaves no need of it",
        ));
    }
    let detached = retention::detached(connection).await?;
    if !detached.is_empty() {
        let names: Vec<&str> = detached.iter().map(|(name, _)| name.as_str()).collect();
        let bytes: i64 = detached.iter().map(|(_, bytes)| bytes).sum();
        findings.push(Finding::note(
            CHECK,
            format!("detached, and still there: {} ({} MiB)", names.join(", "), bytes >> 20),
            "archive them (pg_dump -t), then drop them",
        ));
    }
    Ok(findings)
}

/// Whether every version from the oldest kept on has a partition, and for how long that goes on.
fn judge_room(head: i64, oldest: i64, partitions: &[Bounds]) -> Vec<Finding> {
    let kept: Vec<&Bounds> = partitions.iter().filter(|partition| partition.end_version > oldest).collect();
    let mut findings: Vec<Finding> = kept
        .windows(2)
        .filter(|pair| pair[0].end_version != pair[1].first_version)
        .map(|pair| {
            Finding::critical(
                CHECK,
                format!("there is none for the versions {} to {}", pair[0].end_version, pair[1].first_version - 1),
                "attach what was detached by hand (alter table events attach partition ...)",
            )
        })
        .collect();
    let end = kept.iter().map(|partition| partition.end_version).max().unwrap_or(oldest);
    if end == i64::MAX {
        findings.push(Finding::ok(CHECK, "the last one takes all versions to come"));
        return findings;
    }
    let ahead = kept.iter().filter(|partition| partition.first_version > head).count();
    let found = format!(
        "{} versions remain in the partitions that are there, {ahead} of which are still empty",
        end - 1 - head
    );
    let advice =
        "is a service running? It makes them ahead; so does `deskfeed retention ahead`, which says what is in its way";
    findings.push(match ahead {
        0 => Finding::critical(CHECK, found, advice),
        1 => Finding::warning(CHECK, found, advice),
        _ => Finding::ok(CHECK, found),
    });
    findings
}

/// What retention has left undone.
fn judge_rest(oldest: i64, partition: &Bounds) -> Option<Finding> {
    let name = &partition.name;
    let found = if partition.detaching {
        format!("{name} was begun to be detached, and is not")
    } else if partition.end_version <= oldest {
        format!("{name} holds nothing that is kept, and is not detached")
    } else {
        return None;
    };
    Some(Finding::warning(CHECK, found, "unless it is at work just now: `deskfeed retention apply` goes on with it"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::finding::Severity;

    fn bounds(first_version: i64, end_version: i64) -> Bounds {
        Bounds { name: format!("events_{first_version}"), first_version, end_version, detaching: false }
    }

    #[test]
    fn partitions_are_wanted_ahead_of_the_head() {
        let partitions = [bounds(1, 11), bounds(11, 21), bounds(21, 31)];
        for (head, severity, remain) in
            [(0, Severity::Ok, 30), (5, Severity::Ok, 25), (11, Severity::Warning, 19), (21, Severity::Critical, 9)]
        {
            let found = judge_room(head, 1, &partitions);
            assert_eq!((found.len(), found[0].severity), (1, severity), "{head}");
            assert!(found[0].found.starts_with(&format!("{remain} versions remain")), "{}", found[0].found);
        }
        assert_eq!(judge_room(5, 1, &[bounds(1, i64::MAX)])[0].severity, Severity::Ok);
    }

    #[test]
    fn a_hole_matters_where_events_are_kept() {
        let partitions = [bounds(1, 11), bounds(21, 31), bounds(31, 41), bounds(41, 51)];
        let found = judge_room(25, 1, &partitions);
        assert_eq!((found.len(), found[0].severity), (2, Severity::Critical));
        assert!(found[0].found.contains("11 to 20"), "{}", found[0].found);
        assert_eq!(judge_room(25, 12, &partitions).len(), 1);
    }

    #[test]
    fn what_retention_left_is_told() {
        let told = |oldest, partition: &Bounds| judge_rest(oldest, partition).map(|finding| finding.found);
        assert_eq!(told(5, &bounds(1, 11)), None);
        assert!(told(11, &bounds(1, 11)).is_some_and(|found| found.contains("events_1 holds nothing")));
        let detaching = Bounds { detaching: true, ..bounds(1, 11) };
        assert!(told(11, &detaching).is_some_and(|found| found.contains("events_1 was begun")));
    }
}
