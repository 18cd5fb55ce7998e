//! Suggestions of the form "did you mean …": the nearest of the known names.

/// Returns ` (did you mean `order_id`?)`, or an empty string if no known name is near.
pub(crate) fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let nearest = known
        .into_iter()
        .map(|name| (distance(word, name), name))
        .min();
    match nearest {
        // A third of the letters may differ. A more distant suggestion would only confuse.
        Some((edits, name)) if edits <= word.len().max(3) / 3 => {
            format!(" (did you mean `{name}`?)")
        }
        _ => String::new(),
    }
}

/// Returns the number of letters to insert, remove or replace to turn one word into the other
/// (Levenshtein distance).
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_near_name_is_suggested_and_a_far_one_is_not() {
        assert_eq!(
            did_you_mean("agregate", ["id", "aggregate"]),
            " (did you mean `aggregate`?)"
        );
        assert_eq!(did_you_mean("colour", ["id", "aggregate"]), "");
    }

    #[test]
    fn the_distance_counts_single_edits() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("same", "same"), 0);
    }
}
