//! Components of a shape that no toolchain makes: refused before they are compiled, or stopped at their first call.

use support::{
    appended::{with_component, with_module},
    bombs::bomb,
    client::Client,
    process::{run, shown},
    relay::Relay,
    tenant::Folder,
};

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
    vec![
        // 8 in each of 8 in each of 8.
        ("instances of core modules", nest(nest(module, 8), 8)),
        ("memories", outer + &"(instance (instantiate $c))".repeat(20)),
        ("core modules", "(core module)".repeat(300)),
        ("components", "(component)".repeat(300)),
        ("bytes of types", "(type (tuple u8 u8 u8 u8 u8 u8 u8 u8))".repeat(60_000)),
        ("imports a core module", "(component (import \"m\" (core module)))".to_owned()),
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
        let limit = part.starts_with("imports") || said.contains("the most accepted is");
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
