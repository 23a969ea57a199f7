//! The grammar itself: one pass writes (or reads) one document.

use super::lexicon::{
    ANIMALS, COLOURS, DEEDS, HE, KIN, PLACES, PREPOSITIONS, Preferences, ROLES, SHE, THINGS, VERBS,
};
use super::voice::Voice;
use crate::DataError;

/// Largest operand of the sums and differences.
pub(super) const MAX_OPERAND: usize = 20;
/// Deepest nesting of relative clauses and of brackets.
const MAX_DEPTH: usize = 2;
/// Sentences after the introduction: at least and at most.
const SENTENCES: (usize, usize) = (3, 7);

type Options<'l> = Vec<(&'l str, f64)>;

/// The fixed tables of the language, the same for every seed.
#[derive(Debug, Clone)]
pub(super) struct Language {
    place_of_role: Preferences,
    thing_of_role: Preferences,
    deed_of_role: Preferences,
    thing_of_deed: Preferences,
    verb_of_animal: Preferences,
    object_of_verb: Preferences,
    thing_of_place: Preferences,
    numbers: Vec<String>,
}

impl Language {
    pub(super) fn new() -> Self {
        let things = THINGS.len();
        Self {
            place_of_role: Preferences::new(1, ROLES.len(), PLACES.len(), 1.5),
            thing_of_role: Preferences::new(2, ROLES.len(), things, 1.5),
            deed_of_role: Preferences::new(3, ROLES.len(), DEEDS.len(), 1.5),
            thing_of_deed: Preferences::new(4, DEEDS.len(), things, 1.5),
            verb_of_animal: Preferences::new(5, ANIMALS.len(), VERBS.len(), 1.5),
            object_of_verb: Preferences::new(6, VERBS.len(), ANIMALS.len() + things, 1.5),
            thing_of_place: Preferences::new(7, PLACES.len(), things, 1.2),
            numbers: (0..=2 * MAX_OPERAND).map(|n| n.to_string()).collect(),
        }
    }

    /// Writes or reads one document.
    pub(super) fn document(&self, voice: &mut impl Voice) -> Result<(), DataError> {
        let mut story = Story { l: self, voice, cast: Vec::with_capacity(3), subject: 0, place: 0 };
        story.introduction()?;
        for told in 0..=SENTENCES.1 {
            if !story.sentence(told)? {
                break;
            }
        }
        Ok(())
    }
}

/// A person of the story; all fields are indices into the word lists.
#[derive(Debug, Clone, Copy)]
struct Person {
    name: usize,
    role: usize,
    colour: usize,
    thing: usize,
}

/// A noun with its number.
#[derive(Debug, Clone, Copy)]
struct Noun {
    animal: usize,
    plural: bool,
}

struct Story<'l, 'v, V> {
    l: &'l Language,
    voice: &'v mut V,
    cast: Vec<Person>,
    /// The person the last sentence about a person was about: "She" or "He" means this one.
    subject: usize,
    place: usize,
}

fn name(index: usize) -> &'static str {
    if index < SHE.len() { SHE[index] } else { HE[index - SHE.len()] }
}

fn form(pair: (&'static str, &'static str), plural: bool) -> &'static str {
    if plural { pair.1 } else { pair.0 }
}

fn weighted<'l>(words: impl IntoIterator<Item = &'l str>, weights: &[f64]) -> Options<'l> {
    words.into_iter().zip(weights.iter().copied()).collect()
}

fn even<'l>(words: impl IntoIterator<Item = &'l str>) -> Options<'l> {
    words.into_iter().map(|w| (w, 1.0)).collect()
}

/// `options` with all weights multiplied so that they sum to `total`.
fn scaled<'l>(options: &[(&'l str, f64)], total: f64) -> Options<'l> {
    let sum: f64 = options.iter().map(|o| o.1).sum();
    options.iter().map(|&(w, x)| (w, x / sum * total)).collect()
}

