//! Sizes as people write and read them.

/// `512 bytes`, `2 MiB`, `1.5 GiB`.
#[must_use]
pub fn words(bytes: u64) -> String {
    for (unit, shift) in [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)] {
        let one = 1_u64 << shift;
        if bytes >= one {
            let tenths = (bytes % one).saturating_mul(10) >> shift;
            let whole = bytes >> shift;
            return if tenths == 0 { format!("{whole} {unit}") } else { format!("{whole}.{tenths} {unit}") };
        }
    }
    if bytes == 1 { "1 byte".to_string() } else { format!("{bytes} bytes") }
}

/// A number with a comma between thousands: `1,288,490,188`.
#[must_use]
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A size for people and exactly: `1.2 GiB (1,288,490,188 bytes)`.
#[must_use]
pub fn exact(bytes: u64) -> String {
    if bytes < 1024 { words(bytes) } else { format!("{} ({} bytes)", words(bytes), grouped(bytes)) }
}

#[cfg(test)]
mod tests {
    use super::{exact, grouped, words};

    #[test]
    fn sizes_read_well() {
        let shown = [0, 1, 1023, 1024, 1536, 2 << 20, (1 << 30) - 1, u64::MAX].map(words);
        let expected = ["0 bytes", "1 byte", "1023 bytes", "1 KiB", "1.5 KiB", "2 MiB", "1023.9 MiB", "16777215.9 TiB"];
        assert_eq!(shown, expected);
    }

    #[test]
    fn exact_sizes_have_both_spellings() {
        let shown = [0, 7, 999, 1000, 123_456, 1_288_490_188].map(grouped);
        assert_eq!(shown, ["0", "7", "999", "1,000", "123,456", "1,288,490,188"]);
        assert_eq!(exact(1_288_490_188), "1.1 GiB (1,288,490,188 bytes)");
        assert_eq!(exact(512), "512 bytes");
    }
}
