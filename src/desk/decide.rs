//! Turns requests into a ledger, and the outcome of its append into replies.

use super::{
    SessionReply, Verdict, claim_session, close_session,
    command::{Command, Reply},
    facts::{Fact, Facts},
    ledger::{Ledger, MessageSlot},
    open_session, release_session,
    send_message::{self, Sent},
    transfer_session,
};
use crate::{
    domain::{caller::Caller, fault::Fault, ids::ProfileKey, limits, message::NewMessage, session::Status},
    store::{
        agents::AgentChange,
        appends::{AgentRow, Appended, ChangeOutcome, Found, OpenOutcome, PresenceRow, SessionOutcome},
    },
};

/// A request, with those parts of its reply that are known already.
#[derive(Debug)]
pub struct Request {
    pub command: Command,
    /// Results of the messages of a send, by position; `None` while undecided.
    sent: Vec<Option<Result<Sent, Fault>>>,
}

/// Where a request, or the rest of it, is in the ledger.
#[derive(Debug)]
pub enum Slot {
    Messages {
        /// (position of the message in the request, its slot)
        slots: Vec<(usize, MessageSlot)>,
        /// Whether other messages of the request must be decided again on fresh facts.
        asks: bool,
    },
    Change(usize),
    Open(usize),
    Presence,
    Agent(usize),
    Assign,
}

/// The decision about a request.
#[derive(Debug)]
pub enum Decided {
    /// Done.
    Reply(Result<Reply, Fault>),
    /// At least part of it is in the ledger.
    Written(Slot),
    /// Must be decided again in the next batch.
    Later,
    /// The same, on fresh facts.
    AskAgain,
}

/// Answers to messages of a request, by position.
pub type Answers = Vec<(usize, Result<Sent, Fault>)>;

impl Request {
    pub fn new(command: Command) -> Self {
        let messages = if let Command::Send { messages, .. } = &command { messages.len() } else { 0 };
        Self { command, sent: std::iter::repeat_with(|| None).take(messages).collect() }
    }

