//! Two ways through the grammar: drawing its choices, or reading them back from a text.

use crate::DataError;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// One pass through the grammar. The grammar calls [`Voice::say`] for a word it has no choice about and [`Voice::pick`] where
/// it has one. Each choice is *written down at once*: the options are distinct lexemes and the chosen one is the next lexeme
/// of the text. The text therefore determines every choice, which is why the grammar is unambiguous.
pub(super) trait Voice {
    /// Chooses among distinct lexemes with positive or zero weights (zero: not offered) and writes the chosen one.
    fn pick(&mut self, options: &[(&str, f64)]) -> Result<usize, DataError>;
    /// Writes a lexeme that is certain.
    fn say(&mut self, lexeme: &str) -> Result<(), DataError>;
}

/// The exact log-probability of a pass.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Tally {
    /// -ln p of the choices made.
    pub(super) nats: f64,
    /// Sum over the choices met of the entropy of that choice; same expectation as `nats`.
    pub(super) entropy: f64,
    /// Number of choices met.
    pub(super) choices: usize,
}

impl Tally {
    fn add(&mut self, options: &[(&str, f64)], chosen: usize) {
        debug_assert!(distinct(options), "options of one choice must be distinct: {options:?}");
        let total: f64 = options.iter().map(|o| o.1).sum();
        self.nats -= (options[chosen].1 / total).ln();
        self.entropy +=
            options.iter().filter(|o| o.1 > 0.0).map(|o| -(o.1 / total) * (o.1 / total).ln()).sum::<f64>();
        self.choices += 1;
    }
}

/// Whether the offered options are pairwise distinct.
pub(super) fn distinct(options: &[(&str, f64)]) -> bool {
    options
        .iter()
        .enumerate()
        .all(|(i, a)| options[..i].iter().all(|b| a.0 != b.0 || a.1 == 0.0 || b.1 == 0.0))
}

/// Whether a blank stands between two lexemes.
fn spaced(previous: Option<&str>, next: &str) -> bool {
    !matches!(previous, None | Some("(" | "[" | "\n")) && !matches!(next, "." | "," | ")" | "]" | "\n")
}

/// Draws each choice and collects the text.
#[derive(Debug)]
pub(super) struct Writer<'r> {
    rng: &'r mut ChaCha8Rng,
    text: String,
    previous: Option<String>,
    tally: Tally,
}

impl<'r> Writer<'r> {
    pub(super) fn new(rng: &'r mut ChaCha8Rng) -> Self {
        Self { rng, text: String::new(), previous: None, tally: Tally::default() }
    }

    pub(super) fn finish(self) -> (String, Tally) {
        (self.text, self.tally)
    }
}

impl Voice for Writer<'_> {
    fn pick(&mut self, options: &[(&str, f64)]) -> Result<usize, DataError> {
        let total: f64 = options.iter().map(|o| o.1).sum();
        let mut left = self.rng.random::<f64>() * total;
        let mut chosen = None;
        for (i, (_, weight)) in options.iter().enumerate().filter(|(_, o)| o.1 > 0.0) {
            chosen = Some(i);
            left -= weight;
            if left < 0.0 {
                break;
            }
        }
        let chosen = chosen.expect("the grammar always offers at least one option");
        self.tally.add(options, chosen);
        self.say(options[chosen].0)?;
        Ok(chosen)
    }

    fn say(&mut self, lexeme: &str) -> Result<(), DataError> {
        if spaced(self.previous.as_deref(), lexeme) {
            self.text.push(' ');
        }
        self.text.push_str(lexeme);
        self.previous = Some(lexeme.to_owned());
        Ok(())
    }
}

/// Reads each choice from a text.
#[derive(Debug)]
pub(super) struct Reader<'t> {
    text: &'t str,
    at: usize,
    previous: Option<&'t str>,
    tally: Tally,
}

