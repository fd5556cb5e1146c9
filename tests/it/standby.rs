//! A primary and its standbys: what is acknowledged is replicated where it is to be, and a failover ends
//! nobody who need not be ended.

mod failover;
mod tokens;
mod waits;

use serde_json::json;

use crate::support::{
    Client, TestDesk,
    cluster::{Cluster, Server},
    db_proxy::DbProxy,
    steps::{USUAL, repeated, within},
};

/// A service of two replicas that reaches PostgreSQL by way of a proxy.
struct Scene {
    desk: TestDesk,
    /// What the service takes for its database.
    proxy: DbProxy,
    ann: Client,
    web: Client,
    cluster: Cluster,
}

impl Scene {
    /// Replicas on this primary; session s1 is open, and Ann's. The head is 2.
    async fn on(cluster: Cluster, primary: &Server, arguments: &[&str]) -> Self {
        let proxy = DbProxy::before(&primary.url()).await;
        let desk = TestDesk::on(proxy.url.clone(), 2, arguments).await;
        let (ann, web) = (desk.agent("ann").await, desk.gateway("web").await);
        web.open_to("s1", "ann").await.ok();
        Self { desk, proxy, ann, web, cluster }
    }

    /// The same client at each of the replicas.
    fn at_each(&self, client: &Client) -> [Client; 2] {
        [client.at(&self.desk.base(0)), client.at(&self.desk.base(1))]
    }

    /// Sends a message into s1 until it is kept; gives its version.
    async fn send(&self, id: &str) -> i64 {
        let kept = repeated(id, &self.web, "/message/send", &message(id)).await;
        kept["Version"].as_i64().expect("a version")
    }

    /// Contents of the messages in Ann's feed, at one of the replicas.
    async fn contents(&self, replica: usize) -> Vec<String> {
        let ann = self.ann.at(&self.desk.base(replica));
        within("reading all", USUAL, ann.query("a=0&wait=0&limit=1000&t=Message")).await.contents()
    }

    async fn stop(self) {
        within("the service stops", USUAL, self.desk.stop()).await;
        drop(self.cluster);
    }
}

/// A message of the gateway in s1.
fn message(id: &str) -> serde_json::Value {
    json!({"SessionId": "s1", "Id": id, "Content": format!("text of {id}")})
}
