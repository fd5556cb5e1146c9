//! What a demo tells at its end.

use super::play::{Performance, Stage};

/// Most faults that are listed.
const FAULTS_SHOWN: usize = 20;

/// Prints the summary.
pub fn print(stage: &Stage, performance: &Performance, faults: &[String]) {
    let messages = stage.sent().len();
    let events: usize = performance.followed.iter().map(Vec::len).sum();
    let seconds = performance.took.as_secs_f64();
    let wake = |quantile: f64| performance.wake_us.value_at_quantile(quantile) as f64 / 1000.0;
    println!("conversations   {}", stage.dialogues.len());
    println!("messages        {messages} ({:.0} per second)", messages as f64 / seconds);
    println!("events          {events} delivered to {} feeds in {seconds:.1} s", performance.followed.len());
    println!(
        "wake latency    p50 {:.1} ms, p99 {:.1} ms (from the start of a POST to its event at a poll)",
        wake(0.5),
        wake(0.99)
    );
    if faults.is_empty() {
        println!("check           nothing lost, changed, doubled or out of order");
    } else {
        println!("check           {} FAULTS", faults.len());
        for fault in faults.iter().take(FAULTS_SHOWN) {
            println!("  {fault}");
        }
    }
}

/// Lines to copy and paste.
pub fn tour(url: &str, admin_token: &str, stage: &Stage) -> String {
    let agent = &stage.cast.agents[0];
    let (agent_id, agent_token) = (&agent.id, agent.client.token());
    let gateway_token = stage.cast.gateway.client.token();
    let json = "-H 'Content-Type: application/json'";
    format!(
        "\nThe service stays up at {url} (Ctrl-C stops it). Try:\n\n\
         # the newest events of agent {agent_id}\n\
         curl -s -H 'Authorization: Bearer {agent_token}' '{url}/message/query?b=now&limit=3'\n\n\
         # wait for the next event (then run the two lines below in another terminal)\n\
         curl -si -H 'Authorization: Bearer {agent_token}' '{url}/message/query?a=now&wait=60'\n\n\
         # a customer writes, through the gateway\n\
         curl -s -H 'Authorization: Bearer {gateway_token}' {json} {url}/session/open -d '{{\"SessionId\": \"tour-1\", \"FromId\": \"me\", \"ToId\": \"{agent_id}\"}}'\n\
         curl -s -H 'Authorization: Bearer {gateway_token}' {json} {url}/message/send -d '{{\"SessionId\": \"tour-1\", \"Content\": \"Hello?\"}}'\n\n\
         # everybody, as the admin sees them\n\
         curl -s -H 'Authorization: Bearer {admin_token}' {url}/admin/agent\n"
    )
}