impl<'t> Reader<'t> {
    /// Reads `text` from the byte offset `at`, which begins a document.
    pub(super) fn new(text: &'t str, at: usize) -> Self {
        Self { text, at, previous: None, tally: Tally::default() }
    }

    /// The offset after the last lexeme read, and the tally.
    pub(super) fn finish(self) -> (usize, Tally) {
        (self.at, self.tally)
    }

    /// The next lexeme: a run of letters and digits or one other character, with exactly the blanks the writer puts before it.
    fn next(&self) -> Option<(&'t str, usize)> {
        let rest = &self.text[self.at..];
        let (blank, body) = match rest.strip_prefix(' ') {
            Some(body) => (true, body),
            None => (false, rest),
        };
        let length = match body.find(|c: char| !c.is_ascii_alphanumeric()) {
            Some(0) => body.chars().next().map_or(0, char::len_utf8),
            Some(n) => n,
            None => body.len(),
        };
        let lexeme = &body[..length];
        (length > 0 && blank == spaced(self.previous, lexeme))
            .then(|| (lexeme, self.at + usize::from(blank) + length))
    }

    fn refuse<T>(&self, expected: String) -> Result<T, DataError> {
        let found = self.text[self.at..].chars().take(24).collect();
        Err(DataError::NotInLanguage { at: self.at, expected, found })
    }
}

impl Voice for Reader<'_> {
    fn pick(&mut self, options: &[(&str, f64)]) -> Result<usize, DataError> {
        let found = self.next().and_then(|(lexeme, end)| {
            options.iter().position(|o| o.0 == lexeme && o.1 > 0.0).map(|i| (i, lexeme, end))
        });
        let Some((chosen, lexeme, end)) = found else {
            let shown: Vec<String> =
                options.iter().filter(|o| o.1 > 0.0).take(6).map(|o| format!("{:?}", o.0)).collect();
            return self.refuse(format!("one of {} words such as {}", options.len(), shown.join(" ")));
        };
        self.tally.add(options, chosen);
        (self.previous, self.at) = (Some(lexeme), end);
        Ok(chosen)
    }

    fn say(&mut self, lexeme: &str) -> Result<(), DataError> {
        match self.next() {
            Some((found, end)) if found == lexeme => {
                (self.previous, self.at) = (Some(found), end);
                Ok(())
            }
            _ => self.refuse(format!("{lexeme:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn by_hand_probability_of_one_choice() {
        // Weights 1:3 give p = 1/4 and 3/4; entropy = ln 4 - 3/4 ln 3.
        let options = [("a", 1.0), ("b", 3.0), ("c", 0.0)];
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut counts = [0usize; 3];
        for _ in 0..4000 {
            let mut w = Writer::new(&mut rng);
            let i = w.pick(&options).unwrap();
            let (_, tally) = w.finish();
            counts[i] += 1;
            let p: f64 = if i == 0 { 0.25 } else { 0.75 };
            assert!((tally.nats + p.ln()).abs() < 1e-12);
            assert!((tally.entropy - (4f64.ln() - 0.75 * 3f64.ln())).abs() < 1e-12);
        }
        assert_eq!(counts[2], 0);
        assert!((counts[0] as f64 - 1000.0).abs() < 5.0 * (4000.0f64 * 0.25 * 0.75).sqrt(), "{counts:?}");
    }

    #[test]
    fn reader_wants_the_writers_blanks() {
        let say = |text: &str, words: &[&str]| {
            let mut r = Reader::new(text, 0);
            words.iter().try_for_each(|w| r.say(w))
        };
        assert!(say("In (a cat), b.\n", &["In", "(", "a", "cat", ")", ",", "b", ".", "\n"]).is_ok());
        assert!(say("In ( a", &["In", "(", "a"]).is_err());
        assert!(say("cats", &["cat"]).is_err());
        assert!(say("a  cat", &["a", "cat"]).is_err());
        assert!(say(" a", &["a"]).is_err());
        assert!(say("é", &["a"]).is_err());
    }
}
