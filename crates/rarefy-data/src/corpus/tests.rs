#![allow(clippy::unwrap_used)]
use super::grammar::MAX_OPERAND;
use super::lexicon::{ANIMALS, COLOURS, DEEDS, HE, ROLES, SHE, THINGS, VERBS};
use super::voice::{Voice, distinct};
use super::*;
use proptest::prelude::*;

fn corpus() -> Corpus {
    Corpus::new(1, Split::Train)
}

/// The lexemes of a document, punctuation apart.
fn lexemes(text: &str) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for c in text.chars() {
        match c {
            ' ' => out.push(String::new()),
            c if c.is_ascii_alphanumeric() => match out.last_mut() {
                Some(last) if last.chars().all(|c| c.is_ascii_alphanumeric()) => last.push(c),
                _ => out.push(c.into()),
            },
            c => out.extend([c.to_string(), String::new()]),
        }
    }
    out.retain(|l| !l.is_empty());
    out
}

/// The sentences of a document, each a list of lexemes without the full stop.
fn sentences(text: &str) -> Vec<Vec<String>> {
    lexemes(text).split(|l| l == ".").map(<[String]>::to_vec).filter(|s| s.len() > 1).collect()
}

#[test]
fn a_seed_gives_the_same_bytes_and_splits_differ() {
    let text = corpus().text(0, 50);
    assert_eq!(text, corpus().text(0, 50));
    assert_eq!(corpus().document(7), Corpus::new(1, Split::Train).document(7));
    assert!(text.is_ascii());
    for other in
        [Corpus::new(1, Split::Validation), Corpus::new(1, Split::Test), Corpus::new(2, Split::Train)]
    {
        assert_ne!(other.key, corpus().key);
        let shared = (0..50).filter(|&i| text.contains(&other.document(i).text)).count();
        assert_eq!(shared, 0);
    }
}

/// A change of the grammar changes the built-in model's corpus: then this text changes, and so must the model.
#[test]
fn the_first_document_is_pinned() {
    let first = corpus().document(0);
    assert_eq!(first.text, PINNED, "the language changed");
}
const PINNED: &str = "Here Ida the singer lives in the abbey. Ida owns a white boat. Her neighbour Sven is a fisher. Sven owns a \
    blue bell. Together 5 lamps and 18 more make 23. Later Edda the weaver came. Edda owns a green pear. Every duck that the hen \
    that knows these frogs sees warns a flute near the hares. Again Ida shows the white boat. Edda bought a pear.\n";

#[test]
fn reading_recovers_every_derivation_exactly() {
    let written: Vec<Document> = corpus().documents(0, 2000).collect();
    let text: String = written.iter().map(|d| d.text.as_str()).collect();
    let read = corpus().log_probability(&text).unwrap();
    assert_eq!(read, written);
    assert_eq!(corpus().log_probability("").unwrap(), []);
}

/// A pass that tries every option of every choice would see only distinct words; here random documents are walked and each
/// choice met is checked. Distinct words at each choice mean that no text has two derivations.
#[test]
fn options_of_a_choice_are_distinct_words() {
    struct Checker<'r>(Writer<'r>);
    impl Voice for Checker<'_> {
        fn pick(&mut self, options: &[(&str, f64)]) -> Result<usize, DataError> {
            assert!(distinct(options), "{options:?}");
            for (word, weight) in options {
                let is_word = word.chars().all(|c| c.is_ascii_alphanumeric());
                assert!((is_word && !word.is_empty()) || word.len() == 1, "{word:?} is not one lexeme");
                assert!(weight.is_finite() && *weight >= 0.0);
            }
            self.0.pick(options)
        }
        fn say(&mut self, lexeme: &str) -> Result<(), DataError> {
            self.0.say(lexeme)
        }
    }
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    for _ in 0..1000 {
        let mut checker = Checker(Writer::new(&mut rng));
        corpus().language.document(&mut checker).unwrap();
    }
}

