//! Components of a shape that no toolchain makes: refused before they are compiled, or stopped at their first call.

use support::{
    appended::{with_component, with_module},
    bombs::{ON_MESSAGE, WAIT, bomb},
    client::Client,
    process::{run, shown},
    relay::Relay,
    tenant::Folder,
};
use tokio_tungstenite::tungstenite::Message;

/// Core modules, each with far more of something than a component may have, and how often they are instantiated.
fn modules() -> Vec<(&'static str, String, u32)> {
    let many = |part: &str, times: usize| part.repeat(times);
    let exports = || (0..60_000).map(|nth| format!("(export \"{nth}\" (func 0))")).collect::<String>();
    vec![
        ("globals", many("(global i32 (i32.const 0))", 999_999), 58),
        ("globals", many("(global i32 (i32.const 0))", 1_000), 11),
        ("element segments", format!("(func) {}", many("(elem func 0)", 100_000)), 58),
        ("element segments", format!("(func) {}", many("(elem declare func 0)", 1_001)), 1),
        ("bytes of element segments", format!("(func) (elem func {})", many("0 ", 1_100_000)), 1),
        ("bytes of types", format!("(rec {})", many("(type (func))", 1_000_000)), 1),
        ("bytes of types", many("(type (func (param i32)))", 200_000), 1),
        ("memories", many("(memory 0)", 60), 1),
        ("memories", many("(memory 0)", 1), 17),
        ("tables", many("(table 0 funcref)", 65), 1),
        ("instances of core modules", String::new(), 70),
        ("functions", format!("(type (func)) {}", many("(func)", 210_000)), 1),
        ("data segments", many("(data \"\")", 100_001), 1),
        ("exports", format!("(func) {}", exports()), 1),
    ]
}

