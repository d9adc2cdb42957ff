//! The places where JavaScript runs, so that one test serves Node and a browser's page.

use std::fs;

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinSet,
};

use super::{
    browser::Browser,
    script::{Script, tools},
    skip::skipped,
    until,
};

/// A script that reads lines, each an expression as a JSON string, and answers each with its value.
const EVALUATE: &str = include_str!("../../clients/evaluate.mjs");

/// An empty page. Chromium lets only pages of this machine connect to it, and `about:blank` is not one.
const PAGE: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 15\r\nconnection: close\r\n\r\n<!DOCTYPE html>";

pub enum JavaScript {
    Node(Script),
    Browser {
        browser: Box<Browser>,
        /// Serves the page.
        _listening: JoinSet<()>,
    },
}

impl JavaScript {
    /// Starts Node, with the packages of `tests/clients` as `Centrifuge` and `WebSocket`.
    pub async fn node() -> Option<Self> {
        Script::node(EVALUATE, &[]).map(Self::Node)
    }

    /// Opens a page, with the build of `Centrifuge` for pages.
    pub async fn browser() -> Option<Self> {
        let mut browser = Box::new(Browser::start().await?);
        let library = tools().join("node_modules/centrifuge/dist/centrifuge.js");
        let Ok(library) = fs::read_to_string(library) else {
            return skipped("centrifuge, of what .ci/setup installs,");
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let mut listening = JoinSet::new();
        listening.spawn(async move {
            let mut answering = JoinSet::new();
            while let Ok((mut socket, _)) = listener.accept().await {
                answering.spawn(async move {
                    // The browser also opens connections that it does not use.
                    if let Ok(1..) = socket.read(&mut [0; 4096]).await {
                        let _ = socket.write_all(PAGE.as_bytes()).await;
                    }
                });
            }
        });
        browser.before_pages(&library).await;
        browser.open(&url).await;
        browser.sees("document.readyState === 'complete'").await;
        Some(Self::Browser { browser, _listening: listening })
    }

    /// Returns the value of an expression, awaited.
    pub async fn value(&mut self, expression: &str) -> Value {
        match self.evaluate(expression).await {
            Ok(value) => value,
            Err(error) => panic!("{expression}: {error}"),
        }
    }

    /// Waits until the expression is true.
    pub async fn sees(&mut self, expression: &str) {
        until(expression, async || match self.evaluate(expression).await {
            Ok(Value::Bool(true)) => Ok(()),
            Ok(other) => Err(other.to_string()),
            Err(error) => Err(error),
        })
        .await;
    }

    async fn evaluate(&mut self, expression: &str) -> Result<Value, String> {
        match self {
            Self::Browser { browser, .. } => browser.try_value(expression).await,
            Self::Node(script) => {
                script.tell(&json!(expression).to_string());
                let mut answer = script.said_json().await;
                match answer.get("error") {
                    None => Ok(answer["value"].take()),
                    Some(error) => Err(error.to_string()),
                }
            }
        }
    }
}
