//! What a plain word of YAML means: in YAML 1.2, which holds everywhere here, and in YAML 1.1 as Salt reads it, which holds
//! for pillars that are merged by makina-states' rules. `yes`, `0755` and `12:30` are where the two differ.
//!
//! The strict reader of this crate knows words only as YAML 1.2 reads them; this one looks at the events of the same text,
//! which tell a word from a text in quotes. Salt's rules are PyYAML's resolver (`yaml/resolver.py`) with the changes of
//! `salt/utils/yamlloader.py`: an integer loses its zeros in front instead of being octal, and a time stays a text.

use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Number, Value};

/// A word that the two rules read differently.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Where it stands: line and column, from 1.
    pub place: (usize, usize),
    /// The kind of value that YAML 1.2 reads.
    pub new: &'static str,
    /// The kind of value that YAML 1.1 reads.
    pub old: &'static str,
}

/// Reads a text that was found to be strict YAML by the rules of YAML 1.1, and tells where those differ from YAML 1.2.
/// `None` where this reader does not understand what the strict one did.
#[must_use]
pub fn read(text: &str) -> Option<(Value, Vec<Difference>)> {
    let mut reader = Reader { parser: Parser::new_from_str(text), anchors: Vec::new(), differences: Vec::new() };
    loop {
        match reader.parser.next_event()?.ok()?.0 {
            Event::StreamStart | Event::DocumentStart(_) => {}
            Event::StreamEnd | Event::DocumentEnd => return None,
            first => {
                let value = reader.value(first, (1, 1))?;
                return Some((value, reader.differences));
            }
        }
    }
}

struct Reader<'a> {
    parser: Parser<'a, saphyr_parser::StrInput<'a>>,
    anchors: Vec<(usize, Value)>,
    differences: Vec<Difference>,
}

impl Reader<'_> {
    fn next(&mut self) -> Option<Value> {
        let (event, span) = self.parser.next_event()?.ok()?;
        let (event, place) = (event, (span.start.line(), span.start.col() + 1));
        match event {
            Event::SequenceEnd | Event::MappingEnd => None,
            event => self.value_of(event, place),
        }
    }

    fn value(&mut self, event: Event<'_>, place: (usize, usize)) -> Option<Value> {
        self.value_of(event, place)
    }

    fn value_of(&mut self, event: Event<'_>, place: (usize, usize)) -> Option<Value> {
        let (anchor, value) = match event {
            Event::Alias(id) => {
                return self.anchors.iter().rev().find(|(known, _)| *known == id).map(|(_, v)| v.clone());
            }
            Event::Scalar(text, style, anchor, None) => (anchor, self.scalar(&text, style, place)),
            Event::SequenceStart(anchor, None) => {
                let mut items = Vec::new();
                while let Some(item) = self.next() {
                    items.push(item);
                }
                (anchor, Value::Array(items))
            }
            Event::MappingStart(anchor, None) => (anchor, self.mapping()?),
            _ => return None,
        };
        if anchor > 0 {
            self.anchors.push((anchor, value.clone()));
        }
        Some(value)
    }

    /// Keys are texts for us whatever a rule would make of them.
    fn mapping(&mut self) -> Option<Value> {
        let mut map = Map::new();
        loop {
            let key = match self.parser.next_event()?.ok()?.0 {
                Event::MappingEnd => return Some(Value::Object(map)),
                Event::Scalar(key, _, _, None) => key.into_owned(),
                Event::Alias(id) => match self.anchors.iter().rev().find(|(known, _)| *known == id) {
                    Some((_, Value::String(key))) => key.clone(),
                    _ => return None,
                },
                _ => return None,
            };
            let value = self.next()?;
            map.insert(key, value);
        }
    }

    fn scalar(&mut self, text: &str, style: ScalarStyle, place: (usize, usize)) -> Value {
        if style != ScalarStyle::Plain {
            return Value::String(text.to_string());
        }
        let old = salt(text);
        let new: Value = serde_yaml::from_str(text).unwrap_or_else(|_| Value::String(text.to_string()));
        if old != new {
            self.differences.push(Difference { place, new: kind(&new), old: kind(&old) });
        }
        old
    }
}

/// What a value is called.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(true) => "true",
        Value::Bool(false) => "false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) | Value::Object(_) => "more than a word",
    }
}

/// A plain word as Salt reads it.
fn salt(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => return Value::Bool(true),
        "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => return Value::Bool(false),
        _ => {}
    }
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (has_sign, is_negative) = (digits.len() < text.len(), text.starts_with('-'));
    if let Some(number) = integer(digits, has_sign).and_then(|n| if is_negative { n.checked_neg() } else { Some(n) }) {
        return number_of(number);
    }
    float(digits, has_sign)
        .and_then(|number| Number::from_f64(if is_negative { -number } else { number }))
        .map_or_else(|| Value::String(text.to_string()), Value::Number)
}

fn number_of(number: i128) -> Value {
    match (i64::try_from(number), u64::try_from(number)) {
        (Ok(number), _) => number.into(),
        (_, Ok(number)) => number.into(),
        // Python would take it; nothing that reads JSON would.
        _ => Value::String(number.to_string()),
    }
}

