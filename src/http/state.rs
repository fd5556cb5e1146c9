//! What handlers share.

use std::{num::NonZeroU32, ops::Deref, sync::Arc};

use governor::{DefaultKeyedRateLimiter, Quota};
use metrics_exporter_prometheus::PrometheusHandle;
use uuid::Uuid;

use crate::{
    domain::fault::Fault,
    live::{
        append::Writer,
        auth::{activity::Activity, freshness::Freshness, tokens::Tokens},
        feed::{Feed, hints::Hints, poll::Polls},
    },
    store::pool::Db,
};

/// The service as handlers see it; cheap to clone.
#[derive(Clone)]
pub struct App(Arc<Parts>);

/// The parts of the service that handlers use.
pub struct Parts {
    pub db: Db,
    pub feed: Arc<Feed>,
    pub freshness: Arc<Freshness>,
    pub hints: Arc<Hints>,
    pub tokens: Arc<Tokens>,
    pub writer: Writer,
    pub polls: Polls,
    pub activity: Arc<Activity>,
    pub rate: Rate,
    pub metrics: Option<PrometheusHandle>,
}

impl App {
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }
}

impl Deref for App {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

/// Requests per second for each token.
pub struct Rate {
    limiter: Option<DefaultKeyedRateLimiter<Uuid>>,
}

impl Rate {
    /// `None`: no limit.
    pub fn new(requests_per_second: Option<NonZeroU32>) -> Self {
        Self { limiter: requests_per_second.map(|rate| DefaultKeyedRateLimiter::keyed(Quota::per_second(rate))) }
    }

    /// Counts a request against the limit of its token.
    ///
    /// # Errors
    /// 42900.
    pub fn check(&self, token_id: Uuid) -> Result<(), Fault> {
        match &self.limiter {
            Some(limiter) if limiter.check_key(&token_id).is_err() => {
                Err(Fault::TooMany("this token sends more requests than it may"))
            }
            _ => Ok(()),
        }
    }
}