/// -ln p and the sum of the choices' entropies have the same expectation; their difference is a sum of martingale steps, so
/// over n documents it stays within a few standard errors.
#[test]
fn surprise_equals_entropy_within_sampling_error() {
    for (seed, split) in [(1, Split::Train), (5, Split::Test)] {
        let corpus = Corpus::new(seed, split);
        let differences: Vec<f64> = corpus.documents(0, 4000).map(|d| d.nats - d.entropy).collect();
        let n = differences.len() as f64;
        let mean = differences.iter().sum::<f64>() / n;
        let deviation = (differences.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / n).sqrt();
        assert!(deviation > 1.0, "the test must have something to see");
        assert!(mean.abs() < 4.0 * deviation / n.sqrt(), "{mean} of {deviation}");
    }
}

/// The first sentence alone, by hand: name ln 24, role ln 24, and the entropies of its preferences.
#[test]
fn first_words_have_their_probabilities() {
    let n = 24_000;
    let (mut names, mut roles) = (std::collections::BTreeMap::new(), std::collections::BTreeMap::new());
    for d in corpus().documents(0, n) {
        let words: Vec<&str> = d.text.split(' ').take(4).collect();
        *names.entry(words[1].to_owned()).or_insert(0u32) += 1;
        *roles.entry(words[3].to_owned()).or_insert(0u32) += 1;
    }
    for counts in [names, roles] {
        assert_eq!(counts.len(), 24);
        // 1000 expected, standard deviation sqrt(24000 · 1/24 · 23/24) = 31.
        assert!(counts.values().all(|&c| (c as f64 - 1000.0).abs() < 5.0 * 31.0), "{counts:?}");
    }
}

#[test]
fn floors_agree_between_splits_and_add_up() {
    let a = corpus().floor(0, 3000);
    let b = Corpus::new(1, Split::Validation).floor(0, 3000);
    let error = (a.standard_error.powi(2) + b.standard_error.powi(2)).sqrt() / a.bytes as f64;
    assert!((a.per_byte() - b.per_byte()).abs() < 6.0 * error, "{a:?} {b:?}");
    assert_eq!(a.bytes, corpus().text(0, 3000).len());
    assert!((a.per_token(1000) - a.nats / 1000.0).abs() < 1e-9);
    assert!(a.per_byte() > 0.2 && a.per_byte() < 0.4);
}

#[test]
fn verbs_agree_with_their_subjects() {
    let singular = |w: &str| ANIMALS.iter().any(|a| a.0 == w);
    let plural = |w: &str| ANIMALS.iter().any(|a| a.1 == w);
    let noun = |w: &str| singular(w) || plural(w);
    let (mut plain, mut across, mut nested) = (0, 0, 0);
    for d in corpus().documents(0, 3000) {
        for s in sentences(&d.text).iter().filter(|s| ["The", "Every", "These"].contains(&s[0].as_str())) {
            assert!(noun(&s[1]), "{s:?}");
            assert!(s[0] != "Every" || singular(&s[1]), "{s:?}");
            assert!(s[0] != "These" || plural(&s[1]), "{s:?}");
            let agrees = |subject: &str, verb: &str| {
                let v = VERBS.iter().position(|v| v.0 == verb || v.1 == verb)?;
                Some(if singular(subject) { VERBS[v].0 == verb } else { VERBS[v].1 == verb })
            };
            match s[2].as_str() {
                // "The dogs near the cat chase": the verb is at 5 and agrees with 1.
                "near" | "behind" | "beside" | "under" => {
                    assert_eq!(agrees(&s[1], &s[5]), Some(true), "{s:?}");
                    across += usize::from(singular(&s[1]) != singular(&s[4]));
                }
                // "The dog that the cats chase sees": innermost clause without modifiers.
                "that" => {
                    if ["the", "every", "these"].contains(&s[3].as_str()) && agrees(&s[4], &s[5]).is_some() {
                        assert_eq!(agrees(&s[4], &s[5]), Some(true), "{s:?}");
                        assert_eq!(agrees(&s[1], &s[6]), Some(true), "{s:?}");
                        nested += 1;
                    } else if let Some(agrees) = agrees(&s[1], &s[3]) {
                        assert!(agrees, "{s:?}");
                    }
                }
                verb => {
                    assert_eq!(agrees(&s[1], verb), Some(true), "{s:?}");
                    plain += 1;
                }
            }
        }
    }
    assert!(plain > 1000 && across > 100 && nested > 100, "{plain} {across} {nested}");
}