    /// Decides the rest of it.
    pub fn decide<'a>(&'a self, facts: &Facts, ledger: &mut Ledger<'a>) -> (Decided, Answers) {
        if let Command::Send { caller, messages } = &self.command {
            return self.decide_messages(facts, ledger, caller, messages);
        }
        let decided = match &self.command {
            Command::SetPresence { caller, online } => set_presence(ledger, caller, *online),
            Command::PutAgent { caller, change } => put_agent(ledger, caller, change),
            Command::AssignQueued => {
                ledger.batch.assign = true;
                Decided::Written(Slot::Assign)
            }
            command => Self::decide_session(facts, ledger, command),
        };
        (decided, Vec::new())
    }

    fn decide_messages<'a>(
        &'a self,
        facts: &Facts,
        ledger: &mut Ledger<'a>,
        caller: &Caller,
        messages: &'a [NewMessage],
    ) -> (Decided, Answers) {
        let (mut answers, mut slots, mut asks, mut later) = (Vec::new(), Vec::new(), false, false);
        let open = messages.iter().zip(&self.sent).enumerate().filter(|(_, (_, sent))| sent.is_none());
        for (position, (message, _)) in open {
            match send_message::decide(facts, ledger, caller, message) {
                Verdict::Answer(answer) => answers.push((position, answer)),
                Verdict::Write(slot) => slots.push((position, slot)),
                Verdict::AskAgain => asks = true,
                Verdict::Later => later = true,
            }
        }
        let decided = match (slots.is_empty(), asks, later) {
            (false, asks, _) => Decided::Written(Slot::Messages { slots, asks }),
            (true, true, _) => Decided::AskAgain,
            (true, false, true) => Decided::Later,
            // All are answered; `finish` builds the reply.
            (true, false, false) => Decided::Written(Slot::Messages { slots: Vec::new(), asks: false }),
        };
        (decided, answers)
    }

    fn decide_session<'a>(facts: &Facts, ledger: &mut Ledger<'a>, command: &'a Command) -> Decided {
        let Some(session_id) = command.session_ids().first().copied() else { return Decided::Later };
        let Some(fact) = facts.sessions.get(session_id) else { return Decided::AskAgain };
        if !ledger.has_room(limits::APPEND_COST_OF_A_CHANGE, 0) {
            ledger.put_off(session_id);
            return Decided::Later;
        }
        let (verdict, slot): (_, fn(usize) -> Slot) = match command {
            Command::Open { caller, open } => {
                (open_session::decide(facts, fact, ledger, caller, open), Slot::Open as fn(usize) -> Slot)
            }
            other => (decide_change(facts, fact, ledger, other, session_id), Slot::Change as fn(usize) -> Slot),
        };
        match verdict {
            Verdict::Answer(answer) => Decided::Reply(answer.map(Reply::Session)),
            Verdict::Write(position) => {
                ledger.charge(limits::APPEND_COST_OF_A_CHANGE, 0);
                Decided::Written(slot(position))
            }
            Verdict::AskAgain => {
                ledger.put_off(session_id);
                Decided::AskAgain
            }
            Verdict::Later => {
                ledger.put_off(session_id);
                Decided::Later
            }
        }
    }

    /// Records answers to messages. Returns the reply once all are answered.
    pub fn finish(&mut self, answers: Vec<(usize, Result<Sent, Fault>)>) -> Option<Result<Reply, Fault>> {
        for (position, answer) in answers {
            self.sent[position] = Some(answer);
        }
        if self.sent.is_empty() || self.sent.iter().any(Option::is_none) {
            return None;
        }
        Some(Ok(Reply::Sent(std::mem::take(&mut self.sent).into_iter().flatten().collect())))
    }

    /// Answers for those messages in `slots` that were appended.
    pub fn sent(
        &self,
        slots: &[(usize, MessageSlot)],
        ledger: &Ledger<'_>,
        appended: &Appended,
        versions: &[Option<i64>],
    ) -> Vec<(usize, Result<Sent, Fault>)> {
        let Command::Send { messages, .. } = &self.command else { return Vec::new() };
        let done = slots.iter().filter_map(|(position, slot)| {
            let version = versions.get(slot.event).copied().flatten()?;
            let feed = ledger.batch.events[slot.event].event.feed;
            Some((*position, Ok(send_message::sent(&messages[*position], feed, version, appended.at))))
        });
        done.collect()
    }

    /// The reply to a request that was in the ledger at `slot`. `None` if it must be decided again.
    pub fn reply(
        &self,
        slot: &Slot,
        ledger: &Ledger<'_>,
        appended: &Appended,
        versions: &[Option<i64>],
        agent_id: impl Fn(&OpenOutcome) -> Option<String>,
    ) -> Option<Result<Reply, Fault>> {
        match (slot, &self.command) {
            (Slot::Change(position), command) => {
                let (row, outcome) = (&ledger.batch.changes[*position], &appended.changes[*position]);
                if outcome.is_refused {
                    return Some(Err(Fault::AgentUnavailable(command.agent_id().unwrap_or_default().to_owned())));
                }
                if appended.sessions[row.session - 1].is_stale {
                    return None;
                }
                let version = row.first.and_then(|first| versions[first - 1]).unwrap_or(0);
                Some(Ok(Reply::Session(changed(command, version)?)))
            }
            (Slot::Open(position), Command::Open { open, .. }) => {
                let session_id = open.card.session_id.clone();
                let outcome = &appended.opens[*position];
                let reply = |status, to_id, version| SessionReply { session_id, status, to_id, version };
                match outcome {
                    OpenOutcome::Taken => None,
                    OpenOutcome::Refused => Some(Err(Fault::AgentUnavailable(open.to_id.clone().unwrap_or_default()))),
                    OpenOutcome::Queued(_) => Some(Ok(Reply::Session(reply(Status::Queued, None, 0)))),
                    OpenOutcome::Assigned { version, .. } => {
                        let to_id = open.to_id.clone().or_else(|| agent_id(outcome));
                        // The agent's id is unknown; the session exists now, so decided again it is a repetition.
                        to_id.as_ref()?;
                        Some(Ok(Reply::Session(reply(Status::Open, to_id, *version))))
                    }
                }
            }
            (Slot::Agent(position), Command::PutAgent { change, .. }) => {
                Some(if appended.taken_agents.contains(position) {
                    Err(Fault::OtherKind(change.id.to_string(), "a gateway"))
                } else {
                    Ok(Reply::Done)
                })
            }
            _ => Some(Ok(Reply::Done)),
        }
    }
}

