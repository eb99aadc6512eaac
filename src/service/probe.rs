//! Asking a service whether it is well: one question over the network, one answer in words.

use std::time::Duration;

use crate::sys::error::{Error, Result};
use crate::sys::escape::visible_bounded;
use crate::sys::http::{self, Request};
use crate::sys::tcp;

/// How much of a body is told where it is not what was expected.
const SHOWN: usize = 120;
/// How much of a body is looked through.
const READ: u64 = 1024 * 1024;

/// What a web server is asked, and what it should say.
#[derive(Debug, Clone, Copy)]
pub struct Page<'a> {
    /// The path with its query.
    pub path: &'a str,
    /// The `Host` header, if not the address.
    pub host: Option<&'a str>,
    /// The expected statuses.
    pub expect: &'a [u16],
    /// A text that the body must hold.
    pub body: Option<&'a str>,
}

/// Asks a web server of this machine for a page; the answer in words if it is good.
///
/// # Errors
/// Why it is not.
pub fn page(port: u16, page: &Page<'_>, timeout: Duration) -> Result<String> {
    let url = format!("http://127.0.0.1:{port}{}", page.path);
    let headers: Vec<(&str, &str)> = page.host.map(|host| ("Host", host)).into_iter().collect();
    let request = Request { headers: &headers, limit: READ, ..Request::get(&url, timeout) };
    let answer = http::ask(&request)?;
    let shown = visible_bounded(answer.body.trim_ascii(), SHOWN);
    if !page.expect.contains(&answer.status) {
        let expected: Vec<String> = page.expect.iter().map(u16::to_string).collect();
        let expected = expected.join(" or ");
        return Err(Error::failed(format!("status {} instead of {expected}: {shown}", answer.status)));
    }
    match page.body {
        Some(text) if memchr::memmem::find(&answer.body, text.as_bytes()).is_none() => {
            let wanted = visible_bounded(text.as_bytes(), SHOWN);
            Err(Error::failed(format!("status {}, but `{wanted}` is not in the body: {shown}", answer.status)))
        }
        _ => Ok(format!("status {}", answer.status)),
    }
}

/// Asks whether somebody accepts connections at a port of this machine.
///
/// # Errors
/// Why not.
pub fn port(port: u16, timeout: Duration) -> Result<String> {
    tcp::knock(port, timeout).map(|()| "accepts connections".to_string())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    /// A server that gives this answer to one request, and what it was asked.
    fn serve(answer: &'static str) -> (u16, std::thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            let mut buffer = [0; 1024];
            while !request.ends_with(b"\r\n\r\n") {
                let n = stream.read(&mut buffer).unwrap();
                request.extend_from_slice(&buffer[..n]);
            }
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8(request).unwrap()
        });
        (port, asked)
    }

    const PAGE: Page<'_> = Page { path: "/healthz?deep=1", host: None, expect: &[200], body: None };
    const SECOND: Duration = Duration::from_secs(5);

    #[test]
    fn a_page_is_good_by_its_status_and_its_text() {
        let good = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nall well";
        let (at, asked) = serve(good);
        let asks = Page { host: Some("shop.example.org"), body: Some("well"), ..PAGE };
        assert_eq!(page(at, &asks, SECOND).unwrap(), "status 200");
        let request = asked.join().unwrap();
        assert!(request.starts_with("GET /healthz?deep=1 HTTP/1.1\r\n"), "{request}");
        assert_eq!(request.to_ascii_lowercase().matches("host: shop.example.org\r\n").count(), 1, "{request}");
        assert_eq!(request.to_ascii_lowercase().matches("host:").count(), 1, "{request}");
        let (at, _) = serve(good);
        let error = page(at, &Page { body: Some("ready"), ..PAGE }, SECOND).unwrap_err();
        assert_eq!(error.message(), "status 200, but `ready` is not in the body: all well");
    }

    #[test]
    fn another_status_and_a_port_where_nobody_listens_are_told() {
        let (at, _) = serve("HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 4\r\n\r\ngone");
        let error = page(at, &Page { expect: &[200, 204], ..PAGE }, SECOND).unwrap_err();
        assert_eq!(error.message(), "status 302 instead of 200 or 204: gone");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap().port();
        assert_eq!(port(at, SECOND).unwrap(), "accepts connections");
        drop(listener);
        assert!(port(at, SECOND).unwrap_err().one_line().contains("refused"));
        assert!(page(at, &PAGE, SECOND).unwrap_err().one_line().contains("refused"));
    }
}
