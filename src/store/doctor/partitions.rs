//! Whether there is room for the versions to come, where events are partitioned by version.

use sqlx::PgConnection;

use super::Result;
use crate::domain::finding::Finding;

const CHECK: &str = "partitions";

pub(super) async fn look(connection: &mut PgConnection) -> Result<Vec<Finding>> {
    let bounds: Vec<(Option<i64>, Option<i64>)> =
        sqlx::query_as(include_str!("../sql/partition_bounds.sql")).fetch_all(&mut *connection).await?;
    if bounds.is_empty() {
        return Ok(Vec::new());
    }
    let head: i64 = sqlx::query_scalar("/* doctor.partitions */ select coalesce(max(version), 0) from events")
        .fetch_one(connection)
        .await?;
    Ok(vec![judge(head, &bounds)])
}

/// (first version or none, first version after it or none) of each partition.
fn judge(head: i64, bounds: &[(Option<i64>, Option<i64>)]) -> Finding {
    if bounds.iter().any(|(_, end)| end.is_none()) {
        return Finding::ok(CHECK, "the last one takes all versions to come");
    }
    let end = bounds.iter().filter_map(|(_, end)| *end).max().unwrap_or(0);
    let ahead = bounds.iter().filter(|(begin, _)| begin.is_some_and(|begin| begin > head)).count();
    let found = format!(
        "{} versions remain in the partitions that are there, {ahead} of which are still empty",
        end - 1 - head
    );
    let advice = "make partitions ahead (docs/dba.md, Partitions and retention): without one, every append fails";
    match ahead {
        0 => Finding::critical(CHECK, found, advice),
        1 => Finding::warning(CHECK, found, advice),
        _ => Finding::ok(CHECK, found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::finding::Severity;

    #[test]
    fn partitions_are_wanted_ahead_of_the_head() {
        let bounds = [(Some(1), Some(11)), (Some(11), Some(21)), (Some(21), Some(31))];
        for (head, severity, remain) in
            [(0, Severity::Ok, 30), (5, Severity::Ok, 25), (11, Severity::Warning, 19), (21, Severity::Critical, 9)]
        {
            let found = judge(head, &bounds);
            assert_eq!(found.severity, severity, "{head}");
            assert!(found.found.starts_with(&format!("{remain} versions remain")), "{}", found.found);
        }
        assert_eq!(judge(5, &[(Some(1), None)]).severity, Severity::Ok);
    }
}
