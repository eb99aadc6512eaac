//! A mail of ours as text: its subject and its body, quoted-printable undone.

/// The subject and the body of a mail; its other headers are for programs.
#[must_use]
pub fn text(mail: &str) -> String {
    let mail = mail.replace("\r\n", "\n");
    let (headers, body) = mail.split_once("\n\n").unwrap_or((&mail, ""));
    // A long header goes on in lines that begin with a space.
    let headers = headers.replace("\n ", " ");
    let subject = headers.lines().find(|line| line.starts_with("Subject: ")).unwrap_or_default();
    let is_quoted = headers.to_ascii_lowercase().contains("content-transfer-encoding: quoted-printable");
    let body = if is_quoted { unquoted(body) } else { body.to_string() };
    format!("{subject}\n\n{}\n", body.trim_end())
}

/// Undoes quoted-printable (RFC 2045); what is no escape stays as it is.
fn unquoted(body: &str) -> String {
    let mut bytes = Vec::with_capacity(body.len());
    let mut rest = body.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let digit =
            |at: usize| tail.get(at).and_then(|b| char::from(*b).to_digit(16)).and_then(|d| u8::try_from(d).ok());
        match (first, tail.first(), digit(0), digit(1)) {
            (b'=', Some(b'\n'), _, _) => rest = &tail[1..],
            (b'=', _, Some(high), Some(low)) => {
                bytes.push(high * 16 + low);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_printable_mail_becomes_readable() {
        let mail = "From: a\r\nSubject: long\r\n subject\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\nlong =\r\nline =E2=9C=93 1=3D1\r\n";
        assert_eq!(text(mail), "Subject: long subject\n\nlong line ✓ 1=1\n");
    }

    #[test]
    fn what_is_no_escape_stays() {
        assert_eq!(unquoted("a=b=zz="), "a=b=zz=");
    }

    #[test]
    fn a_plain_mail_stays_plain() {
        assert_eq!(text("Subject: s\n\na=3Db\n"), "Subject: s\n\na=3Db\n");
    }
}
