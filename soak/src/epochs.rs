// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Scenes beside each other, and the quiet points between them.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::Failure;
use crate::gauge::Gauge;
use crate::options::Options;
use crate::platform::Platform;
use crate::report::Report;
use crate::scenes::{Pulse, Round, Scene};
use crate::tally::{Check, Tally};

/// Quiet points, or nothing can be said of how memory rises.
const LEAST: usize = 6;
/// A scene in which nothing is answered for so long hangs.
const HANGS: Duration = Duration::from_secs(150);

/// Runs all scenes for as long as the options say.
pub(crate) fn run<P: Platform>(platform: &P, options: &Options) -> Result<Report, Failure> {
    let tally = Arc::new(Tally::default());
    let scenes: Vec<Scene> = match options.scene {
        Some(scene) => vec![scene],
        None => Scene::on(platform),
    };
    let pulses: Vec<Pulse> = scenes.iter().map(|_| Pulse::default()).collect();
    let next: Vec<AtomicU64> = scenes
        .iter()
        .map(|_| AtomicU64::new(options.round.unwrap_or(0)))
        .collect();
    let started = Instant::now();
    let mut gauges = Vec::new();
    let wrong = Mutex::new(Vec::new());
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| watch(&scenes, &pulses, &next, options, &over));
        // The first epoch warms up: what is made once is there when counting begins.
        loop {
            let epoch = Instant::now() + options.epoch();
            // Who has its turn has all of it.
            let until = |turn: bool| {
                if turn {
                    Instant::now() + options.epoch()
                } else {
                    epoch
                }
            };
            let one = |at: usize, turn: bool| {
                let (scene, pulse) = (scenes[at], &pulses[at]);
                let once = turn || options.round.is_some();
                let of =
                    |round| Round::new(platform, scene, round, options, &tally, pulse, until(turn));
                if let Err((round, why)) = rounds(scene, &next[at], epoch, once, of) {
                    let again = again(options, scene, round);
                    let what = format!("{}, round {round}: {why}\n  again: {again}", scene.name());
                    eprintln!("soak: {what}");
                    wrong
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(what);
                }
                pulse.rest();
            };
            match platform.takes_turns() {
                true => (0..scenes.len()).for_each(|at| one(at, true)),
                false => thread::scope(|scope| {
                    let one = &one;
                    (0..scenes.len()).for_each(|at| {
                        scope.spawn(move || one(at, false));
                    });
                }),
            }
            match quiet(platform, &gauges) {
                Ok(gauge) => {
                    println!(
                        "{:5.0} s: {} rounds, {} requests, {} KiB resident",
                        started.elapsed().as_secs_f64(),
                        tally.all_rounds(),
                        tally.all_requests(),
                        gauge.rss_kib
                    );
                    gauges.push(gauge);
                    tally.checked(Check::Quiet, 1);
                }
                Err(why) => wrong
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(format!("quiet point {}: {why}", gauges.len())),
            }
            let failed = !wrong
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .is_empty();
            let enough = started.elapsed() >= options.time() && gauges.len() >= LEAST;
            if failed || options.round.is_some() || enough {
                break;
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    Ok(Report {
        platform: platform.name(),
        seconds: started.elapsed().as_secs_f64(),
        tally,
        gauges,
        wrong: wrong.into_inner().unwrap_or_else(PoisonError::into_inner),
        one_scene: options.scene.is_some(),
    })
}

/// Rounds of one scene until the epoch ends; the number of the one that failed, and why.
fn rounds<'a, P: Platform>(
    scene: Scene,
    next: &AtomicU64,
    until: Instant,
    once: bool,
    of: impl Fn(u64) -> Round<'a, P>,
) -> Result<(), (u64, Failure)> {
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let round = of(number);
        scene.run(&round).map_err(|why| (number, why))?;
        round.tally.round();
        if once || Instant::now() >= until {
            return Ok(());
        }
    }
}

/// A look while nothing goes on: threads and descriptors are as many as at the first one, and nobody left anything.
fn quiet<P: Platform>(platform: &P, before: &[Gauge]) -> Result<Gauge, Failure> {
    let gauge = at_rest()?;
    if let Some(first) = before.first()
        && (gauge.threads, gauge.descriptors) != (first.threads, first.descriptors)
    {
        return Err(format!("{gauge:?}, at the first quiet point {first:?}").into());
    }
    match platform.left_behind()? {
        Some(left) => Err(left.into()),
        None => Ok(gauge),
    }
}

/// A thread that was joined may still be there for a moment: looks until nothing changes.
fn at_rest() -> Result<Gauge, Failure> {
    let (mut last, mut same) = (Gauge::look()?, 0);
    while same < 3 {
        thread::sleep(Duration::from_millis(20));
        let now = Gauge::look()?;
        let is_same = (now.threads, now.descriptors) == (last.threads, last.descriptors);
        same = if is_same { same + 1 } else { 0 };
        last = now;
    }
    Ok(last)
}

/// Ends the process when a scene hangs: nothing else can end what hangs.
fn watch(
    scenes: &[Scene],
    pulses: &[Pulse],
    next: &[AtomicU64],
    options: &Options,
    over: &AtomicBool,
) {
    let mut seen: Vec<(u64, Instant)> = scenes.iter().map(|_| (0, Instant::now())).collect();
    while !over.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(100));
        for (at, (beats, since)) in seen.iter_mut().enumerate() {
            let now = pulses[at].beats();
            if pulses[at].rests() || now != *beats {
                (*beats, *since) = (now, Instant::now());
            } else if since.elapsed() > HANGS {
                let round = next[at].load(Ordering::Relaxed).saturating_sub(1);
                eprintln!(
                    "soak: {}, round {round}: nothing was answered for {} s\n  again: {}",
                    scenes[at].name(),
                    HANGS.as_secs(),
                    again(options, scenes[at], round)
                );
                std::process::exit(1);
            }
        }
    }
}

/// How the plan of a round is had again.
fn again(options: &Options, scene: Scene, round: u64) -> String {
    format!(
        "cargo xtask soak --seed {} --scene {} --round {round}{}",
        options.seed(),
        scene.name(),
        match options.hypervisor {
            crate::options::On::Model => "",
            crate::options::On::Xen => " --xen",
        }
    )
}
