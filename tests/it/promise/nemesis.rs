//! What goes wrong: processes that are killed, stopped and started anew, connections that end, a
//! PostgreSQL that crashes. One fault after the other, and some on top of each other.

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
use crate::support::{postgres, process::Service};

const PG_STOP: Duration = Duration::from_secs(20);

/// The machinery under test.
pub struct Plant {
    pub pg: Option<PrivatePg>,
    folder: PathBuf,
    pub url: String,
    pub replicas: Vec<Service>,
    pub world: Option<Arc<World>>,
}

impl Plant {
    /// A PostgreSQL and replicas of the service on it.
    pub async fn start(replicas: usize, admin_token: &str) -> Self {
        let folder = postgres::private_folder("promise");
        let pg = postgres::private_server(folder.clone()).await;
        postgres::make_schema(&pg.url()).await;
        let mut plant = Self { url: pg.url(), folder, pg: Some(pg), replicas: Vec::new(), world: None };
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

    /// Ends PostgreSQL with a signal and starts it again on the same data.
    async fn crash_postgres(&mut self, signal: Signal) {
        let pg = self.pg.take().expect("it runs");
        kill(Pid::from_raw(pg.pid()), signal).expect("it runs");
        drop(pg);
        let again = postgres::private_server(self.folder.clone()).await;
        assert_eq!(again.url(), self.url);
        self.pg = Some(again);
    }

    pub async fn sql(&self) -> PgConnection {
        let until = Instant::now() + PG_STOP;
        loop {
            match PgConnection::connect(&self.url).await {
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
        let pg = self.pg.take().expect("it runs");
        pg.stop(PG_STOP).await.expect("PostgreSQL stops");
    }
}

const FAULTS: [&str; 9] = [
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
    while Instant::now() < until || Instant::now() < at_last && plant.events().await <= events {
        if turn.is_empty() {
            turn = FAULTS.to_vec();
        }
        let fault = turn.swap_remove(random.below(turn.len()));
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
        "stop PostgreSQL at once" => plant.crash_postgres(Signal::SIGQUIT).await,
        "kill the postmaster" => plant.crash_postgres(Signal::SIGKILL).await,
        "pause a replica while PostgreSQL crashes" => {
            plant.replicas[replica].signal(Signal::SIGSTOP);
            plant.crash_postgres(Signal::SIGQUIT).await;
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
