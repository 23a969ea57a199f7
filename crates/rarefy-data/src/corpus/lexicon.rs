//! The words of the built-in language and its fixed tables of who does what.

/// Names whose pronoun is "she".
pub(super) const SHE: [&str; 12] =
    ["Anna", "Mira", "Vera", "Lena", "Nora", "Ruth", "Olga", "Edda", "Jana", "Tess", "Ida", "Wilma"];
/// Names whose pronoun is "he".
pub(super) const HE: [&str; 12] =
    ["Boris", "Carl", "Emil", "Hugo", "Otto", "Paul", "Rolf", "Sven", "Tomas", "Viktor", "Yuri", "Leon"];
pub(super) const ROLES: [&str; 24] = [
    "baker", "miller", "farmer", "weaver", "sailor", "hunter", "tailor", "painter", "potter", "fisher",
    "carter", "doctor", "teacher", "singer", "smith", "mason", "cook", "clerk", "ranger", "monk", "scribe",
    "piper", "brewer", "cobbler",
];
pub(super) const PLACES: [&str; 12] = [
    "village", "harbour", "valley", "castle", "forest", "city", "market", "abbey", "garden", "mill", "tower",
    "cellar",
];
pub(super) const COLOURS: [&str; 10] =
    ["red", "blue", "green", "white", "black", "yellow", "brown", "grey", "golden", "purple"];
pub(super) const KIN: [&str; 4] = ["friend", "cousin", "neighbour", "partner"];
/// Animals, singular and plural. Only they are subjects of verbs in the present tense.
pub(super) const ANIMALS: [(&str, &str); 24] = [
    ("fox", "foxes"),
    ("hen", "hens"),
    ("goose", "geese"),
    ("cat", "cats"),
    ("dog", "dogs"),
    ("horse", "horses"),
    ("cow", "cows"),
    ("goat", "goats"),
    ("crow", "crows"),
    ("hawk", "hawks"),
    ("mouse", "mice"),
    ("wolf", "wolves"),
    ("bear", "bears"),
    ("hare", "hares"),
    ("duck", "ducks"),
    ("frog", "frogs"),
    ("snake", "snakes"),
    ("bee", "bees"),
    ("swan", "swans"),
    ("seal", "seals"),
    ("rat", "rats"),
    ("pony", "ponies"),
    ("calf", "calves"),
    ("donkey", "donkeys"),
];
/// Things, singular and plural.
pub(super) const THINGS: [(&str, &str); 24] = [
    ("pear", "pears"),
    ("basket", "baskets"),
    ("bell", "bells"),
    ("boat", "boats"),
    ("book", "books"),
    ("candle", "candles"),
    ("chair", "chairs"),
    ("coin", "coins"),
    ("drum", "drums"),
    ("feather", "feathers"),
    ("flute", "flutes"),
    ("hammer", "hammers"),
    ("kettle", "kettles"),
    ("key", "keys"),
    ("lamp", "lamps"),
    ("ladder", "ladders"),
    ("letter", "letters"),
    ("mirror", "mirrors"),
    ("needle", "needles"),
    ("ribbon", "ribbons"),
    ("rope", "ropes"),
    ("spoon", "spoons"),
    ("stone", "stones"),
    ("wheel", "wheels"),
];
/// Verbs in the present tense: third person singular and plural.
pub(super) const VERBS: [(&str, &str); 24] = [
    ("chases", "chase"),
    ("sees", "see"),
    ("hears", "hear"),
    ("follows", "follow"),
    ("fears", "fear"),
    ("likes", "like"),
    ("finds", "find"),
    ("guards", "guard"),
    ("helps", "help"),
    ("hides", "hide"),
    ("knows", "know"),
    ("leads", "lead"),
    ("meets", "meet"),
    ("moves", "move"),
    ("pushes", "push"),
    ("smells", "smell"),
    ("stops", "stop"),
    ("calls", "call"),
    ("visits", "visit"),
    ("wakes", "wake"),
    ("warns", "warn"),
    ("watches", "watch"),
    ("feeds", "feed"),
    ("pulls", "pull"),
];
/// What people do to things, in the past tense.
pub(super) const DEEDS: [&str; 16] = [
    "carried", "bought", "sold", "mended", "washed", "painted", "lost", "dropped", "cleaned", "borrowed",
    "kept", "broke", "polished", "found", "wanted", "stole",
];
pub(super) const PREPOSITIONS: [&str; 4] = ["near", "behind", "beside", "under"];

/// A table of preferences: `rows` distributions over `cols` choices, each a Zipf law over its own fixed order of the choices.
///
/// The order comes from a fixed mixing function of (`salt`, row), so the language is the same for every corpus seed; a model
/// has to learn each row by heart, which is what makes capacity matter.
#[derive(Debug, Clone)]
pub(super) struct Preferences {
    cols: usize,
    weights: Vec<f64>,
}

impl Preferences {
    pub(super) fn new(salt: u64, rows: usize, cols: usize, exponent: f64) -> Self {
        let mut weights = vec![0.0; rows * cols];
        for (row, out) in weights.chunks_exact_mut(cols).enumerate() {
            let mut order: Vec<usize> = (0..cols).collect();
            order.sort_by_key(|&col| (mix(salt ^ ((row as u64) << 32) ^ col as u64), col));
            for (rank, col) in order.into_iter().enumerate() {
                out[col] = ((rank + 1) as f64).powf(-exponent);
            }
            let total: f64 = out.iter().sum();
            out.iter_mut().for_each(|w| *w /= total);
        }
        Self { cols, weights }
    }

    /// The distribution of `row`, summing to 1.
    pub(super) fn row(&self, row: usize) -> &[f64] {
        &self.weights[row * self.cols..][..self.cols]
    }
}

/// The SplitMix64 finaliser: a fixed bijection of 64-bit words with good avalanche.
fn mix(x: u64) -> u64 {
    let mut z = x.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_distinct_and_plain() {
        let mut all: Vec<&str> = Vec::new();
        all.extend(
            SHE.iter()
                .chain(&HE)
                .chain(&ROLES)
                .chain(&PLACES)
                .chain(&COLOURS)
                .chain(&KIN)
                .chain(&DEEDS)
                .chain(&PREPOSITIONS),
        );
        for (a, b) in ANIMALS.iter().chain(&THINGS).chain(&VERBS) {
            all.extend([*a, *b]);
        }
        all.extend(["that", "the", "a", "every", "these", "while", "to", "and", "more", "make", "take"]);
        assert!(all.iter().all(|w| w.bytes().all(|b| b.is_ascii_alphabetic())));
        let n = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), n, "a word is used twice");
    }

    #[test]
    fn rows_are_distributions_and_differ() {
        let p = Preferences::new(7, 24, 48, 1.5);
        for row in 0..24 {
            assert!((p.row(row).iter().sum::<f64>() - 1.0).abs() < 1e-12);
        }
        assert_ne!(p.row(0), p.row(1));
        let q = Preferences::new(7, 1, 2, 1.0);
        let (hi, lo) = (q.row(0)[0].max(q.row(0)[1]), q.row(0)[0].min(q.row(0)[1]));
        assert!((hi - 2.0 / 3.0).abs() < 1e-12 && (lo - 1.0 / 3.0).abs() < 1e-12);
    }
}