/// Components that have too much of something in components within them.
fn components() -> Vec<(&'static str, String)> {
    let nest =
        |inner: String, times: usize| format!("(component $c {inner}) {}", "(instance (instantiate $c))".repeat(times));
    let module =
        "(core module $m (global i32 (i32.const 0))) ".to_owned() + &"(core instance (instantiate $m))".repeat(8);
    let outer = "(core module $m (memory 1)) (component $c (alias outer 1 $m (core module $n)) \
         (core instance (instantiate $n))) "
        .to_owned();
    let exported = "(component $c (core module $m (memory 1)) (export \"m\" (core module $m)))
         (instance $i (instantiate $c)) (alias export $i \"m\" (core module $n))"
        .to_owned();
    let taken = "(component $c (component $d) (export \"d\" (component $d)))
         (instance $i (instantiate $c)) (alias export $i \"d\" (component $e))"
        .to_owned();
    vec![
        // 8 in each of 8 in each of 8.
        ("instances of core modules", nest(nest(module, 8), 8)),
        ("memories", outer + &"(instance (instantiate $c))".repeat(20)),
        ("core modules", "(core module)".repeat(300)),
        ("components", "(component)".repeat(300)),
        ("bytes of types", "(type (tuple u8 u8 u8 u8 u8 u8 u8 u8))".repeat(60_000)),
        ("imports a core module", "(component (import \"m\" (core module)))".to_owned()),
        ("takes a core module out of an instance", exported.clone() + &"(core instance (instantiate $n))".repeat(60)),
        ("takes a component out of an instance", taken),
        ("imports a component", "(component (import \"c\" (component)))".to_owned()),
    ]
}

#[tokio::test]
async fn each_is_refused_by_what_it_has_too_much_of() {
    let code = bomb(&[], "");
    let modules = modules();
    let modules = modules.iter().map(|(part, text, instances)| (*part, with_module(&code, text, *instances)));
    let components = components();
    let components = components.iter().map(|(part, text)| (*part, with_component(&code, text)));
    let folder = Folder::new("");
    for (part, component) in modules.chain(components) {
        folder.write("component.wasm", component);
        let file = folder.path("component.wasm");
        let output = run(&["component".as_ref(), "check".as_ref(), file.as_os_str()]).await;
        let said = shown(&output);
        assert_eq!(output.status.code(), Some(2), "{part}: {said}");
        let limit = part.starts_with("imports") || part.starts_with("takes") || said.contains("the most accepted is");
        assert!(limit && said.contains(part), "{part}: {said}");
    }
}

/// Streams, futures and resources of its own are handles, and count as such.
#[tokio::test]
async fn handles_of_the_component_model_are_limited() {
    let starts = |kind: &str, new: &str, parameter: &str, result: &str| {
        format!(
            "(type $t {kind}) (core func $new (canon {new} $t))
            (core module $m
                (import \"\" \"new\" (func $new {parameter} (result {result})))
                (func $start (local $left i32)
                    (local.set $left (i32.const 90000))
                    (loop $on
                        {} (drop (call $new))
                        (br_if $on (local.tee $left (i32.sub (local.get $left) (i32.const 1))))))
                (start $start))
            (core instance (instantiate $m (with \"\" (instance (export \"new\" (func $new))))))",
            if parameter.is_empty() { "" } else { "(i32.const 0)" },
        )
    };
    for start in [
        starts("(stream u8)", "stream.new", "", "i64"),
        starts("(future u8)", "future.new", "", "i64"),
        starts("(resource (rep i32))", "resource.new", "(param i32)", "i32"),
    ] {
        let folder = Folder::new("");
        folder.write("code.wasm", with_component(&bomb(&[], ""), &start));
        let code = folder.path("code.wasm");
        let relay = Relay::serve(folder.handled("t", &code, "")).await;
        assert!(Client::try_connect(&relay.url("/t")).await.is_err(), "{start}");
        relay.metric_is("edge_relay_limit_refusals_total", &[("tenant", "t"), ("limit", "handles")], 1.0).await;
    }
}

/// Modules with many of each part, within what a component may have, and how often they are instantiated.
fn allowed() -> Vec<(&'static str, String, u32)> {
    let many = |part: &str, times: usize| part.repeat(times);
    let exports = (0..20_000).map(|nth| format!("(export \"{nth:0>100}\" (func 0))")).collect::<String>();
    vec![
        ("globals", many("(global i64 (i64.const 0))", 150), 58),
        ("functions", format!("(type (func)) {} (table 1000 funcref)", many("(func (type 0))", 20_000)), 2),
        ("exports", format!("(func) {exports}"), 1),
        ("types", many("(type (func (param i32 i64) (result i32)))", 30_000), 1),
        ("one group of types", format!("(rec {})", many("(type (func))", 100_000)), 1),
        ("element segments", format!("(func) {}", many("(elem func 0)", 15)), 58),
        ("entries of element segments", format!("(func) (elem func {})", many("0 ", 50_000)), 2),
        ("data segments", many("(data \"x\")", 40_000), 2),
        ("instances", "(memory 1)".into(), 10),
        ("tables", many("(table 1000 funcref)", 30), 2),
    ]
}

/// What a component and its instances take of the host's memory is never more than what its tenant is charged.
#[tokio::test]
async fn no_shape_takes_more_than_is_charged() {
    const INSTANCES: usize = 6;
    const CODE_MAPPINGS: usize = 20;
    /// What the allocator keeps, and the pages that others touch meanwhile.
    const SLACK: f64 = 3.0 * (1 << 20) as f64;
    let folder = Folder::new("");
    let code = bomb(&[ON_MESSAGE], WAIT);
    folder.write("plain.wasm", &code);
    let plain = folder.path("plain.wasm");
    let limits = "[limits]\nclient-call = \"60s\"\n";
    let relay = Relay::serve(folder.handled("plain", &plain, limits)).await;
    let mut clients = Vec::new();
    let mut busy = async |tenant: &str| {
        for _ in 0..INSTANCES {
            let mut client = relay.client(&format!("/{tenant}")).await;
            client.send(Message::text("go")).await;
            clients.push(client);
        }
        relay.metric_is("edge_relay_guest_instances", &[("tenant", tenant)], INSTANCES as f64).await;
    };
    // The first component takes more: the engine is made with it.
    busy("plain").await;
    let (modules, mut under) = (allowed(), Vec::new());
    for (nth, (what, module, times)) in modules.iter().enumerate() {
        let (name, before, mappings) = (format!("t{nth}"), relay.resident_memory(), relay.mappings());
        let file = format!("tenants/{name}/client.wasm");
        relay.folder().write(&file, with_module(&code, module, *times));
        let manifest = format!("name = \"{name}\"\n[components]\nclient = \"client.wasm\"\n{limits}");
        relay.folder().write(&format!("tenants/{name}/tenant.toml"), manifest);
        relay.signal(rustix::process::Signal::HUP);
        relay.metric_is("edge_relay_tenants", &[], nth as f64 + 2.0).await;
        busy(&name).await;
        let (grown, label) = (relay.resident_memory().saturating_sub(before) as f64, ("tenant", name.as_str()));
        let charged = relay.metric("edge_relay_tenant_memory_bytes", &[label]).await;
        let code = relay.metric("edge_relay_tenant_memory_bytes", &[label, ("part", "code")]).await;
        let instances = relay.metric("edge_relay_tenant_memory_bytes", &[label, ("part", "instances")]).await;
        let kib = [grown, charged, code, instances].map(|bytes| bytes as u64 >> 10);
        eprintln!(
            "{what}: {} KiB resident, {} KiB charged: {} of code, {} of instances",
            kib[0], kib[1], kib[2], kib[3]
        );
        if grown > charged + SLACK {
            under.push(what);
        }
        let (grown, memories) =
            (relay.mappings().saturating_sub(mappings), 1 + module.matches("(memory").count() * *times as usize);
        // As `component/shape` has it, and the mappings of the code.
        assert!(grown <= CODE_MAPPINGS + INSTANCES * (4 + 5 * memories), "{what}: {grown} mappings");
    }
    assert!(under.is_empty(), "more is resident than charged for {under:?}");
}

/// The version before may run on for long. Its code is the same, and is there once.
#[tokio::test]
async fn a_new_manifest_for_the_same_code_is_charged_nothing() {
    let folder = Folder::new("");
    folder.write("code.wasm", bomb(&[ON_MESSAGE], WAIT));
    let code = folder.path("code.wasm");
    let limits = "[limits]\nclient-call = \"60s\"\n";
    let relay = Relay::serve(folder.handled("t", &code, limits)).await;
    let charged = async || {
        let part = [("tenant", "t"), ("part", "code")];
        relay.metric("edge_relay_tenant_memory_bytes", &part).await
    };
    let before = charged().await;
    let mut client = relay.client("/t").await;
    client.send(Message::text("go")).await;
    relay.metric_is("edge_relay_guest_instances", &[("tenant", "t")], 1.0).await;
    relay.folder().append("tenants/t/tenant.toml", "log-lines-per-second = 10\n");
    relay.signal(rustix::process::Signal::HUP);
    let applied = [("tenant", "t"), ("outcome", "applied")];
    relay.metric_is("edge_relay_tenant_swaps_total", &applied, 1.0).await;
    assert!(before > 0.0);
    assert_eq!(charged().await, before);
}
