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

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn sizes_read_well() {
        let shown = [0, 1, 1023, 1024, 1536, 2 << 20, (1 << 30) - 1, u64::MAX].map(words);
        let expected = ["0 bytes", "1 byte", "1023 bytes", "1 KiB", "1.5 KiB", "2 MiB", "1023.9 MiB", "16777215.9 TiB"];
        assert_eq!(shown, expected);
    }
}
