//! Was anything lost, changed, doubled or put out of order? Compares what was sent with what each
//! feed delivered. Pure, but for one walk through each feed's history.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::Value;

use super::{
    cast::Member,
    dialogues::Dialogue,
    play::{Given, Performance, Stage},
};

/// Where a message turned up.
#[derive(Default)]
struct Seen {
    /// In agents' feeds, by Message events.
    at_agents: usize,
    at_gateway: usize,
    /// In the list of an AddSession.
    brought: usize,
}

/// What is wrong; nothing, if all is well.
pub async fn check(stage: &Stage, performance: &Performance) -> anyhow::Result<Vec<String>> {
    let mut faults = check_streams(stage, performance);
    for (position, member) in stage.cast.agents.iter().chain([&stage.cast.gateway]).enumerate() {
        faults.extend(check_history(member, &performance.followed[position], performance.start).await?);
    }
    Ok(faults)
}

fn check_streams(stage: &Stage, performance: &Performance) -> Vec<String> {
    let mut faults = Vec::new();
    let gateway = performance.followed.len() - 1;
    let mut seen: HashMap<String, Seen> = HashMap::new();
    // The turns of each dialogue in version order, as the agents' feeds tell them.
    let mut told: BTreeMap<usize, Vec<(i64, usize)>> = BTreeMap::new();
    let sent = stage.sent();
    for (position, stream) in performance.followed.iter().enumerate() {
        if !stream.windows(2).all(|pair| pair[0].version < pair[1].version) {
            faults.push(format!("feed {position} was not given in ascending order"));
        }
        for given in stream {
            for message in given.event["Data"]["Message"].as_array().into_iter().flatten() {
                let Some(id) = message["Id"].as_str() else { continue };
                let Some(original) = sent.get(id) else {
                    faults.push(format!("message {id} was never sent"));
                    continue;
                };
                let content = &stage.dialogues[original.dialogue].turns[original.turn];
                if message["Content"] != content.as_str() {
                    faults.push(format!("message {id} was changed: {} instead of {content:?}", message["Content"]));
                }
                if message["Type"] != i32::from(!Dialogue::is_customers(original.turn)) {
                    faults.push(format!("message {id} has the wrong Type"));
                }
                let seen = seen.entry(id.to_owned()).or_default();
                if given.event["e"] == "AddSession" {
                    seen.brought += 1;
                } else if position == gateway {
                    seen.at_gateway += 1;
                } else {
                    seen.at_agents += 1;
                    told.entry(original.dialogue).or_default().push((given.version, original.turn));
                    if original.version != Some(given.version) {
                        faults.push(format!(
                            "message {id} has version {} in the feed, {:?} in the answer",
                            given.version, original.version
                        ));
                    }
                }
            }
        }
    }
    let turns: usize = stage.dialogues.iter().map(|dialogue| dialogue.turns.len()).sum();
    if sent.len() != turns {
        faults.push(format!("{} of {turns} messages were sent", sent.len()));
    }
    for (id, original) in &sent {
        let seen = seen.remove(id).unwrap_or_default();
        let queued = original.version == Some(0);
        let customers = Dialogue::is_customers(original.turn);
        if seen.at_agents != usize::from(!queued)
            || seen.at_gateway != usize::from(!customers)
            || (queued && seen.brought == 0)
        {
            faults.push(format!(
                "message {id} (version {:?}) came {} times to agents, {} times to the gateway, {} times with a session",
                original.version, seen.at_agents, seen.at_gateway, seen.brought
            ));
        }
    }
    for (dialogue, mut turns) in told {
        turns.sort_unstable();
        if !turns.windows(2).all(|pair| pair[0].1 < pair[1].1) {
            faults.push(format!("the turns of session {} are out of order", stage.session_id(dialogue)));
        }
    }
    for (position, instant) in performance.instant.iter().enumerate() {
        let instant: HashSet<i64> = instant.iter().copied().collect();
        let missing = performance.followed[position].iter().filter(|given| !instant.contains(&given.version)).count();
        if missing > 0 {
            faults.push(format!("instant mode never gave {missing} events of feed {position}"));
        }
    }
    faults.extend(check_sessions(stage, &performance.followed[gateway]));
    faults
}

/// Each session was opened and closed once, as the gateway was told.
fn check_sessions(stage: &Stage, gateway: &[Given]) -> Vec<String> {
    let mut ends: HashMap<usize, (usize, usize)> = HashMap::new();
    for given in gateway {
        let Some(dialogue) = given.event["Data"]["SessionId"].as_str().and_then(|id| stage.dialogue_of(id)) else {
            continue;
        };
        let ends = ends.entry(dialogue).or_default();
        match given.event["e"].as_str() {
            Some("AddSession") => ends.0 += 1,
            Some("DelSession") => ends.1 += 1,
            _ => {}
        }
    }
    (0..stage.dialogues.len())
        .filter(|dialogue| !ends.get(dialogue).is_some_and(|(added, ended)| *added >= 1 && *ended == 1))
        .map(|dialogue| format!("session {} was not opened and closed as it should", stage.session_id(dialogue)))
        .collect()
}

/// Walks a feed backwards: history must hold exactly what was given, and nothing may be left to acknowledge.
async fn check_history(member: &Member, given: &[Given], start: i64) -> anyhow::Result<Vec<String>> {
    let mut faults = Vec::new();
    let mut before = "now".to_owned();
    let mut walked: Vec<(i64, Value)> = Vec::new();
    loop {
        let page = member.client.query(&format!("b={before}&limit=1000")).await?;
        let page_events: Vec<(i64, Value)> =
            page.events.into_iter().map(|event| (event["Version"].as_i64().unwrap_or(0), event)).collect();
        let reached_start = page_events.first().is_none_or(|(version, _)| *version <= start);
        walked.extend(page_events.into_iter().rev().filter(|(version, _)| *version > start));
        if reached_start || !page.more {
            break;
        }
        before = page.next.to_string();
    }
    walked.reverse();
    let same = walked.len() == given.len()
        && walked.iter().zip(given).all(|((version, event), given)| *version == given.version && *event == given.event);
    if !same {
        faults.push(format!(
            "history of {} ({} events) is not what was given ({} events)",
            member.id,
            walked.len(),
            given.len()
        ));
    }
    let unacked = member.client.get("/feed/status").await?["Unacked"].as_i64().unwrap_or(-1);
    if unacked != 0 {
        faults.push(format!("{unacked} events of {} are not acknowledged, though all were", member.id));
    }
    Ok(faults)
}
