//! The door to HTTP servers: one request, one answer, within a deadline.
//!
//! Nothing is done behind the caller's back: a redirection is an answer like any other and is not followed, no proxy of
//! the environment is used, nothing is sent twice, and each request has a connection of its own. A server that sends
//! slowly, for ever, or too much ends in an error.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use ureq::http;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use super::error::{Context, Error, Result};
use super::escape;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// GET: without a body.
    Get,
    /// POST: with one.
    Post,
}

/// A request.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// What is asked.
    pub method: Method,
    /// Where: `http://…` or `https://…`.
    pub url: &'a str,
    /// Headers besides the usual ones; a name or value that could begin a header of its own is refused.
    pub headers: &'a [(&'a str, &'a str)],
    /// The body; not sent with GET.
    pub body: &'a [u8],
    /// How long everything together may take, the look-up of the name and the answer's body included.
    pub timeout: Duration,
    /// How many bytes of the answer's body are read; what follows is left.
    pub limit: u64,
    /// Certificates (PEM) of authorities that are trusted beside the system's.
    pub authorities: &'a [u8],
}

impl<'a> Request<'a> {
    /// A GET request with a deadline, reading 64 KiB at most.
    #[must_use]
    pub fn get(url: &'a str, timeout: Duration) -> Self {
        Self { method: Method::Get, url, headers: &[], body: &[], timeout, limit: 64 * 1024, authorities: &[] }
    }
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status, whatever it is.
    pub status: u16,
    /// The beginning of the body.
    pub body: Vec<u8>,
}

/// Sends a request and reads the answer.
///
/// # Errors
/// If no answer came within the time: the message says why, and names the host alone, because the rest of a URL may be a
/// secret. A bad status is no error.
pub fn ask(request: &Request<'_>) -> Result<Answer> {
    let uri: http::Uri = request.url.parse().map_err(|_| Error::invalid("this is no URL"))?;
    let scheme = uri.scheme_str().unwrap_or("");
    if !matches!(scheme, "http" | "https") || uri.host().is_none_or(str::is_empty) {
        return Err(Error::invalid("this is no URL of the form http://HOST/PATH or https://HOST/PATH"));
    }
    let host = uri.authority().map_or("", |authority| authority.as_str().rsplit('@').next().unwrap_or(""));
    let host = escape::visible_bounded(host.as_bytes(), 260);
    let agent = agent(scheme == "https", request)?;
    let method = if request.method == Method::Get { http::Method::GET } else { http::Method::POST };
    let mut builder = http::Request::builder().method(method).uri(&uri);
    for (name, value) in request.headers {
        builder = builder.header(*name, *value);
    }
    let bad = || Error::invalid(format!("cannot write the request to {host}"));
    let failed = |error: ureq::Error| Error::failed(format!("{host} did not answer: {}", why(&error)));
    let sent = match request.method {
        Method::Get => agent.run(builder.body(()).map_err(|error| bad().because(error))?),
        Method::Post => agent.run(builder.body(request.body).map_err(|error| bad().because(error))?),
    };
    let mut response = sent.map_err(failed)?;
    let status = response.status().as_u16();
    let body = read(&mut response, request.limit)
        .map_err(|error| Error::failed(format!("{host} did not finish its answer: {}", io_why(&error))))?;
    Ok(Answer { status, body })
}

fn agent(is_https: bool, request: &Request<'_>) -> Result<ureq::Agent> {
    let mut config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .proxy(None)
        .max_idle_connections(0)
        .max_response_header_size(32 * 1024)
        .timeout_global(Some(request.timeout))
        .user_agent(concat!("mc_project/", env!("CARGO_PKG_VERSION")));
    if is_https {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let roots = RootCerts::Specific(Arc::new(authorities(request.authorities)?));
        let tls = TlsConfig::builder().unversioned_rustls_crypto_provider(provider).root_certs(roots);
        config = config.tls_config(tls.build());
    }
    Ok(config.build().new_agent())
}

/// The system's authorities and these. One of the system's that cannot be read is passed over.
fn authorities(more: &[u8]) -> Result<Vec<Certificate<'static>>> {
    let mut all: Vec<Certificate<'static>> = Vec::new();
    for der in rustls_native_certs::load_native_certs().certs {
        all.push(Certificate::from_der(&der).to_owned());
    }
    for der in CertificateDer::pem_slice_iter(more) {
        let der = der.context(|| "cannot understand the certificate of an authority".to_string())?;
        all.push(Certificate::from_der(&der).to_owned());
    }
    Ok(all)
}

fn read(response: &mut http::Response<ureq::Body>, limit: u64) -> std::io::Result<Vec<u8>> {
    let mut body = Vec::new();
    let mut reader = std::io::Read::take(response.body_mut().as_reader(), limit);
    std::io::Read::read_to_end(&mut reader, &mut body)?;
    Ok(body)
}

fn why(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Timeout(_) => "not in time".to_string(),
        ureq::Error::HostNotFound => "there is no such host".to_string(),
        ureq::Error::Io(error) => io_why(error),
        other => escape::visible_bounded(other.to_string().as_bytes(), 300),
    }
}

