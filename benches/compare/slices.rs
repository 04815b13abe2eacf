// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a figure is made of: the slices that were calm, or the calmest, and of those the median. (`tests/bench_slices.rs` is its test.)

/// Above the quickest that the piece of work was ever done, in percent. Clock rates differ by less, a core that is shared by more.
const ALLOWED: u64 = 20;
/// Calm slices that make a figure.
pub(crate) const WANTED: usize = 15;
/// Slices after which it is made of the calmest there are.
pub(crate) const MOST: usize = 10 * WANTED;
/// The same of turns, of several slices each.
pub(crate) const TURNS: usize = 4 * WANTED;

/// How much a slice was disturbed: by how many percent the piece of work took longer than the quickest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Unrest(u64);

impl Unrest {
    /// Not at all.
    pub(crate) const NONE: Self = Unrest(0);
    /// Its time says nothing.
    pub(crate) const SPOILT: Self = Unrest(u64::MAX);

    /// Of a piece of work that took so long, if the quickest took `quickest`; rounded up.
    pub(crate) fn of(took: u64, quickest: u64) -> Self {
        let more = took.saturating_sub(quickest);
        Unrest(more.saturating_mul(100).div_ceil(quickest.max(1)))
    }

    /// So little that it counts.
    pub(crate) fn is_calm(self) -> bool {
        self.0 <= ALLOWED
    }
}

/// What a figure rests on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figure {
    /// Nanoseconds of wall time per write, the threads' writes taken together.
    pub(crate) ns: f64,
    /// Too few slices were calm, so that the figure is of the calmest third of all.
    pub(crate) disturbed: bool,
}

/// The middle one.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Takes slices until enough are calm. A slice says how long it took per write, and how much it was disturbed.
pub(crate) fn figure(mut slice: impl FnMut() -> (f64, Unrest)) -> Figure {
    let [figure] = figures((0..MOST).map(|_| {
        let (ns, unrest) = slice();
        ([ns], unrest)
    }));
    figure
}

/// Takes turns until enough are calm, or there is none left. Several figures are taken of each.
pub(crate) fn figures<const N: usize>(
    turns: impl IntoIterator<Item = ([f64; N], Unrest)>,
) -> [Figure; N] {
    let (mut all, mut calm) = (Vec::new(), 0);
    for (values, unrest) in turns {
        all.push((values, unrest));
        calm += usize::from(unrest.is_calm());
        if calm == WANTED {
            break;
        }
    }
    of_slices(all, WANTED)
}

/// Of the calm slices, or of the calmest third of all if too few of those that were wanted are calm.
pub(crate) fn of_slices<const N: usize>(
    mut all: Vec<([f64; N], Unrest)>,
    wanted: usize,
) -> [Figure; N] {
    all.sort_by_key(|(_, unrest)| *unrest);
    let calm = all.partition_point(|(_, unrest)| unrest.is_calm());
    let disturbed = calm < wanted / 3;
    if !disturbed {
        all.truncate(calm);
    } else if let Some((_, most)) = all.get(all.len() / 3).copied() {
        all.retain(|(_, unrest)| *unrest <= most);
    }
    std::array::from_fn(|at| Figure {
        ns: median(all.iter().map(|(values, _)| values[at]).collect()),
        disturbed,
    })
}