impl<'l, V: Voice> Story<'l, '_, V> {
    fn say(&mut self, phrase: &[&str]) -> Result<(), DataError> {
        phrase.iter().try_for_each(|w| self.voice.say(w))
    }

    fn pick(&mut self, options: &[(&str, f64)]) -> Result<usize, DataError> {
        self.voice.pick(options)
    }

    // ---- people -------------------------------------------------------------------------------------------------

    /// "Here NAME the ROLE lives in the PLACE. NAME owns a COLOUR THING. Her KIN NAME is a ROLE. NAME owns a COLOUR THING."
    fn introduction(&mut self) -> Result<(), DataError> {
        // A word before the first name, so that every name is written after a blank: tokens of a name are then always the same.
        self.say(&["Here"])?;
        let first = self.pick_name()?;
        self.say(&["the"])?;
        let role = self.pick_role()?;
        self.say(&["lives", "in", "the"])?;
        self.place = self.pick(&weighted(PLACES, self.l.place_of_role.row(role)))?;
        self.say(&["."])?;
        self.pick_belongings(first, role)?;
        self.say(&[if first < SHE.len() { "Her" } else { "His" }])?;
        self.pick(&even(KIN))?;
        let second = self.pick_name()?;
        self.say(&["is", "a"])?;
        let role = self.pick_role()?;
        self.say(&["."])?;
        self.pick_belongings(second, role)
    }

    fn pick_name(&mut self) -> Result<usize, DataError> {
        let options: Options = (0..SHE.len() + HE.len())
            .map(|n| (name(n), if self.cast.iter().any(|p| p.name == n) { 0.0 } else { 1.0 }))
            .collect();
        self.pick(&options)
    }

    fn pick_role(&mut self) -> Result<usize, DataError> {
        let taken = |r: usize| self.cast.iter().any(|p| p.role == r);
        let options: Options =
            ROLES.iter().enumerate().map(|(r, w)| (*w, if taken(r) { 0.0 } else { 1.0 })).collect();
        self.pick(&options)
    }

    /// "NAME owns a COLOUR THING.", and the person joins the cast. Colours are distinct within a story, so a colour names an
    /// owner. The name said again at once is what makes recall learnable in a short training: it is found a few words back.
    fn pick_belongings(&mut self, who: usize, role: usize) -> Result<(), DataError> {
        self.say(&[name(who), "owns", "a"])?;
        let taken = |c: usize| self.cast.iter().any(|p| p.colour == c);
        let options: Options =
            COLOURS.iter().enumerate().map(|(c, w)| (*w, if taken(c) { 0.0 } else { 1.0 })).collect();
        let colour = self.pick(&options)?;
        let thing = self.pick(&weighted(THINGS.map(|t| t.0), self.l.thing_of_role.row(role)))?;
        self.cast.push(Person { name: who, role, colour, thing });
        self.subject = self.cast.len() - 1;
        self.say(&["."])
    }

    fn newcomer(&mut self) -> Result<(), DataError> {
        let name = self.pick_name()?;
        self.say(&["the"])?;
        let role = self.pick_role()?;
        self.say(&["came", "."])?;
        self.pick_belongings(name, role)
    }

    fn cast_words(&self, word: impl Fn(&Person) -> &'static str, but: Option<usize>) -> Options<'static> {
        let weight = |i: usize| if Some(i) == but { 0.0 } else { 1.0 };
        self.cast.iter().enumerate().map(|(i, p)| (word(p), weight(i))).collect()
    }

    /// What person `who` did; `comma` allows an apposition first ("Anna, our baker, sold ...").
    fn deed(&mut self, who: usize, apposition: Option<&'static str>) -> Result<(), DataError> {
        self.subject = who;
        let deeds = weighted(DEEDS, self.l.deed_of_role.row(self.cast[who].role));
        let deed = match apposition {
            None => self.pick(&deeds)?,
            Some(words) => {
                let mut options = vec![(",", 0.35)];
                options.extend(scaled(&deeds, 0.65));
                match self.pick(&options)? {
                    0 => {
                        if words == "our" {
                            self.say(&["our", ROLES[self.cast[who].role]])?;
                        } else {
                            self.say(&[words])?;
                        }
                        self.say(&[","])?;
                        self.pick(&deeds)?
                    }
                    n => n - 1,
                }
            }
        };
        // "the COLOUR THING" is something owned by one of the cast: the colour says whose, the thing is then certain.
        if self.pick(&[("the", 0.4), ("a", 0.6)])? == 0 {
            let owner = self.pick(&self.cast_words(|p| COLOURS[p.colour], None))?;
            self.say(&[THINGS[self.cast[owner].thing].0])?;
        } else {
            self.pick(&weighted(THINGS.map(|t| t.0), self.l.thing_of_deed.row(deed)))?;
        }
        match self.pick(&[(".", 0.6), ("for", 0.25), ("while", 0.15)])? {
            1 => {
                self.pick(&self.cast_words(|p| name(p.name), Some(who)))?;
                self.say(&["."])
            }
            2 => {
                let determiner = self.pick(&[("the", 0.6), ("every", 0.2), ("these", 0.2)])?;
                self.animal_clause([0, 1, 2][determiner])
            }
            _ => Ok(()),
        }
    }

    // ---- animals ------------------------------------------------------------------------------------------------

    /// Noun after a determiner (0 "the": either number; 1 "every" or "a": singular; 2 "these": plural).
    fn animal(&mut self, determiner: usize) -> Result<Noun, DataError> {
        let (one, many) = [(0.5, 0.5), (1.0, 0.0), (0.0, 1.0)][determiner];
        let mut options: Options = ANIMALS.iter().map(|a| (a.0, one)).collect();
        options.extend(ANIMALS.iter().map(|a| (a.1, many)));
        let n = self.pick(&options)?;
        Ok(Noun { animal: n % ANIMALS.len(), plural: n >= ANIMALS.len() })
    }

    fn verbs(&self, subject: Noun) -> Options<'l> {
        weighted(VERBS.map(|v| form(v, subject.plural)), self.l.verb_of_animal.row(subject.animal))
    }

    /// A whole clause after its determiner, with the full stop.
    fn animal_clause(&mut self, determiner: usize) -> Result<(), DataError> {
        let subject = self.animal(determiner)?;
        let verb = self.tail(Some(subject), 0, &self.verbs(subject))?;
        self.object(verb, 0, &[(".", 1.0)])?;
        Ok(())
    }

    /// The object of `verb`, its own modifiers, and the choice of what follows; returns the index into `follow`.
    fn object(&mut self, verb: usize, depth: usize, follow: &[(&'l str, f64)]) -> Result<usize, DataError> {
        let determiner = self.pick(&[("the", 0.5), ("a", 0.3), ("these", 0.2)])?;
        let (one, many) = [(0.5, 0.5), (1.0, 0.0), (0.0, 1.0)][determiner];
        let nouns = || ANIMALS.iter().chain(&THINGS);
        let weights = self.l.object_of_verb.row(verb);
        let mut options: Options = nouns().zip(weights).map(|(n, w)| (n.0, w * one)).collect();
        options.extend(nouns().zip(weights).map(|(n, w)| (n.1, w * many)));
        let (n, count) = (self.pick(&options)?, ANIMALS.len() + THINGS.len());
        let animal = (n % count < ANIMALS.len()).then_some(Noun { animal: n % count, plural: n >= count });
        self.tail(animal, depth, follow)
    }

    /// What may come after a noun: a relative clause, a place, or at once one of `follow`. The relative clause or the place
    /// belongs to the noun just before it. Things take no relative clause. Returns the index into `follow`.
    fn tail(
        &mut self,
        noun: Option<Noun>,
        depth: usize,
        follow: &[(&'l str, f64)],
    ) -> Result<usize, DataError> {
        if depth >= MAX_DEPTH {
            return self.pick(follow);
        }
        let relative = if noun.is_some() { 0.16 } else { 0.0 };
        let place = 0.12;
        let mut options: Options = vec![("that", relative)];
        options.extend(PREPOSITIONS.map(|p| (p, place / PREPOSITIONS.len() as f64)));
        let first = options.len();
        options.extend(scaled(follow, 1.0 - relative - place));
        let n = self.pick(&options)?;
        match (n, noun) {
            (0, Some(noun)) => self.relative(noun, depth + 1, follow),
            (n, _) if n < first => {
                // A noun of either number between subject and verb: the verb still agrees with the subject.
                self.say(&["the"])?;
                self.animal(0)?;
                self.pick(follow)
            }
            _ => Ok(n - first),
        }
    }

    /// After "that": "that chases the hen" or "that the dogs chase"; then the choice of what follows.
    fn relative(&mut self, noun: Noun, depth: usize, follow: &[(&'l str, f64)]) -> Result<usize, DataError> {
        let mut options: Options = vec![("the", 0.35), ("every", 0.1), ("these", 0.1)];
        options.extend(scaled(&self.verbs(noun), 0.45));
        match self.pick(&options)? {
            determiner @ 0..3 => {
                let inner = self.animal(determiner)?;
                self.tail(Some(inner), depth, &self.verbs(inner))?;
                self.pick(follow)
            }
            n => self.object(n - 3, depth, follow),
        }
    }

    // ---- numbers and lists --------------------------------------------------------------------------------------

    /// "Together 12 pears and 7 more make 19."
    fn sum(&mut self) -> Result<(), DataError> {
        let l = self.l;
        let numbers = || even(l.numbers[2..=MAX_OPERAND].iter().map(String::as_str));
        let a = self.pick(&numbers())? + 2;
        self.pick(&even(THINGS.map(|t| t.1)))?;
        self.say(&["and"])?;
        let b = self.pick(&numbers())? + 2;
        self.say(&["more", "make", &l.numbers[a + b], "."])
    }

    /// "From 12 pears take 7 and 5 remain."
    fn difference(&mut self) -> Result<(), DataError> {
        let l = self.l;
        let a = self.pick(&even(l.numbers[3..=MAX_OPERAND].iter().map(String::as_str)))? + 3;
        self.pick(&even(THINGS.map(|t| t.1)))?;
        self.say(&["take"])?;
        let b = self.pick(&even(l.numbers[1..a].iter().map(String::as_str)))? + 1;
        self.say(&["and", &l.numbers[a - b], if a - b == 1 { "remains" } else { "remain" }, "."])
    }

    /// "In the mill lie (a pear, [two coins, a bell], three keys)."
    fn list(&mut self) -> Result<(), DataError> {
        self.say(&["the"])?;
        let home = self.place;
        let options: Options =
            PLACES.iter().enumerate().map(|(i, p)| (*p, if i == home { 22.0 } else { 1.0 })).collect();
        let place = self.pick(&options)?;
        self.say(&["lie"])?;
        let open = self.pick(&[("(", 0.6), ("[", 0.4)])?;
        self.items(place, open, 0)?;
        self.say(&["."])
    }

    fn items(&mut self, place: usize, open: usize, depth: usize) -> Result<(), DataError> {
        let close = [")", "]"][open];
        let nest = if depth < MAX_DEPTH { 0.1 } else { 0.0 };
        let things = self.l.thing_of_place.row(place);
        for item in 0.. {
            match self.pick(&[("a", 0.4), ("two", 0.25), ("three", 0.15), ("(", nest), ("[", nest)])? {
                0 => self.pick(&weighted(THINGS.map(|t| t.0), things)).map(drop)?,
                1 | 2 => self.pick(&weighted(THINGS.map(|t| t.1), things)).map(drop)?,
                bracket => self.items(place, bracket - 3, depth + 1)?,
            }
            let more = if item < 3 { 0.5 } else { 0.0 };
            if self.pick(&[(",", more), (close, 1.0 - more)])? == 1 {
                break;
            }
        }
        Ok(())
    }

    // ---- the story ----------------------------------------------------------------------------------------------

    /// One sentence after `told` others, or the end of the document (false).
    fn sentence(&mut self, told: usize) -> Result<bool, DataError> {
        let end = if told < SENTENCES.0 { 0.0 } else { 0.25 };
        if told == SENTENCES.1 {
            self.say(&["\n"])?;
            return Ok(false);
        }
        let pronoun = if self.cast[self.subject].name < SHE.len() { "She" } else { "He" };
        let mut options: Options = vec![
            ("\n", end),
            ("The", 0.14),
            ("Every", 0.06),
            ("These", 0.07),
            ("Our", 0.14),
            (pronoun, 0.09),
            ("Again", 0.1),
            ("Together", 0.07),
            ("From", 0.07),
            ("In", 0.08),
            ("Later", if self.cast.len() < 3 { 0.1 } else { 0.0 }),
        ];
        let names = options.len();
        options.extend(scaled(&self.cast_words(|p| name(p.name), None), 0.2));
        match self.pick(&options)? {
            0 => return Ok(false),
            n @ 1..=3 => self.animal_clause(n - 1)?,
            4 => {
                let who = self.pick(&self.cast_words(|p| ROLES[p.role], None))?;
                self.deed(who, Some(name(self.cast[who].name)))?;
            }
            5 => self.deed(self.subject, None)?,
            6 => {
                self.subject = self.pick(&self.cast_words(|p| name(p.name), None))?;
                let p = self.cast[self.subject];
                self.say(&["shows", "the", COLOURS[p.colour], THINGS[p.thing].0, "."])?;
            }
            7 => self.sum()?,
            8 => self.difference()?,
            9 => self.list()?,
            10 => self.newcomer()?,
            n => self.deed(n - names, Some("our"))?,
        }
        Ok(true)
    }
}
