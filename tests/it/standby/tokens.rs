//! Tokens across a failover.

use serde_json::json;

use super::Scene;
use crate::support::{
    Client,
    cluster::{Cluster, End},
    db_proxy::{DbProxy, Mode},
    steps::{read, repeated},
};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// A second, as promised of revocations, and slack for a machine that has much else to do.
const SOON: Duration = Duration::from_secs(5);

/// Waits until a token is refused at a replica, which must be soon.
async fn is_refused_soon(what: &str, client: &Client) {
    let began = Instant::now();
    loop {
        let reply = read(what, client, "b=now").await;
        if reply.status == 401 {
            assert_eq!(reply.code(), 40100, "{what}");
            return;
        }
        assert!(began.elapsed() < SOON, "after {:?} still good: {what}", began.elapsed());
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_what_the_new_primary_says() {
    let cluster = Cluster::new();
    let primary = cluster.primary().await;
    let way = DbProxy::before(&primary.url()).await;
    let standby = cluster.standby(&primary, way.port, "one").await;
    let scene = Scene::on(cluster, &primary, &[]).await;
    let made = async || scene.desk.token_made(json!({"Role": "agent", "Subject": "ann"})).await;
    let (kept, revoked_there, revoked_here) = (made().await, made().await, made().await);
    primary.has_standbys(1, false).await;
    // The standby hears nothing of what comes now: a revocation, and a new token.
    way.set(Mode::Blackhole);
    let never_there = made().await;
    for client in [&kept.1, &revoked_there.1, &never_there.1] {
        for replica in scene.at_each(client) {
            read("a good token", &replica, "b=now").await.ok();
        }
    }
    scene.desk.admin.post("/admin/token/revoke", json!({"TokenId": revoked_here.0})).await.ok();
    for replica in scene.at_each(&revoked_here.1) {
        is_refused_soon("the token that the old primary revoked", &replica).await;
    }

    primary.stop(End::AtOnce).await;
    way.set(Mode::Refuse);
    standby.promote().await;
    scene.proxy.point_to(&standby.url());
    // As many revocations as the old primary had: their number tells nothing.
    let revoke = json!({"TokenId": revoked_there.0});
    repeated("a revocation on the new primary", &scene.desk.admin, "/admin/token/revoke", &revoke).await;
    for replica in scene.at_each(&revoked_there.1) {
        is_refused_soon("the token that the new primary revoked", &replica).await;
    }
    for replica in scene.at_each(&never_there.1) {
        is_refused_soon("the token that the new primary never had", &replica).await;
    }
    for replica in scene.at_each(&kept.1) {
        read("the token that was always good", &replica, "b=now").await.ok();
    }
    scene.stop().await;
}
