//! Agents, gateways, sessions and messages that jobs begin with.

use std::sync::{
    Arc, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use anyhow::{Context, ensure};
use indicatif::ProgressBar;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::World;
use crate::{
    check,
    wire::{Wire, post},
    yardsticks::tables,
};

/// Connections that prepare a job.
const PREPARING: usize = 64;
/// Connections that fill the table, and messages in each of their requests.
const FILLING: u64 = 4;
const FILL_BATCH: u64 = 1000;
/// From this many on, vacuum and checkpoint run right after filling, so that they do not fall into a measurement.
const SETTLE_FROM: u64 = 50_000;

/// An agent with one open session of its own.
#[derive(Debug, Clone)]
pub struct Feed {
    pub agent: String,
    pub token: String,
    pub session: String,
}

/// An agent or a gateway, and a token of it.
#[derive(Debug, Clone)]
pub struct Account {
    pub id: String,
    pub token: String,
}

/// Messages written by [`World::fill`]: numbers `first..first + count`.
#[derive(Debug, Clone, Copy)]
pub struct Filled {
    pub first: u64,
    pub count: u64,
}

impl World {
    /// Creates agents with a token, each online with one open session and no capacity for another. `tag` distinguishes
    /// the calls.
    ///
    /// # Errors
    /// When the service refuses something.
    pub async fn feeds(&self, count: usize, tag: &str) -> anyhow::Result<Vec<Feed>> {
        let mut tasks = JoinSet::new();
        for worker in 0..PREPARING.min(count) {
            let (address, admin, gateway) = (self.address, self.admin.clone(), self.gateway_token.clone());
            let name = format!("bench-{}-{tag}", self.run);
            tasks.spawn(async move {
                let mut wire = Wire::connect(address).await?;
                let mut made = Vec::new();
                for number in (worker..count).step_by(PREPARING) {
                    let (agent, session) = (format!("{name}-{number}"), format!("{name}-session-{number}"));
                    let wanted = json!({"Id": agent, "Name": agent, "MaxSessions": 1, "Status": "online"});
                    ask(&mut wire, &admin, "/admin/agent", &wanted).await?;
                    let token = token(&mut wire, &admin, "agent", &agent).await?;
                    let open =
                        json!({"SessionId": session, "FromId": "customer", "FromName": "Customer", "ToId": agent});
                    let opened = ask(&mut wire, &gateway, "/session/open", &open).await?;
                    ensure!(opened["ToId"] == agent.as_str(), "session {session} was opened as {opened}");
                    made.push((number, Feed { agent, token, session }));
                }
                anyhow::Ok(made)
            });
        }
        let mut feeds = Vec::with_capacity(count);
        while let Some(made) = tasks.join_next().await {
            feeds.extend(made??);
        }
        feeds.sort_by_key(|(number, _)| *number);
        let feeds: Vec<Feed> = feeds.into_iter().map(|(_, feed)| feed).collect();
        if self.own.is_none() {
            self.made.lock().unwrap_or_else(PoisonError::into_inner).extend(feeds.iter().cloned());
        }
        Ok(feeds)
    }

    /// Creates agents that are online and have no session. `tag` distinguishes the calls.
    ///
    /// # Errors
    /// When the service refuses something.
    pub async fn agents(&self, count: usize, tag: &str, max_sessions: u32) -> anyhow::Result<Vec<Account>> {
        let mut wire = Wire::connect(self.address).await?;
        let mut agents = Vec::with_capacity(count);
        for number in 0..count {
            let id = format!("bench-{}-{tag}-{number}", self.run);
            let wanted = json!({"Id": id, "Name": id, "MaxSessions": max_sessions, "Status": "online"});
            ask(&mut wire, &self.admin, "/admin/agent", &wanted).await?;
            let token = token(&mut wire, &self.admin, "agent", &id).await?;
            agents.push(Account { id, token });
        }
        Ok(agents)
    }

    /// Creates a gateway. `tag` distinguishes the calls.
    ///
    /// # Errors
    /// When the service refuses something.
    pub async fn gateway(&self, tag: &str) -> anyhow::Result<Account> {
        let mut wire = Wire::connect(self.address).await?;
        let id = format!("bench-{}-{tag}-gateway", self.run);
        ask(&mut wire, &self.admin, "/admin/gateway", &json!({"Id": id})).await?;
        let token = token(&mut wire, &self.admin, "gateway", &id).await?;
        Ok(Account { id, token })
    }

    /// Sets agents away: they are assigned no session any more.
    ///
    /// # Errors
    /// When the service refuses something.
    pub async fn set_away(&self, agents: &[Account]) -> anyhow::Result<()> {
        let mut wire = Wire::connect(self.address).await?;
        for agent in agents {
            ask(&mut wire, &self.admin, "/admin/agent", &json!({"Id": agent.id, "Status": "away"})).await?;
        }
        Ok(())
    }

    /// Appends messages in arrays of 1,000. Message n goes to feed n modulo their number ([`check::turn`]).
    ///
    /// # Errors
    /// When one is refused.
    pub async fn fill(&self, feeds: &[Feed], events: u64, progress: &ProgressBar) -> anyhow::Result<Filled> {
        let filled = Filled { first: self.numbers.fetch_add(events, Ordering::Relaxed), count: events };
        let sessions: Arc<[String]> = feeds.iter().map(|feed| feed.session.clone()).collect();
        let (batches, done) = (events.div_ceil(FILL_BATCH), Arc::new(AtomicU64::new(0)));
        let mut tasks = JoinSet::new();
        for worker in 0..FILLING {
            let (address, gateway, sessions) = (self.address, self.gateway_token.clone(), Arc::clone(&sessions));
            let (done, progress) = (Arc::clone(&done), progress.clone());
            tasks.spawn(async move {
                let mut wire = Wire::connect(address).await?;
                for batch in (worker..batches).step_by(usize::try_from(FILLING)?) {
                    let count = FILL_BATCH.min(events - batch * FILL_BATCH);
                    let body = check::batch(&sessions, filled.first + batch * FILL_BATCH, count);
                    let answered = wire.exchange_ok(&post("/message/send", &gateway, &body)).await?;
                    let versions = check::versions_of(&answered.body)?;
                    let is_whole = versions.len() as u64 == count && versions.windows(2).all(|pair| pair[0] < pair[1]);
                    ensure!(is_whole, "an array of {count} messages was answered with {} versions", versions.len());
                    let done = done.fetch_add(count, Ordering::Relaxed) + count;
                    progress.set_message(format!("filling the table: {done} of {events} messages"));
                }
                anyhow::Ok(())
            });
        }
        while let Some(ended) = tasks.join_next().await {
            ended??;
        }
        if let Some(url) = self.database_url().filter(|_| events >= SETTLE_FROM) {
            progress.set_message("vacuum, checkpoint");
            tables::settle(&url).await?;
        }
        Ok(filled)
    }
}

/// Creates a token.
///
/// # Errors
/// When the service refuses it.
pub(super) async fn token(wire: &mut Wire, admin: &str, role: &str, subject: &str) -> anyhow::Result<String> {
    let made = ask(wire, admin, "/admin/token", &json!({"Role": role, "Subject": subject})).await?;
    Ok(made["Token"].as_str().context("/admin/token gave no Token")?.to_owned())
}

/// Posts JSON; returns the answer.
///
/// # Errors
/// On any status but 200.
pub(super) async fn ask(wire: &mut Wire, token: &str, path: &str, body: &Value) -> anyhow::Result<Value> {
    let request = post(path, token, body.to_string().as_bytes());
    let answered = wire.exchange_ok(&request).await.with_context(|| format!("POST {path}"))?;
    Ok(serde_json::from_slice(&answered.body)?)
}
