//! A TCP proxy in front of PostgreSQL (or between a primary and its standby) that breaks the network: as a
//! whole ([`Mode`]), or at one chosen request ([`Rule`]).

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sqlx::postgres::PgConnectOptions;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
    sync::watch,
    task::JoinHandle,
    time::timeout,
};

use super::pg_frames::{Passing, Reader, Replies, Seen, Unit};

/// How long tests wait for something that the proxy must meet.
const BOUNDED: Duration = Duration::from_secs(40);

/// What becomes of bytes and connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Pass,
    /// Connections are accepted and stay open, but nothing gets through in either direction.
    Blackhole,
    /// As `Blackhole`, for the connections that LISTEN only.
    BlackholeListeners,
    /// New connections are closed at once, old ones as well.
    Refuse,
    /// Nothing gets through until the mode changes; then everything does, in its order.
    Held,
}

/// What becomes of the next COMMIT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Commit {
    /// It reaches the server; the connection is cut before the answer comes back.
    AnswerIsCut,
    /// It never reaches the server; the connection is cut.
    IsCut,
    /// It never reaches the server; the connection stays.
    IsSwallowed,
}

/// What becomes of a request that a [`Rule`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It passes; it is only counted.
    Pass,
    /// It never reaches the server; the connection is closed on both sides.
    Cut,
    /// As `Cut`, but the client's side is reset.
    Reset,
    /// It never reaches the server; the connection goes on.
    Swallow,
    /// It never reaches the server; the connection stays open and dark in both directions.
    GoDark,
    /// It reaches the server; its answer is thrown away and the connection is closed.
    CutAnswer,
    /// It reaches the server; its answer is thrown away and the connection stays open and dark.
    SwallowAnswer,
    /// The proxy keeps it until the test decides, even if the client closes its connection meanwhile.
    Hold,
    /// It reaches the server; the proxy keeps the answer until the test decides.
    HoldAnswer,
    /// It passes after this long.
    Delay(Duration),
}

/// One request that met a rule.
#[derive(Debug)]
pub struct Meeting {
    unit: Unit,
    decision: watch::Sender<Option<Fate>>,
    /// Whether the server has answered in full.
    answered: watch::Sender<bool>,
    /// Whether the request is over: answered by the server, thrown away, or its connection has ended.
    over: watch::Sender<bool>,
}

impl Meeting {
    /// Where the request holds these bytes.
    pub fn position(&self, text: &str) -> Option<usize> {
        self.unit.bytes().windows(text.len()).position(|window| window == text.as_bytes())
    }

    /// Decides about a request or an answer that is held.
    pub fn decide(&self, fate: Fate) {
        self.decision.send_if_modified(|decision| {
            let is_first = decision.is_none();
            decision.get_or_insert(fate);
            is_first
        });
    }

    /// Waits until the request is over: the server has answered it or will never see it.
    pub async fn is_over(&self) {
        becomes_true("a request that was let go is over", &self.over).await;
    }

    /// Waits until the server has answered it, whether or not the client is given the answer.
    pub async fn is_answered(&self) {
        becomes_true("a request is answered", &self.answered).await;
    }
}

/// What a rule is about, and whom it has met. Requests that are held pass when it is dropped.
#[derive(Debug)]
pub struct Rule(Arc<RuleState>);

#[derive(Debug)]
struct RuleState {
    about: Passing,
    fate: Fate,
    /// How many more requests pass before it begins, and how many it is about then.
    left: Mutex<(usize, usize)>,
    met: watch::Sender<Vec<Arc<Meeting>>>,
}

impl Drop for Rule {
    fn drop(&mut self) {
        self.end();
    }
}

impl Rule {
    /// How many requests have met it.
    pub fn count(&self) -> usize {
        self.0.met.borrow().len()
    }

    /// Waits for its meeting of this number (the first is 0).
    pub async fn meets(&self, number: usize) -> Arc<Meeting> {
        self.meets_within(number, BOUNDED)
            .await
            .unwrap_or_else(|| panic!("no request number {number} met {:?}", self.0.about))
    }

    /// As [`Rule::meets`]; `None` if nothing comes within `limit`.
    pub async fn meets_within(&self, number: usize, limit: Duration) -> Option<Arc<Meeting>> {
        let mut met = self.0.met.subscribe();
        let met = timeout(limit, met.wait_for(|met| met.len() > number)).await.ok()?;
        Some(Arc::clone(&met.expect("the rule lives")[number]))
    }

    /// All that have met it.
    pub fn all(&self) -> Vec<Arc<Meeting>> {
        self.0.met.borrow().clone()
    }

