//! Pure: text for people: tables of records, and the facts of one record.

use comfy_table::presets::NOTHING;
use comfy_table::{Row, Table};
use limpet_api::book::Held;
use serde::Serialize;

/// What stands where there is nothing.
pub(crate) const NONE: &str = "-";

/// The longest ID that is shown whole in tables: what people choose is shorter, what runtimes draw has 64.
const WHOLE: usize = 24;

/// How many characters of a longer one are shown; runtimes show as many.
const SHORT: usize = 13;

/// Columns without borders, two spaces apart, as wide as their widest cell.
pub(crate) fn table<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header);
    for row in rows {
        table.add_row(Row::from(row.map(|cell| harmless(&cell))));
    }
    aligned(&mut table)
}

/// The facts of one record, a line each; facts that are not there are left out.
pub(crate) fn facts<'a>(facts: impl IntoIterator<Item = (&'a str, Option<String>)>) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING);
    for (name, value) in facts {
        if let Some(value) = value {
            table.add_row([format!("{name}:"), harmless(&value)]);
        }
    }
    aligned(&mut table)
}

fn aligned(table: &mut Table) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// The text with its control characters spelt out: some of it comes from hosts, and a terminal obeys what it reads.
pub(crate) fn harmless(text: &str) -> String {
    let spelt = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.into() };
    text.chars().map(spelt).collect()
}

/// The values, comma separated, or [`NONE`].
pub(crate) fn list<T: ToString>(values: impl IntoIterator<Item = T>) -> String {
    let values: Vec<String> = values.into_iter().map(|value| value.to_string()).collect();
    if values.is_empty() { NONE.to_owned() } else { values.join(",") }
}

/// The value, or [`NONE`].
pub(crate) fn or_none<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| NONE.to_owned(), |value| value.to_string())
}

/// The list as a fact, which is left out if it is empty.
pub(crate) fn some<T: ToString>(values: impl IntoIterator<Item = T>) -> Option<String> {
    Some(list(values)).filter(|text| text != NONE)
}

/// The addresses, comma separated.
pub(crate) fn addresses(held: &[Held]) -> String {
    list(held.iter().map(|held| held.address))
}

/// The addresses, each with its pool.
pub(crate) fn addresses_and_pools(held: &[Held]) -> String {
    list(held.iter().map(|held| format!("{} (pool {})", held.address, held.pool)))
        .replace(',', ", ")
}

/// The labels or other pairs, as they are written on the command line.
pub(crate) fn pairs<'a, K: ToString + 'a>(
    pairs: impl IntoIterator<Item = (&'a K, &'a String)>,
) -> Option<String> {
    some(pairs.into_iter().map(|(key, value)| format!("{}={value}", key.to_string())))
}

/// The API's word for a value, such as `draining`.
pub(crate) fn word(value: &impl Serialize) -> String {
    let json = serde_json::to_value(value).unwrap_or_default();
    json.as_str().map_or_else(|| json.to_string(), str::to_owned)
}

/// An ID, or the beginning of a long one.
pub(crate) fn short(id: &str) -> String {
    let shown = if id.chars().count() <= WHOLE { WHOLE } else { SHORT };
    id.chars().take(shown).collect()
}

/// A count; from 2^32 on the power of two nearest to it, since nobody reads twenty digits.
pub(crate) fn count(number: u64) -> String {
    match number.checked_ilog2() {
        Some(power @ 32..) if number.is_power_of_two() => format!("2^{power}"),
        Some(power @ 32..) => {
            let upper_half = (number >> (power - 1)) & 1;
            format!("~2^{}", u64::from(power) + upper_half)
        }
        _ => number.to_string(),
    }
}

/// `1 pool`, `2 pools`.
pub(crate) fn plural(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Text of few characters, some of which a terminal obeys or shows in no or two columns.
    fn cell() -> impl Strategy<Value = String> {
        "[a ,\n\t\u{1b}\u{e4}\u{5e05}]{0,6}"
    }

    proptest! {
        #[test]
        fn a_table_has_a_line_for_each_row_and_nothing_that_a_terminal_obeys(
            rows in prop::collection::vec([cell(), cell(), cell()], 0..5),
        ) {
            let count = rows.len();
            let text = table(["A", "B", "C"], rows);
            prop_assert_eq!(text.lines().count(), count + 1);
            prop_assert!(text.split('\n').all(|line| !line.contains(char::is_control)));
            prop_assert!(text.lines().all(|line| line.trim_end() == line));
        }

        #[test]
        fn a_shown_count_is_within_a_factor_of_one_and_a_half(number in any::<u64>(), shift in 0..64_u32) {
            let number = number >> shift;
            let shown = count(number);
            let Some((_, power)) = shown.split_once("2^") else {
                prop_assert_eq!(shown, number.to_string());
                return Ok(());
            };
            let power = 1_u128 << power.parse::<u32>().unwrap();
            let number = u128::from(number);
            prop_assert!(number * 2 <= power * 3 && power * 2 <= number * 3, "{} as {}", number, shown);
        }
    }

    #[test]
    fn columns_are_two_spaces_apart_and_nothing_trails() {
        let text = table(["A", "LONG"], [["x".into(), "y".into()], ["wide".into(), "-".into()]]);
        assert_eq!(text, "A     LONG\nx     y\nwide  -\n");
        assert_eq!(table(["A", "B"], []), "A  B\n");
    }

    #[test]
    fn what_a_host_says_cannot_drive_the_terminal() {
        assert_eq!(harmless("a\u{1b}[2Jb\n\u{9b}c\u{e4}"), "a\\u{1b}[2Jb\\n\\u{9b}c\u{e4}");
        assert!(table(["A"], [["\u{1b}]0;x\u{7}".into()]]).is_ascii());
    }

    #[test]
    fn large_counts_are_powers_of_two() {
        let texts = [
            (0, "0"),
            (65_533, "65533"),
            (1 << 32, "2^32"),
            (u64::MAX, "~2^64"),
            (5 << 40, "~2^42"),
        ];
        for (number, text) in texts {
            assert_eq!(count(number), text);
        }
    }
}
