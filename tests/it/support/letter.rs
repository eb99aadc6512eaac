//! A mail as its reader sees it, decoded by another program than the one that wrote it.

use std::io::Write;
use std::process::{Command, Stdio};

use serde::Deserialize;

/// A decoded mail.
#[derive(Debug, Clone, Deserialize)]
pub struct Mail {
    /// As it came.
    #[serde(default)]
    pub raw: String,
    /// Header `Subject`.
    pub subject: String,
    /// Header `From`.
    pub from: String,
    /// Header `To`.
    pub to: String,
    /// Every header, `Name: value`.
    pub headers: Vec<String>,
    /// The plain text.
    pub text: String,
    /// The HTML, empty if there is none.
    pub html: String,
}

const READER: &str = r#"
import email, email.policy, json, sys
m = email.message_from_bytes(sys.stdin.buffer.read(), policy=email.policy.default)
body, html = m.get_body(("plain",)), m.get_body(("html",))
print(json.dumps({"subject": m["subject"] or "", "from": m["from"] or "", "to": m["to"] or "",
                  "headers": [f"{k}: {v}" for k, v in m.items()],
                  "text": body.get_content().replace("\r\n", "\n") if body else "",
                  "html": html.get_content().replace("\r\n", "\n") if html else ""}))
"#;

impl Mail {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let of = |header: &'_ String| header.strip_prefix(name).is_some_and(|rest| rest.starts_with(": "));
        self.headers.iter().find(|header| of(header)).map(|header| &header[name.len() + 2..])
    }

    /// Decodes a mail.
    #[track_caller]
    pub fn read(raw: String) -> Self {
        let mut reader = Command::new("/usr/bin/python3")
            .args(["-I", "-c", READER])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        reader.stdin.take().unwrap().write_all(raw.as_bytes()).unwrap();
        let output = reader.wait_with_output().unwrap();
        let mut mail: Self = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("no mail: {e}\n{raw}"));
        mail.raw = raw;
        mail
    }
}
