//! When an upstream is to be connected: always, or while the tenant has clients and for a while after the last.

use std::{future::pending, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use crate::demand::Demand;

/// Says when an upstream is to be connected. `None`: always.
pub struct Need(Option<OnDemand>);

struct OnDemand {
    demand: Arc<Demand>,
    changed: watch::Receiver<()>,
    linger: Duration,
}

impl Need {
    /// `linger`: how long it stays connected after the last client. `None`: it is always connected.
    pub fn new(demand: &Arc<Demand>, linger: Option<Duration>) -> Self {
        Self(linger.map(|linger| OnDemand { demand: Arc::clone(demand), changed: demand.watch(), linger }))
    }

    /// Whether it is to be connected now.
    pub fn is_there(&self) -> bool {
        self.0.as_ref().is_none_or(|on_demand| on_demand.demand.has_clients())
    }

    /// Returns once that may have changed.
    pub async fn changed(&mut self) {
        match &mut self.0 {
            // There is no error, because the demand, which has the sender, is held here.
            Some(OnDemand { changed, .. }) => drop(changed.changed().await),
            None => pending().await,
        }
    }

    /// Returns once there is a client.
    pub async fn begins(&mut self) {
        let Some(OnDemand { demand, changed, .. }) = &mut self.0 else { return };
        // There is no error, because the demand, which has the sender, is held here.
        while !demand.has_clients() && changed.changed().await.is_ok() {}
    }

    /// Returns once there has been no client for the linger. A new call begins the time anew.
    pub async fn ends(&mut self) {
        let Some(OnDemand { demand, changed, linger }) = &mut self.0 else { return pending().await };
        loop {
            let end = (!demand.has_clients()).then(|| Instant::now() + *linger);
            tokio::select! {
                _ = changed.changed() => {}
                () = sleep_until(end.unwrap_or_else(Instant::now)), if end.is_some() => return,
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::time::{advance, timeout};

    use super::*;

    const LINGER: Duration = Duration::from_secs(30);
    const AN_INSTANT: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn always_is_at_once_and_for_ever() {
        let demand = Arc::new(Demand::default());
        let mut need = Need::new(&demand, None);
        timeout(AN_INSTANT, need.begins()).await.unwrap();
        timeout(LINGER * 1000, need.ends()).await.unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn it_begins_with_the_first_client_and_ends_a_while_after_the_last() {
        let demand = Arc::new(Demand::default());
        let mut need = Need::new(&demand, Some(LINGER));
        timeout(LINGER * 1000, need.begins()).await.unwrap_err();
        demand.client_came();
        timeout(AN_INSTANT, need.begins()).await.unwrap();
        {
            let mut ends = std::pin::pin!(need.ends());
            timeout(LINGER * 1000, ends.as_mut()).await.unwrap_err();
            for _ in 0..3 {
                demand.client_went();
                timeout(LINGER - AN_INSTANT, ends.as_mut()).await.unwrap_err();
                // Gone before anybody has looked: the time begins anew all the same.
                demand.client_came();
                demand.client_went();
                timeout(LINGER - AN_INSTANT, ends.as_mut()).await.unwrap_err();
                demand.client_came();
                timeout(LINGER * 2, ends.as_mut()).await.unwrap_err();
            }
            demand.client_went();
            timeout(LINGER - AN_INSTANT, ends.as_mut()).await.unwrap_err();
            advance(AN_INSTANT).await;
            timeout(AN_INSTANT, ends).await.unwrap();
        }
        timeout(LINGER * 1000, need.begins()).await.unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_connected_while_nobody_is_there_ends_too() {
        let demand = Arc::new(Demand::default());
        let began = Instant::now();
        Need::new(&demand, Some(LINGER)).ends().await;
        assert_eq!(began.elapsed(), LINGER);
    }
}