fn io_why(error: &std::io::Error) -> String {
    // The library wraps its own errors; a deadline is told in our words wherever it hits.
    match error.get_ref().and_then(|inner| inner.downcast_ref::<ureq::Error>()) {
        Some(ureq::Error::Timeout(_)) => "not in time".to_string(),
        _ => escape::visible_bounded(error.to_string().as_bytes(), 300),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::Instant;

    use super::*;
    use crate::sys::error::Kind;

    /// A server for one connection that reads the request to its end, then does this; gives back what was asked.
    fn server(answer: impl FnOnce(&mut TcpStream) + Send + 'static) -> (String, std::thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/path?q=1", listener.local_addr().unwrap());
        let serve = move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = Vec::new();
            let mut byte = [0];
            let is_whole = |asked: &[u8]| {
                let text = String::from_utf8_lossy(asked).to_lowercase();
                let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
                body.len() >= length.unwrap_or(0)
            };
            while !is_whole(&asked) && stream.read(&mut byte).unwrap() == 1 {
                asked.push(byte[0]);
            }
            answer(&mut stream);
            String::from_utf8(asked).unwrap()
        };
        (url, std::thread::spawn(serve))
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_get_and_a_post_say_what_they_should_and_any_status_is_an_answer() {
        let (url, asked) = server(|s| s.write_all(b"HTTP/1.1 503 No\r\nContent-Length: 5\r\n\r\nsorry").unwrap());
        let answer = ask(&Request::get(&url, 5 * SECOND)).unwrap();
        assert_eq!(answer, Answer { status: 503, body: b"sorry".to_vec() });
        let asked = asked.join().unwrap();
        assert!(
            asked.starts_with("GET /path?q=1 HTTP/1.1\r\n") && asked.contains("user-agent: mc_project/"),
            "{asked}"
        );

        let (url, asked) = server(|s| s.write_all(b"HTTP/1.1 204 Ok\r\n\r\n").unwrap());
        let headers = [("content-type", "application/json"), ("x-sign", "a=b")];
        let request =
            Request { method: Method::Post, headers: &headers, body: b"{}", ..Request::get(&url, 5 * SECOND) };
        assert_eq!(ask(&request).unwrap().status, 204);
        let asked = asked.join().unwrap();
        assert!(asked.starts_with("POST /path?q=1 ") && asked.ends_with("\r\n\r\n{}"), "{asked}");
        assert!(asked.contains("content-length: 2\r\n") && asked.contains("x-sign: a=b\r\n"), "{asked}");
    }

    #[test]
    fn a_redirection_is_not_followed() {
        let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
        elsewhere.set_nonblocking(true).unwrap();
        let to = format!(
            "HTTP/1.1 302 Go\r\nLocation: http://{}/\r\nContent-Length: 0\r\n\r\n",
            elsewhere.local_addr().unwrap()
        );
        let (url, _asked) = server(move |s| s.write_all(to.as_bytes()).unwrap());
        assert_eq!(ask(&Request::get(&url, 5 * SECOND)).unwrap().status, 302);
        assert!(elsewhere.accept().is_err(), "nobody came");
    }

    #[test]
    fn no_header_can_begin_another_and_no_other_scheme_is_taken() {
        let headers = [("x-a", "b\r\nx-evil: 1")];
        let request = Request { headers: &headers, ..Request::get("http://127.0.0.1:1/", SECOND) };
        assert_eq!(ask(&request).unwrap_err().kind(), Kind::Invalid);
        for url in ["file:///etc/passwd", "ftp://x/", "x", "http://", "http:///x", "", "http://a b/"] {
            assert_eq!(ask(&Request::get(url, SECOND)).unwrap_err().kind(), Kind::Invalid, "{url}");
        }
    }

    #[test]
    fn servers_that_refuse_hang_drip_or_never_end_are_told_in_time() {
        let refused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = ask(&Request::get(&format!("http://u:pw@{refused}/secret"), SECOND)).unwrap_err();
        assert!(error.message().starts_with(&format!("{refused} did not answer: ")), "{error}");
        assert!(error.message().contains("refused") && !error.to_string().contains("secret"), "{error}");

        let kinds: [(&str, &[u8]); 4] = [
            ("hang", b""),
            ("header", b"HTTP/1.1 200 Ok\r\nX"),
            ("body", b"HTTP/1.1 200 Ok\r\nContent-Length: 900\r\n\r\nx"),
            ("lines", b"HTTP/1.1 200 Ok\r\n"),
        ];
        for (kind, first) in kinds {
            let (url, _asked) = server(move |s| {
                let _ = s.write_all(first);
                for _ in 0..60 {
                    std::thread::sleep(Duration::from_millis(50));
                    if kind != "hang" && s.write_all(b"y").is_err() {
                        return;
                    }
                }
            });
            let begin = Instant::now();
            let error = ask(&Request::get(&url, SECOND / 2)).unwrap_err();
            assert!(begin.elapsed() < 2 * SECOND, "{kind}: {:?}", begin.elapsed());
            assert!(error.message().ends_with("not in time"), "{kind}: {error}");
        }
    }

    #[test]
    fn of_an_endless_answer_the_beginning_is_read() {
        let (url, _asked) = server(|s| {
            let _ = s.write_all(b"HTTP/1.1 200 Ok\r\n\r\n");
            while s.write_all(&[b'x'; 4096]).is_ok() {}
        });
        let request = Request { limit: 10, ..Request::get(&url, 5 * SECOND) };
        assert_eq!(ask(&request).unwrap().body, b"xxxxxxxxxx");
    }

    #[test]
    fn tls_to_a_server_that_speaks_none_is_an_error() {
        let (url, _asked) = server(|s| s.write_all(b"HTTP/1.1 200 Ok\r\n\r\n").unwrap());
        let error = ask(&Request::get(&url.replace("http:", "https:"), SECOND)).unwrap_err();
        assert!(error.message().contains(" did not answer: "), "{error}");
        let request = Request {
            authorities: b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n",
            ..Request::get("https://127.0.0.1:1/", SECOND)
        };
        assert!(ask(&request).unwrap_err().message().contains("authority"));
    }
}
