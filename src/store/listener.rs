//! The LISTEN connection. A notification is a hint and nothing more.
//!
//! sqlx reconnects by itself after some errors, keeps a dead connection after others, and loses its notification
//! buffer after a failed reconnect. So nothing is repaired here: after any error, loss or silence the caller drops
//! the listener, calls [`Listener::connect`] again, and looks at the tables, because notifications were lost.

use std::time::{Duration, Instant};

use sqlx::{
    Executor,
    postgres::{PgListener, PgPoolOptions},
};

use super::{
    Error, Result,
    appends::CHANNEL,
    pool::{Db, Purpose, deadline},
};
use crate::domain::limits;

/// A connection that listens.
pub struct Listener {
    inner: PgListener,
}

impl Listener {
    /// Connects and listens. Whatever is notified after this returns is heard.
    ///
    /// # Errors
    /// When the server cannot be reached.
    pub async fn connect(db: &Db) -> Result<Self> {
        Self::on(db, "deskfeed/listens", CHANNEL).await
    }

    async fn on(db: &Db, application_name: &str, channel: &str) -> Result<Self> {
        deadline(limits::DB_ACQUIRE_MS, async {
            let pool = PgPoolOptions::new()
                .max_connections(1)
                .max_lifetime(None)
                .idle_timeout(None)
                .after_connect(|connection, _| {
                    Box::pin(async move {
                        // A server that ends idle sessions must not end this one.
                        connection.execute("set idle_session_timeout = 0").await?;
                        Ok(())
                    })
                })
                .connect_with(db.options().clone().application_name(application_name))
                .await?;
            let mut inner = PgListener::connect_with(&pool).await?;
            inner.ignore_pool_close_event(true);
            inner.listen(channel).await?;
            Ok(Self { inner })
        })
        .await
    }

    /// The text of the next notification.
    ///
    /// # Errors
    /// If the connection is lost, or silent for [`limits::LISTENER_SILENT_MS`] although this process notifies itself
    /// more often. Drop the listener then.
    pub async fn hear(&mut self) -> Result<String> {
        match tokio::time::timeout(Duration::from_millis(limits::LISTENER_SILENT_MS), self.inner.try_recv()).await {
            Ok(Ok(Some(notification))) => Ok(notification.payload().to_owned()),
            Ok(Ok(None)) => Err(Error::Away("the LISTEN connection was lost")),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(Error::Timeout(limits::LISTENER_SILENT_MS)),
        }
    }
}

/// How long a notification takes from one connection to another, on a channel of its own.
///
/// # Errors
/// When the server cannot be reached, or nothing is heard within [`limits::DB_ACQUIRE_MS`].
pub async fn round_trip(db: &Db) -> Result<Duration> {
    let channel = format!("deskfeed_{}", uuid::Uuid::new_v4().simple());
    let mut listener = Listener::on(db, "deskfeed/listens/doctor", &channel).await?;
    let mut connection = db.connect(Purpose::Commands).await?;
    let began = Instant::now();
    deadline(limits::DB_ACQUIRE_MS, async {
        sqlx::query("/* listener.round_trip */ select pg_notify($1, '')")
            .bind(&channel)
            .execute(&mut connection)
            .await?;
        listener.hear().await
    })
    .await?;
    Ok(began.elapsed())
}