#[test]
fn people_and_belongings_are_recalled() {
    let (mut roles, mut colours) = (0, 0);
    for d in corpus().documents(0, 1000) {
        let words = lexemes(&d.text);
        let is_name = |w: &String| SHE.contains(&w.as_str()) || HE.contains(&w.as_str());
        // "NAME the ROLE" or "NAME is a ROLE" introduces; "a COLOUR THING" is what the one just introduced owns.
        let mut cast: Vec<(&str, &str, &str, &str)> = Vec::new();
        for w in words.windows(3) {
            if is_name(&w[0]) && w[1] == "the" && ROLES.contains(&w[2].as_str()) {
                cast.push((&w[0], &w[2], "", ""));
            }
            if is_name(&w[0]) && w[1] == "is" {
                let role = words.windows(4).find(|x| x[0] == w[0] && x[1] == "is").map(|x| x[3].as_str());
                cast.push((&w[0], role.unwrap(), "", ""));
            }
            if w[0] == "a" && COLOURS.contains(&w[1].as_str()) {
                let last = cast.last_mut().unwrap();
                (last.2, last.3) = (&w[1], &w[2]);
            }
        }
        for w in words.windows(4) {
            if (w[0] == "Our" || w[0] == "our") && w[2] == "," && is_name(&w[3]) {
                assert!(cast.iter().any(|p| p.0 == w[3] && p.1 == w[1]), "{w:?} in {}", d.text);
                roles += 1;
            }
            if is_name(&w[0]) && w[1] == "," && w[2] == "our" {
                assert!(cast.iter().any(|p| p.0 == w[0] && p.1 == w[3]), "{w:?} in {}", d.text);
                roles += 1;
            }
            if w[0] == "the" && COLOURS.contains(&w[1].as_str()) {
                assert!(cast.iter().any(|p| p.2 == w[1] && p.3 == w[2]), "{w:?} in {}", d.text);
                colours += 1;
            }
        }
        let mut names: Vec<_> = cast.iter().map(|p| p.0).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), cast.len());
    }
    assert!(roles > 300 && colours > 300, "{roles} {colours}");
}

#[test]
fn pronouns_have_the_gender_of_the_last_person() {
    let (mut she, mut he) = (0, 0);
    for d in corpus().documents(0, 1000) {
        let mut last = String::new();
        let words = lexemes(&d.text);
        // The subject of a sentence about people: its first name, or the bearer of its role, or the newcomer.
        let bearer = |role: &str| {
            let introduces = |w: &&[String]| {
                (w[1] == "the" && w[2] == role && w[0] != "in") || (w[1] == "is" && w[3] == role)
            };
            words.windows(4).find(introduces).map(|w| w[0].clone())
        };
        for s in sentences(&d.text) {
            match s[0].as_str() {
                "She" => {
                    assert!(SHE.contains(&last.as_str()), "{last} in {}", d.text);
                    she += 1;
                }
                "He" => {
                    assert!(HE.contains(&last.as_str()), "{last} in {}", d.text);
                    he += 1;
                }
                "Our" => last = bearer(&s[1]).unwrap(),
                "Her" | "His" => {
                    assert_eq!(s[0] == "Her", SHE.contains(&last.as_str()));
                    last = s[2].clone();
                }
                "Here" | "Later" | "Again" => last = s[1].clone(),
                w if SHE.contains(&w) || HE.contains(&w) => last = w.to_owned(),
                _ => {}
            }
        }
    }
    assert!(she > 100 && he > 100, "{she} {he}");
}

