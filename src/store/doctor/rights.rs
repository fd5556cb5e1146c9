//! Whether the service's role may do what it needs, and no more.

use sqlx::PgConnection;

use super::Result;
use crate::{domain::finding::Finding, store::rights};

const CHECK: &str = "rights";

pub(super) async fn look(connection: &mut PgConnection) -> Result<Vec<Finding>> {
    // Those that services are connected as; else the one that they should be.
    let roles: Vec<String> = sqlx::query_scalar(
        "/* doctor.rights */
         with live as (
             select distinct usename::text as role from pg_stat_activity
             where application_name = 'deskfeed/listens' and datname = current_database() and usename is not null
         )
         select role from live
         union all
         select rolname::text from pg_roles where rolname = 'deskfeed_app' and not exists (select from live)
         order by 1",
    )
    .fetch_all(&mut *connection)
    .await?;
    if roles.is_empty() {
        return Ok(vec![Finding::warning(
            CHECK,
            "no service is connected, and there is no role deskfeed_app",
            "run deploy/roles.sql, and let the service log in as deskfeed_app (docs/dba.md, Roles)",
        )]);
    }
    let mut findings = Vec::new();
    for role in roles {
        let excess = rights::excess(connection, &role).await?;
        if !excess.is_empty() {
            findings.push(Finding::warning(
                CHECK,
                format!("{role}, the service's role, can do more than it needs: {}", excess.join("; ")),
                "run deploy/roles.sql, and let the service log in as deskfeed_app or a member of it (docs/dba.md, Roles)",
            ));
        }
        let lacking = rights::lacking(connection, &role).await?;
        if !lacking.is_empty() {
            findings.push(Finding::critical(
                CHECK,
                format!("{role}, the service's role, lacks {}", lacking.join("; ")),
                "run `deskfeed migrate` or deploy/grants.sql as the owner of the tables",
            ));
        }
        if excess.is_empty() && lacking.is_empty() {
            findings.push(Finding::ok(CHECK, format!("{role} may do what the service needs, and no more")));
        }
    }
    Ok(findings)
}