    /// Is about nothing any more; what is held passes.
    pub fn end(&self) {
        *lock(&self.0.left) = (0, 0);
        self.all().iter().for_each(|meeting| meeting.decide(Fate::Pass));
    }
}

#[derive(Debug)]
struct Shared {
    target: Mutex<PgConnectOptions>,
    mode: watch::Sender<Mode>,
    /// Rises when all connections are to end.
    generation: watch::Sender<u64>,
    rules: Mutex<Vec<Arc<RuleState>>>,
    /// Commits that something became of.
    commits: watch::Sender<u32>,
    /// Connections that came to LISTEN.
    listeners: watch::Sender<u32>,
}

/// A proxy; it ends when this is dropped.
#[derive(Debug)]
pub struct DbProxy {
    /// The database, by way of the proxy.
    pub url: String,
    pub port: u16,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Drop for DbProxy {
    fn drop(&mut self) {
        self.task.abort();
        self.set(Mode::Refuse);
    }
}

impl DbProxy {
    /// A proxy in front of the database of `url`.
    pub async fn before(url: &str) -> Self {
        let options: PgConnectOptions = url.parse().expect("a URL");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let mut proxied = url::Url::parse(url).expect("a URL");
        proxied.set_query(Some("sslmode=disable"));
        proxied.set_host(Some("127.0.0.1")).expect("a host");
        proxied.set_port(Some(port)).expect("a port");
        let shared = Arc::new(Shared {
            target: Mutex::new(options),
            mode: watch::Sender::new(Mode::Pass),
            generation: watch::Sender::new(0),
            rules: Mutex::default(),
            commits: watch::Sender::new(0),
            listeners: watch::Sender::new(0),
        });
        let task = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Self { url: proxied.to_string(), port, shared, task }
    }

    pub fn set(&self, mode: Mode) {
        self.shared.mode.send_replace(mode);
    }

    /// Ends all connections that there are.
    pub fn cut_all(&self) {
        self.shared.generation.send_modify(|generation| *generation += 1);
    }

    /// Leads to another server from now on; the connections to the present one end.
    pub fn point_to(&self, url: &str) {
        *lock(&self.shared.target) = url.parse().expect("a URL");
        self.cut_all();
    }

    /// Decides about the next request that `about` describes.
    pub fn at_next(&self, about: Passing, fate: Fate) -> Rule {
        self.at(about, fate, 0, 1)
    }

    /// Decides about every request that `about` describes, until the rule is dropped.
    pub fn at_every(&self, about: Passing, fate: Fate) -> Rule {
        self.at(about, fate, 0, usize::MAX)
    }

    /// Decides about `take` requests that `about` describes, after `skip` of them have passed.
    pub fn at(&self, about: Passing, fate: Fate, skip: usize, take: usize) -> Rule {
        let state = RuleState { about, fate, left: Mutex::new((skip, take)), met: watch::Sender::default() };
        let state = Arc::new(state);
        lock(&self.shared.rules).push(Arc::clone(&state));
        Rule(state)
    }

    /// Decides about the next COMMIT that comes as a simple query, or the next append that commits by itself.
    pub fn at_next_commit(&self, what: Commit) {
        let fate = match what {
            Commit::AnswerIsCut => Fate::CutAnswer,
            Commit::IsCut => Fate::Cut,
            Commit::IsSwallowed => Fate::Swallow,
        };
        let rule = self.at_next(Passing::commit(), fate);
        let (state, shared) = (Arc::clone(&rule.0), Arc::clone(&self.shared));
        // The rule goes on without its handle.
        std::mem::forget(rule);
        tokio::spawn(async move {
            let mut met = state.met.subscribe();
            let Ok(meeting) = met.wait_for(|met| !met.is_empty()).await.map(|met| Arc::clone(&met[0])) else { return };
            let mut over = meeting.over.subscribe();
            if over.wait_for(|over| *over).await.is_ok() {
                shared.commits.send_modify(|count| *count += 1);
            }
        });
    }

    /// Waits until something has become of as many commits as this.
    pub async fn has_met_commits(&self, count: u32) {
        reaches(&self.shared.commits, count).await;
    }

    /// How many connections came to LISTEN.
    pub fn listeners(&self) -> u32 {
        *self.shared.listeners.borrow()
    }

