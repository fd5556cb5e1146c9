//! What roles may do, compared with what they need. What they need stands in `deploy/grants.sql`, and
//! nowhere else: the statements that give it are read here, too.

use sqlx::PgConnection;

use super::Result;

/// Gives the roles of `deploy/roles.sql` their rights on the tables.
pub const GRANTS: &str = include_str!("../../deploy/grants.sql");

/// Whose rights a service needs.
const APPLICATION: &str = "deskfeed_app";

/// A right that the service needs.
#[derive(Debug, PartialEq, Eq)]
struct Need {
    privilege: &'static str,
    object: &'static str,
    /// Of the whole table when there is none.
    column: Option<&'static str>,
}

impl Need {
    /// The table's or function's name, without a function's parameters.
    fn name(&self) -> &'static str {
        self.object.split('(').next().unwrap_or(self.object)
    }
}

/// The rights that `deploy/grants.sql` gives to a role.
fn needs_of(role: &str) -> Vec<Need> {
    let mut needs = Vec::new();
    for line in GRANTS.lines() {
        let grant = line.trim().strip_prefix("grant ").and_then(|rest| rest.strip_suffix(';'));
        let parts = grant.and_then(|grant| {
            let (what, to) = grant.rsplit_once(" to ")?;
            let (privileges, objects) = what.split_once(" on ")?;
            let names = objects.strip_prefix("sequence ").or_else(|| objects.strip_prefix("function "));
            (to == role).then_some((privileges, names.unwrap_or(objects)))
        });
        let Some((privileges, objects)) = parts else { continue };
        for object in objects.split(", ") {
            let mut rest = privileges;
            while !rest.is_empty() {
                let privilege = &rest[..rest.find([',', ' ']).unwrap_or(rest.len())];
                rest = &rest[privilege.len()..];
                match rest.strip_prefix(" (").and_then(|list| list.split_once(')')) {
                    Some((columns, after)) => {
                        let named = columns.split(", ");
                        needs.extend(named.map(|column| Need { privilege, object, column: Some(column) }));
                        rest = after;
                    }
                    None => needs.push(Need { privilege, object, column: None }),
                }
                rest = rest.strip_prefix(", ").unwrap_or(rest);
            }
        }
    }
    needs
}

/// Runs [`GRANTS`], if the connection's role owns the tables.
///
/// # Errors
/// When the database refuses it.
pub(super) async fn grant(connection: &mut PgConnection) -> Result<()> {
    let owns: Option<bool> = sqlx::query_scalar(
        "/* rights.grant */ select pg_has_role(relowner, 'usage') from pg_class where oid = to_regclass('store')",
    )
    .fetch_optional(&mut *connection)
    .await?;
    if owns == Some(true) {
        sqlx::raw_sql(GRANTS).execute(connection).await?;
    }
    Ok(())
}

/// The role that a connection acts as.
///
/// # Errors
/// When the database cannot be read.
pub async fn current_role(connection: &mut PgConnection) -> Result<String> {
    Ok(sqlx::query_scalar("/* rights.current_role */ select current_user::text").fetch_one(connection).await?)
}

/// What a role may do that the service does not need, such as `owns events`.
///
/// # Errors
/// When the database cannot be read.
pub async fn excess(connection: &mut PgConnection, role: &str) -> Result<Vec<String>> {
    let mut excess: Vec<String> =
        sqlx::query_scalar(include_str!("sql/role_excess.sql")).bind(role).fetch_all(&mut *connection).await?;
    // Whoever is a superuser or owns the tables has every right on them.
    if !excess.is_empty() {
        return Ok(excess);
    }
    let held: Vec<(String, String)> =
        sqlx::query_as(include_str!("sql/rights_held.sql")).bind(role).fetch_all(connection).await?;
    let needs = needs_of(APPLICATION);
    for (object, privilege) in held {
        let needed =
            needs.iter().any(|need| need.name() == object && need.privilege == privilege && need.column.is_none());
        if !needed {
            excess.push(format!("may {privilege} {object}"));
        }
    }
    Ok(excess)
}

/// What the service needs and a role may not do, such as `select on events`.
///
/// # Errors
/// When the database cannot be read.
pub async fn lacking(connection: &mut PgConnection, role: &str) -> Result<Vec<String>> {
    let needs = needs_of(APPLICATION);
    Ok(sqlx::query_scalar(include_str!("sql/rights_lacking.sql"))
        .bind(role)
        .bind(needs.iter().map(|need| need.object).collect::<Vec<_>>())
        .bind(needs.iter().map(|need| need.column).collect::<Vec<_>>())
        .bind(needs.iter().map(|need| need.privilege).collect::<Vec<_>>())
        .fetch_all(connection)
        .await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grants_are_read_as_they_stand() {
        let needs = needs_of(APPLICATION);
        let of = |object: &str| -> Vec<(&str, Option<&str>)> {
            needs.iter().filter(|need| need.object == object).map(|need| (need.privilege, need.column)).collect()
        };
        assert_eq!(of("events"), [("select", None)]);
        assert_eq!(of("store"), [("select", None), ("update", Some("revocations"))]);
        assert_eq!(
            of("acks"),
            [("select", None), ("insert", None), ("update", Some("last_version")), ("delete", None)]
        );
        assert_eq!(of("make_partitions_ahead(integer)"), [("execute", None)]);
        assert_eq!(of("tokens").len(), 4);
        assert!(needs_of("deskfeed_readonly").contains(&Need { privilege: "select", object: "acks", column: None }));
        assert_eq!(needs_of("nobody"), []);
    }
}
