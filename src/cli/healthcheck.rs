//! `deskfeed healthcheck`: asks the service of this machine whether it is ready. Images without a
//! shell or curl need it.

use std::{net::SocketAddr, process::ExitCode, time::Duration};

use clap::Args;

#[derive(Debug, Args)]
pub struct HealthcheckArgs {
    /// Where the service listens.
    #[arg(long, env = "DESKFEED_LISTEN", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
}

pub async fn run(args: &HealthcheckArgs) -> anyhow::Result<ExitCode> {
    let mut address = args.listen;
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() {
            std::net::Ipv4Addr::LOCALHOST.into()
        } else {
            std::net::Ipv6Addr::LOCALHOST.into()
        });
    }
    let client = reqwest::Client::builder().timeout(Duration::from_secs(3)).build()?;
    let response = client.get(format!("http://{address}/readyz")).send().await?;
    let status = response.status();
    println!("{}", response.text().await?.trim());
    Ok(if status.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
