//! A simulated exchange: it sends Coinbase's messages, with prices that move at random.

use std::{
    fmt::Write,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::Sink;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::time::Instant;
use tokio_tungstenite::{tungstenite, tungstenite::Message};

use crate::feed::Outgoing;

/// How many tickers come between two heartbeats.
const TICKERS_PER_HEARTBEAT: u64 = 50;
/// How far a feed that was held up may lag. Older messages are left out.
const MAX_LAG: Duration = Duration::from_secs(1);
/// One ticker in this many repeats the last price.
const REPEATS: u32 = 8;
/// A price moves by at most one part in this many.
const STEP_PART: u64 = 5_000;
/// Bytes reserved for a ticker's text, so that it does not grow.
const MESSAGE_BYTES: usize = 256;

/// Name, first price in ticks, decimals of a tick.
const PRODUCTS: [(&str, u64, u32); 8] = [
    ("BTC-USD", 4_321_055, 2),
    ("ETH-USD", 229_517, 2),
    ("SOL-USD", 98_431, 3),
    ("LTC-USD", 7_286, 2),
    ("XRP-USD", 6_179, 4),
    ("ADA-USD", 5_924, 4),
    ("DOGE-USD", 91_060, 6),
    ("ETH-BTC", 53_110, 6),
];

/// Sends `rate` tickers a second, for ever.
pub(super) async fn play<S>(rate: f64, out: &mut Outgoing<'_, S>) -> tungstenite::Result<()>
where
    S: Sink<Message, Error = tungstenite::Error> + Unpin,
{
    let mut exchange = Exchange::new(StdRng::from_rng(&mut rand::rng()));
    let pause = Duration::try_from_secs_f64(rate.recip()).ok();
    let mut due = Some(Instant::now());
    loop {
        out.pause_until(due).await?;
        out.send(Message::text(exchange.ticker())).await?;
        if exchange.tickers.is_multiple_of(TICKERS_PER_HEARTBEAT) {
            out.send(Message::text(exchange.heartbeat())).await?;
        }
        let oldest = Instant::now().checked_sub(MAX_LAG);
        due = due.max(oldest).zip(pause).and_then(|(due, pause)| due.checked_add(pause));
    }
}

struct Exchange {
    rng: StdRng,
    products: [Product; PRODUCTS.len()],
    sequence: u64,
    tickers: u64,
}

#[derive(Clone, Copy)]
struct Product {
    name: &'static str,
    /// In ticks; never 0.
    price: u64,
    decimals: u32,
}

impl Exchange {
    fn new(rng: StdRng) -> Self {
        let products = PRODUCTS.map(|(name, price, decimals)| Product { name, price, decimals });
        Self { rng, products, sequence: 29_187_000_000, tickers: 0 }
    }

    /// The next trade's ticker, about 230 bytes.
    fn ticker(&mut self) -> String {
        self.sequence += 1;
        self.tickers += 1;
        let Product { name, price, decimals } = self.trade();
        let (bid, ask) = (decimal(price.saturating_sub(1).max(1), decimals), decimal(price + 1, decimals));
        let price = decimal(price, decimals);
        let size = decimal(self.rng.random_range(1..200_000), 6);
        let (sequence, trade) = (self.sequence, self.tickers);
        let side = if self.rng.random() { "buy" } else { "sell" };
        let time = timestamp(SystemTime::now());
        let mut json = String::with_capacity(MESSAGE_BYTES);
        // Writing to a `String` cannot fail.
        let _ = write!(
            json,
            r#"{{"type":"ticker","sequence":{sequence},"product_id":"{name}","price":"{price}","best_bid":"{bid}","best_ask":"{ask}","side":"{side}","time":"{time}","trade_id":{trade},"last_size":"{size}"}}"#
        );
        json
    }

    fn heartbeat(&mut self) -> String {
        self.sequence += 1;
        let name = self.product().name;
        let (sequence, trade, time) = (self.sequence, self.tickers, timestamp(SystemTime::now()));
        format!(
            r#"{{"type":"heartbeat","sequence":{sequence},"last_trade_id":{trade},"product_id":"{name}","time":"{time}"}}"#
        )
    }

    /// Moves the price of some product, or leaves it as it was.
    fn trade(&mut self) -> Product {
        let repeat = self.rng.random_ratio(1, REPEATS);
        let up = self.rng.random();
        let part: u64 = self.rng.random_range(1..=STEP_PART);
        let product = self.product();
        if !repeat {
            let step = product.price / STEP_PART * part / STEP_PART + 1;
            // A price at its floor has only one way to go.
            let up = up || product.price <= step;
            product.price = if up { product.price.saturating_add(step) } else { product.price - step };
        }
        *product
    }

    fn product(&mut self) -> &mut Product {
        let nth = self.rng.random_range(0..self.products.len());
        let [first, others @ ..] = &mut self.products;
        nth.checked_sub(1).and_then(|nth| others.get_mut(nth)).unwrap_or(first)
    }
}

/// `ticks` as a decimal number.
fn decimal(ticks: u64, decimals: u32) -> String {
    let one = 10_u64.saturating_pow(decimals);
    format!("{}.{:0width$}", ticks / one, ticks % one, width = decimals as usize)
}

/// RFC 3339 in UTC, with microseconds.
fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (seconds, micros) = (since.as_secs(), since.subsec_micros());
    let (year, month, day) = date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

/// The date of a day counted from 1970-01-01, by `civil_from_days` of
/// <https://howardhinnant.github.io/date_algorithms.html>: years begin in March, so that leap days end them.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use futures_util::sink;
    use serde_json::Value;

    use super::*;
    use crate::feed::Sent;

    fn exchange() -> Exchange {
        Exchange::new(StdRng::seed_from_u64(7))
    }

    #[test]
    fn tickers_have_coinbases_shape() {
        let mut exchange = exchange();
        let mut last: BTreeMap<String, String> = BTreeMap::new();
        let (mut changed, mut repeated) = (0, 0);
        for nth in 1..=2_000_u64 {
            let text = exchange.ticker();
            assert!((180..=260).contains(&text.len()), "{text}");
            let ticker: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(ticker["type"], "ticker");
            assert_eq!(ticker["sequence"], 29_187_000_000 + nth);
            assert!(ticker["time"].as_str().unwrap().ends_with('Z'));
            let name = ticker["product_id"].as_str().unwrap();
            let price = ticker["price"].as_str().unwrap();
            let (_, first, decimals) = PRODUCTS.into_iter().find(|(product, ..)| *product == name).unwrap();
            assert_eq!(price.split_once('.').unwrap().1.len(), decimals as usize, "{price}");
            let ratio = price.parse::<f64>().unwrap() * 10_f64.powi(decimals as i32) / first as f64;
            assert!((0.5..2.0).contains(&ratio), "{name} wandered from {first} ticks to {price}");
            match last.insert(name.to_owned(), price.to_owned()) {
                Some(before) if before == price => repeated += 1,
                _ => changed += 1,
            }
        }
        assert_eq!(last.len(), PRODUCTS.len());
        assert!(repeated > 100 && changed > 1_500, "{repeated} repeated, {changed} changed");
    }

    #[test]
    fn prices_at_the_floor_rise() {
        let mut exchange = exchange();
        exchange.products.iter_mut().for_each(|product| product.price = 1);
        for _ in 0..10_000 {
            exchange.trade();
            assert!(exchange.products.iter().all(|product| product.price >= 1));
        }
    }

    #[test]
    fn decimals_and_times_are_written_in_full() {
        assert_eq!(decimal(4_321_055, 2), "43210.55");
        assert_eq!(decimal(7, 6), "0.000007");
        let at = |seconds, micros: u32| timestamp(UNIX_EPOCH + Duration::new(seconds, micros * 1000));
        assert_eq!(at(0, 0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(at(951_782_400, 5), "2000-02-29T00:00:00.000005Z");
        assert_eq!(at(1_618_677_810, 244_075), "2021-04-17T16:43:30.244075Z");
        assert_eq!(at(1_735_689_599, 999_999), "2024-12-31T23:59:59.999999Z");
    }

    /// The types of the messages sent in `seconds`.
    async fn played(rate: f64, seconds: u64) -> Vec<String> {
        let mut kinds = Vec::new();
        let sink = Box::pin(sink::unfold(&mut kinds, |kinds: &mut Vec<_>, message: Message| async move {
            let json: Value = serde_json::from_str(message.to_text().unwrap()).unwrap();
            kinds.push(json["type"].as_str().unwrap().to_owned());
            Ok(kinds)
        }));
        let sent = Sent::default();
        let mut out = Outgoing { sink, sent: &sent };
        tokio::time::timeout(Duration::from_secs(seconds), play(rate, &mut out)).await.unwrap_err();
        drop(out);
        assert_eq!(sent.get(), kinds.len() as u64);
        kinds
    }

    #[tokio::test(start_paused = true)]
    async fn tickers_come_at_the_rate_and_heartbeats_between() {
        let kinds = played(100.0, 10).await;
        let tickers = kinds.iter().filter(|kind| *kind == "ticker").count();
        assert!((990..=1_010).contains(&tickers), "{tickers}");
        assert_eq!(kinds.iter().collect::<BTreeSet<_>>().len(), 2);
        assert_eq!(kinds.len() - tickers, tickers / 50);
        // A rate of 0 is one message and then silence, not a busy loop.
        assert_eq!(played(0.0, 10).await.len(), 1);
    }
}
