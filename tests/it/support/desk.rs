//! A whole service in the test's own process, on a database of its own.

use std::sync::OnceLock;

use clap::Parser;
use deskfeed::{cli::serve::Desk, config::ServeArgs, http::server::Bound, store::pool::Db};
use serde_json::json;
use sqlx::{Connection, PgConnection};
use tokio::runtime::{Builder, Handle, Runtime};

use super::{client::Client, postgres};

pub const ADMIN_TOKEN: &str = "an-admin-token-of-the-tests-0123456789";

#[derive(Parser)]
struct Args {
    #[command(flatten)]
    serve: ServeArgs,
}

/// A service, or several replicas of it, on one database.
pub struct TestDesk {
    /// The database, as the role that the tests themselves use. The service's is another.
    pub url: String,
    pub replicas: Vec<Desk>,
    pub admin: Client,
}

impl TestDesk {
    /// One replica, nobody in it.
    pub async fn start() -> Self {
        Self::with(1, &[]).await
    }

    /// Replicas with command line arguments.
    pub async fn with(replicas: usize, arguments: &[&str]) -> Self {
        Self::on(postgres::new_database().await, replicas, arguments).await
    }

    /// Replicas on a database that has the schema.
    pub async fn on(url: String, replicas: usize, arguments: &[&str]) -> Self {
        drop(rustls::crypto::ring::default_provider().install_default());
        let mut desks = Vec::new();
        for _ in 0..replicas {
            desks.push(start_replica(&url, arguments).await);
        }
        let admin = Client::new(&base(&desks[0]), ADMIN_TOKEN);
        Self { url, replicas: desks, admin }
    }

    /// The base URL of a replica.
    pub fn base(&self, replica: usize) -> String {
        base(&self.replicas[replica])
    }

    /// A new agent and a client with its token.
    pub async fn agent(&self, id: &str) -> Client {
        self.admin.post("/admin/agent", json!({"Id": id, "Name": format!("Agent {id}")})).await.ok();
        self.token("agent", id).await
    }

    /// A new gateway and a client with its token.
    pub async fn gateway(&self, id: &str) -> Client {
        self.admin.post("/admin/gateway", json!({"Id": id})).await.ok();
        self.token("gateway", id).await
    }

    pub async fn token(&self, role: &str, subject: &str) -> Client {
        self.token_made(json!({"Role": role, "Subject": subject})).await.1
    }

    /// A new token as `request` says: its id and a client with it.
    pub async fn token_made(&self, request: serde_json::Value) -> (String, Client) {
        let made = self.admin.post("/admin/token", request).await.ok();
        let text = |name: &str| made[name].as_str().expect("a text").to_owned();
        (text("TokenId"), Client::new(&self.admin.base, &text("Token")))
    }

    /// A connection of the test's own to the database.
    pub async fn sql(&self) -> PgConnection {
        PgConnection::connect(&self.url).await.expect("the database answers")
    }

    pub async fn stop(self) {
        for desk in &self.replicas {
            desk.stop().await;
        }
    }
}

pub fn base(desk: &Desk) -> String {
    format!("http://{}", desk.address())
}

/// Starts a replica on a port of the system's choice. It works as the application role.
pub async fn start_replica(url: &str, arguments: &[&str]) -> Desk {
    let url = &postgres::as_application(url);
    let listen = ["deskfeed", "--listen", "127.0.0.1:0", "--database-url", url];
    let args = Args::parse_from(listen.iter().chain(arguments)).serve;
    let bound = Bound::to(args.listen).expect("a port");
    let db = Db::with_page_threads(url, args.db_readers, page_threads()).expect("a URL");
    Desk::start(&args, Some(ADMIN_TOKEN), bound, db).await.expect("the service starts")
}

/// Threads for pages, the same for all services of the tests.
pub fn page_threads() -> Handle {
    static THREADS: OnceLock<Runtime> = OnceLock::new();
    let started = || Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("threads");
    THREADS.get_or_init(started).handle().clone()
}