    /// Waits until as many connections as this came to LISTEN.
    pub async fn has_met_listeners(&self, count: u32) {
        reaches(&self.shared.listeners, count).await;
    }
}

async fn becomes_true(what: &str, flag: &watch::Sender<bool>) {
    let mut flag = flag.subscribe();
    let waited = timeout(BOUNDED, flag.wait_for(|is_true| *is_true)).await;
    waited.unwrap_or_else(|_| panic!("not in time: {what}")).expect("the meeting lives");
}

async fn reaches(counter: &watch::Sender<u32>, count: u32) {
    let mut counter = counter.subscribe();
    let reached = timeout(BOUNDED, counter.wait_for(|counted| *counted >= count)).await;
    reached.expect("it happens in time").expect("the proxy lives");
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// The newest rule that is about this request has a meeting.
    fn meet(&self, seen: &Seen<'_>, unit: &Unit) -> Option<(Fate, Arc<Meeting>)> {
        let mut rules = lock(&self.rules);
        rules.retain(|rule| lock(&rule.left).1 > 0);
        for rule in rules.iter().rev().filter(|rule| rule.about.is_met_by(seen)) {
            let mut left = lock(&rule.left);
            if left.0 > 0 {
                left.0 -= 1;
                continue;
            }
            if left.1 == 0 {
                continue;
            }
            left.1 -= 1;
            let meeting = Meeting {
                unit: unit.clone(),
                decision: watch::Sender::new(None),
                answered: watch::Sender::new(false),
                over: watch::Sender::new(false),
            };
            let meeting = Arc::new(meeting);
            rule.met.send_modify(|met| met.push(Arc::clone(&meeting)));
            return Some((rule.fate, meeting));
        }
        None
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        // Subscribed before the connection is made: no change is missed.
        let (mode, generation) = (shared.mode.subscribe(), shared.generation.subscribe());
        tokio::spawn(async move {
            if *mode.borrow() == Mode::Refuse {
                return;
            }
            let options = lock(&shared.target).clone();
            let server: Box<dyn Stream> = match options.get_socket() {
                Some(folder) => {
                    let path = folder.join(format!(".s.PGSQL.{}", options.get_port()));
                    match UnixStream::connect(path).await {
                        Ok(server) => Box::new(server),
                        Err(_) => return,
                    }
                }
                None => match TcpStream::connect((options.get_host(), options.get_port())).await {
                    Ok(server) => Box::new(server),
                    Err(_) => return,
                },
            };
            let relay = Relay {
                client,
                server,
                mode,
                generation,
                shared: &shared,
                requests: Reader::default(),
                replies: Replies::default(),
                dark: false,
                current: None,
            };
            Box::pin(relay.run()).await;
        });
    }
}

/// A request that a rule has met, and what is being done about it.
struct Current {
    fate: Fate,
    meeting: Arc<Meeting>,
    /// What was kept of the server's answer.
    answer: Vec<u8>,
    /// Whether the server has had the request.
    has_passed: bool,
}

impl Drop for Current {
    fn drop(&mut self) {
        self.meeting.over.send_replace(true);
    }
}

/// One connection.
struct Relay<'a> {
    client: TcpStream,
    server: Box<dyn Stream>,
    mode: watch::Receiver<Mode>,
    generation: watch::Receiver<u64>,
    shared: &'a Shared,
    requests: Reader,
    replies: Replies,
    /// Nothing gets through any more, ever.
    dark: bool,
    current: Option<Current>,
}

/// Whether the connection goes on.
type GoesOn = Result<(), ()>;

