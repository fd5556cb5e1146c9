use std::process::ExitCode;
#[derive(Debug, clap::Args)]
pub struct DemoArgs {}
pub async fn run(_: &DemoArgs) -> anyhow::Result<ExitCode> {
    Ok(ExitCode::SUCCESS)
}