/// `755`, `0755`, `1_000`, `0x1f`, `0b11`, `12:30`. Salt takes the zeros from a number that begins with one; from one that
/// begins with a sign it does not, and PyYAML reads that as octal.
fn integer(digits: &str, has_sign: bool) -> Option<i128> {
    let only = |text: &str, radix: u32| {
        let good = !text.is_empty() && text.chars().all(|c| c == '_' || c.is_digit(radix));
        let plain = text.replace('_', "");
        if good && !plain.is_empty() { i128::from_str_radix(&plain, radix).ok() } else { None }
    };
    if let Some(rest) = digits.strip_prefix("0b") {
        return only(rest, 2);
    }
    if let Some(rest) = digits.strip_prefix("0x") {
        return only(rest, 16);
    }
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let (first, rest) = digits.split_once(':').unwrap_or((digits, ""));
    if rest.is_empty() && !digits.contains(':') {
        // With a zero in front only octal digits make a number of it.
        let is_octal = digits.len() > 1 && digits.starts_with('0');
        return match (is_octal, digits.contains(['8', '9'])) {
            (true, true) => None,
            (true, false) if has_sign => only(digits, 8),
            _ => only(digits, 10),
        };
    }
    if first.starts_with('0') {
        return None;
    }
    let places = rest.split(':');
    places.into_iter().try_fold(only(first, 10)?, |all, place| {
        let good = matches!(place.len(), 1 | 2) && place.bytes().all(|b| b.is_ascii_digit());
        let place: i128 = if good { place.parse().ok()? } else { return None };
        if place < 60 { all.checked_mul(60)?.checked_add(place) } else { None }
    })
}

/// `1.5`, `1.5e+3`, `.5`, `1_0.5`, `1:30.5`; no infinity, which JSON has not.
fn float(digits: &str, has_sign: bool) -> Option<f64> {
    let (whole, rest) = digits.split_once('.')?;
    if whole.is_empty() && (has_sign || !rest.starts_with(|c: char| c.is_ascii_digit())) {
        return None;
    }
    if !whole.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'_' | b':')) || whole.starts_with(['_', ':']) {
        return None;
    }
    let (fraction, exponent) = rest.split_once(['e', 'E']).map_or((rest, None), |(f, e)| (f, Some(e)));
    if !fraction.bytes().all(|b| b.is_ascii_digit() || b == b'_') {
        return None;
    }
    let exponent = match exponent {
        // Without a sign it is none.
        Some(text) if !text.starts_with(['+', '-']) || whole.contains(':') => return None,
        Some(text) if text.len() < 2 || !text[1..].bytes().all(|b| b.is_ascii_digit()) => return None,
        Some(text) => format!("e{text}"),
        None => String::new(),
    };
    let plain = |text: &str| text.replace('_', "");
    let mut places = whole.split(':');
    let first: f64 = match plain(places.next().unwrap_or("")).as_str() {
        "" => 0.0,
        first => first.parse().ok()?,
    };
    let whole = places.try_fold(first, |all, place| {
        let place: f64 = if matches!(place.len(), 1 | 2) { place.parse().ok()? } else { return None };
        (place < 60.0).then_some(all * 60.0 + place)
    })?;
    format!("{whole}.{}0{exponent}", plain(fraction)).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{read, salt};

    /// What `salt.utils.yaml.safe_load` of Salt 3008 made of each word, as JSON.
    const SEEN: &str = r#"
yes true|Yes true|no false|on true|off false|OFF false|True true|tRue "tRue"|null null|~ null|0755 755|0o755 "0o755"
755 755|0 0|00 0|08 "08"|0800 "0800"|0_7 7|1_000 1000|1_ 1|_1 "_1"|0x1f 31|0X1f "0X1f"|0x_f 15|0xg "0xg"|0b11 3|0b2 "0b2"
-5 -5|+5 5|--5 "--5"|-0755 -493|+0755 493|12:30 750|1:60 "1:60"|0:30 "0:30"|01:30 "01:30"|12:30:15 45015|-12:30 -750
1:3 63|1:5:99 "1:5:99"|1.5 1.5|1.5e3 "1.5e3"|1.5e+3 1500.0|1.5E-3 0.0015|1e3 "1e3"|1. 1.0|.5 0.5|. "."|-.5 "-.5"|+.5 "+.5"
1_0.5 10.5|1:30.5 90.5|1:30.5e+1 "1:30.5e+1"|1.5_5 1.55|._5 "._5"|.5_ 0.5|2001-01-01 "2001-01-01"|y "y"|N "N"|1,000 "1,000"
9223372036854775808 9223372036854775808|0.1 0.1|1.10 1.1|1e5 "1e5"|0.0 0.0|1..2 "1..2"|1.2.3 "1.2.3"|12:30.5 750.5|0b "0b"
0x "0x"|-0 0|-0.0 -0.0|+12:30 750|00.5 0.5|08.5 8.5|1e+5 "1e+5"|.e+1 ".e+1"|5.e+1 50.0|3.14159 3.14159|u'abc' "u'abc'"
"#;

    #[test]
    fn words_are_read_as_salt_reads_them() {
        let mut tried = 0;
        for line in SEEN.split(['|', '\n']).filter(|line| !line.is_empty()) {
            let (word, json) = line.split_once(' ').unwrap();
            let wanted: serde_json::Value = serde_json::from_str(json).unwrap();
            assert_eq!(salt(word), wanted, "{word}");
            tried += 1;
        }
        assert!(tried > 70, "{tried}");
    }

    #[test]
    fn only_what_stands_without_quotes_is_a_word_and_differences_have_their_place() {
        let text = "a: &x yes\nb: 'yes'\nc: [0755, *x, {d: \"no\"}]\ne: |\n  yes\nf:\nyes: true\n? g\n: plain text\n";
        let (value, differences) = read(text).unwrap();
        let wanted = serde_json::json!({
            "a": true, "b": "yes", "c": [755, true, {"d": "no"}], "e": "yes\n", "f": null, "yes": true, "g": "plain text"
        });
        assert_eq!(value, wanted);
        let told: Vec<_> = differences.iter().map(|d| (d.place, d.new, d.old)).collect();
        assert_eq!(told, [((1, 4), "a text", "true"), ((3, 5), "a text", "a number")]);
        assert!(read("a: [").is_none() && read("").is_none());
    }
}
