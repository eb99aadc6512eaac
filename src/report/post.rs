//! Sending mail: by SMTP, by the `sendmail` program, or into a maildir. A fault here never changes an outcome.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use lettre::message::header::{ContentType, HeaderName, HeaderValue};
use lettre::message::{Mailbox, MultiPart};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, Tls, TlsParameters};
use lettre::{Message, SmtpTransport, Transport};

use super::mail::Mail;
use crate::project::mail::{Login, MailTransport, Password, SmtpTls};
use crate::sys::error::{Context, Error, Result};
use crate::sys::{clock, escape, fs, machine, pipe};

/// A whole delivery may take so many times the timeout of one exchange: a server that drips must not hold us.
pub const DELIVERY_FACTOR: u32 = 3;

const SENDMAIL_DEADLINE: Duration = Duration::from_secs(20);

const PASSWORD_LIMIT: u64 = 4096;

/// Sends a mail, and tells what whoever took it said; with [`MailTransport::None`] nothing is done.
///
/// # Errors
/// If it could not be delivered; the text tells why and holds no secret.
pub fn send(mail: &Mail, transport: &MailTransport) -> Result<String> {
    match transport {
        MailTransport::None => Ok("mail is switched off (transport: none)".to_string()),
        MailTransport::Maildir { path } => deliver_to_maildir(&message(mail)?, path),
        MailTransport::Sendmail { program } => deliver_to_sendmail(&message(mail)?, program),
        MailTransport::Smtp { host, port, tls, login, ca_file, timeout } => {
            let login = match login {
                Some(Login { user, password: Password::File(file) }) => {
                    Some(Credentials::new(user.clone(), password(file)?))
                }
                Some(Login { user, password: Password::Text(text) }) => {
                    Some(Credentials::new(user.clone(), text.clone()))
                }
                None => None,
            };
            let authority = ca_file.as_deref().map(authority).transpose()?;
            let mailer = smtp((host, *port), *tls, login, authority.as_ref(), *timeout)?;
            deliver_by_smtp(mailer, message(mail)?, &format!("{host}:{port}"), *timeout)
        }
    }
}

/// The message of RFC 5322; header values cannot begin new headers.
fn message(mail: &Mail) -> Result<Message> {
    let raw =
        |name: &'static str, value: &str| HeaderValue::new(HeaderName::new_from_ascii_str(name), header_text(value));
    let mut builder = Message::builder()
        .from(address(&mail.from)?)
        .to(address(&mail.to)?)
        .subject(header_text(&mail.subject))
        .date(std::time::SystemTime::from(mail.date))
        .message_id(Some(format!("<{}>", header_text(&mail.message_id))))
        .raw_header(raw("Auto-Submitted", "auto-generated"))
        .raw_header(raw("X-Auto-Response-Suppress", "All"));
    if let Some(project) = &mail.project {
        builder = builder.raw_header(raw("X-Mc-Project", project));
    }
    if let Some(thread) = &mail.thread {
        let thread = format!("<{}>", header_text(thread));
        builder = builder.in_reply_to(thread.clone()).references(thread);
    }
    let message = match &mail.html {
        Some(html) => builder.multipart(MultiPart::alternative_plain_html(mail.text.clone(), html.clone())),
        None => builder.header(ContentType::TEXT_PLAIN).body(mail.text.clone()),
    };
    message.context(|| "cannot write the mail".to_string())
}

fn address(text: &str) -> Result<Mailbox> {
    let bad = || Error::invalid(format!("`{}` is no mail address", escape::visible(text)));
    if text.chars().any(char::is_control) {
        return Err(bad());
    }
    text.parse().map_err(|error: lettre::address::AddressError| bad().because(error))
}

