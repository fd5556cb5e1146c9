//! What an archive holds: the tables, their columns and their order. A test compares them with the
//! schema, so that nothing is ever left out by being new.

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    Int2,
    Int4,
    Int8,
    Time,
    Uuid,
    Bytes,
    Text,
}

#[derive(Debug)]
pub struct Column {
    pub name: &'static str,
    pub r#type: Type,
}

#[derive(Debug)]
pub struct Table {
    pub name: &'static str,
    pub columns: &'static [Column],
    /// The columns that put its rows in order.
    pub order: &'static str,
}

impl Table {
    /// The names of its columns, with commas between.
    pub fn column_list(&self) -> String {
        self.columns.iter().map(|column| column.name).collect::<Vec<&str>>().join(", ")
    }
}

/// Columns that are not copied: what says that `store` has one row, how events are partitioned here, and what
/// belongs to this database alone: its histories, and what its appends are checked and found by.
pub const NOT_COPIED: [(&str, &str); 16] = [
    ("store", "only_row"),
    ("store", "history"),
    ("store", "oldest_program"),
    ("store", "partition_width"),
    ("store", "partitions_end"),
    ("histories", "began_at"),
    ("histories", "first_version"),
    ("histories", "system_identifier"),
    ("histories", "ordinal"),
    ("histories", "timeline"),
    ("histories", "name"),
    ("settled_appends", "evidence"),
    ("settled_appends", "settled_at"),
    ("settled_appends", "version"),
    ("sessions", "revision"),
    ("events", "append"),
];

/// The events, which never change and so can be copied in pieces; they come first.
pub const EVENTS: &Table = &TABLES[0];

/// The one row of facts; it comes last.
pub const STORE: &Table = &TABLES[TABLES.len() - 1];

/// All tables, in an order in which each refers only to those before it. (Events refer to others,
/// but without foreign keys.)
pub const TABLES: [Table; 11] = [
    Table {
        name: "events",
        columns: &[
            column("version", Type::Int8),
            column("created_at", Type::Time),
            column("session_key", Type::Int8),
            column("id", Type::Uuid),
            column("feed_key", Type::Int4),
            column("profile_key", Type::Int4),
            column("author_key", Type::Int4),
            column("message_seq", Type::Int4),
            column("type", Type::Int2),
            column("reason", Type::Int2),
            column("message_type", Type::Int2),
            column("content_type", Type::Int2),
            column("id_text", Type::Text),
            column("content", Type::Text),
        ],
        order: "version",
    },
    Table {
        name: "feeds",
        columns: &[
            column("created_at", Type::Time),
            column("feed_key", Type::Int4),
            column("kind", Type::Int2),
            column("feed_id", Type::Text),
        ],
        order: "feed_key",
    },
    Table {
        name: "profiles",
        columns: &[
            column("created_at", Type::Time),
            column("profile_key", Type::Int4),
            column("feed_key", Type::Int4),
            column("name", Type::Text),
            column("image", Type::Text),
        ],
        order: "profile_key",
    },
    Table {
        name: "agents",
        columns: &[
            column("assigned_at", Type::Time),
            column("feed_key", Type::Int4),
            column("profile_key", Type::Int4),
            column("open_sessions", Type::Int4),
            column("max_sessions", Type::Int4),
            column("status", Type::Int2),
        ],
        order: "feed_key",
    },
    Table {
        name: "gateways",
        columns: &[column("feed_key", Type::Int4), column("name", Type::Text)],
        order: "feed_key",
    },
    Table {
        name: "polls_seen",
        columns: &[column("seen_at", Type::Time), column("feed_key", Type::Int4)],
        order: "feed_key",
    },
    Table {
        name: "sessions",
        columns: &[
            column("opened_at", Type::Time),
            column("closed_at", Type::Time),
            column("session_key", Type::Int8),
            column("assigned_version", Type::Int8),
            column("last_op_version", Type::Int8),
            column("owner_key", Type::Int4),
            column("gateway_key", Type::Int4),
            column("session_type", Type::Int4),
            column("last_op_by", Type::Int4),
            column("last_op_to", Type::Int4),
            column("status", Type::Int2),
            column("last_op", Type::Int2),
            column("session_id", Type::Text),
            column("from_id", Type::Text),
            column("from_name", Type::Text),
            column("from_image", Type::Text),
        ],
        order: "session_key",
    },
    Table {
        name: "erasures",
        columns: &[
            column("erasure", Type::Int8),
            column("erased_at", Type::Time),
            column("session_key", Type::Int8),
            column("through_version", Type::Int8),
            column("messages", Type::Int4),
            column("asked", Type::Int2),
            column("asked_id", Type::Text),
            column("erased_by", Type::Text),
        ],
        order: "erasure",
    },
    Table {
        name: "acks",
        columns: &[
            column("first_version", Type::Int8),
            column("last_version", Type::Int8),
            column("feed_key", Type::Int4),
            column("type", Type::Int2),
        ],
        order: "feed_key, type, first_version",
    },
    Table {
        name: "tokens",
        columns: &[
            column("created_at", Type::Time),
            column("expires_at", Type::Time),
            column("last_used_at", Type::Time),
            column("revocation", Type::Int8),
            column("token_id", Type::Uuid),
            column("feed_key", Type::Int4),
            column("role", Type::Int2),
            column("token_hash", Type::Bytes),
        ],
        order: "token_id",
    },
    Table {
        name: "store",
        columns: &[column("oldest_version", Type::Int8), column("revocations", Type::Int8)],
        order: "only_row",
    },
];

const fn column(name: &'static str, r#type: Type) -> Column {
    Column { name, r#type }
}
