//! Rows of text in columns, and sizes in words.

/// Rows below a head, each column as wide as its widest cell; the last one ends where it ends.
pub(super) fn columns<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = head.map(str::len);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for row in std::iter::once(&head.map(str::to_owned)).chain(rows) {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect::<Vec<_>>();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    out
}

/// Bytes with a unit and at most one decimal.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let (mut tenths, mut unit) = (u128::from(bytes) * 10 / 1024, 0);
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        (tenths, unit) = (tenths / 1024, unit + 1);
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: cells shorter and longer than their head, an empty last one, and sizes around the units.
    /// Guarantees: columns line up, no line ends in spaces, and a size is said in its unit.
    #[test]
    fn rows_line_up() {
        let rows = [["a".to_owned(), "long cell".to_owned(), String::new()]];
        assert_eq!(columns(["NAME", "B", "C"], &rows), "NAME  B          C\na     long cell\n");
        assert_eq!([size(1023), size(1024), size(1 << 20), size(5 << 29)], ["1023 B", "1.0 KiB", "1.0 MiB", "2.5 GiB"]);
    }
}