/// Control characters out: a line break in a subject would be a new header for whoever decodes it.
fn header_text(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The first line of a file: a password or another secret.
///
/// # Errors
/// If there is none.
pub fn password(file: &Path) -> Result<String> {
    let bytes = fs::read_bounded(file, PASSWORD_LIMIT)?
        .ok_or_else(|| Error::invalid(format!("there is no password file {}", file.display())))?;
    let text = String::from_utf8(bytes)
        .map_err(|_| Error::invalid(format!("the password file {} is not UTF-8", file.display())))?;
    match text.lines().next() {
        Some(line) if !line.is_empty() => Ok(line.to_string()),
        _ => Err(Error::invalid(format!("the first line of the password file {} is empty", file.display()))),
    }
}

fn authority(file: &Path) -> Result<Certificate> {
    let bytes = fs::read_bounded(file, fs::CONFIG_LIMIT)?
        .ok_or_else(|| Error::invalid(format!("there is no certificate file {}", file.display())))?;
    Certificate::from_pem(&bytes).context(|| format!("cannot understand the certificate {}", file.display()))
}

fn smtp(
    (host, port): (&str, u16),
    tls: SmtpTls,
    login: Option<Credentials>,
    authority: Option<&Certificate>,
    timeout: Duration,
) -> Result<SmtpTransport> {
    if tls == SmtpTls::None && login.is_some() {
        return Err(Error::invalid("a login to a mail server without TLS would send the password in clear text")
            .hint("set `tls: starttls` or `tls: tls`, or leave `user` out"));
    }
    let parameters = || {
        let builder = TlsParameters::builder(host.to_string());
        let builder = match authority {
            Some(authority) => builder.add_root_certificate(authority.clone()),
            None => builder,
        };
        builder.build().context(|| format!("cannot prepare TLS for the mail server {host}"))
    };
    let tls = match tls {
        SmtpTls::None => Tls::None,
        // Required, never opportunistic: a server that does not offer it gets no mail.
        SmtpTls::Starttls => Tls::Required(parameters()?),
        SmtpTls::Tls => Tls::Wrapper(parameters()?),
    };
    // "dangerous" says only that the port and the protection are ours to set, which we do.
    let mut builder = SmtpTransport::builder_dangerous(host).port(port).tls(tls).timeout(Some(timeout));
    if let Some(login) = login {
        builder = builder.credentials(login);
    }
    Ok(builder.build())
}

/// In a thread of its own: neither a slow name server nor a server that sends one byte per second holds us longer than
/// the deadline. A thread that is still stuck then ends with the process.
fn deliver_by_smtp(mailer: SmtpTransport, message: Message, server: &str, timeout: Duration) -> Result<String> {
    let (tell, done) = channel();
    std::thread::Builder::new()
        .name("smtp".into())
        .spawn(move || {
            let _ = tell.send(mailer.send(&message));
        })
        .context(|| "cannot start sending mail".to_string())?;
    match done.recv_timeout(timeout * DELIVERY_FACTOR) {
        Ok(Ok(response)) => {
            let lines: Vec<&str> = response.message().collect();
            let said = format!("{} {}", response.code(), lines.join(" "));
            Ok(format!("{server} said: {}", escape::visible_bounded(said.as_bytes(), 300)))
        }
        Ok(Err(error)) => {
            let mut why = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                let text = cause.to_string();
                if !why.contains(&text) {
                    why = format!("{why}: {text}");
                }
                source = cause.source();
            }
            let why = escape::visible_bounded(why.as_bytes(), 500);
            Err(Error::failed(format!("the mail server {server} did not take the mail: {why}")))
        }
        Err(_) => Err(Error::failed(format!("the mail server {server} did not take the mail in time"))),
    }
}

fn deliver_to_sendmail(message: &Message, program: &Path) -> Result<String> {
    // `-t`: receivers from the header; `-i`: a line with a single dot is no end; `--`: nothing after it is an option.
    let ended = pipe::run(program, &["-t", "-i", "--"].map(OsStr::new), &unix_lines(message), SENDMAIL_DEADLINE)?;
    let said = escape::visible_bounded(ended.output.trim_ascii(), 500);
    let said = if said.is_empty() { said } else { format!(": {said}") };
    if ended.code == Some(0) {
        return Ok(format!("{} took it{said}", program.display()));
    }
    let how = match (ended.code, ended.signal) {
        (Some(code), _) => format!("exit {code}"),
        (None, signal) => format!("killed by signal {}", signal.unwrap_or(0)),
    };
    Err(Error::failed(format!("{} did not take the mail: {how}{said}", program.display())))
}

/// Writes the file below `tmp/`, syncs it and renames it to `new/`: readers see whole mails only.
fn deliver_to_maildir(message: &Message, maildir: &Path) -> Result<String> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    for part in ["", "tmp", "new", "cur"] {
        fs::ensure_dir(&maildir.join(part), 0o700)?;
    }
    let now = clock::now();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let host: String = host_name().replace('/', "\\057").replace(':', "\\072");
    let micros = now.subsec_nanosecond() / 1000;
    let name = format!("{}.M{micros}P{}Q{count}.{host}", now.as_second(), std::process::id());
    let temp = maildir.join("tmp").join(&name);
    fs::write_durable(&temp, &unix_lines(message), 0o600)?;
    let new = maildir.join("new").join(&name);
    fs::rename_durable(&temp, &new)?;
    Ok(format!("written to {}", new.display()))
}

fn host_name() -> String {
    machine::host_name().unwrap_or_else(|| "localhost".to_string())
}

