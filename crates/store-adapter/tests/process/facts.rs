//! What is known of a store whose process was killed, and the words in which processes tell each other.

use std::collections::{BTreeMap, BTreeSet};

use iroh_blobs::Hash;

/// What a tag can be: nothing, or the seed of the blob that it names.
pub(crate) type Value = Option<u64>;

/// What must hold when the store is opened next.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    /// What each tag can be. One value if its last change was acknowledged, else both that of before and that of after.
    pub(crate) tags: BTreeMap<String, Vec<Value>>,
    /// Blobs whose import was acknowledged. With a tag they are complete.
    pub(crate) added: BTreeSet<u64>,
    /// Those of them that no collection can have taken, tag or not.
    pub(crate) kept: BTreeSet<u64>,
    /// Chunks of partial blobs whose import was acknowledged. With a tag they are there.
    pub(crate) parts: BTreeMap<u64, Vec<(u64, u64)>>,
    /// Blobs of which a collection was acknowledged that removed them.
    pub(crate) gone: BTreeSet<Hash>,
    collecting: bool,
}

/// Something that is about to be done, was done, or was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Word {
    Added(u64),
    Part(u64, u64, u64),
    Setting(String, Value),
    Set(String, Value),
    Collecting,
    Gone(Hash),
    Collected,
    /// Everything was checked; what is told from now on is new.
    Ready,
}

impl Word {
    /// A line.
    pub(crate) fn line(&self) -> String {
        let value = |value: &Value| value.map_or("-".to_owned(), |seed| seed.to_string());
        match self {
            Self::Added(seed) => format!("added {seed}"),
            Self::Part(seed, from, to) => format!("part {seed} {from} {to}"),
            Self::Setting(name, to) => format!("setting {name} {}", value(to)),
            Self::Set(name, to) => format!("set {name} {}", value(to)),
            Self::Collecting => "collecting".to_owned(),
            Self::Gone(hash) => format!("gone {hash}"),
            Self::Collected => "collected".to_owned(),
            Self::Ready => "ready".to_owned(),
        }
    }

    pub(crate) fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let kind = words.next()?;
        let mut number = || words.next()?.parse().ok();
        let word = match kind {
            "added" => Self::Added(number()?),
            "part" => Self::Part(number()?, number()?, number()?),
            "setting" | "set" => {
                let name = words.next()?.to_owned();
                let value = match words.next()? {
                    "-" => None,
                    seed => Some(seed.parse().ok()?),
                };
                match kind {
                    "set" => Self::Set(name, value),
                    _ => Self::Setting(name, value),
                }
            }
            "collecting" => Self::Collecting,
            "gone" => Self::Gone(words.next()?.parse().ok()?),
            "collected" => Self::Collected,
            "ready" => Self::Ready,
            _ => return None,
        };
        words.next().is_none().then_some(word)
    }
}

impl Facts {
    /// Takes what a process told before it was killed.
    pub(crate) fn learn(&mut self, word: Word) {
        match word {
            Word::Added(seed) => {
                self.added.insert(seed);
                // A collection that is under way may have begun before the blob came, and gone on after its temporary tag.
                if !self.collecting {
                    self.kept.insert(seed);
                }
                self.parts.remove(&seed);
            }
            Word::Part(seed, from, to) => {
                self.parts.entry(seed).or_default().push((from, to));
            }
            Word::Setting(name, value) => {
                let values = self.tags.entry(name).or_insert_with(|| vec![None]);
                if self.collecting {
                    // What the tag kept until now may be taken already.
                    for seed in values.iter().flatten() {
                        self.kept.remove(seed);
                    }
                }
                values.push(value);
            }
            Word::Set(name, value) => {
                self.tags.insert(name, vec![value]);
            }
            Word::Collecting => {
                self.collecting = true;
                let safe: BTreeSet<u64> = self
                    .tags
                    .values()
                    .filter(|values| values.len() == 1)
                    .flat_map(|values| values.iter().flatten().copied())
                    .collect();
                self.kept.retain(|seed| safe.contains(seed));
            }
            Word::Gone(hash) => {
                self.gone.insert(hash);
            }
            Word::Collected => self.collecting = false,
            Word::Ready => {}
        }
    }

    /// The process that told is dead.
    pub(crate) fn settle(&mut self) {
        self.collecting = false;
        let possible: BTreeSet<u64> = self
            .tags
            .values()
            .flat_map(|values| values.iter().flatten().copied())
            .collect();
        // Without a tag nothing more is claimed of these.
        self.parts.retain(|seed, _| possible.contains(seed));
        let kept = &self.kept;
        self.added
            .retain(|seed| possible.contains(seed) || kept.contains(seed));
    }

    /// Lines from which [`read`](Self::read) makes the same facts.
    pub(crate) fn write(&self) -> String {
        let mut lines = Vec::new();
        for (name, values) in &self.tags {
            // Everything that it can be, the last one not acknowledged.
            let (first, rest) = values.split_first().unwrap();
            lines.push(Word::Set(name.clone(), *first));
            lines.extend(rest.iter().map(|value| Word::Setting(name.clone(), *value)));
        }
        // Those that a collection can have taken, then the collection, then the others.
        let taken = self.added.iter().filter(|seed| !self.kept.contains(*seed));
        lines.extend(taken.copied().map(Word::Added));
        let mut lines: Vec<String> = lines.iter().map(Word::line).collect();
        lines.push("forget".to_owned());
        let words = self
            .kept
            .iter()
            .copied()
            .map(Word::Added)
            .chain(self.parts.iter().flat_map(|(seed, parts)| {
                parts.iter().map(|(from, to)| Word::Part(*seed, *from, *to))
            }))
            .chain(self.gone.iter().copied().map(Word::Gone));
        lines.extend(words.map(|word| word.line()));
        lines.join("\n") + "\n"
    }

    pub(crate) fn read(text: &str) -> Self {
        let mut facts = Self::default();
        for line in text.lines() {
            if line == "forget" {
                facts.kept.clear();
            } else {
                facts.learn(Word::parse(line).unwrap_or_else(|| panic!("{line:?}")));
            }
        }
        facts
    }
}
