//! Which programs are chosen, with folders of scripts in the place of PostgreSQL's.

use std::os::unix::fs::symlink;

use super::super::account::Account;
use super::super::fetch::settle;
use super::super::programs::{Programs, Search};
use super::*;

/// A machine made of scripts under a folder of its own.
struct Machine {
    temp: TempFolder,
    account: Account,
    path: String,
}

impl Machine {
    fn new() -> Machine {
        Machine { temp: TempFolder::new(), account: Account::find(None).expect("an account"), path: String::new() }
    }

    fn at(&self, place: &str) -> PathBuf {
        self.temp.0.join(place)
    }

    fn install(&self, place: &str, major: u32) -> PathBuf {
        let bin = self.at(place);
        script(&bin.join("postgres"), &format!("echo 'postgres (PostgreSQL) {major}.1'"));
        script(&bin.join("initdb"), "echo 'no room for a cluster' >&2; exit 1");
        bin
    }

    async fn search(&self, asked: Option<&Path>, major: Option<u32>) -> Result<Programs, Error> {
        let folder = self.at("data");
        let search = Search {
            account: &self.account,
            asked,
            path: Some(self.path.as_ref()),
            root: &self.temp.0,
            fetched: &self.at("data/programs"),
            cluster: major.map(|major| (major, folder.as_path())),
        };
        search.run().await
    }

    async fn found(&self, major: Option<u32>) -> PathBuf {
        self.search(None, major).await.expect("programs").bin
    }
}

fn script(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().expect("a folder")).expect("made");
    fs::write(path, format!("#!/bin/sh\n{text}\n")).expect("written");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("set");
}

#[tokio::test]
async fn the_folder_asked_for_comes_first_then_path_then_the_newest_package_then_the_fetched() {
    let mut machine = Machine::new();
    let fetched = machine.install("data/programs/17.2.0/bin", 17);
    assert_eq!(machine.found(None).await, fetched);
    machine.install("usr/lib/postgresql/9/bin", 9);
    assert_eq!(machine.found(None).await, fetched);
    let debian = machine.install("usr/lib/postgresql/15/bin", 15);
    assert_eq!(machine.found(None).await, debian);
    let red_hat = machine.install("usr/pgsql-16/bin", 16);
    assert_eq!(machine.found(None).await, red_hat);
    let homebrew = machine.install("opt/homebrew/opt/postgresql@18/bin", 18);
    assert_eq!(machine.found(None).await, homebrew);
    let path = machine.install("somewhere/bin", 15);
    machine.path = format!("relative:/nowhere:{}", path.display());
    assert_eq!(machine.found(None).await, path);
    let asked = machine.search(Some(&debian), None).await.expect("programs");
    assert_eq!(asked.bin, debian);

    assert_eq!(machine.found(Some(16)).await, red_hat);
    assert_eq!(machine.found(Some(17)).await, fetched);
}

#[tokio::test]
async fn fetched_programs_are_put_in_their_place_only_if_they_run() {
    let machine = Machine::new();
    let unpacked = machine.at("programs/new/pgsql");
    let place = machine.at("programs/17.1.0");
    machine.install("programs/new/pgsql/bin", 17);
    for closed in [&unpacked, &unpacked.join("bin"), &machine.at("programs/new")] {
        fs::set_permissions(closed, fs::Permissions::from_mode(0o700)).expect("set");
    }
    let settled = settle(&unpacked, &place, &machine.account).await.expect("settled");
    assert_eq!(settled, Programs { bin: place.join("bin"), major: 17 });
    assert!(!unpacked.exists());

    script(&unpacked.join("bin/postgres"), "echo 'no such library' >&2; exit 127");
    script(&unpacked.join("bin/initdb"), "");
    let failure = settle(&unpacked, &machine.at("programs/18.1.0"), &machine.account).await;
    let text = failure.expect_err("it does not run").to_string();
    assert!(text.contains("no such library"), "{text}");
    assert!(!machine.at("programs/18.1.0").exists());
}

#[tokio::test]
async fn links_in_path_lead_to_the_programs_and_half_a_folder_counts_for_nothing() {
    let mut machine = Machine::new();
    let real = machine.install("elsewhere/bin", 16);
    let half = machine.at("half");
    script(&half.join("postgres"), "echo 'postgres (PostgreSQL) 17.1'");
    let links = machine.at("links");
    fs::create_dir(&links).expect("a folder");
    symlink(real.join("postgres"), links.join("postgres")).expect("a link");
    machine.path = format!("{}:{}", half.display(), links.display());
    assert_eq!(machine.found(None).await, real);
}

#[tokio::test]
async fn without_programs_the_error_says_what_to_install() {
    let machine = Machine::new();
    let empty = machine.at("empty");
    let failure = machine.search(Some(&empty), None).await.expect_err("none");
    assert!(matches!(failure, Error::NoPrograms { fetch_error: None, .. }), "{failure:?}");
    let text = failure.to_string();
    for part in ["/empty: no postgres in it", "apt-get install postgresql", "apk add", "DATABASE_URL"] {
        assert!(text.contains(part), "{text}");
    }
}

#[tokio::test]
async fn a_cluster_of_another_major_version_is_refused_by_name() {
    let machine = Machine::new();
    let bin = machine.install("bin", 17);
    let failure = machine.search(Some(&bin), Some(16)).await.expect_err("wrong");
    assert!(matches!(failure, Error::WrongMajor { need: 16, .. }), "{failure:?}");
    assert!(failure.to_string().contains("/bin: version 17"), "{failure}");
}

#[tokio::test]
#[ignore = "for a machine without a network, where a fetch must fail soon"]
async fn without_a_network_the_fetch_gives_up_soon() {
    let start = Instant::now();
    let failure = Machine::new().search(None, None).await.expect_err("none");
    assert!(start.elapsed() < Duration::from_secs(20));
    assert!(matches!(failure, Error::NoPrograms { fetch_error: Some(_), .. }), "{failure:?}");
    assert!(failure.to_string().contains("Fetching them failed"), "{failure}");
    println!("{:?}\n{failure}", start.elapsed());
}

#[tokio::test]
async fn an_initdb_that_fails_leaves_no_cluster() {
    let machine = Machine::new();
    let broken = machine.install("bin", 17);
    let mut options = machine.temp.options();
    options.programs = Some(broken);
    let failure = PrivatePg::start(options).await.expect_err("no cluster");
    assert!(failure.to_string().contains("no room for a cluster"), "{failure}");
    assert!(!machine.at("data/pgdata").exists());

    let pg = PrivatePg::start(machine.temp.options()).await.expect("started");
    pg.stop(STOP_MAX).await.expect("stopped");
}
