//! The messages: 200 bytes of JSON in the shape of an exchange's tickers.
//!
//! A ticker's price is `NUMBER.TIME`: the message's number, counted from 0, and the time when it was sent, in
//! nanoseconds of `clock`. So the price has everything that clients check. The sample tenant's filter treats a price as
//! text, so it is still there in the filter's `{"product":"BTC-USD","price":"…"}`.

use std::io::Write;

/// Their names have the same length, so that the stamp is at the same place in every message.
const PRODUCTS: [&str; 4] = ["BTC-USD", "ETH-USD", "SOL-USD", "LTC-USD"];
const BEFORE_STAMP: &[u8] = br#""price":""#;
const NUMBER_DIGITS: usize = 8;
const TIME_DIGITS: usize = 20;
pub const STAMP_BYTES: usize = NUMBER_DIGITS + 1 + TIME_DIGITS;

pub type Stamp = [u8; STAMP_BYTES];

/// Appends a message.
pub fn write(number: u32, sent: u64, out: &mut Vec<u8>) {
    let product = PRODUCTS.iter().cycle().nth(number as usize % PRODUCTS.len()).copied().unwrap_or_default();
    // Writing to a `Vec` cannot fail.
    let _ = write!(
        out,
        r#"{{"type":"ticker","sequence":291{number:08},"product_id":"{product}","price":"{number:08}.{sent:020}","best_bid":"43210.54","best_ask":"43210.56","side":"buy","trade_id":4{number:08},"last_size":"0.12"}}"#
    );
}

/// Appends a stamp alone.
pub fn write_stamp(number: u32, sent: u64, out: &mut Vec<u8>) {
    let _ = write!(out, "{number:08}.{sent:020}");
}

/// Where the stamp is in a payload.
pub fn find_stamp(payload: &[u8]) -> Option<usize> {
    let at = payload.windows(BEFORE_STAMP.len()).position(|window| window == BEFORE_STAMP)? + BEFORE_STAMP.len();
    (payload.len() >= at + STAMP_BYTES).then_some(at)
}

/// A stamp's number. A client reads it from every message.
pub fn number(stamp: &Stamp) -> Option<u32> {
    let (digits, _) = stamp.split_first_chunk::<NUMBER_DIGITS>()?;
    u32::try_from(decimal(digits)?).ok()
}

/// A stamp's time.
pub fn sent(stamp: &Stamp) -> Option<u64> {
    let (_, digits) = stamp.split_last_chunk::<TIME_DIGITS>()?;
    decimal(digits)
}

fn decimal(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0_u64, |number, digit| {
        let digit = digit.wrapping_sub(b'0');
        (digit < 10).then(|| number.wrapping_mul(10).wrapping_add(digit.into()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(payload: &[u8]) -> &Stamp {
        payload[find_stamp(payload).unwrap()..].first_chunk().unwrap()
    }

    /// Bytes of one message.
    const BYTES: usize = 200;

    #[test]
    fn a_message_is_as_long_as_said_and_carries_its_stamp() {
        for (nth, sent_at) in [(0, 0), (7, 123_456_789_012_345), (99_999_999, u64::MAX)] {
            let mut payload = Vec::new();
            write(nth, sent_at, &mut payload);
            assert_eq!(payload.len(), BYTES, "{}", String::from_utf8_lossy(&payload));
            assert_eq!((number(stamp(&payload)), sent(stamp(&payload))), (Some(nth), Some(sent_at)));
        }
    }

    #[test]
    fn what_the_filter_makes_of_it_carries_it_too() {
        let payload = br#"{"product":"BTC-USD","price":"00000012.00000000000000000034"}"#;
        assert_eq!((number(stamp(payload)), sent(stamp(payload))), (Some(12), Some(34)));
        assert_eq!(find_stamp(br#"{"price":"0000001"}"#), None);
        assert_eq!(number(b"0000x012.00000000000000000034"), None);
    }
}
