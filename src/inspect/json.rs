//! Indentation of JSON that keeps every token as it is written.

/// Depth up to which JSON is indented. Deeper payloads would consist of spaces.
const INDENT_MAX: usize = 20;

/// Indents valid JSON. All tokens stay as they are written: parsing would change large numbers and
/// the order of members.
pub(crate) fn indented(json: &str) -> String {
    let (mut out, mut depth, mut in_text, mut is_escaped) = (String::new(), 0_usize, false, false);
    let mut characters = json
        .chars()
        .filter(|c| !c.is_control() || !c.is_whitespace())
        .peekable();
    let line = |out: &mut String, depth: usize| {
        out.push('\n');
        out.extend(std::iter::repeat_n("  ", depth.min(INDENT_MAX)));
    };
    while let Some(character) = characters.next() {
        if in_text {
            out.push(character);
            in_text = is_escaped || character != '"';
            is_escaped = !is_escaped && character == '\\';
            continue;
        }
        match character {
            ' ' => {}
            '"' => {
                in_text = true;
                out.push(character);
            }
            '{' | '[' => {
                out.push(character);
                while characters.next_if_eq(&' ').is_some() {}
                if let Some(end) = characters.next_if(|next| matches!(next, '}' | ']')) {
                    out.push(end);
                } else {
                    depth += 1;
                    line(&mut out, depth);
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                line(&mut out, depth);
                out.push(character);
            }
            ',' => {
                out.push(character);
                line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            _ => out.push(character),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_indented_and_its_tokens_stay() {
        let json = r#"{"b":12345678901234567890123, "a" : [ ] ,"c":[1,{"x":"a, \\\"{:"}]}"#;
        let expected = "{\n  \"b\": 12345678901234567890123,\n  \"a\": [],\n  \"c\": [\n    1,\n    \
                        {\n      \"x\": \"a, \\\\\\\"{:\"\n    }\n  ]\n}";
        assert_eq!(indented(json), expected);
        assert!(indented(&"[".repeat(5_000)).len() < 5_000 * 50);
    }
}
