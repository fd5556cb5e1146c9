//! A composition of our own: a copy of the checkout under a project name that nobody else uses.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tokio::time::{Instant, sleep};

/// Containers start, or become healthy, within this.
const PATIENCE: Duration = Duration::from_secs(90);
/// What of the checkout an image or a container is made of.
const PARTS: [&str; 8] =
    [".dockerignore", "Cargo.lock", "Cargo.toml", "Dockerfile", "crates", "docker-compose.yml", "deploy", "migrations"];

/// Everything in docker-compose.yml, running. Goes away with all that belongs to it.
pub struct Composition {
    /// `docker-compose`, or `docker compose`.
    command: Vec<String>,
    folder: PathBuf,
    project: String,
    /// Where the balancer is.
    pub base: String,
    port: u16,
}

impl Composition {
    /// Builds the image and starts what a plain `up` starts.
    pub async fn start() -> Self {
        let command = std::env::var("DESKFEED_TEST_COMPOSE").unwrap_or_else(|_| "docker-compose".to_owned());
        let project = format!("deskfeed-test-{}", std::process::id());
        let folder = std::env::temp_dir().join(&project);
        copy_checkout(&folder);
        let port = free_port();
        let composition = Self {
            command: command.split_whitespace().map(str::to_owned).collect(),
            folder,
            project,
            base: format!("http://127.0.0.1:{port}"),
            port,
        };
        composition.program(&["deploy/make-secrets"]).await;
        // One service builds for all: the builder would compile once for each.
        composition.compose(&["build", "deskfeed"]).await;
        composition.compose(&["up", "-d"]).await;
        composition.await_healthy("deskfeed", 3).await;
        composition.await_healthy("balancer", 1).await;
        composition
    }

    /// Runs a command of docker-compose; gives what it printed.
    pub async fn compose(&self, arguments: &[&str]) -> String {
        let command: Vec<&str> = self.command.iter().map(String::as_str).chain(arguments.iter().copied()).collect();
        self.program(&command).await
    }

    /// Runs a program in the composition's folder.
    pub async fn program(&self, command: &[&str]) -> String {
        let mut program = tokio::process::Command::from(self.command_of(command));
        let output = program.output().await.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let [printed, complained] =
            [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        assert!(output.status.success(), "{command:?} ended {}: {printed}\n{complained}", output.status);
        printed
    }

    fn command_of(&self, command: &[&str]) -> Command {
        let mut program = Command::new(command[0]);
        program
            .args(&command[1..])
            .current_dir(&self.folder)
            .env("COMPOSE", self.command.join(" "))
            .env("COMPOSE_PROJECT_NAME", &self.project)
            .env("DESKFEED_IMAGE", "deskfeed:test")
            .env("DESKFEED_PORT", self.port.to_string())
            .env("DOCKER_BUILDKIT", "0")
            .stdin(Stdio::null());
        program
    }

    /// Ids of a service's containers that run.
    pub async fn containers(&self, service: &str) -> Vec<String> {
        let labels = [
            format!("label=com.docker.compose.project={}", self.project),
            format!("label=com.docker.compose.service={service}"),
        ];
        let listed =
            self.program(&["docker", "ps", "--no-trunc", "-q", "--filter", &labels[0], "--filter", &labels[1]]).await;
        listed.lines().map(str::to_owned).collect()
    }

    /// The only container of a service.
    pub async fn container(&self, service: &str) -> String {
        let containers = self.containers(service).await;
        assert_eq!(containers.len(), 1, "of {service}");
        containers[0].clone()
    }

    pub async fn inspect(&self, container: &str) -> Value {
        let text = self.program(&["docker", "inspect", container]).await;
        serde_json::from_str::<Value>(&text).expect("JSON")[0].take()
    }

    /// A container's address in one of the networks. The host reaches internal ones too.
    pub async fn address(&self, service: &str, network: &str) -> String {
        let container = self.inspect(&self.container(service).await).await;
        let network = &container["NetworkSettings"]["Networks"][format!("{}_{network}", self.project)];
        network["IPAddress"].as_str().expect("an address").to_owned()
    }

    /// Waits until a service has so many containers and all of them are healthy.
    pub async fn await_healthy(&self, service: &str, count: usize) {
        let until = Instant::now() + PATIENCE;
        loop {
            let mut healthy = 0;
            let containers = self.containers(service).await;
            for container in &containers {
                let state = self.inspect(container).await["State"]["Health"]["Status"].take();
                healthy += usize::from(state == "healthy");
            }
            if healthy == count && containers.len() == count {
                return;
            }
            assert!(Instant::now() < until, "{healthy} of {} {service} are healthy, not {count}", containers.len());
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// Kills what runs in a container, as a crash does, and waits until the engine has started it again.
    pub async fn crash(&self, container: &str) {
        let state = self.inspect(container).await["State"].take();
        let pid = state["Pid"].as_i64().filter(|pid| *pid > 1).expect("it runs");
        // The init that passes signals on; all others of the container go with it.
        kill(Pid::from_raw(i32::try_from(pid).expect("a process id")), Signal::SIGKILL).expect("it is killed");
        let until = Instant::now() + PATIENCE;
        loop {
            let now = self.inspect(container).await["State"].take();
            if now["Running"] == true && now["StartedAt"] != state["StartedAt"] {
                return;
            }
            assert!(Instant::now() < until, "it is not started again: {now}");
            sleep(Duration::from_millis(50)).await;
        }
    }

    pub fn secret(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.join("deploy/secrets").join(name)).expect("a secret")
    }
}

impl Drop for Composition {
    fn drop(&mut self) {
        let compose = |arguments: &[&str]| {
            let command: Vec<&str> = self.command.iter().map(String::as_str).chain(arguments.iter().copied()).collect();
            self.command_of(&command).output()
        };
        if std::thread::panicking() {
            for arguments in [&["ps"][..], &["logs", "--no-color", "--tail", "40"][..]] {
                if let Ok(output) = compose(arguments) {
                    println!("{}", String::from_utf8_lossy(&output.stdout));
                }
            }
        }
        let ended = compose(&["--profile", "demo", "--profile", "observability", "down", "-v", "-t", "20"]);
        if !ended.is_ok_and(|output| output.status.success()) {
            eprintln!("{} is not quite gone; see docker ps", self.project);
        }
        // Nothing depends on it.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

/// As a clean checkout would be: without secrets, builds, or whatever else lies about.
fn copy_checkout(folder: &Path) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    std::fs::create_dir_all(folder).expect("a folder");
    for part in PARTS.into_iter().chain(["src"]) {
        copy(&root.join(part), &folder.join(part));
    }
}

fn copy(from: &Path, to: &Path) {
    if from.is_file() {
        std::fs::copy(from, to).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
        return;
    }
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).unwrap_or_else(|error| panic!("{}: {error}", from.display())) {
        let name = entry.expect("an entry").file_name();
        if name != "secrets" {
            copy(&from.join(&name), &to.join(&name));
        }
    }
}
