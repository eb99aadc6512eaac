//! An application whose services are declared: a web server with a check, and a queue that is left running.

use super::WorkTree;

const SERVER: &str = r#"import http.server, os, sys
version = open("version").read().strip()
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        sick = self.path == "/healthz" and os.path.exists("sick")
        who = os.environ["MC_SERVICE"] + "@" + os.environ["MC_INSTANCE"]
        body = "sick" if sick else f"{version} {who} {os.getuid()} {os.environ['MC_DEPLOYMENT']}"
        self.send_response(500 if sick else 200)
        self.end_headers()
        self.wfile.write(body.encode())
    def log_message(self, *what):
        pass
print("version", version, "knows", os.environ.get("TOKEN"), flush=True)
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Page).serve_forever()
"#;

/// The recipe with these further services; the web server's instances listen at `port` and those after it.
pub fn recipe(port: u16, count: u16, more: &str) -> String {
    format!(
        "env: {{PYTHONDONTWRITEBYTECODE: \"1\"}}
services:
  web:
    run: [python3, server.py]
    port: {port}
    count: {count}
    check: {{http: /healthz, within: 10s}}
{more}"
    )
}

/// A service that works in `data`, notes each of its starts, and is left running.
pub const QUEUE: &str = "  queue:
    run: 'echo $$ >> $MC_DATA/queue.starts; exec sleep 1000000'
    dir: data
    unchanged: leave
";

impl WorkTree<'_> {
    /// Commits a version of the application.
    #[track_caller]
    pub fn commit_services(&self, version: &str, (port, count): (u16, u16), more: &str) -> String {
        let recipe = recipe(port, count, more);
        let files = [("mc_project.yaml", recipe.as_str()), ("server.py", SERVER), ("version", version)];
        self.commit(&format!("version {version}"), &files)
    }
}
