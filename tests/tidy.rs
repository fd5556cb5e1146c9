//! Style that a machine can check: the ranks of modules, where SQL may stand, leftovers, links.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Lowest first. A module uses modules of a lower rank, and its own.
const RANKS: [(&str, u32); 11] = [
    ("domain", 0),
    ("clock", 1),
    ("lifecycle", 1),
    ("config", 1),
    ("telemetry", 1),
    ("private_pg", 1),
    ("store", 2),
    ("desk", 3),
    ("live", 4),
    ("http", 5),
    ("cli", 6),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &str, extension: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                let text = fs::read_to_string(&path).expect("text");
                found.push((path.strip_prefix(root()).expect("inside").to_owned(), text));
            }
        }
    }
    assert!(!found.is_empty(), "no {extension} files in {folder}");
    found
}

fn rank(module: &str) -> Option<u32> {
    RANKS.iter().find(|(name, _)| *name == module).map(|(_, rank)| *rank)
}

/// The top-level module that a file of `src` belongs to.
fn module(path: &Path) -> String {
    let second = path.components().nth(1).expect("a part below src").as_os_str().to_string_lossy();
    second.trim_end_matches(".rs").to_owned()
}

/// Modules that a text uses through `crate::`.
fn used(text: &str) -> Vec<String> {
    let mut used = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        let word = |rest: &str| rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect::<String>();
        if let Some(group) = rest.strip_prefix('{') {
            // Only the names at the group's own level.
            let mut depth = 0;
            let mut start = true;
            for (offset, c) in group.char_indices() {
                if depth == 0 && start && c.is_ascii_lowercase() {
                    used.push(word(&group[offset..]));
                    start = false;
                }
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => start = true,
                    _ => {}
                }
            }
        } else {
            used.push(word(rest));
        }
    }
    used
}

#[test]
fn modules_use_only_lower_ranks() {
    let mut edges = 0;
    for (path, text) in files("src", "rs") {
        let own = module(&path);
        let Some(own_rank) = rank(&own) else { continue };
        for other in used(&text).iter().filter(|other| **other != own) {
            let other_rank = rank(other).unwrap_or_else(|| panic!("{}: crate::{other} has no rank", path.display()));
            // config holds the options of what it configures.
            let allowed = other_rank < own_rank
                || (own == "config" && other == "private_pg")
                || (own == "telemetry" && other == "config");
            assert!(allowed, "{}: {own} must not use {other}", path.display());
            edges += 1;
        }
    }
    assert!(edges > 50, "the test has found {edges} uses: does it still read them?");
}

/// The paths of a `use` tree: `a::{b, c::{self, d}}` is `a::b`, `a::c` and `a::c::d`.
fn leaves(tree: &str) -> Vec<String> {
    let Some((before, group)) = tree.split_once('{') else {
        return vec![tree.trim().trim_end_matches("::self").to_owned()];
    };
    let group = group.trim_end().strip_suffix('}').expect("a group ends");
    let (mut paths, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, c) in group.char_indices().chain([(group.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                let part = group[start..at].trim();
                if !part.is_empty() {
                    paths.extend(leaves(&format!("{}{part}", before.trim())));
                }
                start = at + 1;
            }
            _ => {}
        }
    }
    paths
}

/// The modules of `live` that a file uses, of those that there are.
fn uses(own: &[String], text: &str, modules: &[Vec<String>]) -> Vec<Vec<String>> {
    let text = text.split("#[cfg(test)]").next().expect("some text");
    let trees = text.split("\nuse ").skip(1).filter_map(|rest| rest.split(';').next());
    let absolute = |path: String| {
        let (mut at, mut rest) = (own.to_vec(), path.as_str());
        if let Some(of_crate) = rest.strip_prefix("crate::") {
            (at, rest) = (Vec::new(), of_crate);
        }
        while let Some(upward) = rest.strip_prefix("super::") {
            at.pop();
            rest = upward;
        }
        at.extend(rest.trim_start_matches("self::").split("::").map(str::to_owned));
        at
    };
    trees
        .flat_map(leaves)
        .map(absolute)
        .filter_map(|path| modules.iter().filter(|module| path.starts_with(module)).max_by_key(|module| module.len()))
        .filter(|module| *module != own)
        .cloned()
        .collect()
}

