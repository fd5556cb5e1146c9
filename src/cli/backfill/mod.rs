//! `deskfeed backfill`: one feed's whole history as a sealed file, read over HTTP as any client may.
//!
//! The walk begins at the newest page and goes back with `b`, so what happens meanwhile does not
//! matter to it. The pages are kept in `FILE.partial` as they come; a run that was ended early is
//! continued behind its last whole page. When the oldest page is there, the events are put in
//! their order into `FILE`.

mod feed;
mod pages;

use std::{
    fs::{self, OpenOptions},
    io::BufWriter,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, bail};
use clap::Args;
use tokio::time::Instant;

use self::{
    feed::{Answer, Feed, Page},
    pages::Pages,
};
use super::{
    progress::{self, Unit},
    sealed::{End, Header, Holds, Partial, Writer},
};
use crate::clock::Clock;

#[derive(Debug, Args)]
pub struct BackfillArgs {
    /// Where the service is, such as `https://desk.example.org`.
    #[arg(long)]
    url: String,
    /// Whose feed: a token of the agent or gateway. Others on the machine may see it; --token-file hides it.
    #[arg(long, env = "DESKFEED_TOKEN", hide_env_values = true, required_unless_present = "token_file")]
    token: Option<String>,
    /// A file that holds the token.
    #[arg(long, env = "DESKFEED_TOKEN_FILE", conflicts_with = "token")]
    token_file: Option<PathBuf>,
    /// The file to make; FILE.partial beside it until it is whole. Run again to continue one that
    /// was ended early.
    #[arg(long)]
    out: PathBuf,
    /// Seconds without an answer of use after which it is given up, to be continued later.
    #[arg(long, default_value = "300")]
    patience: u64,
}

pub async fn run(args: &BackfillArgs) -> anyhow::Result<ExitCode> {
    let token = match (&args.token, &args.token_file) {
        (Some(token), _) => token.clone(),
        (None, Some(file)) => fs::read_to_string(file)
            .with_context(|| format!("--token-file: {} cannot be read", file.display()))?
            .trim_end()
            .to_owned(),
        (None, None) => bail!("whose feed? Give --token-file or --token"),
    };
    let feed = Feed::new(&args.url, token, Duration::from_secs(args.patience))?;
    let mut partial = Partial::take(&args.out)?;
    let began = Instant::now();
    let pages = walk(&feed, &mut partial).await?;
    let bytes = assemble(&pages, partial, &args.out)?;
    eprintln!("versions {} to {}: {}", pages.oldest, pages.newest, progress::sum(pages.events, bytes, began.elapsed()));
    Ok(ExitCode::SUCCESS)
}

/// Reads what is not there yet, back to the oldest page.
async fn walk(feed: &Feed, partial: &mut Partial) -> anyhow::Result<Pages> {
    let (mut pages, mut first) = match partial.left_behind()? {
        Some(reader) => {
            let pages = Pages::read(reader, &partial.path)?;
            if pages.more && pages.events > 0 && !feed.has(pages.oldest, &pages.header.epoch).await? {
                bail!(
                    "the token's feed has no event {}, to which {} goes back: it is another feed's, or the service does not keep it any more; remove the file and start anew",
                    pages.oldest,
                    partial.path.display()
                );
            }
            eprintln!("continuing {}: it goes back to version {}", partial.path.display(), pages.oldest);
            (pages, None)
        }
        None => {
            // The first answer says which history it is.
            let Answer::Page(page) = feed.before(None, None).await? else {
                bail!("{} refuses its newest page", partial.path.display())
            };
            let header = Header::new(Holds::Pages, Clock.now(), page.epoch.clone());
            let writer = Writer::begin(partial.from_start()?, &header)?;
            (Pages::none(header, writer.position().clone()), Some(page))
        }
    };
    let mut writer = partial.continue_at(pages.at.clone())?;
    let bar = progress::bar(0, Unit::Versions);
    while pages.more {
        let page = match first.take() {
            Some(page) => page,
            None => match feed.before(pages.next, Some(&pages.header.epoch)).await? {
                Answer::Page(page) => page,
                // Retention has overtaken us: what there was is read.
                Answer::NotKept => Page { events: Vec::new(), next: 0, more: false, epoch: String::new() },
            },
        };
        pages.add(&mut writer, &page)?;
        bar.set_length(u64::try_from(pages.newest).unwrap_or(0));
        bar.set_position(u64::try_from(pages.newest - pages.oldest).unwrap_or(0));
        bar.set_message(format!("{} events", pages.events));
    }
    bar.finish_and_clear();
    Ok(pages)
}

/// Puts the events in their order. Gives the size of the file.
fn assemble(pages: &Pages, partial: Partial, target: &Path) -> anyhow::Result<u64> {
    let mut whole = target.as_os_str().to_owned();
    whole.push(".whole");
    let whole = PathBuf::from(whole);
    let written = || -> std::io::Result<u64> {
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&whole)?;
        let header = Header { holds: Holds::Feed, ..pages.header.clone() };
        let mut writer = Writer::begin(BufWriter::new(file), &header)?;
        pages.in_order(&partial.path, |event| writer.push(event))?;
        let counts = [("events".to_owned(), pages.events)].into();
        let (_, bytes) = writer.end(&End { oldest: pages.oldest, head: pages.newest, counts })?;
        Ok(bytes)
    };
    let bytes = written().with_context(|| format!("{} cannot be written", whole.display()))?;
    partial.finish_with(&whole)?;
    Ok(bytes)
}
