//! Who plays: a handful of agents and a gateway.

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::client::Client;

const AGENTS: [(&str, &str); 6] = [
    ("demo-ann", "Ann"),
    ("demo-bao", "宝"),
    ("demo-carla", "Carla"),
    ("demo-dmitri", "Дмитрий"),
    ("demo-esra", "Esra"),
    ("demo-fumiko", "文子"),
];
const GATEWAY: &str = "demo-web";
/// Every session of a demo begins with this.
pub const SESSION_PREFIX: &str = "demo-";

/// An agent or the gateway.
#[derive(Clone)]
pub struct Member {
    pub id: String,
    pub client: Client,
}

/// Everybody.
pub struct Cast {
    pub agents: Vec<Member>,
    pub gateway: Member,
    pub admin: Client,
}

impl Cast {
    /// Makes them known to the service, and clears up after a demo that was broken off.
    pub async fn gather(admin: &Client) -> anyhow::Result<Self> {
        refuse_strangers(admin).await?;
        admin.post("/admin/gateway", &json!({"Id": GATEWAY, "Name": "The demo's website"})).await?;
        let mut agents = Vec::new();
        for (id, name) in AGENTS {
            admin
                .post("/admin/agent", &json!({"Id": id, "Name": name, "MaxSessions": 500, "Status": "online"}))
                .await?;
            agents.push(Member { id: id.to_owned(), client: member(admin, "agent", id).await? });
        }
        close_left_overs(admin).await?;
        let gateway = Member { id: GATEWAY.to_owned(), client: member(admin, "gateway", GATEWAY).await? };
        let cast = Self { agents, gateway, admin: admin.clone() };
        cast.acknowledge_the_past().await?;
        Ok(cast)
    }

    /// The readers begin with nothing left to acknowledge.
    async fn acknowledge_the_past(&self) -> anyhow::Result<()> {
        for member in self.agents.iter().chain([&self.gateway]) {
            member.client.query(&format!("a=now&wait=0&c=0-{}", i64::MAX)).await?;
        }
        Ok(())
    }
}

async fn member(admin: &Client, role: &str, id: &str) -> anyhow::Result<Client> {
    let made = admin.post("/admin/token", &json!({"Role": role, "Subject": id})).await?;
    Ok(admin.with_token(made["Token"].as_str().context("/admin/token gave no Token")?))
}

/// Sessions are routed to whoever is available; the demo must not hand them to real people.
async fn refuse_strangers(admin: &Client) -> anyhow::Result<()> {
    let agents = admin.get("/admin/agent").await?;
    let stranger = agents
        .as_array()
        .into_iter()
        .flatten()
        .find(|agent| agent["Status"] == "online" && !AGENTS.iter().any(|(id, _)| agent["Id"] == *id));
    match stranger {
        Some(agent) => bail!("agent {} is online here; the demo needs a desk of its own", agent["Id"]),
        None => Ok(()),
    }
}

async fn close_left_overs(admin: &Client) -> anyhow::Result<()> {
    for status in ["open", "queued"] {
        loop {
            let listed = admin.get(&format!("/session/list?status={status}&limit=1000")).await?;
            let ids: Vec<&str> = listed
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|session| session["SessionId"].as_str())
                .filter(|id| id.starts_with(SESSION_PREFIX))
                .collect();
            if ids.is_empty() {
                break;
            }
            for id in ids {
                let closed: Value = admin.post("/session/close", &json!({"SessionId": id})).await?;
                anyhow::ensure!(closed["Status"] == "closed", "session {id} could not be closed");
            }
        }
    }
    Ok(())
}
