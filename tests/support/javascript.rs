//! Where JavaScript runs: a test written once for Node and for a browser's page.

use std::fs;

use serde_json::{Value, json};

use super::{
    browser::Browser,
    script::{Script, tools},
    until,
};

/// Answers each line, an expression as a JSON string, with its value.
const EVALUATE: &str = include_str!("../clients/evaluate.mjs");

pub enum JavaScript {
    Node(Script),
    Browser(Box<Browser>),
}

impl JavaScript {
    /// Node, where the packages of `tests/clients` are `Centrifuge` and `WebSocket`.
    pub async fn node() -> Option<Self> {
        Script::node(EVALUATE, &[]).map(Self::Node)
    }

    /// A page at this address, with the `Centrifuge` that is made for pages.
    pub async fn browser(url: &str) -> Option<Self> {
        let mut browser = Browser::start().await?;
        let library = tools().join("node_modules/centrifuge/dist/centrifuge.js");
        let Ok(library) = fs::read_to_string(&library) else { panic!("{} is not there", library.display()) };
        browser.before_pages(&library).await;
        browser.open(url).await;
        let mut page = Self::Browser(Box::new(browser));
        page.sees("document.readyState === 'complete'").await;
        Some(page)
    }

    /// The value of an expression, awaited.
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
            Self::Browser(browser) => browser.try_value(expression).await,
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
