//! The outcomes, and writers who race on a simulated network.

use proptest::prelude::*;

use super::*;
use crate::record::merge::Seen;

#[test]
fn a_result_tells_losses_from_failures() {
    let published = Outcome::Published { counter: 1 };
    let lost = Outcome::Overwritten { ours: 1, theirs: 2 };
    let all = |outcomes: &[&Outcome]| Published {
        subkeys: (0..)
            .zip(outcomes.iter().map(|outcome| (*outcome).clone()))
            .collect(),
    };
    assert!(all(&[]).is_complete() && all(&[&published]).is_complete());
    let mixed = all(&[&published, &lost]);
    assert!(!mixed.is_complete());
    assert_eq!(mixed.overwritten().collect::<Vec<_>>(), vec![1]);
    assert_eq!(mixed.clone().or_failure(), Ok(mixed));
    let failed = all(&[&lost, &Outcome::Failed(Error::Offline)]);
    assert_eq!(failed.or_failure(), Err(Error::Offline));
}

#[test]
fn after_a_loss_the_winners_value_is_no_news() {
    let mut round = Round::default();
    let lost = Outcome::Overwritten { ours: 1, theirs: 1 };
    let contested = Step::Contested {
        seq: 4,
        lost: Some(lost.clone()),
    };
    assert!(round.take(7, Ok(contested)).is_none());
    assert_eq!(round.todo.get(&7), Some(&Some(4)));
    assert!(round.contested);
    round.take(7, Ok(Step::Done(Outcome::Published { counter: 1 })));
    round.take(7, Err(Error::Offline));
    assert_eq!(round.outcomes.get(&7), Some(&lost));
}

#[test]
fn random_waits_stay_below_the_longest() {
    for _ in 0..100 {
        assert!(random_up_to(SPREAD).unwrap() <= SPREAD);
    }
}

const SUBKEY: u32 = 7;
const EVERY: u8 = 0b1111;

/// Four storage nodes. Each keeps what reached it first under a number, as Veilid's do.
#[derive(Debug, Default)]
struct Nodes([Option<(u32, Vec<u8>)>; 4]);

impl Nodes {
    fn take(&mut self, node: usize, value: &(u32, Vec<u8>)) {
        let held = &mut self.0[node];
        if held.as_ref().is_none_or(|held| held.0 < value.0) {
            *held = Some(value.clone());
        }
    }

    /// The different values that the nodes in `asked` hold under the highest number, the one that most hold last.
    fn newest(&self, asked: u8) -> Vec<(u32, Vec<u8>)> {
        let held = (0..4).filter(|node| asked & (1 << node) != 0);
        let held: Vec<_> = held.filter_map(|node| self.0[node].clone()).collect();
        let newest = held.iter().map(|held| held.0).max();
        let mut values: Vec<_> = held
            .iter()
            .filter(|held| Some(held.0) == newest)
            .cloned()
            .collect();
        values.sort_by_key(|value| {
            let holders = held.iter().filter(|held| *held == value).count();
            (holders, value.clone())
        });
        values.dedup();
        values
    }
}

/// A value on its way to the nodes, with what those answered that it has reached.
struct Sending {
    value: (u32, Vec<u8>),
    counter: u64,
    ours: u32,
    left: Vec<usize>,
    answers: Nodes,
}

/// A device that publishes a value of its own, step by step as `Record::send` and `Record::read_back` do.
struct Writer {
    row: Option<Cached>,
    stored: Option<(u32, Vec<u8>)>,
    round: Round,
    /// The order in which its values reach the nodes.
    order: [usize; 4],
    sending: Option<Sending>,
}

impl Writer {
    fn new(name: &str, order: [usize; 4]) -> Self {
        Self {
            row: Some(merge::write(None, 1, name.as_bytes().to_vec())),
            stored: None,
            round: Round::default(),
            order,
            sending: None,
        }
    }

    fn waits(&self) -> bool {
        self.row.as_ref().is_some_and(|row| !row.published)
    }

    fn get(&mut self, nodes: &Nodes, asked: u8) -> Option<(u32, Vec<u8>)> {
        if let Some(shown) = nodes.newest(asked).pop()
            && self.stored.as_ref().is_none_or(|held| held.0 <= shown.0)
        {
            self.stored = Some(shown);
        }
        self.stored.clone()
    }

    fn settle(&mut self, (seq, sealed): &(u32, Vec<u8>), sent: Option<u32>) -> Step {
        let seen = Seen {
            counter: 1,
            sealed,
            seq: Some(*seq),
            above_sent: sent.is_some() && Some(*seq) > sent,
        };
        let (row, note) = merge::take_in(self.row.as_ref(), &seen);
        self.row = Some(row);
        judge(note, self.waits(), Some(*seq), sent)
    }

    fn step(&mut self, nodes: &mut Nodes, asked: u8) {
        let step = match self.sending.take() {
            None => self.begin(nodes, asked),
            Some(mut sending) => match sending.left.pop() {
                Some(node) => {
                    nodes.take(node, &sending.value);
                    sending.answers.0[node] = nodes.0[node].clone();
                    self.sending = Some(sending);
                    return;
                }
                None => self.end(sending, nodes, asked),
            },
        };
        self.round.take(SUBKEY, Ok(step));
    }

