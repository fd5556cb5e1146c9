//! The service's program: the one of `--service`, else the one beside this program. Started by cargo, it is built
//! first, so that no stale program is measured.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, ensure};

const NAME: &str = "deskfeed";

/// Finds the program, and builds it if cargo started us.
///
/// # Errors
/// When it does not exist or cannot be built; says what to do.
pub fn find(asked: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(asked) = asked {
        ensure!(asked.is_file(), "--service: there is no {}", asked.display());
        return Ok(asked.canonicalize()?);
    }
    let own = env::current_exe()?;
    let folder = own.parent().context("this program has no folder")?;
    let profile = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if let Some(cargo) = cargo() {
        build(&cargo, folder, profile)?;
    }
    let program = folder.join(NAME);
    ensure!(
        program.is_file(),
        "there is no {}; build it with `cargo build{} -p {NAME}`, or name the program with --service",
        program.display(),
        if profile == "release" { " --release" } else { "" }
    );
    Ok(program)
}

/// The cargo that started this program.
#[expect(clippy::disallowed_methods, reason = "said by cargo, not a setting")]
fn cargo() -> Option<PathBuf> {
    env::var_os("CARGO_MANIFEST_DIR")?;
    env::var_os("CARGO").map(PathBuf::from)
}

fn build(cargo: &Path, folder: &Path, profile: &str) -> anyhow::Result<()> {
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--package", NAME, "--bin", NAME]);
    command.args(["--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.toml")]);
    if profile != "debug" {
        command.args(["--profile", profile]);
    }
    command.arg("--target-dir").arg(folder.parent().context("no target folder")?);
    // Cargo's variables for this program are not for that build.
    for (name, _) in env::vars_os() {
        if name.to_string_lossy().starts_with("CARGO_PKG_") {
            command.env_remove(name);
        }
    }
    let ended = command.status().with_context(|| format!("{} cannot be run", cargo.display()))?;
    ensure!(ended.success(), "{NAME} cannot be built: {ended}");
    Ok(())
}
