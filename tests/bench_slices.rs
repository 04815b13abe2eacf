// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the comparison (`cargo xtask bench`) makes of slices that others disturbed.

#[path = "../benches/compare/slices.rs"]
mod slices;

use slices::{MOST, TURNS, Unrest, WANTED, figure, figures, median, of_slices};

/// Slices of these times, each disturbed by so many percent.
fn slices(of: impl IntoIterator<Item = (f64, u64)>) -> Vec<([f64; 1], Unrest)> {
    of.into_iter()
        .map(|(ns, percent)| ([ns], Unrest::of(100 + percent, 100)))
        .collect()
}

#[test]
fn a_fifth_more_is_calm_and_anything_above_is_not() {
    assert_eq!(Unrest::of(1000, 1000), Unrest::NONE);
    assert!(Unrest::of(1200, 1000).is_calm());
    assert!(!Unrest::of(1201, 1000).is_calm(), "rounded up");
    assert!(Unrest::NONE.is_calm() && !Unrest::SPOILT.is_calm());
    // Whatever the clock says.
    assert!(Unrest::of(0, 1).is_calm() && Unrest::of(0, 0).is_calm());
    assert!(!Unrest::of(u64::MAX, 1).is_calm());
}

#[test]
fn disturbed_slices_do_not_count_where_enough_are_calm() {
    // Two of three are disturbed, and take twice as long, or look quicker than they can be.
    let mixed = (0..30).map(|at| match at % 3 {
        0 => (10.0 + f64::from(at) / 100.0, 5),
        1 => (20.0, 80),
        _ => (1.0, 21),
    });
    let [figure] = of_slices(slices(mixed), WANTED);
    assert!(!figure.disturbed && (10.0..10.3).contains(&figure.ns));
}

#[test]
fn no_more_slices_are_taken_than_are_needed() {
    let mut taken = 0;
    let all_calm = figure(|| {
        taken += 1;
        (7.0, Unrest::NONE)
    });
    assert_eq!((taken, all_calm.disturbed), (WANTED, false));
    taken = 0;
    let none_calm = figure(|| {
        taken += 1;
        (7.0, Unrest::SPOILT)
    });
    assert_eq!((taken, none_calm.disturbed), (MOST, true));
}

#[test]
fn of_too_few_calm_slices_the_calmest_third_counts_and_it_is_told() {
    let few = WANTED / 3 - 1;
    let slice = |at: usize| match at {
        at if at < few => (10.0, 0),
        // The calmest third of 60 are the first 21, with those few.
        at if at < 21 => (12.0, 30),
        _ => (30.0, 90),
    };
    let backwards = (0..60).rev().map(slice);
    let [figure] = of_slices(slices(backwards), WANTED);
    assert!(figure.disturbed);
    assert!((figure.ns - 12.0).abs() < 1e-9, "{}", figure.ns);
    // One more calm slice, and those alone make the figure.
    let calm = (0..60).map(|at| if at == 59 { (10.0, 0) } else { slice(at) });
    let [figure] = of_slices(slices(calm), WANTED);
    assert!(!figure.disturbed && (figure.ns - 10.0).abs() < 1e-9);
}

#[test]
fn several_figures_of_a_turn_stand_and_fall_together() {
    let turns = (0..TURNS).map(|at| match at % 2 {
        0 => ([1.0, 2.0], Unrest::NONE),
        _ => ([100.0, 0.1], Unrest::SPOILT),
    });
    let [one, other] = figures(turns);
    assert!(!one.disturbed && !other.disturbed);
    assert_eq!((one.ns, other.ns), (1.0, 2.0));
}

#[test]
fn the_median_is_one_of_the_values() {
    assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
    assert_eq!(median(vec![4.0, 1.0, 3.0, 2.0]), 3.0, "the upper of two");
    assert!(median(Vec::new()).is_nan());
}