/// The message with line feeds alone, as files and local programs have it.
fn unix_lines(message: &Message) -> Vec<u8> {
    let bytes = message.formatted();
    let ends_line = |at: usize| bytes[at] == b'\r' && bytes.get(at + 1) == Some(&b'\n');
    (0..bytes.len()).filter(|at| !ends_line(*at)).map(|at| bytes[at]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;
    use std::time::Instant;

    fn mail() -> Mail {
        Mail {
            from: "mc_project@web1.example.org".into(),
            to: "dev@example.org".into(),
            subject: "[shop staging] deployed: é\r\nBcc: evil@example.org".into(),
            text: "first\n.\n  | tail é\n".into(),
            html: None,
            thread: Some("thread.1@web1.example.org".into()),
            project: Some("shop".into()),
            date: "2026-11-20T15:04:05Z".parse().unwrap(),
            message_id: "abc@web1.example.org".into(),
        }
    }

    fn smtp_to(port: u16, tls: SmtpTls) -> MailTransport {
        MailTransport::Smtp {
            host: "127.0.0.1".into(),
            port,
            tls,
            login: None,
            ca_file: None,
            timeout: Duration::from_millis(500),
        }
    }

    fn only_file(dir: PathBuf) -> (PathBuf, String) {
        let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
        assert_eq!(files.len(), 1, "{files:?}");
        let path = files.remove(0);
        let text = std::fs::read_to_string(&path).unwrap();
        (path, text)
    }

    #[test]
    fn a_maildir_gets_one_private_file_per_mail_with_good_headers() {
        let dir = tempfile::tempdir().unwrap();
        let maildir = dir.path().join("mail/box");
        let transport = MailTransport::Maildir { path: maildir.clone() };
        send(&mail(), &transport).unwrap();
        let (path, text) = only_file(maildir.join("new"));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::metadata(&maildir).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(std::fs::read_dir(maildir.join("tmp")).unwrap().count(), 0);
        assert!(maildir.join("cur").is_dir() && !text.contains('\r'));
        let (head, body) = text.split_once("\n\n").unwrap();
        for line in [
            "From: mc_project@web1.example.org",
            "To: dev@example.org",
            "Date: Fri, 20 Nov 2026 15:04:05 +0000",
            "Message-ID: <abc@web1.example.org>",
            "Auto-Submitted: auto-generated",
            "X-Mc-Project: shop",
            "In-Reply-To: <thread.1@web1.example.org>",
            "References: <thread.1@web1.example.org>",
            "Content-Type: text/plain; charset=utf-8",
        ] {
            assert!(head.lines().any(|l| l == line), "{line} is not in\n{head}");
        }
        assert!(!head.to_lowercase().contains("\nbcc"), "{head}");
        assert!(head.contains("\nSubject: [shop staging] deployed: =?utf-8?b?"), "{head}");
        assert!(body.starts_with("first\n.\n  | tail =C3=A9"), "{body}");
        for _ in 0..20 {
            send(&mail(), &transport).unwrap();
        }
        assert_eq!(std::fs::read_dir(maildir.join("new")).unwrap().count(), 21, "names are unique");
    }

    #[test]
    fn bad_addresses_are_refused_before_anything_is_sent() {
        let dir = tempfile::tempdir().unwrap();
        let transport = MailTransport::Maildir { path: dir.path().join("m") };
        for bad in ["", "x", "a@x\r\nBcc: b@y", "a@x, b@y", "a b@x.org"] {
            let error = send(&Mail { to: bad.into(), ..mail() }, &transport).unwrap_err();
            assert!(error.message().ends_with("is no mail address"), "{bad:?}: {error}");
        }
        assert!(!dir.path().join("m").exists());
    }

    #[test]
    fn sendmail_gets_the_mail_on_standard_input_and_no_address_as_an_argument() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("sendmail");
        let script = format!("#!/bin/sh\necho \"$@\" > {0}/args\ncat > {0}/mail\n", dir.path().display());
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let transport = MailTransport::Sendmail { program: program.clone() };
        send(&Mail { to: "-oQ/tmp@x.org".into(), ..mail() }, &transport).unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join("args")).unwrap(), "-t -i --\n");
        let text = std::fs::read_to_string(dir.path().join("mail")).unwrap();
        assert!(text.contains("\nTo: -oQ/tmp@x.org\n") && text.contains("\n\nfirst\n.\n"), "{text}");

        std::fs::write(&program, "#!/bin/sh\necho 'no \u{1b}[31mroute' >&2\nexit 75\n").unwrap();
        let error = send(&mail(), &transport).unwrap_err();
        assert!(error.message().ends_with("did not take the mail: exit 75: no \\u{1b}[31mroute"), "{error}");
        let missing = MailTransport::Sendmail { program: dir.path().join("none") };
        assert!(send(&mail(), &missing).unwrap_err().is_not_found());
    }

    #[test]
    fn a_refused_port_is_told_at_once() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        for tls in [SmtpTls::None, SmtpTls::Starttls, SmtpTls::Tls] {
            let begin = Instant::now();
            let error = send(&mail(), &smtp_to(port, tls)).unwrap_err();
            assert!(begin.elapsed() < Duration::from_secs(1), "{tls:?}");
            let want = format!("the mail server 127.0.0.1:{port} did not take the mail: ");
            assert!(error.message().starts_with(&want) && error.message().contains("refused"), "{error}");
        }
    }

    #[test]
    fn a_server_that_hangs_or_drips_does_not_hold_us_beyond_the_deadline() {
        for drip in [false, true] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                for _ in 0..100 {
                    if drip && stream.write_all(b"2").is_err() {
                        return;
                    }
                    std::thread::sleep(Duration::from_millis(100));
                }
            });
            let begin = Instant::now();
            assert!(send(&mail(), &smtp_to(port, SmtpTls::None)).is_err());
            assert!(begin.elapsed() < Duration::from_millis(2_500), "drip {drip}: {:?}", begin.elapsed());
        }
    }

    /// A server for one connection, without STARTTLS; gives back what the client said.
    fn plain_server() -> (u16, std::thread::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let serve = move |mut stream: TcpStream| -> Vec<String> {
            let mut said = Vec::new();
            let mut is_data = false;
            stream.write_all(b"220 test\r\n").unwrap();
            for line in BufReader::new(stream.try_clone().unwrap()).lines().map_while(std::io::Result::ok) {
                let answer: &[u8] = match (is_data, &*line) {
                    (true, ".") => b"250 ok\r\n",
                    (true, _) => b"",
                    (_, "DATA") => b"354 go on\r\n",
                    (_, "QUIT") => b"221 bye\r\n",
                    _ => b"250 test\r\n",
                };
                is_data = line == "DATA" || (is_data && line != ".");
                said.push(line);
                if stream.write_all(answer).is_err() {
                    break;
                }
            }
            said
        };
        (port, std::thread::spawn(move || serve(listener.accept().unwrap().0)))
    }

    #[test]
    fn a_mail_goes_to_a_plain_server_only_where_clear_text_was_asked_for() {
        let (port, server) = plain_server();
        send(&mail(), &smtp_to(port, SmtpTls::None)).unwrap();
        let said = server.join().unwrap();
        assert!(said.contains(&"RCPT TO:<dev@example.org>".to_string()), "{said:?}");
        assert!(said.contains(&"..".to_string()), "a line with a dot is stuffed: {said:?}");

        let (port, server) = plain_server();
        let error = send(&mail(), &smtp_to(port, SmtpTls::Starttls)).unwrap_err();
        let said = server.join().unwrap();
        assert!(!said.iter().any(|line| line.starts_with("MAIL") || line == "DATA"), "{said:?}");
        assert!(error.message().contains("did not take the mail"), "{error}");
    }

    #[test]
    fn a_password_is_never_sent_in_clear_text_nor_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        let login = |tls, password_file: Option<PathBuf>| MailTransport::Smtp {
            host: "127.0.0.1".into(),
            port: 1,
            tls,
            login: password_file.map(|file| Login { user: "mc".into(), password: Password::File(file) }),
            ca_file: None,
            timeout: Duration::from_millis(200),
        };
        assert!(
            send(&mail(), &login(SmtpTls::Tls, Some(file.clone()))).unwrap_err().message().starts_with("there is no")
        );
        std::fs::write(&file, "correct-horse\nsecond line\n").unwrap();
        let error = send(&mail(), &login(SmtpTls::None, Some(file.clone()))).unwrap_err();
        assert!(error.message().ends_with("would send the password in clear text"), "{error}");
        for tls in [SmtpTls::Starttls, SmtpTls::Tls] {
            let error = send(&mail(), &login(tls, Some(file.clone()))).unwrap_err();
            assert!(error.message().contains("did not take the mail"), "{error}");
            assert!(!format!("{error} {error:?}").contains("correct-horse"));
        }
        assert_eq!(password(&file).unwrap(), "correct-horse");
        assert!(send(&mail(), &login(SmtpTls::Tls, None)).is_err());
        std::fs::write(&file, "\n").unwrap();
        assert!(send(&mail(), &login(SmtpTls::Tls, Some(file))).unwrap_err().message().contains("is empty"));
    }

    #[test]
    fn without_a_transport_nothing_is_done() {
        send(&Mail { to: "not an address".into(), ..mail() }, &MailTransport::None).unwrap();
    }
}