    fn begin(&mut self, nodes: &Nodes, asked: u8) -> Step {
        let above = self.round.todo.remove(&SUBKEY).flatten();
        let mut least_above = match (above, &self.row) {
            (None, Some(row)) if !row.own && !row.published => row.seq,
            (above, _) => above,
        };
        let stored = match least_above {
            Some(_) => self.get(nodes, asked),
            None => self.stored.clone(),
        };
        let base = stored.as_ref().map(|stored| stored.0);
        if let Some(stored) = &stored {
            match self.settle(stored, above.or(base)) {
                Step::Contested { seq, lost: None } => least_above = Some(seq),
                step @ (Step::Done(_) | Step::Contested { .. }) => return step,
                _ => {}
            }
        }
        let Some(row) = self.row.as_mut().filter(|row| !row.published) else {
            return Step::Nothing;
        };
        row.attempted = true;
        let least = least_above
            .filter(|above| base <= Some(*above))
            .map(|above| above + 1);
        let ours = base.map_or(0, |base| base + 1).max(least.unwrap_or(0));
        let seq = match &stored {
            Some((seq, sealed)) if *sealed == row.sealed => (*seq).max(least.unwrap_or(0)),
            _ => ours,
        };
        self.sending = Some(Sending {
            value: (seq, row.sealed.clone()),
            counter: row.counter,
            ours,
            left: self.order.to_vec(),
            answers: Nodes::default(),
        });
        Step::Nothing
    }

    fn end(&mut self, sending: Sending, nodes: &Nodes, asked: u8) -> Step {
        let (seq, sealed) = sending.value.clone();
        let mut answers = sending.answers.newest(EVERY);
        let settled = answers.pop().expect("every node answered");
        self.stored = Some(settled.clone());
        if settled.1 != sealed {
            return self.settle(&settled, Some(sending.ours));
        }
        if !answers.is_empty() {
            return Step::Contested { seq, lost: None };
        }
        let shown = self.get(nodes, asked).expect("it was stored above");
        if shown.1 != sealed {
            return match shown.0 > seq {
                true => self.settle(&shown, Some(seq)),
                false => Step::Contested { seq, lost: None },
            };
        }
        let row = self.row.as_ref().expect("it was there to be sent");
        self.row = Some(merge::confirm(row, sending.counter, &sealed, Some(shown.0)));
        Step::Done(Outcome::Published {
            counter: sending.counter,
        })
    }

    /// The call ends without an answer, and the value reaches no more nodes.
    fn fail(&mut self) {
        self.sending = None;
        self.round.todo.clear();
    }

    /// Reads what an inspection says is newer.
    fn refresh(&mut self, nodes: &Nodes) {
        let newest = nodes.newest(EVERY).first().map(|held| held.0);
        if self.row.as_ref().is_some_and(|row| row.seq < newest)
            && let Some(shown) = self.get(nodes, EVERY)
        {
            let _ = self.settle(&shown, None);
        }
    }

    fn was_told(&self) -> bool {
        matches!(
            self.round.outcomes.get(&SUBKEY),
            Some(Outcome::Overwritten { .. })
        ) || self
            .row
            .as_ref()
            .is_some_and(|row| row.overwritten.is_some())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever reaches the nodes in whatever order, whichever of them a reader asks, and with calls that fail half
    /// way: when nobody has anything to send any more, one value stands under the highest number, everybody has that
    /// one, and whoever wrote another was told.
    #[test]
    fn writers_who_race_end_with_one_value(
        steps in proptest::collection::vec((0usize..3, 1u8..=EVERY, 0u8..20), 0..80)
    ) {
        let mut nodes = Nodes::default();
        let mut writers = [
            Writer::new("a", [0, 1, 2, 3]),
            Writer::new("b", [3, 2, 1, 0]),
            Writer::new("c", [1, 3, 0, 2]),
        ];
        for (at, asked, what) in steps {
            match what {
                0 => writers[at].fail(),
                1 => writers[at].refresh(&nodes),
                _ => writers[at].step(&mut nodes, asked),
            }
        }
        // Everybody goes on until nothing is left to do, one after the other as after a random wait.
        for turn in 0.. {
            prop_assert!(turn < 20, "they never end");
            for writer in &mut writers {
                for _ in 0..40 {
                    writer.step(&mut nodes, EVERY);
                }
            }
            for writer in &mut writers {
                writer.refresh(&nodes);
            }
            if writers.iter().all(|writer| !writer.waits()) {
                break;
            }
        }
        let newest = nodes.newest(EVERY);
        prop_assert_eq!(newest.len(), 1, "{:?}", nodes);
        for (writer, name) in writers.iter().zip(["a", "b", "c"]) {
            let row = writer.row.as_ref().unwrap();
            prop_assert_eq!(&row.sealed, &newest[0].1);
            prop_assert!(row.sealed == name.as_bytes() || writer.was_told());
        }
    }
}
