//! Hosts that a manifest lists: `"api.example.com"`, `"*.example.com:8443"`, `"10.1.2.3"`, `"10.1.0.0/16"`.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::{
    document::{Value, quote},
    grants::{Destination, Port, overlaps_special},
    names::is_host,
    secrets::Secrets,
};

pub(super) fn destination(value: &Value<'_>, secrets: &Secrets<'_>) -> Option<(Destination, Port)> {
    let text = value.str()?;
    let Some((destination, port)) = parse(text) else {
        let example =
            "\"api.example.com\", \"*.example.com:8443\", \"10.1.2.3:8000\", \"[fd00::1]:8000\" or \"10.1.0.0/16\"";
        value
            .problem(format!("{} is no host, address or network; write for example {example}, no scheme", quote(text)));
        return None;
    };
    if let Destination::Network(network) = &destination
        && overlaps_special(network)
        && !secrets.allowed.has_network(secrets.tenant?, network)
    {
        value.problem(format!(
            "{} is not on the public Internet; have the operator list it in relay.toml's [grants] networks",
            quote(text)
        ));
        return None;
    }
    Some((destination, port))
}

fn parse(text: &str) -> Option<(Destination, Port)> {
    let network = |network: IpNet| Destination::Network(network.trunc());
    let address = |address: IpAddr| network(address.to_canonical().into());
    if let Ok(listed) = text.parse::<IpNet>() {
        return Some((network(listed), None));
    }
    if let Ok(listed) = text.parse::<IpAddr>() {
        return Some((address(listed), None));
    }
    if let Ok(listed) = text.parse::<SocketAddr>() {
        return (listed.port() != 0).then(|| (address(listed.ip()), Some(listed.port())));
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => {
            (host, Some(port.parse::<u16>().ok().filter(|port| *port != 0)?))
        }
        Some(_) => return None,
        None => (text, None),
    };
    let (name, below) = match host.strip_prefix("*.") {
        Some(name) => (name, true),
        None => (host, false),
    };
    let name = name.to_ascii_lowercase();
    // A name with a number at its end is an address in an older spelling (URL Standard, "ends in a number").
    let is_number = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit()) || label.starts_with("0x");
    if !is_host(&name) || name.rsplit('.').next().is_none_or(is_number) {
        return None;
    }
    Some((if below { Destination::Below(format!(".{name}")) } else { Destination::Name(name) }, port))
}