fn decide_change<'a>(
    facts: &Facts,
    fact: &Fact,
    ledger: &mut Ledger<'a>,
    command: &'a Command,
    session_id: &str,
) -> Verdict<SessionReply, usize> {
    let Some(found) = &fact.found else {
        return Verdict::answer(fact.is_fresh, Err(Fault::NoSuchSession(session_id.to_owned())));
    };
    if !ledger.takes(session_id, found) {
        return Verdict::Later;
    }
    match command {
        Command::Close { caller, .. } => close_session::decide(fact, found, ledger, caller),
        Command::Release { caller, .. } => release_session::decide(fact, found, ledger, caller),
        Command::Transfer { caller, to_id, .. } => transfer_session::decide(facts, fact, found, ledger, caller, to_id),
        Command::Claim { caller, .. } => claim_session::decide(fact, found, ledger, caller),
        _ => Verdict::Answer(Err(Fault::internal("this request changes no session"))),
    }
}

fn changed(command: &Command, version: i64) -> Option<SessionReply> {
    match command {
        Command::Close { session_id, .. } => Some(close_session::reply(session_id.clone(), version)),
        Command::Release { session_id, .. } => Some(release_session::reply(session_id.clone(), version)),
        Command::Transfer { session_id, to_id, .. } => {
            Some(transfer_session::reply(session_id.clone(), to_id.clone(), version))
        }
        Command::Claim { caller, session_id } => {
            let agent = caller.subject()?.id.to_string();
            Some(claim_session::reply(session_id.clone(), agent, version))
        }
        _ => None,
    }
}

/// `POST /agent/presence`: sets whether new sessions are routed to an agent.
fn set_presence(ledger: &mut Ledger<'_>, caller: &Caller, online: bool) -> Decided {
    let agent = match caller.agent() {
        Ok(agent) => agent.key.0,
        Err(fault) => return Decided::Reply(Err(fault)),
    };
    // The last one wins, and one statement can update an agent only once.
    ledger.batch.presence.retain(|row| row.agent != agent);
    ledger.batch.presence.push(PresenceRow { agent, online });
    ledger.batch.assign |= online;
    ledger.charge(1, 0);
    Decided::Written(Slot::Presence)
}

/// `POST /admin/agent`: creates or changes an agent.
fn put_agent<'a>(ledger: &mut Ledger<'a>, caller: &Caller, change: &'a AgentChange) -> Decided {
    if let Err(fault) = caller.require_admin() {
        return Decided::Reply(Err(fault));
    }
    ledger.batch.agents.push(AgentRow {
        id: change.id.as_str(),
        name: change.name.as_deref(),
        sets_name: change.name.is_some(),
        image: change.image.as_deref(),
        sets_image: change.image.is_some(),
        max_sessions: change.max_sessions,
        default_max_sessions: limits::MAX_SESSIONS_DEFAULT,
        online: change.online,
    });
    ledger.batch.assign = true;
    ledger.charge(limits::APPEND_COST_OF_A_CHANGE, 0);
    Decided::Written(Slot::Agent(ledger.batch.agents.len() - 1))
}

/// Reconstructs the outcome of an append whose answer was lost from its events. What left no event (a session that was
/// queued, a presence) counts as stale or taken: decided again, it is answered as a repetition.
pub fn recovered(ledger: &Ledger<'_>, found: &Found) -> Appended {
    let first = found.events.first().map_or(1, |event| event.version);
    let written = |key| found.events.iter().any(|event| event.session == key);
    let sessions = ledger.batch.sessions.iter().map(|row| SessionOutcome {
        is_stale: !written(row.key),
        seq: 0,
        profile: ProfileKey(0),
    });
    let opens = ledger.batch.opens.iter().map(|row| {
        match found.events.iter().find(|event| event.session_id == row.session_id) {
            Some(event) => OpenOutcome::Assigned {
                session: event.session,
                owner: event.feed,
                profile: ProfileKey(0),
                version: event.version,
            },
            None => OpenOutcome::Taken,
        }
    });
    Appended {
        head: first - 1,
        last: found.events.last().map_or(first - 1, |event| event.version),
        at: found.at,
        sessions: sessions.collect(),
        changes: ledger
            .batch
            .changes
            .iter()
            .map(|_| ChangeOutcome { is_refused: false, profile: ProfileKey(0) })
            .collect(),
        opens: opens.collect(),
        taken_agents: Vec::new(),
        assigned: 0,
    }
}