impl Relay<'_> {
    async fn run(mut self) {
        let (mut from_client, mut from_server) = ([0_u8; 16 * 1024], [0_u8; 16 * 1024]);
        loop {
            let mode = *self.mode.borrow_and_update();
            if mode == Mode::Refuse {
                return;
            }
            let is_dark = mode == Mode::Blackhole || mode == Mode::BlackholeListeners && self.requests.listens();
            let is_held = mode == Mode::Held || is_dark || self.dark;
            let current = self.current.as_ref();
            // A request that is held, or whose answer is awaited, is the last thing that is read of its client.
            let reads_client = !is_held && current.is_none();
            let reads_server = !is_held;
            let mut decision = current.map(|current| current.meeting.decision.subscribe());
            let waits = current.is_some_and(|current| match current.fate {
                Fate::Hold => !current.has_passed,
                Fate::HoldAnswer => self.replies.are_complete(),
                _ => false,
            });
            tokio::select! {
                changed = self.mode.changed() => {
                    let now = *self.mode.borrow();
                    // What has stood in the dark never comes back to life.
                    if changed.is_err() || is_dark && now != mode {
                        return;
                    }
                }
                _ = self.generation.changed() => return,
                decided = decided(&mut decision), if waits && !is_held => {
                    if self.follow(decided).await.is_err() {
                        return;
                    }
                }
                read = self.client.read(&mut from_client), if reads_client => {
                    let Ok(count @ 1..) = read else { return };
                    self.requests.push(&from_client[..count]);
                    if self.pass_requests().await.is_err() {
                        return;
                    }
                }
                read = self.server.read(&mut from_server), if reads_server => {
                    let Ok(count @ 1..) = read else { return };
                    if self.pass_answer(&from_server[..count]).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Passes on what the client has said in full.
    async fn pass_requests(&mut self) -> GoesOn {
        while self.current.is_none() && !self.dark {
            let Some(unit) = self.requests.next() else { return Ok(()) };
            if self.requests.takes_first_look() && self.requests.listens() {
                self.shared.listeners.send_modify(|count| *count += 1);
                if *self.mode.borrow() == Mode::BlackholeListeners {
                    return Ok(());
                }
            }
            let seen = self.requests.look(&unit, self.replies.is_in_transaction());
            match self.shared.meet(&seen, &unit) {
                None => self.forward(&unit).await?,
                Some((fate, meeting)) => {
                    self.current = Some(Current { fate, meeting, answer: Vec::new(), has_passed: false });
                    self.treat(fate, &unit).await?;
                }
            }
        }
        Ok(())
    }

    /// Begins with what is to become of a request.
    async fn treat(&mut self, fate: Fate, unit: &Unit) -> GoesOn {
        match fate {
            Fate::Delay(length) => {
                tokio::time::sleep(length).await;
                self.forward(unit).await?;
                self.current = None;
            }
            Fate::Cut => return Err(()),
            Fate::Reset => {
                self.reset();
                return Err(());
            }
            Fate::Swallow => self.current = None,
            Fate::GoDark => {
                self.dark = true;
                self.current = None;
            }
            Fate::Pass | Fate::CutAnswer | Fate::SwallowAnswer | Fate::HoldAnswer => {
                self.forward(unit).await?;
                self.passed();
            }
            Fate::Hold => {}
        }
        Ok(())
    }

    fn passed(&mut self) {
        if let Some(current) = &mut self.current {
            current.has_passed = true;
        }
    }

    fn reset(&mut self) {
        // Closing with unread data or without lingering resets.
        let socket = socket2::SockRef::from(&self.client);
        socket.set_linger(Some(Duration::ZERO)).expect("a TCP socket");
    }

    async fn forward(&mut self, unit: &Unit) -> GoesOn {
        self.replies.expect(unit);
        self.server.write_all(unit.bytes()).await.map_err(drop)
    }

    /// The test has decided about what is held.
    async fn follow(&mut self, fate: Fate) -> GoesOn {
        let Some(current) = &mut self.current else { return Ok(()) };
        if current.fate == Fate::HoldAnswer {
            let answer = std::mem::take(&mut current.answer);
            match fate {
                Fate::Pass => {
                    self.client.write_all(&answer).await.map_err(drop)?;
                    self.current = None;
                    return self.pass_requests().await;
                }
                Fate::GoDark | Fate::SwallowAnswer => {
                    self.dark = true;
                    self.current = None;
                    return Ok(());
                }
                Fate::Reset => self.reset(),
                _ => {}
            }
            return Err(());
        }
        let unit = current.meeting.unit.clone();
        // From now on it is treated as if the rule had said so from the start.
        current.fate = fate;
        self.treat(fate, &unit).await
    }

    async fn pass_answer(&mut self, bytes: &[u8]) -> GoesOn {
        self.replies.push(bytes);
        let is_complete = self.replies.are_complete();
        if let Some(current) = self.current.as_ref().filter(|current| current.has_passed && is_complete) {
            current.meeting.answered.send_replace(true);
        }
        let Some(current) = &mut self.current else { return self.client.write_all(bytes).await.map_err(drop) };
        match current.fate {
            Fate::CutAnswer if is_complete => return Err(()),
            Fate::SwallowAnswer if is_complete => {
                self.dark = true;
                self.current = None;
                return Ok(());
            }
            Fate::CutAnswer | Fate::SwallowAnswer => return Ok(()),
            Fate::HoldAnswer => {
                current.answer.extend_from_slice(bytes);
                return Ok(());
            }
            _ => {}
        }
        // The client of a request that came late may be gone; the request is over all the same.
        let written = self.client.write_all(bytes).await;
        if is_complete && self.current.as_ref().is_some_and(|current| current.has_passed) {
            self.current = None;
            written.map_err(drop)?;
            return self.pass_requests().await;
        }
        written.map_err(drop)
    }
}

async fn decided(decision: &mut Option<watch::Receiver<Option<Fate>>>) -> Fate {
    if let Some(decision) = decision
        && let Ok(Some(fate)) = decision.wait_for(Option::is_some).await.map(|fate| *fate)
    {
        return fate;
    }
    std::future::pending().await
}
