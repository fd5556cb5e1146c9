//! What goes wrong: processes that are killed, stopped and started anew, connections that end, a
//! PostgreSQL that crashes, a standby that takes its place. One fault after the other, and some on top of each other.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use deskfeed::private_pg::PrivatePg;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sqlx::{Connection, PgConnection};
use tokio::time::{Instant, timeout};

use super::{
    history::Random,
    world::{World, pause},
};
use crate::support::{
    cluster::{self, Cluster, Server},
    db_proxy::DbProxy,
    postgres,
    process::Service,
};

const PG_STOP: Duration = Duration::from_secs(20);

/// The machinery under test.
pub struct Plant {
    store: Store,
    /// What the replicas take for their database.
    url: String,
    pub replicas: Vec<Service>,
    pub world: Option<Arc<World>>,
}

/// PostgreSQL.
enum Store {
    /// A primary with a synchronous standby. The replicas reach whichever is the primary by way of a proxy.
    Replicated { cluster: Cluster, primary: Server, standby: Option<Server>, proxy: DbProxy, promotions: u32 },
    /// Where a standby cannot be made.
    Alone { pg: Option<PrivatePg>, folder: PathBuf },
}

impl Store {
    async fn start() -> Self {
        if !cluster::is_possible() {
            println!("no pg_ctl: standbys are NOT promoted");
            let folder = postgres::private_folder("promise");
            let pg = postgres::private_server(folder.clone()).await;
            postgres::make_schema(&pg.url()).await;
            return Self::Alone { pg: Some(pg), folder };
        }
        let cluster = Cluster::new();
        let primary = cluster.primary().await;
        let standby = cluster.standby(&primary, primary.port(), "standby").await;
        primary.replicate_synchronously(1).await;
        let proxy = DbProxy::before(&primary.url()).await;
        Self::Replicated { cluster, primary, standby: Some(standby), proxy, promotions: 0 }
    }

    /// The primary's own address.
    fn url(&self) -> String {
        match self {
            Self::Replicated { primary, .. } => primary.url(),
            Self::Alone { pg, .. } => pg.as_ref().expect("it runs").url(),
        }
    }

    /// Ends the primary with a signal and starts it again on the same data.
    async fn crash(&mut self, signal: Signal) {
        match self {
            Self::Replicated { primary, .. } => {
                primary.crash(signal).await;
                primary.start().await;
            }
            Self::Alone { pg, folder } => {
                let running = pg.take().expect("it runs");
                let url = running.url();
                kill(Pid::from_raw(running.pid()), signal).expect("it runs");
                drop(running);
                let again = postgres::private_server(folder.clone()).await;
                assert_eq!(again.url(), url);
                *pg = Some(again);
            }
        }
    }

    /// Ends the primary and has its standby, which has all that anybody was shown, take its place; then another
    /// standby is made.
    async fn promote(&mut self, signal: Signal) {
        let Self::Replicated { cluster, primary, standby, proxy, promotions } = self else { return };
        // What a crash has shown to everybody, though it had not been replicated, is so now.
        primary.has_standbys(1, true).await;
        primary.crash(signal).await;
        let promoted = standby.take().expect("there is one");
        promoted.promote().await;
        proxy.point_to(&promoted.url());
        let old = std::mem::replace(primary, promoted);
        *promotions += 1;
        let next = cluster.standby(primary, primary.port(), &format!("standby{promotions}")).await;
        primary.replicate_synchronously(1).await;
        *standby = Some(next);
        old.remove();
    }
}

impl Plant {
    /// A PostgreSQL and replicas of the service on it.
    pub async fn start(replicas: usize, admin_token: &str) -> Self {
        let store = Store::start().await;
        let url = match &store {
            Store::Replicated { proxy, .. } => proxy.url.clone(),
            Store::Alone { .. } => store.url(),
        };
        let mut plant = Self { store, url, replicas: Vec::new(), world: None };
        for _ in 0..replicas {
            let replica = plant.start_replica(&["--admin-token", admin_token]).await;
            plant.replicas.push(replica);
        }
        plant
    }

    async fn start_replica(&self, more: &[&str]) -> Service {
        let url = postgres::as_application(&self.url);
        let mut arguments = vec!["--log", "info", "--database-url", &url];
        arguments.extend(more);
        Service::serve(&arguments).await
    }

    /// Puts a new process in a replica's place, at a new address.
    async fn replace(&mut self, replica: usize) -> Service {
        let new = self.start_replica(&[]).await;
        if let Some(world) = &self.world {
            world.set_base(replica, new.base.clone());
        }
        std::mem::replace(&mut self.replicas[replica], new)
    }

