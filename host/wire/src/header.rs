//! Reading HTTP headers.

use http::{HeaderMap, HeaderName};

/// Whether a header that lists tokens has this one, in upper or lower case.
pub fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|listed| listed.trim().eq_ignore_ascii_case(token))
}
