//! Who waits for which feed. Knows feeds and waiters and holds no events: a lost or doubled wake-up is harmless.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use crate::domain::ids::FeedKey;

/// The waiters of a process.
#[derive(Default)]
pub struct Hub {
    feeds: Mutex<HashMap<FeedKey, Waiters>>,
}

struct Waiters {
    count: usize,
    notify: Arc<Notify>,
}

impl Hub {
    /// Registers interest in a feed, until the watch is dropped.
    pub fn watch(self: &Arc<Self>, feed: FeedKey) -> Watch {
        let mut feeds = self.feeds();
        let waiters = feeds.entry(feed).or_insert_with(|| Waiters { count: 0, notify: Arc::new(Notify::new()) });
        waiters.count += 1;
        Watch { hub: Arc::clone(self), feed, notify: Arc::clone(&waiters.notify) }
    }

    /// Wakes all who watch one of `feeds`.
    pub fn wake(&self, feeds: impl IntoIterator<Item = FeedKey>) {
        // Collected first, so that waiters are woken after the lock is released.
        let woken: Vec<Arc<Notify>> = {
            let watched = self.feeds();
            feeds.into_iter().filter_map(|feed| watched.get(&feed)).map(|waiters| Arc::clone(&waiters.notify)).collect()
        };
        for notify in woken {
            notify.notify_waiters();
        }
    }

    /// How many feeds are watched.
    pub fn watched_feeds(&self) -> usize {
        self.feeds().len()
    }

    fn feeds(&self) -> MutexGuard<'_, HashMap<FeedKey, Waiters>> {
        // Nothing panics while holding it; if something did, the map would still be whole.
        self.feeds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Interest in one feed.
pub struct Watch {
    hub: Arc<Hub>,
    feed: FeedKey,
    notify: Arc<Notify>,
}

impl Watch {
    /// Completes at the next wake-up after this call, even one that comes before it is awaited:
    /// `enable` it, look, then await.
    pub fn woken(&self) -> tokio::sync::futures::Notified<'_> {
        self.notify.notified()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut feeds = self.hub.feeds();
        if let Entry::Occupied(mut waiters) = feeds.entry(self.feed) {
            waiters.get_mut().count -= 1;
            if waiters.get().count == 0 {
                waiters.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_wake_between_looking_and_waiting_is_not_lost() {
        let hub = Arc::new(Hub::default());
        let watch = hub.watch(FeedKey(1));
        let woken = watch.woken();
        tokio::pin!(woken);
        woken.as_mut().enable();
        hub.wake([FeedKey(1)]);
        woken.await;
    }

    #[test]
    fn watches_leave_nothing_behind() {
        let hub = Arc::new(Hub::default());
        let watches: Vec<Watch> = (0..10_000).map(|n| hub.watch(FeedKey(n % 100))).collect();
        assert_eq!(hub.watched_feeds(), 100);
        drop(watches);
        assert_eq!(hub.watched_feeds(), 0);
    }
}