    pub async fn sql(&self) -> PgConnection {
        let until = Instant::now() + PG_STOP;
        loop {
            match PgConnection::connect(&self.store.url()).await {
                Ok(connection) => return connection,
                Err(error) => assert!(Instant::now() < until, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// How many events there are.
    async fn events(&self) -> usize {
        let mut sql = self.sql().await;
        let count: i64 =
            sqlx::query_scalar("select count(*) from events").fetch_one(&mut sql).await.unwrap_or_default();
        usize::try_from(count).expect("not negative")
    }

    /// Process ids of the service's backends.
    async fn backends(&self) -> Vec<i32> {
        let mut sql = self.sql().await;
        sqlx::query_scalar("select pid from pg_stat_activity where application_name like 'deskfeed/%' order by pid")
            .fetch_all(&mut sql)
            .await
            .unwrap_or_default()
    }

    pub async fn stop(mut self) {
        for replica in self.replicas.drain(..) {
            replica.terminate().await;
        }
        if let Store::Alone { pg: Some(pg), .. } = self.store {
            pg.stop(PG_STOP).await.expect("PostgreSQL stops");
        }
    }
}

/// A standby takes the primary's place, and nothing is lost.
pub const PROMOTION: &str = "promote the standby";
const FAULTS: [&str; 10] = [
    PROMOTION,
    "kill a replica",
    "terminate a replica",
    "pause a replica",
    "terminate backends",
    "kill a backend",
    "stop PostgreSQL at once",
    "kill the postmaster",
    "pause a replica while PostgreSQL crashes",
    "kill all replicas",
];

/// Breaks things for a while and mends them again. Gives how often it did what.
/// Goes on for up to four times as long where not more than `events` have happened: a busy machine is slow.
pub async fn rage(
    plant: &mut Plant,
    mut random: Random,
    length: Duration,
    events: usize,
) -> BTreeMap<&'static str, u32> {
    let (until, at_last) = (Instant::now() + length, Instant::now() + 4 * length);
    let mut done = BTreeMap::new();
    // Each fault once, in a random order, then as they come.
    let mut turn: Vec<&'static str> = Vec::new();
    let promotes = matches!(plant.store, Store::Replicated { .. });
    loop {
        let is_over = Instant::now() >= until && (Instant::now() >= at_last || plant.events().await > events);
        let fault = if !is_over {
            if turn.is_empty() {
                turn = FAULTS.to_vec();
                turn.retain(|fault| promotes || *fault != PROMOTION);
            }
            let next = random.below(turn.len());
            // A promotion before anybody has read anything would show little.
            let next = if done.is_empty() && turn[next] == PROMOTION { (next + 1) % turn.len() } else { next };
            turn.swap_remove(next)
        } else if promotes && !done.contains_key(PROMOTION) {
            PROMOTION
        } else {
            break;
        };
        let began = Instant::now();
        timeout(Duration::from_secs(90), strike(plant, fault, &mut random)).await.unwrap_or_else(|_| panic!("{fault}"));
        println!("{fault}: {} ms", began.elapsed().as_millis());
        *done.entry(fault).or_insert(0) += 1;
        pause(&mut random, 50..700).await;
    }
    done
}

async fn strike(plant: &mut Plant, fault: &str, random: &mut Random) {
    let replica = random.below(plant.replicas.len());
    match fault {
        "kill a replica" => {
            plant.replicas[replica].signal(Signal::SIGKILL);
            pause(random, 1..500).await;
            plant.replace(replica).await.kill().await;
        }
        "terminate a replica" => plant.replace(replica).await.terminate().await,
        "pause a replica" => {
            plant.replicas[replica].signal(Signal::SIGSTOP);
            pause(random, 100..3500).await;
            plant.replicas[replica].signal(Signal::SIGCONT);
        }
        "terminate backends" => {
            for _ in 0..12 {
                let backends = plant.backends().await;
                if backends.is_empty() {
                    continue;
                }
                let mut sql = plant.sql().await;
                let ended = sqlx::query("select pg_terminate_backend($1)").bind(random.pick(&backends));
                ended.execute(&mut sql).await.expect("it is told to end");
                pause(random, 1..60).await;
            }
        }
        "kill a backend" => {
            // PostgreSQL ends all others as well and recovers.
            if let Some(backend) = plant.backends().await.first() {
                // It may have ended by itself just now.
                let _ = kill(Pid::from_raw(*backend), Signal::SIGKILL);
            }
        }
        PROMOTION => {
            let signal = *random.pick(&[Signal::SIGINT, Signal::SIGQUIT, Signal::SIGKILL]);
            plant.store.promote(signal).await;
        }
        "stop PostgreSQL at once" => plant.store.crash(Signal::SIGQUIT).await,
        "kill the postmaster" => plant.store.crash(Signal::SIGKILL).await,
        "pause a replica while PostgreSQL crashes" => {
            plant.replicas[replica].signal(Signal::SIGSTOP);
            plant.store.crash(Signal::SIGQUIT).await;
            pause(random, 50..800).await;
            plant.replicas[replica].signal(Signal::SIGCONT);
        }
        "kill all replicas" => {
            for replica in &plant.replicas {
                replica.signal(Signal::SIGKILL);
            }
            for replica in 0..plant.replicas.len() {
                plant.replace(replica).await.kill().await;
            }
        }
        other => unreachable!("{other}"),
    }
}
