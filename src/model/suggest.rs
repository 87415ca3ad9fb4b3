//! Suggestions for misspelled words.

/// Returns the word of `known` that `written` most likely stands for; `None` when none is similar enough.
pub fn nearest_word<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = normalized(written);
    // One mistake in three characters is accepted: `trafic` suggests `traffic`, but `foo` does not suggest `port`.
    let allowed = (plain.len() / 3).max(1);
    known
        .into_iter()
        .map(|word| (edit_distance(&plain, &self::normalized(word)), word))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

/// Returns a message such as `did you mean `traffic`?`, or the list of known words.
pub fn did_you_mean<'a>(written: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> String {
    match nearest_word(written, known.clone()) {
        Some(word) => format!("did you mean `{word}`? Known: {}", quoted_list(known)),
        None => format!("known: {}", quoted_list(known)),
    }
}

/// Returns the words of a list as messages show them.
pub fn quoted_list<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    words.into_iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}

/// Case, dashes and underscores are common mistakes and are ignored: `request_timeout_ms`.
fn normalized(word: &str) -> Vec<char> {
    word.chars().filter(|c| !matches!(c, '_' | '-')).take(64).flat_map(char::to_lowercase).collect()
}

/// Returns the number of letters to insert, remove, replace, or swap with their neighbor to get from `a` to `b`.
fn edit_distance(a: &[char], b: &[char]) -> usize {
    // Row i, column j is the distance from the first i letters of `a` to the first j letters of `b`.
    let mut rows: Vec<Vec<usize>> = (0..=a.len()).map(|i| (i..=i + b.len()).collect()).collect();
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: [&str; 4] = ["traffic", "requestTimeoutMs", "port", "deployments"];

    #[test]
    fn slips_of_the_finger_find_their_word() {
        for (slip, word) in [
            ("trafic", "traffic"),
            ("tarffic", "traffic"),
            ("Traffic", "traffic"),
            ("request_timeout_ms", "requestTimeoutMs"),
            ("prot", "port"),
            ("deployment", "deployments"),
        ] {
            assert_eq!(nearest_word(slip, KNOWN), Some(word), "{slip}");
        }
    }

    #[test]
    fn another_word_is_not_guessed_at() {
        for other in ["foo", "", "replicas", "x"] {
            assert_eq!(nearest_word(other, KNOWN), None, "{other}");
        }
    }
}