#[test]
fn files_of_live_do_not_use_each_other_in_circles() {
    let files: Vec<(Vec<String>, String)> = files("src/live", "rs")
        .into_iter()
        .map(|(path, text)| {
            let path = path.with_extension("");
            let parts = path.components().skip(1).map(|part| part.as_os_str().to_string_lossy().into_owned());
            (parts.filter(|part| part != "mod").collect(), text)
        })
        .collect();
    let modules: Vec<Vec<String>> = files.iter().map(|(module, _)| module.clone()).collect();
    let mut left: Vec<(Vec<String>, Vec<Vec<String>>)> =
        files.iter().map(|(module, text)| (module.clone(), uses(module, text, &modules))).collect();
    let edges: usize = left.iter().map(|(_, used)| used.len()).sum();
    assert!(edges > 20, "the test has found {edges} uses: does it still read them?");
    // Those who use nobody that is left are in no circle.
    loop {
        let remaining: Vec<Vec<String>> = left.iter().map(|(module, _)| module.clone()).collect();
        left.retain(|(_, used)| used.iter().any(|used| remaining.contains(used)));
        if left.len() == remaining.len() {
            break;
        }
    }
    let circle: Vec<String> = left.iter().map(|(module, _)| module.join("::")).collect();
    assert!(circle.is_empty(), "in a circle, or using one: {circle:?}");
}

#[test]
fn sql_stands_in_the_store_only() {
    for (path, text) in files("src", "rs") {
        let allowed = ["store", "private_pg"].contains(&module(&path).as_str());
        let is_sql =
            ["sqlx::query", "sqlx::raw_sql", "query_as(", "query_scalar("].iter().any(|call| text.contains(call));
        assert!(allowed || !is_sql, "{}: SQL outside the store", path.display());
    }
}

#[test]
fn statements_name_the_function_they_belong_to() {
    let mut seen = 0;
    for (path, text) in files("src/store/sql", "sql") {
        assert!(text.starts_with("/* "), "{} does not begin with the name of its function", path.display());
        seen += 1;
    }
    assert!(seen > 10);
}

#[test]
fn nothing_is_left_over() {
    let leftovers = ["FIX".to_owned() + "ME", "XX".to_owned() + "X", "todo".to_owned() + "!(", "dbg".to_owned() + "!("];
    for folder in ["src", "tests", "crates"] {
        for (path, text) in files(folder, "rs") {
            for leftover in &leftovers {
                assert!(!text.contains(leftover.as_str()), "{} holds {leftover}", path.display());
            }
        }
    }
}

#[test]
fn paths_named_in_the_documents_exist() {
    let mut links = 0;
    for document in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"] {
        let text = fs::read_to_string(root().join(document)).expect(document);
        // [text](path) and `path/with/slash.ext`
        let linked = text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
            .filter(|link| !link.contains("://") && !link.starts_with('#'));
        let quoted = text
            .split('`')
            .skip(1)
            .step_by(2)
            .filter(|word| {
                ["src/", "crates/", "tests/", "docs/", "migrations/", "deploy/", ".ci/"]
                    .iter()
                    .any(|start| word.starts_with(start))
            })
            .filter(|word| !word.contains([' ', '*', '<', '{']));
        for path in linked.chain(quoted) {
            let path = path.split('#').next().unwrap_or(path);
            assert!(root().join(path).exists(), "{document} names {path}, which is not there");
            links += 1;
        }
    }
    assert!(links > 10, "the test has found {links} paths: does it still read them?");
}
