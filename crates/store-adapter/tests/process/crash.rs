//! Kills a process two hundred times while it imports, tags, deletes and collects, and looks at what it left each time.

use std::{
    env,
    io::{BufRead, BufReader, Write},
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, SystemTime},
};

use crate::{
    DIR, ROLE,
    child::{self, SEED},
    facts::{Facts, Word},
    support::Random,
};

const KILLS: u64 = 200;
/// How long a process lives after it has looked at everything, in milliseconds.
const LIFE: std::ops::Range<u64> = 10..400;

pub(crate) fn run() {
    let seed = match env::var("SAVE_CRASH_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => SystemTime::UNIX_EPOCH.elapsed().unwrap().as_micros() as u64,
    };
    let kills = match env::var("SAVE_CRASH_KILLS") {
        Ok(kills) => kills.parse().unwrap(),
        Err(_) => KILLS,
    };
    println!("SAVE_CRASH_SEED={seed} SAVE_CRASH_KILLS={kills}");
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random::new(seed);
    let mut facts = Facts::default();
    let mut told = 0;
    for round in 0..kills {
        let mut child = start(dir.path(), random.next());
        let mut stdin = child.stdin.take().unwrap();
        // It may have failed already, which shows below.
        let _ = stdin.write_all(facts.write().as_bytes());
        drop(stdin);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut ready = false;
        let mut words = Vec::new();
        for line in &mut lines {
            let word = Word::parse(&line.unwrap()).unwrap();
            if word == Word::Ready {
                ready = true;
                break;
            }
            words.push(word);
        }
        assert!(
            ready,
            "after kill {round} a check failed; the facts were {facts:#?}"
        );
        let life = LIFE.start + random.below(LIFE.end - LIFE.start);
        std::thread::sleep(Duration::from_millis(life));
        child.kill().unwrap();
        words.extend(lines.map(|line| Word::parse(&line.unwrap()).unwrap()));
        let ended = child.wait().unwrap();
        assert!(
            ended.signal().is_some(),
            "in round {round} it ended by itself: {ended}"
        );
        told += words.len();
        words.into_iter().for_each(|word| facts.learn(word));
        facts.settle();
    }
    child::finish(dir.path(), &facts);
    println!(
        "{kills} kills, {told} acknowledged facts, {} tags at the end",
        facts.tags.len()
    );
    assert!(told as u64 > kills, "the processes did too little");
}

fn start(dir: &Path, seed: u64) -> Child {
    Command::new(env::current_exe().unwrap())
        .env(ROLE, "crash")
        .env(DIR, dir)
        .env(SEED, seed.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}