#[test]
fn sums_and_differences_are_right() {
    let (mut sums, mut differences) = (0, 0);
    for d in corpus().documents(0, 1000) {
        for s in sentences(&d.text) {
            let n = |i: usize| s[i].parse::<usize>().unwrap();
            match s[0].as_str() {
                "Together" => {
                    assert_eq!(n(1) + n(4), n(7), "{s:?}");
                    assert!(n(1) <= MAX_OPERAND && n(4) <= MAX_OPERAND);
                    sums += 1;
                }
                "From" => {
                    assert_eq!(n(1) - n(4), n(6), "{s:?}");
                    assert_eq!(s[7] == "remains", n(6) == 1, "{s:?}");
                    differences += 1;
                }
                _ => {}
            }
        }
    }
    assert!(sums > 200 && differences > 200, "{sums} {differences}");
}

#[test]
fn brackets_are_closed_by_their_kind() {
    let mut deepest = 0;
    for d in corpus().documents(0, 2000) {
        let mut open = Vec::new();
        for c in d.text.chars() {
            match c {
                '(' => open.push(')'),
                '[' => open.push(']'),
                ')' | ']' => assert_eq!(open.pop(), Some(c), "{}", d.text),
                '.' => assert!(open.is_empty(), "{}", d.text),
                _ => {}
            }
            deepest = deepest.max(open.len());
        }
    }
    assert_eq!(deepest, 3);
}

#[test]
fn habits_differ_between_roles_and_animals() {
    // Otherwise there would be nothing to learn by heart: the most frequent deed differs between roles.
    let mut counts = [[0u32; DEEDS.len()]; ROLES.len()];
    for d in corpus().documents(0, 3000) {
        for s in sentences(&d.text) {
            if let (true, Some(role)) = (s[0] == "Our", ROLES.iter().position(|r| *r == s[1]))
                && let Some(deed) = DEEDS.iter().position(|d| *d == s[2])
            {
                counts[role][deed] += 1;
            }
        }
    }
    let best = |c: &[u32; DEEDS.len()]| c.iter().enumerate().max_by_key(|c| c.1).map(|c| c.0);
    let favourite: std::collections::BTreeSet<_> = counts.iter().map(best).collect();
    assert!(favourite.len() > 6, "{favourite:?}");
    assert_eq!(THINGS.len(), 24);
}

#[test]
fn foreign_texts_are_refused_with_the_place() {
    let good = corpus().document(0).text;
    let place = |text: &str| match corpus().log_probability(text) {
        Err(DataError::NotInLanguage { at, .. }) => at,
        other => panic!("{other:?}"),
    };
    assert_eq!(place(&good.replace("make 23", "make 24")), good.find(" 23").unwrap());
    assert_eq!(place(&good.replace("sees warns", "sees warn")), good.find(" warns").unwrap());
    assert_eq!(place(&good[..good.len() - 1]), good.len() - 1);
    assert_eq!(place("The cat sat."), 0);
    assert_eq!(place(&format!("{good}\n")), good.len());
    assert!(place(&good.replace("Her neighbour", "His neighbour")) > 0);
}

proptest! {
    #[test]
    fn any_change_of_one_byte_is_refused_or_another_document(index in 0u64..500, at: prop::sample::Index, byte in 0u8..128) {
        let document = corpus().document(index);
        let mut bytes = document.text.clone().into_bytes();
        let at = at.index(bytes.len());
        prop_assume!(bytes[at] != byte);
        bytes[at] = byte;
        let changed = String::from_utf8(bytes).unwrap();
        if let Ok(read) = corpus().log_probability(&changed) {
            prop_assert_eq!(read.iter().map(|d| d.text.as_str()).collect::<String>(), changed);
        }
    }

    #[test]
    fn hostile_text_never_panics(text in "\\PC*") {
        let _ = corpus().log_probability(&text);
    }
}
