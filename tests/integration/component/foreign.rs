//! An API that was not made by this repository's tools: JavaScript, built by `jco componentize`.

use serde_json::{Value, json};
use support::{
    guests,
    relay::{Relay, http, status},
    tenant::Folder,
    within,
};

#[tokio::test]
async fn an_api_of_javascript_runs_unchanged() {
    let Some(component) = guests::foreign() else { return };
    let folder = Folder::new("");
    let api = "api = { file = \"api.wasm\", isolation = \"call\" }";
    folder.write("tenants/t/tenant.toml", format!("name = \"t\"\n[components]\n{api}\n"));
    folder.copy(&component, "tenants/t/api.wasm");
    let relay = Relay::serve(folder).await;
    let request = |request: String| within("an answer", http(relay.api(), request));
    let get = |path: &str| format!("GET {path} HTTP/1.0\r\nHost: a\r\n\r\n");
    for _ in 0..3 {
        let (head, body) = request(get("/t/hello")).await;
        assert!(status(&head) == 200 && head.contains("x-made-with: jco"), "{head}");
        assert_eq!(body, "Hello from JavaScript\n");
    }
    let (_, body) = request(get("/t/request?a=b")).await;
    let seen: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(seen, json!({ "path": "/request?a=b", "x-forwarded-for": "127.0.0.1" }));
    let text = "back again ".repeat(20_000);
    let head = format!("POST /t/echo HTTP/1.0\r\nHost: a\r\nContent-Length: {}\r\n\r\n", text.len());
    let (head, body) = request(head + &text).await;
    assert!(status(&head) == 200 && body == text, "{head}, {} bytes of {}", body.len(), text.len());
    assert_eq!(request(get("/t/nowhere")).await.1, "Nothing here\n");
}
